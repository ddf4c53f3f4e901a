"""Strict JSON that gives the same float32 back."""

import json

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest

from experiments.runner import encoding

SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, max_side=4)
FLOATS = arrays.arrays(np.float32, SHAPES, elements=st.floats(width=32))


@hypothesis.given(FLOATS)
@hypothesis.settings(max_examples=60)
def test_float32_survives_bit_by_bit(array):
    text = encoding.dumps(encoding.encode({"x": array}))
    back = encoding.decode(json.loads(text, parse_constant=pytest.fail))["x"]
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, array)


def test_integers_and_booleans_are_as_they_were():
    metrics = {"i": np.array([[1, -(2**40)]]), "b": np.array([True, False])}
    back = encoding.decode(json.loads(encoding.dumps(encoding.encode(metrics))))
    assert back["i"].tolist() == [[1, -(2**40)]]
    assert back["b"].dtype == bool


def test_non_finite_numbers_have_names():
    x = np.array([np.nan, np.inf, -np.inf, 1e300, 0.1])
    assert encoding.encode({"x": x})["x"] == ["NaN", "Infinity", "-Infinity", "Infinity", 0.1]


def test_too_much_is_refused_by_name():
    metrics = {"small": np.zeros(3), "big": np.full((1000, 200), 0.123456)}
    with pytest.raises(
        ValueError, match=r"at most 1,000,000 bytes .* largest are big \(1000, 200\)"
    ):
        encoding.encode(metrics)


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["a"])])
def test_only_real_numbers(array):
    with pytest.raises(TypeError, match="metrics of real numbers"):
        encoding.encode({"x": array})


@pytest.mark.parametrize("shape", [(0,), (2, 0), (2, 0, 3)])
def test_without_elements(shape):
    assert encoding.encode({"x": np.zeros(shape)})["x"] == np.zeros(shape).tolist()


def test_write_is_atomic(tmp_path):
    encoding.write_atomically(tmp_path / "a" / "b.json", "1")
    encoding.write_atomically(tmp_path / "a" / "b.json", "2")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]
    assert (tmp_path / "a" / "b.json").read_text() == "2"
