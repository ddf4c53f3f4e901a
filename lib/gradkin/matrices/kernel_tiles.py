"""Tiles of kernel matrices: what an entry is, how many rows at a time, and which device has them.

All that is read off a kernel matrix is a reduction along its rows. A panel of rows, all columns
wide, is filled, reduced, and forgotten; for derivatives it is filled again. So the memory is that
of one panel, of the points and of the result, forward and backward, and every transformation of
JAX works.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from gradkin.matrices import distances
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array

# Bytes of one panel: a processor's cache, or enough work for an accelerator.
PANEL_BYTES = {"cpu": 2 * 2**20}
ACCELERATOR_PANEL_BYTES = 128 * 2**20
# A panel of so many rows is no larger than points of so many features.
LEAST_ROWS = 32


class Side(NamedTuple):
    """The rows, or the columns, of a matrix. Every leaf has the points' leading axis.

    Attributes:
      points: ``[n, ...]``.
      index: ``[n]``, each point's number.
      weights: ``[n]`` factors, or None.
      mask: ``[n]``, False for points left out, or None.
      operand: what a verb needs per point.
    """

    points: Any
    index: Any
    weights: Any = None
    mask: Any = None
    operand: Any = None


class Form(NamedTuple):
    """What is static about the entries.

    Attributes:
      same: rows and columns are the same points.
      diagonal: False leaves entries ``i, i`` out.
    """

    same: bool
    diagonal: bool


class Placement(NamedTuple):
    """Which points are split over which axes of a mesh: those of "rows", "columns", or both.

    "ring" splits both; the columns then travel from device to device.
    """

    mesh: Any
    axes: tuple[str, ...]
    split: str


class Reduction(NamedTuple):
    """A way to reduce the rows of one or several matrices.

    Attributes:
      state: ``(tiles, rows, columns) -> state``, a pytree with the tiles' leading axis.
      merge: combines the states of two sets of columns.
      across: combines the states of all devices' columns, given the names of the axes.
      finish: turns the state of all columns into the result.
      log: reduce logarithms of entries.
      fill: stands for entries that are left out.
    """

    state: Callable[[tuple[Array, ...], Side, Side], Any]
    merge: Callable[[Any, Any], Any]
    across: Callable[[Any, Any], Any]
    finish: Callable[[Any], Any] = lambda state: state
    log: bool = False
    fill: float = 0.0


@functools.partial(register_dataclass, data_fields=[], meta_fields=["function"])
@dataclasses.dataclass(frozen=True)
class Function:
    """A plain function of two points as a kernel."""

    function: Callable[[Any, Any], Any]

    def __call__(self, x: Any, y: Any) -> Any:
        return self.function(x, y)


@functools.partial(register_dataclass, data_fields=["kernel"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Swapped:
    """The kernel of the transpose: ``(x, y) -> kernel(y, x)``."""

    kernel: Any
    symmetric: ClassVar[bool] = False

    def __call__(self, x: Any, y: Any) -> Any:
        return self.kernel(y, x)

    def tile(self, X: Any, Y: Any) -> Array:
        return fill(self.kernel, log=False)(Y, X).T

    def log_tile(self, X: Any, Y: Any) -> Array:
        return fill(self.kernel, log=True)(Y, X).T


def swapped(kernel: Any) -> Any:
    """The kernel with its arguments exchanged."""
    if getattr(kernel, "symmetric", False):
        return kernel
    return kernel.kernel if isinstance(kernel, Swapped) else Swapped(kernel)


def fills_tiles(kernel: Any) -> bool:
    """Whether the kernel knows more than one pair at a time."""
    return hasattr(kernel.kernel if isinstance(kernel, Swapped) else kernel, "tile")


def fill(kernel: Any, *, log: bool) -> Callable[[Any, Any], Array]:
    """The function that fills tiles with entries or their logarithms."""
    if log:
        given = getattr(kernel, "log_tile", None)
        return given or (lambda X, Y: safe_log(fill(kernel, log=False)(X, Y)))
    given = getattr(kernel, "tile", None)
    if given is not None:
        return given
    each = jax.vmap(jax.vmap(kernel, (None, 0)), (0, None))

    def tile(X: Any, Y: Any) -> Array:
        values = each(X, Y)
        return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(float)

    return tile


def safe_log(x: Array) -> Array:
    """Logarithm; ``-inf`` at zero with derivative zero; NaN below."""
    positive = x > 0
    logs = jnp.log(jnp.where(positive, x, 1))
    return jnp.where(positive, logs, jnp.where(x == 0, -jnp.inf, jnp.nan).astype(x.dtype))


def kept(form: Form, rows: Side, columns: Side) -> Array | None:
    """Where entries count; None where all do."""
    parts = []
    if rows.mask is not None:
        parts.append(rows.mask[:, None])
    if columns.mask is not None:
        parts.append(columns.mask[None, :])
    if form.same and not form.diagonal:
        parts.append(rows.index[:, None] != columns.index[None, :])
    return functools.reduce(jnp.logical_and, parts) if parts else None


def entries(
    kernel: Any, form: Form, rows: Side, columns: Side, *, log: bool = False, fill_value: float = 0
) -> Array:
    """The tile of these rows and columns, weighted, with ``fill_value`` where left out.

    Logarithms are without the weights of columns: at a weight of zero only a factor has the right
    derivative.
    """
    function = fill(kernel, log=log)
    tile = function(rows.points, columns.points)
    if form.same and form.diagonal and fills_tiles(kernel):
        # Exact where a point meets itself: no rounding of the matrix product.
        one = functools.partial(distances.at_points, function)
        diagonal = jax.vmap(one)(rows.points, rows.points)
        same = rows.index[:, None] == columns.index[None, :]
        tile = jnp.where(same, diagonal[:, None], tile)
    for weights in (
        None if rows.weights is None else rows.weights[:, None],
        None if columns.weights is None or log else columns.weights[None, :],
    ):
        if weights is not None:
            weights = weights.astype(tile.dtype)
            tile = tile + safe_log(weights) if log else tile * weights
    keep = kept(form, rows, columns)
    return tile if keep is None else jnp.where(keep, tile, fill_value)


def diagonal(kernel: Any, form: Form, rows: Side, columns: Side) -> Array:
    """The entries ``i, i``, weighted, zero where left out."""
    one = functools.partial(distances.at_points, fill(kernel, log=False))
    values = jax.vmap(one)(rows.points, columns.points)
    for side in (rows, columns):
        if side.weights is not None:
            values = values * side.weights.astype(values.dtype)
        if side.mask is not None:
            values = jnp.where(side.mask, values, 0)
    return values if form.diagonal else jnp.zeros_like(values)


def panel_rows(kernel: Any, num_columns: int, point_size: int, itemsize: int) -> int:
    """Rows of a panel: as many as fit its bytes, at least `LEAST_ROWS`.

    A plain function is mapped over all pairs; what it makes of a pair is counted as large as a
    point, because the compiler may write it out.
    """
    width = 1 if fills_tiles(kernel) else max(point_size, 1)
    size = PANEL_BYTES.get(jax.default_backend(), ACCELERATOR_PANEL_BYTES)
    return max(LEAST_ROWS, size // max(1, num_columns * width * itemsize))


def layout(num_rows: int, block: int) -> tuple[int, int]:
    """Number of panels and their rows: no more than ``block``, without a ragged end if possible."""
    count = -(-num_rows // block)
    for even in range(count, min(2 * count, num_rows) + 1):
        if num_rows % even == 0:
            return even, num_rows // even
    return count, -(-num_rows // count)


def over_panels(fun: Callable[[Any], Any], rows: Any, block: int) -> Any:
    """Map ``fun`` over panels of at most ``block`` rows; its results have rows leading too.

    Panel ``k`` of ``c`` holds the rows ``k, k + c, k + 2 c, ...``: of rows sharded over devices
    that is an equal slice of each shard. A ragged end repeats the last row; its results are cut
    off.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    if num_rows <= block:
        return fun(rows)
    count, size = layout(num_rows, block)
    extra = count * size - num_rows

    def split(x: Array) -> Array:
        if extra:
            x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (extra, *x.shape[1:]))])
        return jnp.swapaxes(x.reshape((size, count, *x.shape[1:])), 0, 1)

    def join(x: Array) -> Array:
        return jnp.swapaxes(x, 0, 1).reshape((count * size, *x.shape[2:]))[:num_rows]

    # What a panel held is made again for the derivative; a scan keeps it apart by itself.
    results = lax.map(jax.checkpoint(fun, prevent_cse=False), jax.tree.map(split, rows))
    return jax.tree.map(join, results)


