"""Losses with approximate Hessians, of which some have a minimum of zero in all their digits."""

import jax
import jax.numpy as jnp
import numpy as np

import gradkin
from gradkin import curvature


def excess(z):
    """``exp(z) - 1 - z`` without cancellation."""
    small = jnp.abs(z) < 0.3
    near = jnp.where(small, z, 0)
    series = 1 / 2 + near * (1 / 6 + near * (1 / 24 + near * (1 / 120 + near / 720)))
    far = jnp.where(small, 0, z)
    return jnp.where(small, near**2 * series, jnp.expm1(far) - far)


def log_sum_exp(arguments, x):
    """``mu log sum_i p_i exp(a_i . x / mu)``, where the ``a_i`` average to zero under ``p``."""
    A, log_p, mu = arguments
    z = A @ x / mu
    far = jnp.max(z + log_p) > 1
    near = jnp.log1p(jnp.sum(jnp.exp(log_p) * excess(jnp.where(far, 0, z))))
    return mu * jnp.where(far, jax.nn.logsumexp(z + log_p), near)


def log_sum_exp_hessian(arguments, x, *, exact):
    A, log_p, mu = arguments
    w = jax.nn.softmax(A @ x / mu + log_p)
    first, mean = (A * w[:, None]).T @ A, w @ A
    return (first - jnp.outer(mean, mean) if exact else first) / mu


def draw_log_sum_exp(key, rows, dimension, temperatures):
    """The same numbers at each temperature: arguments and start, with a leading axis."""
    a, b = jax.random.split(key)
    A = jax.random.uniform(a, (rows, dimension), minval=-1, maxval=1)
    b = jax.random.uniform(b, (rows,), minval=-1, maxval=1)

    def at(mu):
        log_p = jax.nn.log_softmax(-b / mu)
        return (A - (jnp.exp(log_p) @ A)[None], log_p, mu), jnp.ones(dimension)

    return jax.vmap(at)(jnp.array(temperatures))


def residual(x):
    return jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def power_of_residual(p, x):
    square = jnp.sum(residual(x) ** 2)
    return jnp.where(square > 0, jnp.where(square > 0, square, 1) ** (p / 2), 0) / p


def residual_hessian(p, x):
    """Without the curvature of the residual."""
    u, J = residual(x), jax.jacobian(residual)(x)
    size, along = jnp.sqrt(jnp.sum(u**2)), u @ J
    return size ** (p - 2) * J.T @ J + (p - 2) * size ** (p - 4) * jnp.outer(along, along)


def residual_fisher(p, x):
    """The second of its terms, from the gradient alone."""
    scale = (p - 2) / jnp.sqrt(jnp.sum(residual(x) ** 2)) ** p
    return curvature.RankOne(scale, jax.grad(power_of_residual, argnums=1)(p, x))


def nll(w, example):
    x, y = example
    logit = x @ w
    return jax.nn.softplus(logit) - y * logit


def predict(params, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["out"]


def draw_network(key, inputs, hidden, examples):
    """Inputs, a teacher's outputs, and a student."""
    keys = jax.random.split(key, 3)

    def weights(key):
        w, out = jax.random.split(key)
        return {
            "w": jax.random.normal(w, (inputs, hidden)) / np.sqrt(inputs).astype(np.float32),
            "b": jnp.zeros(hidden),
            "out": jax.random.normal(out, (hidden,)) / np.sqrt(hidden).astype(np.float32),
        }

    x = jax.random.normal(keys[0], (examples, inputs))
    teacher = weights(keys[1])
    return (x, jax.vmap(predict, (None, 0))(teacher, x)), weights(keys[2])


def network_loss(batch, params):
    return jnp.mean(jax.vmap(lambda x, y: 0.5 * (predict(params, x) - y) ** 2)(*batch))


def network_matrix(batch, params):
    return gradkin.gauss_newton(predict, curvature.squared_error)(params, *batch)
