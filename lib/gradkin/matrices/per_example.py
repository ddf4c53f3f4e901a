"""Per-example gradients of any scalar loss, in the manner of `jax.grad`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradkin import checks
from gradkin.matrices import streamed, verify
from gradkin.matrices.arguments import path_name
from gradkin.matrices.recorded import PerExampleGrads
from gradkin.matrices.recording import (
    ByIdentity,
    Transformation,
    leaf_axes,
    mapped_axes,
    parameters,
    record,
)


def per_example_grads(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    in_axes: Any = 0,
    batch_size: int | None = None,
    route: str = "auto",
    check: bool = False,
    passes: int | str = "auto",
) -> Callable[..., Any]:
    """Transform a loss of one example into the matrix of all examples' gradients.

    Row ``i`` of the result is ``grad(fun)(params, example_i)``, flattened. One backward pass
    records the factors of each gradient; whatever is read off is exact.

    Args:
      fun: ``fun(params, example, ...)`` -> scalar loss (or ``(loss, aux)``): any pure function.
      argnums: position of the parameters, as in `jax.grad`.
      has_aux: whether ``fun`` returns ``(loss, aux)``.
      in_axes: as in `jax.vmap`, for all positional arguments; the parameters' own entry must be
        None or absent (an int applies to every other argument). None keeps an argument, such as
        frozen parameters, the same for all examples.
      batch_size: None records the factors of all examples. A number makes the matrix streamed:
        each verb is one pass over micro-batches of that many examples.
      route: "auto" counts, per parameter, whether factors or the gradient are smaller;
        "factors" and "dense" overrule the count.
      check: compare the first, middle and last row with `jax.grad` and stop on a difference;
        recorded matrices only. Also inside `jit`.
      passes: for streamed matrices. A clipped or scaled sum takes one pass, which stores factors,
        or two (norms, then the gradient of the weighted losses), which store none; "auto" takes
        two where the loss uses `jax.checkpoint`.

    Returns:
      A function of the arguments of ``fun``, batched, that returns a `PerExampleGrads` ``G``
      (with ``has_aux``, ``(G, aux)``).

    Raises:
      TypeError: parameters that are not floating point, or a loss that is not a real scalar.
      ValueError: leading axes that disagree, or no examples.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> loss = lambda w, x: 0.5 * jnp.vdot(w, x) ** 2
      >>> G = gradkin.per_example_grads(loss)(jnp.array([1.0, 2.0]), jnp.eye(2))
      >>> G.shape, G.norms().tolist()
      ((2, 2), [1.0, 2.0])
      >>> G.clip(1.0).mean().tolist()
      [0.5, 0.5]

    Note:
      For training, put everything in one jit so that unused factors vanish:
      ``jax.jit(lambda p, b: per_example_grads(loss)(p, b).clip(1.0).mean())``.
    """
    _check_options(fun, batch_size, route, check, passes)

    def transformed(*args: Any) -> Any:
        spec, num_examples = bind(fun, argnums, has_aux, in_axes, route, args)
        if batch_size is not None:
            S = streamed.stream(spec, args, num_examples, batch_size, passes)
            return (S, streamed.losses(S)[1]) if has_aux else S
        value, G = _recorded(spec, args, num_examples, check)
        return (G, value[1]) if has_aux else G

    return transformed


def value_and_per_example_grads(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    in_axes: Any = 0,
    batch_size: int | None = None,
    route: str = "auto",
    check: bool = False,
    passes: int | str = "auto",
) -> Callable[..., Any]:
    """As `per_example_grads`, returning the losses too.

    Args:
      fun: see `per_example_grads`.
      argnums: see `per_example_grads`.
      has_aux: see `per_example_grads`.
      in_axes: see `per_example_grads`.
      batch_size: see `per_example_grads`.
      route: see `per_example_grads`.
      check: see `per_example_grads`.
      passes: see `per_example_grads`.

    Returns:
      A function that returns ``(losses, G)``, losses of shape ``[B]``; with ``has_aux``,
      ``((losses, aux), G)`` with every leaf of ``aux`` stacked over examples.

    Raises:
      TypeError: see `per_example_grads`.
      ValueError: see `per_example_grads`.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> loss = lambda w, x: 0.5 * jnp.vdot(w, x) ** 2
      >>> losses, G = gradkin.value_and_per_example_grads(loss)(jnp.array([1.0, 2.0]), jnp.eye(2))
      >>> losses.tolist()
      [0.5, 2.0]
    """
    _check_options(fun, batch_size, route, check, passes)

    def transformed(*args: Any) -> Any:
        spec, num_examples = bind(fun, argnums, has_aux, in_axes, route, args)
        if batch_size is not None:
            S = streamed.stream(spec, args, num_examples, batch_size, passes)
            value = streamed.losses(S)
            return value, dataclasses.replace(S, losses=value[0] if has_aux else value)
        return _recorded(spec, args, num_examples, check)

    return transformed


def _check_options(
    fun: Callable[..., Any],
    batch_size: int | None,
    route: str,
    check: bool,
    passes: int | str,
) -> None:
    checks.one_of((1, 2, "auto"), passes=passes)
    checks.one_of(("auto", "factors", "dense"), route=route)
    if not callable(fun):
        raise TypeError(f"Expected fun to be callable, got {type(fun).__name__}.")
    if batch_size is not None:
        checks.positive_integer(batch_size=batch_size)
    if check and batch_size is not None:
        raise ValueError("Expected check=False with batch_size: check a recorded batch instead.")


def bind(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...],
    has_aux: bool,
    in_axes: Any,
    route: str,
    args: tuple[Any, ...],
) -> tuple[Transformation, int]:
    """The static half of a call, and the number of examples; arguments are checked."""
    axes = hashable(_all_axes(in_axes, argnums, args))
    spec = Transformation(hashable(fun), argnums, has_aux, axes, route)
    return spec, check_arguments(spec, args)


def _recorded(
    spec: Transformation, args: tuple[Any, ...], num_examples: int, check: bool
) -> tuple[Any, PerExampleGrads]:
    eager = not any(isinstance(x, Tracer) for x in jax.tree.leaves(args))
    value, G = record(spec, args, num_examples=num_examples, eager=eager)
    if check:
        verify.compare_rows(spec, args, G)
    return value, G


def hashable(value: Any) -> Any:
    """The value, or a stand-in that compares by identity."""
    try:
        hash(value)
    except TypeError:
        return ByIdentity(value)
    return value


def _all_axes(in_axes: Any, argnums: int | tuple[int, ...], args: tuple[Any, ...]) -> tuple:
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for n in numbers:
        if not 0 <= n < len(args):
            raise ValueError(
                f"Expected argnums below {len(args)} arguments, got argnums={argnums}."
            )
    if in_axes is None or isinstance(in_axes, int):
        return tuple(None if i in numbers else in_axes for i in range(len(args)))
    axes = tuple(in_axes)
    if len(axes) != len(args):
        raise ValueError(
            f"Expected in_axes to have an entry for each of {len(args)} arguments, got {len(axes)}."
        )
    for n in numbers:
        if jax.tree.leaves(axes[n]):
            raise ValueError(
                f"Expected the parameters' entry in in_axes to be None, got in_axes[{n}]={axes[n]}."
            )
    return axes


def check_arguments(spec: Transformation, args: tuple[Any, ...]) -> int:
    """Check everything that can be checked before tracing; return the number of examples."""
    params = parameters(spec, args)
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"Expected floating-point parameters, got {jnp.result_type(leaf)} at "
                f"{path_name(path)!r}. Split other state off first, for instance with "
                "graphdef, params, rest = nnx.split(model, nnx.Param, ...) (after model.eval(), if "
                "it owns random numbers), and merge inside the loss; an argument that is not "
                "batched, such as rest, has None in in_axes."
            )
    paths = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"Expected parameters with different paths, got {path!r} twice.")
    if not paths:
        raise ValueError("Expected parameters with at least one leaf, got none.")
    in_axes = mapped_axes(spec)
    found: dict[int, str] = {}
    shapes: list[Any] = []
    for number, (axes, arg) in enumerate(zip(in_axes, args, strict=True)):
        one = []
        flat, structure = jax.tree_util.tree_flatten_with_path(arg)
        for (path, leaf), axis in zip(flat, leaf_axes(axes, arg), strict=True):
            shape = list(np.shape(leaf))
            if axis is not None:
                name = f"argument {number}" + (f" at {path_name(path)!r}" if path else "")
                if not -len(shape) <= axis < len(shape):
                    raise ValueError(
                        f"Expected {name} to have a leading example axis, got shape {tuple(shape)}."
                    )
                found.setdefault(shape.pop(axis), name)
            one.append(jax.ShapeDtypeStruct(tuple(shape), _shape(leaf).dtype))
        shapes.append(jax.tree.unflatten(structure, one))
    if not found:
        raise ValueError("Expected an argument mapped over examples besides the parameters.")
    if len(found) > 1:
        sizes = ", ".join(f"{size} in {name}" for size, name in found.items())
        raise ValueError(f"Expected the same number of examples everywhere, got {sizes}.")
    (num_examples,) = found
    if num_examples == 0:
        raise ValueError("Expected at least one example, got an empty batch.")
    _check_loss(spec, shapes)
    return num_examples


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf))


def _check_loss(spec: Transformation, shapes: list[Any]) -> None:
    result = jax.eval_shape(spec.fun, *shapes)
    if spec.has_aux:
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError("Expected fun to return (loss, aux), because has_aux=True.")
        result = result[0]
    shape = getattr(result, "shape", None)
    if shape != () or not jnp.issubdtype(result.dtype, jnp.floating):
        got = f"{result.dtype} of shape {shape}" if shape is not None else type(result).__name__
        raise TypeError(
            f"Expected fun to return one real number per example, got {got}. Write the loss of "
            "one example; the batch axis is added for you."
        )
