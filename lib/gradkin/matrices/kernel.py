"""Kernel matrices: all pairs of points compared, never written down."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks, pytrees
from gradkin.matrices import kernel_centering, kernel_explain, kernel_tiles, kernel_verbs
from gradkin.matrices.kernel_arguments import (
    as_points,
    checked_axis,
    divisible,
    factors,
    finite,
    masks,
    operand,
    placed,
    without,
)
from gradkin.matrices.kernel_centering import CenteredSums
from gradkin.matrices.kernel_tiles import Form, Placement, Side
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, ArrayLike


@functools.partial(
    register_dataclass,
    data_fields=["kernel", "x", "y", "weights", "row_weights", "row_mask", "column_mask"],
    meta_fields=["block", "keep_diagonal", "placement"],
)
@dataclasses.dataclass(frozen=True)
class KernelMatrix:
    """The matrix ``K_ij = k(x_i, y_j) w_j``, made anew, panel by panel, for every verb.

    Made by `kernel_matrix`; an immutable pytree. A verb is one pass: it takes the memory of the
    points, of its result and of one panel of rows (`explain` says how many), and so does its
    derivative, with respect to the points, the weights, the kernel's parameters and vectors. Two
    verbs are two passes.

    Attributes:
      kernel: function of two points.
      x: points of the rows, ``[n, ...]``.
      y: points of the columns, ``[m, ...]``; None where they are those of the rows.
      weights: factors of the columns ``[m]``, or None.
      row_weights: factors of the rows ``[n]``, or None; where a transpose puts them.
      row_mask: ``[n]``, False for rows left out, or None.
      column_mask: ``[m]``, False for columns left out, or None.
      block: rows per panel, or None for automatic.
      keep_diagonal: False for a matrix without diagonal (`off_diagonal`).
      placement: how points are split over devices, or None.
    """

    kernel: Any
    x: Any
    y: Any
    weights: Any
    row_weights: Any
    row_mask: Any
    column_mask: Any
    block: int | None
    keep_diagonal: bool
    placement: Placement | None

    # NumPy arrays on the left of `@` defer to `__rmatmul__`.
    __array_ufunc__ = None

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        # Without this NumPy makes an array that holds the matrix as its one object.
        raise TypeError("Expected K.materialize(): a KernelMatrix is not written down unasked.")

    def __len__(self) -> int:
        return self.x.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({kernel_explain.name(self.kernel)}, shape={self.shape})"

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, m)``; points that a mask leaves out count."""
        return self.x.shape[0], (self.x if self.y is None else self.y).shape[0]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the entries: float32 or wider for the kernels of this library."""
        point = lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
        x, y = point(self.x), point(self.x if self.y is None else self.y)
        function = kernel_tiles.fill(self.kernel, log=False)
        return jax.eval_shape(function, x, y).dtype

    @property
    def T(self) -> "KernelMatrix":
        """The transpose."""
        return dataclasses.replace(
            self,
            kernel=kernel_tiles.swapped(self.kernel),
            x=self.x if self.y is None else self.y,
            y=None if self.y is None else self.x,
            weights=self.row_weights,
            row_weights=self.weights,
            row_mask=self.column_mask,
            column_mask=self.row_mask,
            placement=self._turned_placement(),
        )

    # ---- products --------------------------------------------------------------------------

    def __matmul__(self, vectors: Any) -> Array:
        """``K @ v`` of ``[m]`` or ``[m, c]``: ``[n]`` or ``[n, c]``."""
        vectors = operand(vectors, self.shape[1], "the right side", axis=0)
        return kernel_verbs.product(self, vectors)

    def __rmatmul__(self, vectors: Any) -> Array:
        """``v @ K`` of ``[n]`` or ``[c, n]``: ``[m]`` or ``[c, m]``."""
        vectors = operand(vectors, self.shape[0], "the left side", axis=-1)
        return kernel_verbs.product(self.T, vectors.T).T

    def inner(self, other: "KernelMatrix") -> Array:
        """``sum_ij K_ij L_ij``, both made in the same pass."""
        self._same_shape(other)
        return kernel_verbs.inner(self, other)

    # ---- reductions ------------------------------------------------------------------------

    def sum(self, axis: int | None = None) -> Array:
        """Sum of all entries, of each column (``axis=0``) or of each row (``axis=1``)."""
        axis = checked_axis(axis)
        if axis is None:
            return kernel_verbs.total(self)
        return kernel_verbs.row_sums(self if axis == 1 else self.T)

    def mean(self, axis: int | None = None) -> Array:
        """Mean of the entries that are not left out; zero where all are.

        Weights multiply entries; what is divided by is the number of entries.
        """
        axis = checked_axis(axis)
        sums = self.sum(axis)
        return sums / jnp.maximum(self.counts(axis), 1).astype(sums.dtype)

    def logsumexp(self, axis: int | None = None) -> Array:
        """Logarithm of the sum of entries, all, of each column (0) or of each row (1).

        ``logsumexp`` of the entries' logarithms: where the kernel knows its logarithm
        (``log_tile``), far points whose entries underflow still count. ``-inf`` where everything
        is left out or zero, NaN where an entry is negative.
        """
        axis = checked_axis(axis)
        if axis is None:
            return kernel_verbs.logsumexp(self)
        return kernel_verbs.row_logsumexp(self if axis == 1 else self.T)

    def max(self, axis: int | None = None) -> Array:
        """Greatest entry of all, of each column (0) or of each row (1); ``-inf`` of none."""
        axis = checked_axis(axis)
        values = kernel_verbs.row_max(self.T if axis == 0 else self)
        return jnp.max(values) if axis is None else values

    def top_k(self, k: int, *, largest: bool = True) -> tuple[Array, Array]:
        """The ``k`` greatest entries of each row, greatest first, and their columns.

        Args:
          k: how many, from 1 to the number of columns.
          largest: False for the least entries, least first: the near neighbors by a distance.

        Returns:
          ``(values, indices)``, both ``[n, k]``. Of equal entries the first column wins (in a
          ring, that of the device itself). Where fewer than ``k`` columns are not left out, the
          remaining values are ``-inf`` (``inf`` for the least) and their columns mean nothing.
        """
        if not 1 <= k <= self.shape[1]:
            raise ValueError(f"Expected k from 1 to the {self.shape[1]} columns, got k={k}.")
        return kernel_verbs.top_k(self, k, largest=largest)

    def diagonal(self) -> Array:
        """The entries ``k(x_i, y_i)``: ``[n]``; zero where left out."""
        self._square("diagonal")
        return kernel_verbs.diagonal_of(self)

    def trace(self) -> Array:
        """Sum of the diagonal."""
        self._square("trace")
        return kernel_tiles.pairwise_sum(kernel_verbs.diagonal_of(self))

    def frobenius_norm(self) -> Array:
        """Square root of the sum of all squared entries."""
        return kernel_verbs.frobenius_norm(self)

    def centered_sums(
        self,
        other: "KernelMatrix | None" = None,
        *,
        unbiased: bool = False,
        passes: int = 1,
        weights: ArrayLike | None = None,
    ) -> CenteredSums:
        """Sums of products of double-centered entries of two symmetric matrices.

        With ``n`` points, plain centering takes the means out of rows and columns,

            ``A_ij = K_ij - sum_l K_il / n - sum_l K_lj / n + sum_lm K_lm / n^2``,

        and U-centering (Szekely & Rizzo 2014, eq. 2.2) does so without the diagonal,

            ``A_ij = K_ij - sum_l K_il / (n-2) - sum_l K_lj / (n-2) + sum_lm K_lm / ((n-1)(n-2))``

        for ``i != j``, sums over entries off the diagonal, and ``A_ii = 0``. ``B`` likewise of
        ``other``.

        Args:
          other: ``L``, of as many points; None for ``K`` itself.
          unbiased: U-centering; needs at least 3 points (4 for what is divided by ``n - 3``).
          passes: 1, or 2 to find the means of all rows first: twice the time, for matrices whose
            entries are nearly sums ``a_i + b_j``.
          weights: ``[n]`` weights of the points, >= 0, scaled to mean 1: means are then weighted
            and the sums are ``sum_ij w_i w_j A_ij B_ij``. Not with ``unbiased``.

        Returns:
          `CenteredSums` with ``kl = sum_ij A_ij B_ij``, ``kk`` and ``ll``; points that either
          matrix masks are left out of all sums and of ``n``.

        References:
          Szekely & Rizzo (2014), "Partial Distance Correlation with Methods for Dissimilarities",
          Annals of Statistics 42. :cite:`szekely:14`
        """
        checks.one_of((1, 2), passes=passes)
        other = self if other is None else other
        self._same_shape(other)
        weights = self.checked_centering(other, unbiased, weights)
        return kernel_centering.centered_sums(
            self, other, weights, unbiased=unbiased, passes=passes
        )

    # ---- the whole -------------------------------------------------------------------------

    def materialize(self) -> Array:
        """All entries, ``[n, m]``; zero where left out."""
        return kernel_verbs.entries(self)

    def explain(self) -> kernel_explain.KernelExplanation:
        """Panels, bytes and operations of a pass, and how entries are made. Print it."""
        return kernel_explain.explain(self)

    # ---- other matrices --------------------------------------------------------------------

    def off_diagonal(self) -> "KernelMatrix":
        """The same matrix with the entries ``i, i`` left out, as a mask would: no self-pairs."""
        if self.y is not None:
            raise ValueError("Expected a matrix of points with themselves (y=None).")
        return dataclasses.replace(self, keep_diagonal=False)

    def masked(self, mask: Array) -> "KernelMatrix":
        """The same matrix without the points where ``mask`` is False, in rows and columns."""
        if self.y is not None:
            raise ValueError("Expected a matrix of points with themselves (y=None).")
        both = mask if self.row_mask is None else self.row_mask & mask
        return dataclasses.replace(self, x=without(self.x, both), row_mask=both, column_mask=both)

    # ---- plumbing --------------------------------------------------------------------------

    @property
    def form(self) -> Form:
        """What is static about the entries."""
        return Form(self.y is None, self.keep_diagonal)

    def rows_side(self) -> Side:
        """The rows' points and what goes with them."""
        return Side(self.x, jnp.arange(len(self)), self.row_weights, self.row_mask)

    def columns_side(self) -> Side:
        """The columns' points and what goes with them."""
        points = self.x if self.y is None else self.y
        return Side(points, jnp.arange(points.shape[0]), self.weights, self.column_mask)

    def unsplit(self, *splits: str) -> "KernelMatrix":
        """The same matrix left to the compiler to place, if its points are split like that."""
        if self.placement is None or self.placement.split not in splits:
            return self
        return dataclasses.replace(self, placement=None)

    def checked_centering(self, other: Any, unbiased: bool, weights: Any) -> Array | None:
        """The weights of `centered_sums` as an array; raises ValueError unless all fits."""
        for name, matrix in (("the matrix", self), ("other", other)):
            if not matrix.form.same:
                raise ValueError(f"Expected {name} to compare points with themselves (y=None).")
            if matrix.weights is not None or matrix.row_weights is not None:
                raise ValueError(
                    f"Expected {name} without weights of columns; pass weights= to centered_sums."
                )
            if not matrix.keep_diagonal:
                raise ValueError(f"Expected {name} with its diagonal; unbiased=True leaves it out.")
        if unbiased and len(self) < 3:
            raise ValueError(f"Expected at least 3 points for unbiased=True, got {len(self)}.")
        if weights is None:
            return None
        if unbiased:
            raise ValueError("Expected unbiased=False with weights: U-centering has none.")
        weights = factors(weights, len(self))
        checks.non_negative(weights=weights)
        return weights

    def _turned_placement(self) -> Placement | None:
        # Points compared with themselves are split by rows on either side.
        if self.placement is None or self.y is None:
            return self.placement
        turned = {"rows": "columns", "columns": "rows", "ring": "ring"}[self.placement.split]
        return self.placement._replace(split=turned)

    def counts(self, axis: int | None) -> Array:
        """How many entries each sum has, those left out not counted."""
        rows, columns = self.rows_side(), self.columns_side()
        present = [
            jnp.ones(size, float) if side.mask is None else side.mask.astype(float)
            for side, size in zip((rows, columns), self.shape)
        ]
        if axis == 0:
            present.reverse()
        both = present[0] * present[1] if not self.keep_diagonal else None
        if axis is None:
            all_pairs = jnp.sum(present[0]) * jnp.sum(present[1])
            return all_pairs if both is None else all_pairs - jnp.sum(both)
        counts = present[0] * jnp.sum(present[1])
        return counts if both is None else counts - both

    def _square(self, verb: str) -> None:
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"Expected a square matrix for {verb}, got shape {self.shape}.")

    def _same_shape(self, other: Any) -> None:
        if not isinstance(other, KernelMatrix):
            raise TypeError(f"Expected other to be a KernelMatrix, got {type(other).__name__}.")
        if other.shape != self.shape:
            raise ValueError(f"Expected other to have shape {self.shape}, got {other.shape}.")


