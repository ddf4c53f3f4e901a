"""Values of a backward pass that stay sums of products until someone needs the numbers."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gradkin.matrices import contraction
from gradkin.typing import Array


class Label:
    """An index of a product; compared by identity.

    ``slots`` is set on an index of which only some values occur, in both factors: a parameter
    that was cut out of a stack.
    """

    __slots__ = ("size", "slots")

    def __init__(self, size: int, slots: frozenset[int] | None = None):
        self.size = size
        self.slots = slots


class Factor(NamedTuple):
    """An array, one label per axis."""

    array: Any
    labels: tuple[Label, ...]


class OneHot(NamedTuple):
    """The factor ``[ids == row]`` without its zeros; ids outside the rows select nothing."""

    array: Any
    labels: tuple[Label, ...]
    row: Label


class Product(NamedTuple):
    """``sum a * d`` over the labels absent from ``out``; each output axis groups some labels."""

    a: Factor | OneHot
    d: Factor
    out: tuple[tuple[Label, ...], ...]


class Accumulator(NamedTuple):
    """The value a scan carry had when the step began; it may only be transposed and added to.

    ``owner`` tells the carries of nested scans apart; ``axes`` are the carry's, as they lie now.
    """

    owner: Any
    index: int
    axes: tuple[int, ...]


class Squares(NamedTuple):
    """Only the squared norm of each example is known; see `programs.example_axes`."""

    array: Any


class Lazy(NamedTuple):
    """A sum of products, arrays and at most one accumulator; an empty sum is zero."""

    shape: tuple[int, ...]
    dtype: Any
    terms: tuple[Any, ...]


class Unsupported(Exception):
    """A step that cannot be applied to an unformed value."""


class AccumulatorUsed(Exception):
    """A scan's body reads an accumulator: it must be an ordinary carry."""

    def __init__(self, accumulator: Accumulator):
        super().__init__(accumulator.index)
        self.accumulator = accumulator


def zeros(shape: tuple[int, ...], dtype: Any) -> Lazy:
    return Lazy(tuple(shape), dtype, ())


def as_lazy(value: Any) -> Lazy:
    if isinstance(value, Lazy):
        return value
    return Lazy(tuple(np.shape(value)), jnp.result_type(value), (value,))


def dense_product(term: Product) -> Array:
    """Multiply one product out, in the layout of its labels."""
    flat = [label for group in term.out for label in group]
    if isinstance(term.a, OneHot):
        result = contraction.scatter_rows(
            term.a.array,
            term.a.labels,
            term.d.array,
            term.d.labels,
            term.a.row,
            term.a.row.size,
            flat,
        )
    else:
        result = contraction.contract(
            term.a.array, term.a.labels, term.d.array, term.d.labels, flat
        )
    return jnp.reshape(result, [math.prod(label.size for label in g) for g in term.out])


def force(value: Any) -> Array:
    """The numbers behind a value."""
    if not isinstance(value, Lazy):
        return jnp.asarray(value)
    total = None
    for term in value.terms:
        if isinstance(term, Accumulator):
            raise AccumulatorUsed(term)
        part = dense_product(term) if isinstance(term, Product) else jnp.asarray(term)
        part = part.astype(value.dtype)
        total = part if total is None else total + part
    return jnp.zeros(value.shape, value.dtype) if total is None else total


def is_rounded(value: Lazy) -> bool:
    """Whether the value has fewer bits than the products that it stands for."""
    factors = [x.array for t in value.terms if isinstance(t, Product) for x in (t.a, t.d)]
    kinds = [x.dtype for x in factors if jnp.issubdtype(x.dtype, jnp.inexact)]
    return any(kind.itemsize > np.dtype(value.dtype).itemsize for kind in kinds)


def _map(value: Lazy, shape: tuple[int, ...], on_product: Any, on_array: Any) -> Lazy:
    terms = []
    for term in value.terms:
        if isinstance(term, Accumulator):
            raise Unsupported("an accumulator may only be added to")
        if isinstance(term, Squares):
            terms.append(term)
            continue
        terms.append(on_product(term) if isinstance(term, Product) else on_array(term))
    return Lazy(tuple(shape), value.dtype, tuple(terms))


def transpose(value: Lazy, permutation: tuple[int, ...]) -> Lazy:
    carries = tuple(
        term._replace(axes=tuple(term.axes[p] for p in permutation))
        for term in value.terms
        if isinstance(term, Accumulator)
    )
    others = tuple(term for term in value.terms if not isinstance(term, Accumulator))
    moved = _map(
        value._replace(terms=others),
        tuple(value.shape[p] for p in permutation),
        lambda t: t._replace(out=tuple(t.out[p] for p in permutation)),
        lambda x: jnp.transpose(x, permutation),
    )
    return moved._replace(terms=(*carries, *moved.terms))


def reshape(value: Lazy, shape: tuple[int, ...]) -> Lazy:
    return _map(value, shape, lambda t: regroup(t, shape), lambda x: jnp.reshape(x, shape))


