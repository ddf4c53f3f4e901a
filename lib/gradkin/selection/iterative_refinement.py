"""Iterative refinement: clusters whose examples still teach the model something are drawn more."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from gradkin import checks
from gradkin.selection.k_means_quality import sample_clusters
from gradkin.typing import Array, ArrayLike, PRNGKey, PyTree, Scalar

RULES = ("softmax", "multiplicative")


class Refinement(NamedTuple):
    """What `iterative_refinement` selected.

    Attributes:
      chosen: ``[n]``, True for selected examples.
      weights: of the clusters before each round and after the last, ``[rounds + 1, k]``.
      model: fitted to the selection of the last round.
    """

    chosen: Array
    weights: Array
    model: PyTree


def update_weights(
    weights: Float[ArrayLike, " k"],
    labels: Int[ArrayLike, " n"],
    scores: Float[ArrayLike, " n"],
    chosen: Bool[ArrayLike, " n"],
    *,
    rule: str = "softmax",
    temperature: Scalar = 1.0,
) -> Float[Array, " k"]:
    """Weights of clusters from the mean scores of their chosen examples (Yu et al. 2024, sec. 3).

    .. math::
        s_j = \\operatorname{mean}_{i \\in C_j \\cap S} s_i, \\qquad
        w_j \\propto e^{s_j / \\tau} \\quad \\text{or} \\quad w_j \\propto w_j s_j

    Clusters of which nothing is chosen keep their weight; the others share the rest.

    Args:
      weights: ``[k]`` >= 0 with sum 1.
      labels: cluster of each example, ``[n]``.
      scores: how much better the right answer is than the model's, ``[n]``; read where chosen.
      chosen: ``[n]``.
      rule: "softmax" as in the released code, or "multiplicative" as in the paper, for which the
        means must be positive.
      temperature: of the softmax, > 0.

    Returns:
      New weights, ``[k]``, with sum 1.

    Raises:
      ValueError: another rule, arguments of different lengths, a negative weight, or, where they
        can be read, chosen scores of NaN, or negative means with "multiplicative". Inside `jit`
        such means give weights without meaning.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> w, labels = jnp.array([0.5, 0.25, 0.25]), jnp.array([0, 0, 1, 2])
      >>> scores, chosen = jnp.array([1.0, 3.0, 2.0, 9.0]), jnp.array([True, True, True, False])
      >>> selection.update_weights(w, labels, scores, chosen).tolist()
      [0.375, 0.375, 0.25]

    References:
      Yu, Chen, Ahmadian & Fadaee (2024), arXiv:2409.11378, sec. 3. :cite:`diversify-and-conquer`
    """
    checks.one_of(RULES, rule=rule)
    checks.positive(temperature=temperature)
    checks.non_negative(weights=weights)
    weights, labels = jnp.asarray(weights), jnp.asarray(labels)
    scores, chosen = jnp.asarray(scores), jnp.asarray(chosen)
    if not labels.shape == scores.shape == chosen.shape:
        raise ValueError(
            f"Expected labels, scores and chosen of one length, got {labels.shape}, "
            f"{scores.shape} and {chosen.shape}."
        )
    scores = jnp.where(chosen, scores, 0)
    if checks.is_concrete(scores) and np.any(np.isnan(np.asarray(scores))):
        raise ValueError("Expected scores of chosen examples without NaN.")
    k = len(weights)
    counts = jax.ops.segment_sum(chosen.astype(scores.dtype), labels, k)
    means = jax.ops.segment_sum(scores, labels, k) / jnp.maximum(counts, 1)
    seen = counts > 0
    share = jnp.sum(jnp.where(seen, weights, 0))
    whole = jnp.where(share > 0, share, 1)
    if rule == "softmax":
        fresh = jax.nn.softmax(means / temperature, where=seen, axis=0)
    else:
        if checks.is_concrete(means) and np.any(np.asarray(means) < 0):
            raise ValueError(
                "Expected positive scores for rule='multiplicative', got a cluster with mean "
                f"{jnp.min(means)}: shift them, or rule='softmax'."
            )
        products = jnp.where(seen, weights * means, 0)
        total = jnp.sum(products)
        # Where all means are zero, no cluster is better than another.
        fresh = jnp.where(total > 0, products / jnp.where(total > 0, total, 1), weights / whole)
    return jnp.where(seen, share * fresh, weights)


def iterative_refinement(
    key: PRNGKey,
    labels: Int[ArrayLike, " n"],
    budget: int,
    fit: Callable[..., Any],
    score: Callable[..., Any],
    *,
    num_clusters: int,
    rounds: int = 4,
    rule: str = "softmax",
    temperature: Scalar = 1.0,
    logits: Float[ArrayLike, " n"] | None = None,
) -> Refinement:
    """Select in rounds, each from clusters that the last model has most to learn of.

    Round ``t`` (Yu et al. 2024, alg. 1) draws the cluster of each of its ``budget / rounds``
    examples from the weights, which begin equal, then as many examples of each cluster that were
    not selected before; fits a model to all selected; scores them; and updates the weights.

    Args:
      key: PRNG key.
      labels: cluster of each example, ``[n]``, as from `k_means`; fixed throughout.
      budget: how many to select altogether; a multiple of ``rounds``.
      fit: ``fit(key, chosen [n]) -> model``.
      score: ``score(model, chosen) -> [n]``: reward of the right answer less that of the model's
        own; only the chosen are read.
      num_clusters: ``k``.
      rounds: models to fit.
      rule: see `update_weights`.
      temperature: see `update_weights`.
      logits: draw within clusters by ``softmax(logits)``; None uniformly, as the paper does.

    Returns:
      `Refinement`. Where a cluster has fewer examples left than were drawn, fewer than ``budget``
      are selected.

    Raises:
      ValueError: a budget that is not a multiple of ``rounds``, or above the number of examples;
        as `sample_clusters` and `update_weights` do.

    Note:
      The released code divides the size of a round by the number of clusters once too often; here
      a round draws ``budget / rounds`` examples. It scores all selected examples in each round, as
      is done here, where the paper speaks of new ones.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import selection
      >>> labels = jnp.arange(20) % 2
      >>> fit = lambda key, chosen: None
      >>> score = lambda model, chosen: jnp.where(labels == 0, 9.0, -9.0)  # the rest is noise
      >>> found = selection.iterative_refinement(
      ...     jax.random.key(0), labels, 8, fit, score, num_clusters=2, rounds=2
      ... )
      >>> found.weights.round(2).tolist()
      [[0.5, 0.5], [1.0, 0.0], [1.0, 0.0]]

    References:
      Yu, Chen, Ahmadian & Fadaee (2024), arXiv:2409.11378, alg. 1. :cite:`diversify-and-conquer`
    """
    labels = jnp.asarray(labels)
    if rounds < 1 or budget < 1 or budget % rounds:
        raise ValueError(
            f"Expected budget to be a positive multiple of rounds, got budget={budget} and "
            f"rounds={rounds}."
        )
    if budget > len(labels):
        raise ValueError(f"Expected budget <= the {len(labels)} examples, got budget={budget}.")
    weights = [jnp.full(num_clusters, 1 / num_clusters)]
    chosen, model = jnp.zeros(len(labels), bool), None
    for for_round in jax.random.split(key, rounds):
        for_clusters, for_examples, for_fit = jax.random.split(for_round, 3)
        drawn = jax.random.categorical(
            for_clusters, jnp.log(weights[-1]), shape=(budget // rounds,)
        )
        counts = jnp.bincount(drawn, length=num_clusters)
        chosen = chosen | sample_clusters(
            for_examples, labels, counts, logits=logits, available=~chosen
        )
        model = fit(for_fit, chosen)
        weights.append(
            update_weights(
                weights[-1],
                labels,
                score(model, chosen),
                chosen,
                rule=rule,
                temperature=temperature,
            )
        )
    return Refinement(chosen, jnp.stack(weights), model)