def reduce_rows(
    matrices: tuple[Any, ...],
    reduction: Reduction,
    *,
    rows: Any = None,
    columns: Any = None,
    total: bool = False,
) -> Any:
    """Reduce every row over all columns.

    Args:
      matrices: kernel matrices of one shape; the first says how they are cut and placed.
      reduction: see `Reduction`.
      rows: operand of the rows, a pytree of ``[n, ...]``.
      columns: operand of the columns, a pytree of ``[m, ...]``.
      total: also add up the rows.

    Returns:
      A pytree of ``[n, ...]``; with ``total`` of ``[...]``.
    """
    first = matrices[0]
    forms = tuple(K.form for K in matrices)
    left = tuple(K.rows_side()._replace(operand=rows) for K in matrices)
    right = tuple(K.columns_side()._replace(operand=columns) for K in matrices)
    kernels = tuple(K.kernel for K in matrices)
    placement = first.placement

    def state(kernels: Any, left: Any, right: Any) -> Any:
        def panel(left: Any) -> Any:
            tiles = tuple(
                entries(*each, log=reduction.log, fill_value=reduction.fill)
                for each in zip(kernels, forms, left, right)
            )
            return reduction.state(tiles, left[0], right[0])

        return over_panels(panel, left, block_of(matrices, right))

    def shard(kernels: Any, left: Any, right: Any) -> Any:
        result = state(kernels, left, right)
        if placement.split == "ring":
            size = math.prod(placement.mesh.shape[a] for a in placement.axes)
            ahead = [(i, (i + 1) % size) for i in range(size)]

            def turn(carry: Any, _: None) -> tuple[Any, None]:
                result, right = carry
                right = lax.ppermute(right, placement.axes, ahead)
                return (reduction.merge(result, state(kernels, left, right)), right), None

            (result, _), _ = lax.scan(turn, (result, right), length=size - 1)
        elif placement.split == "columns" and not total:
            result = reduction.across(result, placement.axes)
        result = reduction.finish(result)
        return lax.psum(jax.tree.map(pairwise_sum, result), placement.axes) if total else result

    if placement is None:
        result = reduction.finish(state(kernels, left, right))
        return jax.tree.map(pairwise_sum, result) if total else result
    split, whole = P(placement.axes), P()
    left_spec = whole if placement.split == "columns" else split
    right_spec = whole if placement.split == "rows" else split
    mapped = jax.shard_map(
        shard,
        mesh=placement.mesh,
        in_specs=(whole, left_spec, right_spec),
        out_specs=whole if total else left_spec,
    )
    return mapped(kernels, left, right)


def block_of(matrices: tuple[Any, ...], columns: tuple[Side, ...]) -> int:
    """Rows of a panel of all matrices together."""
    if matrices[0].block is not None:
        return matrices[0].block
    rows = [
        panel_rows(
            K.kernel,
            side.index.shape[0],
            math.prod(side.points.shape[1:]),
            np.dtype(K.dtype).itemsize,
        )
        for K, side in zip(matrices, columns)
    ]
    return max(LEAST_ROWS // len(rows), min(rows) // len(rows))


def pairwise_sum(x: Array) -> Array:
    """Sum over the leading axis by halves: rounding grows with the logarithm of the length."""
    while x.shape[0] > 64:
        half = -(-x.shape[0] // 2)
        if x.shape[0] % 2:
            x = jnp.concatenate([x, jnp.zeros_like(x[:1])])
        x = x[:half] + x[half:]
    return jnp.sum(x, axis=0)


def add(a: Any, b: Any) -> Any:
    """Leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)
