"""The matrix of per-example gradients, kept as the factors of one backward pass."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices import arguments, contraction, explain, products
from gradkin.matrices.leaves import BATCH, Leaf, StoredFactor, Term
from gradkin.matrices.transposed import Transposed
from gradkin.typing import Array, PyTree

# Verbs run through a cached jit when called eagerly and disappear into an outer jit.
_verb = functools.partial(jax.jit, inline=True)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["table", "weights", "losses"],
    meta_fields=["leaves", "structure", "num_examples"],
)
@dataclasses.dataclass(frozen=True)
class PerExampleGrads:
    """Per-example gradients ``G``, one row per example, one column per parameter.

    Row ``i`` is the gradient of example ``i``'s loss times its row weight. Nothing is multiplied
    out unless that is cheaper (see `explain`). Made by `gradkin.per_example_grads`; an immutable
    pytree that passes through `jit`, `cond` and `scan`.

    Attributes:
      table: the distinct factors, each once.
      weights: row weights ``[B]``, or None for ones.
      losses: the examples' losses ``[B]``.
      leaves: static description of each parameter's terms.
      structure: tree structure of the parameters.
      num_examples: ``B``.
    """

    table: tuple[Array, ...]
    weights: Array | None
    losses: Array | None
    leaves: tuple[Leaf, ...]
    structure: Any
    num_examples: int

    # NumPy arrays on the left of `@` defer to `__rmatmul__`.
    __array_ufunc__ = None

    def __len__(self) -> int:
        return self.num_examples

    @property
    def shape(self) -> tuple[int, int]:
        """``(examples, parameters)``, counting the selected columns."""
        return self.num_examples, sum(leaf.size for leaf in self.leaves if leaf.selected)

    @property
    def dtype(self) -> np.dtype:
        """The dtype all selected columns promote to."""
        kinds = [leaf.dtype for leaf in self.leaves if leaf.selected]
        return functools.reduce(np.promote_types, kinds or [np.dtype(np.float32)])

    @property
    def T(self) -> Transposed:
        """The transpose: ``G.T @ w`` is ``w @ G``, and ``G @ H.T`` are inner products of rows."""
        return Transposed(self)

    # ---- read-offs -------------------------------------------------------------------------

    def squared_norms(self, by: str | None = None) -> Any:
        """``|g_i|^2`` of every row: ``[B]``, or with ``by="leaf"`` a pytree like the parameters."""
        checks.one_of((None, "leaf"), by=by)
        return _squared_norms(self, by=by)

    def norms(self, by: str | None = None) -> Any:
        """``|g_i|`` of every row; its derivative at a zero row is defined as zero."""
        checks.one_of((None, "leaf"), by=by)
        return _norms(self, by=by)

    def frobenius_norm(self) -> Array:
        """Square root of the sum of all squared entries."""
        return safe_sqrt(jnp.sum(self.squared_norms()))

    def sum(self) -> PyTree:
        """Sum of the rows: a pytree like the parameters."""
        return _weighted_sum(self, None)

    def mean(self) -> PyTree:
        """Mean of the rows: a pytree like the parameters."""
        return _mean(self)

    def second_moment(self) -> PyTree:
        """``sum_i g_i^2``, entry by entry: a pytree like the parameters."""
        return _second_moment(self)

    def __matmul__(self, other: Any) -> Array:
        """``G @ tangent`` is ``[B]``; ``G @ H.T`` is ``[B, B']``."""
        if isinstance(other, Transposed):
            if not isinstance(other.matrix, PerExampleGrads):
                return (other.matrix @ self.T).T  # a streamed matrix makes its own rows
            return inner_products(self, other.matrix)
        return _tangent(self, self.leaves_like(other, "tangent"))

    def __rmatmul__(self, weights: Any) -> PyTree:
        """``weights @ G``: the weighted sum of the rows; ``[K, B]`` weights stack K sums."""
        weights = arguments.row_values(weights, self.num_examples, "weights", leading=True)
        return _weighted_sum(self, weights)

    def gram(self) -> Array:
        """Inner products of all pairs of rows: ``[B, B]``."""
        return inner_products(self, self)

    def cosine(self, other: "PerExampleGrads | None" = None) -> Array:
        """Cosines of the angles between rows: ``[B, B']``; a zero row has cosine zero."""
        other = self if other is None else other
        return self.normalize() @ other.normalize().T

    def materialize(self) -> PyTree:
        """All rows multiplied out: a pytree of ``[B, *shape]``."""
        return _materialize(self)

    def explain(self) -> explain.Explanation:
        """Per parameter: terms, sizes, route, cost and the reason. Print it."""
        return explain.explain(self)

    # ---- other matrices --------------------------------------------------------------------

    def clip(self, max_norm: Any, *, nonfinite: str = "propagate") -> "PerExampleGrads":
        """Scale each row down to norm at most ``max_norm``; the norm is that of this matrix.

        Args:
          max_norm: bound on every row's norm, >= 0; infinity changes nothing.
          nonfinite: "propagate" leaves rows with NaN or infinite norm as they are, visible in
            whatever is read off; "zero" replaces them by exact zeros.

        Returns:
          A matrix whose rows have norm at most ``max_norm``. A zero row stays zero.
        """
        checks.non_negative(max_norm=max_norm)
        checks.one_of(("propagate", "zero"), nonfinite=nonfinite)
        return _clip(self, jnp.asarray(max_norm, np.float32), nonfinite=nonfinite)

    def normalize(self) -> "PerExampleGrads":
        """Rows of norm one; a zero row stays zero."""
        return _normalize(self)

    def scale(self, weights: Any) -> "PerExampleGrads":
        """Multiply row ``i`` by ``weights[i]`` (or every row by one number)."""
        weights = arguments.row_values(weights, self.num_examples, "weights")
        return dataclasses.replace(
            self, weights=weights if self.weights is None else self.weights * weights
        )

    def where(self, mask: Any) -> "PerExampleGrads":
        """Keep the rows where ``mask`` holds; the others become exact zeros, even if NaN."""
        return _where(self, arguments.row_mask(mask, self.num_examples))

    def centered(self) -> "PerExampleGrads":
        """Subtract the mean row from every row: a rank-one correction, nothing is formed."""
        return _centered(self)

    def select(self, predicate: Callable[[str], bool]) -> "PerExampleGrads":
        """Keep the columns of the parameters whose path (``"layers/0/kernel"``) passes.

        Row weights stay as they are: ``G.clip(c).select(p)`` keeps the weights of whole rows,
        ``G.select(p).clip(c)`` clips what was selected. Unselected leaves are None in results.
        """
        leaves = [
            leaf if leaf.selected and predicate(leaf.path) else _dropped(leaf)
            for leaf in self.leaves
        ]
        if not any(leaf.selected for leaf in leaves):
            paths = ", ".join(leaf.path for leaf in self.leaves)
            raise ValueError(f"Expected predicate to select at least one of: {paths}.")
        return _pruned(self, leaves)

    def by_leaf(self) -> dict[str, "PerExampleGrads"]:
        """One matrix per selected parameter, by path."""
        return {
            leaf.path: self.select(functools.partial(str.__eq__, leaf.path))
            for leaf in self.leaves
            if leaf.selected
        }

    def __getitem__(self, index: Any) -> Any:
        """``G[i]`` is the gradient of one example, a pytree; a slice, indices or mask give rows."""
        rows, single = arguments.row_index(index, self.num_examples)
        taken = _take(self, rows)
        return jax.tree.map(lambda g: g[0], taken.materialize()) if single else taken

    # ---- plumbing --------------------------------------------------------------------------

    def tree(self, values: list[Any]) -> PyTree:
        """A pytree like the parameters from one value per leaf; unselected leaves are None."""
        return jax.tree.unflatten(
            self.structure,
            [v if leaf.selected else None for v, leaf in zip(values, self.leaves, strict=True)],
        )

    def leaves_like(self, tree: PyTree, name: str) -> list[Any]:
        """The leaves of ``tree``, checked against the parameters; None where not selected."""
        given = {
            arguments.path_name(path): value
            for path, value in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        known = {leaf.path: leaf for leaf in self.leaves}
        for path in given:
            if path not in known:
                raise ValueError(
                    f"Expected {name} to have the structure of the parameters: "
                    f"{path!r} is not a parameter."
                )
        values = []
        for leaf in self.leaves:
            value = given.get(leaf.path)
            if leaf.selected and value is None:
                raise ValueError(
                    f"Expected {name} to have the structure of the parameters: "
                    f"{leaf.path!r} is missing."
                )
            if leaf.selected and np.shape(value) != leaf.shape:
                raise ValueError(
                    f"Expected {name} to have the shapes of the parameters: at {leaf.path!r} got "
                    f"{np.shape(value)}, expected {leaf.shape}."
                )
            values.append(value if leaf.selected else None)
        return values


def inner_products(left: PerExampleGrads, right: PerExampleGrads) -> Array:
    """``left @ right.T``."""
    if not isinstance(right, PerExampleGrads):
        raise TypeError(
            f"Expected the transpose of recorded gradients, got {type(right).__name__}."
        )
    for a, b in zip(left.leaves, right.leaves, strict=False):
        if (a.path, a.shape, a.selected) != (b.path, b.shape, b.selected):
            raise ValueError(
                f"Expected both matrices to have the same columns: {a.path!r} {a.shape} "
                f"{'' if a.selected else 'not '}selected against {b.path!r} {b.shape} "
                f"{'' if b.selected else 'not '}selected."
            )
    if len(left.leaves) != len(right.leaves):
        raise ValueError(
            f"Expected both matrices to have the same columns: {len(left.leaves)} and "
            f"{len(right.leaves)} parameters."
        )
    return _inner(left, right)


def safe_sqrt(x: Array) -> Array:
    """Square root whose derivative at zero is zero instead of infinite."""
    positive = x > 0
    root = jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x)))
    # NaN is not > 0 and must stay visible.
    return jnp.where(positive, root, jnp.where(x == 0, jnp.zeros_like(x), x * jnp.nan))


