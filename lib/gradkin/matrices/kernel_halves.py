"""Symmetric kernel matrices: each pair of points is compared once.

The points are cut into an odd number of equal groups, put in a circle. A panel compares one group
with itself and with the half of the circle that follows it; so two different groups meet exactly
once, and all panels have one shape.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradkin.matrices.kernel_tiles import Side, block_of, entries, pairwise_sum
from gradkin.typing import Array


def applies(matrices: tuple[Any, ...]) -> bool:
    """Whether the matrices are known to be symmetric, on one device, and of several panels."""
    return all(
        K.y is None
        and K.placement is None
        and K.weights is None
        and K.row_weights is None
        and getattr(K.kernel, "symmetric", False)
        for K in matrices
    ) and len(matrices[0]) > block_of(matrices, tuple(K.columns_side() for K in matrices))


class Circle:
    """The groups of points, and the entries between a group and the half circle from it on."""

    def __init__(self, matrices: tuple[Any, ...], operand: Any = None):
        sides = tuple(K.columns_side() for K in matrices)
        self.num_points = len(matrices[0])
        block = block_of(matrices, sides)
        if matrices[0].block is None:
            block *= 2  # panels are half as wide
        count = -(-self.num_points // block)
        self.count = count + 1 - count % 2
        self.size = -(-self.num_points // self.count)
        self.width = self.size * (self.count + 1) // 2
        self.total = self.size * self.count
        self.kernels = tuple(K.kernel for K in matrices)
        self.forms = tuple(K.form for K in matrices)
        self.sides = tuple(self.closed(self.present(side)) for side in sides)
        self.operand = None if operand is None else self.closed(self.padded(operand))

    def padded(self, x: Array) -> Array:
        """Zeros for the points that fill up the last group."""
        return jnp.pad(x, ((0, self.total - self.num_points),) + ((0, 0),) * (x.ndim - 1))

    def present(self, side: Side) -> Side:
        """The points, the last one repeated to fill up the last group, and masked there."""
        extra = self.total - self.num_points
        if not extra:
            return side
        mask = jnp.ones(self.num_points, bool) if side.mask is None else side.mask
        last = jnp.broadcast_to(side.points[-1:], (extra, *side.points.shape[1:]))
        return Side(
            points=jnp.concatenate([side.points, last]),
            index=jnp.arange(self.total),
            mask=self.padded(mask),
        )

    def closed(self, tree: Any) -> Any:
        """The beginning once more at the end, so that every half circle is a slice."""
        return jax.tree.map(lambda x: jnp.concatenate([x, x[: self.width]]), tree)

    def tiles(self, sides: Any, group: Array) -> tuple[Array, ...]:
        """Entries between a group and the half circle from it on."""
        rows, columns = self.slice(sides, group, self.size), self.slice(sides, group, self.width)
        return tuple(map(entries, self.kernels, self.forms, rows, columns))

    def slice(self, tree: Any, group: Array, length: int) -> Any:
        """``length`` points from a group on."""
        start = group * self.size
        return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, length), tree)


def total(matrices: tuple[Any, ...], value: Callable[..., Array]) -> Array:
    """Sum over all entries of ``value(tiles)``, a function entry by entry."""
    circle = Circle(matrices)

    def panel(group: Array) -> Array:
        values = value(*circle.tiles(circle.sides, group))
        own, others = values[:, : circle.size], values[:, circle.size :]
        return jnp.sum(own, axis=1) + 2 * jnp.sum(others, axis=1)

    sums = lax.map(jax.checkpoint(panel, prevent_cse=False), jnp.arange(circle.count))
    return pairwise_sum(sums.reshape(-1))


def product(K: Any, vectors: Array) -> Array:
    """``K @ vectors``: what a panel says of its columns is added to them too."""
    columns = vectors if vectors.ndim == 2 else vectors[:, None]
    dtype = np.promote_types(K.dtype, columns.dtype)
    circle = Circle((K,), columns.astype(dtype))
    highest = lax.Precision.HIGHEST

    def panel(group: Array) -> tuple[Array, Array]:
        (tile,) = circle.tiles(circle.sides, group)
        tile = tile.astype(dtype)
        v = circle.slice(circle.operand, group, circle.width)
        there = jnp.matmul(tile, v, precision=highest)
        others = tile[:, circle.size :]
        return there, lax.dot_general(
            others, v[: circle.size], (((0,), (0,)), ((), ())), precision=highest
        )

    panel = jax.checkpoint(panel, prevent_cse=False)

    def step(result: Array, group: Array) -> tuple[Array, None]:
        there, back = panel(group)
        both = jnp.concatenate([there, back])
        start = group * circle.size
        old = lax.dynamic_slice_in_dim(result, start, circle.width)
        return lax.dynamic_update_slice_in_dim(result, old + both, start, axis=0), None

    # As large as the closed circle: its end is its beginning.
    start = jnp.zeros((circle.total + circle.width, columns.shape[1]), dtype)
    result, _ = lax.scan(step, start, jnp.arange(circle.count))
    result = result[: circle.total].at[: circle.width].add(result[circle.total :])
    result = result[: circle.num_points]
    return result if vectors.ndim == 2 else result[:, 0]
