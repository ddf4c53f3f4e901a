"""A batch too large for one pass: an equal slice of each shard at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkin.matrices import contraction, recording
from gradkin.typing import Array, PyTree

Rows = Callable[[Array], Array]


def scan(
    fun: Callable[[Rows, int], PyTree], *, num_examples: int, batch_size: int, stack: bool = False
) -> PyTree:
    """Stack the rows, or add up the results, of ``fun`` over micro-batches.

    Micro-batch ``k`` of ``n`` holds the examples ``k, k + n, k + 2 n, ...``, so that a sharded
    example axis stays sharded. What does not fill a micro-batch comes last.

    Args:
      fun: ``(rows, size) -> result``; ``rows(x)`` takes the micro-batch out of an array whose
        leading axis is that of the examples, ``size`` says how many there are.
      num_examples: in all.
      batch_size: examples per micro-batch.
      stack: results have one row per example, put back in order; else they are added, in float32
        or wider, and keep their dtypes.
    """
    count = num_examples // batch_size
    whole = count * batch_size

    def part(k: Any) -> PyTree:
        def strided(x: Array) -> Array:
            x = x[:whole].reshape((batch_size, count, *x.shape[1:]))
            return jax.lax.dynamic_index_in_dim(x, k, axis=1, keepdims=False)

        return fun(strided, batch_size)

    last = None
    if whole < num_examples:
        last = fun(lambda x: x[whole:], num_examples - whole)
    if stack:
        _, stacked = jax.lax.scan(lambda c, k: (c, part(k)), None, jnp.arange(count))

        def unstrided(x: Array) -> Array:
            return jnp.swapaxes(x, 0, 1).reshape((whole, *x.shape[2:]))

        result = jax.tree.map(unstrided, stacked)
        if last is None:
            return result
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), result, last)

    def add(sums: PyTree, values: PyTree) -> PyTree:
        return jax.tree.map(lambda s, v: s + v.astype(s.dtype), sums, values)

    shapes = jax.eval_shape(part, 0)
    start = jax.tree.map(
        lambda s: jnp.zeros(s.shape, contraction.at_least_float32(s.dtype)), shapes
    )
    sums, _ = jax.lax.scan(lambda s, k: (add(s, part(k)), None), start, jnp.arange(count))
    sums = sums if last is None else add(sums, last)
    return jax.tree.map(lambda s, shape: s.astype(shape.dtype), sums, shapes)


def total(
    fun: Callable[[tuple[Any, ...], int], PyTree],
    args: tuple[Any, ...],
    *,
    in_axes: tuple[Any, ...],
    num_examples: int,
    batch_size: int,
) -> PyTree:
    """Sum of ``fun(micro-batch of args, its size)`` over the micro-batches of `scan`.

    Args:
      fun: takes arguments like ``args`` with fewer examples, and how many; its results are added.
      args: batched arguments.
      in_axes: as in `jax.vmap`, for each of ``args``.
      num_examples: examples in ``args``.
      batch_size: examples per micro-batch.

    Returns:
      The sum, in the dtypes of ``fun``.
    """

    def part(rows: Rows, size: int) -> PyTree:
        return fun(split(args, in_axes, rows), size)

    return scan(part, num_examples=num_examples, batch_size=batch_size)


def split(args: tuple[Any, ...], in_axes: tuple[Any, ...], rows: Rows) -> tuple[Any, ...]:
    """Arguments with ``rows`` applied to their example axis, where they have one."""

    def on(axis: int | None, x: Any) -> Any:
        if axis is None:
            return x
        return jnp.moveaxis(rows(jnp.moveaxis(jnp.asarray(x), axis, 0)), 0, axis)

    return tuple(recording.map_axes(on, axes, arg) for axes, arg in zip(in_axes, args, strict=True))
