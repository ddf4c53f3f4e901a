"""Checks of what kernel matrices are made of and multiplied by."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from gradkin import checks
from gradkin.matrices import arguments
from gradkin.matrices.floating import floating
from gradkin.matrices.kernel_tiles import Placement, pairwise_sum
from gradkin.typing import Array

# Numbers up to which concrete points are checked to be finite: a millisecond.
CHECKED_SIZE = 2**20


def as_points(x: Any, name: str) -> Array:
    """Points as an array of floats with at least one point."""
    x = jnp.asarray(x)
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"Expected {name} to hold at least one point, got {name}.shape={x.shape}.")
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"Expected {name} to hold real numbers, got {x.dtype}.")
    return floating(x)


def operand(vectors: Any, size: int, name: str, *, axis: int) -> Array:
    """What is multiplied by a matrix: one or two axes, ``size`` along ``axis``."""
    if hasattr(vectors, "centered_sums"):
        raise TypeError("Expected a vector or a few, got a KernelMatrix; for entries: K.inner(L).")
    vectors = jnp.asarray(vectors)
    if vectors.ndim not in (1, 2) or vectors.shape[axis] != size:
        shape = f"({size}, c)" if axis == 0 else f"(c, {size})"
        raise ValueError(f"Expected {name} to be ({size},) or {shape}, got {vectors.shape}.")
    return vectors if jnp.issubdtype(vectors.dtype, jnp.floating) else vectors.astype(float)


def factors(weights: Any, size: int) -> Array:
    """Weights as floats, one per point."""
    weights = jnp.asarray(weights)
    if weights.shape != (size,):
        raise ValueError(f"Expected weights to have shape ({size},), got {weights.shape}.")
    return weights if jnp.issubdtype(weights.dtype, jnp.floating) else weights.astype(float)


def probabilities(weights: Any, size: int, *, mask: Any = None, name: str = "weights") -> Array:
    """Weights over their sum, not negative and not all zero; zero where masked."""
    weights = factors(weights, size)
    if mask is not None:
        weights = jnp.where(mask, weights, 0)
    checks.non_negative(**{name: weights})
    total = pairwise_sum(weights)
    if checks.is_concrete(total) and not 0 < total < np.inf:
        raise ValueError(f"Expected the sum of {name} > 0 and finite, got {total}.")
    return weights / total


def checked_axis(axis: int | None) -> int | None:
    """0, 1 or None; negative numbers count from the end."""
    checks.one_of((None, 0, 1, -1, -2), axis=axis)
    return None if axis is None else axis % 2


def masks(mask: Any, x: Array, y: Array | None) -> tuple[Array | None, Array | None]:
    """Masks of rows and of columns."""
    if mask is None:
        return None, None
    if y is None:
        if isinstance(mask, tuple):
            raise ValueError("Expected one mask with y=None, got a pair.")
        mask = arguments.row_mask(mask, x.shape[0])
        return mask, mask
    if not isinstance(mask, tuple | list) or len(mask) != 2:
        raise ValueError("Expected mask to be a pair, for rows and columns, where y is given.")
    rows, columns = mask
    return (
        None if rows is None else arguments.row_mask(rows, x.shape[0]),
        None if columns is None else arguments.row_mask(columns, y.shape[0]),
    )


def without(points: Array, mask: Array | None) -> Array:
    """The points, those left out replaced by one that is not: whatever they held is gone."""
    if mask is None:
        return points
    some = points[jnp.argmax(mask)]
    shape = (-1,) + (1,) * (points.ndim - 1)
    return jnp.where(mask.reshape(shape), points, jnp.broadcast_to(some, points.shape))


def finite(points: Array, name: str) -> None:
    """Raise ValueError where concrete points, not too many, are not finite."""
    if not checks.is_concrete(points) or points.size > CHECKED_SIZE:
        return
    if not points.is_fully_addressable:
        return
    with jax.ensure_compile_time_eval():  # constants inside `jit` are concrete too
        if bool(jnp.all(jnp.isfinite(points))):
            return
    bad = np.flatnonzero(
        ~np.isfinite(np.asarray(points, np.float64)).reshape(len(points), -1).all(1)
    )
    raise ValueError(
        f"Expected {name} to be finite, got NaN or infinity in {len(bad)} of {len(points)} points, "
        f"first in point {bad[0]}."
    )


def placed(x: Any, mesh: Any, ring: bool) -> Placement | None:
    """How points are split: as ``mesh`` says, or as a concrete ``x`` is."""
    if mesh is not None:
        explicit = [n for n, kind in zip(mesh.axis_names, mesh.axis_types) if kind != AxisType.Auto]
        if explicit:
            raise ValueError(
                f"Expected a mesh of automatic axes, got {explicit} of another kind: "
                "jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto, ...))."
            )
        return Placement(mesh, tuple(mesh.axis_names), "ring" if ring else "rows")
    sharding = getattr(x, "sharding", None) if checks.is_concrete(x) else None
    if isinstance(sharding, NamedSharding) and len(sharding.spec) and sharding.spec[0]:
        axes = sharding.spec[0]
        axes = axes if isinstance(axes, tuple) else (axes,)
        if math.prod(sharding.mesh.shape[a] for a in axes) > 1:
            return Placement(sharding.mesh, axes, "ring" if ring else "rows")
    if ring:
        raise ValueError("Expected a mesh, or x sharded over one, with ring=True.")
    return None


def divisible(points: Array, name: str, placement: Placement) -> None:
    """Raise ValueError unless every device gets equally many points."""
    size = math.prod(placement.mesh.shape[a] for a in placement.axes)
    if points.shape[0] % size:
        raise ValueError(
            f"Expected the number of points of {name} to be a multiple of the {size} devices, got "
            f"{points.shape[0]}; pad it and mask the padding."
        )
