"""Derivatives of what is read off a kernel matrix, with respect to everything it holds."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

import gradkin
from gradkin import kernels

RNG = np.random.default_rng(3)
X = RNG.normal(size=(11, 6)).astype(np.float32)
Y = RNG.normal(size=(7, 6)).astype(np.float32)
W = RNG.uniform(0.5, 2, size=7).astype(np.float32)
V = RNG.normal(size=(7, 2)).astype(np.float32)


def streamed(x, y, w, h, v):
    K = gradkin.kernel_matrix(kernels.Gaussian(h), x, y, weights=w, block=4)
    return (
        jnp.sum(jnp.sin(K @ v))
        + jnp.sum(jnp.cos(v.T[:, :7] @ gradkin.kernel_matrix(kernels.Gaussian(h), y, block=3)))
        + jnp.sum(jnp.square(K.logsumexp(1)))
        + K.logsumexp()
        + jnp.sum(K.top_k(2)[0])
        + jnp.sum(K.max(0))
        + K.frobenius_norm()
    )


def dense(x, y, w, h, v):
    def gaussian(x, y):
        return jnp.exp(-jnp.sum(jnp.square(x[:, None] - y[None]), -1) / (2 * h**2))

    R = gaussian(x, y) * w[None]
    return (
        jnp.sum(jnp.sin(R @ v))
        + jnp.sum(jnp.cos(v.T @ gaussian(y, y)))
        + jnp.sum(jnp.square(jnp.log(R.sum(1))))
        + jnp.log(R.sum())
        + jnp.sum(jax.lax.top_k(R, 2)[0])
        + jnp.sum(R.max(0))
        + jnp.sqrt(jnp.sum(R**2))
    )


ARGUMENTS = (X, Y, W, np.float32(1.3), V)


def test_gradients_equal_those_of_the_matrix():
    found = jax.jit(jax.grad(streamed, argnums=range(5)))(*ARGUMENTS)
    expected = jax.jit(jax.grad(dense, argnums=range(5)))(*ARGUMENTS)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def few(x, y, w, h, v):
    K = gradkin.kernel_matrix(kernels.Gaussian(h), x, y, weights=w, block=4)
    return jnp.sum(jnp.sin(K @ v)) + jnp.sum(K.logsumexp(0))


def few_dense(x, y, w, h, v):
    R = jnp.exp(-jnp.sum(jnp.square(x[:, None] - y[None]), -1) / (2 * h**2)) * w[None]
    return jnp.sum(jnp.sin(R @ v)) + jnp.sum(jnp.log(R.sum(0)))


def test_forward_mode_of_the_derivative():
    """Nothing is lost to a custom rule: forward mode, and second derivatives."""

    def second(fun):
        return jax.jvp(jax.grad(lambda h: fun(X, Y, W, h, V)), ARGUMENTS[3:4], (jnp.ones(()),))

    found, expected = jax.jit(lambda: (second(few), second(few_dense)))()
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_difference_quotients():

    with jax.enable_x64(True):
        wide = tuple(np.asarray(a, np.float64) for a in ARGUMENTS)
        check_grads(jax.jit(few), wide, order=1, modes=["rev"], rtol=1e-6)


def test_masked_nan_has_no_derivative():
    mask = np.arange(11) != 3
    points = np.where(mask[:, None], X, np.nan).astype(np.float32)

    def loss(x, mask=None):
        K = gradkin.kernel_matrix(kernels.Euclidean(), x, mask=mask, block=4)
        return jnp.exp(-K.logsumexp())

    gradient = np.asarray(jax.jit(jax.grad(loss))(points, mask))
    np.testing.assert_array_equal(gradient[3], np.zeros(6))
    expected = jax.jit(jax.grad(loss))(X[mask])
    np.testing.assert_allclose(gradient[mask], expected, rtol=1e-4, atol=1e-5)


def test_equal_points():
    """Points that meet: finite derivatives, with and without the diagonal."""
    x = np.repeat(X[:3], 2, axis=0)

    def loss(x):
        K = gradkin.kernel_matrix(kernels.Euclidean(), x, block=4)
        return K.sum() + K.off_diagonal().frobenius_norm()

    gradient = jax.jit(jax.grad(loss))(x)
    assert np.all(np.isfinite(gradient))
    assert np.abs(gradient).max() < 100
