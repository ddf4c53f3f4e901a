"""Influence of examples on a target from features of both (LESS), and the best of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int

from gradkin import checks
from gradkin.gradients.gradient_features import unit_rows
from gradkin.matrices import contraction, products
from gradkin.selection.warm_up import fraction_of
from gradkin.typing import Array

MEANS = ("gradient", "cosine")
METRICS = ("cosine", "dot")


def less_queries(
    validation: Float[ArrayLike, "checkpoints queries dim"],
    *,
    subtasks: Int[ArrayLike, " queries"] | None = None,
    num_subtasks: int | None = None,
    validation_mean: str = "gradient",
) -> Float[Array, "checkpoints subtasks dim"]:
    """One vector for each subtask, whose products with rows of norm 1 LESS adds up.

    Args:
      validation: features of validation examples, ``[C, m, k]``.
      subtasks: which subtask each belongs to, ``[m]`` from 0; None for one subtask.
      num_subtasks: ``J``; needed where ``subtasks`` are traced.
      validation_mean: "gradient", the mean of a subtask's features divided by its norm (the
        paper); "cosine", the mean of the features divided by theirs (its released code).

    Returns:
      ``[C, J, k]``; zeros for a subtask whose features are zero.

    Raises:
      TypeError: features that are not floating-point numbers.
      ValueError: shapes that do not fit, a subtask without examples, or another mean.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> validation = jnp.array([[[9.0, 0.0], [0.0, 1.0], [0.0, 3.0]]])
      >>> selection.less_queries(validation, subtasks=jnp.array([0, 1, 1])).tolist()
      [[[1.0, 0.0], [0.0, 1.0]]]

    References:
      Xia et al. (2024), arXiv:2402.04333, sec. 4.2. :cite:`less-data-selection`
    """
    checks.rank(3, validation=validation)
    _floating(validation=validation)
    checks.one_of(MEANS, validation_mean=validation_mean)
    subtasks, count = subtasks_of(subtasks, num_subtasks, np.shape(validation)[1])
    return _queries(
        jnp.asarray(validation), subtasks, count=count, mean=validation_mean, metric="cosine"
    )


def less_scores(
    train: Float[ArrayLike, "checkpoints examples dim"],
    validation: Float[ArrayLike, "checkpoints queries dim"],
    learning_rates: Float[ArrayLike, " checkpoints"],
    *,
    subtasks: Int[ArrayLike, " queries"] | None = None,
    num_subtasks: int | None = None,
    validation_mean: str = "gradient",
    metric: str = "cosine",
) -> Float[Array, " examples"]:
    """How much training on each example lowers the loss of the target (Xia et al. 2024, def. 3.1).

    .. math:: s(z) = \\max_j \\sum_i \\bar\\eta_i \\cos(\\bar g_{ij}, f_i(z))

    with the features ``f_i(z)`` of training examples and the mean features ``g_ij`` of subtask
    ``j``, both under checkpoint ``i``. Longer sequences have shorter gradients; cosines do not
    see it.

    Args:
      train: features of the pool, ``[C, n, k]``, from Adam's directions.
      validation: features of the target's examples, ``[C, m, k]``, from plain gradients.
      learning_rates: weights of the checkpoints, ``[C]``, finite, >= 0 and not all zero.
      subtasks: which subtask each validation example belongs to, ``[m]`` from 0; None for one.
      num_subtasks: ``J``; needed where ``subtasks`` are traced.
      validation_mean: "gradient", the cosine of the mean (the paper); "cosine", the mean of the
        cosines with each validation example, and rates divided by their sum (its released code).
      metric: "cosine"; or "dot", inner products, for comparison.

    Returns:
      ``[n]``. A row of zeros, such as that of an example without tokens to predict, scores 0. NaN
      in a row is NaN in its score; in validation, in all.

    Raises:
      TypeError: features that are not floating-point numbers.
      ValueError: checkpoints or dimensions that differ, rates that are negative, not finite or all
        zero, a subtask without examples, or other options.

    Note:
      A subtask without examples that cannot be noticed, because ``subtasks`` are traced, counts
      for nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> train = jnp.array([[[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [0.0, 0.0]]])
      >>> target = jnp.array([[[1.0, 0.0], [3.0, 0.0]]])
      >>> selection.less_scores(train, target, jnp.ones(1)).tolist()
      [1.0, 0.0, -1.0, 0.0]

    References:
      Xia et al. (2024), "LESS: Selecting Influential Data for Targeted Instruction Tuning",
      arXiv:2402.04333, def. 3.1 and sec. 4.2. :cite:`less-data-selection`
    """
    checks.rank(3, train=train, validation=validation)
    _floating(train=train, validation=validation)
    checks.one_of(MEANS, validation_mean=validation_mean)
    checks.one_of(METRICS, metric=metric)
    if metric == "dot" and validation_mean != "gradient":
        raise ValueError("Expected validation_mean='gradient' with metric='dot', got 'cosine'.")
    ours, theirs = np.shape(train), np.shape(validation)
    if ours[0] != theirs[0] or ours[2] != theirs[2]:
        raise ValueError(
            "Expected features of the same checkpoints and dimension, got "
            f"train.shape={ours} and validation.shape={theirs}."
        )
    if not ours[1]:
        raise ValueError(f"Expected train to hold an example, got train.shape={ours}.")
    if np.shape(learning_rates) != (ours[0],):
        raise ValueError(
            f"Expected {ours[0]} learning_rates, one per checkpoint, got shape "
            f"{np.shape(learning_rates)}."
        )
    if checks.is_concrete(learning_rates):
        rates = np.asarray(learning_rates)
        if not (np.all(np.isfinite(rates)) and np.all(rates >= 0) and np.any(rates > 0)):
            raise ValueError(
                "Expected finite learning_rates that are >= 0 and not all zero, got "
                f"learning_rates={rates.tolist()}."
            )
    subtasks, count = subtasks_of(subtasks, num_subtasks, theirs[1])
    return _scores(
        jnp.asarray(train),
        jnp.asarray(validation),
        jnp.asarray(learning_rates),
        subtasks,
        count=count,
        mean=validation_mean,
        metric=metric,
    )


def select_top_fraction(
    scores: Float[ArrayLike, " examples"], fraction: float | int
) -> Int[Array, " selected"]:
    """The share of examples with the highest scores.

    Args:
      scores: ``[n]``.
      fraction: in (0, 1]; ``fraction * n`` is rounded to the nearest whole number, at least one.

    Returns:
      Their numbers, best first; of equal scores the first.

    Raises:
      ValueError: another fraction; no scores; or, where scores can be read, NaN among them (else
        NaN comes last).

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> selection.select_top_fraction(jnp.array([0.1, 0.9, 0.5, 0.9]), 0.5).tolist()
      [1, 3]
    """
    checks.rank(1, scores=scores)
    if not np.size(scores):
        raise ValueError("Expected at least one score, got none.")
    count = fraction_of(fraction, np.shape(scores)[0])
    if checks.is_concrete(scores):
        bad = int(np.isnan(np.asarray(scores)).sum())
        if bad:
            first = int(np.argmax(np.isnan(np.asarray(scores))))
            raise ValueError(
                f"Expected scores without NaN, got {bad} of {np.size(scores)}, first of example "
                f"{first}: NaN or infinity in its features, or in those of validation."
            )
    return _top(jnp.asarray(scores), count=count)


def _floating(**features: Any) -> None:
    for name, values in features.items():
        if not jnp.issubdtype(jnp.result_type(values), jnp.floating):
            raise TypeError(
                f"Expected {name} of floating-point numbers, got dtype {jnp.result_type(values)}."
            )


def subtasks_of(subtasks: Any, num_subtasks: int | None, m: int) -> tuple[Array, int]:
    """The subtask of every validation example, and how many subtasks there are."""
    if subtasks is None:
        subtasks = np.zeros(m, np.int32)
    if np.shape(subtasks) != (m,):
        raise ValueError(
            f"Expected subtasks of shape ({m},), one per validation example, got "
            f"{np.shape(subtasks)}."
        )
    if not checks.is_concrete(subtasks):
        if num_subtasks is None:
            raise ValueError("Expected num_subtasks where subtasks are traced, got None.")
        return jnp.asarray(subtasks), num_subtasks
    found = np.asarray(subtasks)
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"Expected subtasks to be integers, got {found.dtype}.")
    count = int(found.max(initial=-1)) + 1 if num_subtasks is None else num_subtasks
    sizes = np.bincount(found, minlength=count) if np.all(found >= 0) else np.zeros(0, int)
    if len(sizes) != count or count == 0 or not sizes.all():
        raise ValueError(
            f"Expected subtasks from 0 to {count - 1}, each with an example, got "
            f"{sorted(set(found.tolist()))}."
        )
    return jnp.asarray(found.astype(np.int32)), count


@functools.partial(jax.jit, static_argnames=("count", "mean", "metric"), inline=True)
def _queries(validation: Array, subtasks: Array, *, count: int, mean: str, metric: str) -> Array:
    rows = validation.astype(contraction.at_least_float32(validation.dtype))
    if mean == "cosine":
        rows = unit_rows(rows)
    # A sum over segments: NaN of one subtask is no other's.
    sums = jax.vmap(lambda x: jax.ops.segment_sum(x, subtasks, num_segments=count))(rows)
    sizes = _sizes(subtasks, count).astype(rows.dtype)[None, :, None]
    means = sums / jnp.maximum(sizes, 1)
    return unit_rows(means) if metric == "cosine" and mean == "gradient" else means


@functools.partial(jax.jit, static_argnames=("count", "mean", "metric"), inline=True)
def _scores(
    train: Array,
    validation: Array,
    rates: Array,
    subtasks: Array,
    *,
    count: int,
    mean: str,
    metric: str,
) -> Array:
    queries = _queries(validation, subtasks, count=count, mean=mean, metric=metric)
    dtype = np.promote_types(contraction.at_least_float32(train.dtype), queries.dtype)
    rates = rates.astype(dtype)
    if mean == "cosine":
        rates = rates / jnp.sum(rates)

    def add(total: Array, checkpoint: Any) -> tuple[Array, None]:
        rows, ours, rate = checkpoint
        rows = rows.astype(dtype)
        rows = unit_rows(rows) if metric == "cosine" else rows
        return total + rate * jnp.matmul(rows, ours.T, precision=products.HIGHEST), None

    start = jnp.zeros((train.shape[1], count), dtype)
    influence, _ = jax.lax.scan(add, start, (train, queries.astype(dtype), rates))
    there = (_sizes(subtasks, count) > 0)[None]
    return jnp.max(jnp.where(there, influence, -jnp.inf), axis=1)


def _sizes(subtasks: Array, count: int) -> Array:
    """How many validation examples each subtask has."""
    return jax.ops.segment_sum(jnp.ones_like(subtasks), subtasks, num_segments=count)


@functools.partial(jax.jit, static_argnames="count", inline=True)
def _top(scores: Array, *, count: int) -> Array:
    return jax.lax.top_k(jnp.where(jnp.isnan(scores), -jnp.inf, scores), count)[1]
