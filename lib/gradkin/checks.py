"""Argument checks: one place, one voice, messages that name the argument."""

from collections.abc import Iterable
from typing import Any, TypeGuard

import jax
import numpy as np
from jax.core import Tracer


def is_concrete(value: Any) -> bool:
    """Whether a value can be read now: no tracer, nor split over devices of other processes."""
    if isinstance(value, Tracer):
        return False
    split = isinstance(value, jax.Array) and not value.is_fully_addressable
    return not split or value.is_fully_replicated


def positive(**values: Any) -> None:
    """Raise ValueError unless each concrete value is finite and > 0; infinity is allowed."""
    for name, value in values.items():
        if is_concrete(value) and not np.all(np.asarray(value) > 0):
            raise ValueError(f"Expected {name} > 0, got {_first(name, value, np.greater)}.")


def non_negative(**values: Any) -> None:
    """Raise ValueError unless each concrete value is >= 0."""
    for name, value in values.items():
        if is_concrete(value) and not np.all(np.asarray(value) >= 0):
            raise ValueError(f"Expected {name} >= 0, got {_first(name, value, np.greater_equal)}.")


def _first(name: str, value: Any, compare: Any) -> str:
    """A value, or of a long array the first entry that does not compare with zero."""
    if np.size(value) <= 8:
        return f"{name}={value}"
    array = np.asarray(value)
    place = np.unravel_index(np.argmin(compare(array, 0)), array.shape)
    return f"{name}[{', '.join(map(str, place))}]={array[place]}"


def is_integer(value: Any, *, least: int | None = None) -> TypeGuard[int]:
    """Whether a value is an integer, Python's or NumPy's and no boolean, of at least ``least``."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        return False
    return least is None or bool(value >= least)


def positive_integer(**values: Any) -> None:
    """Raise ValueError unless each value is an integer, 1 or more; see `is_integer`."""
    for name, value in values.items():
        if not is_integer(value, least=1):
            raise ValueError(f"Expected {name} to be a positive integer, got {value!r}.")


def one_of(options: Iterable[Any], **values: Any) -> None:
    """Raise ValueError unless each value is one of ``options``."""
    options = tuple(options)
    for name, value in values.items():
        if value not in options:
            raise ValueError(f"Expected {name} to be one of {options}, got {name}={value!r}.")


def below(bound: int, **values: Any) -> None:
    """Raise ValueError unless each concrete value is in 0, ..., bound - 1."""
    for name, value in values.items():
        if is_concrete(value) and np.size(value):
            low, high = np.min(np.asarray(value)), np.max(np.asarray(value))
            if low < 0 or high >= bound:
                raise ValueError(f"Expected {name} in 0, ..., {bound - 1}, got {low} to {high}.")


def rank(expected: int, **arrays: Any) -> None:
    """Raise ValueError unless each array has ``expected`` axes."""
    for name, array in arrays.items():
        if np.ndim(array) != expected:
            raise ValueError(
                f"Expected {name} to have {expected} axes, got {name}.shape={np.shape(array)}."
            )


def same_structure(tree: Any, like: Any, *, name: str, like_name: str) -> None:
    """Raise ValueError, naming the first differing path, unless shapes and structure agree."""
    left = dict(jax.tree_util.tree_flatten_with_path(tree)[0])
    right = dict(jax.tree_util.tree_flatten_with_path(like)[0])
    for path in [*right, *(p for p in left if p not in right)]:
        text = jax.tree_util.keystr(path) or "the root"
        if path not in left:
            raise ValueError(
                f"Expected {name} to have the leaves of {like_name}: {text} is missing."
            )
        if path not in right:
            raise ValueError(f"Expected {name} to have the leaves of {like_name}: {text} is extra.")
        if np.shape(left[path]) != np.shape(right[path]):
            raise ValueError(
                f"Expected {name} to have the shapes of {like_name}: at {text} got "
                f"{np.shape(left[path])}, expected {np.shape(right[path])}."
            )
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise ValueError(f"Expected {name} to have the tree structure of {like_name}.")