def _selected(G: PerExampleGrads) -> list[Leaf]:
    return [leaf for leaf in G.leaves if leaf.selected]


def _sum(values: list[Array], shape: tuple[int, ...]) -> Array:
    if not values:
        return jnp.zeros(shape, np.float32)
    dtype = functools.reduce(np.promote_types, (v.dtype for v in values))
    return functools.reduce(lambda a, b: a + b, [v.astype(dtype) for v in values])


@functools.partial(_verb, static_argnames="by")
def _squared_norms(G: PerExampleGrads, *, by: str | None) -> Any:
    values = [
        _times_squares(products.squared_norms(leaf, G.table, G.num_examples), G.weights)
        if leaf.selected
        else None
        for leaf in G.leaves
    ]
    if by == "leaf":
        return G.tree(values)
    return _sum([v for v in values if v is not None], (G.num_examples,))


def _times_squares(values: Array, weights: Array | None) -> Array:
    return values if weights is None else values * jnp.square(weights).astype(values.dtype)


@functools.partial(_verb, static_argnames="by")
def _norms(G: PerExampleGrads, *, by: str | None) -> Any:
    # The root of the unweighted square: w^2 would underflow where w * |g| does not.
    unweighted = dataclasses.replace(G, weights=None)

    def weighted(squared: Array) -> Array:
        root = safe_sqrt(squared)
        return root if G.weights is None else root * jnp.abs(G.weights).astype(root.dtype)

    return jax.tree.map(weighted, _squared_norms(unweighted, by=by))


