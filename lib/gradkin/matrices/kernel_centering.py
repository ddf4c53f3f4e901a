"""Sums over double-centered kernel matrices, in one pass and without cancellation.

Distance covariance and HSIC are sums of products of entries after row and column means are taken
out. Expanded into sums over raw entries they lose all digits where entries vary little around a
large mean. But centering does not see what is constant along rows or columns: ``K_ij - a_i - a_j``
has the same centered entries as ``K_ij`` for *any* ``a``. So means over a few columns are taken out
while the tiles stream; what is left is as small as the centered entries, and the expanded sums of
that are exact to rounding. With two passes the means are those of all columns.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradkin.matrices.kernel_tiles import Reduction, Side, add, kept, pairwise_sum, reduce_rows
from gradkin.typing import Array

# Columns whose mean is taken out in the single pass.
ANCHORS = 64


class CenteredSums(NamedTuple):
    """Sums over all ``i, j`` of products of centered entries.

    Attributes:
      kl: ``sum_ij A_ij B_ij``, ``A`` and ``B`` the centered matrices.
      kk: ``sum_ij A_ij^2``.
      ll: ``sum_ij B_ij^2``.
    """

    kl: Array
    kk: Array
    ll: Array


@functools.partial(jax.jit, inline=True, static_argnames=("unbiased", "passes"))
def centered_sums(
    K: Any, L: Any, weights: Array | None, *, unbiased: bool, passes: int
) -> CenteredSums:
    """See `KernelMatrix.centered_sums`."""
    matrices = (K,) if L is K else (K, L)
    dtype = functools.reduce(np.promote_types, [M.dtype for M in matrices])
    num_points = K.shape[0]
    weights = jnp.ones(num_points, dtype) if weights is None else weights.astype(dtype)
    for mask in (K.row_mask, L.row_mask):
        if mask is not None:
            weights = jnp.where(mask, weights, 0)
            # Both matrices leave out what either does.
            matrices = tuple(M.masked(mask) for M in matrices)
    if all(mask is None for mask in (K.row_mask, L.row_mask)):
        n = jnp.asarray(num_points, dtype)
    else:
        n = pairwise_sum(matrices[0].row_mask.astype(dtype))
    weights = weights * (n / pairwise_sum(weights))
    if unbiased:
        matrices = tuple(M.off_diagonal() for M in matrices)
    anchors = tuple(
        lax.stop_gradient(_anchor(M, weights, passes, n)).astype(dtype) for M in matrices
    )

    def residuals(tiles: tuple[Array, ...], rows: Side, columns: Side) -> tuple[Array, ...]:
        form = matrices[0].form._replace(diagonal=not unbiased)
        keep = kept(form, rows, columns)
        left, _ = rows.operand
        right, _ = columns.operand
        values = tuple(
            tile.astype(dtype) - a[:, None] - b[None, :] for tile, a, b in zip(tiles, left, right)
        )
        return values if keep is None else tuple(jnp.where(keep, v, 0) for v in values)

    def state(tiles: tuple[Array, ...], rows: Side, columns: Side) -> Any:
        values = residuals(tiles, rows, columns)
        w = columns.operand[1][None, :]
        sums = tuple(jnp.sum(v * w, axis=1) for v in values)
        first, last = values[0], values[-1]
        pairs = (
            ((first, last), (first, first), (last, last)) if len(values) > 1 else ((first,) * 2,)
        )
        return sums, tuple(jnp.sum(a * b * w, axis=1) for a, b in pairs)

    operand = (anchors, weights)
    sums, products = reduce_rows(
        matrices, Reduction(state, add, lax.psum), rows=operand, columns=operand
    )
    if all(getattr(M.kernel, "symmetric", False) for M in matrices):
        column_sums = sums
    else:
        turned = tuple(M.T for M in matrices)
        column_sums, _ = reduce_rows(
            turned, Reduction(state, add, lax.psum), rows=operand, columns=operand
        )

    def dot(x: Array, y: Array) -> Array:
        return pairwise_sum(weights * x * y)

    def centered(products: Array, i: int, j: int) -> Array:
        along = dot(sums[i], sums[j]) + dot(column_sums[i], column_sums[j])
        one = jnp.ones_like(weights)
        whole = dot(sums[i], one) * dot(sums[j], one)
        if unbiased:
            along, whole = along / (n - 2), whole / ((n - 1) * (n - 2))
        else:
            along, whole = along / n, whole / (n * n)
        return dot(products, one) - along + whole

    if len(matrices) == 1:
        value = centered(products[0], 0, 0)
        return CenteredSums(value, value, value)
    kl, kk, ll = products
    return CenteredSums(centered(kl, 0, 1), centered(kk, 0, 0), centered(ll, 1, 1))


def _anchor(M: Any, weights: Array, passes: int, n: Array) -> Array:
    """``a`` such that ``M_ij - a_i - a_j`` is about centered: row means, less half their mean."""
    if passes == 2:
        w = weights.astype(M.dtype)
        # Over the entries there are: a constant must leave nothing.
        others = n.astype(M.dtype) if M.keep_diagonal else n.astype(M.dtype) - w
        means = (M @ w) / others
        return means - pairwise_sum(w * means) / (2 * n.astype(M.dtype))
    every = -(-M.shape[0] // ANCHORS)
    some = slice(None, None, every)
    mask = None if M.row_mask is None else M.row_mask[some]
    # Means over a few columns, ones that exist; the diagonal of a distance is not typical.
    placement = M.placement
    if placement is not None and placement.split == "ring":
        placement = placement._replace(split="rows")  # so few columns are everywhere
    columns = dataclasses.replace(
        M, y=M.x[some], column_mask=mask, keep_diagonal=True, placement=placement
    )
    w = weights[some].astype(M.dtype)
    w = w if mask is None else jnp.where(mask, w, 0)
    total = jnp.sum(w)
    share = w / jnp.where(total > 0, total, 1)
    means = columns @ share
    return means - jnp.sum(share * means[some]) / 2
