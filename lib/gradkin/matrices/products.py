"""Linear algebra on one leaf's terms: sums, tangents and inner products without forming rows."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkin.matrices import contraction
from gradkin.matrices.lazy import Lazy, Squares
from gradkin.matrices.leaves import BATCH, Leaf, Table, store
from gradkin.typing import Array

# Inner products of long factors cancel; a norm in bfloat16 products would be noise.
HIGHEST = jax.lax.Precision.HIGHEST

Labelled = tuple[Array, tuple[Hashable, ...]]


class Part(NamedTuple):
    """A term and its arrays. ``row`` marks ``a`` as row ids; ``a`` is None for a whole gradient."""

    a: Labelled | None
    d: Labelled
    row: int | None

    @property
    def factors(self) -> list[Labelled]:
        return [self.d] if self.a is None else [self.a, self.d]


def parts(leaf: Leaf, table: Sequence[Array], side: str = "left") -> list[Part]:
    """The leaf's terms; leaf axes keep their numbers, other indices are named by ``side``."""
    result = []
    for number, term in enumerate(leaf.terms):

        def named(labels: tuple[int, ...], number: int = number) -> tuple[Hashable, ...]:
            return tuple(
                batch(side) if x == BATCH else x if x < len(leaf.sizes) else (side, number, x)
                for x in labels
            )

        d = (table[term.d.index], named(term.d.labels))
        a = None if term.a is None else (table[term.a.index], named(term.a.labels))
        result.append(Part(a, d, term.row))
    return result


def batch(side: str = "left") -> Hashable:
    return (side, "example")


def axes(leaf: Leaf) -> list[Hashable]:
    return list(range(len(leaf.sizes)))


def rows(leaf: Leaf, table: Sequence[Array], num_examples: int) -> Array:
    """The leaf's gradients, multiplied out: ``[B, *shape]``."""
    shape = (num_examples, *leaf.sizes)
    total = jnp.zeros(shape, leaf.dtype)
    for part in parts(leaf, table):
        value = _formed(part, leaf, [batch(), *axes(leaf)])
        total = total + jnp.broadcast_to(value, shape).astype(leaf.dtype)
    return total.reshape((num_examples, *leaf.shape))


def _formed(part: Part, leaf: Leaf, out: list[Hashable]) -> Array:
    """One term over ``out``; an example axis that it lacks comes back with size one."""
    present = [label for label in out if label in axes(leaf) or _has(part, label)]
    if part.a is None:
        x, labels = part.d
        value = contraction.align(x, labels, present)
    elif part.row is not None:
        value = contraction.scatter_rows(*part.a, *part.d, part.row, leaf.sizes[part.row], present)
    else:
        value = contraction.contract(*part.a, *part.d, present)
    return contraction.align(value, present, out)


def _has(part: Part, label: Hashable) -> bool:
    return any(label in labels for _, labels in part.factors)


def weighted_sum(
    leaf: Leaf, table: Sequence[Array], weights: Array | None, num_examples: int
) -> Array:
    """``sum_b weights_b g_b`` for the leaf: the usual product of a weight gradient."""
    total = None
    for part in parts(leaf, table):
        part, rest = _weigh(part, weights, num_examples)
        if part.a is None:
            value = contraction.align(*_summed(part.d, axes(leaf)), axes(leaf))
        else:
            value = _formed(part, leaf, axes(leaf))
        value = value if rest is None else value * rest.astype(value.dtype)
        total = value if total is None else total + value.astype(total.dtype)
    if total is None:
        return jnp.zeros(leaf.shape, leaf.dtype)
    return total.astype(leaf.dtype).reshape(leaf.shape)


def _summed(factor: Labelled, keep: list[Hashable]) -> Labelled:
    x, labels = factor
    dropped = [axis for axis, label in enumerate(labels) if label not in keep]
    kept = tuple(label for label in labels if label in keep)
    return jnp.sum(x, dropped, dtype=contraction.accumulator(x)), kept


