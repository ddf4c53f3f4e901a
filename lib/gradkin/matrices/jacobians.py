"""Per-example Jacobians of a vector-valued function; their Gram matrix is the empirical NTK."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices import backward, contraction, explain, leaves, products, programs
from gradkin.matrices.arguments import path_name
from gradkin.matrices.leaves import Leaf
from gradkin.matrices.transposed import Transposed
from gradkin.matrices.verbs import batch_first
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, PyTree

_verb = functools.partial(jax.jit, inline=True)


@functools.partial(
    register_dataclass,
    data_fields=["table"],
    meta_fields=["leaves", "structure", "num_examples", "num_outputs"],
)
@dataclasses.dataclass(frozen=True)
class PerExampleJacobians:
    """Jacobians ``J``, one row per example and output, one column per parameter.

    The outputs of one example share what the forward pass left behind, so a factor is stored once
    for all of them. Made by `gradkin.per_example_jacobians`.

    Attributes:
      table: the distinct factors, each once.
      leaves: static description of each parameter's terms; the output is each leaf's first axis.
      structure: tree structure of the parameters.
      num_examples: ``B``.
      num_outputs: ``O``.
    """

    table: tuple[Any, ...]
    leaves: tuple[Leaf, ...]
    structure: Any
    num_examples: int
    num_outputs: int

    __array_ufunc__ = None

    def __len__(self) -> int:
        return self.num_examples

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(examples, outputs, parameters)``."""
        total = sum(leaf.size for leaf in self.leaves) // self.num_outputs
        return self.num_examples, self.num_outputs, total

    @property
    def dtype(self) -> np.dtype:
        """The dtype all columns promote to."""
        return functools.reduce(np.promote_types, [leaf.dtype for leaf in self.leaves])

    @property
    def T(self) -> Transposed:
        """The transpose; ``J @ H.T`` is the empirical NTK between two batches."""
        return Transposed(self)

    def __matmul__(self, other: Any) -> Array:
        """``J @ tangent`` is ``[B, O]``; ``J @ H.T`` is ``[B, O, B', O']``."""
        if isinstance(other, Transposed):
            if not isinstance(other.matrix, PerExampleJacobians):
                raise TypeError(
                    f"Expected the transpose of Jacobians, got {type(other.matrix).__name__}."
                )
            return _inner(self, other.matrix)
        shapes = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in self.leaves]
        params = jax.tree.unflatten(self.structure, shapes)
        checks.same_structure(other, params, name="tangent", like_name="the parameters")
        return _tangent(self, jax.tree.leaves(other))

    def __rmatmul__(self, weights: Any) -> PyTree:
        """``weights @ J`` with weights ``[B, O]``: a pytree like the parameters."""
        weights = jnp.asarray(weights)
        if weights.shape != (self.num_examples, self.num_outputs):
            raise ValueError(
                f"Expected weights of shape {(self.num_examples, self.num_outputs)}, got "
                f"{weights.shape}."
            )
        return _weighted_sum(self, weights)

    def gram(self) -> Array:
        """The empirical neural tangent kernel: ``[B, O, B, O]``."""
        return _inner(self, self)

    def squared_norms(self) -> Array:
        """Squared norm of every row: ``[B, O]``."""
        return _squared_norms(self)

    def materialize(self) -> PyTree:
        """The Jacobian multiplied out: a pytree of ``[B, O, *shape]``."""
        return _materialize(self)

    def explain(self) -> explain.Explanation:
        """Per parameter: terms, sizes, route, cost and the reason."""
        return explain.explain(self)


def per_example_jacobians(
    fun: Callable[..., Any],
) -> Callable[..., PerExampleJacobians]:
    """Transform a vector-valued function of one example into all examples' Jacobians.

    ``J[b, o] = d fun(params, example_b)[o] / d params``. ``J @ J.T`` is the empirical neural
    tangent kernel, contracted from small Gram matrices wherever the factors allow.

    Args:
      fun: ``fun(params, example, ...)`` -> array of shape ``[O]``; further arguments are mapped
        over their leading axis.

    Returns:
      A function of the batched arguments that returns a `PerExampleJacobians`.

    Raises:
      TypeError: an output that is not one axis of real numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> J = gradkin.per_example_jacobians(lambda w, x: w @ x)(jnp.ones((2, 3)), jnp.eye(3))
      >>> J.shape
      (3, 2, 6)
      >>> J.gram()[0, :, 0].tolist()
      [[1.0, 0.0], [0.0, 1.0]]

    References:
      Novak, Sohl-Dickstein & Schoenholz (2022), "Fast Finite Width Neural Tangent Kernel",
      arXiv:2206.08720, section 3. :cite:`novak:22`
    """

    def transformed(params: PyTree, *batch: Any) -> PerExampleJacobians:
        return _record(fun, params, batch)

    return transformed


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _record(fun: Callable[..., Any], params: PyTree, batch: tuple[Any, ...]) -> PerExampleJacobians:
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
    output = jax.eval_shape(fun, params, *one)
    if getattr(output, "ndim", None) != 1 or not jnp.issubdtype(output.dtype, jnp.floating):
        got = getattr(output, "shape", type(output).__name__)
        raise TypeError(f"Expected fun to return one axis of real numbers per example, got {got}.")
    flat, structure = jax.tree.flatten((params, batch))

    def rows(*flat_args: Any) -> Any:
        params, batch = jax.tree.unflatten(structure, flat_args)

        def example(*one: Any) -> Any:
            _, pull_back = jax.vjp(lambda p: fun(p, *one), params)
            return jax.vmap(lambda v: pull_back(v)[0])(jnp.eye(output.shape[0], dtype=output.dtype))

        return jax.tree.leaves(jax.vmap(example)(*batch))

    program, _ = programs.trace(rows, flat)
    values = backward.evaluate(program, flat, [True] * len(program.outputs))
    table = leaves.Table()
    described = []
    for value, (path, leaf) in zip(
        values, jax.tree_util.tree_flatten_with_path(params)[0], strict=True
    ):
        like = jax.ShapeDtypeStruct((output.shape[0], *leaf.shape), leaf.dtype)
        kept = leaves.store(value, path_name(path), like, table)
        if output.shape[0] > 1 and kept.terms and kept.sizes[0] != output.shape[0]:
            kept = leaves.store(value, path_name(path), like, table, route="dense")
        described.append(kept)
    num_examples = jax.tree.leaves(batch)[0].shape[0]
    arrays, kept = batch_first(table.arrays, described)
    return PerExampleJacobians(
        arrays, kept, jax.tree.structure(params), num_examples, output.shape[0]
    )