def reduce_sum(value: Lazy, axes: tuple[int, ...]) -> Lazy:
    kept = [axis for axis in range(len(value.shape)) if axis not in axes]

    def on_product(term: Product) -> Product:
        if isinstance(term.a, OneHot) and any(term.a.row in term.out[axis] for axis in axes):
            raise Unsupported("a sum over an embedding's rows")
        return term._replace(out=tuple(term.out[axis] for axis in kept))

    shape = tuple(value.shape[axis] for axis in kept)
    return _map(value, shape, on_product, lambda x: jnp.sum(x, axes))


def add_unit_axes(value: Lazy, shape: tuple[int, ...], dimensions: tuple[int, ...]) -> Lazy:
    """`broadcast_in_dim` that only inserts axes of size one; an all-zero value may grow."""
    if value.terms and (
        any(value.shape[i] != shape[d] for i, d in enumerate(dimensions))
        or any(shape[d] != 1 for d in range(len(shape)) if d not in dimensions)
    ):
        raise Unsupported("broadcast")
    where = {d: i for i, d in enumerate(dimensions)}

    def on_product(t: Product) -> Product:
        return t._replace(
            out=tuple(t.out[where[d]] if d in where else () for d in range(len(shape)))
        )

    return _map(value, shape, on_product, lambda x: jnp.reshape(x, shape))


def negate(value: Lazy) -> Lazy:
    return _map(
        value, value.shape, lambda t: t._replace(d=t.d._replace(array=-t.d.array)), lambda x: -x
    )


def add(left: Lazy, right: Lazy) -> Lazy:
    return Lazy(left.shape, left.dtype, (*left.terms, *right.terms))