def _weigh(part: Part, weights: Array | None, num_examples: int) -> tuple[Part, Array | None]:
    """Scale the smaller factor that has an example axis; else return what is left to multiply."""
    if weights is None:
        return part, None if _has(part, batch()) else jnp.asarray(num_examples, jnp.float32)
    if part.a is None:
        x, labels = part.d
        if batch() not in labels:
            return part, jnp.sum(weights)
        # A matrix-vector product: scaling first and then adding is far slower on CPU.
        rest = tuple(label for label in labels if label != batch())
        value = contraction.contract(weights, (batch(),), x, labels, rest)
        return Part(None, (value, rest), None), None
    sides = [
        (math.prod(x.shape), name)
        for name, (x, labels) in (("a", part.a), ("d", part.d))
        if batch() in labels and not (name == "a" and part.row is not None)
    ]
    if not sides:
        return part, jnp.sum(weights)
    name = min(sides)[1]
    x, labels = getattr(part, name)
    dtype = contraction.accumulator(x)
    scaled = contraction.scale(x.astype(dtype), labels, weights.astype(dtype), (batch(),))
    return part._replace(**{name: (scaled, labels)}), None


def tangent(leaf: Leaf, table: Sequence[Array], vector: Array, num_examples: int) -> Array:
    """``g_b . vector`` for every example: ``[B]``."""
    v = (jnp.reshape(vector, leaf.sizes), tuple(axes(leaf)))
    return _add_pairs(parts(leaf, table), [Part(None, v, None)], [batch()], (num_examples,), leaf)


def squared_norms(leaf: Leaf, table: Sequence[Array], num_examples: int) -> Array:
    """``|g_b|^2`` for every example, never negative: ``[B]``."""
    left = parts(leaf, table)
    total = jnp.zeros((num_examples,), dtype(leaf, table))
    for i, part in enumerate(left):
        # Other names for the summed indices, the same name for the example.
        twin = parts(leaf, table, "right")[i]
        twin = renamed(twin, batch("right"), batch())
        total = total + pair(part, twin, [batch()], leaf).astype(total.dtype)
        for other in left[i + 1 :]:
            total = total + 2 * pair(part, other, [batch()], leaf).astype(total.dtype)
    # The sum over several uses of a weight can round to just below zero.
    return jnp.maximum(total, 0) if len(left) > 1 else total


def inner(
    left: Leaf,
    left_table: Sequence[Array],
    right: Leaf,
    right_table: Sequence[Array],
    num_examples: tuple[int, int],
) -> Array:
    """``g_b . h_b'`` for every pair of examples: ``[B, B']``."""
    out = [batch("left"), batch("right")]
    return _add_pairs(
        parts(left, left_table),
        parts(right, right_table, "right"),
        out,
        num_examples,
        left,
    )


def _add_pairs(
    left: list[Part],
    right: list[Part],
    out: list[Hashable],
    shape: tuple[int, ...],
    leaf: Leaf,
) -> Array:
    total = None
    for p in left:
        for q in right:
            value = pair(p, q, out, leaf)
            total = value if total is None else total + value.astype(total.dtype)
    if total is None:
        return jnp.zeros(shape, contraction.at_least_float32(leaf.dtype))
    return jnp.broadcast_to(total, shape)


def dtype(leaf: Leaf, table: Sequence[Array]) -> np.dtype:
    """The real dtype in which the leaf's inner products are summed."""
    arrays = [table[term.d.index] for term in leaf.terms]
    real = contraction.accumulator(*arrays) if arrays else leaf.dtype
    return contraction.at_least_float32(jnp.finfo(real).dtype)


def renamed(part: Part, old: Hashable, new: Hashable) -> Part:
    """The term with one label replaced."""

    def on(factor: Labelled) -> Labelled:
        return factor[0], tuple(new if label == old else label for label in factor[1])

    return Part(None if part.a is None else on(part.a), on(part.d), part.row)


def pair(p: Part, q: Part, out: list[Hashable], leaf: Leaf) -> Array:
    """Sum of ``p * q`` over everything but ``out``; an index that neither has gets size one."""
    present = [label for label in out if _has(p, label) or _has(q, label)]
    if p.row is None and q.row is not None:
        p, q = q, p
    if p.row is not None:
        value = _pair_rows(p, q, present, leaf)
    elif p.a is None or q.a is None:
        value = _pair_dense(p, q, present)
    else:
        value = _pair_outer(p, q, present, leaf)
    return contraction.align(value, present, out)