@_verb
def _weighted_sum(G: PerExampleGrads, weights: Array | None) -> PyTree:
    if weights is not None and weights.ndim == 2:
        return jax.vmap(lambda w: _weighted_sum(G, w))(weights)
    if G.weights is not None:
        weights = G.weights if weights is None else weights.astype(G.weights.dtype) * G.weights
    return G.tree(
        [
            products.weighted_sum(leaf, G.table, weights, G.num_examples) if leaf.selected else None
            for leaf in G.leaves
        ]
    )


@_verb
def _mean(G: PerExampleGrads) -> PyTree:
    return jax.tree.map(lambda g: g / G.num_examples, _weighted_sum(G, None))


@_verb
def _tangent(G: PerExampleGrads, vectors: list[Any]) -> Array:
    values = [
        products.tangent(leaf, G.table, jnp.asarray(v), G.num_examples)
        for leaf, v in zip(G.leaves, vectors, strict=True)
        if leaf.selected
    ]
    result = _sum(values, (G.num_examples,))
    return result if G.weights is None else result * G.weights.astype(result.dtype)


@_verb
def _inner(left: PerExampleGrads, right: PerExampleGrads) -> Array:
    shape = (left.num_examples, right.num_examples)
    values = []
    for a, b in zip(left.leaves, right.leaves, strict=True):
        if not a.selected:
            continue
        a_table, b_table = left.table, right.table
        if a.sizes != b.sizes:
            # One batch kept factors and the other split or formed them differently.
            a, a_table = _formed(left, a)
            b, b_table = _formed(right, b)
        values.append(products.inner(a, a_table, b, b_table, shape))
    result = _sum(values, shape)
    if left.weights is not None:
        result = result * left.weights[:, None].astype(result.dtype)
    if right.weights is not None:
        result = result * right.weights[None, :].astype(result.dtype)
    return result


