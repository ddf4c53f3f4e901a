"""Measures against human judgments of similarity: agreement, ceilings, tags, re-weighting."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from gradkin import checks
from gradkin.similarity.features import sum_over_features
from gradkin.typing import Array, PRNGKey, Scalar

TAG_MODES = ("jaccard", "tfidf", "embedding")


class MantelTest(NamedTuple):
    """A correlation of two similarity matrices and its p-value.

    Attributes:
      correlation: Pearson's, over pairs of stimuli.
      p_value: one-sided; the share of permutations, the identity included, that reach it to
        rounding. NaN where the correlation is.
    """

    correlation: Array
    p_value: Array


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


class Agreement(NamedTuple):
    """How often a measure agrees with judges who choose between two alternatives.

    Attributes:
      score: the share of judgments it agrees with; a tie counts half.
      ceiling: the score of always siding with the majority.
    """

    score: Array
    ceiling: Array


def similarity_correlation(
    predicted: Float[Array, "n n"],
    judged: Float[Array, "n n"],
    *,
    stimuli: Bool[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Pearson's correlation of two similarity matrices over pairs (Marjieh et al. 2023).

    Args:
      predicted: ``[n, n]``, symmetric; the diagonal is ignored and may be NaN.
      judged: ``[n, n]``, symmetric, such as mean ratings.
      stimuli: ``[n]``, which stimuli count, a pair where both do; at least 3, all by default.

    Returns:
      In [-1, 1]; NaN where either is constant over the pairs.

    Raises:
      ValueError: fewer than 3 stimuli, sizes that differ, a matrix that is not symmetric.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> judged = jnp.array([[9.0, 1.0, 2.0], [1.0, 9.0, 4.0], [2.0, 4.0, 9.0]])
      >>> round(float(similarity.similarity_correlation(1 - judged, judged)), 4)
      -1.0

    References:
      Marjieh et al. (2023), "Words Are All You Need? Language as an Approximation for Human
      Similarity Judgments", arXiv:2206.04105. :cite:`words-human-similarity`
    """
    check_similarities(predicted=predicted, judged=judged)
    check_stimuli(stimuli, len(judged))
    return correlation(predicted, judged, pairs(stimuli, judged))


def mantel_test(
    key: PRNGKey,
    predicted: Float[Array, "n n"],
    judged: Float[Array, "n n"],
    *,
    num_permutations: int = 999,
) -> MantelTest:
    """Whether two similarity matrices agree more than by chance (Mantel 1967).

    Permutes stimuli, not pairs: pairs that share a stimulus are not independent.

    Args:
      key: a PRNG key.
      predicted: ``[n, n]``, symmetric.
      judged: ``[n, n]``, symmetric.
      num_permutations: >= 1.

    Returns:
      `MantelTest`, whose p-value is at least ``1 / (num_permutations + 1)``.

    Raises:
      ValueError: as `similarity_correlation`, or no permutations.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import similarity
      >>> x = jnp.arange(20.0)
      >>> judged = -jnp.abs(x[:, None] - x[None, :])
      >>> found = similarity.mantel_test(jax.random.key(0), judged, judged, num_permutations=99)
      >>> round(float(found.p_value), 2)
      0.01

    References:
      Mantel (1967), "The Detection of Disease Clustering and a Generalized Regression Approach",
      Cancer Research 27. :cite:`mantel:67`
    """
    checks.positive(num_permutations=num_permutations)
    observed = similarity_correlation(predicted, judged)
    counted = pairs(None, judged)

    def shuffled(key: PRNGKey) -> Array:
        order = jax.random.permutation(key, len(judged))
        return correlation(predicted, judged[order][:, order], counted)

    null = jax.lax.map(shuffled, jax.random.split(key, num_permutations))
    # Sums in another order differ by rounding where permutations tie.
    rounding = 8 * jnp.finfo(observed.dtype).eps
    reached = jnp.sum((null >= observed - rounding).astype(observed.dtype))
    # NaN compares false, which would look significant.
    p_value = jnp.where(jnp.isnan(observed), jnp.nan, (1 + reached) / (1 + num_permutations))
    return MantelTest(observed, p_value)