def _tree(J: PerExampleJacobians, values: list[Array]) -> PyTree:
    return jax.tree.unflatten(J.structure, values)


def _output(side: str = "left") -> tuple[str, str]:
    return (side, "output")


def _parts(J: PerExampleJacobians, leaf: Leaf, side: str = "left") -> list[products.Part]:
    """The leaf's terms, with the output among the rows instead of the leaf's axes."""
    terms = products.parts(leaf, J.table, side)
    if J.num_outputs == 1:
        return terms  # an axis of size one has no label
    return [products.renamed(term, 0, _output(side)) for term in terms]


def _pairs(
    left: list[products.Part], right: list[products.Part], out: list[Any], leaf: Leaf
) -> Array | float:
    total: Array | float = 0.0
    for p in left:
        for q in right:
            total = total + products.pair(p, q, out, leaf)
    return total


@_verb
def _materialize(J: PerExampleJacobians) -> PyTree:
    return _tree(J, [products.rows(leaf, J.table, J.num_examples) for leaf in J.leaves])


@_verb
def _tangent(J: PerExampleJacobians, tangent: list[Any]) -> Array:
    out, total = [products.batch(), _output()], jnp.zeros((J.num_examples, J.num_outputs))
    for leaf, v in zip(J.leaves, tangent, strict=True):
        own = [k for k in range(len(leaf.sizes)) if k > 0 or J.num_outputs == 1]
        v = jnp.reshape(v, [leaf.sizes[k] for k in own])
        total = total + _pairs(
            _parts(J, leaf), [products.Part(None, (v, tuple(own)), None)], out, leaf
        )
    return total


@_verb
def _weighted_sum(J: PerExampleJacobians, weights: Array) -> PyTree:
    labels = (products.batch(), _output())[: 1 if J.num_outputs == 1 else 2]
    weights = weights.reshape(weights.shape[: len(labels)])
    values = []
    for leaf in J.leaves:
        own = [k for k in range(len(leaf.sizes)) if k > 0 or J.num_outputs == 1]
        total = jnp.zeros([leaf.sizes[k] for k in own], leaf.dtype)
        for part in _parts(J, leaf):
            if part.row is not None:
                x, x_labels = part.d
                x = contraction.scale(x, x_labels, weights, labels)
                value = contraction.scatter_rows(
                    *part.a, x, x_labels, part.row, leaf.sizes[part.row], own
                )
            else:
                value = contraction.network([*part.factors, (weights, labels)], own)
            total = total + value.astype(leaf.dtype)
        values.append(total.reshape(leaf.shape[1:]))
    return _tree(J, values)


@_verb
def _squared_norms(J: PerExampleJacobians) -> Array:
    out, total = [products.batch(), _output()], jnp.zeros((J.num_examples, J.num_outputs))
    for leaf in J.leaves:
        twins = [
            products.renamed(
                products.renamed(part, products.batch("right"), products.batch()),
                _output("right"),
                _output(),
            )
            for part in _parts(J, leaf, "right")
        ]
        total = total + _pairs(_parts(J, leaf), twins, out, leaf)
    return total


@_verb
def _inner(J: PerExampleJacobians, H: PerExampleJacobians) -> Array:
    if [leaf.path for leaf in J.leaves] != [leaf.path for leaf in H.leaves]:
        raise ValueError("Expected both Jacobians to have the same parameters.")
    out = [products.batch(), _output(), products.batch("right"), _output("right")]
    total = jnp.zeros((J.num_examples, J.num_outputs, H.num_examples, H.num_outputs))
    for a, b in zip(J.leaves, H.leaves, strict=True):
        if a.sizes != b.sizes:
            raise ValueError(f"Expected both Jacobians to factor {a.path!r} alike.")
        total = total + _pairs(_parts(J, a), _parts(H, b, "right"), out, a)
    return total
