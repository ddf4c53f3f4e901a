"""How good scores of training examples are: what they say of models trained on other data."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from gradkin.gradients.leave_one_out import retrain
from gradkin.matrices import products
from gradkin.typing import Array, PRNGKey


def random_subsets(
    key: PRNGKey, num_subsets: int, num_examples: int, *, fraction: float = 0.5
) -> Bool[Array, "subsets examples"]:
    """Random subsets of one size, as masks.

    Args:
      key: PRNG key.
      num_subsets: how many.
      num_examples: of how many examples.
      fraction: share of the examples in each subset, in (0, 1); the number is rounded down.

    Returns:
      Masks ``[num_subsets, num_examples]``, each with the same number of True.

    Raises:
      ValueError: a fraction that leaves no example in or none out.

    Example:
      >>> import jax
      >>> from gradkin import gradients
      >>> gradients.random_subsets(jax.random.key(0), 3, 10).sum(axis=1).tolist()
      [5, 5, 5]
    """
    size = int(np.floor(fraction * num_examples))
    if not 0 < size < num_examples:
        raise ValueError(
            f"Expected fraction to leave some of {num_examples} examples in and some out, got "
            f"fraction={fraction}."
        )
    first = jnp.arange(num_examples) < size
    return jax.vmap(lambda k: jax.random.permutation(k, first))(jax.random.split(key, num_subsets))


def linear_datamodeling_score(
    scores: Float[Array, "examples queries"],
    subsets: Bool[Array, "subsets examples"],
    outputs: Float[Array, "subsets queries"],
) -> Float[Array, " queries"]:
    """LDS: whether sums of scores rank models trained on subsets (Park et al. 2023, def. 2).

    The Spearman correlation, over subsets ``S``, between ``sum_{i in S} scores_ij`` and the output
    for query ``j`` of a model trained on ``S``. Average it over queries.

    Args:
      scores: attribution scores ``[n, m]``, positive where an example raises the output.
      subsets: masks ``[R, n]``, as `random_subsets` draws them.
      outputs: what was measured, ``[R, m]``; an average over several trainings for each subset is
        less noisy.

    Returns:
      Correlations ``[m]`` in [-1, 1]; zero where predictions or outputs are all equal, NaN where
      one of them is.

    Raises:
      ValueError: shapes that disagree, or fewer than two subsets.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> subsets = jnp.array([[True, False], [False, True], [True, True]])
      >>> scores, outputs = jnp.array([[1.0], [2.0]]), jnp.array([[0.1], [0.2], [0.4]])
      >>> gradients.linear_datamodeling_score(scores, subsets, outputs).tolist()
      [1.0]

    References:
      Park et al. (2023), "TRAK: Attributing Model Behavior at Scale", arXiv:2303.14186,
      definition 2.3. :cite:`park:23`
    """
    num, length = subsets.shape
    if num < 2:
        raise ValueError(f"Expected at least 2 subsets, got {num}.")
    if scores.shape[0] != length or outputs.shape != (num, scores.shape[1]):
        raise ValueError(
            f"Expected scores [{length}, m] and outputs [{num}, m] beside subsets "
            f"{subsets.shape}, got {scores.shape} and {outputs.shape}."
        )
    predicted = jnp.matmul(subsets.astype(scores.dtype), scores, precision=products.HIGHEST)
    a, b = (_centered_ranks(x) for x in (predicted, outputs))
    both = jnp.sum(a * b, axis=0)
    scale = jnp.sqrt(jnp.sum(a**2, axis=0) * jnp.sum(b**2, axis=0))
    found = jnp.where(scale == 0, jnp.zeros_like(both), both / jnp.where(scale == 0, 1, scale))
    # Ranks would hide it.
    unknown = jnp.isnan(predicted).any(axis=0) | jnp.isnan(outputs).any(axis=0)
    return jnp.where(unknown, jnp.nan, found)


def _centered_ranks(x: Array) -> Array:
    """Ranks down each column minus their mean; equal values share the mean of their ranks."""

    def ranks(column: Array) -> Array:
        ordered = jnp.sort(column)
        below = jnp.searchsorted(ordered, column, side="left")
        upto = jnp.searchsorted(ordered, column, side="right")
        return (below + upto).astype(jnp.float32) / 2

    found = jax.vmap(ranks, in_axes=1, out_axes=1)(x)
    return found - jnp.mean(found, axis=0, keepdims=True)


def brittleness(
    train_fn: Callable[..., Any],
    scores: Float[Array, "examples queries"],
    counts: Sequence[int],
    *,
    batch_size: int | None = None,
) -> Float[Array, "counts queries"]:
    """Outputs of queries after training without the examples that support them most.

    For each query and each number in ``counts`` the examples of highest score are left out and the
    model is trained anew, all in one mapped program. Good scores bring the output down fast;
    compare with random scores, and count how many predictions flip (a margin below zero).

    Args:
      train_fn: ``train_fn(weights)`` with weights ``[n]`` -> outputs of all queries ``[m]``; see
        `retrain`.
      scores: attribution scores ``[n, m]``, positive where an example raises the output.
      counts: how many examples are left out, each from 0 to ``n - 1``.
      batch_size: trainings that run at a time; None for all.

    Returns:
      Outputs ``[counts, m]``, of each query in its own retrained models.

    Raises:
      ValueError: counts out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> x = jnp.array([1.0, 2.0, 6.0])
      >>> fit = lambda w: jnp.sum(w * x)[None] / jnp.sum(w)  # one query: the fitted constant
      >>> gradients.brittleness(fit, x[:, None], (0, 1)).tolist()
      [[3.0], [1.5]]

    References:
      Ilyas et al. (2022), "Datamodels: Predicting Predictions from Training Data",
      arXiv:2202.00622, sec. 4.1. :cite:`ilyas:22`
    """
    num, queries = scores.shape
    counts = tuple(counts)
    if not counts or not all(0 <= count < num for count in counts):
        raise ValueError(f"Expected counts from 0 to {num - 1}, got {counts}.")
    order = jnp.argsort(-scores, axis=0)
    places = jnp.argsort(order, axis=0).T  # [m, n]: 0 for the highest score
    kept = jnp.stack([places >= count for count in counts])
    outputs = retrain(train_fn, kept.reshape((-1, num)), batch_size=batch_size)
    if outputs.shape != (len(counts) * queries, queries):
        raise ValueError(
            f"Expected train_fn to return one output for each of {queries} queries, got shape "
            f"{outputs.shape[1:]}."
        )
    return jnp.diagonal(outputs.reshape((len(counts), queries, queries)), axis1=1, axis2=2)
