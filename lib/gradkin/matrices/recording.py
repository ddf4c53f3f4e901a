"""One backward pass of a mapped loss, kept as factors."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from gradkin.matrices import backward, lazy, leaves, products, programs, verbs
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


def leaf_axes(axes: Any, arg: Any) -> list[int | None]:
    """The mapped axis of each leaf of an argument, from a prefix of its structure."""
    prefix = jax.tree.map(lambda a: "none" if a is None else a, axes, is_leaf=lambda x: x is None)
    flat = jax.tree.leaves(jax.tree.broadcast(prefix, arg))
    return [None if axis == "none" else axis for axis in flat]


def map_axes(fun: Callable[[int | None, Any], Any], axes: Any, arg: Any) -> Any:
    """``fun(axis, leaf)`` for each leaf of an argument."""
    flat, structure = jax.tree.flatten(arg)
    return jax.tree.unflatten(structure, list(map(fun, leaf_axes(axes, arg), flat)))


@functools.partial(jax.jit, static_argnames=("spec", "num_examples", "eager"), inline=True)
def record(
    spec: Transformation, args: tuple[Any, ...], *, num_examples: int, eager: bool = False
) -> tuple[Any, PerExampleGrads]:
    """One backward pass: ``(losses or (losses, aux), G)``."""
    program, flat, rebuild = _trace(spec, args)
    paths, structure = jax.tree_util.tree_flatten_with_path(parameters(spec, args))
    outputs = backward.evaluate(program, flat, _gradients(program, len(paths)))
    value = rebuild(outputs[len(paths) :])
    losses = value[0] if spec.has_aux else value
    table = leaves.Table()
    described = tuple(
        leaves.store(gradient, path_name(path), like, table, route=spec.route)
        for gradient, (path, like) in zip(outputs, paths, strict=False)
    )
    arrays = tuple(table.arrays)
    if eager:
        arrays, described = verbs.batch_first(arrays, described)
    return value, PerExampleGrads(arrays, None, losses, described, structure, num_examples)


def squared_norms(spec: Transformation, args: tuple[Any, ...]) -> dict[str, Any]:
    """``|g_b|^2`` of each leaf, by path, in one backward pass that keeps no factors of a scan.

    Stacked layers are squared inside the backward scan, where their factors arise.
    """
    program, flat, _ = _trace(spec, args)
    paths, _ = jax.tree_util.tree_flatten_with_path(parameters(spec, args))
    gradients = _gradients(program, len(paths))
    outputs = backward.evaluate(
        program, flat, gradients, squares=programs.example_axes(program, gradients)
    )
    return {
        path_name(path): products.squared_norms_of(lazy.as_lazy(gradient))
        for gradient, (path, _) in zip(outputs, paths, strict=False)
    }


def has_remat(spec: Transformation, args: tuple[Any, ...]) -> bool:
    """Whether the loss asks for recomputation (`jax.checkpoint`)."""
    return _trace(spec, args)[0].has_remat


def _gradients(program: programs.Program, number: int) -> list[bool]:
    return [i < number for i in range(len(program.outputs))]


def _trace(
    spec: Transformation, args: tuple[Any, ...]
) -> tuple[programs.Program, list[Any], Callable[[list[Any]], Any]]:
    """The mapped backward pass as a program, gradients first, then values."""
    mapped = jax.vmap(
        jax.value_and_grad(spec.fun, argnums=spec.argnums, has_aux=spec.has_aux),
        in_axes=mapped_axes(spec),
    )
    flat, structure = jax.tree.flatten(args)

    def fun(*flat_args: Any) -> Any:
        value, grads = mapped(*jax.tree.unflatten(structure, flat_args))
        return jax.tree.leaves(grads), value

    program, result = programs.trace(fun, flat)
    number = len(jax.tree.leaves(parameters(spec, args)))

    def rebuild(values: list[Any]) -> Any:
        return jax.tree.unflatten(result, [0] * number + values)[1]

    return program, flat, rebuild


def parameters(spec: Transformation, args: tuple[Any, ...]) -> PyTree:
    """The differentiated argument or arguments."""
    if isinstance(spec.argnums, int):
        return args[spec.argnums]
    return tuple(args[i] for i in spec.argnums)


def with_parameters(spec: Transformation, args: tuple[Any, ...], params: PyTree) -> tuple[Any, ...]:
    """The arguments with other parameters."""
    numbers = (spec.argnums,) if isinstance(spec.argnums, int) else spec.argnums
    values = (params,) if isinstance(spec.argnums, int) else params
    replaced = dict(zip(numbers, values, strict=True))
    return tuple(replaced.get(i, arg) for i, arg in enumerate(args))