def split_half_reliability(
    key: PRNGKey, ratings: Float[Array, "raters items"], *, num_splits: int = 100
) -> Float[Array, ""]:
    """Reliability of mean ratings, from the agreement of random halves of the raters.

    .. math:: r_{sb} = \\frac{2 r}{1 + r}

    for the correlation r of two halves' means (Spearman 1910, Brown 1910). It is r that is averaged
    over splits: the formula has a pole at -1, where a single split would outweigh all others.

    Args:
      key: a PRNG key.
      ratings: ``[raters, items]``, at least two raters; an item may be a pair of stimuli.
      num_splits: >= 1, random splits; with an odd number of raters each leaves one out.

    Returns:
      At most 1; without a bound below, to ``-inf`` for a mean r of -1. What a prediction without
      noise can correlate with the mean ratings is `noise_ceiling` of it. NaN where the mean of a
      half is constant over items.

    Raises:
      ValueError: fewer than two raters or three items, or no splits.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import similarity
      >>> ratings = jnp.tile(jnp.arange(5.0), (4, 1))
      >>> round(float(similarity.split_half_reliability(jax.random.key(0), ratings)), 4)
      1.0

    References:
      Spearman (1910), "Correlation Calculated from Faulty Data", British Journal of Psychology 3.
      :cite:`spearman:10`
    """
    checks.rank(2, ratings=ratings)
    checks.positive(num_splits=num_splits)
    half = ratings.shape[0] // 2
    if half < 1 or ratings.shape[1] < 3:
        raise ValueError(
            f"Expected at least 2 raters and 3 items, got ratings.shape={ratings.shape}."
        )
    counted = jnp.ones(ratings.shape[1], ratings.dtype)

    def of_split(key: PRNGKey) -> Array:
        order = jax.random.permutation(key, ratings.shape[0])
        one, other = (
            jnp.mean(ratings[chosen], axis=0) for chosen in (order[:half], order[half : 2 * half])
        )
        return correlation(one, other, counted)

    r = jnp.mean(jax.lax.map(of_split, jax.random.split(key, num_splits)))
    r = jnp.clip(r, -1, 1)  # rounding beyond the pole would change the sign
    return 2 * r / (1 + r)


def noise_ceiling(reliability: Scalar) -> Float[Array, ""]:
    """What a perfect prediction correlates with unreliable ratings: ``sqrt(r_sb)``.

    Args:
      reliability: of the ratings, at most 1, from `split_half_reliability`.

    Returns:
      In [0, 1]; 0 for ratings whose estimated reliability is not positive.

    Raises:
      ValueError: a reliability above 1.

    Example:
      >>> from gradkin import similarity
      >>> float(similarity.noise_ceiling(0.25))
      0.5

    References:
      Spearman (1910). :cite:`spearman:10`
    """
    if checks.is_concrete(reliability) and reliability > 1 + 1e-6:
        raise ValueError(f"Expected reliability <= 1, got reliability={reliability}.")
    reliability = jnp.asarray(reliability)
    unreliable = reliability <= 0
    return jnp.where(unreliable, 0, jnp.sqrt(jnp.where(unreliable, 1, reliability)))


def tag_similarity(
    tags: Float[Array, "n v"],
    *,
    mode: str = "jaccard",
    embeddings: Float[Array, "v d"] | None = None,
) -> Float[Array, "n n"]:
    """Similarity of stimuli from the tags that people gave them (Marjieh et al. 2023).

    ===========  ===================================================================
    mode         similarity of stimuli with tag weights s and t
    ===========  ===================================================================
    jaccard      ``sum_k min(s_k, t_k) / sum_k max(s_k, t_k)``: on sets, Jaccard's index
    tfidf        cosine, where tags that many stimuli have count less
    embedding    cosine of the weighted mean embeddings of their tags
    ===========  ===================================================================

    Args:
      tags: ``[n, v]``, not negative: which of ``v`` tags a stimulus has, or how much.
      mode: "jaccard", "tfidf" or "embedding".
      embeddings: ``[v, d]``, vectors of the tags, for "embedding" only.

    Returns:
      ``[n, n]``, symmetric. Under a transformation, where that cannot be refused, a stimulus
      without tags is similar to none.

    Raises:
      ValueError: an unknown mode, embeddings missing or not used, tags that are negative, a
        stimulus without tags.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> tags = jnp.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
      >>> similarity.tag_similarity(tags)[0].round(4).tolist()
      [1.0, 0.33329999446868896, 1.0]

    References:
      Marjieh et al. (2023), arXiv:2206.04105. :cite:`words-human-similarity`

    Note:
      Inverse document frequencies are smoothed: ``1 + log((1 + n) / (1 + stimuli with the tag))``.
    """
    checks.one_of(TAG_MODES, mode=mode)
    checks.rank(2, tags=tags)
    checks.non_negative(tags=tags)
    if (embeddings is None) == (mode == "embedding"):
        raise ValueError(f"Expected embeddings with mode='embedding' only, got mode={mode!r}.")
    if checks.is_concrete(tags) and not np.all(np.any(np.asarray(tags) > 0, axis=1)):
        without = np.flatnonzero(~np.any(np.asarray(tags) > 0, axis=1)).tolist()
        raise ValueError(f"Expected every stimulus to have tags, got none at rows {without[:8]}.")
    if mode == "jaccard":
        smaller, sizes = sum_over_features(jnp.minimum, tags, tags), jnp.sum(tags, axis=1)
        larger = sizes[:, None] + sizes[None, :] - smaller
        empty = larger == 0
        return jnp.where(empty, 0, smaller / jnp.where(empty, 1, larger))
    if mode == "tfidf":
        found = jnp.sum((tags > 0).astype(tags.dtype), axis=0)
        vectors = tags * (1 + jnp.log((1 + len(tags)) / (1 + found)))[None, :]
    else:
        vectors = jnp.matmul(tags, jnp.asarray(embeddings), precision="highest")
    squares = jnp.sum(jnp.square(vectors), axis=1, keepdims=True)
    zero = squares == 0
    vectors = jnp.where(zero, 0, vectors * jax.lax.rsqrt(jnp.where(zero, 1, squares)))
    return jnp.matmul(vectors, vectors.T, precision="highest")


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


