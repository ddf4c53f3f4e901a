"""Features weighted so that their products agree with judged similarities."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from gradkin import checks
from gradkin.similarity.correlation import check_similarities, check_stimuli, correlation, pairs
from gradkin.typing import Array, PRNGKey, Scalar


class Reweighting(NamedTuple):
    """A fitted diagonal re-weighting of features; read with `reweighted_similarity`.

    Attributes:
      weights: ``[d]``, one for each feature, of any sign.
      intercept: the similarity where no feature says anything.
    """

    weights: Array
    intercept: Array


class CrossValidation(NamedTuple):
    """Correlations over pairs of held-out stimuli, one for each fold.

    Attributes:
      reweighted: ``[folds]``, with weights fitted to the other stimuli.
      unweighted: ``[folds]``, with all weights equal, on the same pairs.
    """

    reweighted: Array
    unweighted: Array


def stack_features(*features: Float[Array, "n _"]) -> Float[Array, "n D"]:
    """Several representations side by side, every feature with mean 0 and variance 1.

    Args:
      features: ``[n, d]`` each, of the same stimuli; at least one.

    Returns:
      ``[n, sum of d]``; a constant feature becomes 0.

    Raises:
      ValueError: none at all, or numbers of stimuli that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> similarity.stack_features(jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [5.0]])).tolist()
      [[-1.0, 0.0], [1.0, 0.0]]

    References:
      Marjieh et al. (2023), arXiv:2206.04105. :cite:`words-human-similarity`
    """
    if not features or len({len(x) for x in features}) != 1:
        raise ValueError(
            "Expected features of the same stimuli, got shapes "
            f"{[tuple(np.shape(x)) for x in features]}."
        )
    x = jnp.concatenate(features, axis=1)
    largest = jnp.max(jnp.abs(x), axis=0, keepdims=True)
    x = x - jnp.mean(x, axis=0, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=0, keepdims=True)
    # What rounding leaves of a constant is not a feature.
    constant = jnp.sqrt(variance) <= 1e-6 * largest
    return jnp.where(constant, 0, x * jax.lax.rsqrt(jnp.where(constant, 1, variance)))


def fit_reweighting(
    features: Float[Array, "n d"],
    judged: Float[Array, "n n"],
    *,
    ridge: Scalar,
    stimuli: Bool[Array, " n"] | None = None,
) -> Reweighting:
    """Weights of features that predict judged similarities (Marjieh et al. 2023).

    .. math:: \\min_{w, b} \\sum_{i<j} (s_{ij} - b - \\sum_k w_k z_{ik} z_{jk})^2
        + \\lambda |w|^2

    The ``[n (n - 1) / 2, d]`` matrix of products is not formed: with ``G = Z^T Z`` and
    ``Q = Z * Z`` its Gram matrix is ``(G * G - Q^T Q) / 2``, and so on.

    Args:
      features: ``[n, d]``, representations ``z``.
      judged: ``[n, n]``, symmetric; the diagonal is ignored.
      ridge: ``lambda`` > 0, on the scale of the sum over pairs.
      stimuli: ``[n]``, which stimuli to fit to, a pair where both count; all by default.

    Returns:
      `Reweighting`; the intercept is not penalised.

    Raises:
      ValueError: fewer than 3 stimuli, sizes that differ, a matrix that is not symmetric, a ridge
        that is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import similarity
      >>> z = jax.random.normal(jax.random.key(0), (30, 2))
      >>> judged = 3 * z[:, :1] @ z[:, :1].T + 1  # the second feature does not matter
      >>> fitted = similarity.fit_reweighting(z, judged, ridge=1e-3)
      >>> bool(jnp.allclose(fitted.weights, jnp.array([3.0, 0.0]), atol=1e-3))
      True

    References:
      Marjieh et al. (2023), arXiv:2206.04105. :cite:`words-human-similarity`
    """
    checks.rank(2, features=features)
    check_similarities(judged=judged)
    check_stimuli(stimuli, len(judged))
    checks.positive(ridge=ridge)
    if len(features) != len(judged):
        raise ValueError(
            "Expected features and judged of the same stimuli, got features.shape="
            f"{features.shape} and judged.shape={judged.shape}."
        )
    dot = lambda a, b: jnp.matmul(a, b, precision="highest")
    counted = pairs(stimuli, judged)
    z = features if stimuli is None else jnp.where(stimuli[:, None], features, 0)
    s = jnp.where(counted == 0, 0, judged)
    squares = jnp.square(z)
    number = jnp.sum(counted) / 2
    gram = (jnp.square(dot(z.T, z)) - dot(squares.T, squares)) / 2
    mean = (jnp.square(jnp.sum(z, axis=0)) - jnp.sum(squares, axis=0)) / (2 * number)
    mean_similarity = jnp.sum(s) / (2 * number)
    target = jnp.sum(z * dot(s, z), axis=0) / 2 - number * mean_similarity * mean
    gram = gram - number * mean[:, None] * mean[None, :]
    ridge = jnp.asarray(ridge).astype(gram.dtype)
    penalized = gram + ridge * jnp.eye(len(gram), dtype=gram.dtype)
    weights = jax.scipy.linalg.solve(penalized, target, assume_a="pos")
    return Reweighting(weights, mean_similarity - jnp.sum(mean * weights))


def reweighted_similarity(
    fitted: Reweighting, features: Float[Array, "n d"]
) -> Float[Array, "n n"]:
    """Similarities under fitted weights: ``b + sum_k w_k z_ik z_jk``.

    Args:
      fitted: from `fit_reweighting`.
      features: ``[n, d]``, of these or of other stimuli.

    Returns:
      ``[n, n]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> fitted = similarity.Reweighting(jnp.array([2.0]), jnp.array(0.5))
      >>> similarity.reweighted_similarity(fitted, jnp.array([[1.0], [3.0]])).tolist()
      [[2.5, 6.5], [6.5, 18.5]]

    References:
      Marjieh et al. (2023), arXiv:2206.04105. :cite:`words-human-similarity`
    """
    weighted = features * fitted.weights[None, :]
    return fitted.intercept + jnp.matmul(weighted, features.T, precision="highest")


def cross_validate_reweighting(
    key: PRNGKey,
    features: Float[Array, "n d"],
    judged: Float[Array, "n n"],
    *,
    ridge: Scalar,
    num_folds: int = 4,
) -> CrossValidation:
    """Correlation over pairs of stimuli that the weights were not fitted to.

    Folds are of stimuli: folds of pairs would have every stimulus on both sides.

    Args:
      key: a PRNG key.
      features: ``[n, d]``, representations.
      judged: ``[n, n]``, symmetric.
      ridge: > 0, as in `fit_reweighting`.
      num_folds: >= 2, of at least 3 stimuli each.

    Returns:
      `CrossValidation`, one correlation for each fold, with and without weights.

    Raises:
      ValueError: as `fit_reweighting`, or folds of fewer than 3 stimuli.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import similarity
      >>> z = jax.random.normal(jax.random.key(0), (40, 5))
      >>> judged = z[:, :1] @ z[:, :1].T
      >>> found = similarity.cross_validate_reweighting(jax.random.key(1), z, judged, ridge=1.0)
      >>> bool(found.reweighted.min() > 0.99), bool(found.unweighted.max() < 0.8)
      (True, True)

    References:
      Marjieh et al. (2023), arXiv:2206.04105. :cite:`words-human-similarity`
    """
    n = len(judged)
    if num_folds < 2 or n // num_folds < 3:
        raise ValueError(
            f"Expected at least 2 folds of at least 3 stimuli, got num_folds={num_folds} of {n}."
        )
    check_similarities(judged=judged)
    folds = jax.random.permutation(key, n) % num_folds
    plain = jnp.matmul(features, features.T, precision="highest")

    def of_fold(fold: Array) -> tuple[Array, Array]:
        held_out = folds == fold
        fitted = fit_reweighting(features, judged, ridge=ridge, stimuli=~held_out)
        counted = pairs(held_out, judged)
        predicted = reweighted_similarity(fitted, features)
        return correlation(predicted, judged, counted), correlation(plain, judged, counted)

    return CrossValidation(*jax.lax.map(of_fold, jnp.arange(num_folds)))
