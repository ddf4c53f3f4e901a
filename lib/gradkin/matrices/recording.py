"""One backward pass of a mapped loss, kept as factors."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from gradkin.matrices import backward, leaves, programs, verbs
from gradkin.matrices.arguments import path_name
from gradkin.matrices.recorded import PerExampleGrads
from gradkin.typing import PyTree


class Transformation(NamedTuple):
    """Static half of a call: what is differentiated and how the rest is mapped."""

    fun: Callable[..., Any]
    argnums: int | tuple[int, ...]
    has_aux: bool
    in_axes: Any
    route: str


class ByIdentity:
    """Hashable stand-in for a callable or a tree that cannot be hashed."""

    def __init__(self, value: Any):
        self.value = value
        self.__name__ = getattr(value, "__name__", type(value).__name__)

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, ByIdentity) and other.value is self.value

    def __call__(self, *args: Any) -> Any:
        return self.value(*args)


def mapped_axes(spec: Transformation) -> Any:
    """``in_axes`` of every argument."""
    return spec.in_axes.value if isinstance(spec.in_axes, ByIdentity) else spec.in_axes


@functools.partial(jax.jit, static_argnames=("spec", "num_examples", "eager"), inline=True)
def record(
    spec: Transformation, args: tuple[Any, ...], *, num_examples: int, eager: bool = False
) -> tuple[Any, PerExampleGrads]:
    """One backward pass: ``(losses or (losses, aux), G)``."""
    params = parameters(spec, args)
    mapped = jax.vmap(
        jax.value_and_grad(spec.fun, argnums=spec.argnums, has_aux=spec.has_aux),
        in_axes=mapped_axes(spec),
    )
    flat, structure = jax.tree.flatten(args)

    def fun(*flat_args: Any) -> Any:
        value, grads = mapped(*jax.tree.unflatten(structure, flat_args))
        return jax.tree.leaves(grads), value

    program, result_structure = programs.trace(fun, flat)
    params_flat, params_structure = jax.tree_util.tree_flatten_with_path(params)
    number = len(params_flat)
    lazy_outputs = [i < number for i in range(len(program.outputs))]
    outputs = backward.evaluate(program, flat, lazy_outputs)
    _, value = jax.tree.unflatten(result_structure, [0] * number + outputs[number:])
    losses = value[0] if spec.has_aux else value
    table = leaves.Table()
    described = tuple(
        leaves.store(gradient, path_name(path), like, table, route=spec.route)
        for gradient, (path, like) in zip(outputs[:number], params_flat, strict=True)
    )
    arrays = tuple(table.arrays)
    if eager:
        arrays, described = verbs.batch_first(arrays, described)
    return value, PerExampleGrads(arrays, None, losses, described, params_structure, num_examples)


def parameters(spec: Transformation, args: tuple[Any, ...]) -> PyTree:
    """The differentiated argument or arguments."""
    if isinstance(spec.argnums, int):
        return args[spec.argnums]
    return tuple(args[i] for i in spec.argnums)
