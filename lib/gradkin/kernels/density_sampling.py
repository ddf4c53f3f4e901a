"""Kernel density from a sample of the points, alone or next to the nearest ones."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks, pytrees
from gradkin.kernels.density import (
    DensityEstimate,
    log_normalizer,
    normalized_weights,
    same_space,
)
from gradkin.matrices.contraction import at_least_float32
from gradkin.matrices.kernel import kernel_matrix
from gradkin.matrices.kernel_tiles import Function, fill
from gradkin.matrices.verbs import safe_sqrt
from gradkin.typing import Array, ArrayLike, PRNGKey

# Entries of the largest array of kernel values formed at once.
TILE = 1 << 22


def sampled_density(
    key: PRNGKey,
    kernel: Any,
    points: Float[ArrayLike, "points features"],
    queries: Float[ArrayLike, "queries features"],
    *,
    size: int,
    weights: Float[ArrayLike, " points"] | None = None,
    replace: bool = True,
    block: int | None = None,
) -> DensityEstimate:
    """Kernel density from a random sample of the points, unbiased.

    .. math:: \\hat Z(q) = \\frac1s \\sum_{j \\in S} k(q, x_j)

    The cost does not depend on the number of points. The relative error is about
    ``1 / sqrt(s mu)`` at worst, for a density of ``mu`` in units of the kernel: sampling is for
    densities that many points make up, `neighbor_density` for those that few do.

    Args:
      key: a PRNG key.
      kernel: any kernel; without a known integral the estimate has no ``density()``.
      points: ``[n, d]``.
      queries: ``[m, d]``.
      size: ``s >= 2``, points in the sample; at most n without replacement.
      weights: ``[n]``, as in `log_density`: points are drawn in proportion to them.
      replace: whether a point may be drawn twice. Without replacement (equal weights only) the
        standard error shrinks by ``sqrt(1 - s / n)``, and n points give the exact value.
      block: queries at a time; default as many as keep arrays below 16 MB.

    Returns:
      A `DensityEstimate`. All queries share the sample, so that their errors are correlated.
      Intervals cover as promised where the sample holds points near the query: at least about
      ten, so ``s >= 10 / mu``.

    Raises:
      ValueError: a size out of range, weights without replacement, shapes that do not fit.

    Example:
      >>> import jax
      >>> from gradkin import kernels
      >>> points = jax.random.normal(jax.random.key(0), (10_000, 2))
      >>> kernel, origin = kernels.Gaussian(1.0), points[:1] * 0
      >>> found = kernels.sampled_density(jax.random.key(1), kernel, points, origin, size=500)
      >>> low, high = found.interval()
      >>> bool(low[0] < 0.5 < high[0])  # E exp(-|x|^2 / 2) in two dimensions
      True

    References:
      Karppa, Aumueller & Pagh (2022), "DEANN: Speeding up Kernel-Density Estimation using
      Approximate Nearest Neighbor Search", sec. 2, arXiv:2107.02736. :cite:`karppa:22`

    Note:
      DEANN's code walks through a permutation of the points and gives every query the next ``s``;
      one sample for all makes one product of matrices, with the same error at each query.
    """
    points, queries = same_space(points, queries)
    n = len(points)
    if size < 2 or not (replace or size <= n):
        raise ValueError(f"Expected 2 <= size{'' if replace else f' <= {n} points'}, got {size=}.")
    if weights is not None and not replace:
        raise ValueError("Expected no weights with replace=False, got weights.")
    w = normalized_weights(weights, points)
    kernel = checked_kernel(kernel, points)
    return sampled(key, kernel, points, queries, w, size=size, replace=replace, block=block)


def neighbor_density(
    key: PRNGKey,
    kernel: Any,
    points: Float[ArrayLike, "points features"],
    queries: Float[ArrayLike, "queries features"],
    *,
    neighbors: int | Array | np.ndarray,
    size: int,
    weights: Float[ArrayLike, " points"] | None = None,
    block: int | None = None,
) -> DensityEstimate:
    """Kernel density from near neighbours and a sample of the rest, unbiased (DEANN, alg. 1).

    .. math:: \\hat Z(q) = \\sum_{j \\in N(q)} w_j\\, k(q, x_j)
        + \\Big(1 - \\sum_{j \\in N(q)} w_j\\Big) \\frac1{|S|} \\sum_{j \\in S} k(q, x_j)

    with neighbours N and a random sample S of all other points. The neighbours carry what few
    points contribute, the sample what many do. Neighbours that are missed cost accuracy, never
    the mean: any index will do, such as an `inverted_file`.

    Args:
      key: a PRNG key.
      kernel: any kernel; without a known integral the estimate has no ``density()``.
      points: ``[n, d]``.
      queries: ``[m, d]``.
      neighbors: how many, to find exactly (the cost of an exact density and more); or their
        indices ``[m, k]``, distinct in each row, -1 where there are fewer than k.
      size: ``>= 2``, points drawn from all; those among a query's neighbours do not count for it.
      weights: ``[n]``, as in `log_density`: points are drawn in proportion to them.
      block: queries at a time; default as many as keep arrays below 16 MB.

    Returns:
      A `DensityEstimate`; exact, with no error, where the neighbours are all points. Where fewer
      than two sampled points are not neighbours, the rest is not known: NaN, infinite error.
      The standard error is that of the sample's mean, and in quadrature what one more sampled point
      as near as the farthest neighbour would add: a sample may hold none of the points that
      matter and vary by nothing. Intervals are still too short where few points make up the sum (a
      mean kernel of less than about ``10 / n``), most of all with a rough index.

    Raises:
      ValueError: a number out of range, indices of another shape, repeated or out of range.

    Example:
      >>> import jax
      >>> from gradkin import kernels
      >>> points = jax.random.normal(jax.random.key(0), (10_000, 2))
      >>> kernel, query = kernels.Gaussian(0.02), points[:1] * 0
      >>> found = kernels.neighbor_density(
      ...     jax.random.key(1), kernel, points, query, neighbors=20, size=100)
      >>> alone = kernels.sampled_density(jax.random.key(1), kernel, points, query, size=120)
      >>> bool(found.relative_error()[0] < alone.relative_error()[0])
      True

    References:
      Karppa, Aumueller & Pagh (2022), sec. 3, arXiv:2107.02736. :cite:`karppa:22`

    Note:
      DEANN's code draws each query's sample anew until no neighbour is in it. Here all queries
      share one sample and leave their neighbours out, so that ``|S|`` varies; given their number
      the rest is a random sample of the complement, so the mean is exact too.
    """
    points, queries = same_space(points, queries)
    n = len(points)
    if size < 2:
        raise ValueError(f"Expected size >= 2, got {size=}.")
    w = normalized_weights(weights, points)
    kernel = checked_kernel(kernel, points)
    if isinstance(neighbors, int | np.integer):
        if not 1 <= neighbors <= n:
            raise ValueError(f"Expected 1 <= neighbors <= {n} points, got {neighbors=}.")
        _, nearest = kernel_matrix(kernel, queries, points).top_k(neighbors)
    else:
        nearest = checked_neighbors(neighbors, len(queries), n)
    return next_to_neighbors(key, kernel, points, queries, nearest, w, size=size, block=block)


@functools.partial(jax.jit, inline=True, static_argnames=("size", "replace", "block"))
def sampled(
    key: Any,
    kernel: Any,
    points: Array,
    queries: Array,
    weights: Array | None,
    *,
    size: int,
    replace: bool,
    block: int | None,
) -> DensityEstimate:
    """What `sampled_density` computes."""
    n = len(points)
    kept = points[draw(key, n, size, weights, replace)]

    def moments(query: Array) -> tuple[Array, Array]:
        values = kernel_row(kernel, query, kept)
        mean = jnp.mean(values)
        return mean, jnp.sum(jnp.square(values - mean[None])) / (size - 1)

    mean, variance = by_query(moments, queries, size, block)
    error = safe_sqrt(variance * ((1.0 if replace else 1 - size / n) / size))
    return DensityEstimate(mean, error, integral(kernel, points))


@functools.partial(jax.jit, inline=True, static_argnames=("size", "block"))
def next_to_neighbors(
    key: Any,
    kernel: Any,
    points: Array,
    queries: Array,
    nearest: Array,
    weights: Array | None,
    *,
    size: int,
    block: int | None,
) -> DensityEstimate:
    """What `neighbor_density` computes, of given neighbours."""
    n, dim = points.shape
    rows = draw(key, n, size, weights, True)
    kept = points[rows]
    # The first place in the sample of each point, and of each place: neighbours are looked up.
    first = jnp.full(n, size, jnp.int32).at[rows].min(jnp.arange(size, dtype=jnp.int32))
    same = first[rows]

    def both(query: Array, near: Array) -> tuple[Array, Array]:
        valid = near >= 0
        at = jnp.where(valid, near, jnp.zeros_like(near))
        dtype = at_least_float32(points.dtype)
        shares = jnp.full(len(near), 1 / n, dtype) if weights is None else weights[at]
        shares = jnp.where(valid, shares, jnp.zeros_like(shares))
        near_values = kernel_row(kernel, query, points[at])
        head = jnp.sum(shares * near_values)
        rest = 1 - jnp.sum(shares)
        # Points that are not in the sample share a place behind it.
        places = jnp.where(valid, first[at], jnp.full_like(first[at], size))
        other = ~jnp.zeros(size + 1, bool).at[places].set(True)[same]
        values = kernel_row(kernel, query, kept)
        count = jnp.sum(other.astype(values.dtype))
        # Fewer than two would divide by zero; what comes of it is replaced below.
        mean = jnp.sum(jnp.where(other, values, jnp.zeros_like(values))) / jnp.maximum(count, 1)
        away = jnp.where(other, values - mean[None], jnp.zeros_like(values))
        variance = jnp.sum(jnp.square(away)) / jnp.maximum(count - 1, 1)
        # One more point, as near as the farthest neighbour, would move the mean by this.
        edge = jnp.min(jnp.where(valid, near_values, jnp.full_like(near_values, jnp.inf)))
        edge = jnp.where(jnp.any(valid), edge, jnp.zeros_like(edge)) / jnp.maximum(count, 1)
        error = rest * safe_sqrt(variance / jnp.maximum(count, 1) + jnp.square(edge))
        tail = jnp.where(count >= 2, rest * mean, jnp.full_like(head, jnp.nan))
        error = jnp.where(count >= 2, error, jnp.full_like(error, jnp.inf))
        complete, zero = jnp.sum(valid) == n, jnp.zeros_like(head)
        return head + jnp.where(complete, zero, tail), jnp.where(complete, zero, error)

    mean, error = by_query(both, (queries, nearest), size + nearest.shape[1] * dim, block)
    return DensityEstimate(mean, error, integral(kernel, points))


def draw(key: PRNGKey, n: int, size: int, weights: Array | None, replace: bool) -> Array:
    """``[size]`` indices of a random sample of ``n`` points."""
    if weights is None and replace:
        return jax.random.randint(key, (size,), 0, n)
    return jax.random.choice(key, n, (size,), replace=replace, p=weights)


def kernel_row(kernel: Any, query: Array, points: Array) -> Array:
    """``[n]``, the kernel of one query with each point."""
    return fill(kernel, log=False)(query[None], points)[0]


def by_query(f: Any, queries: Any, width: int, block: int | None = None) -> Any:
    """``f`` of each query, ``block`` at once; by default as many as make a tile.

    Where that is all of them there is no loop, and queries may be sharded.
    """
    arguments = queries if isinstance(queries, tuple) else (queries,)
    at_once = max(1, TILE // width) if block is None else block
    if len(arguments[0]) <= at_once:
        return jax.vmap(f)(*arguments)
    return jax.lax.map(lambda each: f(*each), arguments, batch_size=at_once)


def checked_kernel(kernel: Any, points: Array) -> Any:
    """The kernel as a pytree, its parameters checked."""
    if hasattr(kernel, "check"):
        kernel.check(points.shape[1:])
    pytrees.check_told_apart(kernel)
    return Function(kernel) if jax.tree_util.all_leaves([kernel]) else kernel


def integral(kernel: Any, points: Array) -> Array | None:
    """Logarithm of the kernel's integral, None where it is not known."""
    try:
        return log_normalizer(kernel, points.shape[1]).astype(at_least_float32(points.dtype))
    except ValueError:
        return None


def checked_neighbors(neighbors: Any, num_queries: int, n: int) -> Array:
    """Indices of neighbours, checked where they can be read."""
    shape = np.shape(neighbors)
    if len(shape) != 2 or shape[0] != num_queries or not 1 <= shape[1] <= n:
        raise ValueError(
            f"Expected neighbors of shape ({num_queries}, k), 1 <= k <= {n}, got {shape}."
        )
    if not jnp.issubdtype(jnp.result_type(neighbors), jnp.integer):
        raise ValueError(f"Expected integer neighbors, got {jnp.result_type(neighbors)}.")
    if checks.is_concrete(neighbors):
        rows = np.sort(np.asarray(neighbors), axis=1)
        if rows.max() >= n or rows.min() < -1:
            raise ValueError(f"Expected neighbors in [-1, {n}), got {rows.min()} to {rows.max()}.")
        if np.any((rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)):
            raise ValueError("Expected distinct neighbors of each query, got one twice.")
    return jnp.asarray(neighbors)
