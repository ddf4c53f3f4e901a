"""Sums of products of two arrays whose axes carry labels: one `dot_general`, no formatting."""

import functools
from collections.abc import Hashable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from gradkin.typing import Array

Labels = Sequence[Hashable]


def at_least_float32(dtype: Any) -> np.dtype:
    """``dtype``, or float32 where it is a smaller float."""
    dtype = np.dtype(dtype)
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype


def accumulator(*arrays: Any) -> np.dtype:
    """The dtype in which sums of products of ``arrays`` are kept: at least float32."""
    # NumPy's table, because the user may have made jax refuse mixed dtypes.
    return at_least_float32(functools.reduce(np.promote_types, (a.dtype for a in arrays)))


def contract(
    x: Array,
    x_labels: Labels,
    y: Array,
    y_labels: Labels,
    out: Labels,
    *,
    precision: lax.PrecisionLike = None,
) -> Array:
    """Sum over every label absent from ``out`` of ``x * y``, laid out as ``out``.

    Args:
      x: an array with one axis per label of ``x_labels``.
      x_labels: hashable labels; equal labels are the same index.
      y: the other factor.
      y_labels: its labels.
      out: labels of the result; each must be in ``x_labels`` or ``y_labels``.
      precision: as in `jax.lax.dot_general`.

    Returns:
      The contraction, accumulated in at least float32.
    """
    if out and out[-1] in x_labels and out[-1] not in y_labels:
        # The product's last axis is one of its second factor: laid out as asked, not transposed.
        x, x_labels, y, y_labels = y, y_labels, x, x_labels
    dtype = accumulator(x, y)
    x, x_labels = _sum_out(x, x_labels, keep={*y_labels, *out}, dtype=dtype)
    y, y_labels = _sum_out(y, y_labels, keep={*x_labels, *out}, dtype=dtype)
    shared = [label for label in x_labels if label in y_labels]
    batch = [label for label in shared if label in out]
    summed = [label for label in shared if label not in out]
    x_free = [label for label in x_labels if label not in shared]
    y_free = [label for label in y_labels if label not in shared]
    order = [*batch, *x_free, *y_free]
    if not x_free and not y_free:
        # No matrix in sight: a dot_general of vectors per batch entry is slow on CPU.
        aligned = jnp.transpose(y, [y_labels.index(label) for label in x_labels])
        product = x.astype(dtype) * aligned.astype(dtype)
        result = jnp.sum(product, [x_labels.index(label) for label in summed])
    else:
        common = x.dtype if x.dtype == y.dtype else dtype
        result = lax.dot_general(
            x.astype(common),
            y.astype(common),
            (
                ([x_labels.index(s) for s in summed], [y_labels.index(s) for s in summed]),
                ([x_labels.index(s) for s in batch], [y_labels.index(s) for s in batch]),
            ),
            precision=precision,
            preferred_element_type=dtype,
        )
    return jnp.transpose(result, [order.index(label) for label in out])


def _sum_out(x: Array, labels: Labels, keep: set[Hashable], dtype: Any) -> tuple[Array, list]:
    axes = [axis for axis, label in enumerate(labels) if label not in keep]
    if not axes:
        return x, list(labels)
    return jnp.sum(x, axes, dtype=dtype), [label for label in labels if label in keep]


def align(x: Array, labels: Labels, out: Labels) -> Array:
    """``x`` with its axes ordered as in ``out`` and unit axes where ``out`` has more labels."""
    present = [label for label in out if label in labels]
    x = jnp.transpose(x, [list(labels).index(label) for label in present])
    sizes = iter(x.shape)
    return jnp.reshape(x, [next(sizes) if label in labels else 1 for label in out])


def scale(x: Array, labels: Labels, factor: Array, factor_labels: Labels) -> Array:
    """``x`` times ``factor``, whose labels are among those of ``x``."""
    factor = align(factor, factor_labels, labels)
    return x * jnp.broadcast_to(factor, x.shape).astype(x.dtype)


def stop_at(x: Array, labels: Labels, keep: Array, keep_labels: Labels) -> Array:
    """``x`` where ``keep`` holds and exactly zero elsewhere: a NaN times zero never appears."""
    keep = jnp.broadcast_to(align(keep, keep_labels, labels), x.shape)
    return jnp.where(keep, x, jnp.zeros_like(x))


def scatter_rows(
    ids: Array,
    ids_labels: Labels,
    values: Array,
    labels: Labels,
    row: Hashable,
    num_rows: int,
    out: Labels,
) -> Array:
    """Sum ``[ids == row] * values`` over the labels absent from ``out``, by one scatter.

    Args:
      ids: integers in ``[0, num_rows]``; the value ``num_rows`` selects no row.
      ids_labels: labels of ``ids``, all among ``labels``.
      values: what is added to the rows.
      labels: labels of ``values``.
      row: label of the row index; in ``out``.
      num_rows: number of rows.
      out: labels of the result.

    Returns:
      The sum, laid out as ``out``.
    """
    values, labels = _sum_out(values, labels, {*ids_labels, *out}, accumulator(values))
    sizes = dict(zip(labels, values.shape, strict=True))
    batch = [label for label in ids_labels if label in out]
    summed = [label for label in ids_labels if label not in out]
    free = [label for label in labels if label not in ids_labels]
    values = align(values.astype(accumulator(values)), labels, [*batch, *summed, *free])
    ids = align(ids, ids_labels, [*batch, *summed])
    start = jnp.zeros(
        [*(sizes[label] for label in batch), num_rows, *(sizes[label] for label in free)],
        values.dtype,
    )
    result = start.at[(*grid(ids.shape, len(batch)), ids)].add(values, mode="drop")
    order = [*batch, row, *free]
    return jnp.transpose(result, [order.index(label) for label in out])


def gather_rows(
    table: Array, labels: Labels, row: Hashable, ids: Array, ids_labels: Labels
) -> tuple[Array, list[Hashable]]:
    """Rows ``table[ids]`` along ``row``, matching the labels both have; absent rows are zero.

    Returns:
      The rows and their labels.
    """
    shared = [label for label in ids_labels if label in labels]
    free = [label for label in ids_labels if label not in labels]
    rest = [label for label in labels if label not in shared and label != row]
    table = align(table, labels, [*shared, row, *rest])
    ids = align(ids, ids_labels, [*shared, *free])
    rows = table.at[(*grid(ids.shape, len(shared)), ids)].get(mode="fill", fill_value=0)
    return rows, [*shared, *free, *rest]


def grid(shape: Sequence[int], axes: int) -> list[Array]:
    """Index arrays of the first ``axes`` axes, each of the full ``shape``."""
    return [
        jnp.broadcast_to(
            jnp.arange(shape[axis]).reshape([-1 if k == axis else 1 for k in range(len(shape))]),
            shape,
        )
        for axis in range(axes)
    ]


def network(
    operands: Sequence[tuple[Array, Labels]], out: Labels, *, precision: lax.PrecisionLike = None
) -> Array:
    """Contract several labelled arrays in the cheapest order."""
    if len(operands) == 2:
        (x, x_labels), (y, y_labels) = operands
        return contract(x, x_labels, y, y_labels, out, precision=precision)
    dtype = accumulator(*(x for x, _ in operands))
    names: dict[Hashable, int] = {}
    arguments: list[Any] = []
    for x, labels in operands:
        arguments += [x.astype(dtype), [names.setdefault(label, len(names)) for label in labels]]
    return jnp.einsum(
        *arguments, [names[label] for label in out], optimize="optimal", precision=precision
    )
