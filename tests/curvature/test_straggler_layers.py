"""Sharpness by layer where the maxima are known; choice and sparsity of layers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import curvature
from tests.matrices.models.model import normal

KEY = jax.random.key(0)
PARAMS = {
    "first": {"kernel": normal(0, 3, 2), "bias": normal(1, 2)},
    "second": {"kernel": normal(2, 2, 2)},
}
SLOPES = jax.tree.map(lambda w: 2 * w + 0.1, PARAMS)
SCALE = curvature.adaptive_scale(PARAMS)


def dot(a, b):
    products = [jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))]
    return jnp.sum(jnp.stack(products))


@pytest.mark.parametrize("p", [2, math.inf])
def test_linear_loss(p):
    """The maximum of a linear loss is rho times the dual norm of the scaled slopes."""
    find = functools.partial(
        curvature.layerwise_sharpness, fun=functools.partial(dot, SLOPES), rho=0.5, p=p, scale=SCALE
    )
    found = jax.jit(lambda key, params: find(key, params=params))(KEY, PARAMS)
    assert list(found) == ["first", "second"]
    slopes = jax.tree.map(lambda g, c: np.abs(g * c), SLOPES, SCALE)
    for name, value in found.items():
        flat = np.concatenate([x.ravel() for x in jax.tree.leaves(slopes[name])])
        wanted = 0.5 * (np.linalg.norm(flat) if p == 2 else flat.sum())
        np.testing.assert_allclose(value, wanted, rtol=0.01)


def test_quadratic_loss_and_the_whole():
    """At a minimum: half the squared radius times the largest eigenvalue of the layer's block."""
    root = normal(3, 12, 12)
    A = root.T @ root / 12

    def loss(params):
        v = jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])
        return 0.5 * v @ A @ v

    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    options = {"rho": 0.3, "num_steps": 60}

    @jax.jit
    def find(keys):
        parts = curvature.layerwise_sharpness(keys[0], loss, zero, **options)
        whole = curvature.auto_pgd(keys[1], loss, zero, **options)
        return parts, whole.value - whole.clean

    parts, whole = find(jax.random.split(KEY))
    blocks = {"first": slice(0, 8), "second": slice(8, 12)}
    for name, block in blocks.items():
        largest = np.linalg.eigvalsh(A[block, block])[-1]
        np.testing.assert_allclose(parts[name], 0.045 * largest, rtol=0.02)
        assert 0 < parts[name] <= whole
    np.testing.assert_allclose(whole, 0.045 * np.linalg.eigvalsh(A)[-1], rtol=0.02)


def test_groups_vmap_and_sharded_batch(mesh):
    x = normal(5, 16, 3)

    def find(key, x):
        def loss(w):
            hidden = jnp.tanh(
                x @ w["first"]["kernel"] + jnp.broadcast_to(w["first"]["bias"], (16, 2))
            )
            return jnp.mean(jnp.square(hidden @ w["second"]["kernel"]))

        return curvature.layerwise_sharpness(
            key, loss, PARAMS, rho=0.2, scale=SCALE, num_steps=10, groups="leaf"
        )

    find = jax.jit(jax.vmap(find, (None, 0)))
    batches = jnp.stack([x, jnp.zeros_like(x)])
    one = find(KEY, batches)
    assert list(one) == ["first/bias", "first/kernel", "second/kernel"]
    placed = NamedSharding(mesh, PartitionSpec(None, "data"))
    sharded = find(KEY, jax.device_put(batches, placed))
    for name, values in one.items():
        assert values[0] > 0
        np.testing.assert_allclose(sharded[name], values, rtol=1e-3, atol=1e-6)
    assert one["first/kernel"][1] == 0


def test_which_stand_out():
    scores = {"a": 1.0, "b": jnp.asarray(3.0), "c": np.float32(3.0), "d": math.nan}
    for num, wanted in ((0, ""), (1, "b"), (2, "bc"), (3, "abc"), (4, "abcd")):
        chosen = curvature.straggler_layers(scores, num)
        assert "".join(name for name, yes in chosen.items() if yes) == wanted
    assert curvature.straggler_layers({}, 0) == {}
    traced = jax.vmap(lambda x: curvature.straggler_layers({"a": x, "b": 1 - x}, 1))
    np.testing.assert_array_equal(traced(jnp.array([0.2, 0.8]))["a"], [False, True])


def test_sparse_layers():
    prune = jax.jit(curvature.sparsify_layers)
    none = prune(PARAMS, {"first": 0.0})
    jax.tree.map(np.testing.assert_array_equal, none, PARAMS)
    all_gone = prune(PARAMS, {"first": 1.0})
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(all_gone["first"]))
    np.testing.assert_array_equal(all_gone["second"]["kernel"], PARAMS["second"]["kernel"])

    half = prune(PARAMS, {"first": 0.5, "second": 0.25})
    for name, count in (("first", 4), ("second", 1)):
        before, after = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree[name])])
            for tree in (PARAMS, half)
        )
        gone = after == 0
        assert gone.sum() == count
        assert np.abs(before[gone]).max() < np.abs(before[~gone]).min()
        np.testing.assert_array_equal(before[~gone], after[~gone])


def test_sparse_changes_return_to_the_origin():
    change = jax.tree.map(lambda w: jnp.round(4 * w) / 2, SLOPES)
    end = jax.tree.map(jnp.add, PARAMS, change)
    back = curvature.sparsify_layers(end, {"second": 1.0}, origin=PARAMS)
    np.testing.assert_array_equal(back["second"]["kernel"], PARAMS["second"]["kernel"])
    np.testing.assert_array_equal(back["first"]["kernel"], end["first"]["kernel"])
    half = curvature.sparsify_layers(end, {"second": 0.5}, origin=PARAMS)
    moved = np.abs(np.asarray(half["second"]["kernel"] - PARAMS["second"]["kernel"]))
    assert (moved < 1e-6).sum() == 2
    # Of four equal numbers the first go.
    equal = curvature.sparsify_layers({"w": jnp.ones(4)}, {"w": 0.5})
    assert equal["w"].tolist() == [0, 0, 1, 1]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="scale to have the leaves of params"):
        curvature.layerwise_sharpness(KEY, jnp.sum, PARAMS, rho=1.0, scale=PARAMS["first"])
    with pytest.raises(ValueError, match="rho > 0"):
        curvature.layerwise_sharpness(KEY, functools.partial(dot, SLOPES), PARAMS, rho=-1.0)
    with pytest.raises(ValueError, match="num from 0 to 2, the layers, got 3"):
        curvature.straggler_layers({"a": 1.0, "b": 2.0}, 3)
    with pytest.raises(ValueError, match=r"one score per layer, got shape \(2,\) for 'a'"):
        curvature.straggler_layers({"a": jnp.ones(2)}, 1)
    with pytest.raises(ValueError, match="fractions to name layers of .* got 'third'"):
        curvature.sparsify_layers(PARAMS, {"third": 0.5})
    with pytest.raises(ValueError, match=r"fractions in \[0, 1\], got 1.5 for 'first'"):
        curvature.sparsify_layers(PARAMS, {"first": 1.5})
    with pytest.raises(ValueError, match="origin to have the leaves of params"):
        curvature.sparsify_layers(PARAMS, {}, origin=PARAMS["first"])
