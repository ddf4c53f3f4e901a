"""Distances between two sets of points, one tile at a time, safe in float32.

The Gram form ``|x|^2 + |y|^2 - 2 <x, y>`` turns distances into a matrix product, but loses the
digits that ``|x|^2`` has above ``|x - y|^2``. So the points are centered first, products are taken
in full precision, and what rounding made negative is set to zero. What is left is an absolute error
of a few units in the last place of ``|x - c|^2 + |y - c|^2``, ``c`` the mean of ``y``. Points of
few features, where a matrix product saves nothing, are subtracted and have no such error.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradkin.matrices.contraction import at_least_float32
from gradkin.matrices.verbs import safe_sqrt
from gradkin.typing import Array

# Up to here, subtracting costs no more than the matrix product and its clean-up.
FEW_FEATURES = 4
# Features of the l1 distance that are added up between two writes of the tile.
UNROLL = 8


def points(x: Any) -> Array:
    """Points as rows of floats, ``[n, features]``, at least float32."""
    x = jnp.asarray(x)
    dtype = at_least_float32(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else float
    return x.reshape((x.shape[0], -1)).astype(dtype)


def product(x: Any, y: Any) -> Array:
    """``<x_i, y_j>``, in full precision on every backend."""
    return lax.dot_general(x, y, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def squared_euclidean(x: Any, y: Any) -> Array:
    """``|x_i - y_j|^2`` of ``[n, d]`` and ``[m, d]`` points: ``[n, m]``, never negative."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.shape[1] <= FEW_FEATURES:
        total = jnp.zeros((x.shape[0], y.shape[0]), x.dtype)
        for f in range(x.shape[1]):
            total = total + jnp.square(x[:, f, None] - y[None, :, f])
        return total
    # Distances do not depend on the center, so its derivative is zero.
    center = lax.stop_gradient(jnp.mean(y, axis=0, keepdims=True))
    x, y = x - center, y - center
    x_norms = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    y_norms = jnp.sum(jnp.square(y), axis=1)[None, :]
    return jnp.maximum(x_norms + y_norms - 2 * product(x, y), 0)


def euclidean(x: Any, y: Any) -> Array:
    """``|x_i - y_j|``; where it is zero its derivative is zero."""
    return safe_sqrt(squared_euclidean(x, y))


def manhattan(x: Any, y: Any) -> Array:
    """``|x_i - y_j|_1``: a loop over features, so that no ``[n, m, d]`` array arises."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    num_features = x.shape[1]
    start = jnp.zeros((x.shape[0], y.shape[0]), x.dtype)

    def some(xs: Array, ys: Array) -> Array:
        parts = [jnp.abs(xs[f, :, None] - ys[f, None, :]) for f in range(xs.shape[0])]
        return sum(parts[1:], parts[0])

    if num_features <= UNROLL:
        return some(x.T, y.T) if num_features else start
    # Zero features on both sides fill up the last group and add nothing.
    fill = -num_features % UNROLL
    xs, ys = (jnp.pad(a.T, ((0, fill), (0, 0))).reshape((-1, UNROLL, a.shape[0])) for a in (x, y))
    # The signs are made again for the derivative: kept, they are [n, m, d].
    some = jax.checkpoint(some, prevent_cse=False)
    # Not zeros: inside `shard_map` the total varies over devices as its parts do.
    first = some(xs[0], ys[0])
    return lax.scan(lambda total, pair: (total + some(*pair), None), first, (xs[1:], ys[1:]))[0]


def at_points(tile: Callable[[Array, Array], Array], x: Any, y: Any) -> Array:
    """One entry, from a function that fills tiles.

    A single ``y`` is its own center, so a distance of two points is that of their difference.
    """
    return tile(jnp.asarray(x)[None], jnp.asarray(y)[None])[0, 0]
