"""The median distance, by which kernels are scaled where nothing better is known."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices import distances
from gradkin.matrices.kernel_arguments import as_points
from gradkin.typing import Array, ArrayLike


def median_distance(x: ArrayLike, *, max_points: int = 1000) -> Float[Array, ""]:
    """Median of the Euclidean distances between points, a common bandwidth (Gretton et al. 2012).

    Args:
      x: ``[n]`` or ``[n, ...]`` points, n >= 2.
      max_points: at most so many, evenly spaced in the order of ``x``, are compared: quadratic in
        memory.

    Returns:
      A scalar; the derivative is that of the middle distances.

    Raises:
      ValueError: fewer than two points, or a median of zero where it can be read: more than about
        seven in ten points agree, and no kernel can be scaled by it.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> float(kernels.median_distance(jnp.array([0.0, 1.0, 3.0])))
      2.0

    References:
      Gretton, Borgwardt, Rasch, Schoelkopf & Smola (2012), "A Kernel Two-Sample Test", JMLR 13,
      sec. 8. :cite:`gretton:12`
    """
    if max_points < 2:
        raise ValueError(f"Expected max_points >= 2, got max_points={max_points}.")
    x = distances.points(as_points(x, "x"))
    if len(x) < 2:
        raise ValueError("Expected at least 2 points, got 1.")
    some = x[:: -(-len(x) // max_points)]
    rows, columns = np.triu_indices(len(some), 1)
    median = jnp.median(distances.euclidean(some, some)[rows, columns])
    if checks.is_concrete(median) and float(median) == 0:
        raise ValueError("Expected points that differ, got a median distance of 0.")
    return median
