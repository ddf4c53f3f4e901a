"""Kernel density on a grid of one to three dimensions, by linear binning and convolution."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.kernels.density import as_points, log_normalizer, normalized_weights
from gradkin.kernels.functions import Gaussian, Laplacian
from gradkin.matrices import distances
from gradkin.typing import Array, ArrayLike

# Where the kernel has fallen to this share of its peak, the default grid ends.
TAIL = 1e-8


class GridDensity(NamedTuple):
    """A kernel density at the nodes of a grid.

    Attributes:
      low: ``[d]``, the first node.
      spacing: ``[d]``, between neighbouring nodes.
      mean_kernel: ``[g_1, ..., g_d]``, in units of the kernel, as in `DensityEstimate`.
      error_bound: no node of `mean_kernel` is further than this from the exact value.
      log_normalizer: log of the kernel's integral.
    """

    low: Array
    spacing: Array
    mean_kernel: Array
    error_bound: Array
    log_normalizer: Array

    def axes(self) -> tuple[Array, ...]:
        """The nodes of each dimension, ``[g_1]``, ..., ``[g_d]``."""
        sizes = self.mean_kernel.shape
        steps = [jnp.arange(size, dtype=self.low.dtype) for size in sizes]
        return tuple(a + step * s for a, s, step in zip(self.low, self.spacing, steps))

    def density(self) -> Array:
        """``[g_1, ..., g_d]``, integrates to 1: `mean_kernel` over the integral of the kernel."""
        return self.mean_kernel * jnp.exp(-self.log_normalizer)

    def interpolate(self, queries: ArrayLike) -> Array:
        """Multilinear interpolation of `density` between the nodes.

        With a Gaussian kernel this adds another ``sum_j spacing_j^2 / (8 h_j^2)`` to the bound.

        Args:
          queries: ``[m, d]``.

        Returns:
          ``[m]``; NaN outside the grid.
        """
        queries = distances.points(as_points(queries=queries))
        place = ((queries - self.low[None]) / self.spacing[None]).T
        inside = jnp.all(within(place.T, self.mean_kernel.shape), axis=1)
        found = jax.scipy.ndimage.map_coordinates(
            self.density(), list(place), order=1, mode="nearest"
        )
        return jnp.where(inside, found, jnp.full_like(found, jnp.nan))


def grid_density(
    kernel: Any,
    points: Float[ArrayLike, "points features"],
    *,
    size: int | tuple[int, ...] = 1024,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    weights: Float[ArrayLike, " points"] | None = None,
) -> GridDensity:
    """Kernel density at all nodes of a grid: linear binning, then FFTs (Silverman 1982; Wand 1994).

    Each point's weight goes to the corners of its cell, in proportion to how near they are; the
    kernel is applied along one axis after the other, each padded with zeros to twice its length.
    ``O(2^d n + g log g)``.

    Args:
      kernel: `Gaussian` or `Laplacian`: products over the coordinates.
      points: ``[n, d]``, d <= 3.
      size: nodes in each dimension, >= 2; one number for all, or d of them.
      low: ``[d]`` or a scalar, the first node; default: below all points, where the kernel of the
        nearest has fallen to 1e-8 of its peak.
      high: the last node, likewise.
      weights: ``[n]``, as in `log_density`.

    Returns:
      A `GridDensity`. Its ``error_bound`` is the sum of
      ``sum_j spacing_j^2 / (8 h_j^2)`` (binning interpolates the kernel between nodes, and its
      second derivative is at most ``1 / h^2``), the share of the weight outside the grid (which is
      left out), and the rounding of the transforms. Values that rounding makes negative are set to
      0, so the logarithm of a tail below about 1e-7 of the peak means nothing.

    Raises:
      ValueError: another kernel, more than three dimensions, a size below 2, ``low >= high``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> found = kernels.grid_density(kernels.Gaussian(0.5), jnp.array([[0.0], [1.0]]), size=400)
      >>> round(float(jnp.sum(found.density()) * found.spacing[0]), 4)
      1.0
      >>> exact = kernels.log_density(kernels.Gaussian(0.5), jnp.array([[0.0], [1.0]]),
      ...     found.axes()[0][:, None])
      >>> bool(jnp.max(jnp.abs(found.density() - jnp.exp(exact))) < found.error_bound)
      True

    References:
      Silverman (1982), "Algorithm AS 176: Kernel Density Estimation Using the Fast Fourier
      Transform", Applied Statistics 31. :cite:`silverman:82`
      Wand (1994), "Fast Computation of Multivariate Kernel Estimators", Journal of Computational
      and Graphical Statistics 3. :cite:`wand:94`

    Note:
      The kernel is not truncated: on an axis of ``g`` nodes all ``2 g - 1`` offsets take part.
    """
    if not isinstance(kernel, (Gaussian, Laplacian)):
        raise ValueError(
            f"Expected a Gaussian or Laplacian kernel, got kernel={type(kernel).__name__}."
        )
    points = distances.points(as_points(points=points))
    n, dim = points.shape
    if dim > 3:
        raise ValueError(f"Expected at most 3 dimensions, got points.shape={points.shape}.")
    sizes = (size,) * dim if isinstance(size, int | np.integer) else tuple(size)
    if len(sizes) != dim or min(sizes) < 2:
        raise ValueError(f"Expected size >= 2 in each of {dim} dimensions, got {size=}.")
    kernel.check((dim,))
    bandwidth = jnp.broadcast_to(jnp.asarray(kernel.bandwidth, points.dtype), (dim,))
    tail = math.sqrt(-2 * math.log(TAIL)) if isinstance(kernel, Gaussian) else -math.log(TAIL)
    low = jnp.min(points, axis=0) - tail * bandwidth if low is None else low
    high = jnp.max(points, axis=0) + tail * bandwidth if high is None else high
    low, high = (jnp.broadcast_to(jnp.asarray(end, points.dtype), (dim,)) for end in (low, high))
    checks.positive(**{"high - low": high - low})
    weights = normalized_weights(weights, points)
    return on_grid(kernel, points, bandwidth, low, high, weights, sizes=sizes)


@functools.partial(jax.jit, inline=True, static_argnames="sizes")
def on_grid(
    kernel: Any,
    points: Array,
    bandwidth: Array,
    low: Array,
    high: Array,
    weights: Array | None,
    *,
    sizes: tuple[int, ...],
) -> GridDensity:
    """What `grid_density` computes."""
    spacing = (high - low) / jnp.asarray([s - 1 for s in sizes], points.dtype)
    counts = linear_binning((points - low[None]) / spacing[None], weights, sizes)
    bound = jnp.sum(jnp.square(spacing / bandwidth)) / 8 + jnp.abs(1 - jnp.sum(counts))
    values = counts
    for axis, g in enumerate(sizes):
        distance = jnp.arange(g, dtype=points.dtype) * (spacing[axis] / bandwidth[axis])
        power = jnp.square(distance) / 2 if isinstance(kernel, Gaussian) else distance
        values, noise = smooth(values, jnp.exp(-power), axis)
        bound = bound + noise
    constant = log_normalizer(kernel, len(sizes)).astype(points.dtype)
    return GridDensity(low, spacing, jnp.maximum(values, 0), bound, constant)


def linear_binning(place: Array, weights: Array | None, sizes: tuple[int, ...]) -> Array:
    """Share each point's weight among the corners of its cell.

    Args:
      place: ``[n, d]``, positions in units of the spacing, from the first node.
      weights: ``[n]``, sum 1; None for equal ones.
      sizes: nodes in each dimension.

    Returns:
      ``[g_1, ..., g_d]``. Points outside the grid are left out.
    """
    n, dim = place.shape
    last = np.asarray(sizes) - 1
    inside = jnp.all(within(place, sizes), axis=1)
    w = jnp.full(n, 1 / n, place.dtype) if weights is None else weights
    w = jnp.where(inside, w, jnp.zeros_like(w))
    cell = jnp.floor(place).astype(jnp.int32)
    # A point on the last node belongs to the last cell; what is outside has weight 0.
    cell = jnp.clip(cell, 0, jnp.asarray(last - 1, jnp.int32)[None])
    right = jnp.clip(place - cell.astype(place.dtype), 0, 1)
    strides = np.cumprod([1, *sizes[:0:-1]])[::-1]
    start = jnp.sum(cell * jnp.asarray(strides.copy(), jnp.int32)[None], axis=1)
    counts = jnp.zeros(math.prod(sizes), place.dtype)
    for corner in np.ndindex(*(2,) * dim):
        share = w
        for j, up in enumerate(corner):
            share = share * (right[:, j] if up else 1 - right[:, j])
        counts = counts.at[start + int(np.dot(corner, strides))].add(share)
    return counts.reshape(sizes)


def within(place: Array, sizes: tuple[int, ...]) -> Array:
    """``[n, d]``, whether a position lies between the first and the last node, up to rounding."""
    last = jnp.asarray([size - 1 for size in sizes], place.dtype)[None]
    rounding = 16 * jnp.finfo(place.dtype).eps * last
    return (place >= -rounding) & (place <= last + rounding)


def smooth(values: Array, profile: Array, axis: int) -> tuple[Array, Array]:
    """Convolve one axis with a symmetric kernel, and bound what the rounding of the FFT adds.

    Args:
      values: any shape.
      profile: ``[g]``, the kernel at distances of 0, 1, ... nodes, g the length of the axis.
      axis: which.

    Returns:
      An array like `values`, and a scalar.
    """
    g = len(profile)
    length = fast_length(2 * g - 1)
    gap = jnp.zeros(length - (2 * g - 1), profile.dtype)
    circular = jnp.concatenate([profile, gap, profile[:0:-1]])
    moved = jnp.moveaxis(values, axis, -1)
    product = jnp.fft.rfft(moved, length) * jnp.fft.rfft(circular).reshape(
        (1,) * (values.ndim - 1) + (-1,)
    )
    found = jnp.fft.irfft(product, length)[..., :g]
    # Transforms are accurate in the root mean square, and an entry is at most the norm of its row.
    sizes = jnp.max(jnp.sqrt(jnp.sum(jnp.square(moved), axis=-1))) * jnp.sqrt(
        jnp.sum(jnp.square(circular))
    )
    noise = 4 * jnp.finfo(values.dtype).eps * math.log2(length) * sizes
    return jnp.moveaxis(found, -1, axis), noise


def fast_length(at_least: int) -> int:
    """The smallest ``{4, 5, 6} 2^k`` that is not below: lengths at which FFTs are fast."""
    k = max(0, at_least.bit_length() - 3)
    return min(c << e for c in (4, 5, 6) for e in (k, k + 1) if c << e >= at_least)