def two_alternative_agreement(
    distance_a: Float[Array, " n"],
    distance_b: Float[Array, " n"],
    preference_b: Float[Array, " n"],
) -> Agreement:
    """How well a measure predicts which of two images judges find closer (Zhang et al. 2018).

    Args:
      distance_a: ``[n]``, the measure's distance from the reference to alternative a.
      distance_b: ``[n]``, to alternative b.
      preference_b: ``[n]``, in [0, 1], the share of judges who prefer b.

    Returns:
      `Agreement`: the score, and the ceiling that the judges' own disagreement sets. The score is
      NaN where any distance is.

    Raises:
      ValueError: shapes that differ, or a share outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> shares = jnp.array([0.75, 0.25])
      >>> found = similarity.two_alternative_agreement(jnp.ones(2), jnp.array([0.5, 1.0]), shares)
      >>> float(found.score), float(found.ceiling)
      (0.625, 0.75)

    References:
      Zhang et al. (2018), "The Unreasonable Effectiveness of Deep Features as a Perceptual
      Metric", arXiv:1801.03924. :cite:`zhang:18`
    """
    if not np.shape(distance_a) == np.shape(distance_b) == np.shape(preference_b):
        raise ValueError(
            "Expected distances and preferences of one shape, got distance_a.shape="
            f"{np.shape(distance_a)}, distance_b.shape={np.shape(distance_b)} and "
            f"preference_b.shape={np.shape(preference_b)}."
        )
    if checks.is_concrete(preference_b):
        shares = np.asarray(preference_b)
        if not np.all((shares >= 0) & (shares <= 1)):
            raise ValueError(
                f"Expected preference_b in [0, 1], got {shares.min()}, {shares.max()}."
            )
    other = 1 - preference_b
    decided = jnp.where(distance_b < distance_a, preference_b, other)
    score = jnp.where(distance_a == distance_b, 0.5, decided)
    # NaN compares false, which would decide for a.
    score = jnp.where(jnp.isnan(distance_a) | jnp.isnan(distance_b), jnp.nan, score)
    return Agreement(jnp.mean(score), jnp.mean(jnp.maximum(preference_b, other)))


def correlation(x: Array, y: Array, weights: Array) -> Array:
    """Weighted Pearson correlation of two arrays; NaN where either is constant."""
    weights = weights / jnp.sum(weights)
    # What does not count may be missing.
    x, y = (jnp.where(weights == 0, 0, value) for value in (x, y))
    mean = lambda value: jnp.sum(weights * value)
    centered = [value - mean(value) for value in (x, y)]
    variances = [mean(jnp.square(value)) for value in centered]
    # What rounding leaves of a constant does not vary.
    rounding = (8 * jnp.finfo(x.dtype).eps) ** 2
    constant = [v <= rounding * mean(jnp.square(value)) for v, value in zip(variances, (x, y))]
    r = mean(centered[0] * centered[1]) / jnp.sqrt(variances[0] * variances[1])
    return jnp.where(constant[0] | constant[1], jnp.nan, r)


def pairs(stimuli: Array | None, like: Array) -> Array:
    """``[n, n]``, 1 for ordered pairs of different stimuli that both count."""
    off_diagonal = 1 - jnp.eye(len(like), dtype=like.dtype)
    if stimuli is None:
        return off_diagonal
    rows = stimuli.astype(like.dtype)
    return off_diagonal * rows[:, None] * rows[None, :]


def check_similarities(**matrices: Any) -> None:
    """Raise ValueError unless they are symmetric matrices of the same three stimuli or more."""
    checks.rank(2, **matrices)
    shapes = {name: np.shape(matrix) for name, matrix in matrices.items()}
    rows, columns = next(iter(shapes.values()))
    if rows < 3 or rows != columns or len(set(shapes.values())) != 1:
        raise ValueError(
            f"Expected [n, n] matrices of the same n >= 3 stimuli, got shapes {shapes}."
        )
    for name, matrix in matrices.items():
        if checks.is_concrete(matrix):
            found = np.asarray(matrix)
            if not np.allclose(found, found.T, rtol=1e-4, atol=1e-5, equal_nan=True):
                raise ValueError(
                    f"Expected {name} to be symmetric, got differences of up to "
                    f"{np.abs(found - found.T).max()}; ({name} + {name}.T) / 2 is."
                )


def check_stimuli(stimuli: Any, n: int) -> None:
    """Raise ValueError unless the mask chooses at least three of ``n`` stimuli."""
    if stimuli is None:
        return
    if np.shape(stimuli) != (n,):
        raise ValueError(f"Expected stimuli of shape ({n},), got {np.shape(stimuli)}.")
    if checks.is_concrete(stimuli) and np.sum(np.asarray(stimuli)) < 3:
        raise ValueError(f"Expected at least 3 stimuli, got {int(np.sum(np.asarray(stimuli)))}.")