def _formed(G: PerExampleGrads, leaf: Leaf) -> tuple[Leaf, tuple[Array]]:
    sizes = tuple(n for n in leaf.shape if n != 1)
    array = products.rows(leaf, G.table, G.num_examples).reshape((G.num_examples, *sizes))
    term = Term("dense", None, StoredFactor(0, (BATCH, *range(len(sizes)))))
    return leaf._replace(sizes=sizes, terms=(term,)), (array,)


@_verb
def _materialize(G: PerExampleGrads) -> PyTree:
    def formed(leaf: Leaf) -> Array:
        value = products.rows(leaf, G.table, G.num_examples)
        if G.weights is None:
            return value
        weights = G.weights.reshape((-1,) + (1,) * len(leaf.shape)).astype(value.dtype)
        return value * jnp.broadcast_to(weights, value.shape)

    return G.tree([formed(leaf) if leaf.selected else None for leaf in G.leaves])


@_verb
def _second_moment(G: PerExampleGrads) -> PyTree:
    squares = None if G.weights is None else jnp.square(G.weights)
    return G.tree(
        [
            products.second_moment(leaf, G.table, squares, G.num_examples)
            if leaf.selected
            else None
            for leaf in G.leaves
        ]
    )


@functools.partial(_verb, static_argnames="nonfinite")
def _clip(G: PerExampleGrads, max_norm: Array, *, nonfinite: str) -> PerExampleGrads:
    norms = G.norms()
    if nonfinite == "zero":
        finite = jnp.isfinite(norms)
        G, norms = _where(G, finite), jnp.where(finite, norms, jnp.zeros_like(norms))
    max_norm = max_norm.astype(norms.dtype)
    above = norms > max_norm
    ratio = max_norm / jnp.where(above, norms, jnp.ones_like(norms))
    return G.scale(jnp.where(above, ratio, jnp.ones_like(norms)))


@_verb
def _normalize(G: PerExampleGrads) -> PerExampleGrads:
    norms = G.norms()
    zero = norms == 0
    return G.scale(
        jnp.where(zero, jnp.zeros_like(norms), 1 / jnp.where(zero, jnp.ones_like(norms), norms))
    )


def _batch_axes(table: Sequence[Array], leaves: Sequence[Leaf]) -> list[int | None]:
    """Where each factor of the table has its example axis."""
    found: list[int | None] = [None] * len(table)
    for leaf in leaves:
        for term in leaf.terms:
            for factor in (term.a, term.d):
                if factor is not None and BATCH in factor.labels:
                    found[factor.index] = factor.labels.index(BATCH)
    return found


