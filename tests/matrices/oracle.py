"""What every verb must return, computed in float64 from all gradients written down."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradkin
from tests.matrices.models.model import Model

# Tiny shapes run in no time whatever the code; compiling it well would take half of the session.
FAST = {"xla_backend_optimization_level": 0}


def params_of(model: Model) -> Any:
    if isinstance(model.argnums, int):
        return model.args[model.argnums]
    return tuple(model.args[i] for i in model.argnums)


def rows(model: Model) -> Any:
    """``vmap(grad)``: a pytree of ``[B, *leaf]``."""
    in_axes = model.in_axes
    if in_axes == 0:
        in_axes = (None, *(0 for _ in model.args[1:]))
    return jax.vmap(jax.grad(model.loss, model.argnums), in_axes)(*model.args)


def matrix(model: Model, **options: Any) -> Any:
    """The library's matrix of the same gradients."""
    transform = gradkin.per_example_grads(
        model.loss, model.argnums, in_axes=model.in_axes, **options
    )
    return transform(*model.args)


def probes(model: Model, num_examples: int) -> tuple[Any, np.ndarray]:
    """A tangent and row weights, the same for every run."""
    numbers = np.random.default_rng(0)

    def like(p: Any) -> jax.Array:
        return jnp.asarray(numbers.normal(size=np.shape(p))).astype(jnp.result_type(p))

    weights = numbers.normal(size=num_examples).astype(jnp.result_type(float))
    return jax.tree.map(like, params_of(model)), weights


def verbs(G: Any, tangent: Any, weights: Any) -> dict[str, Any]:
    """Every read-off of a matrix, as one pytree."""
    return {
        "materialize": G.materialize(),
        "squared_norms": G.squared_norms(by="leaf"),
        "norms": G.norms(),
        "tangent": G @ tangent,
        "weighted": weights @ G,
        "mean": G.mean(),
        "gram": G.gram(),
        "cosine": G.cosine(),
        "second_moment": G.scale(weights).second_moment(),
        "clipped": G.clip(jnp.mean(G.norms())).sum(),
        "centered": G.scale(weights).centered().squared_norms(),
        "taken": G[np.asarray([0])].squared_norms(),
    }


def core_verbs(G: Any, tangent: Any, weights: Any) -> dict[str, Any]:
    """The read-offs that the others are made of."""
    return {
        "materialize": G.materialize(),
        "squared_norms": G.squared_norms(by="leaf"),
        "tangent": G @ tangent,
        "weighted": weights @ G,
        "gram": G.gram(),
    }


def expected(dense: Any, tangent: Any, weights: Any) -> dict[str, Any]:
    """The same read-offs of gradients written down."""
    leaves, structure = jax.tree.flatten(dense)
    leaves = [_wide(leaf) for leaf in leaves]
    vectors = [_wide(v).reshape(-1) for v in jax.tree.leaves(tangent)]
    weights = np.asarray(weights, np.float64)
    flat = [leaf.reshape(len(weights), -1) for leaf in leaves]

    def tree(values: list[Any]) -> Any:
        return jax.tree.unflatten(structure, values)

    def weighted(w: Any) -> Any:
        return tree([np.tensordot(w, leaf, 1) for leaf in leaves])

    squared = [np.sum(np.abs(g) ** 2, 1) for g in flat]
    norms = np.sqrt(np.sum(squared, 0))
    gram = np.sum([np.real(g @ g.conj().T) for g in flat], 0)
    scale = np.where(norms > 0, norms, 1.0)
    bound = np.mean(norms)
    scaled = [g * weights[:, None] for g in flat]
    return {
        "materialize": tree(leaves),
        "squared_norms": tree(squared),
        "norms": norms,
        "tangent": np.sum([np.real(g @ v.conj()) for g, v in zip(flat, vectors, strict=True)], 0),
        "weighted": weighted(weights),
        "mean": weighted(np.full(len(weights), 1 / len(weights))),
        "gram": gram,
        "cosine": gram / scale / scale[:, None],
        "second_moment": tree(
            [np.sum(np.abs(g) ** 2, 0).reshape(x.shape[1:]) for g, x in zip(scaled, leaves)]
        ),
        "clipped": weighted(np.where(norms > bound, bound / scale, 1.0)),
        "centered": np.sum([np.sum(np.abs(g - g.mean(0)) ** 2, 1) for g in scaled], 0),
        "taken": norms[:1] ** 2,
    }


def _wide(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def assert_close(actual: Any, wanted: Any, *, tolerance: float, name: str = "") -> None:
    """Leaf by leaf: within ``tolerance`` of the leaf's largest entry.

    A leaf that is zero but for rounding is measured against a tenth of the whole tree.
    """
    pairs, structure = jax.tree_util.tree_flatten_with_path(wanted)
    assert jax.tree.structure(actual) == structure, name
    values = [_wide(x) for x in jax.tree.leaves(actual)]
    whole = max((float(np.max(np.abs(w))) for _, w in pairs if w.size), default=0.0)
    for value, (path, want) in zip(values, pairs, strict=True):
        label = name + jax.tree_util.keystr(path)
        assert value.shape == want.shape, f"{label}: {value.shape} instead of {want.shape}"
        if not want.size:
            continue
        error = float(np.max(np.abs(value - want)))
        bound = tolerance * max(float(np.max(np.abs(want))), 0.1 * whole)
        assert error <= bound, f"{label}: off by {error:.2e}, allowed {bound:.2e}"


class Case(NamedTuple):
    """A model's read-offs next to ``vmap(grad)``, traced but not compiled."""

    lowered: Any
    arguments: tuple[Any, ...]
    leaves: tuple[Any, ...]


def trace(model: Model, *, read: Any = core_verbs, **options: Any) -> Case:
    """Trace the library's matrix, what is read off it and all gradients written down."""
    found: list[Any] = []

    def run(args: Any, tangent: Any, weights: Any) -> Any:
        called = model._replace(args=args)
        G = matrix(called, **options)
        found.append(getattr(G, "leaves", ()))
        return read(G, tangent, weights), rows(called)

    shapes = jax.eval_shape(lambda *args: rows(model._replace(args=args)), *model.args)
    num_examples = jax.tree.leaves(shapes)[0].shape[0]
    arguments = (model.args, *probes(model, num_examples))
    return Case(jax.jit(run).lower(*arguments), arguments, found[-1])


def compare(case: Case, *, tolerance: float = 1e-5) -> None:
    """Compile and run: every read-off is what the gradients written down give."""
    compiled = case.lowered.compile(compiler_options=FAST)
    found, dense = compiled(*case.arguments)
    wanted = expected(dense, *case.arguments[1:])
    for name, value in found.items():
        assert_close(value, wanted[name], tolerance=tolerance, name=name)


def assert_exact(
    model: Model, *, tolerance: float = 1e-5, read: Any = core_verbs, **options: Any
) -> None:
    """Every read-off of the library's matrix equals that of ``vmap(grad)``; one compilation."""
    compare(trace(model, read=read, **options), tolerance=tolerance)
