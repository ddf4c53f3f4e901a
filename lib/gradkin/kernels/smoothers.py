"""Linear smoothers: predictions ``S @ y``, and how much a smoother smooths where it predicts."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.kernels.functions import SquaredEuclidean
from gradkin.matrices import distances
from gradkin.matrices.kernel import KernelMatrix, kernel_matrix
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, ArrayLike, Scalar


def effective_parameters(S: Any) -> Float[Array, ""]:
    """Effective parameters of the predictions that a smoother issues (Curth et al. 2024, sec. 2).

    .. math:: p = n \\cdot \\frac{1}{q} \\sum_{j=1}^{q} \\| s(x_j) \\|_2^2

    A prediction's variance is ``sigma^2 |s(x)|^2``, so this is the number of parameters that a
    linear regression with predictions as noisy would have. Asked on training points it is the
    number of features for least squares and ``n / k`` for k nearest neighbors; asked on other
    points it tells how smooth the predictions are there. A smoother whose number is far smaller on
    new points than on training points regularizes itself where it has to generalize.

    Args:
      S: ``[q, n]`` weights, a lazy matrix (`forest_smoother`, `kernel_smoother`) or an array.

    Returns:
      A number >= 0; at least 1 where rows sum to one, at most ``n`` where they are averages.

    Raises:
      ValueError: ``S`` is no matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> float(kernels.effective_parameters(jnp.full((3, 4), 0.25)))  # all predict the mean
      1.0

    References:
      Curth, Jeffares & van der Schaar (2024), "Why do Random Forests Work? Understanding Tree
      Ensembles as Self-Regularizing Adaptive Smoothers", arXiv:2402.01502.
      :cite:`forests-as-smoothers`

    Note:
      Normalized by the number ``n`` of training points wherever it is asked. The trace of ``S``,
      the usual measure, is not defined for points other than the training points.
    """
    if not hasattr(S, "frobenius_norm"):
        S = jnp.asarray(S)
    if len(S.shape) != 2 or 0 in S.shape:
        raise ValueError(f"Expected S to be a matrix with entries, got S.shape={S.shape}.")
    q, n = S.shape
    squares = S.frobenius_norm() ** 2 if hasattr(S, "frobenius_norm") else jnp.sum(jnp.square(S))
    return n * squares / q


@functools.partial(register_dataclass, data_fields=["kernel"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Normalized:
    """``k(x, y) exp(-c)``, where a point is ``[d + 1]`` with ``x``'s ``c`` in its last place."""

    kernel: Any

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return self.tile(jnp.asarray(x)[None], jnp.asarray(y)[None])[0, 0]

    def tile(self, X: Array, Y: Array) -> Float[Array, "n m"]:
        shift = X[:, -1:]
        if hasattr(self.kernel, "log_tile"):
            # Far from all points every k(x, y) underflows, but their ratios do not.
            return jnp.exp(self.kernel.log_tile(X[:, :-1], Y[:, :-1]) - shift)
        return self.kernel.tile(X[:, :-1], Y[:, :-1]) * jnp.exp(-shift)


def kernel_smoother(kernel: Any, x: ArrayLike, query: ArrayLike) -> KernelMatrix:
    """Nadaraya-Watson weights ``s_i(x) = k(x, x_i) / sum_j k(x, x_j)``.

    Args:
      kernel: one of this package's kernels with non-negative values.
      x: training points, ``[n, d]``.
      query: where to predict, ``[q, d]``.

    Returns:
      ``S [q, n]``, a lazy matrix; rows sum to one, also where every ``k(x, x_i)`` underflows if
      the kernel knows its logarithm. A row without any similar point is NaN.

    Raises:
      ValueError: not two axes, or different numbers of features.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.array([[0.0], [1.0]])
      >>> S = kernels.kernel_smoother(kernels.Gaussian(1.0), x, jnp.array([[0.5], [1000.0]]))
      >>> S.materialize().tolist()
      [[0.5, 0.5], [0.0, 1.0]]

    References:
      Curth, Jeffares & van der Schaar (2024), arXiv:2402.01502. :cite:`forests-as-smoothers`
    """
    checks.rank(2, x=x, query=query)
    # The totals go where the coordinates go: they need a float that holds them.
    x, query = distances.points(x), distances.points(query)
    totals = kernel_matrix(kernel, query, x).logsumexp(axis=1)
    points = jnp.pad(x, ((0, 0), (0, 1)))
    queries = jnp.concatenate([query, totals.astype(query.dtype)[:, None]], axis=1)
    return kernel_matrix(Normalized(kernel), queries, points)


