"""How rows are stored: bounds on the error, exact norms, and what is refused."""

import ml_dtypes
import numpy as np
import pytest

from gradkin.store import rows
from gradkin.store.layout import Spec, default_shard_size


def encoded(features, dtype):
    features = np.asarray(features, np.float32)
    spec = Spec(features.shape[1], dtype, 8, "")
    codes, scales = rows.encode(features, spec)
    assert codes.dtype == spec.stored_dtype
    return codes, scales


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(700, 400)) * np.exp(5 * rng.normal(size=(700, 1)))).astype(np.float32)


def test_int8_is_off_by_half_a_scale_at_most(features):
    codes, scales = encoded(features, "int8")
    largest = np.abs(features).max(axis=1)
    np.testing.assert_allclose(scales[:, 0], largest / 127, rtol=1e-6)
    error = np.abs(rows.decode(codes, scales).astype(np.float64) - features)
    assert (error.max(axis=1) <= 0.5001 * scales[:, 0]).all()
    assert (np.abs(codes.astype(int)).max(axis=1) == 127).all()


def test_multiples_of_the_scale_are_exact_in_int8():
    whole = np.array([[127.0, -3.0, 0.0], [-254.0, 2.0, 100.0]], np.float32)
    np.testing.assert_array_equal(rows.decode(*encoded(whole, "int8")), whole)


def test_floats_are_stored_as_they_round(features):
    codes, scales = encoded(features, "float32")
    np.testing.assert_array_equal(codes, features)
    np.testing.assert_array_equal(scales[:, 0], 1)
    codes, _ = encoded(features, "bfloat16")
    np.testing.assert_array_equal(codes, features.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_norms_are_those_of_the_rows_as_stored(features, dtype):
    codes, scales = encoded(features, dtype)
    norms = np.linalg.norm(rows.decode(codes, scales).astype(np.float64), axis=1)
    np.testing.assert_allclose(scales[:, 1], norms, rtol=1e-6)
    divided = rows.factors(scales, len(scales), normalized=True)
    np.testing.assert_allclose(divided, scales[:, 0] / norms, rtol=1e-6)
    np.testing.assert_array_equal(rows.factors(scales, 700, normalized=False), scales[:, 0])
    assert not rows.factors(scales, 5, normalized=False)[5:].any()


def test_rows_of_zeros_and_of_what_is_too_small():
    small = np.array([[0.0, 0.0], [1e-37, -1e-38], [1e30, -3e38]], np.float32)
    codes, scales = encoded(small, "int8")
    np.testing.assert_array_equal(codes[:2], 0)
    np.testing.assert_array_equal(scales[:2], 0)
    for dtype in ("float32", "bfloat16", "int8"):
        divided = rows.factors(encoded(small, dtype)[1], 3, normalized=True)
        assert not divided[:2].any()
        assert divided[2] > 0
        assert np.isfinite(divided).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(dtype, bad):
    features = np.ones((5, 3), np.float32)
    features[3, 1] = bad
    with pytest.raises(ValueError, match=f"finite in {dtype}.* of example 13"):
        rows.encode(features, Spec(3, dtype, 8, ""), start=10)


def test_what_overflows_is_named():
    spec = Spec(1, "bfloat16", 8, "")
    with pytest.raises(ValueError, match="finite in bfloat16"):
        rows.encode(np.full((1, 1), np.finfo(np.float32).max), spec)
    with pytest.raises(ValueError, match="finite in int8"):
        rows.encode(rows.as_rows(np.full((1, 1), 1e300), 1), spec._replace(dtype="int8"))


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "match"),
    [
        ((3,), np.float32, ValueError, r"features of shape \[n, 3\]"),
        ((2, 4), np.float32, ValueError, r"features.shape=\(2, 4\)"),
        ((0, 3), np.float32, ValueError, "n >= 1"),
        ((2, 3), np.int32, TypeError, "floating dtype, got features.dtype=int32"),
    ],
)
def test_rows_of_another_kind_are_refused(shape, dtype, error, match):
    with pytest.raises(error, match=match):
        rows.as_rows(np.zeros(shape, dtype), 3)


def test_default_shards_have_8_mib():
    assert default_shard_size(1024, "float32") == 2048
    assert default_shard_size(1024, "int8") == 8192
    assert default_shard_size(1000, "bfloat16") == 4096
    assert default_shard_size(10**9, "float32") == 1
