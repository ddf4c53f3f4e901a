"""Projecting one gradient off another."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from gradkin.dice import orthogonal_gradient, orthogonalize


def trees(key, dtype=jnp.float32):
    f, b = jax.random.split(key)
    draw = lambda k: {
        "a": {"kernel": jax.random.normal(k, (3, 4), dtype)},
        "b": {"kernel": jax.random.normal(jax.random.fold_in(k, 1), (5,), dtype)},
    }
    return draw(f), draw(b)


def projected(out, forward):
    return jax.tree.map(jnp.subtract, out.gradient, forward)


def test_is_orthogonal_in_both_precisions(key):
    for dtype, limit in ((jnp.float32, 1e-5), (jnp.float64, 1e-12)):
        with jax.enable_x64(dtype == jnp.float64):
            f, b = trees(key, dtype)
            out = jax.jit(orthogonal_gradient)(f, b, 1.0)
            left, right = ravel_pytree(f)[0], ravel_pytree(projected(out, f))[0]
            assert abs(left @ right) / (out.forward_norm * out.backward_norm) < limit


def test_agrees_with_one_flat_vector(key):
    f, b = trees(key)
    out = orthogonal_gradient(f, b, 0.7)
    u, v = (np.asarray(ravel_pytree(t)[0], np.float64) for t in (f, b))
    coefficient = u @ v / (u @ u)
    np.testing.assert_allclose(out.coefficient, coefficient, rtol=1e-5)
    np.testing.assert_allclose(out.cosine, u @ v / np.linalg.norm(u) / np.linalg.norm(v), rtol=1e-5)
    expected = u + 0.7 * (v - coefficient * u)
    np.testing.assert_allclose(ravel_pytree(out.gradient)[0], expected, rtol=1e-4, atol=1e-6)


def test_parallel_adds_nothing_and_orthogonal_adds_all():
    f = {"w": jnp.array([2.0, 0.0])}
    parallel = orthogonal_gradient(f, {"w": jnp.array([-3.0, 0.0])}, 1.0)
    np.testing.assert_allclose(parallel.gradient["w"], f["w"])
    np.testing.assert_allclose(parallel.cosine, -1.0)
    across = orthogonal_gradient(f, {"w": jnp.array([0.0, 5.0])}, 1.0)
    np.testing.assert_allclose(across.gradient["w"], [2.0, 5.0])


def test_zero_forward_gradient_is_guarded():
    out = orthogonal_gradient(jnp.zeros(2), jnp.ones(2), 1.0)
    np.testing.assert_array_equal(out.gradient, np.ones(2))
    assert (float(out.cosine), float(out.coefficient)) == (0.0, 0.0)


def test_scopes(key):
    f, b = trees(key)
    by_leaf = orthogonal_gradient(f, b, 1.0, scope="leaf")
    assert by_leaf.cosine.keys() == {"a/kernel", "b/kernel"}
    for name in "ab":
        alone = orthogonal_gradient(f[name], b[name], 1.0)
        np.testing.assert_allclose(by_leaf.gradient[name]["kernel"], alone.gradient["kernel"])
    # One group of everything is the global projection; a group per leaf is the leaves'.
    everything = orthogonal_gradient(f, b, 1.0, scope="group", group=lambda path: "all")
    same = orthogonal_gradient(f, b, 1.0)
    np.testing.assert_allclose(everything.coefficient["all"], same.coefficient)
    each = orthogonal_gradient(f, b, 1.0, scope="group", group=lambda path: path)
    np.testing.assert_array_equal(each.gradient["b"]["kernel"], by_leaf.gradient["b"]["kernel"])


def test_only_conflicts():
    f, agrees, conflicts = jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0]), jnp.array([-1.0, 1.0])
    project = lambda b: orthogonal_gradient(f, b, 1.0, only_conflicts=True).gradient.tolist()
    assert project(agrees) == [2.0, 1.0]
    assert project(conflicts) == [1.0, 1.0]


def test_under_vmap_over_eta(key):
    f, b = trees(key)
    etas = jnp.array([0.0, 1.0, 3.0])
    many = jax.vmap(lambda eta: orthogonal_gradient(f, b, eta).gradient)(etas)
    np.testing.assert_array_equal(many["a"]["kernel"][0], f["a"]["kernel"])
    one = orthogonal_gradient(f, b, 3.0).gradient
    np.testing.assert_allclose(many["a"]["kernel"][2], one["a"]["kernel"], rtol=1e-5, atol=1e-6)


def test_sharded_gives_the_same(key, mesh):
    f, b = jax.random.normal(key, (2, 16, 3))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    out = jax.jit(orthogonal_gradient)(*jax.device_put((f, b), spread), 1.0)
    np.testing.assert_allclose(out.gradient, orthogonal_gradient(f, b, 1.0).gradient, rtol=1e-5)


def test_optax_helper_in_a_chain(key):
    f, b = trees(key)
    chain = optax.chain(orthogonalize(0.5), optax.scale(-2.0))
    updates: Any = chain.update(f, chain.init(f), f, backward=b)[0]
    expected = orthogonal_gradient(f, b, 0.5).gradient
    np.testing.assert_allclose(updates["b"]["kernel"], -2 * expected["b"]["kernel"])
    with pytest.raises(TypeError, match="backward="):
        orthogonalize(0.5).update(f, optax.EmptyState())


def test_keeps_low_precision():
    out = orthogonal_gradient(jnp.ones(4, jnp.bfloat16), -jnp.ones(4, jnp.bfloat16), 1.0)
    assert out.gradient.dtype == jnp.bfloat16
    assert out.coefficient.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "match"),
    [({"scope": "layer"}, "scope='layer'"), ({"scope": "group"}, "group exactly"),
     ({"group": str}, "group exactly")],
)  # fmt: skip
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        orthogonal_gradient(jnp.ones(2), jnp.ones(2), 1.0, **options)


def test_trees_that_differ():
    with pytest.raises(ValueError, match="backward to have the leaves of forward"):
        orthogonal_gradient({"a": jnp.ones(2)}, {"b": jnp.ones(2)}, 1.0)
    with pytest.raises(ValueError, match="at least one leaf"):
        orthogonal_gradient({}, {}, 1.0)
    with pytest.raises(ValueError, match="scope='layer'"):
        orthogonalize(1.0, scope="layer")
