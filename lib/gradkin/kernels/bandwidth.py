"""Bandwidths of a kernel density: by the normal distribution, or by leaving points out."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.kernels.density import as_points, log_normalizer, normalized_weights
from gradkin.matrices import distances
from gradkin.matrices.contraction import at_least_float32
from gradkin.matrices.kernel import kernel_matrix
from gradkin.typing import Array, ArrayLike


def scott_bandwidth(
    points: Float[ArrayLike, "points features"],
    *,
    weights: Float[ArrayLike, " points"] | None = None,
) -> Float[Array, " features"]:
    """Scott's rule (Scott 1992, eq. 6.42), for a Gaussian kernel and data that are nearly normal.

    .. math:: h_j = n^{-1/(d+4)}\\, \\sigma_j

    Args:
      points: ``[n, d]``, n >= 2.
      weights: ``[n]``, as in `log_density`; n becomes ``1 / sum_i w_i^2``.

    Returns:
      ``[d]``, one bandwidth for each coordinate; 0, which no kernel takes, where a coordinate does
      not vary.

    Raises:
      ValueError: fewer than two points, or bad weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> points = jnp.arange(32.0)[:, None]
      >>> round(float(kernels.scott_bandwidth(points)[0]), 2)  # 9.38 / 32^(1/5)
      4.69

    References:
      Scott (1992), "Multivariate Density Estimation", Wiley. :cite:`scott:92`
    """
    points, sd, count = spread(points, weights)
    return sd * count ** (-1 / (points.shape[1] + 4))


def silverman_bandwidth(
    points: Float[ArrayLike, "points features"],
    *,
    weights: Float[ArrayLike, " points"] | None = None,
) -> Float[Array, " features"]:
    """Silverman's rule (Silverman 1986, eq. 4.14), optimal for normal data and a Gaussian kernel.

    .. math:: h_j = \\Big(\\frac{4}{n\\,(d + 2)}\\Big)^{1/(d+4)} \\sigma_j

    Args:
      points: ``[n, d]``, n >= 2.
      weights: ``[n]``, as in `log_density`; n becomes ``1 / sum_i w_i^2``.

    Returns:
      ``[d]``, one bandwidth for each coordinate, as in `scott_bandwidth`.

    Raises:
      ValueError: fewer than two points, or bad weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> points = jnp.stack([jnp.arange(32.0), 2 * jnp.arange(32.0)], axis=1)
      >>> [round(float(h), 2) for h in kernels.silverman_bandwidth(points)]
      [5.26, 10.53]

    References:
      Silverman (1986), "Density Estimation for Statistics and Data Analysis", Chapman and Hall.
      :cite:`silverman:86`

    Note:
      Both rules smooth away the modes of data that have several: cross-validate there.
    """
    points, sd, count = spread(points, weights)
    dim = points.shape[1]
    return sd * (count * (dim + 2) / 4) ** (-1 / (dim + 4))


def leave_one_out_log_likelihood(
    kernel: Any,
    points: Float[ArrayLike, "points features"],
    *,
    weights: Float[ArrayLike, " points"] | None = None,
    block: int | None = None,
) -> Float[Array, ""]:
    """Mean log-density of each point under all others (Habbema et al. 1974; Duin 1976).

    .. math:: \\frac1n \\sum_i \\log \\frac{1}{(n - 1) \\int k} \\sum_{j \\ne i} k(x_i, x_j)

    One streaming pass; the point itself is left out of the sum, not subtracted from it, so that
    lonely points keep their digits. Differentiable in the bandwidth.

    Args:
      kernel: as in `log_density`.
      points: ``[n, d]``, n >= 2.
      weights: ``[n]``, as in `log_density`: they weigh both the points and the mean. At least two
        must be positive. A weight of 2 is not two equal points: these vouch for each other.
      block: points at a time; chosen automatically.

    Returns:
      A scalar; minus infinity where a kernel vanishes.

    Raises:
      ValueError: too few points, a kernel without an integral, bad weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> points = jnp.array([[0.0], [1.0]])  # log of the normal density at 1
      >>> round(float(kernels.leave_one_out_log_likelihood(kernels.Gaussian(1.0), points)), 4)
      -1.4189

    References:
      Habbema, Hermans & van den Broek (1974), "A Stepwise Discriminant Analysis Program Using
      Density Estimation", COMPSTAT. :cite:`habbema:74`
      Duin (1976), "On the Choice of Smoothing Parameters for Parzen Estimators of Probability
      Density Functions", IEEE Transactions on Computers 25. :cite:`duin:76`
    """
    points = as_points(points=points)
    n, dim = points.shape
    if n < 2:
        raise ValueError(f"Expected at least 2 points, got points.shape={points.shape}.")
    constant = log_normalizer(kernel, dim)
    w = normalized_weights(weights, points)
    if weights is not None and checks.is_concrete(weights) and np.count_nonzero(weights) < 2:
        raise ValueError("Expected at least 2 positive weights.")
    K = kernel_matrix(kernel, points, weights=w, block=block)
    totals = K.off_diagonal().logsumexp(axis=1)
    if w is None:
        return jnp.mean(totals) - math.log(n - 1) - constant.astype(totals.dtype)
    zero = w == 0
    each = totals - jnp.log1p(-w) - constant.astype(totals.dtype)
    return jnp.sum(jnp.where(zero, jnp.zeros_like(each), w * each))


class BandwidthSearch(NamedTuple):
    """What `cross_validated_bandwidth` found.

    Attributes:
      bandwidth: the best of `bandwidths`.
      bandwidths: ``[b]`` or ``[b, d]``, as given.
      log_likelihoods: ``[b]``, the mean log-density of points left out.
    """

    bandwidth: Array
    bandwidths: Array
    log_likelihoods: Array


def cross_validated_bandwidth(
    make_kernel: Callable[[Array], Any],
    points: Float[ArrayLike, "points features"],
    bandwidths: ArrayLike,
    *,
    weights: Float[ArrayLike, " points"] | None = None,
    block: int | None = None,
) -> BandwidthSearch:
    """The bandwidth under which points are likeliest given the others, from a list of candidates.

    One streaming pass for all candidates: each tile of distances is computed once.

    Args:
      make_kernel: bandwidth -> kernel, such as `Gaussian` itself.
      points: ``[n, d]``, n >= 2.
      bandwidths: ``[b]``, positive; or ``[b, d]``, candidates with one bandwidth for each
        coordinate (distances are then computed for each).
      weights: as in `leave_one_out_log_likelihood`.
      block: points at a time; default such that the panels of all candidates take about 16 MB.

    Returns:
      A `BandwidthSearch`. A best candidate at an end of the list asks for a longer list.

    Raises:
      ValueError: no candidates, a candidate that is not positive, and as in
        `leave_one_out_log_likelihood`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> points = jax.random.normal(jax.random.key(0), (400, 1))
      >>> grid = jnp.array([0.03, 0.1, 0.3, 1.0, 3.0])
      >>> found = kernels.cross_validated_bandwidth(kernels.Gaussian, points, grid)
      >>> round(float(found.bandwidth), 2), found.log_likelihoods.shape
      (0.3, (5,))

    References:
      Habbema, Hermans & van den Broek (1974). :cite:`habbema:74`

    Note:
      The likelihood is ruled by the loneliest points, and equal points drive a Gaussian's
      bandwidth to 0 (a point's twin stays when it is left out): it suits data without ties and
      kernels with tails at least as heavy as theirs.
    """
    points = as_points(points=points)
    bandwidths = jnp.asarray(bandwidths, at_least_float32(points.dtype))
    if bandwidths.ndim not in (1, 2) or bandwidths.size == 0:
        raise ValueError(f"Expected bandwidths [b] or [b, d], got shape {bandwidths.shape}.")
    checks.positive(bandwidths=bandwidths)
    if block is None:
        block = max(1, min(len(points), (1 << 22) // (len(points) * len(bandwidths))))

    def score(bandwidth: Array) -> Array:
        kernel = make_kernel(bandwidth)
        return leave_one_out_log_likelihood(kernel, points, weights=weights, block=block)

    likelihoods = jax.vmap(score)(bandwidths)
    return BandwidthSearch(bandwidths[jnp.argmax(likelihoods)], bandwidths, likelihoods)


def spread(points: Any, weights: Any) -> tuple[Array, Array, Array]:
    """Points, unbiased standard deviations ``[d]``, and the effective number of points."""
    points = distances.points(as_points(points=points))
    if len(points) < 2:
        raise ValueError(f"Expected at least 2 points, got points.shape={points.shape}.")
    w = normalized_weights(weights, points)
    w = jnp.full(len(points), 1 / len(points), points.dtype) if w is None else w
    squares = jnp.sum(jnp.square(w))
    mean = jnp.sum(w[:, None] * points, axis=0)
    variance = jnp.sum(w[:, None] * jnp.square(points - mean[None]), axis=0) / (1 - squares)
    return points, jnp.sqrt(variance), 1 / squares
