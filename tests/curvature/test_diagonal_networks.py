"""Diagonal linear networks: the closed forms against noise, search and Hessian."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin import curvature

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
SIZE, ROWS = 6, 24
PARAMS = {
    "u": jnp.asarray(RNG.normal(size=SIZE), np.float32),
    "v": jnp.asarray(RNG.normal(size=SIZE), np.float32),
}
MIXED = RNG.normal(size=(ROWS, SIZE))
WHITE = np.sqrt(ROWS) * np.linalg.qr(MIXED)[0]  # X^T X / n = I


def loss(params, example):
    x, y = example
    return 0.5 * jnp.square(jnp.vdot(params["u"] * params["v"], x) - y)


def data(x):
    x = jnp.asarray(x, np.float32)
    return x, x @ (PARAMS["u"] * PARAMS["v"])


@functools.partial(jax.jit, static_argnames="noise")
def measured(key, batch, scale, noise):
    return curvature.average_sharpness(
        key, loss, PARAMS, batch, rho=0.4, scale=scale, noise=noise, num_samples=20_000,
        samples_at_once=1000,
    )  # fmt: skip


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_average_case_with_correlated_inputs(noise, adaptive):
    """Exact for any inputs, by their second moments alone; the radius is not small."""
    scale = jax.tree.map(jnp.abs if adaptive else jnp.ones_like, PARAMS)
    found = measured(KEY, data(MIXED), scale, noise)
    moments = np.mean(MIXED**2, axis=0).astype(np.float32)
    wanted = curvature.diagonal_network_average_sharpness(
        **PARAMS, rho=0.4, adaptive=adaptive, noise=noise, second_moments=moments
    )
    assert abs(found.value - wanted) < 4 * found.standard_error
    assert found.standard_error < 0.02 * wanted


def test_the_formulas_of_white_inputs():
    u, v = PARAMS["u"], PARAMS["v"]
    standard, adaptive = (
        jax.jit(functools.partial(curvature.diagonal_network_average_sharpness, adaptive=adaptive))(
            u, v, rho=0.4
        )
        for adaptive in (False, True)
    )
    wanted = 0.5 * (0.16 * jnp.sum(u**2 + v**2) + SIZE * 0.16**2)
    np.testing.assert_allclose(standard, wanted, rtol=1e-5)
    wanted = 0.5 * jnp.sum((u * v) ** 2) * (2 * 0.16 + 0.16**2)
    np.testing.assert_allclose(adaptive, wanted, rtol=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_worst_case_with_white_inputs(adaptive):
    """The formula is the loss of a feasible point, and no search goes beyond it."""
    x, y = data(WHITE)
    scale = jax.tree.map(jnp.abs if adaptive else jnp.ones_like, PARAMS)
    wanted = curvature.diagonal_network_worst_case_sharpness(**PARAMS, rho=0.4, adaptive=adaptive)
    there = jax.tree.map(lambda w, c: w + 0.4 * c * jnp.sign(w), PARAMS, scale)
    value = jnp.mean(jax.vmap(loss, (None, 0))(there, (x, y)))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    search = lambda key: curvature.worst_case_sharpness(
        key, loss, PARAMS, (x, y), rho=0.4, p=math.inf, scale=scale, num_steps=40, num_restarts=8
    )
    found = jax.jit(search)(KEY)
    assert 0.5 * wanted < found.value <= wanted * (1 + 1e-5)


def test_worst_case_of_one_input_is_found():
    """Of its two maxima, one restart or another finds the higher."""
    one = {"u": jnp.array([1.5]), "v": jnp.array([-0.5])}
    batch = (jnp.ones((1, 1)), jnp.array([-0.75]))
    search = lambda key: curvature.worst_case_sharpness(
        key, loss, one, batch, rho=0.4, p=math.inf, num_steps=20, num_restarts=10
    )
    wanted = curvature.diagonal_network_worst_case_sharpness(one["u"], one["v"], rho=0.4)
    np.testing.assert_allclose(jax.jit(search)(KEY).value, wanted, rtol=1e-4)
    np.testing.assert_allclose(wanted, 0.5 * (1.9 * 0.9 - 0.75) ** 2, rtol=1e-5)


def test_second_order_is_the_hessian():
    """Trace |u|^2 + |v|^2, largest eigenvalue max(u^2 + v^2); adaptive: 2 beta^2."""
    u, v = (np.asarray(PARAMS[name], np.float64) for name in "uv")
    H = gradkin.hessian(loss)(PARAMS, data(WHITE))
    scale = curvature.adaptive_scale(PARAMS)
    worst = functools.partial(
        curvature.second_order_sharpness, KEY, H, rho=1.0, kind="worst", num_matvecs=8
    )
    np.testing.assert_allclose(2 * worst().value, np.max(u**2 + v**2), rtol=1e-4)
    found = 2 * worst(scale=scale).value
    np.testing.assert_allclose(found, 2 * np.max((u * v) ** 2), rtol=1e-4)
    trace = curvature.second_order_sharpness(KEY, H, rho=1.0, num_matvecs=100)
    assert abs(2 * trace.value - np.sum(u**2 + v**2)) < 10 * trace.standard_error + 1e-3


def test_bad_input_is_named():
    ones = jnp.ones(3)
    for measure in (
        curvature.diagonal_network_average_sharpness,
        curvature.diagonal_network_worst_case_sharpness,
    ):
        with pytest.raises(ValueError, match="rho > 0"):
            measure(ones, ones, rho=0.0)
        with pytest.raises(ValueError, match="v to have the shapes of u"):
            measure(ones, jnp.ones(2), rho=1.0)
        with pytest.raises(ValueError, match="second_moments to have the shapes of u"):
            measure(ones, ones, rho=1.0, second_moments=jnp.ones(2))
        with pytest.raises(ValueError, match="second_moments >= 0"):
            measure(ones, ones, rho=1.0, second_moments=-ones)
        with pytest.raises(ValueError, match="u to have 1 axes"):
            measure(jnp.ones((3, 1)), jnp.ones((3, 1)), rho=1.0)
    with pytest.raises(ValueError, match="noise to be one of"):
        curvature.diagonal_network_average_sharpness(ones, ones, rho=1.0, noise="sign")
