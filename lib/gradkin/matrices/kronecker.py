"""Kronecker-factored curvature (K-FAC, EKFAC) of any model, with exact damped inverses."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices import contraction, micro_batches, products, recording
from gradkin.matrices.curvature import CurvatureMatrix
from gradkin.matrices.fisher import sampled_grads
from gradkin.matrices.leaves import Leaf
from gradkin.matrices.operators import operator
from gradkin.matrices.recorded import PerExampleGrads
from gradkin.matrices.solves import Solution
from gradkin.matrices.streamed import StreamedPerExampleGrads
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, PyTree, Scalar

_verb = functools.partial(jax.jit, inline=True)


class Block(NamedTuple):
    """How one parameter is a stack of matrices.

    Split into axes of ``sizes`` and permuted by ``axes``, it is ``[stack, rows, columns]`` of
    ``shape``. ``kind`` is "kronecker", "full" or "diagonal".
    """

    path: str
    kind: str
    like: jax.ShapeDtypeStruct
    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, int, int]

    def matrices(self, x: Array) -> Array:
        return x.reshape(self.sizes).transpose(self.axes).reshape(self.shape)

    def parameter(self, x: Array) -> Array:
        back = np.argsort(self.axes)
        x = x.reshape([self.sizes[axis] for axis in self.axes]).transpose(back)
        return x.reshape(self.like.shape).astype(self.like.dtype)


@functools.partial(
    register_dataclass,
    data_fields=["bases", "eigenvalues"],
    meta_fields=["blocks", "structure"],
)
@dataclasses.dataclass(frozen=True)
class KroneckerMatrix:
    """A block-diagonal positive semi-definite matrix, each block known by its eigenvectors.

    Vectors are pytrees like the parameters. Made by `gradkin.curvature.kfac` and
    `gradkin.curvature.ekfac`; an immutable pytree that passes through `jit`.

    Attributes:
      bases: ``(left, right)`` eigenvectors of each parameter as columns, ``[stack, rows, rows]``
        and ``[stack, columns, columns]``; None for the identity.
      eigenvalues: of each parameter, ``[stack, rows, columns]``.
      blocks: static description of each parameter.
      structure: tree structure of the parameters.
    """

    bases: tuple[tuple[Any, Any], ...]
    eigenvalues: tuple[Any, ...]
    blocks: tuple[Block, ...]
    structure: Any

    __array_ufunc__ = None

    def __repr__(self) -> str:
        kinds = [block.kind for block in self.blocks]
        counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        return f"{type(self).__name__}({counted}, shape={self.shape})"

    @property
    def like(self) -> PyTree:
        """Shapes and dtypes of the parameters."""
        return jax.tree.unflatten(self.structure, [block.like for block in self.blocks])

    @property
    def shape(self) -> tuple[int, int]:
        """``(parameters, parameters)``."""
        size = sum(math.prod(block.shape) for block in self.blocks)
        return size, size

    @property
    def dtype(self) -> np.dtype:
        """The dtype that all parameters promote to."""
        kinds = [np.dtype(block.like.dtype) for block in self.blocks]
        return functools.reduce(np.promote_types, kinds)

    @property
    def T(self) -> "KroneckerMatrix":
        """The transpose: the matrix itself."""
        return self

    def linear_map(self) -> Callable[[PyTree], PyTree]:
        """The function ``v -> matrix @ v``."""
        return lambda v: _apply(self, v, self.eigenvalues)

    def __matmul__(self, vector: PyTree) -> PyTree:
        """``matrix @ v``: a pytree like the parameters."""
        checks.same_structure(vector, self.like, name="the vector", like_name="the parameters")
        return _product(self, vector)

    def __rmatmul__(self, vector: PyTree) -> PyTree:
        """``v @ matrix``, which is ``matrix @ v``."""
        return self @ vector

    def materialize(self) -> Array:
        """The matrix as an array ``[P, P]``, in the order of the leaves."""
        return _materialize(self)

    def solve(self, b: PyTree, *, damping: Scalar) -> Solution:
        """The inverse-vector product ``(matrix + damping I)^-1 b``, exact.

        Args:
          b: a pytree like the parameters.
          damping: added to every eigenvalue, > 0 unless the matrix has full rank.

        Returns:
          `Solution` with residual 0 after 0 steps, as the iterative solvers return it.

        Raises:
          ValueError: negative damping, or ``b`` unlike the parameters.
        """
        checks.non_negative(damping=damping)
        checks.same_structure(b, self.like, name="b", like_name="the parameters")
        return Solution(_inverse(self, b, damping), jnp.zeros(()), jnp.zeros((), int))


def kfac(F: Any, *, full_size: int = 256) -> KroneckerMatrix:
    """K-FAC: each weight's block as a Kronecker product (Martens & Grosse 2015, eq. 1).

    ``E[a a^T] (x) E[g g^T]`` for a weight whose gradient is ``a g^T``; exact for deep linear
    networks under squared error. The factors are read off the terms of the per-example gradients,
    so any JAX function will do, and no layer is registered. Leaves that are no single product get
    their full block if they are small, else its diagonal.

    Args:
      F: a matrix made by `gradkin.fisher`, whose sampled labels are used; or per-example gradients
        of a loss with labels drawn from the model (labels of the data give the empirical
        Fisher's). With ``batch_size`` the factors are summed over micro-batches.
      full_size: parameters up to which a bias, scale or other unfactored leaf gets its full block.

    Returns:
      `KroneckerMatrix`: ``@`` and ``solve(b, damping=...)``.

    Raises:
      TypeError: neither of the two.
      ValueError: streamed gradients that were clipped, scaled or selected.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import curvature
      >>> predict = lambda params, x: x @ params["w"]
      >>> F = gradkin.fisher(predict, curvature.squared_error)
      >>> x, params = jax.random.normal(jax.random.key(0), (9, 4)), {"w": jnp.ones((4, 3))}
      >>> K = curvature.kfac(F(jax.random.key(1), params, x))
      >>> K
      KroneckerMatrix(1 kronecker, shape=(12, 12))
      >>> step = K.solve({"w": jnp.ones((4, 3))}, damping=0.1).value

    References:
      Martens & Grosse (2015), "Optimizing Neural Networks with Kronecker-factored Approximate
      Curvature", arXiv:1503.05671. :cite:`martens:15`

      Eschenhagen et al. (2023), "Kronecker-Factored Approximate Curvature for Modern Neural
      Network Architectures", arXiv:2311.00636, section 3.2 (expand). :cite:`eschenhagen:23`

    Note:
      Damping is added to the eigenvalues of the Kronecker product, not split between its factors.
      Blocks between parameters, a weight and its bias too, are zero.
    """
    return _kronecker(_gradients(F), full_size=full_size, corrected=False)


def ekfac(F: Any, *, full_size: int = 256) -> KroneckerMatrix:
    """EKFAC: K-FAC's eigenvectors with the best eigenvalues (George et al. 2018, eq. 9).

    The eigenvalues are ``E[(U_A^T g U_G)^2]``, entry by entry: of all matrices with these
    eigenvectors the nearest to the block of ``G.T @ G / B``, whose trace it shares.

    Args:
      F: see `kfac`.
      full_size: see `kfac`.

    Returns:
      `KroneckerMatrix`: ``@`` and ``solve(b, damping=...)``.

    Raises:
      TypeError: see `kfac`.
      ValueError: see `kfac`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import curvature
      >>> G = gradkin.per_example_grads(lambda w, x: jnp.sum(jnp.tanh(x @ w)))
      >>> x = jax.random.normal(jax.random.key(0), (9, 4))
      >>> E = curvature.ekfac(G(jnp.ones((4, 3)), x))
      >>> E.shape
      (12, 12)

    References:
      George et al. (2018), "Fast Approximate Natural Gradient Descent in a Kronecker-factored
      Eigenbasis", arXiv:1806.03884. :cite:`george:18`
    """
    return _kronecker(_gradients(F), full_size=full_size, corrected=True)


def _gradients(F: Any) -> PerExampleGrads | StreamedPerExampleGrads:
    if isinstance(F, CurvatureMatrix):
        F = sampled_grads(F)
    if not isinstance(F, PerExampleGrads | StreamedPerExampleGrads):
        raise TypeError(
            "Expected a matrix made by gradkin.fisher, or per-example gradients, got "
            f"{type(F).__name__}."
        )
    if isinstance(F, StreamedPerExampleGrads) and F.operations:
        raise ValueError(
            "Expected streamed gradients as they were made; clip, scale or select recorded ones."
        )
    return F


@functools.partial(_verb, static_argnames=("full_size", "corrected"))
def _kronecker(G: Any, *, full_size: int, corrected: bool) -> KroneckerMatrix:
    outline = _outline(G)
    leaves = [leaf for leaf in outline.leaves if leaf.selected]
    blocks = tuple(_block(leaf, full_size) for leaf in leaves)
    sums = _sum(G, functools.partial(_moments, blocks))
    bases, eigenvalues = [], []
    for block, moments in zip(blocks, sums, strict=True):
        basis, values = _eigen(block, [m / G.num_examples for m in moments])
        bases.append(basis)
        eigenvalues.append(values)
    if corrected:
        squares = _sum(G, functools.partial(_rotated_squares, blocks, bases))
        for number, block in enumerate(blocks):
            if block.kind == "kronecker":
                eigenvalues[number] = block.matrices(squares[block.path]) / G.num_examples
    structure = jax.tree.structure(outline.tree([leaf.path for leaf in outline.leaves]))
    return KroneckerMatrix(tuple(bases), tuple(eigenvalues), blocks, structure)


def _sum(G: Any, fun: Callable[[PerExampleGrads], PyTree]) -> PyTree:
    """``fun`` of the recorded matrix; of a streamed one, the sum over its micro-batches."""
    if isinstance(G, PerExampleGrads):
        return fun(G)
    return micro_batches.total(
        lambda args, size: fun(recording.record(G.spec, args, num_examples=size)[1]),
        G.args,
        in_axes=recording.mapped_axes(G.spec),
        num_examples=G.num_examples,
        batch_size=G.batch_size,
    )


def _outline(G: Any) -> PerExampleGrads:
    """The matrix, or one like it: only its static description is looked at."""
    if isinstance(G, PerExampleGrads):
        return G
    record = functools.partial(recording.record, G.spec, num_examples=G.num_examples)
    return jax.eval_shape(record, G.args)[1]


def _wide(x: Array) -> Array:
    return x.astype(contraction.at_least_float32(x.dtype))


def _block(leaf: Leaf, full_size: int) -> Block:
    if len(leaf.terms) == 1 and leaf.terms[0].kind == "outer":
        return _factored(leaf, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    kind = "full" if leaf.size <= full_size else "diagonal"
    like = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return Block(leaf.path, kind, like, (leaf.size,), (0,), (1, leaf.size, 1))


def _moments(blocks: tuple[Block, ...], G: PerExampleGrads) -> list[list[Array]]:
    """For each parameter, sums over examples of what its block is made of."""
    found = G.structure.flatten_up_to(G.kfac_factors())
    factors = {leaf.path: pair for leaf, pair in zip(G.leaves, found, strict=True)}
    alone, results = G.by_leaf(), []
    for block in blocks:
        if block.kind == "kronecker":
            moments = [_wide(x) * G.num_examples for x in factors[block.path]]
        elif block.kind == "full":
            (rows,) = jax.tree.leaves(alone[block.path].materialize())
            rows = _wide(rows.reshape(G.num_examples, -1))
            moments = [jnp.matmul(rows.T, rows, precision=products.HIGHEST)]
        else:
            (squares,) = jax.tree.leaves(alone[block.path].second_moment())
            moments = [_wide(squares)]
        results.append(moments)
    return results


def _eigen(block: Block, moments: list[Array]) -> tuple[tuple[Any, Any], Array]:
    """Eigenvectors and eigenvalues of a block; negative ones are rounding errors."""
    if block.kind == "diagonal":
        return (None, None), block.matrices(moments[0])
    stack, rows, columns = block.shape
    values, left = jnp.linalg.eigh(moments[0].reshape(stack, rows, rows))
    values = jnp.maximum(values, 0)[:, :, None]
    if block.kind == "full":
        return (left, None), values
    right_values, right = jnp.linalg.eigh(moments[1].reshape(stack, columns, columns))
    return (left, right), values * jnp.maximum(right_values, 0)[:, None, :]


def _rotated_squares(
    blocks: tuple[Block, ...], bases: list[Any], G: PerExampleGrads
) -> dict[str, Array]:
    """``sum_i (U_A^T g_i U_G)^2`` of each parameter with a Kronecker block."""
    leaves = {leaf.path: leaf for leaf in G.leaves}
    squares = {}
    for block, basis in zip(blocks, bases, strict=True):
        if block.kind == "kronecker":
            leaf, table = _rotated(G, leaves[block.path], block, basis)
            squares[block.path] = _wide(
                products.second_moment(leaf, table, G.weights, G.num_examples)
            )
    return squares


def _factored(leaf: Leaf, like: jax.ShapeDtypeStruct) -> Block:
    """The axes of a leaf that is one product: of both factors, of the left, of the right."""
    (term,) = leaf.terms
    assert term.a is not None
    own = range(len(leaf.sizes))
    left = [x for x in term.a.labels if x in own]
    right = [x for x in term.d.labels if x in own]
    stack = [x for x in left if x in right]
    groups = [stack, *([x for x in side if x not in stack] for side in (left, right))]
    shape = tuple(math.prod(leaf.sizes[x] for x in group) for group in groups)
    axes = tuple(x for group in groups for x in group)
    assert len(shape) == 3
    return Block(leaf.path, "kronecker", like, leaf.sizes, axes, shape)


def _rotated(
    G: PerExampleGrads, leaf: Leaf, block: Block, basis: tuple[Array, Array]
) -> tuple[Leaf, list[Array]]:
    """The leaf with its factors in the eigenbases, which are the same products of factors."""
    (term,) = leaf.terms
    assert term.a is not None
    table = list(G.table)
    stack = [x for x in block.axes if x in term.a.labels and x in term.d.labels]
    for side, matrix in zip(("a", "d"), basis, strict=True):
        factor = getattr(term, side)
        own = [x for x in block.axes if x in factor.labels and x not in stack]
        sizes = [leaf.sizes[x] for x in own]
        matrix = matrix.reshape([*(leaf.sizes[x] for x in stack), *sizes, *sizes])
        new = [("new", x) for x in own]
        value = contraction.contract(
            table[factor.index],
            factor.labels,
            matrix.astype(table[factor.index].dtype),
            [*stack, *own, *new],
            [("new", x) if x in own else x for x in factor.labels],
            precision=products.HIGHEST,
        )
        term = term._replace(**{side: factor._replace(index=len(table))})
        table.append(value)
    return leaf._replace(terms=(term,)), table


def _apply(K: KroneckerMatrix, vector: PyTree, eigenvalues: tuple[Array, ...]) -> PyTree:
    """The matrix with these eigenvalues times a vector."""
    results = []
    multiply = functools.partial(jnp.matmul, precision=products.HIGHEST)
    for block, (left, right), values, x in zip(
        K.blocks, K.bases, eigenvalues, jax.tree.leaves(vector), strict=True
    ):
        x = block.matrices(jnp.asarray(x).astype(values.dtype))
        x = x if left is None else multiply(left.mT, x)
        x = x if right is None else multiply(x, right)
        x = x * values
        x = x if left is None else multiply(left, x)
        x = x if right is None else multiply(x, right.mT)
        results.append(block.parameter(x))
    return jax.tree.unflatten(K.structure, results)


@_verb
def _product(K: KroneckerMatrix, vector: PyTree) -> PyTree:
    return _apply(K, vector, K.eigenvalues)


@_verb
def _inverse(K: KroneckerMatrix, b: PyTree, damping: Scalar) -> PyTree:
    inverses = tuple(1 / (x + jnp.asarray(damping, x.dtype)) for x in K.eigenvalues)
    return _apply(K, b, inverses)


@_verb
def _materialize(K: KroneckerMatrix) -> Array:
    op = operator(K)
    return jax.lax.map(op.product, jnp.eye(op.size, dtype=op.dtype)).T
