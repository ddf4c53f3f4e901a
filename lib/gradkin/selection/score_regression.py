"""Scores of a corpus by regression on features, after those of a sample of it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from gradkin import checks
from gradkin.matrices import distances, products
from gradkin.matrices.kernel_arguments import as_points, finite
from gradkin.typing import Array, ArrayLike, Scalar


class Scorers(NamedTuple):
    """Ridge regressions of several targets on features.

    Attributes:
      weights: ``[p, q]``.
      intercept: ``[q]``.
    """

    weights: Array
    intercept: Array


def fit_scorers(
    features: Num[ArrayLike, "n p"], targets: Num[ArrayLike, "n q"], *, l2: Scalar = 1.0
) -> Scorers:
    """Ridge regressions by which a whole corpus is scored after a sample of it (He et al. 2025).

    .. math:: \\min_{W, b} \\| X W + 1 b^T - T \\|_F^2 + l_2 \\| W \\|_F^2

    Args:
      features: ``X``, ``[n, p]``: of the sample, by any encoder.
      targets: ``T``, ``[n, q]``: its scores, as from `project_scores`.
      l2: > 0; the intercept ``b`` is not penalized.

    Returns:
      `Scorers`, for `predict_scores`.

    Raises:
      ValueError: features and targets of different lengths, or ``l2`` that is not positive.

    Note:
      By a QR factorization of ``sqrt(l2) I`` below ``X`` or, where that is shorter, ``X^T``: beside
      ``X^T X`` of large features a small ``l2`` is lost in the rounding of float32. Of a sample
      spread over devices each gathers all for it.

      The paper fine-tunes RoBERTa with a linear head for each axis. Here the encoder is the
      caller's and stays as it is; fine-tune it on ``T`` by mean squared error for theirs.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> x, t = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [2.0], [4.0]])
      >>> found = selection.fit_scorers(x, t, l2=2.0)
      >>> [round(float(x), 4) for x in (found.weights[0, 0], found.intercept[0])]
      [1.0, 1.0]

    References:
      He, Liu, Lin, Tang et al. (2025), arXiv:2510.18909. :cite:`odis`
    """
    checks.rank(2, features=features, targets=targets)
    checks.positive(l2=l2)
    x = distances.points(as_points(features, "features"))
    t = distances.points(as_points(targets, "targets")).astype(x.dtype)
    finite(x, "features")
    finite(t, "targets")
    if len(x) != len(t):
        raise ValueError(f"Expected features and targets of one length, got {len(x)} and {len(t)}.")
    x_mean, t_mean = jnp.mean(x, axis=0), jnp.mean(t, axis=0)
    x, t = x - x_mean[None], t - t_mean[None]
    product = functools.partial(jnp.matmul, precision=products.HIGHEST)
    n, p = x.shape
    penalty = jnp.sqrt(jnp.asarray(l2, x.dtype)) * jnp.eye(min(n, p), dtype=x.dtype)
    Q, R = jnp.linalg.qr(jnp.concatenate([x if n >= p else x.T, penalty]))
    if n >= p:
        weights = jax.scipy.linalg.solve_triangular(R, product(Q[:n].T, t))
    else:
        weights = product(Q[:p], jax.scipy.linalg.solve_triangular(R, t, trans="T"))
    return Scorers(weights, t_mean - product(x_mean, weights))


def predict_scores(scorers: Scorers, features: Num[ArrayLike, "n p"]) -> Float[Array, "n q"]:
    """Scores that regressions give: ``X W + b``.

    Args:
      scorers: as from `fit_scorers`.
      features: ``[N, p]``, of any documents.

    Returns:
      ``[N, q]``.

    Raises:
      ValueError: another number of features.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> scorers = selection.Scorers(jnp.array([[2.0]]), jnp.array([1.0]))
      >>> selection.predict_scores(scorers, jnp.array([[0.0], [3.0]])).tolist()
      [[1.0], [7.0]]

    References:
      He, Liu, Lin, Tang et al. (2025), arXiv:2510.18909. :cite:`odis`
    """
    checks.rank(2, features=features)
    x = distances.points(as_points(features, "features"))
    if x.shape[1] != len(scorers.weights):
        raise ValueError(
            f"Expected features with {len(scorers.weights)} columns, got features.shape={x.shape}."
        )
    product = jnp.matmul(x, scorers.weights, precision=products.HIGHEST)
    return product + scorers.intercept[None]