def kernel_matrix(
    kernel: Any,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    weights: ArrayLike | None = None,
    mask: Any = None,
    block: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    ring: bool = False,
) -> KernelMatrix:
    """The matrix of a kernel between all pairs of points, lazy and exact.

    .. math:: K_{ij} = k(x_i, y_j)\\, w_j

    Nothing is computed until something is read off; ``n + m`` numbers are then in memory, never
    ``n m``.

    Args:
      kernel: of `gradkin.kernels`, or any function of two points that returns a scalar; a class
        with parameters is a dataclass that `gradkin.pytrees.register_dataclass` registers.
      x: points of the rows, ``[n, ...]``; floats (half precision is widened tile by tile), other
        numbers become floats.
      y: points of the columns, ``[m, ...]``; None compares ``x`` with itself: entries ``i, i`` are
        then exact, and kernels known to be symmetric are their own transpose.
      weights: ``[m]``, multiply columns; any sign, not normalized.
      mask: with ``y=None`` ``[n]`` booleans; else a pair for rows and columns, either may be None.
        Where False, points are left out by selection: entries count as zero in sums and products
        and as absent in means, maxima and logarithms, their results are zero (``-inf``), and what
        they hold is never read, not even NaN.
      block: rows per panel; None takes as many as make a panel of 2 MiB on a processor and of
        128 MiB on an accelerator, at least 32.
      mesh: devices over all of whose axes ``x`` is split by rows; ``y`` is replicated. Taken from
        ``x`` where it is a concrete array with such a sharding; inside `jit` say it, else the
        compiler places the panels as it likes, and may let every device make all of them.
      ring: with a mesh, split ``y`` too and pass its parts from device to device, so that no device
        ever holds all columns.

    Returns:
      A `KernelMatrix`: ``K @ v``, ``v @ K``, ``K.T``, ``K.sum(axis)``, ``K.mean(axis)``,
      ``K.logsumexp(axis)``, ``K.max(axis)``, ``K.top_k(k)``, ``K.diagonal()``, ``K.trace()``,
      ``K.frobenius_norm()``, ``K.inner(L)``, ``K.centered_sums(L)``, ``K.materialize()``,
      ``K.explain()``.

    Raises:
      ValueError: no points, points of different shapes or dtypes, a result that is not a scalar,
        ill-fitting weights, masks or kernel parameters, ``block`` < 1, a mesh that does not divide
        the points, or, where ``x`` and ``y`` are concrete and at most a million numbers, points
        that are not finite (of those not masked).
      TypeError: a kernel that is no function, or a dataclass that is registered otherwise, so that
        JAX may take it for another.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import kernels
      >>> K = gradkin.kernel_matrix(kernels.SquaredEuclidean(), jnp.array([[0.0], [1.0], [3.0]]))
      >>> K.materialize().tolist()
      [[0.0, 1.0, 9.0], [1.0, 0.0, 4.0], [9.0, 4.0, 0.0]]
      >>> (K @ jnp.array([1.0, 0.0, 1.0])).tolist()
      [9.0, 5.0, 9.0]
    """
    if not callable(kernel) and not hasattr(kernel, "tile"):
        raise TypeError(
            f"Expected kernel to be a function of two points, got a {type(kernel).__name__}."
        )
    if jax.tree_util.all_leaves([kernel]):
        if hasattr(kernel, "tile"):
            raise TypeError(
                f"Expected a kernel with a tile to be a pytree, got {type(kernel).__name__}: "
                "register it, by gradkin.pytrees.register_dataclass."
            )
        kernel = kernel_tiles.Function(kernel)
    pytrees.check_told_apart(kernel)
    if block is not None and block < 1:
        raise ValueError(f"Expected block >= 1, got block={block}.")
    placement = placed(x, mesh, ring)
    x = as_points(x, "x")
    y = None if y is None else as_points(y, "y")
    if y is not None and (y.shape[1:], y.dtype) != (x.shape[1:], x.dtype):
        raise ValueError(
            f"Expected x and y to hold points of one shape and dtype, got {x.shape[1:]} of "
            f"{x.dtype} and {y.shape[1:]} of {y.dtype}."
        )
    if hasattr(kernel, "check"):
        kernel.check(x.shape[1:])
    row_mask, column_mask = masks(mask, x, y)
    x = without(x, row_mask)
    y = None if y is None else without(y, column_mask)
    num_columns = (x if y is None else y).shape[0]
    if weights is not None:
        weights = factors(weights, num_columns)
        if column_mask is not None:
            weights = jnp.where(column_mask, weights, 0)
    for name, points in (("x", x), ("y", y)):
        if points is not None:
            finite(points, name)
            if placement is not None and (name == "x" or ring):
                divisible(points, name, placement)
    K = KernelMatrix(kernel, x, y, weights, None, row_mask, column_mask, block, True, placement)
    point = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    result = jax.eval_shape(kernel, point, point)
    if getattr(result, "shape", None) != ():
        raise ValueError(f"Expected kernel to return a scalar for two points, got {result}.")
    return K
