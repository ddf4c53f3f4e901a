"""Energy distance: how far apart two samples are, in the units of the data."""

import dataclasses
import functools
from typing import Any, ClassVar

from jaxtyping import Float

from gradkin.kernels.mmd import Pair, squared_mmd
from gradkin.matrices import distances
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, ArrayLike


@functools.partial(register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Energy:
    """``k(x, y) = -|x - y|``, which turns the measures of kernels into those of distances.

    Only conditionally positive definite, which is enough wherever matrices are centered: with it
    the squared MMD is the energy distance and HSIC the distance covariance. Its derivative where
    two points meet is zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> float(kernels.Energy()(jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])))
      -5.0

    References:
      Sejdinovic, Sriperumbudur, Gretton & Fukumizu (2013), "Equivalence of Distance-Based and
      RKHS-Based Statistics in Hypothesis Testing", Annals of Statistics 41.
      :cite:`sejdinovic:13`
    """

    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Any, Y: Any) -> Array:
        """All pairs of ``[n, ...]`` and ``[m, ...]`` points."""
        return -distances.euclidean(distances.points(X), distances.points(Y))


def energy_distance(
    x: ArrayLike,
    y: ArrayLike,
    *,
    unbiased: bool = False,
    weights: Pair = (None, None),
    mask: Pair = (None, None),
    block: int | None = None,
) -> Float[Array, ""]:
    """Energy distance of two samples (Szekely & Rizzo 2013, eq. 6.1).

    .. math:: 2\\, E|X - Y| - E|X - X'| - E|Y - Y'|

    Zero in population if and only if the distributions agree. Differentiable; memory is linear in
    the number of points.

    Args:
      x: ``[n]`` or ``[n, ...]`` points.
      y: ``[m]`` or ``[m, ...]`` points of the same shape and dtype.
      unbiased: leave pairs of a point with itself out of the means, so that the expectation is
        exact and the value may be negative; needs two points on either side. False includes them
        (never negative beyond rounding).
      weights: a pair of ``[n]`` and ``[m]`` weights or None, as in `squared_mmd`.
      mask: a pair of ``[n]`` and ``[m]`` booleans or None; False leaves a point out. NaN where
        fewer points are left than needed.
      block: rows of a tile; chosen automatically.

    Returns:
      A scalar in the units of ``|x - y|``.

    Raises:
      ValueError: fewer points than that, ill-fitting points, weights or masks.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> float(kernels.energy_distance(jnp.array([0.0, 1.0]), jnp.array([2.0, 3.0])))
      3.0

    References:
      Szekely & Rizzo (2013), "Energy Statistics: A Class of Statistics Based on Distances",
      Journal of Statistical Planning and Inference 143, eq. (6.1). :cite:`szekely:13`

    Note:
      ``scipy.stats.energy_distance`` returns the square root of this, ``dcor.energy_distance``
      this.
    """
    options: Any = {"unbiased": unbiased, "weights": weights, "mask": mask, "block": block}
    return squared_mmd(Energy(), x, y, **options)
