"""Dataclasses as pytrees that JAX tells apart."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import jax

C = TypeVar("C", bound=type)


def register_dataclass(
    cls: C,
    data_fields: Sequence[str] | None = None,
    meta_fields: Sequence[str] | None = None,
) -> C:
    """Register a dataclass as a pytree, like `jax.tree_util.register_dataclass`.

    That function makes structures that compare equal for different classes with as many children
    and equal static fields (jax 0.10.1: ``tree.structure(A(1)) == tree.structure(B(1))``). Only
    their hashes differ, so that `jax.jit` now and then, where two hashes share a bucket, runs what
    it compiled for the other class. Structures of classes registered here differ.

    Args:
      cls: a dataclass; all its fields are arguments of its ``__init__``.
      data_fields: names of the children; None takes all that are not marked
        ``metadata={"static": True}``.
      meta_fields: names of the static fields, hashable; None takes those that are.

    Returns:
      ``cls``.

    Raises:
      ValueError: fields that are not those of the class.

    Example:
      >>> import dataclasses, functools, jax
      >>> from gradkin.pytrees import register_dataclass
      >>> @functools.partial(register_dataclass, data_fields=["x"], meta_fields=["name"])
      ... @dataclasses.dataclass(frozen=True)
      ... class Named:
      ...     x: float
      ...     name: str
      >>> jax.tree.map(lambda x: 2 * x, Named(1.0, "a"))
      Named(x=2.0, name='a')
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    static = [name for name, field in fields.items() if field.metadata.get("static", False)]
    data = tuple(n for n in fields if n not in static) if data_fields is None else data_fields
    meta = tuple(static) if meta_fields is None else meta_fields
    if sorted((*data, *meta)) != sorted(fields):
        raise ValueError(
            f"Expected data_fields and meta_fields to be the fields of {cls.__name__}, "
            f"{sorted(fields)}, got {sorted((*data, *meta))}."
        )
    data, meta = tuple(data), tuple(meta)
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in data)

    def children(tree: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(tree, n) for n in data), tuple(getattr(tree, n) for n in meta)

    def children_with_keys(tree: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        found, aux = children(tree)
        return tuple(zip(keys, found)), aux

    def make(aux: tuple[Any, ...], found: Any) -> Any:
        return cls(**dict(zip(meta, aux)), **dict(zip(data, found)))

    jax.tree_util.register_pytree_with_keys(cls, children_with_keys, make, children)
    return cls


def check_told_apart(tree: Any) -> None:
    """Raise TypeError where JAX may take a node of a pytree for one of another class.

    Such are dataclasses registered by `jax.tree_util.register_dataclass`, as far as JAX makes
    equal structures of different classes. Equinox modules, NamedTuples and what
    `jax.tree_util.register_pytree_node` registers are told apart.

    Args:
      tree: a pytree, such as a kernel with its parameters.

    Raises:
      TypeError: with the name of the class, and how to register it.

    Example:
      >>> import dataclasses, jax
      >>> from gradkin.pytrees import check_told_apart, register_dataclass
      >>> @register_dataclass
      ... @dataclasses.dataclass(frozen=True)
      ... class Scaled:
      ...     scale: float
      >>> check_told_apart([Scaled(1.0)])
    """
    children, structure = jax.tree.flatten(tree, is_leaf=lambda node: node is not tree)
    node = structure.node_data()
    # Not `treedef_is_leaf`, which is also true of a node without children.
    if node is None:
        return
    static = node[1]
    if dataclasses.is_dataclass(tree) and isinstance(static, list | tuple):
        double = _double(len(children), len(static))(*children, *static)
        if jax.tree.structure(double, is_leaf=lambda node: node is not double) == structure:
            raise TypeError(
                f"Expected {type(tree).__name__} to be registered by "
                "gradkin.pytrees.register_dataclass: JAX takes classes that "
                "jax.tree_util.register_dataclass registers for one another."
            )
    for child in children:
        check_told_apart(child)


@functools.cache
def _double(num_children: int, num_static: int) -> type:
    """A dataclass registered by JAX, to see whether another is taken for it."""
    data = [f"child{i}" for i in range(num_children)]
    meta = [f"static{i}" for i in range(num_static)]
    cls = dataclasses.make_dataclass("Double", [*data, *meta])
    return jax.tree_util.register_dataclass(cls, data, meta)
