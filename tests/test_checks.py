"""Argument checks: what passes, what is refused and in which words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import checks


@pytest.mark.parametrize(
    ("check", "good", "bad", "words"),
    [
        (checks.positive, 0.5, 0.0, "Expected size > 0, got size=0.0"),
        (
            checks.positive,
            np.array([1, 2]),
            np.array([1, 0]),
            r"Expected size > 0, got size=\[1 0\]",
        ),
        (checks.positive, np.ones((3, 3)), np.eye(3), r"Expected size > 0, got size\[0, 1\]=0.0"),
        (checks.positive, float("inf"), float("nan"), "got size=nan"),
        (checks.non_negative, 0, -1, "Expected size >= 0, got size=-1"),
    ],
)
def test_ranges(check, good, bad, words):
    check(size=good)
    with pytest.raises(ValueError, match=words):
        check(size=bad)


def test_traced_values_pass():
    def double(x):
        checks.positive(x=x)
        checks.non_negative(x=x)
        return 2 * x

    assert float(jax.jit(double)(-1.0)) == -2.0


def test_integers_are_pythons_and_numpys_and_no_booleans():
    for value in (2, np.int64(2), np.uint8(2)):
        assert checks.is_integer(value)
        assert checks.is_integer(value, least=2)
        assert not checks.is_integer(value, least=3)
    for value in (True, np.bool_(1), 2.0, np.float32(2), "2", None, jnp.ones((), int)):
        assert not checks.is_integer(value)


def test_one_of():
    checks.one_of(("sum", "mean"), reduction="mean")
    with pytest.raises(ValueError, match=r"reduction to be one of \('sum', 'mean'\).*'max'"):
        checks.one_of(("sum", "mean"), reduction="max")


def test_rank():
    checks.rank(2, x=jnp.ones((2, 3)), y=np.ones((1, 1)))
    with pytest.raises(ValueError, match=r"Expected y to have 2 axes, got y.shape=\(3,\)"):
        checks.rank(2, x=jnp.ones((2, 3)), y=np.ones(3))


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": np.ones(2)}, r"\['b'\]\['c'\] is missing"),
        ({"a": np.ones(2), "b": {"c": np.ones(1)}, "d": np.ones(1)}, r"\['d'\] is extra"),
        (
            {"a": np.ones(2), "b": {"c": np.ones(3)}},
            r"at \['b'\]\['c'\] got \(3,\), expected \(1,\)",
        ),
    ],
)
def test_same_structure_names_the_path(tree, words):
    like = {"a": np.ones(2), "b": {"c": np.ones(1)}}
    checks.same_structure(like, like, name="tangent", like_name="params")
    with pytest.raises(ValueError, match=words):
        checks.same_structure(tree, like, name="tangent", like_name="params")


def test_same_structure_sees_other_containers():
    with pytest.raises(ValueError, match="tangent to have the tree structure of params"):
        checks.same_structure([np.ones(2)], (np.ones(2),), name="tangent", like_name="params")


def test_positive_integers():
    checks.positive_integer(size=1, other=np.int64(7))
    for value in (0, True, 2.0, None):
        with pytest.raises(
            ValueError, match=f"Expected size to be a positive integer, got {value}"
        ):
            checks.positive_integer(size=value)
