"""From how often documents are wanted to a corpus: budgets, copies, the share of each domain."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Int, Num

from gradkin import checks
from gradkin.matrices.floating import floating
from gradkin.typing import Array, ArrayLike, PRNGKey, Scalar

# Copies that int32 can count.
MOST = 2**31 - 1


def scale_to_budget(
    values: Num[ArrayLike, " d"],
    budget: Scalar,
    *,
    tokens: Num[ArrayLike, " d"] | None = None,
    max_copies: Scalar | None = None,
) -> Float[Array, " d"]:
    """Scale expected copies by one factor so that they make a corpus of a given size.

    .. math:: S'_i = \\min(c\\, S_i, C), \\qquad \\sum_i S'_i t_i = B

    In closed form: of documents in the order of ``S``, the first so many reach the cap.

    Args:
      values: ``[D]`` >= 0, ``S``, as from `sampling_value`.
      budget: ``B`` > 0, tokens to draw.
      tokens: ``[D]`` > 0, lengths ``t``; None counts documents.
      max_copies: ``C`` > 0, of one document; None allows any number.

    Returns:
      ``[D]``, scaled. NaN where nothing can be drawn or, inside `jit`, the cap forbids the budget.

    Raises:
      ValueError: shapes that differ; where they can be read, values that are negative or all zero,
        a number that is not positive, or a budget above what ``max_copies`` allows.

    Note:
      Only ratios of sampling values matter, that of ``eps`` to the rest among them.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> values = jnp.array([3.0, 1.0, 0.0])
      >>> selection.scale_to_budget(values, 2.0).tolist()
      [1.5, 0.5, 0.0]
      >>> selection.scale_to_budget(values, 1.75, max_copies=1.0).tolist()
      [1.0, 0.75, 0.0]
    """
    values = floating(values)
    lengths = _lengths(values, tokens)
    _check_wanted(values)
    checks.positive(budget=budget)
    weights = values * lengths
    if max_copies is None:
        return values * (budget / jnp.sum(weights))
    checks.positive(max_copies=max_copies)
    available = max_copies * jnp.sum(jnp.where(values > 0, lengths, 0))
    slack = 1e-6 * available
    if not isinstance(available + budget, Tracer) and float(budget) > available + slack:
        raise ValueError(
            f"Expected budget <= {float(available)}, {max_copies} copies of all that is wanted, "
            f"got budget={budget}."
        )

    # c_k is the factor if exactly the k documents of the greatest values reach the cap.
    order = jnp.argsort(-values)
    sorted_lengths = lengths[order]
    before = jnp.cumsum(sorted_lengths) - sorted_lengths
    rest = jax.lax.cumsum(weights[order], reverse=True)
    factors = (budget - max_copies * before) / jnp.where(rest > 0, rest, 1)
    fits = (factors * values[order] <= max_copies) & (rest > 0)
    first = jnp.argmax(fits)
    capped = jnp.zeros(len(values), bool).at[order].set(jnp.arange(len(values)) < first)
    # Again from plain sums, which round less than the cumulative ones.
    taken = max_copies * jnp.sum(jnp.where(capped, lengths, 0))
    factor = (budget - taken) / jnp.sum(jnp.where(capped, 0, weights))
    scaled = jnp.minimum(jnp.where(capped, max_copies, factor * values), max_copies)
    every = jnp.where(values > 0, jnp.asarray(max_copies, values.dtype), 0)
    found = jnp.where(jnp.any(fits), scaled, every)
    return jnp.where(budget <= available + slack, found, jnp.nan)


def draw_copies(key: PRNGKey, values: Num[ArrayLike, " d"]) -> Int[Array, " d"]:
    """Whole numbers of copies that are right on average: one more with the probability left.

    Args:
      key: PRNG key; with the same key, documents that are wanted more are never drawn less.
      values: ``[D]`` >= 0, expected copies ``S``.

    Returns:
      ``[D]`` int32: ``floor(S)``, plus one with probability ``S - floor(S)``. Inside `jit`, -1
      where a value is NaN (as from `scale_to_budget`), negative, or too large for int32.

    Raises:
      ValueError: a value that is none of 0, ..., 2^31 - 2, where it can be read.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import selection
      >>> selection.draw_copies(jax.random.key(0), jnp.array([0.0, 3.0])).tolist()
      [0, 3]
    """
    checks.non_negative(values=values)
    values = floating(values)
    values = values.astype(np.promote_types(values.dtype, np.float32))
    countable = (values >= 0) & (values < MOST)
    if checks.is_concrete(countable) and not np.all(countable):
        raise ValueError(f"Expected values below {MOST}, got up to {np.max(np.asarray(values))}.")
    values = jnp.where(countable, values, 0)
    whole = jnp.floor(values)
    more = jax.random.uniform(key, values.shape, values.dtype) < values - whole
    return jnp.where(countable, whole.astype(np.int32) + more.astype(np.int32), -1)


def expected_mixture(
    values: Num[ArrayLike, " d"],
    domain: Int[ArrayLike, " d"],
    num_domains: int,
    *,
    tokens: Num[ArrayLike, " d"] | None = None,
) -> Float[Array, " m"]:
    """What each domain contributes to the corpus that is drawn.

    Args:
      values: ``[D]`` >= 0, expected copies.
      domain: ``[D]`` in 0, ..., M - 1.
      num_domains: ``M``.
      tokens: ``[D]`` > 0, lengths; None counts documents.

    Returns:
      ``[M]`` with sum 1; inside `jit`, NaN where nothing is wanted. The effective number of domains
      is the exponential of its `gradkin.kernels.renyi_entropy`.

    Raises:
      ValueError: shapes that differ, a negative value, or, where they can be read, a domain outside
        its range or values that are all zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> values, domain = jnp.array([1.0, 0.5, 0.5]), jnp.array([0, 1, 1])
      >>> selection.expected_mixture(values, domain, 2).tolist()
      [0.5, 0.5]
    """
    values, domain = floating(values), jnp.asarray(domain)
    _check_wanted(values)
    if domain.shape != values.shape:
        raise ValueError(f"Expected domain of shape {values.shape}, got {domain.shape}.")
    checks.below(num_domains, domain=domain)
    drawn = jax.ops.segment_sum(values * _lengths(values, tokens), domain, num_domains)
    return drawn / jnp.sum(drawn)


def _check_wanted(values: Array) -> None:
    """Raise ValueError for a negative value or none that is positive."""
    checks.non_negative(values=values)
    if checks.is_concrete(values) and not np.any(np.asarray(values) > 0):
        raise ValueError("Expected values of which one is positive, got none: nothing to draw.")


def _lengths(values: Array, tokens: ArrayLike | None) -> Array:
    """Tokens of each document, in the type of the values."""
    checks.rank(1, values=values)
    if not len(values):
        raise ValueError("Expected at least one document, got none.")
    if tokens is None:
        return jnp.ones_like(values)
    checks.positive(tokens=tokens)
    lengths = jnp.asarray(tokens).astype(values.dtype)
    if lengths.shape != values.shape:
        raise ValueError(f"Expected tokens of shape {values.shape}, got {lengths.shape}.")
    return lengths
