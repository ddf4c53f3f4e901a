"""Diagonal linear networks ``f(x) = <u * v, x>``: which sharpness finds the better interpolator."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradkin
from gradkin import curvature

TRUTHS = ("sparse", "dense")
KINDS = ("standard", "adaptive")
SCALES = np.geomspace(0.03, 1.5, 12).astype(np.float32)  # of the initial first layer
INPUTS, ROWS, ACTIVE = 40, 20, 3
RATE, RHO, SMALL = np.float32(0.01), 0.1, 0.002


class State(NamedTuple):
    """Networks of both truths and of each initial scale, ``[2, 12, inputs]``."""

    params: dict[str, jax.Array]
    x: jax.Array
    y: jax.Array  # [2, rows]
    beta: jax.Array  # [2, inputs]


def begin(key):
    """Unit second moments of every input; truths of norm 1."""
    of_x, of_dense = jax.random.split(key)
    x = jax.random.normal(of_x, (ROWS, INPUTS))
    x = x / jnp.sqrt(jnp.mean(jnp.square(x), axis=0, keepdims=True))
    sparse = jnp.where(jnp.arange(INPUTS) < ACTIVE, np.float32(ACTIVE**-0.5), 0)
    dense = jax.random.normal(of_dense, (INPUTS,))
    beta = jnp.stack([sparse, dense / jnp.linalg.norm(dense)])
    first = jnp.broadcast_to(SCALES[None, :, None], (2, len(SCALES), INPUTS))
    return State({"u": first, "v": jnp.zeros_like(first)}, x, beta @ x.T, beta)


def loss(params, example):
    x, y = example
    return 0.5 * jnp.square(jnp.vdot(params["u"] * params["v"], x) - y)


def step(state, _):
    residual = (state.params["u"] * state.params["v"]) @ state.x.T - state.y[:, None]
    slope = residual @ state.x / ROWS
    u, v = state.params["u"], state.params["v"]
    return state._replace(params={"u": u - RATE * slope * v, "v": v - RATE * slope * u})


def sharpness(draws, key, params, batch):
    """Measured and in closed form, ``[2 kinds]`` each."""
    scales = (jax.tree.map(jnp.ones_like, params), curvature.adaptive_scale(params))
    measured = [
        curvature.average_sharpness(
            k, loss, params, batch, rho=RHO, scale=scale, num_samples=draws, samples_at_once=1000
        ).value
        for k, scale in zip(jax.random.split(key), scales)
    ]
    exact = [
        curvature.diagonal_network_average_sharpness(**params, rho=RHO, adaptive=kind == "adaptive")
        for kind in KINDS
    ]
    return jnp.stack(measured), jnp.stack(exact)


def analyse(draws, key, state):
    """Sharpness, norms and error of every network; rank correlations over initial scales."""
    flat = jax.tree.map(lambda w: w.reshape(-1, INPUTS), state.params)
    targets = jnp.repeat(state.y, len(SCALES), axis=0)
    keys = jax.random.split(key, 2 * len(SCALES))
    measured, exact = jax.lax.map(
        lambda one: sharpness(draws, one[0], one[1], (state.x, one[2])), (keys, flat, targets)
    )
    by_truth = lambda values: values.reshape(2, len(SCALES), 2)
    beta = state.params["u"] * state.params["v"]
    error = jnp.sum(jnp.square(beta - state.beta[:, None]), axis=-1)  # of white test inputs
    residual = jnp.einsum("tai,ni->tan", beta, state.x) - state.y[:, None]
    taus = jax.vmap(jax.vmap(curvature.kendall_tau, (1, None)))(by_truth(measured), error)
    return {
        "diagonal_sharpness": by_truth(measured),
        "diagonal_ratio": by_truth(measured / exact),
        "diagonal_error": error,
        "diagonal_train_loss": 0.5 * jnp.mean(jnp.square(residual), axis=-1),
        "diagonal_norms": jnp.stack(
            [jnp.sum(jnp.abs(beta), -1), jnp.sqrt(jnp.sum(jnp.square(beta), -1))], axis=-1
        ),
        "diagonal_tau": taus,  # [truth, kind]
    }


def white(draws, key):
    """Searched and second-order sharpness over closed forms, inputs uncorrelated: ``[6]``.

    The radius is small: each input has a second, lower maximum, to which a search may go.
    """
    of_x, of_u, of_v, search = jax.random.split(key, 4)
    x = jnp.linalg.qr(jax.random.normal(of_x, (2 * INPUTS, INPUTS)))[0] * math.sqrt(2 * INPUTS)
    params = {"u": jax.random.normal(of_u, (INPUTS,)), "v": jax.random.normal(of_v, (INPUTS,))}
    batch = (x, x @ (params["u"] * params["v"]))
    H = gradkin.hessian(loss)(params, batch)
    u, v = params["u"], params["v"]
    ratios = []
    for kind in KINDS:
        adaptive = kind == "adaptive"
        scale = jax.tree.map(jnp.abs if adaptive else jnp.ones_like, params)
        worst = curvature.worst_case_sharpness(
            search, loss, params, batch, rho=SMALL, p=math.inf, scale=scale, num_steps=50
        ).value
        exact = curvature.diagonal_network_worst_case_sharpness(
            **params, rho=SMALL, adaptive=adaptive
        )
        second = functools.partial(
            curvature.second_order_sharpness, search, H, rho=SMALL, scale=scale
        )
        spread = 2 * jnp.square(u * v) if adaptive else jnp.square(u) + jnp.square(v)
        ratios += [
            worst / exact,
            second(num_matvecs=draws // 4).value / (0.5 * SMALL**2 * jnp.sum(spread)),
            second(kind="worst", num_matvecs=30).value / (0.5 * SMALL**2 * jnp.max(spread)),
        ]
    return jnp.stack(ratios)


def networks(key, loop, steps, draws):
    """All of the above, of every seed."""
    keys = jax.random.split(key, 3)
    state, _ = loop(step, begin(keys[0]), steps, every=steps, name="diagonal networks")
    found = jax.jit(functools.partial(analyse, draws))(keys[1], state)
    return found | {"white_ratio": jax.jit(functools.partial(white, draws))(keys[2])}
