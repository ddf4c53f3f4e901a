"""Random projections of per-example gradients: what a sketch sees of each parameter."""

import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkin.matrices import contraction, products
from gradkin.matrices.arguments import path_name
from gradkin.matrices.leaves import BATCH, Leaf, StoredFactor, Term
from gradkin.typing import Array, PyTree

_verb = functools.partial(jax.jit, inline=True)


class LeafGradients(NamedTuple):
    """The gradients of one parameter, as a sketch sees them: rows, or the factors of rows.

    Attributes:
      leaf: static description.
      table: the matrix's factors.
      num_examples: ``B``.
    """

    leaf: Leaf
    table: Sequence[Array]
    num_examples: int

    @property
    def path(self) -> str:
        """The parameter's path, ``"layers/0/kernel"``."""
        return self.leaf.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return self.leaf.shape

    @property
    def dtype(self) -> np.dtype:
        """In which projections are summed: at least float32."""
        return contraction.at_least_float32(self.leaf.dtype)

    def rows(self) -> Array:
        """The gradients multiplied out, ``[B, size of the parameter]``."""
        value = products.rows(self.leaf, self.table, self.num_examples)
        return value.reshape((self.num_examples, -1)).astype(self.dtype)

    def split(self, cut: int) -> tuple[list[int], list[int]]:
        """Labels of the parameter's first ``cut`` axes and of the others."""
        wanted, total, last = math.prod(self.shape[:cut]), 1, 0
        while total < wanted:
            total *= self.leaf.sizes[last]
            last += 1
        axes = list(range(len(self.leaf.sizes)))
        return axes[:last], axes[last:]

    def two_sided(self, left: Array, right: Array, cut: int) -> Array:
        """``left^T g right`` with the first ``cut`` axes of ``g`` as rows, in the cheapest order.

        Args:
          left: ``[rows, p]``.
          right: ``[columns, q]``.
          cut: how many axes are rows.

        Returns:
          ``[B, p, q]``.
        """
        leaf, out = self.leaf, [products.batch(), "p", "q"]
        total = jnp.zeros((self.num_examples, left.shape[1], right.shape[1]), self.dtype)
        for part in products.parts(leaf, self.table):
            operands: list[tuple[Array, Sequence[Hashable]]] = [part.d]
            if part.a is not None and part.row is None:
                operands.append(part.a)
            for axes, matrix, name in zip(self.split(cut), (left, right), "pq", strict=True):
                sizes = [leaf.sizes[x] for x in axes]
                x = jnp.reshape(matrix, (*sizes, matrix.shape[1]))
                labels: Sequence[Hashable] = (*axes, name)
                if part.row is not None and part.row in axes:
                    assert part.a is not None
                    x, labels = contraction.gather_rows(x, labels, part.row, *part.a)
                operands.append((x, labels))
            present = [x for x in out if any(x in labels for _, labels in operands)]
            value = contraction.network(operands, present, precision=products.HIGHEST)
            value = contraction.align(value, present, out)
            total = total + jnp.broadcast_to(value, total.shape).astype(total.dtype)
        return total


def leaves_of(rows: PyTree) -> list[LeafGradients]:
    """Gradients written down, ``[B, *shape]`` at each leaf, as a sketch sees them."""
    found = []
    for path, x in jax.tree_util.tree_flatten_with_path(rows)[0]:
        x = jnp.asarray(x)
        sizes = tuple(n for n in x.shape[1:] if n != 1)
        term = Term("dense", None, StoredFactor(0, (BATCH, *range(len(sizes)))))
        leaf = Leaf(path_name(path), x.shape[1:], np.dtype(x.dtype), sizes, (term,), "given")
        found.append(LeafGradients(leaf, (x.reshape((x.shape[0], *sizes)),), x.shape[0]))
    return found


def check_sketch(s: Any) -> None:
    """Raise TypeError unless ``s`` is a sketch."""
    if not all(hasattr(s, name) for name in ("of_leaf", "size", "combine")):
        raise TypeError(
            "Expected a sketch, such as gradkin.gradients.RademacherSketch(key, 512), got "
            f"{type(s).__name__}."
        )


@_verb
def sketch(G: Any, s: Any) -> Array:
    """``[B, k]``: each selected parameter projected, then added or joined, times row weights."""
    leaves = [LeafGradients(leaf, G.table, G.num_examples) for leaf in G.leaves if leaf.selected]
    result = combined(leaves, s)
    return result if G.weights is None else result * G.weights[:, None].astype(result.dtype)


def combined(leaves: list[LeafGradients], s: Any) -> Array:
    """The projections of all parameters: their sum, or one after another."""
    for leaf in leaves:
        if not jnp.issubdtype(leaf.leaf.dtype, jnp.floating):
            raise TypeError(f"Expected real gradients, got {leaf.leaf.dtype} at {leaf.path!r}.")
    values = [
        s.of_leaf(leaf) if leaf.leaf.size else jnp.zeros((leaf.num_examples, s.size), leaf.dtype)
        for leaf in leaves
    ]
    dtype = functools.reduce(np.promote_types, [value.dtype for value in values])
    values = [value.astype(dtype) for value in values]
    if s.combine == "concat":
        return jnp.concatenate(values, axis=1)
    return functools.reduce(jnp.add, values)
