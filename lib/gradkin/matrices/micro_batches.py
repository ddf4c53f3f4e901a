"""Sums over a batch too large for one pass, an equal slice of each shard at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkin.matrices import contraction, recording
from gradkin.typing import Array, PyTree


def total(
    fun: Callable[[tuple[Any, ...], int], PyTree],
    args: tuple[Any, ...],
    *,
    in_axes: tuple[Any, ...],
    num_examples: int,
    batch_size: int,
) -> PyTree:
    """Sum of ``fun(micro-batch of args, its size)``, added up in float32 or wider.

    Micro-batch ``k`` of ``n`` holds the examples ``k, k + n, k + 2 n, ...``, so that a sharded
    example axis stays sharded. What does not fill a micro-batch comes last.

    Args:
      fun: takes arguments like ``args`` with fewer examples, and how many; its results are added.
      args: batched arguments.
      in_axes: as in `jax.vmap`, for each of ``args``.
      num_examples: examples in ``args``.
      batch_size: examples per micro-batch.

    Returns:
      The sum, in the dtypes of ``fun``.
    """
    count = num_examples // batch_size
    whole = count * batch_size

    def rows(take: Callable[[Array], Array]) -> tuple[Any, ...]:
        def on(axis: int | None, x: Any) -> Any:
            if axis is None:
                return x
            return jnp.moveaxis(take(jnp.moveaxis(jnp.asarray(x), axis, 0)), 0, axis)

        return tuple(
            recording.map_axes(on, axes, arg) for axes, arg in zip(in_axes, args, strict=True)
        )

    def part(k: Any) -> PyTree:
        def strided(x: Array) -> Array:
            x = x[:whole].reshape((batch_size, count, *x.shape[1:]))
            return jax.lax.dynamic_index_in_dim(x, k, axis=1, keepdims=False)

        return fun(rows(strided), batch_size)

    def add(sums: PyTree, values: PyTree) -> PyTree:
        return jax.tree.map(lambda s, v: s + v.astype(s.dtype), sums, values)

    shapes = jax.eval_shape(part, 0)
    start = jax.tree.map(
        lambda s: jnp.zeros(s.shape, contraction.at_least_float32(s.dtype)), shapes
    )
    sums, _ = jax.lax.scan(lambda s, k: (add(s, part(k)), None), start, jnp.arange(count))
    if whole < num_examples:
        sums = add(sums, fun(rows(lambda x: x[whole:]), num_examples - whole))
    return jax.tree.map(lambda s, shape: s.astype(shape.dtype), sums, shapes)
