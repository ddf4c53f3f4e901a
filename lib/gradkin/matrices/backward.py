"""Evaluate a traced backward pass, leaving gradients as sums of products."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin.matrices import convolution, lazy, programs, scans
from gradkin.matrices.lazy import Factor, Label, Lazy, OneHot, Product, Unsupported
from gradkin.matrices.programs import Program, Slot, Step


def evaluate(
    program: Program,
    inputs: Sequence[Any],
    lazy_outputs: Sequence[bool],
    maybe: set[Slot] | None = None,
    squares: dict[Slot, int] | None = None,
) -> list[Any]:
    """Run a program; outputs marked lazy may come back as `Lazy`, all others as arrays.

    Args:
      program: from `programs.trace`.
      inputs: one value per program input; slots in ``maybe`` may hold a `Lazy`.
      lazy_outputs: which outputs may stay unformed.
      maybe: the inputs that arrive unformed.
      squares: stacked outputs of scans of which only the examples' squared norms are wanted, and
        their example axis.

    Returns:
      One array or `Lazy` per output.
    """
    unformed = programs.unformed(program, lazy_outputs, maybe or set())
    env: dict[Slot, Any] = dict(program.constants)
    env.update(zip(program.inputs, inputs, strict=True))
    broadcasts: dict[Slot, tuple[Any, tuple[int, ...]]] = {}

    def read(v: Any) -> Any:
        return env[v] if isinstance(v, Slot) else programs.literal_value(v)

    def numbers(v: Any) -> Any:
        value = read(v)
        if isinstance(value, Lazy):
            value = env[v] = lazy.force(value)
        return value

    for step in program.steps:
        stays = any(v in unformed for v in step.outputs)
        results: Any = None
        if step.name == "broadcast_in_dim":
            results = _broadcast_zero(step, read)
            if isinstance(step.inputs[0], Slot) and len(step.inputs) == 1:
                dimensions = tuple(int(d) for d in step.params["broadcast_dimensions"])
                broadcasts[step.outputs[0]] = (step.inputs[0], dimensions)
        if results is None and stays:
            try:
                results = _stay_unformed(step, read, numbers, broadcasts, unformed, squares or {})
            except Unsupported:
                results = None
        if results is None:
            results = step.fun(*(numbers(v) for v in step.inputs))
        env.update(zip(step.outputs, results, strict=True))

    return [
        (read(v) if keep else numbers(v))
        for v, keep in zip(program.outputs, lazy_outputs, strict=True)
    ]


def _broadcast_zero(step: Step, read: Callable[[Any], Any]) -> list[Any] | None:
    """Zeros made by the differentiation itself stay symbolic, so that adding to them is free."""
    source = step.inputs[0]
    symbolic = isinstance(source, Slot) and _is_zero(read(source))
    if not (symbolic or programs.is_zero_literal(source)):
        return None
    aval = step.outputs[0].aval
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        return None
    return [lazy.zeros(aval.shape, aval.dtype)]


def _is_zero(value: Any) -> bool:
    return isinstance(value, Lazy) and not value.terms


def _stay_unformed(
    step: Step,
    read: Callable[[Any], Any],
    numbers: Callable[[Any], Any],
    broadcasts: dict[Slot, tuple[Any, tuple[int, ...]]],
    unformed: set[Slot],
    squares: dict[Slot, int],
) -> list[Any] | None:
    """Apply a step to unformed values; None where it must see the numbers."""
    name, params = step.name, step.params
    if name == "dot_general":
        lhs, rhs = (numbers(v) for v in step.inputs)
        return [_dot_general(lhs, rhs, step)]
    if name == "conv_general_dilated":
        lhs, rhs = (numbers(v) for v in step.inputs)
        value = convolution.kernel_gradient(lhs, rhs, step)
        return None if value is None else [value]
    if name == "scatter-add":
        operand, indices, updates = step.inputs
        return [_scatter_add(read(operand), numbers(indices), numbers(updates), step)]
    if name == "scatter":
        operand, indices, updates = step.inputs
        return [_set_rows(read(operand), numbers(indices), numbers(updates), step)]
    if name == "concatenate":
        return [_concatenate([lazy.as_lazy(read(v)) for v in step.inputs], step)]
    if name == "scan":
        if step.params["length"] == 0:
            return None
        return scans.evaluate_scan(step, read, numbers, unformed, evaluate, squares)
    if name in programs.SUMS:
        left, right = (lazy.as_lazy(read(v)) for v in step.inputs)
        right = lazy.negate(right) if name == "sub" else right
        shape = step.outputs[0].aval.shape
        if left.shape != shape or right.shape != shape:
            return None
        return [lazy.add(left, right)]
    if name in ("mul", "div"):
        return _multiply(step, read, numbers, broadcasts)

    value = read(step.inputs[0])
    if not isinstance(value, Lazy):
        return None
    aval = step.outputs[0].aval
    if name == "transpose":
        return [lazy.transpose(value, tuple(int(p) for p in params["permutation"]))]
    if name in ("reshape", "squeeze"):
        if params.get("dimensions") is not None and name == "reshape":
            value = lazy.transpose(value, tuple(int(d) for d in params["dimensions"]))
        return [lazy.reshape(value, aval.shape)]
    if name == "reduce_sum":
        return [lazy.reduce_sum(value, tuple(int(a) for a in params["axes"]))]
    if name == "broadcast_in_dim":
        dimensions = tuple(int(d) for d in params["broadcast_dimensions"])
        return [lazy.add_unit_axes(value, aval.shape, dimensions)]
    if name == "pad":
        if not programs.is_zero_literal(step.inputs[1]):
            return None
        config = [tuple(int(n) for n in triple) for triple in params["padding_config"]]
        if any(low < 0 or high < 0 or interior for low, high, interior in config):
            return None
        return [lazy.pad(value, tuple((low, high) for low, high, _ in config))]
    if name == "slice":
        if params["strides"] is not None and any(n != 1 for n in params["strides"]):
            return None
        for axis, (low, high) in enumerate(
            zip(params["start_indices"], params["limit_indices"], strict=True)
        ):
            if high - low != value.shape[axis]:
                value = lazy.cut(value, axis, int(low), int(high))
        return [value]
    if name == "split":
        ends = np.cumsum([int(n) for n in params["sizes"]])
        return [
            lazy.cut(value, int(params["axis"]), int(end - n), int(end))
            for n, end in zip(params["sizes"], ends, strict=True)
        ]
    if name == "neg":
        return [lazy.negate(value)]
    if name == "convert_element_type":
        if not jnp.issubdtype(aval.dtype, jnp.inexact):
            return None
        if aval.dtype.itemsize > value.dtype.itemsize and lazy.is_rounded(value):
            return None  # the rounding in between must happen
        return [value._replace(dtype=aval.dtype)]
    if name in ("copy", "copy_p"):
        return [value]
    return None


def _dot_general(lhs: Any, rhs: Any, step: Step) -> Lazy:
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    (l_sum, r_sum), (l_batch, r_batch) = step.params["dimension_numbers"]
    left = [Label(n) for n in lhs.shape]
    right = [Label(n) for n in rhs.shape]
    for i, j in zip((*l_sum, *l_batch), (*r_sum, *r_batch), strict=True):
        right[j] = left[i]
    out = [left[i] for i in l_batch]
    out += [left[i] for i in range(lhs.ndim) if i not in (*l_sum, *l_batch)]
    out += [right[j] for j in range(rhs.ndim) if j not in (*r_sum, *r_batch)]
    aval = step.outputs[0].aval
    product = Product(
        Factor(lhs, tuple(left)), Factor(rhs, tuple(right)), tuple((label,) for label in out)
    )
    return Lazy(aval.shape, aval.dtype, (product,))


def _scatter_add(operand: Any, indices: Any, updates: Any, step: Step) -> Lazy:
    """The transpose of a row look-up: ``operand + one_hot(ids).T @ updates``."""
    numbers = step.params["dimension_numbers"]
    shape = step.outputs[0].aval.shape
    batching = tuple(int(d) for d in numbers.operand_batching_dims)
    rows = tuple(int(d) for d in numbers.scatter_dims_to_operand_dims)
    inserted = tuple(int(d) for d in numbers.inserted_window_dims)
    windows = tuple(int(d) for d in numbers.update_window_dims)
    if len(rows) != 1 or inserted != rows or indices.shape[-1] != 1:
        raise Unsupported("not a look-up of whole rows")
    window_axes = [d for d in range(len(shape)) if d not in (*batching, *rows)]
    if [updates.shape[w] for w in windows] != [shape[d] for d in window_axes]:
        raise Unsupported("not a look-up of whole rows")

    id_labels = [Label(n) for n in indices.shape[:-1]]
    scattered = iter(id_labels)
    update_labels = [
        Label(n) if axis in windows else next(scattered) for axis, n in enumerate(updates.shape)
    ]
    row = Label(shape[rows[0]])
    axis_labels: dict[int, Label] = {rows[0]: row}
    for d, w in zip(window_axes, windows, strict=True):
        axis_labels[d] = update_labels[w]
    index_batching = tuple(int(d) for d in numbers.scatter_indices_batching_dims)
    for d, i in zip(batching, index_batching, strict=True):
        axis_labels[d] = id_labels[i]

    ids = _wide_ids(indices[..., 0])
    if step.params["mode"] == jax.lax.GatherScatterMode.CLIP:
        ids = jnp.clip(ids, 0, row.size - 1)
    else:
        # Ids outside the table select no row, also where they are negative.
        ids = jnp.where((ids < 0) | (ids >= row.size), row.size, ids)
    product = Product(
        OneHot(ids, tuple(id_labels), row),
        Factor(updates, tuple(update_labels)),
        tuple((axis_labels[d],) for d in range(len(shape))),
    )
    start = lazy.as_lazy(operand)
    return lazy.add(start, Lazy(start.shape, start.dtype, (product,)))


def _wide_ids(ids: Any) -> Any:
    """At least 32 bits, so that the number of rows itself is an id."""
    return ids.astype(np.int32) if ids.dtype.itemsize < 4 else ids


def _set_rows(operand: Any, indices: Any, updates: Any, step: Step) -> Lazy:
    """The transpose of looking up one row by a traced number: a row set in zeros."""
    numbers = step.params["dimension_numbers"]
    shape = step.outputs[0].aval.shape
    if not _is_zero(operand) or step.params["mode"] != jax.lax.GatherScatterMode.CLIP:
        raise Unsupported("a general scatter")
    if numbers.inserted_window_dims or indices.ndim != 1 + len(numbers.operand_batching_dims):
        raise Unsupported("a general scatter")
    windows = tuple(int(d) for d in numbers.update_window_dims)
    batching = tuple(int(d) for d in numbers.operand_batching_dims)
    window_axes = [d for d in range(len(shape)) if d not in batching]
    # Where the update fills an axis, the clipped index is zero; one axis is really indexed.
    short = [
        (d, w) for d, w in zip(window_axes, windows, strict=True) if updates.shape[w] != shape[d]
    ]
    if len(short) != 1 or updates.shape[short[0][1]] != 1:
        raise Unsupported("a general scatter")
    (row_axis, row_window) = short[0]
    position = [int(d) for d in numbers.scatter_dims_to_operand_dims].index(row_axis)
    ids = jnp.clip(_wide_ids(indices[..., position]), 0, shape[row_axis] - 1)
    id_labels = [Label(n) for n in ids.shape]
    places = iter(id_labels)
    labels = [Label(n) if axis in windows else next(places) for axis, n in enumerate(updates.shape)]
    row = Label(shape[row_axis])
    axis_labels = {d: labels[w] for d, w in zip(window_axes, windows, strict=True)}
    axis_labels[row_axis] = row
    for d, i in zip(batching, numbers.scatter_indices_batching_dims, strict=True):
        axis_labels[d] = id_labels[int(i)]
    product = Product(
        OneHot(ids, tuple(id_labels), row),
        Factor(
            jnp.squeeze(updates, row_window),
            tuple(x for x in labels if x is not labels[row_window]),
        ),
        tuple((axis_labels[d],) for d in range(len(shape))),
    )
    return Lazy(operand.shape, operand.dtype, (product,))


def _concatenate(values: list[Lazy], step: Step) -> Lazy:
    aval, axis = step.outputs[0].aval, int(step.params["dimension"])
    total, start = lazy.zeros(aval.shape, aval.dtype), 0
    for value in values:
        n = value.shape[axis]
        padding = [(0, 0)] * len(aval.shape)
        padding[axis] = (start, aval.shape[axis] - start - n)
        total = lazy.add(total, lazy.pad(value, tuple(padding)))
        start += n
    return total


def _multiply(
    step: Step,
    read: Callable[[Any], Any],
    numbers: Callable[[Any], Any],
    broadcasts: dict[Slot, tuple[Any, tuple[int, ...]]],
) -> list[Any] | None:
    left, right = step.inputs
    if step.name == "mul" and not isinstance(read(left), Lazy):
        left, right = right, left
    value = read(left)
    if not isinstance(value, Lazy):
        return None
    if isinstance(right, Slot) and right in broadcasts:
        source, dimensions = broadcasts[right]
        factor = numbers(source)
    elif jnp.ndim(read(right)) == 0:
        factor, dimensions = jnp.asarray(numbers(right), value.dtype), ()
    else:
        return None
    return [lazy.multiply(value, 1 / factor if step.name == "div" else factor, dimensions)]
