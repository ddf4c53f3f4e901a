"""Sums over all pairs of numbers without forming the pairs: n log n by sorting."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradkin.typing import Array


class PairSums(NamedTuple):
    """For each number ``i``, sums over all ``j``; ``a_ij = |x_i - x_j|``, ``b_ij = |y_i - y_j|``.

    Attributes:
      a: ``sum_j a_ij``, ``[n]``.
      b: ``sum_j b_ij``, ``[n]``.
      ab: ``sum_j a_ij b_ij``, ``[n]``.
    """

    a: Array
    b: Array
    ab: Array


def pair_sums(x: Array, y: Array) -> PairSums:
    """Sums over ``j`` of distances and of products of distances (after Huo & Szekely 2016).

    The sign of ``(x_i - x_j) (y_i - y_j)`` tells which half plane ``j`` lies in, so the sum of
    products is that of products without bars, less twice the discordant ones. Those are sums over
    points to the lower left and to the upper right, found for all points at once by halving the
    ranks of ``y``, bit by bit, as radix sort does.

    Args:
      x: ``[n]``.
      y: ``[n]``.

    Returns:
      `PairSums`, in the order of the points. Distances of zero have derivative zero.

    References:
      Huo & Szekely (2016), "Fast Computing for Distance Covariance", Technometrics 58.
      :cite:`huo:16`

    Note:
      They merge-sort with a balanced tree of partial sums; the halving here does the same sums with
      vector operations.
    """
    by_x = jnp.lexsort((y, x))
    place = jnp.zeros_like(by_x).at[by_x].set(jnp.arange(len(x)))
    x, y = x[by_x], y[by_x]
    by_y = jnp.argsort(y)
    rank = jnp.zeros_like(by_x).at[by_y].set(jnp.arange(len(y)))
    same_x, same_y = runs(x), runs(y[by_y])[rank]
    same_both = jnp.cumsum(changes(x) | changes(y))
    # Sums of products of large numbers would cancel; distances do not see the shift.
    x, y = x - jnp.mean(x), y - jnp.mean(y)
    values = jnp.stack([jnp.ones_like(x), x, y, x * y])

    def products(sums: Array) -> Array:
        """``sum_j (x_i - x_j) (y_i - y_j)`` of the sums of values over some j."""
        return x * y * sums[0] - x * sums[2] - y * sums[1] + sums[3]

    agree = products(concordant(rank, values))
    # In this order all ties agree. Halfway they have no sign: the same value, another derivative.
    tied = run_sums(values, same_x) + run_sums(values, same_y) - run_sums(values, same_both)
    half = products(tied) / 2
    agree = agree - (half - lax.stop_gradient(half))
    everything = products(jnp.sum(values, axis=1, keepdims=True))
    sums = (row_sums(x, same_x), row_sums(y, same_y), 2 * agree - everything)
    return PairSums(*(s[place] for s in sums))


def changes(ordered: Array) -> Array:
    """Which of ``[n]`` numbers differ from the one before."""
    return jnp.concatenate([jnp.zeros(1, bool), ordered[1:] != ordered[:-1]])


def runs(ordered: Array) -> Array:
    """For each of ``[n]`` ordered numbers how many different ones are less."""
    return jnp.cumsum(changes(ordered))


def run_sums(values: Array, run: Array) -> Array:
    """Sums of ``[c, n]`` values over the points of the same run, for each point."""
    return jax.ops.segment_sum(values.T, run, len(run))[run].T


def row_sums(x: Array, run: Array) -> Array:
    """``sum_j |x_i - x_j|`` of ``[n]`` numbers, of which those of the same run are equal."""
    below = jnp.pad(jnp.cumsum(x[jnp.argsort(run)]), (1, 0))
    sizes = jnp.zeros_like(run).at[run].add(1)
    at_most = jnp.cumsum(sizes)[run]
    less = at_most - sizes[run]
    # Equal numbers are on neither side.
    surplus = (less + at_most - len(x)).astype(x.dtype)
    return x * surplus + (below[-1] - below[less] - below[at_most])


def concordant(rank: Array, values: Array) -> Array:
    """``sum_j values[:, j]`` over ``j < i`` of lower rank and ``j > i`` of higher rank.

    Args:
      rank: ``[n]``, a permutation of 0, ..., n - 1.
      values: ``[c, n]``.

    Returns:
      ``[c, n]``.
    """
    size = len(rank)
    bits = (size - 1).bit_length()
    extra = 2**bits - size
    # Filled up with zeros of the highest ranks, so that every group is full.
    rank = jnp.concatenate([rank, jnp.arange(size, size + extra, dtype=rank.dtype)])
    values = jnp.pad(values, ((0, 0), (0, extra)))
    original, place = rank, jnp.arange(2**bits, dtype=rank.dtype)
    totals = jnp.zeros_like(values)
    for bit in reversed(range(bits)):
        # Groups of equal higher bits, in the order of the points; half of each have this bit.
        groups, width = 2 ** (bits - 1 - bit), 2 ** (bit + 1)
        high = ((rank >> bit) & 1).reshape((groups, width))
        grouped = values.reshape((-1, groups, width))
        nothing = jnp.zeros_like(grouped)
        below = lax.cumsum(jnp.where(high == 0, grouped, nothing), axis=2)
        above = lax.cumsum(jnp.where(high == 1, grouped, nothing), axis=2, reverse=True)
        totals = totals + jnp.where(high == 1, below, above).reshape((-1, 2**bits))
        # The lower half of a group, then the upper half: a stable partition.
        among_low, among_high = lax.cumsum(1 - high, axis=1), lax.cumsum(high, axis=1)
        number = jnp.where(high == 1, width // 2 + among_high, among_low) - 1
        start = width * jnp.arange(groups, dtype=number.dtype)[:, None]
        source = jnp.zeros_like(place).at[jnp.ravel(start + number)].set(place)
        totals, values, rank = totals[:, source], values[:, source], rank[source]
    # They are sorted by rank now.
    return totals[:, original[:size]]
