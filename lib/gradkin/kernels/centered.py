"""Products of centered kernel matrices: what every measure of dependence is a mean of."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradkin.matrices import distances
from gradkin.matrices.kernel import KernelMatrix, kernel_matrix
from gradkin.matrices.kernel_tiles import fill, pairwise_sum
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array

# Divisions by n - 3 and by n - 1.
MINIMUM = {True: 4, False: 2}


@functools.partial(
    register_dataclass,
    data_fields=["kernels", "totals", "offset"],
    meta_fields=["shapes"],
)
@dataclasses.dataclass(frozen=True)
class CenteredProduct:
    """``prod_m (K^m_ij - r^m_i - r^m_j + t^m + c) - c^k``: a kernel, so the engine streams it.

    A point is the ``k`` points side by side, flat, followed by its ``k`` means ``r``.

    Attributes:
      kernels: the ``k`` kernels.
      totals: the ``k`` numbers ``t``.
      offset: ``c``.
      shapes: of a point of each kernel.
    """

    kernels: tuple[Any, ...]
    totals: tuple[Array, ...]
    offset: Any
    shapes: tuple[tuple[int, ...], ...]

    @property
    def symmetric(self) -> bool:
        """Whether all kernels are known to be."""
        return all(getattr(kernel, "symmetric", False) for kernel in self.kernels)

    def __call__(self, x: Array, y: Array) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Array, Y: Array) -> Array:
        """Entries for all pairs of the points ``[n, d]`` and ``[m, d]``."""
        offset = jnp.asarray(self.offset).astype(X.dtype)
        product, start = jnp.ones((), X.dtype), 0
        means = X.shape[1] - len(self.kernels)
        for m, (kernel, total, shape) in enumerate(zip(self.kernels, self.totals, self.shapes)):
            stop = start + math.prod(shape)
            left, right = (Z[:, start:stop].reshape((-1, *shape)) for Z in (X, Y))
            rows, columns = X[:, means + m, None], Y[None, :, means + m]
            tile = fill(kernel, log=False)(left, right).astype(X.dtype)
            product = product * ((tile - rows - columns + total) + offset)
            start = stop
        return product - offset ** len(self.kernels)


def check_matrices(matrices: Sequence[Any], *, unbiased: bool) -> None:
    """Raise unless these are matrices of paired points, enough of them, compared with themselves.

    Of points that a mask leaves out only the number before masking is known.
    """
    for matrix in matrices:
        if not isinstance(matrix, KernelMatrix):
            raise TypeError(
                f"Expected kernel matrices (gradkin.kernel_matrix), got {type(matrix).__name__}."
            )
        if matrix.y is not None:
            raise ValueError("Expected matrices of points with themselves, got one with y.")
        if matrix.weights is not None or matrix.row_weights is not None:
            raise ValueError("Expected matrices without weights of columns; pass weights= here.")
        if not matrix.keep_diagonal:
            raise ValueError("Expected matrices with their diagonal; unbiased=True leaves it out.")
    lengths = [len(matrix) for matrix in matrices]
    if len(set(lengths)) != 1:
        raise ValueError(f"Expected matrices of the same, paired points, got {lengths} points.")
    if lengths[0] < MINIMUM[unbiased]:
        raise ValueError(
            f"Expected at least {MINIMUM[unbiased]} points for unbiased={unbiased}, got "
            f"{lengths[0]}."
        )


def count(matrices: Sequence[Any], dtype: Any, *, unbiased: bool) -> Array:
    """How many points no matrix leaves out; NaN, so that results are, where they are too few."""
    mask = shared_mask(matrices)
    if mask is None:
        return jnp.asarray(len(matrices[0]), dtype)
    n = pairwise_sum(mask.astype(dtype))
    return jnp.where(n >= MINIMUM[unbiased], n, jnp.full_like(n, jnp.nan))


def shared_mask(matrices: Sequence[Any]) -> Array | None:
    """The points no matrix leaves out; None where none leaves out any."""
    masks = [M.row_mask for M in matrices if M.row_mask is not None]
    return functools.reduce(jnp.logical_and, masks) if masks else None


def means(matrix: Any, n: Array, *, unbiased: bool) -> tuple[Array, Array]:
    """``r`` and ``t`` with which ``K_ij - r_i - r_j + t`` is double-centered, or U-centered.

    See `KernelMatrix.centered_sums`.
    """
    sums = (matrix.off_diagonal() if unbiased else matrix).sum(axis=1)
    total = pairwise_sum(sums)
    n = n.astype(sums.dtype)
    if unbiased:
        return sums / (n - 2), total / ((n - 1) * (n - 2))
    return sums / n, total / (n * n)


def mean_product(matrices: Sequence[Any], *, offset: Any, unbiased: bool) -> Array:
    """Mean over pairs of ``prod_m (A^m_ij + c) - c^k``, ``A^m`` the centered matrices.

    The mean is over all ``n^2`` pairs; unbiased, the sum over pairs of different points is divided
    by ``n (n - 3)``, which is without bias for two matrices. Two streaming passes, no matrix.
    """
    dtype = functools.reduce(np.promote_types, [M.dtype for M in matrices])
    n = count(matrices, dtype, unbiased=unbiased)
    mask = shared_mask(matrices)
    if mask is not None:
        matrices = [M.masked(mask) for M in matrices]
    rows, totals = zip(*(means(M, n, unbiased=unbiased) for M in matrices))
    parts = [M.x.reshape((len(M), -1)).astype(dtype) for M in matrices]
    points = jnp.concatenate([*parts, *(r.astype(dtype)[:, None] for r in rows)], axis=1)
    kernel = CenteredProduct(
        tuple(M.kernel for M in matrices),
        tuple(t.astype(dtype) for t in totals),
        offset,
        tuple(M.x.shape[1:] for M in matrices),
    )
    first = matrices[0]
    product = kernel_matrix(kernel, points, mask=mask, block=first.block)
    product = dataclasses.replace(product, placement=first.placement)
    if unbiased:
        return product.off_diagonal().sum() / (n * (n - 3))
    return product.sum() / (n * n)


def centered(matrix: Any, *, unbiased: bool) -> Array:
    """The centered matrix itself, ``[n, n]``; U-centered it has a zero diagonal."""
    entries = matrix.materialize()
    n = jnp.asarray(len(matrix), entries.dtype)
    if not unbiased:
        rows = jnp.mean(entries, axis=1)
        return entries - rows[:, None] - rows[None, :] + jnp.mean(rows)
    off = ~jnp.eye(len(matrix), dtype=bool)
    sums = jnp.sum(entries, axis=1, where=off)
    rows, total = sums / (n - 2), jnp.sum(sums) / ((n - 1) * (n - 2))
    values = entries - rows[:, None] - rows[None, :] + total
    return jnp.where(off, values, jnp.zeros_like(values))
