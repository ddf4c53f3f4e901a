"""The matrix of per-example gradients of a batch too large to record: one pass per verb."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices import arguments, explain, micro_batches, recording, sketching, verbs
from gradkin.matrices.recorded import PerExampleGrads
from gradkin.matrices.transposed import Transposed
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, PyTree

_verb = functools.partial(jax.jit, inline=True)


@functools.partial(
    register_dataclass,
    data_fields=["args", "operands", "losses"],
    meta_fields=["spec", "operations", "num_examples", "batch_size", "passes"],
)
@dataclasses.dataclass(frozen=True)
class StreamedPerExampleGrads:
    """Per-example gradients that are made anew, micro-batch by micro-batch, for every verb.

    The same verbs as `PerExampleGrads`, in memory that does not grow with the number of examples.
    Each verb is one scan over micro-batches, so two verbs cost two passes; ``clip(c).sum()`` clips
    inside the pass. Made by ``gradkin.per_example_grads(..., batch_size=m)``.

    A micro-batch takes every ``B / m``-th example. On a batch sharded over devices, with ``m`` a
    multiple of their number, that is an equal slice of each shard and nothing is gathered.

    Attributes:
      args: the loss's arguments, batched.
      operands: arrays of the pending row operations.
      losses: the examples' losses ``[B]``; None unless made by `value_and_per_example_grads`,
        because they cost a pass.
      spec: what is differentiated.
      operations: names and options of the pending row operations.
      num_examples: ``B``.
      batch_size: ``m``, examples per micro-batch.
      passes: 1, 2 or "auto"; see `per_example_grads`.
    """

    args: tuple[Any, ...]
    operands: tuple[Any, ...]
    losses: Any
    spec: recording.Transformation
    operations: tuple[tuple[str, Any], ...]
    num_examples: int
    batch_size: int
    passes: int | str

    __array_ufunc__ = None

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_examples} examples, batch_size={self.batch_size})"

    @property
    def shape(self) -> tuple[int, int]:
        """``(examples, parameters)``, counting the selected columns."""
        return self.num_examples, _outline(self).shape[1]

    @property
    def dtype(self) -> np.dtype:
        """The dtype all selected columns promote to."""
        return _outline(self).dtype

    @property
    def T(self) -> Transposed:
        """The transpose."""
        return Transposed(self)

    def squared_norms(self, by: str | None = None) -> Any:
        """``|g_i|^2`` of every row."""
        checks.one_of((None, "leaf"), by=by)
        return _norms(self, by, squared=True)

    def norms(self, by: str | None = None) -> Any:
        """``|g_i|`` of every row."""
        checks.one_of((None, "leaf"), by=by)
        return _norms(self, by, squared=False)

    def frobenius_norm(self) -> Array:
        """Square root of the sum of all squared entries."""
        return verbs.safe_sqrt(jnp.sum(self.squared_norms()))

    def sum(self) -> PyTree:
        """Sum of the rows, added up in float32."""
        return _total(self, None)

    def mean(self) -> PyTree:
        """Mean of the rows."""
        return jax.tree.map(lambda g: g / self.num_examples, self.sum())

    def second_moment(self) -> PyTree:
        """``sum_i g_i^2``, entry by entry."""
        return _second_moment(self)

    def __matmul__(self, other: Any) -> Array:
        """``G @ tangent`` is ``[B]``; ``G @ H.T`` is ``[B, B']``."""
        if isinstance(other, Transposed):
            return _inner(self, other.matrix)
        arguments.not_a_matrix(other)
        return _tangent(self, other)

    def __rmatmul__(self, weights: Any) -> PyTree:
        """``weights @ G``: the weighted sum of the rows; ``[K, B]`` weights stack K sums."""
        weights = arguments.row_values(weights, self.num_examples, "weights", leading=True)
        return _total(self, weights)

    def gram(self) -> Array:
        """Inner products of all pairs of rows; every pair of micro-batches is made anew."""
        return _inner(self, self)

    def cosine(self, other: Any = None) -> Array:
        """Cosines of the angles between rows; a zero row has cosine zero."""
        other = self if other is None else other
        return self.normalize() @ other.normalize().T

    def singular_values(self) -> Array:
        """Singular values, largest first (see `PerExampleGrads.singular_values`)."""
        return verbs.singular_values(self.gram())

    def sketch(self, s: Any) -> Array:
        """Random projections of the rows (see `PerExampleGrads.sketch`)."""
        sketching.check_sketch(s)
        return _sketch(self, s)

    def materialize(self) -> PyTree:
        """All rows multiplied out: a pytree of ``[B, *shape]``."""
        return _rows(self, "materialize")

    def explain(self) -> explain.Explanation:
        """Per parameter of one micro-batch: terms, sizes, route, cost and the reason."""
        return _outline(self).explain()

    def clip(self, max_norm: Any, *, nonfinite: str = "propagate") -> "StreamedPerExampleGrads":
        """Scale each row down to norm at most ``max_norm`` (see `PerExampleGrads.clip`)."""
        checks.non_negative(max_norm=max_norm)
        checks.one_of(("propagate", "zero"), nonfinite=nonfinite)
        return _after(self, "clip", nonfinite, jnp.asarray(max_norm, float))

    def normalize(self) -> "StreamedPerExampleGrads":
        """Rows of norm one; a zero row stays zero."""
        return _after(self, "normalize", None, None)

    def scale(self, weights: Any) -> "StreamedPerExampleGrads":
        """Multiply row ``i`` by ``weights[i]`` (or every row by one number)."""
        weights = arguments.row_values(weights, self.num_examples, "weights")
        return _after(self, "scale", None, weights)

    def where(self, mask: Any) -> "StreamedPerExampleGrads":
        """Keep the rows where ``mask`` holds; the others become exact zeros, even if NaN."""
        return _after(self, "where", None, arguments.row_mask(mask, self.num_examples))

    def centered(self) -> "StreamedPerExampleGrads":
        """Subtract the mean row from every row; finding the mean is a pass of its own."""
        return _after(self, "minus", None, self.mean())

    def select(self, predicate: Callable[[str], bool]) -> "StreamedPerExampleGrads":
        """Keep the columns of the parameters whose path passes."""
        kept = tuple(leaf.path for leaf in _outline(self).select(predicate).leaves if leaf.selected)
        return _after(self, "select", kept, None)

    def by_leaf(self) -> dict[str, "StreamedPerExampleGrads"]:
        """One matrix per selected parameter, by path."""
        return {
            leaf.path: _after(self, "select", (leaf.path,), None)
            for leaf in _outline(self).leaves
            if leaf.selected
        }

    def __getitem__(self, index: Any) -> Any:
        """``G[i]`` is the gradient of one example, a pytree; a slice, indices or mask give rows."""
        rows, single = arguments.row_index(index, self.num_examples)
        taken = _take(self, rows)
        if not single:
            return taken
        return jax.tree.map(lambda g: g[0], taken.materialize())


def stream(
    spec: recording.Transformation,
    args: tuple[Any, ...],
    num_examples: int,
    batch_size: int,
    passes: int | str,
) -> StreamedPerExampleGrads:
    """A streamed matrix; nothing is computed."""
    return StreamedPerExampleGrads(
        args, (), None, spec, (), num_examples, min(batch_size, num_examples), passes
    )


@_verb
def losses(S: StreamedPerExampleGrads) -> Any:
    """The losses (and auxiliary values) of all examples, by one forward pass."""
    return _scan(
        S,
        lambda args, _: jax.vmap(S.spec.fun, in_axes=recording.mapped_axes(S.spec))(*args),
        stack=True,
    )


def _after(S: StreamedPerExampleGrads, name: str, option: Any, operand: Any) -> Any:
    return dataclasses.replace(
        S, operations=(*S.operations, (name, option)), operands=(*S.operands, operand)
    )


def _record(S: StreamedPerExampleGrads, args: Any, operands: Any, size: int) -> PerExampleGrads:
    """The recorded matrix of one micro-batch, after the pending row operations."""
    _, G = recording.record(S.spec, args, num_examples=size)
    for (name, option), operand in zip(S.operations, operands, strict=True):
        if name == "clip":
            G = G.clip(operand, nonfinite=option)
        elif name == "normalize":
            G = G.normalize()
        elif name == "scale":
            G = G.scale(operand)
        elif name == "where":
            G = G.where(operand)
        elif name == "minus":
            G = verbs.minus(G, operand)
        else:
            G = G.select(functools.partial(_is_one_of, option))
    return G


def _is_one_of(paths: tuple[str, ...], path: str) -> bool:
    return path in paths


def _outline(S: StreamedPerExampleGrads) -> PerExampleGrads:
    """Shapes of one micro-batch; nothing is computed."""
    args, operands = _split(S, lambda x: x[: S.batch_size])
    return jax.eval_shape(functools.partial(_record, S, size=S.batch_size), args, operands)


def _split(S: StreamedPerExampleGrads, rows: Callable[[Array], Array]) -> tuple[Any, Any]:
    """``rows`` of the arguments and of what row operations have per example."""
    args = micro_batches.split(S.args, recording.mapped_axes(S.spec), rows)
    operands = tuple(
        rows(operand) if name in ("scale", "where") else operand
        for (name, _), operand in zip(S.operations, S.operands, strict=True)
    )
    return args, operands


def _scan(S: StreamedPerExampleGrads, fun: Callable[[Any, Any], Any], *, stack: bool) -> Any:
    """``fun(args, operands)`` over micro-batches; its rows stacked or its results added."""
    return micro_batches.scan(
        lambda rows, _: fun(*_split(S, rows)),
        num_examples=S.num_examples,
        batch_size=S.batch_size,
        stack=stack,
    )


@functools.partial(_verb, static_argnums=(1, 2))
def _rows(S: StreamedPerExampleGrads, verb: str, *options: Any) -> Any:
    return _scan(
        S,
        lambda args, operands: getattr(_micro(S, args, operands), verb)(*options),
        stack=True,
    )


def _micro(S: StreamedPerExampleGrads, args: Any, operands: Any) -> PerExampleGrads:
    size = next(
        np.shape(x)[axis]
        for axes, arg in zip(recording.mapped_axes(S.spec), args, strict=True)
        for x, axis in zip(jax.tree.leaves(arg), recording.leaf_axes(axes, arg), strict=True)
        if axis is not None
    )
    return _record(S, args, operands, size)


@functools.partial(_verb, static_argnames=("by", "squared"))
def _norms(S: StreamedPerExampleGrads, by: str | None, *, squared: bool) -> Any:
    if not _only_weights(S):
        return _rows(S, "squared_norms" if squared else "norms", by)

    def part(args: Any, operands: Any) -> Any:
        weights, squares = _row_weights(S, args, operands)
        if by is None:
            squares = _add_up(squares.values())
        weighted = jax.tree.map(lambda x: x * jnp.square(weights).astype(x.dtype), squares)
        if squared:
            return weighted
        return jax.tree.map(
            lambda x: verbs.safe_sqrt(x) * jnp.abs(weights).astype(x.dtype), squares
        )

    values = _scan(S, part, stack=True)
    if by is None:
        return values
    outline = _outline(S)
    return outline.tree([values.get(leaf.path) for leaf in outline.leaves])


def _add_up(values: Any) -> Array:
    return functools.reduce(lambda a, b: a + b.astype(a.dtype), values)


def _only_weights(S: StreamedPerExampleGrads) -> bool:
    """Whether the pending operations only scale rows and select columns."""
    return all(
        name in ("scale", "normalize", "select") or (name == "clip" and option == "propagate")
        for name, option in S.operations
    )


def _row_weights(
    S: StreamedPerExampleGrads, args: Any, operands: Any
) -> tuple[Array, dict[str, Array]]:
    """Row weights after the pending operations, and the unweighted squared norms by leaf."""
    squares = recording.squared_norms(S.spec, args)
    first = next(iter(squares.values()))
    weights = jnp.ones(first.shape, np.float32)
    for (name, option), operand in zip(S.operations, operands, strict=True):
        if name == "scale":
            weights = weights * operand.astype(weights.dtype)
        elif name == "select":
            squares = {path: squares[path] for path in option}
        else:
            norms = verbs.safe_sqrt(_add_up(squares.values())) * jnp.abs(weights)
            factor = verbs.clip_factor(norms, operand) if name == "clip" else verbs.inverse(norms)
            weights = weights * factor.astype(weights.dtype)
    return weights, squares


def _takes_two_passes(S: StreamedPerExampleGrads) -> bool:
    if S.passes == 1 or not _only_weights(S) or all(n == "select" for n, _ in S.operations):
        return False
    return S.passes == 2 or recording.has_remat(S.spec, _split(S, lambda x: x[: S.batch_size])[0])


def _two_pass_sum(S: StreamedPerExampleGrads, args: Any, operands: Any) -> PyTree:
    """Norms first, then the plain gradient of the weighted losses: no factor is stored."""
    weights, squares = _row_weights(S, args, operands)
    spec = S.spec

    def weighted_loss(params: PyTree) -> Array:
        values = jax.vmap(spec.fun, in_axes=recording.mapped_axes(spec))(
            *recording.with_parameters(spec, args, params)
        )
        losses = values[0] if spec.has_aux else values
        return jnp.sum(losses * weights.astype(losses.dtype))

    grads = jax.grad(weighted_loss)(recording.parameters(spec, args))
    return jax.tree_util.tree_map_with_path(
        lambda path, g: g if arguments.path_name(path) in squares else None, grads
    )


@_verb
def _total(S: StreamedPerExampleGrads, weights: Array | None) -> PyTree:
    if weights is None and _takes_two_passes(S):
        return _scan(S, functools.partial(_two_pass_sum, S), stack=False)
    if weights is None:
        return _scan(S, lambda args, operands: _micro(S, args, operands).sum(), stack=False)
    # The weights ride along as one more row operation.
    columns = weights.reshape((-1, S.num_examples)).T
    riding = _after(S, "where", None, columns)

    def part(args: Any, operands: Any) -> Any:
        *rest, w = operands
        return w.T @ _micro(S, args, tuple(rest))

    total = _scan(riding, part, stack=False)
    return total if weights.ndim == 2 else jax.tree.map(lambda g: g[0], total)


@_verb
def _second_moment(S: StreamedPerExampleGrads) -> PyTree:
    return _scan(S, lambda args, operands: _micro(S, args, operands).second_moment(), stack=False)


@_verb
def _sketch(S: StreamedPerExampleGrads, s: Any) -> Array:
    return _scan(S, lambda args, operands: _micro(S, args, operands).sketch(s), stack=True)


@_verb
def _tangent(S: StreamedPerExampleGrads, tangent: PyTree) -> Array:
    return _scan(S, lambda args, operands: _micro(S, args, operands) @ tangent, stack=True)


@_verb
def _inner(S: StreamedPerExampleGrads, other: Any) -> Array:
    if isinstance(other, PerExampleGrads):
        return _scan(S, lambda args, operands: _micro(S, args, operands) @ other.T, stack=True)
    columns = _scan(
        other, lambda args, operands: _inner(S, _micro(other, args, operands)).T, stack=True
    )
    return columns.T


@_verb
def _take(S: StreamedPerExampleGrads, rows: Array) -> StreamedPerExampleGrads:
    args, operands = _split(S, lambda x: jnp.take(x, rows, axis=0))
    size = rows.shape[0]
    return dataclasses.replace(
        S,
        args=args,
        operands=operands,
        losses=None if S.losses is None else S.losses[rows],
        num_examples=size,
        batch_size=min(S.batch_size, size),
    )
