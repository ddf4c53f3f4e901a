"""Sketches that add each entry, with a random sign, to one of ``k`` places."""

import dataclasses
import functools
import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.gradients.kronecker_sketch import most_square
from gradkin.gradients.sketches import check, leaf_key, signs
from gradkin.matrices import contraction, products
from gradkin.matrices.products import Labelled, Part
from gradkin.matrices.sketching import LeafGradients
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, PRNGKey

# What adding one number at a random place costs, in multiply-adds.
SCATTER = 8


@functools.partial(
    register_dataclass, data_fields=["key"], meta_fields=["size", "nonzeros", "combine"]
)
@dataclasses.dataclass(frozen=True)
class CountSketch:
    """Each entry of the gradient, times a random sign, is added to one of ``k`` places.

    Cost ``B P`` whatever ``k``; the rows of an embedding that an example looks up are added
    without forming its gradient. Unbiased, with variance ``(|g|^2 |h|^2 + <g, h>^2) / k`` at most;
    unlike that of dense sketches it is far from normal where few entries carry the gradient. With
    ``nonzeros`` = s each entry goes to s places with signs ``+-1 / sqrt(s)`` (sparse
    Johnson-Lindenstrauss).

    Attributes:
      key: PRNG key.
      size: ``k``.
      nonzeros: places per entry; each costs as much again.
      combine: "sum" or "concat"; see `RademacherSketch`.

    References:
      Charikar, Chen & Farach-Colton (2002), "Finding Frequent Items in Data Streams".
      :cite:`charikar:02`

      Kane & Nelson (2014), "Sparser Johnson-Lindenstrauss Transforms", arXiv:1012.1577.
      :cite:`kane:14`

    Note:
      The s places of an entry are drawn independently and may coincide, which keeps inner
      products unbiased; Kane and Nelson draw distinct ones.
    """

    key: Any
    size: int
    nonzeros: int = dataclasses.field(default=1, kw_only=True)
    combine: str = dataclasses.field(default="sum", kw_only=True)

    def __post_init__(self) -> None:
        check(self)
        checks.positive_integer(nonzeros=self.nonzeros)

    def of_leaf(self, leaf: LeafGradients) -> Array:
        """One parameter's projection, ``[B, size]``."""
        size = math.prod(leaf.shape)
        total = jnp.zeros((leaf.num_examples, self.size), leaf.dtype)
        for i in range(self.nonzeros):
            key = jax.random.fold_in(leaf_key(self.key, leaf.path), i)
            buckets, flips = hashes(key, size, self.size, leaf.dtype)
            total = total + scattered_leaf(leaf, buckets, flips, self.size)
        return total / np.sqrt(self.nonzeros).astype(total.dtype)


@functools.partial(register_dataclass, data_fields=["key"], meta_fields=["size", "combine"])
@dataclasses.dataclass(frozen=True)
class TensorSketch:
    """A count sketch of matrices that takes products of factors by FFT (Pham & Pagh 2013).

    Entry ``(i, o)`` goes to place ``h(i) + h'(o) mod k`` with sign ``s(i) s'(o)``; so the sketch
    of ``a d^T`` is the circular convolution of the count sketches of ``a`` and ``d``, and the
    gradient is not formed. Cost ``B T (I + O + k log k)`` for ``T`` positions. Unbiased, with
    variance at most ``11 |g|^2 |h|^2 / k`` (Avron et al. 2014, lemma 5): all ``k`` places serve
    both sides, where those of `KroneckerSketch` are split between them.

    Whether a parameter takes this route or is formed and added up entry by entry is counted from
    shapes; the numbers are the same.

    Attributes:
      key: PRNG key.
      size: ``k``.
      combine: "sum" or "concat"; see `RademacherSketch`.

    References:
      Pham & Pagh (2013), "Fast and Scalable Polynomial Kernels via Explicit Feature Maps".
      :cite:`pham:13`

      Avron, Nguyen & Woodruff (2014), "Subspace Embeddings for the Polynomial Kernel".
      :cite:`avron:14`

    Note:
      XLA does not split Fourier transforms: on a sharded batch it gathers the count sketches of
      the factors, ``B T k`` numbers, on every device.
    """

    key: Any
    size: int
    combine: str = dataclasses.field(default="sum", kw_only=True)

    def __post_init__(self) -> None:
        check(self)

    def of_leaf(self, leaf: LeafGradients) -> Array:
        """One parameter's projection, ``[B, size]``."""
        cut = most_square(leaf.shape)
        pair = []
        for number, shape in enumerate((leaf.shape[:cut], leaf.shape[cut:])):
            key = jax.random.fold_in(leaf_key(self.key, leaf.path), number)
            pair.append(hashes(key, math.prod(shape), self.size, leaf.dtype))
        total = jnp.zeros((leaf.num_examples, self.size), leaf.dtype)
        rest = []
        for term, part in zip(leaf.leaf.terms, products.parts(leaf.leaf, leaf.table), strict=True):
            value = convolved(leaf, part, cut, pair, self.size)
            if value is None:
                rest.append(term)
            else:
                total = total + value
        if rest:
            (rows, row_signs), (columns, column_signs) = pair
            buckets = (rows[:, None] + columns[None, :]).reshape(-1) % self.size
            flips = (row_signs[:, None] * column_signs[None, :]).reshape(-1)
            others = leaf._replace(leaf=leaf.leaf._replace(terms=tuple(rest)))
            total = total + scattered_leaf(others, buckets, flips, self.size)
        return total


