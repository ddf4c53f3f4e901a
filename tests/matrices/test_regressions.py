"""Cases that were once wrong; each compares with `vmap(grad)`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin


def rows(loss, params, batch):
    return np.asarray(jax.vmap(jax.grad(loss), (None, 0))(params, batch))


def test_one_factor_with_its_positions_swapped(key):
    x = jax.random.normal(key, (3, 2, 2, 50))
    w = jax.random.normal(key, (2, 50, 40))

    def loss(w, x):
        y = jnp.einsum("tik,iko->to", x, w) + jnp.einsum("itk,iko->to", x, w)
        return jnp.sum(y**2)

    expected = np.sum(np.square(rows(loss, w, x), dtype=np.float64), (1, 2, 3))
    found = gradkin.per_example_grads(loss)(w, x).squared_norms()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_ids_of_few_bits(key):
    w, ids = jax.random.normal(key, (256, 8)), jnp.array([[0, 1, 1], [255, 0, 7]], jnp.uint8)

    def loss(w, ids):
        dimensions = jax.lax.GatherDimensionNumbers((1,), (0,), (0,))
        return jnp.sum(jax.lax.gather(w, ids[:, None], dimensions, (1, 8), mode="clip") ** 2)

    expected = np.sum(np.square(rows(loss, w, ids)), (1, 2))
    G = gradkin.per_example_grads(loss, route="factors")(w, ids)
    np.testing.assert_allclose(G.squared_norms(), expected, rtol=1e-5)


def test_nan_in_a_factor_of_all_examples(key):
    y = jax.random.normal(key, (3, 4))
    x = jnp.full((5, 6), jnp.nan)
    loss = lambda w, x, y: jnp.vdot((x @ w)[:1], y)
    make = gradkin.per_example_grads(loss, in_axes=(None, None, 0), route="factors")
    kept = make(jnp.ones((6, 4)), x, y).where(jnp.zeros(3, bool))
    np.testing.assert_array_equal(kept.sum(), np.zeros((6, 4)))


def test_a_norm_that_overflows_is_left_as_it_is():
    x = jnp.array([[1e25, 0.0], [3.0, 4.0]])
    G = gradkin.per_example_grads(lambda w, x: jnp.vdot(w, x))(jnp.zeros(2), x)
    np.testing.assert_allclose(G.clip(1.0).materialize(), [[1e25, 0.0], [0.6, 0.8]], rtol=1e-6)
    assert np.isnan(G.normalize().materialize()[0]).any()


def test_rounding_of_a_parameter_is_kept(key):
    w, x = jax.random.normal(key, (5, 4)), jax.random.normal(key, (3, 5))
    loss = lambda w, x: jnp.sum(jnp.sin(x @ w.astype(jnp.bfloat16).astype(jnp.float32)))
    found = gradkin.per_example_grads(loss, route="factors")(w, x).materialize()
    np.testing.assert_allclose(found, rows(loss, w, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1])
def test_short_scans(key, length):
    w, x = jax.random.normal(key, (length, 4, 4)), jax.random.normal(key, (3, 4))

    def loss(p, x):
        return jnp.sum(jax.lax.scan(lambda h, w: (jnp.tanh(h @ w) @ p["u"], None), x, p["w"])[0])

    params = {"w": w, "u": jnp.eye(4)}
    expected = jax.vmap(jax.grad(loss), (None, 0))(params, x)
    found = gradkin.per_example_grads(loss)(params, x).materialize()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_nothing_in_the_batch():
    batch = {"x": jnp.eye(3), "mask": None}
    G = gradkin.per_example_grads(lambda w, b: jnp.vdot(w, b["x"]))(jnp.ones(3), batch)
    np.testing.assert_array_equal(G.norms(), np.ones(3))
