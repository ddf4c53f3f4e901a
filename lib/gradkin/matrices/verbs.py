"""What can be done to, and read off, a recorded matrix; `PerExampleGrads` documents each verb."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin.matrices import contraction, products
from gradkin.matrices.leaves import BATCH, Leaf, StoredFactor, Term
from gradkin.typing import Array, PyTree

# Verbs run through a cached jit when called eagerly and disappear into an outer jit.
_verb = functools.partial(jax.jit, inline=True)


def inner(left: Any, right: Any) -> Array:
    """``left @ right.T``."""
    if not isinstance(right, type(left)):
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


def singular_values(gram: Array) -> Array:
    """Roots of the eigenvalues, largest first; what rounding made negative is zero."""
    values = jnp.linalg.eigvalsh(gram)[::-1]
    return safe_sqrt(jnp.maximum(values, jnp.zeros_like(values)))


def safe_sqrt(x: Array) -> Array:
    """Square root whose derivative at zero is zero instead of infinite."""
    positive = x > 0
    root = jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x)))
    # NaN is not > 0 and must stay visible.
    return jnp.where(
        positive, root, jnp.where(x == 0, jnp.zeros_like(x), jnp.full_like(x, jnp.nan))
    )


def _selected(G: Any) -> list[Leaf]:
    return [leaf for leaf in G.leaves if leaf.selected]


def _sum(values: list[Array], shape: tuple[int, ...]) -> Array:
    if not values:
        return jnp.zeros(shape, np.float32)
    dtype = functools.reduce(np.promote_types, (v.dtype for v in values))
    return functools.reduce(lambda a, b: a + b, [v.astype(dtype) for v in values])


@functools.partial(_verb, static_argnames="by")
def squared_norms(G: Any, *, by: str | None) -> Any:
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
def norms(G: Any, *, by: str | None) -> Any:
    # The root of the unweighted square: w^2 would underflow where w * |g| does not.
    unweighted = dataclasses.replace(G, weights=None)

    def weighted(squared: Array) -> Array:
        root = safe_sqrt(squared)
        return root if G.weights is None else root * jnp.abs(G.weights).astype(root.dtype)

    return jax.tree.map(weighted, squared_norms(unweighted, by=by))


@_verb
def weighted_sum(G: Any, weights: Array | None) -> PyTree:
    if weights is not None and weights.ndim == 2:
        return jax.vmap(lambda w: weighted_sum(G, w))(weights)
    if G.weights is not None:
        weights = G.weights if weights is None else weights.astype(G.weights.dtype) * G.weights
    return G.tree(
        [
            products.weighted_sum(leaf, G.table, weights, G.num_examples) if leaf.selected else None
            for leaf in G.leaves
        ]
    )


@_verb
def mean(G: Any) -> PyTree:
    return jax.tree.map(lambda g: g / G.num_examples, weighted_sum(G, None))


@_verb
def tangent(G: Any, vectors: list[Any]) -> Array:
    values = [
        products.tangent(leaf, G.table, jnp.asarray(v), G.num_examples)
        for leaf, v in zip(G.leaves, vectors, strict=True)
        if leaf.selected
    ]
    result = _sum(values, (G.num_examples,))
    return result if G.weights is None else result * G.weights.astype(result.dtype)


@_verb
def _inner(left: Any, right: Any) -> Array:
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


def _formed(G: Any, leaf: Leaf) -> tuple[Leaf, tuple[Array]]:
    sizes = tuple(n for n in leaf.shape if n != 1)
    array = products.rows(leaf, G.table, G.num_examples).reshape((G.num_examples, *sizes))
    term = Term("dense", None, StoredFactor(0, (BATCH, *range(len(sizes)))))
    return leaf._replace(sizes=sizes, terms=(term,)), (array,)


@_verb
def materialize(G: Any) -> PyTree:
    def formed(leaf: Leaf) -> Array:
        value = products.rows(leaf, G.table, G.num_examples)
        if G.weights is None:
            return value
        weights = G.weights.reshape((-1,) + (1,) * len(leaf.shape)).astype(value.dtype)
        return value * jnp.broadcast_to(weights, value.shape)

    return G.tree([formed(leaf) if leaf.selected else None for leaf in G.leaves])


@_verb
def second_moment(G: Any) -> PyTree:
    return G.tree(
        [
            products.second_moment(leaf, G.table, G.weights, G.num_examples)
            if leaf.selected
            else None
            for leaf in G.leaves
        ]
    )


@functools.partial(_verb, static_argnames="nonfinite")
def clip(G: Any, max_norm: Array, *, nonfinite: str) -> Any:
    norms = G.norms()
    if nonfinite == "zero":
        finite = jnp.isfinite(norms)
        G, norms = where(G, finite), jnp.where(finite, norms, jnp.zeros_like(norms))
    return G.scale(clip_factor(norms, max_norm))


def clip_factor(norms: Array, max_norm: Array) -> Array:
    """``min(1, max_norm / norms)``; one at a zero or infinite norm, NaN at a NaN norm."""
    max_norm = max_norm.astype(norms.dtype)
    within = (norms <= max_norm) | jnp.isinf(norms)
    return jnp.where(within, jnp.ones_like(norms), max_norm / jnp.where(within, 1, norms))


def inverse(norms: Array) -> Array:
    """``1 / norms``, zero at a zero norm, NaN at an infinite one."""
    zero = norms == 0
    norms = jnp.where(jnp.isinf(norms), jnp.full_like(norms, jnp.nan), norms)
    return jnp.where(zero, jnp.zeros_like(norms), 1 / jnp.where(zero, 1, norms))


@_verb
def normalize(G: Any) -> Any:
    return G.scale(inverse(G.norms()))


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
def where(G: Any, mask: Array) -> Any:
    """Zero rows by select, on both sides of every product: zero times a NaN would be NaN."""
    table: list[Any] = []
    places: dict[StoredFactor, StoredFactor] = {}

    def masked(factor: StoredFactor | None) -> StoredFactor | None:
        if factor is None:
            return None
        if factor in places:
            return places[factor]
        x, labels = G.table[factor.index], factor.labels
        if jnp.issubdtype(x.dtype, jnp.inexact):
            if BATCH not in labels:
                # One factor for all examples: from here on each example has its own.
                x = jnp.broadcast_to(x[None], (G.num_examples, *x.shape))
                labels = (BATCH, *labels)
            x = contraction.stop_at(x, labels, mask, (BATCH,))
        places[factor] = StoredFactor(len(table), labels)
        table.append(x)
        return places[factor]

    leaves = tuple(
        leaf._replace(
            terms=tuple(term._replace(a=masked(term.a), d=masked(term.d)) for term in leaf.terms)
        )
        for leaf in G.leaves
    )
    weights = jnp.where(mask, 1.0 if G.weights is None else G.weights, 0.0).astype(np.float32)
    if G.weights is not None:
        weights = weights.astype(G.weights.dtype)
    return dataclasses.replace(G, table=tuple(table), weights=weights, leaves=leaves)


@_verb
def take(G: Any, index: Array) -> Any:
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
def centered(G: Any) -> Any:
    return minus(G, mean(G))


def minus(G: Any, row: PyTree) -> Any:
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
    return pruned(dataclasses.replace(G, table=tuple(table), weights=None), leaves)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def map_rows(G: Any, fun: Any, trees: list[list[Any]]) -> Any:
    """Apply a function to each leaf of each row."""
    table, leaves = [], []
    for k, leaf in enumerate(G.leaves):
        if not leaf.selected:
            leaves.append(leaf)
            continue
        others = [tree[k] for tree in trees]
        one = dataclasses.replace(G, leaves=(leaf,), structure=jax.tree.structure(0))
        value = jax.vmap(lambda g, o=others: fun(g, *o))(materialize(one))
        if value.shape != (G.num_examples, *leaf.shape):
            raise ValueError(
                f"Expected fun to keep the shape {leaf.shape} at {leaf.path!r}, got "
                f"{value.shape[1:]}."
            )
        sizes = tuple(n for n in leaf.shape if n != 1)
        place = StoredFactor(len(table), (BATCH, *range(len(sizes))))
        table.append(value.reshape((G.num_examples, *sizes)))
        term = Term("dense", None, place)
        leaves.append(leaf._replace(sizes=sizes, terms=(term,), reason="mapped"))
    return dataclasses.replace(G, table=tuple(table), weights=None, leaves=tuple(leaves))


def dropped(leaf: Leaf) -> Leaf:
    return leaf._replace(terms=(), selected=False, reason="not selected")


def pruned(G: Any, leaves: list[Leaf]) -> Any:
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