def neighbor_smoother(x: ArrayLike, query: ArrayLike, *, num_neighbors: int) -> Float[Array, "q n"]:
    """Weights ``1 / k`` of the ``k`` nearest training points; effective parameters are ``n / k``.

    Args:
      x: training points, ``[n, d]``.
      query: where to predict, ``[q, d]``.
      num_neighbors: ``k``, from 1 to ``n``; of points equally near those that come first.

    Returns:
      ``S [q, n]``, an array.

    Raises:
      ValueError: not two axes, or ``num_neighbors`` out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.array([[0.0], [1.0], [5.0]])
      >>> kernels.neighbor_smoother(x, jnp.array([[0.2]]), num_neighbors=2).tolist()
      [[0.5, 0.5, 0.0]]

    References:
      Curth, Jeffares & van der Schaar (2024), arXiv:2402.01502. :cite:`forests-as-smoothers`
    """
    checks.rank(2, x=x, query=query)
    n, q = np.shape(x)[0], np.shape(query)[0]
    if not 1 <= num_neighbors <= n:
        raise ValueError(f"Expected 1 <= num_neighbors <= {n}, got num_neighbors={num_neighbors}.")
    D = kernel_matrix(SquaredEuclidean(), query, x)
    _, nearest = D.top_k(num_neighbors, largest=False)
    return jnp.zeros((q, n), D.dtype).at[jnp.arange(q)[:, None], nearest].set(1 / num_neighbors)


def linear_smoother(
    x: ArrayLike, query: ArrayLike, *, penalty: Scalar = 0.0
) -> Float[Array, "q n"]:
    """Weights of least squares or ridge regression, ``S = X_q (X^T X + lambda I)^{-1} X^T``.

    Without penalty the effective parameters at the training points are the rank of ``x``.

    Args:
      x: training points, ``[n, d]``; append a column of ones for an intercept.
      query: where to predict, ``[q, d]``.
      penalty: ``lambda`` >= 0; with 0, directions in which ``x`` does not vary get no weight.

    Returns:
      ``S [q, n]``, an array.

    Raises:
      ValueError: not two axes, different numbers of features, or a negative penalty.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.array([[1.0], [2.0]])
      >>> [round(w, 4) for w in kernels.linear_smoother(x, jnp.array([[5.0]]))[0].tolist()]
      [1.0, 2.0]

    References:
      Curth, Jeffares & van der Schaar (2024), arXiv:2402.01502. :cite:`forests-as-smoothers`
    """
    checks.rank(2, x=x, query=query)
    checks.non_negative(penalty=penalty)
    x, query = distances.points(x), distances.points(query)
    if x.shape[1] != query.shape[1]:
        raise ValueError(
            f"Expected query to have the {x.shape[1]} features of x, got query.shape={query.shape}."
        )
    left, scales, right = jnp.linalg.svd(x, full_matrices=False)
    floor = jnp.finfo(x.dtype).eps * max(x.shape) * jnp.max(scales)
    present = scales > floor
    inverses = jnp.where(present, scales / (jnp.square(jnp.where(present, scales, 1)) + penalty), 0)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return product(product(query, right.T) * inverses[None, :], left.T)


