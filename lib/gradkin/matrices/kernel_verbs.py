"""What is read off a kernel matrix; each verb is one pass over panels of rows."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradkin.matrices import kernel_halves
from gradkin.matrices.kernel_tiles import (
    Reduction,
    Side,
    add,
    diagonal,
    pairwise_sum,
    reduce_rows,
    safe_log,
)
from gradkin.matrices.verbs import safe_sqrt
from gradkin.typing import Array

_verb = functools.partial(jax.jit, inline=True)
Tiles = tuple[Array, ...]
# Vectors up to which a symmetric matrix is made by halves.
MOST_BOTH_WAYS = 8


@_verb
def product(K: Any, vectors: Array) -> Array:
    """``K @ vectors`` of ``[m]`` or ``[m, c]``; what stands at columns left out is not read."""
    if K.column_mask is not None:
        mask = K.column_mask.reshape((-1,) + (1,) * (vectors.ndim - 1))
        vectors = jnp.where(mask, vectors, 0)
    # Many vectors cost more than the entries do; then it does not pay to go both ways.
    if vectors.size <= MOST_BOTH_WAYS * vectors.shape[0] and kernel_halves.applies((K,)):
        return kernel_halves.product(K, vectors)

    def state(tiles: Tiles, rows: Side, columns: Side) -> Array:
        (tile,) = tiles
        dtype = np.promote_types(tile.dtype, columns.operand.dtype)
        return jnp.matmul(
            tile.astype(dtype), columns.operand.astype(dtype), precision=lax.Precision.HIGHEST
        )

    return reduce_rows((K,), Reduction(state, add, lax.psum), columns=vectors)


@_verb
def row_sums(K: Any) -> Array:
    """Sum of each row."""
    if kernel_halves.applies((K,)):
        return product(K, jnp.ones(len(K), K.dtype))
    return reduce_rows((K,), _summed(_same))


@_verb
def total(K: Any) -> Array:
    """Sum of all entries."""
    return _total((K,), _same)


@_verb
def squares(K: Any) -> Array:
    """Sum of the squares of all entries."""
    return _total((K,), jnp.square)


@_verb
def inner(K: Any, L: Any) -> Array:
    """``sum_ij K_ij L_ij``."""
    return _total((K, L), _times)


def _total(matrices: tuple[Any, ...], value: Any) -> Array:
    """Sum over all entries of a function of them."""
    if kernel_halves.applies(matrices):
        return kernel_halves.total(matrices, value)
    return reduce_rows(matrices, _summed(value), total=True)


def _summed(value: Any) -> Reduction:
    def state(tiles: Tiles, rows: Side, columns: Side) -> Array:
        return jnp.sum(value(*tiles), axis=1)

    return Reduction(state, add, lax.psum)


def _same(tile: Array) -> Array:
    return tile


def _times(a: Array, b: Array) -> Array:
    dtype = np.promote_types(a.dtype, b.dtype)
    return a.astype(dtype) * b.astype(dtype)


@_verb
def row_logsumexp(K: Any) -> Array:
    """Logarithm of the sum of each row."""
    return reduce_rows((K,), LOGSUMEXP)


@_verb
def logsumexp(K: Any) -> Array:
    """Logarithm of the sum of all entries."""
    weights = K.row_weights
    rows = row_logsumexp(dataclasses.replace(K, row_weights=None))
    top, terms = _shifted(rows[None], weights)
    return safe_log(pairwise_sum(terms[0])) + _finite(top[0])


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def _shifted(logs: Array, weights: Array | None) -> tuple[Array, Array]:
    """The greatest logarithm of each row, and the weighted entries over it."""
    if weights is None:
        top = lax.stop_gradient(jnp.max(logs, axis=1))
        return top, jnp.exp(logs - _finite(top)[:, None])
    weights = weights.astype(logs.dtype)
    # The result does not depend on the shift, so neither does its derivative.
    top = lax.stop_gradient(jnp.max(logs + safe_log(weights)[None], axis=1))
    # Entries of weight zero may be far above the others; infinity times zero is NaN.
    most = 0.99 * float(np.log(jnp.finfo(logs.dtype).max))
    terms = jnp.exp(jnp.minimum(logs - _finite(top)[:, None], most))
    return top, terms * jnp.where(weights < 0, jnp.nan, weights)[None]


def _shifted_sum(tiles: Tiles, rows: Side, columns: Side) -> tuple[Array, Array]:
    top, terms = _shifted(tiles[0], columns.weights)
    return top, jnp.sum(terms, axis=1)


def _rescaled(state: tuple[Array, Array], top: Array) -> Array:
    old, total = state
    # A row without entries so far has the sum 0, which an infinite factor would make NaN.
    return total * jnp.exp(jnp.where(old == -jnp.inf, 0, _finite(old) - _finite(top)))


def _merge_shifted(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    top = jnp.maximum(a[0], b[0])
    return top, _rescaled(a, top) + _rescaled(b, top)


def _shifted_across(state: tuple[Array, Array], axes: Any) -> tuple[Array, Array]:
    top = lax.pmax(lax.stop_gradient(state[0]), axes)
    return top, lax.psum(_rescaled(state, top), axes)


def _unshifted(state: tuple[Array, Array]) -> Array:
    return safe_log(state[1]) + _finite(state[0])


LOGSUMEXP = Reduction(
    _shifted_sum, _merge_shifted, _shifted_across, _unshifted, log=True, fill=-np.inf
)


@_verb
def row_max(K: Any) -> Array:
    """Greatest entry of each row."""
    reduction = Reduction(_row_max, jnp.maximum, _not_across, fill=-np.inf)
    return reduce_rows((K.unsplit("columns"),), reduction)


def _row_max(tiles: Tiles, rows: Side, columns: Side) -> Array:
    return jnp.max(tiles[0], axis=1)


@functools.partial(_verb, static_argnames=("k", "largest"))
def top_k(K: Any, k: int, *, largest: bool) -> tuple[Array, Array]:
    """The ``k`` greatest (or least) entries of each row and their columns."""
    sign = 1 if largest else -1

    def best(values: Array, indices: Array) -> tuple[Array, Array]:
        values, places = lax.top_k(values, k)
        return values, jnp.take_along_axis(indices, places, axis=1)

    def state(tiles: Tiles, rows: Side, columns: Side) -> tuple[Array, Array]:
        tile = sign * tiles[0]
        indices = jnp.broadcast_to(columns.index[None, :], tile.shape)
        short = k - tile.shape[1]
        if short > 0:  # fewer columns on this device than asked for
            tile = jnp.pad(tile, ((0, 0), (0, short)), constant_values=-np.inf)
            indices = jnp.pad(indices, ((0, 0), (0, short)))
        return best(tile, indices)

    def merge(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return best(*(jnp.concatenate(pair, axis=1) for pair in zip(a, b)))

    values, indices = reduce_rows(
        (K.unsplit("columns"),), Reduction(state, merge, _not_across, fill=-sign * np.inf)
    )
    return sign * values, indices


def _not_across(state: Any, axes: Any) -> Any:
    raise AssertionError("No state of this reduction is combined across devices.")


@_verb
def entries(K: Any) -> Array:
    """The whole matrix."""
    reduction = Reduction(lambda tiles, rows, columns: tiles[0], _not_across, _not_across)
    return reduce_rows((K.unsplit("columns", "ring"),), reduction)


@_verb
def diagonal_of(K: Any) -> Array:
    """The entries ``i, i``."""
    return diagonal(K.kernel, K.form, K.rows_side(), K.columns_side())


@_verb
def frobenius_norm(K: Any) -> Array:
    """Square root of the sum of squares."""
    return safe_sqrt(squares(K))
