"""Kernel matrices that are products of features: ``K = F G^T``."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradkin import checks
from gradkin.matrices import distances, kernel, kernel_arguments, kernel_explain
from gradkin.matrices.kernel_centering import CenteredSums
from gradkin.matrices.kernel_tiles import pairwise_sum
from gradkin.matrices.verbs import safe_sqrt
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, ArrayLike

_verb = functools.partial(jax.jit, inline=True)


@functools.partial(register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class InnerProduct:
    """The kernel of features."""

    symmetric = True

    def __call__(self, x: Any, y: Any) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Any, Y: Any) -> Array:
        return distances.product(X, Y)


@functools.partial(
    register_dataclass,
    data_fields=["left", "right", "weights", "row_weights", "row_mask", "column_mask"],
    meta_fields=["keep_diagonal"],
)
@dataclasses.dataclass(frozen=True)
class LowRankMatrix:
    """The matrix ``K_ij = <f_i, g_j> w_j`` of features, with the verbs of a `KernelMatrix`.

    Products, sums, norms and centered sums take time and memory in proportion to ``n + m``;
    ``logsumexp``, ``max``, ``top_k`` and ``materialize`` look at all entries, panel by panel.

    Attributes:
      left: features of the rows ``[n, r]``; zero where left out.
      right: features of the columns ``[m, r]``; None where they are those of the rows.
      weights: factors of the columns ``[m]``, or None.
      row_weights: factors of the rows ``[n]``, or None.
      row_mask: ``[n]``, False for rows left out, or None.
      column_mask: ``[m]``, False for columns left out, or None.
      keep_diagonal: False for a matrix without diagonal.
    """

    left: Any
    right: Any
    weights: Any = None
    row_weights: Any = None
    row_mask: Any = None
    column_mask: Any = None
    keep_diagonal: bool = True

    # NumPy arrays on the left of `@` defer to `__rmatmul__`.
    __array_ufunc__ = None

    def __len__(self) -> int:
        return self.left.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, rank={self.left.shape[1]})"

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, m)``; points that a mask leaves out count."""
        return self.left.shape[0], (self.left if self.right is None else self.right).shape[0]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the features."""
        return self.left.dtype

    @property
    def T(self) -> "LowRankMatrix":
        """The transpose."""
        return dataclasses.replace(
            self,
            left=self.left if self.right is None else self.right,
            right=None if self.right is None else self.left,
            weights=self.row_weights,
            row_weights=self.weights,
            row_mask=self.column_mask,
            column_mask=self.row_mask,
        )

    def __matmul__(self, vectors: Any) -> Array:
        """``K @ v`` of ``[m]`` or ``[m, c]``: ``[n]`` or ``[n, c]``."""
        return product(
            self, kernel_arguments.operand(vectors, self.shape[1], "the right side", axis=0)
        )

    def __rmatmul__(self, vectors: Any) -> Array:
        """``v @ K`` of ``[n]`` or ``[c, n]``: ``[m]`` or ``[c, m]``."""
        return product(
            self.T, kernel_arguments.operand(vectors, self.shape[0], "the left side", axis=-1).T
        ).T

    def inner(self, other: "LowRankMatrix") -> Array:
        """``sum_ij K_ij L_ij``, through the products of features."""
        if not isinstance(other, LowRankMatrix):
            raise TypeError(f"Expected other to be a LowRankMatrix, got {type(other).__name__}.")
        if other.shape != self.shape:
            raise ValueError(f"Expected other to have shape {self.shape}, got {other.shape}.")
        return inner(self, other)

    def sum(self, axis: int | None = None) -> Array:
        """Sum of all entries, of each column (0) or of each row (1)."""
        axis = kernel_arguments.checked_axis(axis)
        M = self.T if axis == 0 else self
        rows = product(M, jnp.ones(M.shape[1], M.dtype))
        return pairwise_sum(rows) if axis is None else rows

    def mean(self, axis: int | None = None) -> Array:
        """Mean of the entries that are not left out; zero where all are."""
        axis = kernel_arguments.checked_axis(axis)
        return self.sum(axis) / jnp.maximum(self.streamed().counts(axis), 1).astype(self.dtype)

    def logsumexp(self, axis: int | None = None) -> Array:
        """Logarithm of the sum of entries; NaN where one is negative, as features can make it."""
        return self.streamed().logsumexp(axis)

    def max(self, axis: int | None = None) -> Array:
        """Greatest entry of all, of each column (0) or of each row (1)."""
        return self.streamed().max(axis)

    def top_k(self, k: int, *, largest: bool = True) -> tuple[Array, Array]:
        """The ``k`` greatest (or least) entries of each row, and their columns."""
        return self.streamed().top_k(k, largest=largest)

    def diagonal(self) -> Array:
        """The entries ``i, i``: ``[n]``; zero where left out."""
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"Expected a square matrix for diagonal, got shape {self.shape}.")
        values = _self_products(self)
        return values if self.keep_diagonal else jnp.zeros_like(values)

    def trace(self) -> Array:
        """Sum of the diagonal."""
        return pairwise_sum(self.diagonal())

    def frobenius_norm(self) -> Array:
        """Square root of the sum of all squared entries."""
        return safe_sqrt(jnp.maximum(inner(self, self), 0))

    def centered_sums(
        self,
        other: "LowRankMatrix | None" = None,
        *,
        unbiased: bool = False,
        passes: int = 1,
        weights: ArrayLike | None = None,
    ) -> CenteredSums:
        """Sums of products of double-centered entries: see `KernelMatrix.centered_sums`.

        Centering the features centers the matrix, so ``passes`` makes no difference.
        """
        checks.one_of((1, 2), passes=passes)
        other = self if other is None else other
        if not isinstance(other, LowRankMatrix):
            raise TypeError(f"Expected other to be a LowRankMatrix, got {type(other).__name__}.")
        if other.shape != self.shape:
            raise ValueError(f"Expected other to have shape {self.shape}, got {other.shape}.")
        weights = self.streamed().checked_centering(other.streamed(), unbiased, weights)
        return centered_sums(self, other, weights, unbiased=unbiased)

    def materialize(self) -> Array:
        """All entries, ``[n, m]``; zero where left out."""
        return self.streamed().materialize()

    def explain(self) -> kernel_explain.KernelExplanation:
        """Sizes and operations of a product with a vector. Print it."""
        n, m = self.shape
        rank, itemsize = self.left.shape[1], np.dtype(self.dtype).itemsize
        return kernel_explain.KernelExplanation(
            kernel=f"rank {rank}",
            shape=(n, m),
            route="features",
            panels=1,
            panel_rows=n + m,
            panel_bytes=(n + m) * rank * itemsize,
            matrix_bytes=n * m * itemsize,
            multiply_adds=(n + m) * rank,
            devices=1,
            reason="a product of two thin matrices",
        )

    def off_diagonal(self) -> "LowRankMatrix":
        """The same matrix with the entries ``i, i`` left out."""
        if self.right is not None:
            raise ValueError("Expected a matrix of points with themselves (y=None).")
        return dataclasses.replace(self, keep_diagonal=False)

    def streamed(self) -> kernel.KernelMatrix:
        """The same matrix as a `KernelMatrix` of its features."""
        return kernel.KernelMatrix(
            InnerProduct(),
            self.left,
            self.right,
            self.weights,
            self.row_weights,
            self.row_mask,
            self.column_mask,
            None,
            self.keep_diagonal,
            None,
        )


def low_rank(
    left: Array,
    right: Array | None,
    *,
    weights: Any = None,
    mask: Any = None,
) -> LowRankMatrix:
    """A `LowRankMatrix` of features, with weights of columns and masks as in `kernel_matrix`."""
    row_mask, column_mask = kernel_arguments.masks(mask, left, right)
    if weights is not None:
        weights = kernel_arguments.factors(weights, (left if right is None else right).shape[0])
        weights = weights if column_mask is None else jnp.where(column_mask, weights, 0)
    if row_mask is not None:
        left = jnp.where(row_mask[:, None], left, 0)
    if right is not None and column_mask is not None:
        right = jnp.where(column_mask[:, None], right, 0)
    return LowRankMatrix(left, right, weights, None, row_mask, column_mask)


def matmul(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def weighted(features: Array, weights: Array | None) -> Array:
    return features if weights is None else features * weights.astype(features.dtype)[:, None]


def sides(K: LowRankMatrix) -> tuple[Array, Array]:
    """Features of rows and of columns, times their weights."""
    right = K.left if K.right is None else K.right
    return weighted(K.left, K.row_weights), weighted(right, K.weights)


def _self_products(K: LowRankMatrix) -> Array:
    left, right = sides(K)
    return jnp.sum(left * right, axis=1)


@_verb
def product(K: LowRankMatrix, vectors: Array) -> Array:
    """``K @ vectors``."""
    left, right = sides(K)
    dtype = np.promote_types(K.dtype, vectors.dtype)
    left, right, vectors = left.astype(dtype), right.astype(dtype), vectors.astype(dtype)
    result = matmul(left, matmul(right.T, vectors))
    if K.keep_diagonal:
        return result
    own = jnp.sum(left * right, axis=1)
    return result - (own * vectors if vectors.ndim == 1 else own[:, None] * vectors)


@_verb
def inner(K: LowRankMatrix, L: LowRankMatrix) -> Array:
    """``sum_ij <f_i, g_j> <h_i, k_j>`` is the sum of ``(F^T H) (G^T K)``, entry by entry."""
    (f, g), (h, k) = sides(K), sides(L)
    total = jnp.sum(matmul(f.T, h) * matmul(g.T, k))
    if K.keep_diagonal and L.keep_diagonal:
        return total
    return total - pairwise_sum(_self_products(K) * _self_products(L))


@functools.partial(_verb, static_argnames=("unbiased",))
def centered_sums(
    K: LowRankMatrix, L: LowRankMatrix, weights: Array | None, *, unbiased: bool
) -> CenteredSums:
    """Centered features have centered products; U-centering then needs their diagonal only."""
    present = jnp.ones(len(K), K.dtype)
    for mask in (K.row_mask, L.row_mask):
        present = present if mask is None else jnp.where(mask, present, 0)
    n = pairwise_sum(present)
    w = present if weights is None else present * weights.astype(K.dtype)
    w = w * (n / pairwise_sum(w))

    def centered(features: Array) -> Array:
        return (features - matmul(w / n, features)[None, :]) * jnp.sqrt(w)[:, None]

    f, g = centered(K.left), centered(L.left)

    def of(a: Array, b: Array) -> Array:
        total = jnp.sum(jnp.square(matmul(a.T, b)))
        if not unbiased:
            return total
        # Centered rows sum to zero, so without diagonal they sum to minus the diagonal.
        p, q = jnp.sum(jnp.square(a), axis=1), jnp.sum(jnp.square(b), axis=1)
        along = pairwise_sum(p * q)
        whole = pairwise_sum(p) * pairwise_sum(q)
        return total - along - 2 * along / (n - 2) + whole / ((n - 1) * (n - 2))

    return CenteredSums(of(f, g), of(f, f), of(g, g))
