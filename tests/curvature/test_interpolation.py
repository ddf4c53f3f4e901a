"""Interpolation by layer: ends, masks, and barriers in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import curvature
from tests.matrices.models.model import normal

START, END = (
    {
        "first": {"kernel": normal(seed, 3, 2), "bias": normal(seed + 1, 2)},
        "second": {"kernel": normal(seed + 2, 2, 2), "bias": normal(seed + 3, 2)},
    }
    for seed in (0, 10)
)
ALPHAS = jnp.linspace(0, 1, 9)


def same(actual, wanted):
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)


def test_names():
    assert curvature.layer_names(START) == ("first", "second")
    leaves = curvature.layer_names(START, groups="leaf")
    assert leaves == ("first/bias", "first/kernel", "second/bias", "second/kernel")
    kinds = curvature.layer_names(START, groups=lambda path: path.rpartition("/")[2])
    assert kinds == ("bias", "kernel")
    assert curvature.layer_names({"w": 1.0, "b": 2.0}) == ("b", "w")


def test_ends_and_masks():
    move = jax.jit(curvature.interpolate)
    for alpha, wanted in ((0.0, START), (1.0, END)):
        same(curvature.interpolate(START, END, alpha), wanted)
        same(move(START, END, alpha), wanted)
    middle = move(START, END, 0.3)
    jax.tree.map(
        lambda m, w, v: np.testing.assert_allclose(m, 0.7 * w + 0.3 * v, rtol=1e-5, atol=1e-6),
        middle,
        START,
        END,
    )
    same(move(START, END, {"first": 0.3, "second": 0.3}), middle)
    part = curvature.interpolate(START, END, {"second": 0.3})
    same(part, {"first": START["first"], "second": middle["second"]})
    by_leaf = curvature.interpolate(START, END, {"first/bias": 1.0}, groups="leaf")
    same(by_leaf["first"]["bias"], END["first"]["bias"])
    same(by_leaf["first"]["kernel"], START["first"]["kernel"])
    path = jax.vmap(lambda a: curvature.interpolate(START, END, a))(ALPHAS)
    same(jax.tree.map(lambda x: x[-1], path), END)


def bumpy(w):
    """Two waves, of one and two humps: the barriers are their heights."""
    return 3 * jnp.sin(jnp.pi * w["a"]) + jnp.abs(jnp.sin(2 * jnp.pi * w["b"]))


def test_barriers_in_closed_form():
    ends = {"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}
    find = jax.jit(lambda a: curvature.layer_barriers(bumpy, *ends, alphas=a, groups="leaf"))
    found = find(ALPHAS)
    np.testing.assert_allclose(found["a"], 3, rtol=1e-5)
    np.testing.assert_allclose(found["b"], 1, rtol=1e-5)
    # From the other end, where the layers do not meet, it is the same.
    other = curvature.layer_barriers(bumpy, *ends, alphas=ALPHAS, base="end", groups="leaf")
    np.testing.assert_allclose(other["a"], 3, rtol=1e-5)
    meeting = lambda w: bumpy(w) + 4 * w["a"] * (1 - w["a"]) * w["b"]
    found = [
        curvature.layer_barriers(meeting, *ends, alphas=ALPHAS, base=base, groups="leaf")["a"]
        for base in ("start", "end")
    ]
    np.testing.assert_allclose(found, [3, 4], rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "convex"])
def test_no_barrier_where_the_loss_is_convex(kind):
    # Whole numbers and binary fractions: no rounding.
    start = {"a": {"w": jnp.array([1.0, -2.0])}, "b": {"w": jnp.array([4.0])}}
    end = {"a": {"w": jnp.array([3.0, 6.0])}, "b": {"w": jnp.array([-4.0])}}

    def loss(w):
        total = jnp.sum(w["a"]["w"]) + 3 * jnp.sum(w["b"]["w"])
        return total if kind == "linear" else total**2

    for base in ("start", "end"):
        found = curvature.layer_barriers(loss, start, end, alphas=ALPHAS, base=base)
        assert found == {"a": 0.0, "b": 0.0}


def test_sharded_batch(mesh):
    x = normal(5, 16, 3)

    @jax.jit
    def barriers(x):
        def loss(w):
            hidden = jnp.tanh(x @ w["first"]["kernel"])
            return jnp.mean(jnp.cos(2 * hidden @ w["second"]["kernel"]))

        return curvature.layer_barriers(loss, START, END, alphas=ALPHAS, batch_size=4)

    one = barriers(x)
    many = barriers(jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))))
    for name in one:
        np.testing.assert_allclose(many[name], one[name], atol=1e-5)
    assert max(one.values()) > 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="end to have the leaves of start"):
        curvature.interpolate(START, {"first": END["first"]}, 0.5)
    with pytest.raises(ValueError, match="alpha to name layers of .* got 'third'"):
        curvature.interpolate(START, END, {"third": 0.5})
    with pytest.raises(ValueError, match="groups to be one of"):
        curvature.layer_names(START, groups="block")
    total = lambda w: jnp.sum(w["first"]["bias"])
    with pytest.raises(ValueError, match="alphas to have 1 axes"):
        curvature.layer_barriers(total, START, END, alphas=jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"alphas in \[0, 1\]"):
        curvature.layer_barriers(total, START, END, alphas=jnp.array([0.5, 1.5]))
    with pytest.raises(ValueError, match="base to be one of"):
        curvature.layer_barriers(total, START, END, alphas=ALPHAS, base="middle")
    with pytest.raises(ValueError, match=r"fun to return a scalar, got shape \(2,\)"):
        curvature.layer_barriers(lambda w: w["first"]["bias"], START, END, alphas=ALPHAS)