def regroup(term: Product, shape: tuple[int, ...]) -> Product:
    """Read the output axes anew as ``shape``, splitting a label where an axis ends inside it."""
    labels = [label for group in term.out for label in group]
    groups: list[tuple[Label, ...]] = []
    for wanted in shape:
        group: list[Label] = []
        have = 1
        while have < wanted:
            if not labels or wanted == 0:
                raise Unsupported("reshape")
            label = labels[0]
            room = wanted // have
            if wanted % have or (label.size > room and label.size % room):
                raise Unsupported("reshape")
            if label.size > room:
                major, minor = Label(room), Label(label.size // room)
                term = split(term, label, (major, minor))
                labels[:1] = [major, minor]
            elif wanted % (have * label.size):
                raise Unsupported("reshape")
            group.append(labels.pop(0))
            have *= group[-1].size
        groups.append(tuple(group))
    # What is left has size one; it stays summed over, which changes nothing.
    row = term.a.row if isinstance(term.a, OneHot) else None
    if any(label.size != 1 or label is row for label in labels):
        raise Unsupported("reshape")
    return term._replace(out=tuple(groups))


def split(term: Product, label: Label, parts: tuple[Label, ...]) -> Product:
    """Replace one label by several, major first, in the factors and the output."""
    if isinstance(term.a, OneHot) and label is term.a.row:
        raise Unsupported("an embedding's rows cannot be split")

    def on(factor: Any) -> Any:
        if label not in factor.labels:
            return factor
        axis = factor.labels.index(label)
        shape = factor.array.shape
        sizes = tuple(part.size for part in parts)
        return factor._replace(
            array=jnp.reshape(factor.array, (*shape[:axis], *sizes, *shape[axis + 1 :])),
            labels=(*factor.labels[:axis], *parts, *factor.labels[axis + 1 :]),
        )

    out = tuple(
        tuple(new for old in group for new in (parts if old is label else (old,)))
        for group in term.out
    )
    return Product(on(term.a), on(term.d), out)


def pad(value: Lazy, padding: tuple[tuple[int, int], ...]) -> Lazy:
    """Zeros before and after: the transpose of cutting a parameter into pieces."""
    shape = tuple(n + low + high for n, (low, high) in zip(value.shape, padding, strict=True))

    def on_product(term: Product) -> Product:
        for axis, (low, high) in enumerate(padding):
            if low or high:
                term = _pad_axis(term, axis, low, high)
        return term

    def on_array(x: Any) -> Any:
        return jnp.pad(x, padding)

    return _map(value, shape, on_product, on_array)


def _pad_axis(term: Product, axis: int, low: int, high: int) -> Product:
    group = term.out[axis]
    if not group:
        # One element of a stack: the place in the stack becomes an index of both factors.
        label = Label(1 + low + high, frozenset((low,)))
        out = (*term.out[:axis], (label,), *term.out[axis + 1 :])

        def placed(factor: Any) -> Any:
            if isinstance(factor, OneHot):
                return factor
            array = jnp.pad(factor.array[None], [(low, high)] + [(0, 0)] * factor.array.ndim)
            return factor._replace(array=array, labels=(label, *factor.labels))

        return Product(placed(term.a), placed(term.d), out)
    (old,) = group if len(group) == 1 else (None,)
    if old is None or (isinstance(term.a, OneHot) and old is term.a.row):
        raise Unsupported("a padded axis of several indices")
    slots = None if old.slots is None else frozenset(low + k for k in old.slots)
    new = Label(old.size + low + high, slots)

    def padded(factor: Any) -> Any:
        if old not in factor.labels:
            return factor
        if isinstance(factor, OneHot):
            raise Unsupported("a padded index of a look-up")
        widths = [(low, high) if label is old else (0, 0) for label in factor.labels]
        labels = tuple(new if label is old else label for label in factor.labels)
        return factor._replace(array=jnp.pad(factor.array, widths), labels=labels)

    out = tuple(tuple(new if label is old else label for label in g) for g in term.out)
    return Product(padded(term.a), padded(term.d), out)


def cut(value: Lazy, axis: int, start: int, stop: int) -> Lazy:
    """A slice along one axis."""
    shape = (*value.shape[:axis], stop - start, *value.shape[axis + 1 :])

    def on_product(term: Product) -> Product:
        if len(term.out[axis]) != 1:
            raise Unsupported("a slice of an axis of several indices")
        (old,) = term.out[axis]
        if isinstance(term.a, OneHot) and old in (term.a.row, *term.a.labels):
            raise Unsupported("a slice of a table's rows")
        new = Label(stop - start)

        def sliced(factor: Any) -> Any:
            if old not in factor.labels:
                return factor
            index = tuple(
                slice(start, stop) if label is old else slice(None) for label in factor.labels
            )
            labels = tuple(new if label is old else label for label in factor.labels)
            return factor._replace(array=factor.array[index], labels=labels)

        out = tuple(tuple(new if label is old else label for label in g) for g in term.out)
        return Product(sliced(term.a), sliced(term.d), out)

    return _map(value, shape, on_product, lambda x: jnp.take(x, np.arange(start, stop), axis))


def merged(products: list[Product]) -> list[Product]:
    """Fewer products of the same sum: one factor in common, or disjoint places in a stack."""
    result: list[Product] = []
    for product in products:
        for k, other in enumerate(result):
            both = _merge(other, product)
            if both is not None:
                result[k] = both
                break
        else:
            result.append(product)
    return result


def _merge(p: Product, q: Product) -> Product | None:
    (p_labels, p_pattern), (q_labels, q_pattern) = _pattern(p), _pattern(q)
    if p_pattern != q_pattern or isinstance(p.a, OneHot) != isinstance(q.a, OneHot):
        return None
    if p.a.array is q.a.array:
        return p._replace(d=p.d._replace(array=p.d.array + q.d.array))
    if isinstance(p.a, OneHot) or isinstance(q.a, OneHot):
        return None
    if p.d.array is q.d.array:
        return p._replace(a=p.a._replace(array=p.a.array + q.a.array))
    for old, other in zip(p_labels, q_labels, strict=True):
        if old.slots is not None and other.slots is not None and not old.slots & other.slots:
            new = Label(old.size, old.slots | other.slots)

            def joined(x: Factor, y: Factor, old: Label = old, new: Label = new) -> Factor:
                labels = tuple(new if label is old else label for label in x.labels)
                return Factor(x.array + y.array, labels)

            out = tuple(tuple(new if label is old else label for label in g) for g in p.out)
            return Product(joined(p.a, q.a), joined(p.d, q.d), out)
    return None


def _pattern(term: Product) -> tuple[list[Label], Any]:
    """The labels in order of appearance, and the product's structure in their numbers."""
    row = (term.a.row,) if isinstance(term.a, OneHot) else ()
    order = list(dict.fromkeys((*row, *term.a.labels, *term.d.labels)))
    number = {label: k for k, label in enumerate(order)}
    return order, (
        tuple(label.size for label in order),
        tuple(number[label] for label in term.a.labels),
        tuple(number[label] for label in term.d.labels),
        tuple(tuple(number[label] for label in group) for group in term.out),
    )


def multiply(value: Lazy, source: Any, dimensions: tuple[int, ...]) -> Lazy:
    """Multiply by an array whose axis ``i`` runs along ``dimensions[i]`` of the value.

    The factor is absorbed where all its axes belong to one operand of the product.
    """

    def on_product(term: Product) -> Product:
        labels: list[Label] = []
        sizes: list[int] = []
        for axis, dimension in enumerate(dimensions):
            if source.shape[axis] == 1:
                continue
            labels.extend(term.out[dimension])
            sizes.extend(label.size for label in term.out[dimension])
        factor = jnp.reshape(source, sizes)
        for side in ("d", "a"):
            operand = getattr(term, side)
            if isinstance(operand, Factor) and set(labels) <= set(operand.labels):
                scaled = contraction.scale(operand.array, operand.labels, factor, labels)
                return term._replace(**{side: operand._replace(array=scaled)})
        raise Unsupported("the factor runs along both operands")

    def on_array(array: Any) -> Any:
        shape = [1] * len(value.shape)
        for axis, dimension in enumerate(dimensions):
            shape[dimension] = source.shape[axis]
        return array * jnp.broadcast_to(jnp.reshape(source, shape), array.shape).astype(array.dtype)

    return _map(value, value.shape, on_product, on_array)