def covariance_degrees_of_freedom(
    outcomes: Float[ArrayLike, "draws n"],
    fitted: Float[ArrayLike, "draws n"],
    *,
    noise_std: Scalar = 1.0,
) -> Float[Array, ""]:
    """Degrees of freedom ``sum_i cov(y_i, yhat_i) / sigma^2``, over draws of the outcomes.

    The classical measure of flexibility. It sees the training points only: every method that
    interpolates has ``n``.

    Args:
      outcomes: ``[draws, n]``, outcomes drawn anew at the same training points; two draws or more.
      fitted: ``[draws, n]``, the predictions of a method fitted to each draw.
      noise_std: ``sigma`` > 0, of the outcomes.

    Returns:
      An unbiased estimate, which may be negative.

    Raises:
      ValueError: shapes that differ, a single draw, or ``noise_std`` not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> y = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> float(kernels.covariance_degrees_of_freedom(y, 0.5 * y))
      1.0

    References:
      Efron (2004), "The Estimation of Prediction Error: Covariance Penalties and Cross-Validation",
      Journal of the American Statistical Association 99. :cite:`efron:04`
    """
    checks.rank(2, outcomes=outcomes, fitted=fitted)
    checks.positive(noise_std=noise_std)
    outcomes, fitted = jnp.asarray(outcomes), jnp.asarray(fitted)
    draws = outcomes.shape[0]
    if outcomes.shape != fitted.shape or draws < 2:
        raise ValueError(
            f"Expected outcomes and fitted of one shape with at least 2 draws, got "
            f"outcomes.shape={outcomes.shape} and fitted.shape={fitted.shape}."
        )
    centered = outcomes - jnp.mean(outcomes, axis=0, keepdims=True)
    return jnp.sum(centered * fitted) / (draws - 1) / jnp.square(noise_std)


class RefitErrors(NamedTuple):
    """What a learner's error is made of, over refits that differ by its own randomness.

    Attributes:
      error: mean squared error, the mean over refits; ``representation_bias + excess``.
      representation_bias: the error of the best refit.
      excess: what the other refits lose against it, >= 0.
      variability: mean squared distance of the refits from the best one, >= 0.
    """

    error: Float[Array, ""]
    representation_bias: Float[Array, ""]
    excess: Float[Array, ""]
    variability: Float[Array, ""]


def refit_errors(
    predictions: Float[ArrayLike, "refits q"], target: Float[ArrayLike, " q"]
) -> RefitErrors:
    """Representation bias and model variability of a random learner (Curth et al. 2024, sec. 4).

    .. math:: \\mathrm{RepBias} = \\mathrm{MSE}(f_{r^*}), \\quad
        \\mathrm{ModVar} = \\frac{1}{Rq} \\sum_{r,j} (f_r(x_j) - f_{r^*}(x_j))^2, \\quad
        r^* = \\arg\\min_r \\mathrm{MSE}(f_r)

    How well the learner could represent the target, and how far chance takes it from that.

    Args:
      predictions: ``[refits, q]``, of refits to the same noiseless outcomes.
      target: ``[q]``, the noiseless target.

    Returns:
      `RefitErrors`. The best refit is found on the target itself: a diagnosis, never a way to
      choose a model.

    Raises:
      ValueError: shapes that do not fit together.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> errors = kernels.refit_errors(jnp.array([[1.0, 0.0], [2.0, 0.0]]), jnp.zeros(2))
      >>> float(errors.error), float(errors.representation_bias), float(errors.variability)
      (1.25, 0.5, 0.25)

    References:
      Curth, Jeffares & van der Schaar (2024), arXiv:2402.01502, sec. 4.
      :cite:`forests-as-smoothers`
    """
    checks.rank(2, predictions=predictions)
    predictions, target = jnp.asarray(predictions), jnp.asarray(target)
    if predictions.shape[1:] != target.shape or 0 in predictions.shape:
        raise ValueError(
            f"Expected predictions [refits, q] and target [q], got predictions.shape="
            f"{predictions.shape} and target.shape={target.shape}."
        )
    errors = jnp.mean(jnp.square(predictions - target[None]), axis=1)
    best = jnp.argmin(errors)
    bias, mean = errors[best], jnp.mean(errors)
    variability = jnp.mean(jnp.square(predictions - predictions[best][None]))
    return RefitErrors(mean, bias, mean - bias, variability)
