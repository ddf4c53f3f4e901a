"""Binary trees of counts along one axis, and sums of distances read off them.

A tree over ``N = 2^h`` cells of ``[lower, upper]`` is a tuple of levels, root first; level ``l``
holds ``[..., 2^l]`` counts. Every sum below is linear in the counts, so noise on them is noise of
known variance on a sum.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin.typing import Array

Nodes = tuple[Array, ...]


def leaf_counts(
    x: Array, labels: Array, keep: Array, lower: Array, upper: Array, num_leaves: int, classes: int
) -> Array:
    """How many rows of each class lie in each cell of each coordinate, int32 ``[C, d, N]``."""
    share = (x - lower[None]) / (upper - lower)[None]
    cells = jnp.clip(jnp.floor(share * num_leaves).astype(np.int32), 0, num_leaves - 1)
    coordinates = jnp.arange(x.shape[1])[None, :]
    weights = jnp.broadcast_to(keep[:, None].astype(np.int32), cells.shape)
    counts = jnp.zeros((classes, x.shape[1], num_leaves), np.int32)
    return counts.at[labels[:, None], coordinates, cells].add(weights)


def levels_above(leaves: Array) -> Nodes:
    """The tree whose last level is given."""
    levels = [leaves]
    while levels[0].shape[-1] > 1:
        levels.insert(0, pair_sums(levels[0]))
    return tuple(levels)


def pair_sums(level: Array) -> Array:
    """Sums of children, ``[..., 2 M] -> [..., M]``."""
    return jnp.sum(jnp.reshape(level, (*level.shape[:-1], -1, 2)), axis=-1, dtype=level.dtype)


def prefix_counts(nodes: Nodes) -> Array:
    """Rows left of each border of a cell ``[..., N + 1]``, each a sum of at most h + 1 nodes.

    The difference of two of them is a sum of at most 2 h nodes: those they share cancel.
    """
    borders = np.arange(nodes[-1].shape[-1] + 1)
    total: Any = 0
    for height, level in enumerate(reversed(nodes)):
        # The binary digits of a border name the blocks to its left.
        block = borders >> height
        used = jnp.asarray(block & 1, level.dtype)
        picked = level[..., np.maximum(block - 1, 0)]
        total = total + picked * jnp.reshape(used, (1,) * (picked.ndim - 1) + (-1,))
    return total


def consistent_leaves(nodes: Nodes) -> Array:
    """Counts of cells ``[..., N]`` that fit the noisy counts of all nodes best.

    Least squares; where all nodes have noise of one variance, every sum over cells has the least
    variance among linear unbiased estimates from the tree (Gauss-Markov; Hay et al. 2010).
    """
    fitted = [nodes[-1]]
    for height, level in enumerate(reversed(nodes[:-1]), start=2):
        own = 2 ** (height - 1) / (2**height - 1)
        fitted.insert(0, own * level + (1 - own) * pair_sums(fitted[0]))
    parents = fitted[0]
    for children in fitted[1:]:
        missing = (parents - pair_sums(children)) / 2
        parents = children + jnp.repeat(missing, 2, axis=-1)
    return parents


def centres(num_leaves: int, lower: Array, upper: Array) -> Array:
    """Centres of the cells ``[N]``, relative to the middle of ``[lower, upper]``."""
    share = (np.arange(num_leaves) + 0.5) / num_leaves - 0.5
    return jnp.asarray(share, lower.dtype) * (upper - lower)


def absolute_distances(leaves: Array, lower: Array, upper: Array, y: Array) -> Array:
    """``sum_j |c_j - y| n_j`` for counts ``[C, N]`` and queries ``[q]``, in O(N + q)."""
    num_leaves = leaves.shape[-1]
    cell = (upper - lower) / num_leaves
    zero = jnp.zeros((*leaves.shape[:-1], 1), leaves.dtype)
    counts = jnp.concatenate([zero, jnp.cumsum(leaves, axis=-1)], -1)
    moments = leaves * centres(num_leaves, lower, upper)[None]
    moments = jnp.concatenate([zero, jnp.cumsum(moments, axis=-1)], -1)
    left = jnp.clip(jnp.floor((y - lower) / cell + 0.5), 0, num_leaves).astype(np.int32)
    from_middle = (y - (lower + upper) / 2)[None]
    return from_middle * (2 * counts[:, left] - counts[:, -1:]) - (
        2 * moments[:, left] - moments[:, -1:]
    )


def distances_through(
    function: Callable[[Array], Array], leaves: Array, lower: Array, upper: Array, y: Array
) -> Array:
    """``sum_j f(|c_j - y|) n_j`` for counts ``[C, N]`` and queries ``[q]``, in O(N q)."""
    from_middle = y - (lower + upper) / 2
    distances = jnp.abs(centres(leaves.shape[-1], lower, upper)[None, :] - from_middle[:, None])
    return jnp.matmul(leaves, function(distances).T, precision=jax.lax.Precision.HIGHEST)


def num_shells(num_leaves: int, alpha: float) -> int:
    """Shells until the innermost is thinner than a cell."""
    return math.ceil(math.log(num_leaves) / math.log1p(alpha)) + 1


def shell_distances(
    function: Callable[[Array], Array] | None,
    alpha: float,
    prefix: Array,
    lower: Array,
    upper: Array,
    y: Array,
) -> Array:
    """Sums of distances by shells, for prefix counts ``[C, N + 1]`` and queries ``[q]``.

    Cells with centres at distance in ``(r / (1 + alpha)^(j + 1), r / (1 + alpha)^j]`` from the
    query count as if they were at the outer radius.
    """
    num_leaves = prefix.shape[-1] - 1
    cell = (upper - lower) / num_leaves
    # The farthest that a point can be from a query, which may lie outside.
    farthest = upper - lower + jnp.maximum(jnp.maximum(lower - y, y - upper), 0)
    powers = (1 + alpha) ** -np.arange(num_shells(num_leaves, alpha) + 1.0)
    radii = farthest[:, None] * jnp.asarray(powers, y.dtype)[None, :]
    position = ((y - lower) / cell)[:, None]
    # Cells with a centre at most `radii` to the right; cells with one more than that to the left.
    right = jnp.floor(position + radii / cell + 0.5)
    left = jnp.ceil(position - radii / cell - 0.5)
    right, left = (jnp.clip(v, 0, num_leaves).astype(np.int32) for v in (right, left))
    in_shell = prefix[:, right[:, :-1]] - prefix[:, right[:, 1:]]
    in_shell = in_shell + prefix[:, left[:, 1:]] - prefix[:, left[:, :-1]]
    weights = radii[:, :-1] if function is None else function(radii[:, :-1])
    return jnp.sum(in_shell * weights[None], axis=-1)


def over_coordinates(sums: Callable[..., Array], trees: Array, *rest: Array) -> Array:
    """Add ``sums(tree [C, .], *rest[k]) -> [C, q]`` over the coordinates of ``[C, d, .]``."""
    parts = jax.lax.map(lambda one: sums(*one), (jnp.moveaxis(trees, 1, 0), *rest))
    return jnp.sum(parts, axis=0)