def _pair_dense(p: Part, q: Part, out: list[Hashable]) -> Array:
    if p.a is None and q.a is None and jnp.iscomplexobj(p.d[0]):
        (x, x_labels), (y, y_labels) = p.d, q.d
        return sum(
            contraction.contract(f(x), x_labels, f(y), y_labels, out, precision=HIGHEST)
            for f in (jnp.real, jnp.imag)
        )  # type: ignore[return-value]
    return contraction.network([*p.factors, *q.factors], out, precision=HIGHEST)


def _pair_outer(p: Part, q: Part, out: list[Hashable], leaf: Leaf) -> Array:
    """Product of two small Gram matrices, or the products themselves where that is cheaper."""
    assert p.a is not None
    assert q.a is not None
    own = {x for x in axes(leaf) if _has(p, x) or _has(q, x)}

    def owned(factor: Labelled) -> set[Hashable]:
        return own & set(factor[1])

    if owned(p.a) == owned(q.d) and owned(p.d) == owned(q.a):
        q = Part(q.d, q.a, None)
    assert q.a is not None
    if owned(p.a) != owned(q.a) or owned(p.d) != owned(q.d):
        return contraction.network([*p.factors, *q.factors], out, precision=HIGHEST)
    sizes: dict[Hashable, int] = {}
    for x, labels in (*p.factors, *q.factors):
        sizes.update(zip(labels, x.shape, strict=True))
    both = owned(p.a) & owned(p.d)

    def count(labels: set[Hashable]) -> int:
        return math.prod(sizes[label] for label in labels)

    gram = count({*p.a[1], *q.a[1]}) + count({*p.d[1], *q.d[1]})
    formed = count({*p.a[1], *p.d[1]}) + count({*q.a[1], *q.d[1]}) + count(own | set(out))
    if len(out) > 1 and formed < gram:
        # Stacked layers lead, as they lie in memory; the products of each are then added. The
        # other axes become one: XLA would copy what it sums over several.
        lead = [label for label in axes(leaf) if label in both]
        rest = [label for label in axes(leaf) if label in own and label not in both]

        def rows_of(part: Part) -> Labelled:
            assert part.a is not None
            kept = [*lead, *(label for label in out if _has(part, label))]
            value = contraction.contract(*part.a, *part.d, [*kept, *rest])
            return value.reshape((*value.shape[: len(kept)], -1)), (*kept, "entries")

        each = contraction.contract(*rows_of(p), *rows_of(q), [*lead, *out], precision=HIGHEST)
        return jnp.sum(each, range(len(lead)))

    if _twins(p, q, own | set(out)):
        summed = [x for x in p.a[1] if x not in own and x not in out]
        if summed and set(summed) == {x for x in p.d[1] if x not in own and x not in out}:
            kept = [*out, *both]
            left, right = (_own_gram(x, kept, summed) for x in (p.a, p.d))
            return contraction.contract(*left, *right, out, precision=HIGHEST)

    def gram_matrix(x: Labelled, y: Labelled) -> Labelled:
        union = dict.fromkeys((*x[1], *y[1]))
        kept = tuple(label for label in union if label not in own or label in both)
        return contraction.contract(*x, *y, kept, precision=HIGHEST), kept

    return contraction.contract(
        *gram_matrix(p.a, q.a), *gram_matrix(p.d, q.d), out, precision=HIGHEST
    )


def _twins(p: Part, q: Part, kept: set[Hashable]) -> bool:
    """Whether ``q`` is ``p`` with other names for the summed indices, and nothing else."""
    assert p.a is not None
    assert q.a is not None
    if p.a[0] is not q.a[0] or p.d[0] is not q.d[0]:
        return False
    names: dict[Hashable, Hashable] = {}
    for x, y in zip((*p.a[1], *p.d[1]), (*q.a[1], *q.d[1]), strict=True):
        if (x in kept or y in kept) and x != y:
            return False
        if names.setdefault(x, y) != y:
            return False
    return len(set(names.values())) == len(names)


