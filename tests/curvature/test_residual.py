"""The Hessian is the Gauss-Newton matrix plus the residual's curvature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkin
from gradkin import curvature

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3))
LABELS = np.arange(8, dtype=np.int32) % 3
PARAMS = {"w1": RNG.normal(size=(3, 4)), "w2": RNG.normal(size=(4, 3)), "unused": np.ones(2)}


def predict(params, x):
    return jnp.tanh(x @ params["w1"]) @ params["w2"]


def matrices(params, x, targets, loss=curvature.cross_entropy, predict=predict):
    """``H``, ``G`` and ``R`` as arrays."""
    hessian = gradkin.hessian(lambda p, x, y: loss(predict(p, x), y))
    makers = (
        hessian,
        gradkin.gauss_newton(predict, loss),
        curvature.residual_curvature(predict, loss),
    )
    return [make(params, x, targets).materialize() for make in makers]


def dense_hessian(params, x, targets):
    flat, unravel = ravel_pytree(params)
    mean = lambda w: jnp.mean(
        jax.vmap(lambda x, y: curvature.cross_entropy(predict(unravel(w), x), y))(x, targets)
    )
    return jax.hessian(mean)(flat)


def test_hessian_is_gauss_newton_plus_residual():
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, PARAMS)
        H, G, R = matrices(params, X, LABELS)
        np.testing.assert_allclose(H, G + R, atol=1e-12)
        np.testing.assert_allclose(H, dense_hessian(params, X, LABELS), atol=1e-12)
        np.testing.assert_allclose(R, R.T, atol=1e-12)
        assert np.linalg.eigvalsh(G).min() > -1e-12
        assert np.linalg.eigvalsh(R).min() < -1e-3  # indefinite
        # Rank at most N (k - 1), and parameters that are not used add exact zeros.
        values = np.linalg.eigvalsh(G[2:, 2:])
        few = gradkin.gauss_newton(predict, curvature.cross_entropy)(params, X[:4], LABELS[:4])
        rank = np.linalg.matrix_rank(few.materialize(), tol=1e-10)
        assert rank <= 4 * 2 < len(values)
        assert not np.any(H[:2])


def test_vanishes_for_interpolation_and_linear_models():
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, PARAMS)
        fitted = jax.vmap(predict, (None, 0))(params, jnp.asarray(X))
        H, G, R = matrices(params, X, fitted, curvature.squared_error)
        np.testing.assert_allclose(R, 0, atol=1e-12)
        np.testing.assert_allclose(H, G, atol=1e-12)
        # Softmax regression: H = G = mean of (diag(p) - p p^T) kron x x^T.
        linear = lambda w, x: w @ x
        w = jnp.asarray(RNG.normal(size=(3, 3)))
        H, G, R = matrices(w, X, LABELS, predict=linear)
        np.testing.assert_allclose(R, 0, atol=1e-12)
        p = np.asarray(jax.nn.softmax(X @ w.T))
        wanted = np.mean(
            [np.kron(np.diag(q) - np.outer(q, q), np.outer(x, x)) for q, x in zip(p, X)], axis=0
        )
        np.testing.assert_allclose(H, wanted, atol=1e-12)


def test_linear_regression_has_the_covariance_of_the_inputs():
    with jax.enable_x64(True):
        loss, w = curvature.squared_error, jnp.ones(3)
        H, G, R = matrices(w, X, np.arange(8.0), loss, lambda w, x: jnp.vdot(w, x))
        np.testing.assert_allclose(H, X.T @ X / 8, atol=1e-12)
        np.testing.assert_allclose(G, H, atol=1e-12)
        np.testing.assert_allclose(R, 0, atol=1e-12)


def test_streamed_and_sharded_products_agree(mesh):
    params = jax.tree.map(lambda x: jnp.asarray(x, np.float32), PARAMS)
    batch = (jnp.asarray(X, np.float32), jnp.asarray(LABELS))
    whole = curvature.residual_curvature(predict, curvature.cross_entropy)
    parts = curvature.residual_curvature(predict, curvature.cross_entropy, batch_size=3)
    product = jax.jit(lambda R, v: R @ v)
    wanted = product(whole(params, *batch), params)
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    for R in (parts(params, *batch), whole(params, *sharded)):
        for found, value in zip(jax.tree.leaves(product(R, params)), jax.tree.leaves(wanted)):
            np.testing.assert_allclose(found, value, atol=1e-6)


def test_bad_input_is_named():
    params = jax.tree.map(lambda x: jnp.asarray(x, np.float32), PARAMS)
    make = curvature.residual_curvature(predict, curvature.cross_entropy)
    with pytest.raises(ValueError, match="same number of examples everywhere"):
        make(params, jnp.ones((8, 3)), jnp.zeros(7, jnp.int32))
    with pytest.raises(ValueError, match="batch_size to be a positive integer"):
        curvature.residual_curvature(predict, curvature.cross_entropy, batch_size=0)(
            params, jnp.ones((8, 3)), jnp.zeros(8, jnp.int32)
        )
