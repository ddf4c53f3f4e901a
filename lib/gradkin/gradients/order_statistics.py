"""Order statistics over examples, column by column, without sorting."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradkin.typing import Array

# Columns treated at a time: what is kept of them (18 rows for level 8) stays in a CPU's cache.
BLOCK = 2048


def smallest(values: Array, number: int) -> Array:
    """The ``number`` smallest of each column, in order: ``[m, n]`` to ``[number, n]``.

    Inserts row after row into the smallest ones so far, ``2 m number`` vector operations. On a CPU
    that is 30 times faster than `jnp.sort` or `jax.lax.top_k` for 100 rows and the ninth smallest.
    A NaN makes the whole column NaN.
    """
    lowest = jnp.full((1, *values.shape[1:]), -jnp.inf, values.dtype)

    def insert(kept: Array, row: Array) -> tuple[Array, None]:
        # Slot k takes the middle one of its left neighbour, the new value and itself.
        left = jnp.concatenate([lowest, kept[:-1]])
        return jnp.minimum(kept, jnp.maximum(left, row[None])), None

    empty = jnp.full((number, *values.shape[1:]), jnp.inf, values.dtype)
    return jax.lax.scan(insert, empty, values)[0]


def bounds(values: Array, level: int) -> tuple[Array, Array]:
    """The (level + 1)-th smallest and (level + 1)-th largest of each column of ``[m, n]``."""
    # Both ends in one pass: the largest are the smallest of the negated.
    low, negated = jnp.split(smallest(jnp.concatenate([values, -values], axis=1), level + 1)[-1], 2)
    return low, -negated


def median(values: Array) -> Array:
    """Median of each column of ``[m, n]``; the mean of the two middle values for even m."""
    low, high = bounds(values, (values.shape[0] - 1) // 2)
    return 0.5 * (low + high)


def by_columns(function: Callable[[Array], Array], values: Array) -> Array:
    """Apply a reduction ``[m, n] -> [n]`` to ``[m, ...]``, `BLOCK` columns at a time."""
    shape = values.shape[1:]
    values = values.reshape(values.shape[0], -1)
    columns = values.shape[1]
    if columns <= BLOCK:
        return function(values).reshape(shape)
    blocks = -(-columns // BLOCK)
    size = -(-columns // blocks)

    def block(i: Array, result: Array) -> Array:
        # The last block starts early and repeats some columns, so nothing is padded.
        start = jnp.minimum(i * size, columns - size)
        part = jax.lax.dynamic_slice_in_dim(values, start, size, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(result, function(part), start, axis=0)

    result = jnp.zeros((columns,), values.dtype)
    return jax.lax.fori_loop(0, blocks, block, result).reshape(shape)