def _own_gram(factor: Labelled, kept: list[Hashable], summed: list[Hashable]) -> Labelled:
    """Inner products of a factor's positions with each other, for each index in ``kept``."""
    x, labels = factor
    lead = [label for label in kept if label in labels]
    rest = [label for label in labels if label not in lead and label not in summed]
    x = contraction.align(x, labels, [*lead, *summed, *rest])
    positions = math.prod(x.shape[len(lead) : len(lead) + len(summed)])
    x = jnp.reshape(x, (*x.shape[: len(lead)], positions, -1))
    # XLA on CPU multiplies odd sizes at a third of the speed.
    extra = -positions % 16
    if 0 < 3 * extra <= positions:
        x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, extra), (0, 0)])
    # Laid out once; without the barrier XLA does it for each side of the product.
    x = jax.lax.optimization_barrier(x)
    batched, last = tuple(range(len(lead))), (len(lead) + 1,)
    gram = jax.lax.dot_general(
        x,
        x,
        ((last, last), (batched, batched)),
        precision=HIGHEST,
        preferred_element_type=contraction.accumulator(x),
    )
    return gram, (*lead, ("positions", "left"), ("positions", "right"))


def _pair_rows(p: Part, q: Part, out: list[Hashable], leaf: Leaf) -> Array:
    """Look-up rows against rows (equal ids), or against a factor that is read at the ids."""
    assert p.a is not None
    assert p.row is not None
    ids, id_labels = p.a
    if q.row is not None and q.a is not None:
        other, other_labels = q.a
        union = list(dict.fromkeys((*id_labels, *other_labels)))
        left = contraction.align(ids, id_labels, union)
        right = contraction.align(other, other_labels, union)
        d_union = dict.fromkeys((*p.d[1], *q.d[1]))
        kept = [label for label in d_union if label in union or label in out]
        products = contraction.contract(*p.d, *q.d, kept, precision=HIGHEST)
        shape = jnp.broadcast_shapes(left.shape, right.shape)
        left, right = jnp.broadcast_to(left, shape), jnp.broadcast_to(right, shape)
        # Ids outside the table were all given the number of rows: they match nothing.
        equal = ((left == right) & (left < leaf.sizes[p.row])).astype(products.dtype)
        return contraction.contract(equal, union, products, kept, out, precision=HIGHEST)
    factors = []
    for x, labels in q.factors:
        if p.row in labels:
            factors.append(contraction.gather_rows(x, labels, p.row, ids, id_labels))
        else:
            factors.append((x, labels))
    return contraction.network([p.d, *factors], out, precision=HIGHEST)


def second_moment(
    leaf: Leaf, table: Sequence[Array], weights: Array | None, num_examples: int
) -> Array:
    """``sum_b weights_b^2 g_b^2``, entry by entry."""
    if weights is not None:
        weights = jnp.square(weights.astype(dtype(leaf, table)))
    terms = parts(leaf, table)
    kept = {batch(), *axes(leaf)}
    if len(terms) == 1 and terms[0].row is None and all(kept >= {*x[1]} for x in terms[0].factors):
        # One position per example: the square of a product is the product of squares.
        squares = [(jnp.square(jnp.abs(x)), labels) for x, labels in terms[0].factors]
        part = Part(None if len(squares) == 1 else squares[0], squares[-1], None)
        part, rest = _weigh(part, weights, num_examples)
        if part.a is None:
            value = contraction.align(*_summed(part.d, axes(leaf)), axes(leaf))
        else:
            value = _formed(part, leaf, axes(leaf))
        value = value if rest is None else value * rest.astype(value.dtype)
    else:
        formed = rows(leaf, table, num_examples).reshape((num_examples, *leaf.sizes))
        squares = jnp.square(jnp.abs(formed.astype(dtype(leaf, table))))
        if weights is None:
            weights = jnp.ones(num_examples, squares.dtype)
        value = contraction.contract(
            weights.astype(squares.dtype), (batch(),), squares, (batch(), *axes(leaf)), axes(leaf)
        )
    return value.astype(leaf.dtype).reshape(leaf.shape)


def squared_norms_of(value: Lazy) -> Array:
    """``|g_b|^2`` of an unformed value whose first axis is the example: ``[B]``."""
    num_examples, *shape = value.shape
    if value.terms and isinstance(value.terms[0], Squares):
        return value.terms[0].array
    table = Table()
    leaf = store(value, "", jax.ShapeDtypeStruct(tuple(shape), value.dtype), table)
    return squared_norms(leaf, table.arrays, num_examples)
