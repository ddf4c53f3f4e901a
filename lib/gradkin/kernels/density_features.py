"""Kernel density by random Fourier features: the data are read once, then forgotten."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin.kernels.density import DensityEstimate, normalized_weights, same_space
from gradkin.kernels.density_sampling import by_query, checked_kernel, integral
from gradkin.kernels.features import draw_frequencies
from gradkin.kernels.functions import scaled
from gradkin.matrices import distances
from gradkin.matrices.kernel import kernel_matrix
from gradkin.matrices.verbs import safe_sqrt
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, ArrayLike, PRNGKey


def feature_density(
    key: PRNGKey,
    kernel: Any,
    points: Float[ArrayLike, "points features"],
    queries: Float[ArrayLike, "queries features"],
    *,
    size: int,
    orthogonal: bool = False,
    weights: Float[ArrayLike, " points"] | None = None,
    block: int | None = None,
) -> DensityEstimate:
    """Kernel density by random Fourier features, unbiased (Rahimi & Recht 2007).

    .. math:: \\hat Z(q)
        = \\frac{2}{D} \\sum_{r=1}^{D/2} \\sum_j w_j \\cos \\langle \\omega_r, q - x_j \\rangle

    The inner sums are ``D`` numbers, made in one streaming pass over the points; a query costs
    ``O(D d)`` whatever their number. The standard error is at most about ``1 / sqrt(D)``, absolute
    and not relative to the density: features are for many queries where the density is high.

    Args:
      key: a PRNG key, for the frequencies.
      kernel: `Gaussian`, `Laplacian`, `Exponential` or `Cauchy`.
      points: ``[n, d]``.
      queries: ``[m, d]``.
      size: ``D``, even and >= 4: a cosine and a sine per frequency. With ``orthogonal`` a multiple
        of ``2 d``, at least twice that.
      orthogonal: draw frequencies in groups of d orthogonal ones (Yu et al. 2016). For a single
        near point this shrinks the error by ``sqrt(3 / (d + 2))``; for a cloud around the query,
        alike in all directions, by nothing. For kernels of the Euclidean distance.
      weights: ``[n]``, as in `log_density`.
      block: queries at a time; default as many as keep arrays below 16 MB.

    Returns:
      A `DensityEstimate`. Its standard error comes from the spread over frequencies, or over
      orthogonal groups, so intervals cover as promised from about 30 of these on. All queries share
      the frequencies. An estimate of a density below the error may be negative.

    Raises:
      ValueError: a size out of range, a kernel without frequencies, shapes that do not fit.

    Example:
      >>> import jax
      >>> from gradkin import kernels
      >>> points = jax.random.normal(jax.random.key(0), (10_000, 2))
      >>> kernel, origin = kernels.Gaussian(1.0), points[:1] * 0
      >>> found = kernels.feature_density(jax.random.key(1), kernel, points, origin, size=512)
      >>> low, high = found.interval()
      >>> bool(low[0] < 0.5 < high[0])  # E exp(-|x|^2 / 2) in two dimensions
      True

    References:
      Rahimi & Recht (2007), "Random Features for Large-Scale Kernel Machines". :cite:`rahimi:07`
      Yu et al. (2016), "Orthogonal Random Features", arXiv:1610.09072. :cite:`yu:16`
    """
    points, queries = same_space(points, queries)
    dim = points.shape[1]
    group = dim if orthogonal else 1
    if size < 4 * group or size % (2 * group):
        raise ValueError(
            f"Expected size to be a multiple of {2 * group} and >= {4 * group}, got {size=}."
        )
    kernel = checked_kernel(kernel, points)
    weights = normalized_weights(weights, points)
    return from_features(
        key, kernel, points, queries, weights, size=size, orthogonal=orthogonal, block=block
    )


@functools.partial(jax.jit, inline=True, static_argnames=("size", "orthogonal", "block"))
def from_features(
    key: Any,
    kernel: Any,
    points: Array,
    queries: Array,
    weights: Array | None,
    *,
    size: int,
    orthogonal: bool,
    block: int | None,
) -> DensityEstimate:
    """What `feature_density` computes."""
    n, dim = points.shape
    count = size // 2
    frequencies = draw_frequencies(key, kernel, count, dim, orthogonal=orthogonal)
    # Large angles lose digits.
    center = jnp.mean(points, axis=0, keepdims=True)
    points, queries, h = scaled(kernel.bandwidth, points - center, queries - center)
    frequencies = frequencies.astype(points.dtype) / h
    cosines, sines = (
        kernel_matrix(Wave(sine), frequencies, points, weights=weights).sum(axis=1)
        / (n if weights is None else 1)
        for sine in (False, True)
    )

    def moments(query: Array) -> tuple[Array, Array]:
        angles = frequencies @ query
        each = cosines * jnp.cos(angles) + sines * jnp.sin(angles)
        means = jnp.mean(each.reshape(-1, dim if orthogonal else 1), axis=1)
        mean = jnp.mean(means)
        variance = jnp.sum(jnp.square(means - mean[None])) / (len(means) - 1)
        return mean, safe_sqrt(variance / len(means))

    mean, error = by_query(moments, queries, count, block)
    return DensityEstimate(mean, error, integral(kernel, points))


@functools.partial(register_dataclass, data_fields=[], meta_fields=["sine"])
@dataclasses.dataclass(frozen=True)
class Wave:
    """``cos <w, x>``, or the sine, as a kernel: sums over points then stream."""

    sine: bool
    symmetric: ClassVar[bool] = False

    def __call__(self, x: Array, y: Array) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Array, Y: Array) -> Array:
        angles = distances.product(X, Y)
        return jnp.sin(angles) if self.sine else jnp.cos(angles)
