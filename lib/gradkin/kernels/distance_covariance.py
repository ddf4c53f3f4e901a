"""Distance covariance and correlation: dependence of any kind between vectors of any sizes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import chi2
from jax.sharding import NamedSharding
from jaxtyping import Float

from gradkin import checks
from gradkin.kernels.centered import MINIMUM, check_matrices, count
from gradkin.kernels.cka import HSICStats
from gradkin.kernels.functions import Euclidean
from gradkin.kernels.univariate import pair_sums
from gradkin.matrices import distances
from gradkin.matrices.kernel import kernel_matrix
from gradkin.matrices.kernel_arguments import finite, probabilities
from gradkin.matrices.kernel_tiles import pairwise_sum
from gradkin.typing import Array, ArrayLike, Scalar

METHODS = ("auto", "tiles", "sort")
# From here on sorting is faster.
SORTED_FROM = 1000


def squared_distance_covariance(
    x: ArrayLike,
    y: ArrayLike,
    *,
    unbiased: bool = False,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    method: str = "auto",
    block: int | None = None,
) -> Float[Array, ""]:
    """Squared distance covariance (Szekely, Rizzo & Bakirov 2007; Szekely & Rizzo 2014, eq. 2.5).

    .. math:: \\frac{1}{n^2} \\sum_{i,j} A_{ij} B_{ij}
        \\quad \\text{or, unbiased,} \\quad
        \\frac{1}{n(n-3)} \\sum_{i \\neq j} A_{ij} B_{ij}

    with ``A`` and ``B`` the double-centered, or U-centered, matrices of distances. Zero in
    population if and only if the variables are independent. Differentiable, where distances are
    zero with derivative zero; memory is linear in the number of points.

    Args:
      x: ``[n]`` or ``[n, ...]`` points.
      y: ``[n]`` or ``[n, ...]``, paired with them.
      unbiased: the second form, which may be negative and needs 4 points; the first needs 2.
      weights: ``[n]`` weights of the points: non-negative, not all zero, divided by their sum. Not
        with ``unbiased``.
      mask: ``[n]`` booleans; False leaves a point out, whatever it holds. NaN where too few are
        left.
      method: "tiles" streams all pairs; "sort" takes ``n log n`` steps, for two variables of one
        number each, without weights and mask, on one device; "auto" sorts where it can and
        n >= 1000.
      block: rows of a tile; chosen automatically.

    Returns:
      A scalar, the square; in the units of ``|x| |y|``.

    Raises:
      ValueError: different or too few points, bad weights, a method that does not apply.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.array([0.0, 1.0, 2.0, 4.0])
      >>> round(float(kernels.squared_distance_covariance(x, x)), 4)
      1.3906

    References:
      Szekely, Rizzo & Bakirov (2007), "Measuring and Testing Dependence by Correlation of
      Distances", Annals of Statistics 35. :cite:`szekely:07`

      Szekely & Rizzo (2014), "Partial Distance Correlation with Methods for Dissimilarities",
      Annals of Statistics 42. :cite:`szekely:14`

    Note:
      ``dcor.distance_covariance_sqr`` and ``dcor.u_distance_covariance_sqr`` return the same.
    """
    options: Any = {"weights": weights, "mask": mask, "method": method, "block": block}
    return distance_stats(x, y, unbiased=unbiased, **options).kl


def squared_distance_correlation(
    x: ArrayLike,
    y: ArrayLike,
    *,
    unbiased: bool = False,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    method: str = "auto",
    block: int | None = None,
) -> Float[Array, ""]:
    """Squared distance correlation: the covariance over the root of both variances.

    Args:
      x: ``[n]`` or ``[n, ...]`` points.
      y: ``[n]`` or ``[n, ...]``, paired with them.
      unbiased: the ratio of unbiased estimates, in [-1, 1]; False gives one in [0, 1], which is far
        from 0 where the number of points is not large against that of features.
      weights: see `squared_distance_covariance`.
      mask: see `squared_distance_covariance`.
      method: see `squared_distance_covariance`.
      block: rows of a tile; chosen automatically.

    Returns:
      A scalar, the square; 0 where all points of a variable agree. Invariant to shifts, rotations
      and scales of either.

    Raises:
      ValueError: different or too few points, bad weights, a method that does not apply.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.array([0.0, 1.0, 2.0, 4.0])
      >>> round(float(kernels.squared_distance_correlation(x, 3.0 - 2.0 * x)), 4)
      1.0

    References:
      Szekely, Rizzo & Bakirov (2007), "Measuring and Testing Dependence by Correlation of
      Distances", Annals of Statistics 35, definition 5. :cite:`szekely:07`
    """
    options: Any = {"weights": weights, "mask": mask, "method": method, "block": block}
    return distance_stats(x, y, unbiased=unbiased, **options).cka()


def independence_p_value(correlation: Scalar, *, num_points: int) -> Float[Array, ""]:
    """Chi-squared p-value of a distance correlation (Shen, Panda & Vogelstein 2022, sec. 3).

    .. math:: P(\\chi^2_1 \\geq n R + 1)

    Costs nothing beside the correlation, where `independence_test` needs permutations; valid for
    levels up to about 0.05 and conservative.

    Args:
      correlation: R, the *unbiased* squared distance correlation of the sample.
      num_points: n, at least 4.

    Returns:
      The p-value, at most 1; 1 where ``n R < -1``.

    Raises:
      ValueError: fewer points than that.

    Example:
      >>> from gradkin import kernels
      >>> round(float(kernels.independence_p_value(0.02, num_points=200)), 4)
      0.0253

    References:
      Shen, Panda & Vogelstein (2022), "The Chi-Square Test of Distance Correlation", Journal of
      Computational and Graphical Statistics 31. :cite:`shen:22`
    """
    if num_points < MINIMUM[True]:
        raise ValueError(f"Expected num_points >= 4, got num_points={num_points}.")
    statistic = jnp.asarray(correlation) * num_points + 1
    return chi2.sf(jnp.maximum(statistic, jnp.zeros_like(statistic)), 1)


def distance_stats(
    x: Any,
    y: Any,
    *,
    unbiased: bool,
    weights: Any = None,
    mask: Any = None,
    method: str = "auto",
    block: int | None = None,
) -> HSICStats:
    """Squared distance covariance of two variables and of each with itself."""
    checks.one_of(METHODS, method=method)
    x, y = jnp.asarray(x), jnp.asarray(y)
    sortable = x.size == len_of(x, "x") and y.size == len_of(y, "y") and len(x) == len(y)
    plain = weights is None and mask is None and not split(x) and not split(y)
    if method == "sort" and not (sortable and plain):
        raise ValueError(
            "Expected two paired variables of one number each, without weights and mask, on one "
            f"device, for method='sort'; got {x.shape} and {y.shape}."
        )
    if method == "sort" or (method == "auto" and sortable and plain and len(x) >= SORTED_FROM):
        if len(x) < MINIMUM[unbiased]:
            raise ValueError(
                f"Expected at least {MINIMUM[unbiased]} points for unbiased={unbiased}, got "
                f"{len(x)}."
            )
        for name, points in (("x", x), ("y", y)):
            finite(points, name)
        return sorted_stats(x, y, unbiased=unbiased)
    K, L = (kernel_matrix(Euclidean(), points, mask=mask, block=block) for points in (x, y))
    check_matrices((K, L), unbiased=unbiased)
    if weights is not None:
        weights = probabilities(weights, len(K), mask=mask)
    sums = K.centered_sums(L, unbiased=unbiased, weights=weights)
    n = count((K, L), sums.kl.dtype, unbiased=unbiased)
    scale = n * (n - 3) if unbiased else n * n
    return HSICStats(sums.kl / scale, sums.kk / scale, sums.ll / scale)


@functools.partial(jax.jit, static_argnames="unbiased", inline=True)
def sorted_stats(x: Array, y: Array, *, unbiased: bool) -> HSICStats:
    """The same of two variables of one number each, by sorting."""
    x, y = (jnp.ravel(distances.points(z)) for z in (x, y))
    dtype = np.promote_types(x.dtype, y.dtype)
    x, y = x.astype(dtype), y.astype(dtype)
    # A Python number: n (n - 3) does not fit 32 bits from n = 46,343 on.
    n = float(len(x))
    sums = pair_sums(x, y)
    squares = tuple(n * (jnp.square(z - jnp.mean(z)) + jnp.var(z)) for z in (x, y))
    rows, whole, scale = (n - 2, (n - 1) * (n - 2), n - 3) if unbiased else (n, n * n, n)

    def centered(products: Array, a: Array, b: Array) -> Array:
        # Point by point: the parts of a sum over all would be far larger than what is left.
        total = pairwise_sum(a) * (pairwise_sum(b) / (n * whole))
        return pairwise_sum(products - 2 * a * (b / rows) + total) / n / scale

    return HSICStats(
        centered(sums.ab, sums.a, sums.b),
        centered(squares[0], sums.a, sums.a),
        centered(squares[1], sums.b, sums.b),
    )


def len_of(points: Array, name: str) -> int:
    """The number of points."""
    if points.ndim == 0:
        raise ValueError(f"Expected {name} to hold points, got a scalar.")
    return len(points)


def split(x: Array) -> bool:
    """Whether a concrete array is known to lie on several devices."""
    sharding = getattr(x, "sharding", None) if checks.is_concrete(x) else None
    return isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated
