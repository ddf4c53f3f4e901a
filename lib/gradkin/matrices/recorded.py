"""The matrix of per-example gradients, kept as the factors of one backward pass."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices import arguments, explain, factored, sketching, verbs
from gradkin.matrices.leaves import Leaf
from gradkin.matrices.transposed import Transposed
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, PyTree


@functools.partial(
    register_dataclass,
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

    # Arrays; Any, because tree_map and eval_shape put other things in their place.
    table: tuple[Any, ...]
    weights: Any
    losses: Any
    leaves: tuple[Leaf, ...]
    structure: Any
    num_examples: int

    # NumPy arrays on the left of `@` defer to `__rmatmul__`.
    __array_ufunc__ = None

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"

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
        return verbs.squared_norms(self, by=by)

    def norms(self, by: str | None = None) -> Any:
        """``|g_i|`` of every row; its derivative at a zero row is defined as zero."""
        checks.one_of((None, "leaf"), by=by)
        return verbs.norms(self, by=by)

    def frobenius_norm(self) -> Array:
        """Square root of the sum of all squared entries."""
        return verbs.safe_sqrt(jnp.sum(self.squared_norms()))

    def sum(self) -> PyTree:
        """Sum of the rows: a pytree like the parameters."""
        return verbs.weighted_sum(self, None)

    def mean(self) -> PyTree:
        """Mean of the rows: a pytree like the parameters."""
        return verbs.mean(self)

    def second_moment(self) -> PyTree:
        """``sum_i g_i^2``, entry by entry: a pytree like the parameters."""
        return verbs.second_moment(self)

    def __matmul__(self, other: Any) -> Array:
        """``G @ tangent`` is ``[B]``; ``G @ H.T`` is ``[B, B']``."""
        if isinstance(other, Transposed):
            if not isinstance(other.matrix, PerExampleGrads):
                return (other.matrix @ self.T).T  # a streamed matrix makes its own rows
            return verbs.inner(self, other.matrix)
        arguments.not_a_matrix(other)
        return verbs.tangent(self, self.leaves_like(other, "tangent"))

    def __rmatmul__(self, weights: Any) -> PyTree:
        """``weights @ G``: the weighted sum of the rows; ``[K, B]`` weights stack K sums."""
        weights = arguments.row_values(weights, self.num_examples, "weights", leading=True)
        return verbs.weighted_sum(self, weights)

    def gram(self) -> Array:
        """Inner products of all pairs of rows: ``[B, B]``."""
        return verbs.inner(self, self)

    def cosine(self, other: "PerExampleGrads | None" = None) -> Array:
        """Cosines of the angles between rows: ``[B, B']``; a zero row has cosine zero."""
        other = self if other is None else other
        return self.normalize() @ other.normalize().T

    def singular_values(self) -> Array:
        """Singular values, largest first: ``[B]``, the roots of the Gram matrix's eigenvalues.

        Note:
          Squaring halves the digits: values below about 3e-4 of the largest are noise in float32.
        """
        return verbs.singular_values(self.gram())

    def kfac_factors(self) -> PyTree:
        """Kronecker factors ``(left, right)`` of each leaf's second moment: see `factored`."""
        return factored.kfac_factors(self)

    def sketch(self, s: Any) -> Array:
        """Random projections of the rows, ``[B, k]``, whose inner products are unbiased.

        Args:
          s: a sketch, such as ``gradkin.gradients.RademacherSketch(key, 512)``: a pytree with
            ``of_leaf(gradients of one parameter) -> [B, size]``, ``size`` and ``combine``.

        Returns:
          ``[B, size]``, or ``[B, parameters * size]`` with ``combine="concat"``. Which columns are
          selected, how large the batch is and where it lives do not change the projection.
        """
        sketching.check_sketch(s)
        return sketching.sketch(self, s)

    def materialize(self) -> PyTree:
        """All rows multiplied out: a pytree of ``[B, *shape]``."""
        return verbs.materialize(self)

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
        return verbs.clip(self, jnp.asarray(max_norm, float), nonfinite=nonfinite)

    def normalize(self) -> "PerExampleGrads":
        """Rows of norm one; a zero row stays zero."""
        return verbs.normalize(self)

    def scale(self, weights: Any) -> "PerExampleGrads":
        """Multiply row ``i`` by ``weights[i]`` (or every row by one number)."""
        weights = arguments.row_values(weights, self.num_examples, "weights")
        return dataclasses.replace(
            self, weights=weights if self.weights is None else self.weights * weights
        )

    def where(self, mask: Any) -> "PerExampleGrads":
        """Keep the rows where ``mask`` holds; the others become exact zeros, even if NaN."""
        return verbs.where(self, arguments.row_mask(mask, self.num_examples))

    def centered(self) -> "PerExampleGrads":
        """Subtract the mean row from every row: a rank-one correction, nothing is formed."""
        return verbs.centered(self)

    def map(self, fun: Callable[..., Any], *trees: PyTree) -> "PerExampleGrads":
        """Apply ``fun(gradient, *leaves)`` to each parameter of each example.

        For what is not linear, such as the direction Adam would take. The rows are multiplied out.

        Args:
          fun: takes one example's gradient of one parameter and the matching leaf of each tree,
            and returns an array of the gradient's shape.
          *trees: pytrees like the parameters.

        Returns:
          The matrix of the results.
        """
        given = [self.leaves_like(tree, f"trees[{i}]") for i, tree in enumerate(trees)]
        return verbs.map_rows(self, fun, given)

    def precondition(self, left: PyTree = None, right: PyTree = None) -> "PerExampleGrads":
        """Multiply each gradient, seen as a matrix, by ``left`` and ``right``: ``L g R``.

        A leaf of shape ``(*rows, columns)`` is the matrix of ``prod(rows)`` by ``columns``; for a
        stack of layers kept as a stacked product, the stack axes are not rows, and one matrix
        serves all layers or there is one per layer. Factors stay factors: ``A -> L A``,
        ``D -> D R``.

        Args:
          left: a pytree of ``[rows, rows]`` matrices (or ``[layers, rows, rows]``), None for none.
          right: a pytree of ``[columns, columns]`` matrices, None for none.

        Returns:
          The matrix of the results.
        """
        return factored.precondition(self, left, right)

    def select(self, predicate: Callable[[str], bool]) -> "PerExampleGrads":
        """Keep the columns of the parameters whose path (``"layers/0/kernel"``) passes.

        Row weights stay as they are: ``G.clip(c).select(p)`` keeps the weights of whole rows,
        ``G.select(p).clip(c)`` clips what was selected. Unselected leaves are None in results.
        """
        if not callable(predicate):
            raise TypeError(
                f"Expected predicate to be a function of a path, got {predicate!r}; for one "
                "parameter: lambda path: path == 'layers/0/kernel'."
            )
        leaves = [
            leaf if leaf.selected and predicate(leaf.path) else verbs.dropped(leaf)
            for leaf in self.leaves
        ]
        if not any(leaf.selected for leaf in leaves):
            paths = ", ".join(leaf.path for leaf in self.leaves)
            raise ValueError(f"Expected predicate to select at least one of: {paths}.")
        return verbs.pruned(self, leaves)

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
        taken = verbs.take(self, rows)
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
            if not leaf.selected:
                values.append(None)
                continue
            if leaf.path not in given:
                raise ValueError(
                    f"Expected {name} to have the structure of the parameters: "
                    f"{leaf.path!r} is missing."
                )
            value = given[leaf.path]
            if np.shape(value) != leaf.shape:
                raise ValueError(
                    f"Expected {name} to have the shapes of the parameters: at {leaf.path!r} got "
                    f"{np.shape(value)}, expected {leaf.shape}."
                )
            values.append(value)
        return values
