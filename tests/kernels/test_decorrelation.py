"""Weights that decorrelate: definitions, HSIC, exact designs, memory, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gradkin import kernel_matrix, kernels
from tests.kernels import dependence as oracle


def covariances(weights, features, form):
    """Sum over pairs of variables of squared entries of their covariance, by loops."""
    w, u = np.asarray(weights, np.float64), np.asarray(features, np.float64)
    k, n, _ = u.shape
    total = 0.0
    for i in range(k):
        for j in range(i):
            if form == "normalized":
                q = w / w.sum()
                C = np.einsum("s,sa,sb->ab", q, u[i], u[j]) - np.outer(q @ u[i], q @ u[j])
            else:
                a, b = ((w / w.mean())[:, None] * v for v in (u[i], u[j]))
                C = (a - a.mean(0)).T @ (b - b.mean(0)) / (n - 1)
            total += np.sum(C**2)
    return total


@pytest.mark.parametrize("form", ["normalized", "product"])
def test_definition(key, form):
    u = jax.random.normal(key, (3, 20, 4))
    for weights in (jnp.ones(20), jax.random.uniform(key, (20,), minval=0.1)):
        found = kernels.weighted_dependence(weights, u, form=form)
        np.testing.assert_allclose(found, covariances(weights, u, form), rtol=1e-5)
        scaled = kernels.weighted_dependence(3 * weights, u, form=form)
        np.testing.assert_allclose(scaled, found, rtol=1e-5)
    of = lambda w: kernels.weighted_dependence(w, u, form=form)
    check_grads(of, (weights,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_one_variable_depends_on_nothing(key):
    assert float(kernels.weighted_dependence(jnp.ones(5), jnp.ones((1, 5, 2)))) == 0


def test_features_estimate_hsic(key):
    """Averaged over draws, squared covariances of random features are HSIC with the kernel."""
    x, y = oracle.X, oracle.Y
    exact = oracle.hsic(oracle.gaussian(x, bandwidth=1.5), oracle.gaussian(y)) * (11 / 12) ** 2

    @jax.jit
    @jax.vmap
    def of(key):
        first, second = jax.random.split(key)
        u = kernels.cosine_features(first, x.astype(np.float32), size=200, bandwidth=1.5)
        v = kernels.cosine_features(second, y.astype(np.float32), size=200)
        return kernels.weighted_dependence(jnp.ones(12), jnp.stack([u, v])) / 200**2

    found = of(jax.random.split(key, 100))
    np.testing.assert_allclose(found.mean(), exact, atol=4 * float(found.std()) / 10)
    assert float(found.std()) / 10 < 0.05 * exact


def test_an_independent_design_keeps_its_weights():
    grid = jnp.stack(jnp.meshgrid(jnp.arange(4.0), jnp.arange(5.0))).reshape(2, 20)
    u = jnp.stack([jnp.stack([jnp.cos(v), jnp.sin(2 * v)], axis=1) for v in grid])
    of = lambda w: kernels.weighted_dependence(w, u)
    assert float(of(jnp.ones(20))) < 1e-12
    assert float(jnp.max(jnp.abs(jax.grad(of)(jnp.ones(20))))) < 1e-6


def dependent(key, n=300):
    keys = jax.random.split(key, 4)
    x = jax.random.normal(keys[0], (n,))
    y = 0.7 * x + 0.7 * jax.random.normal(keys[1], (n,))
    features = [kernels.cosine_features(k, v, size=4) for k, v in zip(keys[2:], (x, y))]
    return x, y, jnp.stack(features)


@pytest.fixture(scope="module")
def found():
    x, y, features = dependent(jax.random.key(0))
    return x, y, features, kernels.decorrelating_weights(features, num_steps=300)


def test_weights_remove_dependence(found):
    x, y, features, result = found
    w = np.asarray(result.weights)
    np.testing.assert_allclose(w.mean(), 1, rtol=1e-5)
    assert w.min() >= 0
    np.testing.assert_allclose(
        result.before, covariances(np.ones(300), features, "normalized"), rtol=1e-4
    )
    np.testing.assert_allclose(result.after, covariances(w, features, "normalized"), rtol=1e-3)
    assert float(result.after) < 0.1 * float(result.before)
    # Measured by something else: HSIC under the weights.
    K, L = (kernel_matrix(kernels.Gaussian(1.0), v) for v in (x, y))
    assert float(kernels.hsic(K, L, weights=w)) < 0.3 * float(kernels.hsic(K, L))
    size = w.sum() ** 2 / np.sum(w**2)
    np.testing.assert_allclose(result.effective_size(), size, rtol=1e-5)
    assert 100 < size < 300
    softmax = np.exp(result.logits) / np.sum(np.exp(result.logits))
    np.testing.assert_allclose(300 * softmax, w, rtol=1e-4)


def test_nothing_passes_back_to_the_features(found):
    _, _, features, _ = found
    of = lambda u: jnp.sum(kernels.decorrelating_weights(u, num_steps=2).weights ** 2)
    assert not np.any(jax.grad(of)(features))


def test_a_strong_penalty_keeps_weights_equal(found):
    _, _, features, _ = found
    result = kernels.decorrelating_weights(features, num_steps=50, penalty=1e4)
    np.testing.assert_allclose(result.weights, 1, atol=0.05)


def test_memory(found):
    _, _, features, _ = found
    batches = [features[:, 50 * i : 50 * (i + 1)] for i in range(3)]
    memory = kernels.empty_memory(batches[0])
    result = kernels.decorrelating_weights(batches[0], num_steps=5, memory=memory)
    assert result.weights.shape == (50,)
    memory = memory.updated(batches[0], result.logits).updated(batches[1], result.logits + 1)
    assert int(memory.batches) == 2
    np.testing.assert_allclose(memory.features, (batches[0] + batches[1]) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(memory.logits, result.logits + 0.5, rtol=1e-4, atol=1e-5)
    # After ten batches the mean is a moving one.
    late = memory._replace(batches=jnp.int32(50)).updated(batches[2], result.logits)
    expected = 0.9 * memory.features + 0.1 * batches[2]
    np.testing.assert_allclose(late.features, expected, rtol=1e-4, atol=1e-6)
    # What is remembered counts: dependence is that of both together.
    result = kernels.decorrelating_weights(batches[2], num_steps=1, memory=memory)
    both = np.concatenate([memory.features, batches[2]], axis=1)
    weights = np.exp(np.concatenate([memory.logits, np.zeros(50)]))
    np.testing.assert_allclose(result.before, covariances(weights, both, "normalized"), rtol=1e-4)


U = jnp.ones((2, 6, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.weighted_dependence(jnp.ones(5), U), r"weights of shape \(6,\)"),
        (lambda: kernels.weighted_dependence(-jnp.ones(6), U), "weights >= 0"),
        (lambda: kernels.weighted_dependence(jnp.zeros(6), U), "sum of weights > 0"),
        (lambda: kernels.weighted_dependence(jnp.ones(6), U[0]), "features to have 3 axes"),
        (lambda: kernels.weighted_dependence(jnp.ones(6), U, form="sum"), "form to be one of"),
        (lambda: kernels.decorrelating_weights(U, form="sum"), "form to be one of"),
        (lambda: kernels.decorrelating_weights(U, penalty=-1.0), "penalty >= 0"),
        (
            lambda: kernels.decorrelating_weights(U, memory=kernels.empty_memory(U[:1])),
            "Expected a memory of the variables",
        ),
        (
            lambda: kernels.cosine_features(jax.random.key(0), jnp.ones(3), size=2, bandwidth=0.0),
            "bandwidth > 0",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
