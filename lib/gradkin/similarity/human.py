"""Agreement of similarities with human judgments, and what noise in the judgments allows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from gradkin import checks
from gradkin.similarity.correlation import check_similarities, check_stimuli, correlation, pairs
from gradkin.typing import Array, PRNGKey, Scalar


class MantelTest(NamedTuple):
    """A correlation of two similarity matrices and its p-value.

    Attributes:
      correlation: Pearson's, over pairs of stimuli.
      p_value: one-sided; the share of permutations, the identity included, that reach it to
        rounding. NaN where the correlation is.
    """

    correlation: Array
    p_value: Array


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
