"""Kendall's rank correlation, also within groups."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Num

from gradkin import checks
from gradkin.typing import Array, ArrayLike


def kendall_tau(
    a: Num[ArrayLike, " n"],
    b: Num[ArrayLike, " n"],
    *,
    groups: Int[ArrayLike, " n"] | None = None,
    mask: Bool[ArrayLike, " n"] | None = None,
) -> Array:
    """Kendall's tau-b: how far two orders agree, from -1 to 1 (Kendall 1945).

    .. math:: \\tau = \\frac{\\sum_{i<j} \\mathrm{sign}(a_i - a_j)\\, \\mathrm{sign}(b_i - b_j)}
        {\\sqrt{\\sum_{i<j} [a_i \\ne a_j] \\; \\sum_{i<j} [b_i \\ne b_j]}}

    With groups only pairs of the same group count, so that what the groups share (a learning rate)
    explains nothing.

    Args:
      a: ``[n]`` numbers.
      b: ``[n]`` numbers.
      groups: ``[n]`` integers; None puts all into one group.
      mask: ``[n]``, which to take; None takes all.

    Returns:
      A scalar; NaN where all pairs are tied in ``a`` or all in ``b``, or where a number that counts
      is NaN. Its cost is the square of ``n``.

    Raises:
      ValueError: arrays that are not of one length.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> a, b = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 2.0, 0.0, 1.0])
      >>> round(float(curvature.kendall_tau(a, b)), 3)
      -0.183
      >>> float(curvature.kendall_tau(a, b, groups=jnp.array([0, 0, 1, 1])))
      1.0

    References:
      Kendall (1945), "The Treatment of Ties in Ranking Problems". :cite:`kendall:45`
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    groups = jnp.zeros(a.shape, np.int32) if groups is None else jnp.asarray(groups)
    mask = jnp.ones(a.shape, bool) if mask is None else jnp.asarray(mask)
    checks.rank(1, a=a)
    for name, value in (("b", b), ("groups", groups), ("mask", mask)):
        if value.shape != a.shape:
            raise ValueError(
                f"Expected {name} to have the shape of a, got {name}.shape={value.shape} and "
                f"a.shape={a.shape}."
            )

    pair = (mask[:, None] & mask[None, :]) & (groups[:, None] == groups[None, :])
    of_a, of_b = _signs(a, pair), _signs(b, pair)
    norm = jnp.sqrt(jnp.sum(of_a**2) * jnp.sum(of_b**2))
    return jnp.sum(of_a * of_b) / norm


def _signs(x: Array, pair: Array) -> Array:
    """Signs of the differences of the pairs that count; elsewhere 0, whatever stands there."""
    rows, columns = x[:, None], x[None, :]
    dtype = jnp.result_type(float)
    sign = (rows > columns).astype(dtype) - (rows < columns).astype(dtype)
    unknown = (rows != rows) | (columns != columns)
    return jnp.where(pair, jnp.where(unknown, jnp.nan, sign), 0)
