"""Permutations of hidden units: which axes of the parameters go together, and doing it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices.arguments import path_name
from gradkin.typing import Array, PyTree

Factors = tuple[tuple[int, str | None], ...]
Permutation = dict[str, Array]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PermutationSpec:
    """Which axes of which parameters are permuted together, so that the function stays the same.

    Made by `infer_permutations` from a model, or by `permutation_spec` from a statement. A static
    value: hashable, and a pytree without leaves.

    Args:
      leaves: a path and its axes for each parameter, in the pytree's order. An axis is a tuple of
        factors ``(size, name)``, the slowest first, whose sizes multiply to its length: one factor
        for an axis of units; positions x channels where images were flattened. A name says which
        permutation moves the factor, None that it stays.
    """

    leaves: tuple[tuple[str, tuple[Factors, ...]], ...]

    @property
    def sizes(self) -> dict[str, int]:
        """How many units each permutation moves."""
        return {
            name: size
            for _, axes in self.leaves
            for factors in axes
            for size, name in factors
            if name is not None
        }

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Path -> axes, as `permutation_spec` takes them; only the parameters that move."""
        return {
            path: tuple(stated(factors) for factors in axes)
            for path, axes in self.leaves
            if any(name for factors in axes for _, name in factors)
        }

    def identity(self) -> Permutation:
        """The permutations that move nothing: name -> ``[size]`` int32."""
        return {name: jnp.arange(size, dtype=np.int32) for name, size in self.sizes.items()}


class Factored(NamedTuple):
    """A parameter with an axis for each factor, and the factors' names."""

    value: Array
    names: tuple[str | None, ...]


def stated(factors: Factors) -> Any:
    """An axis as a user states it: a name, None, or a tuple of sizes and names."""
    if all(name is None for _, name in factors):
        return None
    parts = tuple(size if name is None else name for size, name in factors)
    return parts[0] if len(parts) == 1 else parts


def permutation_spec(params: PyTree, axes: Mapping[str, Sequence[Any]]) -> PermutationSpec:
    """State which axes are permuted together, where the model should not be asked.

    Args:
      params: the parameters, or their shapes.
      axes: path ("layer0/kernel") -> one entry for each axis: the name of its permutation, None
        where nothing moves, or a tuple of sizes and one name for an axis that is their product,
        the slowest first: ``(9, "channels")`` for nine flattened positions of the channels.
        Parameters that are not mentioned do not move.

    Returns:
      `PermutationSpec`.

    Raises:
      ValueError: a path that ``params`` lacks, a wrong number of axes, a name with two sizes.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> params = {"first": jnp.ones((5, 3)), "last": jnp.ones((3, 2))}
      >>> axes = {"first": (None, "hidden"), "last": ("hidden", None)}
      >>> curvature.permutation_spec(params, axes).sizes
      {'hidden': 3}

    References:
      Ainsworth, Hayase & Srinivasa (2023), "Git Re-Basin", arXiv:2209.04836.
      :cite:`ainsworth:23`
    """
    shapes = {path: np.shape(leaf) for path, leaf in leaves_with_paths(params)}
    for path in axes:
        if path not in shapes:
            raise ValueError(f"Expected axes of {sorted(shapes)}, got the path {path!r}.")
    sizes: dict[str, int] = {}
    leaves = []
    for path, shape in shapes.items():
        entries = axes.get(path, (None,) * len(shape))
        if len(entries) != len(shape):
            raise ValueError(
                f"Expected one entry for each axis of {path}, of shape {shape}, got {entries}."
            )
        factored = tuple(factors_of(entry, size, path) for entry, size in zip(entries, shape))
        leaves.append((path, factored))
        for size, name in (factor for factors in factored for factor in factors):
            if name is not None and sizes.setdefault(name, size) != size:
                raise ValueError(
                    f"Expected {name!r} to have one size, got {sizes[name]} and, in {path}, {size}."
                )
    return PermutationSpec(tuple(leaves))


