"""Linear assignment: the permutation that gains most."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Float, Int

from gradkin import checks
from gradkin.typing import Array


def linear_assignment(
    scores: Float[Array, "*batch n n"], *, solver: str = "scipy"
) -> Int[Array, "*batch n"]:
    """The permutation of greatest total score (linear assignment problem).

    .. math:: \\max_\\pi \\sum_i S_{i, \\pi(i)}

    Args:
      scores: ``[..., n, n]``; ``scores[i, j]`` is gained where i is assigned to j.
      solver: "scipy" calls `scipy.optimize.linear_sum_assignment` on the host, out of compiled
        code too; "optax" stays on the device (`optax.assignment`), for backends without calls to
        the host. Both are exact; where several permutations are best they may differ.

    Returns:
      ``[..., n]`` int32, to what each i is assigned: the identity where a score is not finite. No
      derivative passes.

    Raises:
      ValueError: scores that are not square, an unknown solver.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> curvature.linear_assignment(jnp.array([[1.0, 5.0], [0.0, 3.0]])).tolist()
      [1, 0]

    References:
      Crouse (2016), "On Implementing 2D Rectangular Assignment Algorithms", IEEE Transactions on
      Aerospace and Electronic Systems 52. :cite:`crouse:16`
    """
    checks.one_of(("scipy", "optax"), solver=solver)
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"Expected square scores, got scores.shape={scores.shape}.")
    scores = lax.stop_gradient(scores)
    scores = scores.astype(np.promote_types(scores.dtype, np.float32))
    if solver == "scipy":
        shape = jax.ShapeDtypeStruct(scores.shape[:-1], np.int32)
        return jax.pure_callback(assign_on_host, shape, scores, vmap_method="expand_dims")
    finite = jnp.isfinite(scores).all((-2, -1))[..., None]
    solved = jnp.vectorize(assign_on_device, signature="(n,n)->(n)")(
        jnp.where(finite[..., None], scores, jnp.zeros_like(scores))
    )
    identity = jnp.broadcast_to(jnp.arange(scores.shape[-1], dtype=np.int32), solved.shape)
    return jnp.where(finite, solved, identity)


def assign_on_host(scores: Array) -> np.ndarray:
    """The permutations of a batch of scores, by SciPy."""
    from scipy.optimize import linear_sum_assignment

    table = np.asarray(scores)
    found = np.empty(table.shape[:-1], np.int32)
    for index in np.ndindex(table.shape[:-2]):
        one = table[index]
        finite = np.isfinite(one).all()
        found[index] = linear_sum_assignment(one, True)[1] if finite else np.arange(len(one))
    return found


def assign_on_device(scores: Array) -> Array:
    """The permutation of one matrix of scores, by optax."""
    # What optax mixes, strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows, columns = optax.assignment.hungarian_algorithm(-scores)
    return jnp.zeros(len(rows), np.int32).at[rows].set(columns.astype(np.int32))
