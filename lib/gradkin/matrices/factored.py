"""Kronecker structure read off, and applied to, the factors of per-example gradients."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin.matrices import contraction, products
from gradkin.matrices.leaves import BATCH, Leaf, StoredFactor, Term
from gradkin.typing import Array, PyTree

_verb = functools.partial(jax.jit, inline=True)


def kfac_factors(G: Any) -> PyTree:
    """The two small second moments whose Kronecker product stands for a leaf's (K-FAC).

    For a leaf kept as one product of ``A`` (positions x inputs) and ``D`` (positions x outputs)::

        left  = sum_b sum_t A_bt A_bt^T / (B T)      right = sum_b sum_t D_bt D_bt^T / B

    so that ``kron(left, right)`` approximates ``mean_b vec(g_b) vec(g_b)^T``; with one position
    per example and ``A`` independent of ``D`` it is its expectation. Row weights multiply ``D``.
    Stacked layers get a leading layer axis.

    Args:
      G: a recorded matrix; made with sampled labels this is the Fisher's K-FAC, with the data's
        labels the empirical Fisher's.

    Returns:
      A pytree like the parameters with ``(left, right)`` at each leaf kept as one product of two
      factors, and None elsewhere (biases, norms, looked-up and formed leaves).

    References:
      Martens & Grosse (2015), "Optimizing Neural Networks with Kronecker-factored Approximate
      Curvature", arXiv:1503.05671, eq. (1). :cite:`martens:15`

      Eschenhagen et al. (2023), "Kronecker-Factored Approximate Curvature for Modern Neural
      Network Architectures", arXiv:2311.00636, section 3.2 (expand). :cite:`eschenhagen:23`
    """
    return _kfac_factors(G)


@_verb
def _kfac_factors(G: Any) -> PyTree:
    return G.tree([_factors_of(G, leaf) if leaf.selected else None for leaf in G.leaves])


def _factors_of(G: Any, leaf: Leaf) -> tuple[Array, Array] | None:
    if len(leaf.terms) != 1 or leaf.terms[0].kind != "outer":
        return None
    (part,) = products.parts(leaf, G.table)
    assert part.a is not None
    own = set(products.axes(leaf))
    stack = [x for x in products.axes(leaf) if x in part.a[1] and x in part.d[1]]
    sizes = {}
    for x, labels in part.factors:
        sizes.update(zip(labels, x.shape, strict=True))
    summed = math.prod(n for x, n in sizes.items() if x not in own and x != products.batch())

    def moment(factor: Any, total: int) -> Array:
        x, labels = factor
        kept = [label for label in labels if label in own and label not in stack]
        twin = tuple(("twin", label) if label in kept else label for label in labels)
        out = [*stack, *kept, *(("twin", label) for label in kept)]
        value = contraction.contract(x, labels, x, twin, out, precision=products.HIGHEST)
        side = math.prod(sizes[label] for label in kept)
        return value.reshape((*(sizes[label] for label in stack), side, side)) / total

    d = part.d
    if G.weights is not None and products.batch() in d[1]:
        d = (contraction.scale(d[0], d[1], G.weights, (products.batch(),)), d[1])
    return moment(part.a, G.num_examples * summed), moment(d, G.num_examples)


def precondition(G: Any, left: PyTree, right: PyTree) -> Any:
    """``L g R`` for each leaf; see `PerExampleGrads.precondition`."""
    lefts = [None] * len(G.leaves) if left is None else _matrices(G, left, "left")
    rights = [None] * len(G.leaves) if right is None else _matrices(G, right, "right")
    return _precondition(G, lefts, rights)


def _matrices(G: Any, tree: PyTree, name: str) -> list[Any]:
    flat = G.structure.flatten_up_to(tree)
    for leaf, matrix in zip(G.leaves, flat, strict=True):
        if matrix is not None and (np.ndim(matrix) < 2 or matrix.shape[-1] != matrix.shape[-2]):
            raise ValueError(
                f"Expected {name} to hold square matrices, got {np.shape(matrix)} at {leaf.path!r}."
            )
    return flat


@_verb
def _precondition(G: Any, lefts: list[Any], rights: list[Any]) -> Any:
    table, leaves = list(G.table), []
    for leaf, left, right in zip(G.leaves, lefts, rights, strict=True):
        if not leaf.selected or not leaf.terms or (left is None and right is None):
            leaves.append(leaf)
            continue
        stack = _stack(leaf)
        rows = _row_axes(leaf, stack)
        columns = [x for x in range(len(leaf.sizes)) if x not in (*stack, *rows)]
        for name, matrix, own in (("left", left, rows), ("right", right, columns)):
            if matrix is not None:
                leaf = _apply(G, leaf, table, matrix, own, stack, name)
        leaves.append(leaf)
    return dataclasses.replace(G, table=tuple(table), leaves=tuple(leaves))


def _stack(leaf: Leaf) -> list[int]:
    """Axes that both factors of every term carry: layers, experts, groups."""
    shared = [x for x in range(len(leaf.sizes)) if leaf.terms]
    for term in leaf.terms:
        if term.a is None:
            return []
        shared = [x for x in shared if x in term.a.labels and x in term.d.labels]
    return shared


def _row_axes(leaf: Leaf, stack: list[int]) -> list[int]:
    """The axes that the last axis of the parameter leaves over."""
    last, total = len(leaf.sizes), 1
    while total < leaf.shape[-1]:
        last -= 1
        total *= leaf.sizes[last]
    return [x for x in range(last) if x not in stack]


def _apply(
    G: Any,
    leaf: Leaf,
    table: list[Any],
    matrix: Array,
    own: list[int],
    stack: list[int],
    name: str,
) -> Leaf:
    sizes = [leaf.sizes[x] for x in own]
    wanted = math.prod(sizes)
    layers = [leaf.sizes[x] for x in stack]
    shape = matrix.shape
    if shape != (wanted, wanted) and shape != (math.prod(layers), wanted, wanted):
        raise ValueError(
            f"Expected {name} at {leaf.path!r} to be a {wanted} x {wanted} matrix, got {shape}."
        )
    stacked = stack if len(shape) == 3 else []
    new = [("new", x) for x in own]
    order = (new, own) if name == "left" else (own, new)
    m = jnp.reshape(matrix, [*(layers if stacked else []), *sizes, *sizes])
    m_labels = (*stacked, *order[0], *order[1])
    terms = []
    for term in leaf.terms:
        side = next((s for s in ("a", "d") if _owns(getattr(term, s), own, term.row, s)), None)
        if side is None:
            formed = products.rows(leaf, G.table, G.num_examples)
            place = StoredFactor(len(table), (BATCH, *range(len(leaf.sizes))))
            table.append(formed.reshape((G.num_examples, *leaf.sizes)))
            whole = leaf._replace(terms=(Term("dense", None, place),), reason="preconditioned")
            return _apply(G, whole, table, matrix, own, stack, name)
        factor = getattr(term, side)
        kept = [("new", x) if x in own else x for x in factor.labels]
        value = contraction.contract(table[factor.index], factor.labels, m, m_labels, kept)
        terms.append(term._replace(**{side: factor._replace(index=len(table))}))
        table.append(value)
    return leaf._replace(terms=tuple(terms))


def _owns(factor: StoredFactor | None, own: list[int], row: int | None, side: str) -> bool:
    if factor is None or (side == "a" and row is not None) or row in own:
        return False
    return all(x in factor.labels for x in own)