def factors_of(entry: Any, size: int, path: str) -> Factors:
    """The factors of one axis, from what was stated of it."""
    if entry is None or isinstance(entry, str):
        return ((size, entry),)
    known = math.prod(part for part in entry if not isinstance(part, str))
    if sum(isinstance(part, str) for part in entry) != 1 or known < 1 or size % known:
        raise ValueError(
            f"Expected sizes that divide {size} and one name for an axis of {path}, got {entry}."
        )
    return tuple((size // known, p) if isinstance(p, str) else (p, None) for p in entry)


def apply_permutation(
    spec: PermutationSpec, permutation: Mapping[str, Any], params: PyTree
) -> PyTree:
    """Permute the hidden units of a network; what it computes stays the same.

    .. math:: W_l \\to P_l W_l P_{l-1}^\\top, \\quad b_l \\to P_l b_l

    Args:
      spec: which axes move together.
      permutation: name -> ``[size]`` indices: unit i of the result is unit ``permutation[i]``.
      params: the parameters.

    Returns:
      Parameters of the same structure, shapes and dtypes; differentiable.

    Raises:
      ValueError: parameters that are not the spec's, a permutation that lacks a name or has another
        size.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> spec = curvature.permutation_spec({"b": jnp.ones(3)}, {"b": ("hidden",)})
      >>> order = {"hidden": jnp.array([2, 0, 1])}
      >>> curvature.apply_permutation(spec, order, {"b": jnp.array([5.0, 6.0, 7.0])})["b"].tolist()
      [7.0, 5.0, 6.0]

    References:
      Ito, Yamada & Kumagai (2025), "Analysis of Linear Mode Connectivity via Permutation-Based
      Weight Matching", arXiv:2402.04051. :cite:`lmc-weight-matching`
    """
    permutation = checked_permutation(spec, permutation)
    leaves, treedef = jax.tree.flatten(params)
    moved = [
        permuted(one, permutation).reshape(np.shape(leaf))
        for one, leaf in zip(factored(spec, params, name="params"), leaves)
    ]
    return jax.tree.unflatten(treedef, moved)


def checked_permutation(spec: PermutationSpec, permutation: Mapping[str, Any]) -> Permutation:
    """The permutations as int32 arrays; ValueError unless names and sizes are the spec's."""
    sizes = spec.sizes
    if permutation.keys() != sizes.keys():
        raise ValueError(f"Expected permutations named {sorted(sizes)}, got {sorted(permutation)}.")
    for name, size in sizes.items():
        if np.shape(permutation[name]) != (size,):
            raise ValueError(
                f"Expected permutation[{name!r}] of shape ({size},), got "
                f"{np.shape(permutation[name])}."
            )
        if checks.is_concrete(permutation[name]) and not np.array_equal(
            np.sort(np.asarray(permutation[name])), np.arange(size)
        ):
            raise ValueError(
                f"Expected permutation[{name!r}] to hold each index below {size} once."
            )
    return {name: jnp.asarray(permutation[name]).astype(np.int32) for name in sizes}


def factored(spec: PermutationSpec, params: PyTree, *, name: str) -> list[Factored]:
    """Every parameter with an axis for each factor; ValueError where they are not the spec's."""
    found = leaves_with_paths(params)
    wanted = {path: tuple(math.prod(s for s, _ in f) for f in axes) for path, axes in spec.leaves}
    given = {path: np.shape(leaf) for path, leaf in found}
    for path in [*wanted, *given]:
        if wanted.get(path) != given.get(path):
            raise ValueError(
                f"Expected {name} to have the leaves of the spec: at {path} got "
                f"{given.get(path, 'nothing')}, expected {wanted.get(path, 'nothing')}."
            )
    result = []
    for (_, leaf), (_, axes) in zip(found, spec.leaves):
        flat = [factor for factors in axes for factor in factors]
        value = jnp.asarray(leaf).reshape([size for size, _ in flat])
        result.append(Factored(value, tuple(each for _, each in flat)))
    return result


def permuted(leaf: Factored, permutation: Mapping[str, Array], *, but: int | None = None) -> Array:
    """The parameter with all its factors moved, or all but the axis ``but``."""
    value = leaf.value
    for axis, name in enumerate(leaf.names):
        if name is not None and axis != but:
            value = jnp.take(value, permutation[name], axis=axis)
    return value


def leaves_with_paths(params: PyTree) -> list[tuple[str, Any]]:
    """Paths like ``layer0/kernel``, and leaves."""
    return [
        (path_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
