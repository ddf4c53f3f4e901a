"""Per-example kernel gradients of a convolution: products of shifted slices."""

import itertools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from gradkin.matrices import contraction
from gradkin.matrices.lazy import Factor, Label, Lazy, Product
from gradkin.matrices.programs import Step


def kernel_gradient(lhs: Any, rhs: Any, step: Step) -> Lazy | None:
    """Evaluate a convolution whose output positions are the offsets of a kernel.

    Under `vmap`, the gradient of a kernel is itself a convolution: its window is the cotangent's
    whole map, its output positions are the kernel's offsets, and the examples are groups. XLA
    runs such a grouped convolution slowly on CPU. Here each offset is one batched matrix product
    of a shifted slice with the cotangent; or, where the slices are few numbers compared with the
    gradient (late layers: small maps, many channels), both are kept as factors.

    Args:
      lhs: the layer's inputs.
      rhs: the cotangents.
      step: the `conv_general_dilated` equation.

    Returns:
      The gradient, or None where the convolution is not of this kind.
    """
    params, aval = step.params, step.outputs[0].aval
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    offsets = [aval.shape[d] for d in out_spec[2:]]
    window = [rhs.shape[d] for d in rhs_spec[2:]]
    if math.prod(offsets) > 64 or lhs.dtype != rhs.dtype or jnp.iscomplexobj(lhs):
        return None
    features, batches = params["feature_group_count"], params["batch_group_count"]
    groups = Label(max(features, batches))
    out_channels = Label(rhs.shape[rhs_spec[0]] // groups.size)
    summed_channels = Label(rhs.shape[rhs_spec[1]])
    rows = Label(lhs.shape[lhs_spec[0]] // batches)
    positions = [Label(n) for n in window]

    padding = [(0, 0, 0)] * lhs.ndim
    for d, (low, high), dilation in zip(
        lhs_spec[2:], params["padding"], params["lhs_dilation"], strict=True
    ):
        padding[d] = (low, high, dilation - 1)
    padded = lax.pad(lhs, jnp.zeros((), lhs.dtype), padding)

    def shifted(offset: tuple[int, ...]) -> Any:
        starts, limits, strides = [0] * lhs.ndim, list(padded.shape), [1] * lhs.ndim
        for d, o, n, stride, dilation in zip(
            lhs_spec[2:],
            offset,
            window,
            params["window_strides"],
            params["rhs_dilation"],
            strict=True,
        ):
            starts[d], strides[d] = o * stride, dilation
            limits[d] = o * stride + (n - 1) * dilation + 1
        return lax.slice(padded, starts, limits, strides)

    lhs_labels = _labels(
        lhs_spec,
        [rows] if batches == 1 else [groups, rows],
        [groups, summed_channels] if batches == 1 else [summed_channels],
        positions,
    )
    rhs_labels = _labels(rhs_spec, [groups, out_channels], [summed_channels], positions)
    rhs = rhs.reshape([label.size for label in rhs_labels])
    shape = [label.size for label in lhs_labels]

    summed = summed_channels.size * math.prod(window)
    left, right = rows.size * math.prod(offsets), out_channels.size
    slices = [shifted(o).reshape(shape) for o in itertools.product(*map(range, offsets))]
    offset_labels = [Label(n) for n in offsets]
    axes: dict[int, tuple[Label, ...]] = {out_spec[0]: (rows,), out_spec[1]: (groups, out_channels)}
    axes.update({d: (label,) for d, label in zip(out_spec[2:], offset_labels, strict=True)})
    out = tuple(axes[d] for d in range(aval.ndim))
    if summed * (left + right) < left * right:
        stacked = jnp.stack(slices).reshape([*offsets, *shape])
        a = Factor(stacked, (*offset_labels, *lhs_labels))
        return Lazy(aval.shape, aval.dtype, (Product(a, Factor(rhs, tuple(rhs_labels)), out),))
    # Slices that differ in the last offset only, or all where the channels are few, share one
    # product of plain matrices: the same arithmetic in fewer and wider products.
    together = len(slices) if rows.size * len(slices) <= 64 else offsets[-1]
    label, axis = Label(together), lhs_labels.index(rows)
    labels, every = [*lhs_labels[:axis], label, *lhs_labels[axis:]], [summed_channels, *positions]
    cotangent = contraction.align(rhs, rhs_labels, [groups, *every, out_channels])
    cotangent = cotangent.reshape(groups.size, summed, out_channels.size)
    parts = []
    for i in range(0, len(slices), together):
        x = jnp.stack(slices[i : i + together], axis)
        x = contraction.align(x, labels, [groups, *every, label, rows])
        x = x.reshape(groups.size, summed, together * rows.size)
        parts.append(contraction.contract(x, "gsi", cotangent, "gso", "gio"))
    order = [groups, *offset_labels, rows, out_channels]
    formed = jnp.concatenate(parts, 1).reshape([label.size for label in order])
    flat = [label for group in out for label in group]
    formed = contraction.align(formed, order, flat)
    return Lazy(aval.shape, aval.dtype, (formed.reshape(aval.shape).astype(aval.dtype),))


def _labels(
    spec: Any, first: list[Label], second: list[Label], spatial: list[Label]
) -> list[Label]:
    """Labels of an operand, axis by axis, its first two dimensions possibly split in two."""
    axes = {spec[0]: first, spec[1]: second}
    axes.update({d: [label] for d, label in zip(spec[2:], spatial, strict=True)})
    return [label for d in range(len(spec)) for label in axes[d]]
