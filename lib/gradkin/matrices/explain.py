"""What a matrix of gradients stores, and what its verbs cost."""

import math
from typing import Any, NamedTuple

from gradkin.matrices.leaves import BATCH, Leaf, Term


class Row(NamedTuple):
    """One parameter: sizes are per example; multiply-adds are those of the norm."""

    path: str
    shape: tuple[int, ...]
    terms: tuple[str, ...]
    route: str
    multiply_adds: int
    numbers: int
    reason: str


class Explanation(NamedTuple):
    """One row per selected parameter; printing gives a table."""

    rows: tuple[Row, ...]
    num_examples: int
    stored: int

    def __str__(self) -> str:
        head = ("parameter", "shape", "terms", "route", "norm madds", "stored", "gradient", "why")
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            lines.append(
                (
                    row.path,
                    "x".join(map(str, row.shape)) or "scalar",
                    " + ".join(row.terms) or "zero",
                    row.route,
                    _short(row.multiply_adds),
                    _short(row.numbers),
                    _short(math.prod(row.shape)),
                    row.reason,
                )
            )
        widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
        text = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[-1]])
            for line in lines
        ]
        dense = sum(math.prod(row.shape) for row in self.rows)
        text.append(
            f"{self.num_examples} examples, {_short(self.stored)} numbers stored per example "
            f"instead of {_short(dense)}"
        )
        return "\n".join(text)


def _short(n: int) -> str:
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= 10 * factor:
            return f"{n / factor:.0f}{unit}"
        if n >= factor:
            return f"{n / factor:.1f}{unit}"
    return str(n)


def explain(G: Any) -> Explanation:
    """Describe every selected leaf of a recorded matrix."""
    shapes = [tuple(x.shape) for x in G.table]
    rows = tuple(_row(leaf, shapes) for leaf in G.leaves if leaf.selected)
    # Not the sum of the rows: a factor that two parameters share is stored once.
    stored = sum(math.prod(shape) for shape in shapes) // G.num_examples
    return Explanation(rows, G.num_examples, stored)


def _row(leaf: Leaf, shapes: list[tuple[int, ...]]) -> Row:
    described, stored, cost = [], 0, 0
    for term in leaf.terms:
        text, numbers, madds = _term(term, shapes, leaf)
        described.append(text)
        stored += numbers
        cost += madds
    kinds = {term.kind for term in leaf.terms}
    route = "none" if not kinds else "formed" if kinds == {"dense"} else "factors"
    return Row(leaf.path, leaf.shape, tuple(described), route, cost, stored, leaf.reason)


def _term(term: Term, shapes: list[tuple[int, ...]], leaf: Leaf) -> tuple[str, int, int]:
    if term.a is None:
        return "Dense", leaf.size, leaf.size
    sizes: dict[int, int] = {}
    for factor in (term.a, term.d):
        sizes.update(zip(factor.labels, shapes[factor.index], strict=True))
    if term.row is not None:
        sizes[term.row] = leaf.sizes[term.row]
    a = set(term.a.labels) | ({term.row} if term.row is not None else set())
    d = set(term.d.labels)
    own = set(range(len(leaf.sizes)))

    def count(labels: set[int]) -> int:
        return math.prod(sizes[x] for x in labels if x != BATCH)

    stacked, summed = count(a & d & own), count((a & d) - own)
    left, right = count((a - d) & own), count((d - a) & own)
    name = "Rows" if term.row is not None else "Outer"
    layers = f"{stacked} x " if stacked > 1 else ""
    positions = f", T={summed}" if summed > 1 else ""
    text = f"{name}({layers}{left} x {right}{positions})"
    width = (0 if term.row is not None else left) + right
    ids = 1 if term.row is not None else left
    pairs = summed if summed == 1 else summed * summed
    return text, stacked * summed * (ids + right), stacked * pairs * width
