"""A quadratic bowl whose groups of parameters have curvatures from 1 to 100."""

import jax
import jax.numpy as jnp
import numpy as np

import gradkin
from gradkin import gradients

GROUPS, WIDTH = 8, 10
CURVATURES = np.logspace(0, 2, GROUPS).astype(np.float32)


def bowl_step(config, key, x, bounds, rate, groups):
    """One noised step; examples lie around the origin with variance 1."""
    draw, noise = jax.random.split(key)
    examples = jax.random.normal(draw, (config.bowl_batch, GROUPS, WIDTH))

    def loss(x, example):
        squares = [jnp.sum(jnp.square(x[f"{k}"] - example[k])) for k in range(GROUPS)]
        return 0.5 * jnp.vdot(jnp.stack(squares), jnp.asarray(CURVATURES))

    G = gradkin.per_example_grads(loss)(x, examples)
    total = gradients.clipped_sum(G, bounds, groups=groups)
    noised = gradients.add_noise(
        noise, total, noise_multiplier=1.0, allocation="proportional"
    ).mean(float(config.bowl_batch))
    shares = 1 - noised.clipped_fraction
    return jax.tree.map(lambda p, g: p - rate * g, x, noised.value), shares


def bowl_loss(x):
    squares = jnp.stack([jnp.sum(jnp.square(x[f"{k}"])) for k in range(GROUPS)])
    return 0.5 * jnp.vdot(squares, jnp.asarray(CURVATURES))


def bowl_start():
    return {f"{k}": jnp.full(WIDTH, 3.0) for k in range(GROUPS)}
