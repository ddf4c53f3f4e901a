"""Solve ``(H + damping B) d = g`` for whatever an approximate Hessian is written as."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular

from gradkin import checks
from gradkin.matrices import solves
from gradkin.matrices.contraction import at_least_float32
from gradkin.typing import Array, PyTree, Scalar


class RankOne(NamedTuple):
    """The matrix ``scale * vector vector^T``, such as the Fisher term of one gradient.

    Attributes:
      scale: a number.
      vector: a pytree like the parameters.
    """

    scale: Scalar
    vector: PyTree


class Metric(NamedTuple):
    """The matrix ``B`` of the norm ``|d|^2 = d^T B d``.

    Attributes:
      matrix: ``[P, P]``, symmetric positive definite.
      factor: its lower Cholesky factor.
    """

    matrix: Array
    factor: Array


def metric_of(matrix: Any) -> Metric | None:
    """The metric with its factor; None stands for the identity.

    Raises:
      ValueError: a matrix that is not square, symmetric and positive definite (where it can be
        read now; a traced one gives NaN).
    """
    if matrix is None:
        return None
    if np.ndim(matrix) != 2 or np.shape(matrix)[0] != np.shape(matrix)[1]:
        raise ValueError(f"Expected metric to be a square matrix, got shape {np.shape(matrix)}.")
    matrix = jnp.asarray(matrix)
    factor = jnp.linalg.cholesky(matrix)
    if checks.is_concrete(factor):
        host = np.asarray(matrix)
        if not np.allclose(host, host.T, rtol=1e-5) or not np.all(np.isfinite(factor)):
            raise ValueError("Expected metric to be symmetric and positive definite.")
    return Metric(matrix, factor)


def dual_norm(g: Array, metric: Metric | None) -> Array:
    """``sqrt(g^T B^-1 g)`` of a flat gradient."""
    if metric is not None:
        g = solve_triangular(metric.factor, g, lower=True)
    return jnp.sqrt(jnp.sum(jnp.square(g)))


def check_matrix(H: Any, size: int, metric: Metric | None) -> None:
    """Raise ValueError unless the curvature and the metric fit ``size`` parameters."""
    if metric is not None and metric.matrix.shape[0] != size:
        raise ValueError(
            f"Expected metric to have shape {(size, size)}, got {metric.matrix.shape}."
        )
    if H is None:
        return
    if isinstance(H, RankOne):
        got = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(H.vector))
        if got != size:
            raise ValueError(f"Expected the rank-one vector to have {size} entries, got {got}.")
        return
    if tuple(np.shape(H)) != (size, size):
        raise ValueError(
            f"Expected the curvature to have shape {(size, size)}, got {tuple(np.shape(H))}."
        )
    if metric is not None and hasattr(H, "linear_map"):
        raise ValueError("Expected metric=None where the curvature is a lazy matrix.")


def damped_step(
    H: Any,
    g: Array,
    damping: Array,
    *,
    metric: Metric | None,
    unravel: Callable[[Array], PyTree],
    rtol: Scalar,
    max_steps: int,
) -> Array:
    """``(H + damping B)^-1 g``; not finite, or no direction of ascent, where that is indefinite.

    Args:
      H: None for zero, a `RankOne`, a lazy matrix (conjugate gradients), or an array ``[P, P]``
        (Cholesky).
      g: the gradient, flat.
      damping: factor of ``B``.
      metric: ``B``; None for the identity.
      unravel: flat vector -> pytree like the parameters.
      rtol: of conjugate gradients.
      max_steps: of conjugate gradients.
    """
    if H is None:
        return _inverse(metric, g) / damping
    if isinstance(H, RankOne):
        vector = raveled(H.vector)[0].astype(g.dtype)
        base, turned = (_inverse(metric, v) / damping for v in (g, vector))
        scale = jnp.asarray(H.scale, g.dtype)
        pivot = 1 + scale * jnp.sum(vector * turned)
        # Sherman & Morrison (1950); a pivot that is not positive tells an indefinite matrix.
        step = base - scale * turned * (jnp.sum(vector * base) / pivot)
        return jnp.where(pivot > 0, step, jnp.nan)
    if hasattr(H, "linear_map"):
        found = solves.solve(H, unravel(g), damping=damping, rtol=rtol, max_steps=max_steps)
        return raveled(found.value)[0]
    matrix = jnp.asarray(H).astype(g.dtype)
    shift = jnp.eye(g.size, dtype=g.dtype) if metric is None else metric.matrix.astype(g.dtype)
    factor = jnp.linalg.cholesky(matrix + damping * shift)  # NaN where indefinite
    return cho_solve((factor, True), g)


def raveled(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """All leaves as one vector, at least float32, and the way back to their shapes and dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    dtype = at_least_float32(np.result_type(*(leaf.dtype for leaf in leaves)))
    ends = np.cumsum([leaf.size for leaf in leaves])

    def unravel(flat: Array) -> PyTree:
        parts = [
            flat[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype)
            for end, leaf in zip(ends, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    return jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in leaves]), unravel


def _inverse(metric: Metric | None, g: Array) -> Array:
    return g if metric is None else cho_solve((metric.factor.astype(g.dtype), True), g)
