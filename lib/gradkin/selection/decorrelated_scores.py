"""Axes along which the correlated scores of documents vary without correlation (ODiS)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from gradkin import checks
from gradkin.matrices import distances
from gradkin.matrices.kernel_arguments import as_points, finite
from gradkin.typing import Array, ArrayLike

SIGNS = ("loading", "mean")
# Loadings this close to the largest tie with it: which one leads must not hang on rounding.
TIE = 0.99


class ScoreAxes(NamedTuple):
    """Axes along which the scores of documents vary without correlation.

    Attributes:
      mean: of each score, ``[D]``.
      scale: standard deviation of each score, ``[D]``.
      axes: orthonormal columns, ``[D, q]``.
      variances: of standardized scores along all axes, the largest first, ``[D]``; their sum is
        ``D``.
    """

    mean: Array
    scale: Array
    axes: Array
    variances: Array


def decorrelate_scores(
    scores: Num[ArrayLike, "n d"],
    *,
    num_axes: int | None = None,
    variance_ratio: float | None = None,
    sign: str | Num[ArrayLike, " q"] = "loading",
) -> ScoreAxes:
    """Principal axes of standardized scores (ODiS, He et al. 2025).

    .. math::
        Z = (S - \\mu) / \\sigma, \\qquad Z^T Z / n = V \\operatorname{diag}(\\lambda) V^T, \\qquad
        T = Z V_{:, :q}

    Args:
      scores: ``S``, ``[n, D]``, ``n > D``: several scores of a sample of documents.
      num_axes: how many axes to keep, ``q``; None for all ``D``.
      variance_ratio: instead of a number, the share of the variance in (0, 1] that the axes
        together have at least. Their number depends on the scores, so that it needs them now: not
        inside `jit`.
      sign: which end of an axis is the better one. "loading": the largest of its loadings is
        positive, the first of those within 1% of it. "mean": documents above the mean in all
        scores are; this is the sign of an axis's correlation with the mean score, and rounding
        where that is zero, as of all axes but the first where that is nearly the mean. Or
        ``[q]`` signs, 1 or -1, to multiply the axes of "loading" by.

    Returns:
      `ScoreAxes`. Where two variances are equal, so are all axes of their plane, and which come
      out is rounding.

    Raises:
      ValueError: no more documents than scores, axes that are not 1 to ``D``, both a number and a
        ratio, signs that are not 1 or -1. Where they can be read: scores that are not finite, a
        score that is constant, or more axes than the scores vary along. Inside `jit` a constant
        score counts as zero, and an axis without variance (up to rounding, ``10 D eps`` of the
        largest) is zero.

    Note:
      The paper does not say how it fixes signs.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> scores = jnp.array([[0, 0], [1, 1], [2, 3], [3, 2]])
      >>> found = selection.decorrelate_scores(scores)
      >>> [round(float(v), 4) for v in found.variances]
      [1.8, 0.2]

    References:
      He, Liu, Lin, Tang et al. (2025), "Learning from the Best, Differently: A Diversity-Driven
      Rethinking on Data Selection", arXiv:2510.18909. :cite:`odis`
    """
    checks.rank(2, scores=scores)
    scores = as_points(scores, "scores")
    finite(scores, "scores")
    z, mean, scale = _standardized(distances.points(scores))
    num_scores = z.shape[1]
    if num_axes is not None and variance_ratio is not None:
        raise ValueError("Expected num_axes or variance_ratio, got both.")
    if num_axes is not None and not 1 <= num_axes <= num_scores:
        raise ValueError(f"Expected num_axes from 1 to {num_scores}, got num_axes={num_axes}.")
    correlations = jnp.matmul(z.T, z, precision=jax.lax.Precision.HIGHEST) / len(z)
    variances, axes = jnp.linalg.eigh(correlations)
    variances, axes = jnp.maximum(variances[::-1], 0), axes[:, ::-1]
    varies = variances > 10 * num_scores * jnp.finfo(z.dtype).eps * variances[0]
    if variance_ratio is not None:
        num_axes = _number_for(variance_ratio, variances)
    num_axes = num_scores if num_axes is None else num_axes
    if checks.is_concrete(varies) and not np.all(np.asarray(varies)[:num_axes]):
        raise ValueError(
            f"Expected num_axes <= {np.sum(np.asarray(varies))}, the number of axes along which "
            f"scores vary, got num_axes={num_axes}."
        )
    axes = jnp.where(varies[None, :num_axes], axes[:, :num_axes], 0)
    return ScoreAxes(mean, scale, axes * _signs(axes, sign)[None], variances)


def project_scores(axes: ScoreAxes, scores: Num[ArrayLike, "n d"]) -> Float[Array, "n q"]:
    """Scores along decorrelated axes: ``T = ((S - mean) / scale) V``.

    Args:
      axes: as from `decorrelate_scores`, of a sample of documents or of all.
      scores: ``[N, D]``, of any documents.

    Returns:
      ``T``, ``[N, q]``.

    Raises:
      ValueError: another number of scores.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> axes = selection.ScoreAxes(jnp.ones(2), jnp.array([1.0, 2.0]), jnp.eye(2), jnp.ones(2))
      >>> selection.project_scores(axes, jnp.array([[3.0, 5.0]])).tolist()
      [[2.0, 2.0]]

    References:
      He, Liu, Lin, Tang et al. (2025), arXiv:2510.18909. :cite:`odis`
    """
    checks.rank(2, scores=scores)
    x = distances.points(as_points(scores, "scores"))
    if x.shape[1] != len(axes.mean):
        raise ValueError(
            f"Expected scores with {len(axes.mean)} columns, got scores.shape={x.shape}."
        )
    z = (x - axes.mean[None]) / axes.scale[None]
    return jnp.matmul(z, axes.axes, precision=jax.lax.Precision.HIGHEST)


def _standardized(x: Array) -> tuple[Array, Array, Array]:
    """Columns of mean 0 and variance 1, the means, the standard deviations."""
    n, num_scores = x.shape
    if n <= num_scores:
        raise ValueError(
            f"Expected more documents than the {num_scores} scores, got scores.shape={x.shape}."
        )
    low, high = jnp.min(x, axis=0), jnp.max(x, axis=0)
    varies = high > low
    if checks.is_concrete(varies) and not np.all(varies):
        raise ValueError(
            f"Expected scores that vary, got column {np.flatnonzero(~np.asarray(varies))[0]} "
            "that is constant."
        )
    mean = jnp.mean(x, axis=0)
    mean = mean + jnp.mean(x - mean[None], axis=0)  # the digits that the first mean lost
    # Squares of very small or large deviations leave the range of floats.
    spread = jnp.where(varies, high - low, 1)
    z = jnp.where(varies[None], (x - mean[None]) / spread[None], 0)
    deviation = jnp.sqrt(jnp.mean(jnp.square(z), axis=0))
    deviation = jnp.where(varies, deviation, 1)
    return z / deviation[None], mean, spread * deviation


def _number_for(ratio: float, variances: Array) -> int:
    """How many axes have a share of the variance."""
    if not 0 < ratio <= 1:
        raise ValueError(f"Expected variance_ratio in (0, 1], got variance_ratio={ratio}.")
    if not checks.is_concrete(variances):
        raise ValueError("Expected num_axes inside jit, where variance_ratio cannot choose it.")
    found = np.asarray(variances, np.float64)
    found = np.cumsum(found[found > 10 * len(found) * jnp.finfo(variances.dtype).eps * found[0]])
    # Rounding must not ask for an axis without variance.
    return min(int(np.searchsorted(found, ratio * found[-1] * (1 - 1e-12))) + 1, len(found))


def _signs(axes: Array, sign: str | ArrayLike) -> Array:
    """1 or -1 for each axis."""
    num_axes = axes.shape[1]
    given = None
    if isinstance(sign, str):
        checks.one_of(SIGNS, sign=sign)
    else:
        given = jnp.asarray(sign).astype(axes.dtype)
        if given.shape != (num_axes,):
            raise ValueError(f"Expected sign of shape ({num_axes},), got sign.shape={given.shape}.")
        if checks.is_concrete(given) and not np.all(np.abs(np.asarray(given)) == 1):
            raise ValueError(f"Expected signs of 1 or -1, got sign={sign}.")
    if isinstance(sign, str) and sign == "mean":
        upwards = jnp.sum(axes, axis=0)
    else:
        sizes = jnp.abs(axes)
        leads = jnp.argmax(sizes >= TIE * jnp.max(sizes, axis=0, keepdims=True), axis=0)
        upwards = jnp.take_along_axis(axes, leads[None], axis=0)[0]
    signs = jnp.where(upwards < 0, -1, 1).astype(axes.dtype)
    return signs if given is None else given * signs
