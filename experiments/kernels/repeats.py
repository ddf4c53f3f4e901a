"""Repeated noise and wall times, for the experiments on private data."""

import math
import time

import jax
import jax.numpy as jnp
from jax.core import Tracer


def over_noise(key, repeats, answer, *arrays):
    """``answer(key, *arrays)`` for several keys; results have a leading axis."""
    mapped = jax.vmap(answer, in_axes=(0, *[None] * len(arrays)))
    return mapped(jax.random.split(key, repeats), *arrays)


def seconds(function, *arguments):
    """Least wall time of a compiled call, over half a second or 50 calls; NaN while tracing."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments)):
        return jnp.float32(math.nan)
    jax.block_until_ready(function(*arguments))
    times = []
    while sum(times) < 0.5 and len(times) < 50:
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return jnp.float32(min(times))