@_verb
def _where(G: PerExampleGrads, mask: Array) -> PerExampleGrads:
    # Both sides of every product: zero times a NaN on the other side would be NaN.
    table = tuple(
        x
        if axis is None or not jnp.issubdtype(x.dtype, jnp.inexact)
        else contraction.stop_at(x, tuple(range(x.ndim)), mask, (axis,))
        for x, axis in zip(G.table, _batch_axes(G.table, G.leaves), strict=True)
    )
    weights = jnp.where(mask, 1.0 if G.weights is None else G.weights, 0.0).astype(np.float32)
    if G.weights is not None:
        weights = weights.astype(G.weights.dtype)
    return dataclasses.replace(G, table=table, weights=weights)


@_verb
def _take(G: PerExampleGrads, index: Array) -> PerExampleGrads:
    table = tuple(
        x if axis is None else jnp.take(x, index, axis=axis)
        for x, axis in zip(G.table, _batch_axes(G.table, G.leaves), strict=True)
    )

    def rows(values: Array | None) -> Array | None:
        return None if values is None else jnp.take(values, index, axis=0)

    return dataclasses.replace(
        G,
        table=table,
        weights=rows(G.weights),
        losses=rows(G.losses),
        num_examples=index.shape[0],
    )


@_verb
def _centered(G: PerExampleGrads) -> PerExampleGrads:
    return minus(G, _mean(G))


def minus(G: PerExampleGrads, row: PyTree) -> PerExampleGrads:
    """Subtract one row, a pytree like the parameters, from every row."""
    values = G.leaves_like(row, "row")
    table, leaves = [*G.table, -jnp.ones((G.num_examples,), np.float32)], []
    ones = len(G.table)
    for leaf, value in zip(G.leaves, values, strict=True):
        if not leaf.selected:
            leaves.append(leaf)
            continue
        terms = []
        for term in leaf.terms:
            # The weights go into the factors: the row that is subtracted carries none.
            side = "d" if BATCH in term.d.labels else "a"
            factor = getattr(term, side)
            scaled = table[factor.index]
            if G.weights is not None:
                scaled = contraction.scale(scaled, factor.labels, G.weights, (BATCH,))
            terms.append(term._replace(**{side: factor._replace(index=len(table))}))
            table.append(scaled)
        value = jnp.reshape(value, leaf.sizes)
        if [term.kind for term in terms] == ["dense"]:
            table[-1] = table[-1] - jnp.broadcast_to(value, table[-1].shape)
        else:
            place = StoredFactor(len(table), tuple(range(len(leaf.sizes))))
            table.append(value)
            terms.append(Term("outer", StoredFactor(ones, (BATCH,)), place))
        leaves.append(leaf._replace(terms=tuple(terms)))
    return _pruned(dataclasses.replace(G, table=tuple(table), weights=None), leaves)


def _dropped(leaf: Leaf) -> Leaf:
    return leaf._replace(terms=(), selected=False, reason="not selected")


def _pruned(G: PerExampleGrads, leaves: list[Leaf]) -> PerExampleGrads:
    """Keep only the factors that some leaf still uses."""
    places: dict[int, int] = {}

    def moved(factor: StoredFactor | None) -> StoredFactor | None:
        if factor is None:
            return None
        return factor._replace(index=places.setdefault(factor.index, len(places)))

    kept = tuple(
        leaf._replace(
            terms=tuple(term._replace(a=moved(term.a), d=moved(term.d)) for term in leaf.terms)
        )
        for leaf in leaves
    )
    table = tuple(G.table[i] for i in places)
    return dataclasses.replace(G, table=table, leaves=kept)


def batch_first(
    table: Sequence[Array], leaves: Sequence[Leaf]
) -> tuple[tuple[Array, ...], tuple[Leaf, ...]]:
    """Move every factor's example axis to the front, where a data-parallel sharding expects it."""
    arrays = tuple(
        x if not axis else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(table, _batch_axes(table, leaves), strict=True)
    )

    def moved(factor: StoredFactor | None) -> StoredFactor | None:
        if factor is None or BATCH not in factor.labels:
            return factor
        rest = tuple(label for label in factor.labels if label != BATCH)
        return factor._replace(labels=(BATCH, *rest))

    return arrays, tuple(
        leaf._replace(
            terms=tuple(term._replace(a=moved(term.a), d=moved(term.d)) for term in leaf.terms)
        )
        for leaf in leaves
    )
