"""Linear systems with a symmetric positive definite matrix, by conjugate gradients."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices.operators import numerics, operator, symmetric
from gradkin.typing import Array, PyTree, Scalar

_verb = functools.partial(jax.jit, inline=True)


class Solution(NamedTuple):
    """What conjugate gradients ended with.

    Attributes:
      value: ``x``, in the form that the matrix multiplies.
      residual_norm: ``|b - (A + damping I) x| / |b|``; zero where ``b`` is zero. Look at it: it is
        all that tells convergence, and an indefinite matrix need not converge.
      num_steps: iterations taken.
    """

    value: PyTree
    residual_norm: Array
    num_steps: Array


def solve(
    A: Any, b: PyTree, *, damping: Scalar = 0.0, rtol: Scalar = 1e-5, max_steps: int = 500
) -> Solution:
    """Solve ``(A + damping I) x = b`` by conjugate gradients.

    Args:
      A: symmetric matrix: curvature, kernel or array; positive definite once damped.
      b: right-hand side, in the form that the matrix multiplies.
      damping: added to every eigenvalue, >= 0.
      rtol: stop where no entry of the residual exceeds this part of the greatest of ``b``.
      max_steps: stop there at the latest.

    Returns:
      `Solution`; where it did not converge, the last iterate and its residual.

    Raises:
      ValueError: negative damping, or tolerance or number of steps that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> A = jnp.diag(jnp.array([1.0, 3.0]))
      >>> curvature.solve(A, jnp.array([2.0, 4.0]), damping=1.0).value.tolist()
      [1.0, 1.0]

    References:
      Hestenes & Stiefel (1952), "Methods of conjugate gradients for solving linear systems".
      :cite:`hestenes:52`
    """
    symmetric(A)
    checks.non_negative(damping=damping)
    checks.positive(rtol=rtol, max_steps=max_steps)
    if hasattr(A, "like"):
        checks.same_structure(b, A.like, name="b", like_name="the parameters")
    elif jnp.shape(b) != tuple(A.shape[:1]):
        raise ValueError(f"Expected b to have shape {tuple(A.shape[:1])}, got {jnp.shape(b)}.")
    return _solve(A, b, damping, rtol, max_steps=max_steps)


@functools.partial(_verb, static_argnames="max_steps")
def _solve(A: Any, b: PyTree, damping: Scalar, rtol: Scalar, *, max_steps: int) -> Solution:
    import lineax

    op = operator(A)
    b = op.flatten(b)
    shift: Any = jnp.asarray(damping, op.dtype)
    tolerance: Any = jnp.asarray(rtol, op.dtype)

    def damped(x: Array) -> Array:
        return op.product(x) + shift * x

    with numerics():
        matrix = lineax.FunctionLinearOperator(
            damped, jax.ShapeDtypeStruct(b.shape, b.dtype), lineax.positive_semidefinite_tag
        )
        # An absolute tolerance: a relative one divides by the entries of b, of which some are zero.
        most = jnp.max(jnp.abs(b))
        tolerance = tolerance * jnp.where(most > 0, most, jnp.ones_like(most))
        # Residuals computed anew never fall below rounding, and the search goes astray there.
        solver = lineax.CG(rtol=0.0, atol=tolerance, max_steps=max_steps, stabilise_every=None)
        # lineax turns to NaN where <p, A p> falls below 100 eps P <r, z>, as if eigenvalues were
        # about one. A multiple of the identity as preconditioner moves that to 2^-24, nothing else.
        least = 100 * float(np.finfo(op.dtype).eps) * op.size
        scale = max(1.0, 2.0 ** (24 + math.ceil(math.log2(least))))
        multiple = lineax.FunctionLinearOperator(
            lambda r: scale * r,
            jax.ShapeDtypeStruct(b.shape, b.dtype),
            lineax.positive_semidefinite_tag,
        )
        options = {"preconditioner": multiple}
        found = lineax.linear_solve(matrix, b, solver, options=options, throw=False)
    norm = jnp.linalg.norm(b)
    zero = norm == 0
    rest = jnp.linalg.norm(b - damped(found.value))
    residual = jnp.where(zero, rest, rest / jnp.where(zero, jnp.ones_like(norm), norm))
    return Solution(op.unflatten(found.value), residual, jnp.asarray(found.stats["num_steps"]))