def hashes(key: PRNGKey, length: int, size: int, dtype: Any) -> tuple[Array, Array]:
    """A place below ``size`` and a sign for each of ``length`` entries."""
    for_places, for_signs = jax.random.split(key)
    places = jax.random.randint(for_places, (length,), 0, size, np.int32)
    return places, signs(for_signs, (1, length), dtype)[0]


def scattered_leaf(leaf: LeafGradients, buckets: Array, flips: Array, size: int) -> Array:
    """Add every entry to its place; entries of rows that are looked up, without forming them."""
    total = jnp.zeros((leaf.num_examples, size), leaf.dtype)
    dense = []
    for term, part in zip(leaf.leaf.terms, products.parts(leaf.leaf, leaf.table), strict=True):
        if part.row is None:
            dense.append(term)
        else:
            total = total + scattered_rows(leaf, part, buckets, flips, size)
    if dense:
        rows = leaf._replace(leaf=leaf.leaf._replace(terms=tuple(dense))).rows()
        signed = rows * jnp.broadcast_to(flips[None, :], rows.shape)
        # Examples last: each entry of all examples goes to its place at once.
        added = jnp.zeros((size, leaf.num_examples), leaf.dtype).at[buckets].add(signed.T)
        total = total + added.T
    return total


def scattered_rows(
    leaf: LeafGradients, part: Part, buckets: Array, flips: Array, size: int
) -> Array:
    """The entries of the rows that are looked up; ids outside the table have sign zero."""
    assert part.a is not None
    assert part.row is not None
    sizes, axes = leaf.leaf.sizes, products.axes(leaf.leaf)
    found = [
        contraction.gather_rows(x.reshape(sizes), axes, part.row, *part.a) for x in (buckets, flips)
    ]
    labels = list(dict.fromkeys((products.batch(), *part.d[1], *found[0][1])))
    places, flips, values = (contraction.align(*x, labels) for x in (*found, part.d))
    shape = jnp.broadcast_shapes(
        places.shape, values.shape, (leaf.num_examples,) + (1,) * (places.ndim - 1)
    )
    places, flips, values = (
        jnp.broadcast_to(x, shape).reshape((leaf.num_examples, -1)) for x in (places, flips, values)
    )
    added = jnp.zeros((leaf.num_examples, size), leaf.dtype)
    add = lambda row, places, values: row.at[places].add(values)
    return jax.vmap(add)(added, places, values.astype(leaf.dtype) * flips)


def convolved(
    leaf: LeafGradients,
    part: Part,
    cut: int,
    pair: list[tuple[Array, Array]],
    size: int,
) -> Array | None:
    """The sketch of a product of factors; None where it is none, or where forming it is cheaper."""
    if part.a is None or part.row is not None:
        return None
    rows, columns = leaf.split(cut)
    factors = [part.a, part.d]
    if not set(rows) <= set(part.a[1]):
        factors.reverse()
    (left, left_labels), (right, right_labels) = factors
    if not set(rows) <= set(left_labels) or not set(columns) <= set(right_labels):
        return None
    if set(columns) & set(left_labels):
        return None
    stack = [x for x in rows if x in right_labels]
    sizes = dict(zip(left_labels, left.shape, strict=True))
    sizes |= zip(right_labels, right.shape, strict=True)
    own = {*rows, *columns, products.batch()} - set(stack)
    positions = math.prod(n for x, n in sizes.items() if x not in own)
    entries = math.prod(leaf.shape)
    lengths = math.prod(sizes[x] for x in rows if x not in stack)
    lengths += math.prod(sizes[x] for x in columns)
    by_factors = positions * (SCATTER * lengths + 5 * size * max(1, int(size).bit_length()))
    if by_factors >= entries * (positions + SCATTER):
        return None
    transformed = [
        transform(leaf, factor, axes, stack if axes is rows else [], *hashed, size)
        for factor, axes, hashed in zip(
            ((left, left_labels), (right, right_labels)), (rows, columns), pair, strict=True
        )
    ]
    out: list[Hashable] = [products.batch(), "frequency"]
    present = [x for x in out if any(x in labels for _, labels in transformed)]
    product = contraction.contract(*transformed[0], *transformed[1], present)
    value = jnp.fft.irfft(contraction.align(product, present, out), n=size, axis=1)
    return jnp.broadcast_to(value, (leaf.num_examples, size)).astype(leaf.dtype)


def transform(
    leaf: LeafGradients,
    factor: Labelled,
    axes: list[int],
    stack: list[int],
    buckets: Array,
    flips: Array,
    size: int,
) -> Labelled:
    """Fourier transform of the count sketch of a factor over ``axes`` (not over ``stack``)."""
    x, labels = factor
    own = [axis for axis in axes if axis not in stack]
    rest = [label for label in labels if label not in axes]
    sizes = [leaf.leaf.sizes[axis] for axis in axes]
    order = [axes.index(axis) for axis in (*stack, *own)]
    layers = math.prod(leaf.leaf.sizes[axis] for axis in stack)
    places, flips = (
        v.reshape(sizes).transpose(order).reshape((layers, -1)) for v in (buckets, flips)
    )
    x = contraction.align(x, labels, [*stack, *own, *rest])
    rest_sizes, stack_sizes = x.shape[len(axes) :], x.shape[: len(stack)]
    x = x.reshape((*places.shape, -1)).astype(leaf.dtype)
    x = x * jnp.broadcast_to(flips[:, :, None], x.shape)
    add = lambda places, values: jnp.zeros((size, values.shape[1]), x.dtype).at[places].add(values)
    spectrum = jnp.fft.rfft(jax.vmap(add)(places, x), axis=1)
    shape = (*stack_sizes, spectrum.shape[1], *rest_sizes)
    return spectrum.reshape(shape), (*stack, "frequency", *rest)
