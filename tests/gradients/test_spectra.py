"""Spectra of gradients: closed forms, the dense decomposition, invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import gradients
from tests.matrices import oracle, zoo


def test_ranks_of_known_values():
    values = jnp.array([[3.0, 3.0, 3.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    stats = gradients.spectral_stats(values)
    np.testing.assert_allclose(stats.nuclear_norm, [9, 5, 0])
    np.testing.assert_allclose(stats.effective_rank, [3, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(stats.stable_rank, [3, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(stats.spectral_norm, [3, 5, 0])
    np.testing.assert_allclose(stats.frobenius_norm, [27**0.5, 5, 0], rtol=1e-6)
    derivative = jax.grad(lambda v: gradients.spectral_stats(v).effective_rank.sum())(values)
    assert np.isfinite(derivative).all()


def test_bounds_and_scale(key):
    values = jnp.abs(jax.random.normal(key, (20, 6)))
    stats, scaled = (gradients.spectral_stats(v) for v in (values, 7 * values))
    assert np.all((stats.effective_rank >= 1) & (stats.effective_rank <= 6))
    assert np.all(stats.nuclear_norm >= stats.frobenius_norm)
    assert np.all(stats.nuclear_norm <= 6**0.5 * stats.frobenius_norm * (1 + 1e-6))
    np.testing.assert_allclose(scaled.effective_rank, stats.effective_rank, rtol=1e-5)
    np.testing.assert_allclose(scaled.nuclear_norm, 7 * stats.nuclear_norm, rtol=1e-5)


@pytest.mark.parametrize("name", ["transformer", "transformer_scan"])
def test_factors_give_the_values_of_the_gradient(name):
    model = zoo.PLAIN[name]()
    layers = 1 if name == "transformer_scan" else 0
    stacked = lambda path: layers * path.startswith("blocks")

    @jax.jit
    def read(args):
        called = model._replace(args=args)
        G = oracle.matrix(called, route="factors").scale(-2.0)
        return gradients.gradient_spectra(G, stacked=stacked), oracle.rows(called)

    found, dense = read(model.args)
    for path, rows in jax.tree_util.tree_flatten_with_path(dense)[0]:
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        own = layers * path.startswith("blocks")
        shape = rows.shape[1 + own :]
        if len(shape) < 2:
            assert path not in found
            continue
        cut = max(range(1, len(shape)), key=lambda c: -max(np.prod(shape[:c]), np.prod(shape[c:])))
        lead = rows.shape[: 1 + own]
        matrices = 2 * np.asarray(rows, np.float64).reshape((*lead, np.prod(shape[:cut]), -1))
        wanted = np.linalg.svd(matrices, compute_uv=False)
        assert found[path].shape == wanted.shape
        np.testing.assert_allclose(found[path], wanted, atol=2e-5 * wanted.max(), err_msg=path)


def loss(params, x):
    h = jnp.tanh(x @ params["q"]) * (x @ params["k"])
    return jnp.sum(h @ params["v"])


@pytest.fixture
def problem(key):
    keys = jax.random.split(key, 4)
    params = {name: jax.random.normal(k, (8, 8)) * 0.3 for name, k in zip("qkv", keys)}
    return params, jax.random.normal(keys[3], (16, 3, 8))


def test_cosines_are_those_of_the_gradients(problem, mesh):
    params, batch = problem
    pairs = [("q", "k"), ("k", "v"), ("q", "q")]
    read = jax.jit(
        lambda p, b: gradients.gradient_cosines(gradkin.per_example_grads(loss)(p, b), pairs)
    )
    dense = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
    flat = {name: np.asarray(g, np.float64).reshape(16, -1) for name, g in dense.items()}
    unit = {name: g / np.linalg.norm(g, axis=1, keepdims=True) for name, g in flat.items()}
    wanted = np.stack([np.sum(unit[a] * unit[b], axis=1) for a, b in pairs], axis=1)
    found = read(params, batch)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(read(params, split), found, atol=1e-6)
    zero = gradients.gradient_cosines(gradkin.per_example_grads(loss)(params, 0 * batch), pairs)
    np.testing.assert_array_equal(zero, 0)


def test_bad_input(problem):
    G = gradkin.per_example_grads(loss)(*problem)
    streamed = gradkin.per_example_grads(loss, batch_size=4)(*problem)
    with pytest.raises(TypeError, match="recorded"):
        gradients.gradient_spectra(streamed)
    with pytest.raises(TypeError, match="recorded"):
        gradients.gradient_cosines(streamed, [("q", "k")])
    with pytest.raises(ValueError, match="got 'x'"):
        gradients.gradient_cosines(G, [("q", "x")])
    vector = gradkin.per_example_grads(lambda w, x: w @ x)(jnp.ones(3), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="matrix"):
        gradients.gradient_spectra(vector)
    uneven = gradkin.per_example_grads(lambda p, x: jnp.sum((x @ p[0]) @ p[1]))(
        (jnp.ones((2, 3)), jnp.ones((3, 2))), jnp.ones((2, 2))
    )
    with pytest.raises(ValueError, match="equal shapes"):
        gradients.gradient_cosines(uneven, [("0", "1")])
