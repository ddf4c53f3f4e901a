"""How each parameter's gradient is kept: factors or the array itself, and why."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gradkin.matrices import lazy
from gradkin.matrices.lazy import Factor, Label, Lazy, OneHot, Product

# Labels of a stored factor: BATCH is the example axis, 0 .. n-1 are the leaf's own axes (after
# they are split as finely as any of its terms needs), anything above is summed over.
BATCH = -1


class StoredFactor(NamedTuple):
    """Place in the table of factors, and the label of each axis."""

    index: int
    labels: tuple[int, ...]


class Term(NamedTuple):
    """One summand of a leaf: ``kind`` is "outer", "rows" or "dense" (then ``a`` is None)."""

    kind: str
    a: StoredFactor | None
    d: StoredFactor
    row: int | None = None


class Leaf(NamedTuple):
    """Static description of one parameter's gradients; hashable, equal for equal traces."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    sizes: tuple[int, ...]
    terms: tuple[Term, ...]
    reason: str
    selected: bool = True

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Costs(NamedTuple):
    """Sizes of a leaf's products: stacked layers, summed positions, the two sides."""

    stacked: int
    summed: int
    left: int
    right: int


class Table:
    """Unique arrays, each stored once however many terms use it."""

    def __init__(self) -> None:
        self.arrays: list[Any] = []
        self.places: dict[Any, int] = {}
        self.sources: list[Any] = []

    def add(self, array: Any, shape: tuple[int, ...], batch_axis: int | None) -> int:
        key = (id(array), shape, batch_axis)
        if key not in self.places:
            self.places[key] = len(self.arrays)
            self.arrays.append(array if shape == tuple(array.shape) else jnp.reshape(array, shape))
            self.sources.append(array)
        return self.places[key]


def store(value: Any, path: str, like: Any, table: Table, *, route: str = "auto") -> Leaf:
    """Decide how to keep one leaf, and put its factors in the table.

    Factors are kept where they are fewer numbers than the gradient, summed over all terms:
    ``T (I + O) < I O`` for T positions, I inputs and O outputs. Storage and the cost of a norm
    cross over at the same T. Otherwise the leaf is multiplied out once and the factors dropped.

    Args:
      value: the gradients of one leaf, ``[B, *shape]``, as an array or a `Lazy`.
      path: the leaf's path, for messages.
      like: the parameter.
      table: where factors are stored.
      route: "auto", or "factors" or "dense" to overrule the count.

    Returns:
      The leaf's static description.
    """
    shape, dtype = tuple(np.shape(like)), np.dtype(jnp.result_type(like))

    def dense(reason: str) -> Leaf:
        array = lazy.force(value)
        sizes = tuple(n for n in shape if n != 1)
        index = table.add(array, (array.shape[0], *sizes), 0)
        term = Term("dense", None, StoredFactor(index, (BATCH, *range(len(sizes)))))
        return Leaf(path, shape, dtype, sizes, (term,), reason)

    if not isinstance(value, Lazy):
        return dense("not a sum of products")
    if not value.terms:
        return Leaf(path, shape, dtype, shape, (), "does not depend on this parameter")
    if not all(isinstance(term, Product) for term in value.terms):
        return dense("an array" if len(value.terms) == 1 else "a product and an array are added")
    if not jnp.issubdtype(dtype, jnp.floating):
        return dense("complex parameter")
    if math.prod(shape) <= 1:
        return dense("a single number")
    try:
        products = lazy.merged([_batch_first(term) for term in value.terms])
        products, sizes = _same_axes(products, shape)
    except lazy.Unsupported as reason:
        return dense(str(reason))

    if len({p.out.index((p.a.row,)) for p in products if isinstance(p.a, OneHot)}) > 1:
        return dense("looked up along two different axes")
    costs = [_costs(product) for product in products]
    kept = sum(_numbers(p, c) for p, c in zip(products, costs, strict=True))
    if route == "dense" or (route == "auto" and kept >= math.prod(shape)):
        return dense(f"{kept} numbers in the factors, {math.prod(shape)} in the gradient")
    terms = tuple(_stored(product, table) for product in products)
    reason = f"{kept} numbers in the factors instead of {math.prod(shape)}"
    return Leaf(path, shape, dtype, sizes, terms, reason)


