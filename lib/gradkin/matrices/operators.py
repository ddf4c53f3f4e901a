"""One view of any symmetric matrix that can be multiplied: flat vectors in, flat vectors out."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from gradkin.matrices import contraction
from gradkin.typing import Array, PyTree


class Operator(NamedTuple):
    """A symmetric matrix as numerical routines see it.

    Attributes:
      product: flat vector ``[P]`` -> flat vector ``[P]``.
      size: ``P``.
      dtype: of the flat vectors; at least float32.
      flatten: a vector as the matrix takes it (a pytree, for curvature) -> ``[P]``.
      unflatten: the way back.
    """

    product: Callable[[Array], Array]
    size: int
    dtype: np.dtype
    flatten: Callable[[PyTree], Array]
    unflatten: Callable[[Array], PyTree]


def symmetric(A: Any) -> Any:
    """Check that ``A`` is a symmetric matrix, as far as its shape tells; lists become arrays.

    Raises:
      TypeError: per-example gradients, which are not square.
      ValueError: a matrix that is not square.
    """
    if hasattr(A, "linear_map"):
        return A
    if hasattr(A, "squared_norms"):
        raise TypeError(
            "Expected a symmetric matrix, got per-example gradients: write "
            "gradkin.empirical_fisher(G) for G.T @ G / len(G)."
        )
    A = A if hasattr(A, "__matmul__") else jnp.asarray(A)
    if len(A.shape) != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"Expected a symmetric matrix, got shape {tuple(A.shape)}.")
    return A


def operator(A: Any) -> Operator:
    """View a symmetric matrix as an operator on flat vectors.

    Args:
      A: a curvature matrix, a square kernel matrix, or an array ``[n, n]``.

    Returns:
      The operator; what its products have in common has been computed once.
    """
    A = symmetric(A)
    if hasattr(A, "linear_map"):
        like, product = A.like, A.linear_map()
    else:
        dtype = A.dtype if jnp.issubdtype(A.dtype, jnp.floating) else np.float32
        like = jax.ShapeDtypeStruct((A.shape[0],), dtype)
        if isinstance(A, jax.Array | np.ndarray):
            A = jnp.asarray(A, dtype)
        product = lambda v: A @ v
    shapes, structure = jax.tree.flatten(like)
    sizes = [math.prod(s.shape) for s in shapes]
    dtype = functools.reduce(np.promote_types, [s.dtype for s in shapes])
    dtype = contraction.at_least_float32(dtype)

    def flatten(tree: PyTree) -> Array:
        parts = [
            jnp.reshape(x, (-1,)).astype(dtype) for x in map(jnp.asarray, jax.tree.leaves(tree))
        ]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    def unflatten(v: Array) -> PyTree:
        ends = np.cumsum(sizes)
        parts = [
            v[end - n : end].reshape(s.shape).astype(s.dtype)
            for end, n, s in zip(ends, sizes, shapes, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    return Operator(lambda v: flatten(product(unflatten(v))), sum(sizes), dtype, flatten, unflatten)


def hold(op: Operator) -> Operator:
    """The operator as a constant: derivatives do not see it."""
    fun, arrays = _opened(op)
    arrays = [jax.lax.stop_gradient(x) for x in arrays]
    return op._replace(product=lambda v: fun(arrays, v))


def expose(op: Operator) -> Operator:
    """The operator such that matfree's derivatives reach all arrays that it holds.

    matfree takes only floats out of the closure of a product, and JAX forbids the rest to stay
    (labels, masks) where it differentiates. So the rest travels as floats too, bit by bit.
    """
    fun, arrays = _opened(op)
    kinds = [x.dtype for x in arrays]
    floats = [_as_floats(x) if _is_whole(x.dtype) else x for x in arrays]

    def product(v: Array) -> Array:
        pairs = zip(floats, kinds, strict=True)
        return fun([_from_floats(x, kind) if _is_whole(kind) else x for x, kind in pairs], v)

    return op._replace(product=product)


def _opened(op: Operator) -> tuple[Callable[[list[Array], Array], Array], list[Array]]:
    """The product as a function of the arrays that it holds, and those."""
    closed = jax.make_jaxpr(op.product)(jax.ShapeDtypeStruct((op.size,), op.dtype))

    def fun(arrays: list[Array], v: Array) -> Array:
        (result,) = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, arrays))(v)
        return result

    return fun, [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in closed.consts]


def _is_whole(kind: Any) -> bool:
    return jnp.issubdtype(kind, jnp.integer) or jnp.issubdtype(kind, jnp.bool_)


def _as_floats(x: Array) -> Array:
    if x.dtype.itemsize == 1:
        return x.astype(np.float32)  # exact
    same = {2: jnp.float16, 4: jnp.float32, 8: jnp.float64}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, same)


def _from_floats(x: Array, kind: np.dtype) -> Array:
    return x.astype(kind) if kind.itemsize == 1 else jax.lax.bitcast_convert_type(x, kind)


@contextlib.contextmanager
def numerics() -> Iterator[None]:
    """Settings under which matfree and lineax are called.

    They mix dtypes and ranks, which strict settings forbid; and Gram-Schmidt in the short products
    that accelerators take by default would lose orthogonality.
    """
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision("highest"),
    ):
        yield


def dot(a: Array, b: Array) -> Array:
    """``a @ b`` in full precision."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
