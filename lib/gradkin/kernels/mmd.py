"""Maximum mean discrepancy: how far apart two samples are, as a kernel sees them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin.matrices.kernel import kernel_matrix
from gradkin.matrices.kernel_arguments import as_points, probabilities
from gradkin.matrices.kernel_tiles import Function, fill, pairwise_sum
from gradkin.typing import Array, ArrayLike

Pair = tuple[Any, Any]
# Numbers in the tiles of the blocks that are worked on at a time.
BLOCK_NUMBERS = 2**22


class MeanEstimate(NamedTuple):
    """The mean of independent, equally distributed terms.

    Attributes:
      value: the mean.
      standard_error: its standard deviation, estimated from the terms; NaN of a single term.
    """

    value: Array
    standard_error: Array


def squared_mmd(
    kernel: Any,
    x: ArrayLike,
    y: ArrayLike,
    *,
    unbiased: bool = False,
    weights: Pair = (None, None),
    mask: Pair = (None, None),
    block: int | None = None,
) -> Float[Array, ""]:
    """Squared maximum mean discrepancy of two samples (Gretton et al. 2012, eqs. 3 and 5).

    .. math:: E\\,k(X, X') + E\\,k(Y, Y') - 2\\, E\\,k(X, Y)

    Differentiable in the points, the weights and the kernel; memory is linear in the number of
    points.

    Args:
      kernel: of `gradkin.kernels`, or any symmetric function of two points.
      x: ``[n]`` or ``[n, ...]`` points.
      y: ``[m]`` or ``[m, ...]`` points of the same shape and dtype.
      unbiased: leave pairs of a point with itself out of the means (eq. 3), so that the expectation
        is exact and the value may be negative; needs two points on either side. False includes
        them (eq. 5): never negative beyond rounding, and positive for equal distributions.
      weights: a pair of ``[n]`` and ``[m]`` weights or None: non-negative, not all zero, divided
        by their sum.
      mask: a pair of ``[n]`` and ``[m]`` booleans or None; False leaves a point out, whatever it
        holds. NaN where fewer points are left than needed.
      block: rows of a tile; chosen automatically.

    Returns:
      A scalar.

    Raises:
      ValueError: fewer points than that, ill-fitting points, weights or masks, a bad bandwidth.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[2.0], [3.0]])
      >>> float(kernels.squared_mmd(kernels.Linear(), x, y))  # the squared distance of the means
      4.0

    References:
      Gretton, Borgwardt, Rasch, Schoelkopf & Smola (2012), "A Kernel Two-Sample Test", JMLR 13.
      :cite:`gretton:12`

    Note:
      With weights the unbiased form divides the weighted sum over pairs of different points by
      ``1 - sum_i p_i^2``.
    """
    x, y = as_points(x, "x"), as_points(y, "y")
    for name, points in (("x", x), ("y", y)):
        if unbiased and len(points) < 2:
            raise ValueError(f"Expected at least 2 points in {name} for unbiased=True, got 1.")
    sides = [(x, weights[0], mask[0], "x"), (y, weights[1], mask[1], "y")]
    shares = [
        None if w is None else probabilities(w, len(p), mask=keep, name=f"the weights of {name}")
        for p, w, keep, name in sides
    ]
    within = []
    for (points, _, keep, _), share in zip(sides, shares):
        K = kernel_matrix(kernel, points, mask=keep, block=block)
        within.append(expectation(K.off_diagonal() if unbiased else K, share, share))
        if unbiased and share is not None:
            within[-1] = within[-1] / (1 - pairwise_sum(jnp.square(share))).astype(K.dtype)
    both = None if mask[0] is None and mask[1] is None else tuple(mask)
    across = expectation(kernel_matrix(kernel, x, y, mask=both, block=block), *shares)
    value = within[0] + within[1] - 2 * across
    for keep in mask:
        if keep is not None:
            enough = jnp.sum(jnp.asarray(keep, bool)) >= (2 if unbiased else 1)
            value = jnp.where(enough, value, jnp.full_like(value, jnp.nan))
    return value


def expectation(K: Any, p: Array | None, q: Array | None) -> Array:
    """``p^T K q``; without weights the mean of the entries that are not left out."""
    if p is None and q is None:
        return K.mean()
    means = K.mean(axis=1) if q is None else K @ q.astype(K.dtype)
    if p is None:
        keep = jnp.ones(len(K), bool) if K.row_mask is None else K.row_mask
        return pairwise_sum(jnp.where(keep, means, 0)) / pairwise_sum(keep.astype(K.dtype))
    return pairwise_sum(p.astype(K.dtype) * means)


def linear_squared_mmd(kernel: Any, x: ArrayLike, y: ArrayLike) -> MeanEstimate:
    """Squared MMD in linear time, with its standard error (Gretton et al. 2012, lemma 14).

    The mean of ``k(x, x') + k(y, y') - k(x, y') - k(x', y)`` over pairs of neighbours in the
    samples. Unbiased, and far noisier than `squared_mmd`: for streams of data.

    Args:
      kernel: of `gradkin.kernels`, or any symmetric function of two points.
      x: ``[n]`` or ``[n, ...]`` points in random order, n even.
      y: as many points of the same shape and dtype.

    Returns:
      The estimate and its standard error.

    Raises:
      ValueError: different or odd numbers of points, or points that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x, y = jnp.array([[0.0], [1.0], [0.0], [2.0]]), jnp.array([[2.0], [3.0], [1.0], [1.0]])
      >>> estimate = kernels.linear_squared_mmd(kernels.Linear(), x, y)
      >>> float(estimate.value), float(estimate.standard_error)
      (1.5, 2.5)

    References:
      Gretton, Borgwardt, Rasch, Schoelkopf & Smola (2012), "A Kernel Two-Sample Test", JMLR 13.
      :cite:`gretton:12`
    """
    x, y = in_blocks(x, y, 2)
    x1, x2, y1, y2 = x[:, 0], x[:, 1], y[:, 0], y[:, 1]
    k = jax.vmap(kernel)
    return mean_estimate(k(x1, x2) + k(y1, y2) - k(x1, y2) - k(x2, y1))


def block_squared_mmd(kernel: Any, x: ArrayLike, y: ArrayLike, *, block_size: int) -> MeanEstimate:
    """Squared MMD as the mean over blocks, with its standard error (Zaremba et al. 2013, eq. 6).

    The unbiased estimates of blocks of ``block_size`` points of either sample are averaged: between
    the linear-time estimate and `squared_mmd` in cost, n times the size of a block, and in noise.

    Args:
      kernel: of `gradkin.kernels`, or any symmetric function of two points.
      x: ``[n]`` or ``[n, ...]`` points in random order.
      y: as many points of the same shape and dtype.
      block_size: points of a block, at least 2; divides n.

    Returns:
      The estimate and its standard error.

    Raises:
      ValueError: different numbers of points, a ``block_size`` that does not divide them.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x, y = jnp.array([[0.0], [1.0], [0.0], [2.0]]), jnp.array([[2.0], [3.0], [1.0], [1.0]])
      >>> estimate = kernels.block_squared_mmd(kernels.Linear(), x, y, block_size=4)
      >>> round(float(estimate.value), 4)  # of one block, there is no error to tell
      0.5417

    References:
      Zaremba, Gretton & Blaschko (2013), "B-tests: Low Variance Kernel Two-Sample Tests", NeurIPS.
      :cite:`zaremba:13`
    """
    if block_size < 2:
        raise ValueError(f"Expected block_size >= 2, got block_size={block_size}.")
    x, y = in_blocks(x, y, block_size)
    if jax.tree_util.all_leaves([kernel]):
        kernel = Function(kernel)
    return mean_estimate(block_estimates(kernel, x, y))


@jax.jit
def block_estimates(kernel: Any, x: Array, y: Array) -> Array:
    """Unbiased squared MMD of each block, of points ``[blocks, size, ...]``."""
    size = x.shape[1]
    tile = fill(kernel, log=False)
    off = ~jnp.eye(size, dtype=bool)

    def one(pair: tuple[Array, Array]) -> Array:
        a, b = pair
        within = jnp.mean(tile(a, a), where=off) + jnp.mean(tile(b, b), where=off)
        return within - 2 * jnp.mean(tile(a, b))

    batch = max(1, BLOCK_NUMBERS // size**2)
    return jax.lax.map(one, (x, y), batch_size=min(batch, len(x)))


def in_blocks(x: Any, y: Any, size: int) -> tuple[Array, Array]:
    """The points of both samples as ``[n / size, size, ...]``, checked."""
    x, y = as_points(x, "x"), as_points(y, "y")
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        raise ValueError(
            f"Expected x and y of one shape and dtype, got {x.dtype}{list(x.shape)} and "
            f"{y.dtype}{list(y.shape)}."
        )
    if len(x) % size:
        raise ValueError(f"Expected a multiple of {size} points, got {len(x)}; leave some out.")
    return tuple(a.reshape((-1, size, *a.shape[1:])) for a in (x, y))  # type: ignore[return-value]


def mean_estimate(terms: Array) -> MeanEstimate:
    """The mean of independent terms and its standard error."""
    mean = jnp.mean(terms)
    if len(terms) < 2:
        return MeanEstimate(mean, jnp.full_like(mean, jnp.nan))
    return MeanEstimate(mean, jnp.std(terms, ddof=1) / math.sqrt(len(terms)))