def _batch_first(term: Product) -> Product:
    group = term.out[0]
    if len(group) == 1 and not (isinstance(term.a, OneHot) and term.a.row is group[0]):
        return term
    if not group:  # one example: its axis was dropped on the way
        label = Label(1)
        d = Factor(term.d.array[None], (label, *term.d.labels))
        return Product(term.a, d, ((label,), *term.out[1:]))
    raise lazy.Unsupported("the example axis is spread over several indices")


def _same_axes(terms: list[Product], shape: tuple[int, ...]) -> tuple[list[Product], tuple]:
    """Split every term's leaf axes at the same places; drop indices of size one."""
    sizes: list[int] = []
    for axis, total in enumerate(shape):
        cuts = {1, total}
        for term in terms:
            inner = 1
            for label in reversed(term.out[axis + 1]):
                inner *= label.size
                cuts.add(inner)
        ordered = sorted(cuts)
        for small, large in zip(ordered, ordered[1:], strict=False):
            if large % small:
                raise lazy.Unsupported("two uses split an axis at places that do not nest")
        sizes += [b // a for a, b in zip(ordered, ordered[1:], strict=False)][::-1]
    refined = []
    for term in terms:
        batch = term.out[0][0]
        if isinstance(term.a, OneHot) and term.a.row.size == 1:
            raise lazy.Unsupported("a table of one row")
        term = _regroup_keeping(term, batch, sizes)
        refined.append(term)
    return refined, tuple(sizes)


def _regroup_keeping(term: Product, batch: Label, sizes: list[int]) -> Product:
    rest = lazy.regroup(
        term._replace(out=tuple(tuple(x for x in g if x.size > 1) for g in term.out[1:])),
        tuple(sizes),
    )
    return rest._replace(out=((batch,), *rest.out))


def _costs(term: Product) -> Costs:
    out = {label for group in term.out[1:] for label in group}
    batch = term.out[0][0]
    a = {*term.a.labels, *([term.a.row] if isinstance(term.a, OneHot) else [])} - {batch}
    d = {*term.d.labels} - {batch}

    def total(labels: set[Label]) -> int:
        return math.prod(label.size for label in labels)

    return Costs(
        total(a & d & out), total((a & d) - out), total((a - d) & out), total((d - a) & out)
    )


def _numbers(term: Product, costs: Costs) -> int:
    left = 1 if isinstance(term.a, OneHot) else costs.left
    return costs.stacked * costs.summed * (left + costs.right)


def _stored(term: Product, table: Table) -> Term:
    labels: dict[Label, int] = {term.out[0][0]: BATCH}
    for axis, group in enumerate(term.out[1:]):
        (label,) = group
        labels[label] = axis
    fresh = len(term.out) - 1
    for label in (*term.a.labels, *term.d.labels):
        if label not in labels and label.size > 1:
            labels[label] = fresh
            fresh += 1

    def stored(side: Factor | OneHot) -> StoredFactor:
        kept = [label for label in side.labels if label in labels]
        shape = tuple(label.size for label in kept)
        numbers = tuple(labels[x] for x in kept)
        batch_axis = numbers.index(BATCH) if BATCH in numbers else None
        return StoredFactor(table.add(side.array, shape, batch_axis), numbers)

    if isinstance(term.a, OneHot):
        return Term("rows", stored(term.a), stored(term.d), labels[term.a.row])
    a, d = stored(term.a), stored(term.d)
    # The side with the earlier axis first: for a kernel of shape (inputs, outputs), the inputs.
    own = range(len(term.out) - 1)
    first = next((x for x in own if (x in a.labels) != (x in d.labels)), None)
    return Term("outer", a, d) if first is None or first in a.labels else Term("outer", d, a)
