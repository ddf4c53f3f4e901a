"""Checks shared by the recorded and the streamed matrix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin.typing import Array


def path_name(path: Any) -> str:
    """A parameter's path as text: ``"layers/0/kernel"``; the empty path is ``"."``."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]  # the box that NNX puts around an array
    return jax.tree_util.keystr(path, simple=True, separator="/") or "."


def row_values(values: Any, num_examples: int, name: str, *, leading: bool = False) -> Array:
    """``values`` as floats, one per example; with ``leading``, optionally stacked ``[K, B]``."""
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(np.float32)
    if values.ndim == 0 and not leading:
        return jnp.broadcast_to(values, (num_examples,))
    if values.shape[-1:] != (num_examples,) or values.ndim > 1 + leading:
        raise ValueError(
            f"Expected {name} to have shape ({num_examples},), one per example, got {values.shape}."
        )
    return values


def not_a_matrix(tangent: Any) -> None:
    """Raise TypeError for ``G @ H``, where ``G @ H.T`` was meant."""
    if hasattr(tangent, "squared_norms"):
        raise TypeError(
            "Expected a pytree like the parameters, got a matrix of gradients: for inner products "
            "of rows write G @ H.T."
        )


def row_mask(mask: Any, num_examples: int) -> Array:
    """``mask`` as booleans, one per example."""
    mask = jnp.asarray(mask)
    if mask.dtype != bool or mask.shape != (num_examples,):
        raise ValueError(
            f"Expected mask to be boolean of shape ({num_examples},), got {mask.dtype} of shape "
            f"{mask.shape}."
        )
    return mask


def row_index(index: Any, num_examples: int) -> tuple[Array, bool]:
    """Row numbers selected by an integer, slice, mask or integers; whether it was one row."""
    if isinstance(index, int | np.integer):
        if not -num_examples <= index < num_examples:
            raise IndexError(
                f"Expected an index from {-num_examples} to {num_examples - 1}, got {index}."
            )
        return jnp.asarray([int(index) % num_examples]), True
    if isinstance(index, slice):
        return jnp.asarray(np.arange(num_examples)[index]), False
    index = index if isinstance(index, jax.Array) else np.asarray(index)
    if index.dtype == bool:
        if index.shape != (num_examples,):
            raise IndexError(f"Expected a mask of shape ({num_examples},), got {index.shape}.")
        return jnp.asarray(np.flatnonzero(np.asarray(index))), False
    if index.ndim > 1 or not jnp.issubdtype(index.dtype, jnp.integer):
        raise IndexError(
            f"Expected row numbers or a mask, got {index.dtype} of shape {index.shape}."
        )
    if index.ndim == 0:
        return jnp.asarray(index)[None], True
    return jnp.asarray(index), False
