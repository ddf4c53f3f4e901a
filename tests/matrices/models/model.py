"""A test model: a loss of one example, its arguments for a batch, how they are mapped."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Model(NamedTuple):
    """``vmap(grad(loss, argnums), in_axes)(*args)`` are the gradients of all examples."""

    loss: Callable[..., Any]
    args: tuple[Any, ...]
    in_axes: Any = 0
    argnums: int | tuple[int, ...] = 0


def normal(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    """Deterministic float32 numbers of a given shape."""
    numbers = np.random.default_rng([seed, *shape]).normal(size=shape) * scale
    return jnp.asarray(numbers.astype(np.float32))


def weight(seed: int, *shape: int) -> jax.Array:
    """Numbers of variance 1 / (first axis), so that layers keep the scale."""
    return normal(seed, *shape, scale=shape[0] ** -0.5)


def integers(seed: int, high: int, *shape: int) -> jax.Array:
    """Deterministic int32 numbers in ``[0, high)``."""
    return jnp.asarray(np.random.default_rng([seed, *shape]).integers(0, high, shape, np.int32))


def plus(x: jax.Array, bias: jax.Array) -> jax.Array:
    """``x + bias`` along the last axis; ranks are never promoted in this test suite."""
    return x + jnp.broadcast_to(bias, x.shape)


def times(x: jax.Array, scale: jax.Array) -> jax.Array:
    """``x * scale`` along the last axis."""
    return x * jnp.broadcast_to(scale, x.shape)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sum of the negative log-likelihoods of integer labels."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)
    return -jnp.sum(chosen)
