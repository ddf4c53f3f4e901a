"""Mean shift: move points to where their neighbours are, and tell outliers by how that matters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.kernels.functions import SquaredEuclidean
from gradkin.matrices import distances
from gradkin.matrices.kernel import kernel_matrix
from gradkin.typing import Array, ArrayLike, Scalar


def mean_shift(
    x: Float[ArrayLike, "n d"],
    *,
    num_neighbors: int,
    num_steps: int = 3,
    include_self: bool = True,
) -> Float[Array, "n d"]:
    """Move every point to the mean of its ``k`` nearest neighbours, ``T`` times (Yang et al. 2021).

    .. math:: y_i^{(t+1)} = \\frac{1}{k} \\sum_{j \\in N_k(y_i^{(t)})} y_j^{(t)},
        \\qquad y^{(0)} = x

    Points of a dense region stay nearly where they are; a point far from all others goes to where
    they are. Distances stream in tiles, so nothing of size ``n^2`` is written.

    Args:
      x: ``[n, d]`` points. Scale the features first.
      num_neighbors: ``k``, in ``[1, n]``, or ``[1, n - 1]`` without the point itself.
      num_steps: ``T >= 0``; all points move at once, and neighbours are found anew among them.
      include_self: whether a point, being nearest to itself, is one of its ``k`` neighbours.

    Returns:
      ``[n, d]``, the points moved, in float32 or wider. Of equally near neighbours those that come
      first are taken.

    Raises:
      ValueError: a number out of range, or (where not traced) points that are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.array([[0.0], [1.0], [2.0], [30.0]])
      >>> kernels.mean_shift(x, num_neighbors=2, num_steps=1).ravel().tolist()
      [0.5, 0.5, 1.5, 16.0]

    References:
      Yang, Rahardja & Franti (2021), "Mean-shift outlier detection and filtering",
      doi:10.1016/j.patcog.2021.107874. :cite:`yang:21`
    """
    x = finite_matrix(x)
    most = len(x) if include_self else len(x) - 1
    if not 1 <= num_neighbors <= most:
        raise ValueError(
            f"Expected num_neighbors in [1, {most}], got num_neighbors={num_neighbors} for "
            f"{len(x)} points."
        )
    checks.non_negative(num_steps=num_steps)
    return shifted_to_neighbors(x, num_neighbors, num_steps, include_self)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def shifted_to_neighbors(x: Array, k: int, num_steps: int, include_self: bool) -> Array:
    def step(_: Any, y: Array) -> Array:
        found = k if include_self else k + 1
        _, nearest = kernel_matrix(SquaredEuclidean(), y).top_k(found, largest=False)
        if include_self:
            kept = jnp.ones(nearest.shape, y.dtype)
        else:
            # Among more than k equal points a point may not have found itself: drop the last.
            own = nearest == jnp.arange(len(y), dtype=nearest.dtype)[:, None]
            last = (jnp.arange(found) == k)[None, :] & ~jnp.any(own, axis=1, keepdims=True)
            kept = 1 - (own | last).astype(y.dtype)

        def add(j: Array, total: Array) -> Array:
            return total + kept[:, j, None] * y[nearest[:, j]]

        # One neighbour at a time: their coordinates together would take k times the points' memory.
        return jax.lax.fori_loop(0, found, add, jnp.zeros_like(y)) / k

    return jax.lax.fori_loop(0, num_steps, step, x)


def kernel_mean_shift(
    x: Float[ArrayLike, "n d"], kernel: Any, *, num_steps: int = 3
) -> Float[Array, "n d"]:
    """Move every point to the kernel-weighted mean of all, ``T`` times (blurring mean shift).

    .. math:: y_i^{(t+1)} = \\frac{\\sum_j k(y_i^{(t)}, y_j^{(t)})\\, y_j^{(t)}}
        {\\sum_j k(y_i^{(t)}, y_j^{(t)})}

    With a Gaussian kernel a step goes uphill on the log of the kernel density.

    Args:
      x: ``[n, d]`` points.
      kernel: of `gradkin.kernel_matrix`, positive where a point meets itself:
        ``kernels.Gaussian(bandwidth)``.
      num_steps: ``T >= 0``.

    Returns:
      ``[n, d]``, the points moved, in float32 or wider.

    Raises:
      ValueError: a negative number of steps, or (where not traced) points that are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.array([[0.0], [1.0], [30.0]])
      >>> moved = kernels.kernel_mean_shift(x, kernels.Gaussian(5.0), num_steps=9)
      >>> [round(value, 3) for value in moved.ravel().tolist()]
      [0.5, 0.5, 30.0]

    References:
      Cheng (1995), "Mean Shift, Mode Seeking, and Clustering", doi:10.1109/34.400568.
      :cite:`cheng:95`
    """
    x = finite_matrix(x)
    checks.non_negative(num_steps=num_steps)
    return shifted_by_kernel(x, kernel, num_steps)


@functools.partial(jax.jit, static_argnums=2)
def shifted_by_kernel(x: Array, kernel: Any, num_steps: int) -> Array:
    def step(_: Any, y: Array) -> Array:
        K = kernel_matrix(kernel, y)
        return (K @ y) / K.sum(1)[:, None]

    return jax.lax.fori_loop(0, num_steps, step, x)


def reconstruction_error(x: ArrayLike, reconstructed: ArrayLike) -> Float[Array, " n"]:
    """Distance of each point from its reconstruction, ``|x_i - r_i|``.

    Args:
      x: ``[n, ...]`` points.
      reconstructed: of the same shape.

    Returns:
      ``[n]``.

    Raises:
      ValueError: shapes that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> kernels.reconstruction_error(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2))).tolist()
      [5.0]
    """
    same_shapes(x, reconstructed=reconstructed)
    return jnp.linalg.norm(distances.points(x) - distances.points(reconstructed), axis=1)


def probabilistic_error(
    x: ArrayLike,
    mean: ArrayLike,
    log_variance: ArrayLike,
    *,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
) -> Float[Array, " n"]:
    """Adjustable probabilistic reconstruction error, APRE (Tan et al. 2023).

    .. math:: \\sum_j \\alpha\\, \\frac{(x_j - \\mu_j)^2}{\\sigma_j^2} + \\beta \\log \\sigma_j^2

    Both the loss of a decoder with two heads and its outlier score. With ``alpha = beta = 1`` it is
    twice the Gaussian's negative log-likelihood but for a constant (PRE); with ``beta = 0`` and
    unit variances the squared error. The variance that is best for one residual is ``alpha / beta``
    times its square.

    Args:
      x: ``[n, ...]`` points.
      mean: the decoder's means, of the same shape.
      log_variance: its log variances. Bound them in the decoder: a residual of zero wants minus
        infinity.
      alpha: weight of the residual against what was expected, >= 0.
      beta: weight of the uncertainty, >= 0. Only ``alpha / beta`` matters for a ranking.

    Returns:
      ``[n]``; may be negative.

    Raises:
      ValueError: shapes that differ, a negative weight.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> zero = jnp.zeros((1, 2))
      >>> kernels.probabilistic_error(jnp.array([[3.0, 4.0]]), zero, zero).tolist()
      [25.0]

    References:
      Tan, Yang, Chen, Rahardja & Rahardja (2023), "Improving Autoencoder-based Outlier Detection
      with Adjustable Probabilistic Reconstruction Error and Mean-shift Outlier Scoring",
      arXiv:2304.00709. :cite:`apre-mss-outlier`

    Note:
      Where the paper puts the two weights is reconstructed from its abstract and later titles (its
      third version calls the errors NLL and WNLL).
    """
    same_shapes(x, mean=mean, log_variance=log_variance)
    checks.non_negative(alpha=alpha, beta=beta)
    x, mean, log_variance = (jnp.asarray(value) for value in (x, mean, log_variance))
    alpha, beta = (jnp.asarray(value, x.dtype) for value in (alpha, beta))
    terms = alpha * jnp.square(x - mean) * jnp.exp(-log_variance) + beta * log_variance
    return jnp.sum(terms.reshape(len(x), -1), axis=1)


def mean_shift_outlier_scores(
    x: Float[ArrayLike, "n d"],
    shifted: Float[ArrayLike, "n d"],
    reconstruct: Callable[[Array], Any],
    *,
    error: Callable[[Array, Any], Array] = reconstruction_error,
    compare: str = "original",
) -> Float[Array, " n"]:
    """Mean-shift outlier scores, MSS: errors of an autoencoder that outliers cannot hide from.

    An autoencoder may reconstruct outliers well. Moved to its neighbours first, an outlier is
    reconstructed as one of them, which is far from where it was (Tan et al. 2023).

    ============  ============================================================================
    compare       score of ``x`` with ``y`` its shifted copy
    ============  ============================================================================
    "original"    ``error(x, reconstruct(y))``
    "shifted"     ``error(y, reconstruct(x))``
    "both"        ``|x - y| + error(x, reconstruct(x))``
    ============  ============================================================================

    Args:
      x: ``[n, d]`` points.
      shifted: the same points moved, by `mean_shift` or `kernel_mean_shift`.
      reconstruct: maps ``[n, d]`` points to what ``error`` takes: reconstructions, or a tuple of
        means and log variances.
      error: ``(x, reconstructed) -> [n]``; for `probabilistic_error` write
        ``lambda x, out: probabilistic_error(x, *out)``.
      compare: see the table.

    Returns:
      ``[n]``, larger for outliers. Compare ranks: a variance predicted at the shifted point is too
      small for an outlier, so means of a probabilistic error may be enormous.

    Raises:
      ValueError: an unknown comparison, shapes that differ, or points that are not finite (where
        not traced).

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.array([[0.0], [1.0], [2.0], [30.0]])
      >>> shifted = kernels.mean_shift(x, num_neighbors=2, num_steps=1)
      >>> kernels.mean_shift_outlier_scores(x, shifted, lambda x: x).tolist()
      [0.5, 0.5, 0.5, 14.0]

    References:
      Tan, Yang, Chen, Rahardja & Rahardja (2023), arXiv:2304.00709. :cite:`apre-mss-outlier`

    Note:
      That the score takes a mean-shifted input is confirmed; on which side of the error it enters
      is not. The default is the reading that outliers are drawn to the dense region.
    """
    checks.one_of(("original", "shifted", "both"), compare=compare)
    same_shapes(x, shifted=shifted)
    x, shifted = finite_matrix(x), finite_matrix(shifted)
    if compare == "original":
        return error(x, reconstruct(shifted))
    if compare == "shifted":
        return error(shifted, reconstruct(x))
    return reconstruction_error(x, shifted) + error(x, reconstruct(x))


def finite_matrix(x: Any) -> Array:
    """Points as a matrix of at least float32; raise where they are not one, or not finite."""
    checks.rank(2, x=x)
    x = distances.points(x)
    if checks.is_concrete(x) and not bool(jnp.all(jnp.isfinite(x))):
        raise ValueError("Expected x to be finite, got NaN or infinity.")
    return x


def same_shapes(x: Any, **others: Any) -> None:
    for name, other in others.items():
        if np.shape(other) != np.shape(x) or not np.shape(x):
            raise ValueError(
                f"Expected {name} to have the shape of x, {np.shape(x)}, got {np.shape(other)}."
            )
