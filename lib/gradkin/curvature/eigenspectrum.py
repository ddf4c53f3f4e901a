"""The shape of a spectrum: bulk around zero, outliers, and the space that they span."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices.floating import floating
from gradkin.matrices.lanczos import Eigenpairs
from gradkin.matrices.operators import dot, operator, symmetric
from gradkin.typing import Array, ArrayLike, PyTree, Scalar


def full_spectrum(A: Any, *, max_dim: int = 5000) -> Eigenpairs:
    """All eigenpairs of a small matrix, from the matrix written down.

    Args:
      A: symmetric matrix: curvature, kernel or array ``[P, P]``. It is symmetrised, against
        rounding.
      max_dim: largest ``P`` allowed: memory grows as ``P^2``, time as ``P^3``.

    Returns:
      `Eigenpairs` with the largest first, ``[P]`` values; vectors in the form that ``A``
      multiplies, stacked along a new first axis.

    Raises:
      ValueError: ``P`` above ``max_dim``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> curvature.full_spectrum(jnp.diag(jnp.array([1.0, 3.0, -2.0]))).values.tolist()
      [3.0, 1.0, -2.0]

    References:
      Sagun et al. (2017), "Empirical Analysis of the Hessian of Over-Parametrized Neural
      Networks", arXiv:1706.04454. :cite:`hessian-overparametrized`
    """
    size = symmetric(A).shape[0]
    if size > max_dim:
        raise ValueError(
            f"Expected at most max_dim={max_dim} rows for a matrix that is written down, got "
            f"{size}; see top_eigenpairs and spectral_density, or raise max_dim."
        )
    op = operator(A)
    full = A.materialize() if hasattr(A, "materialize") else jnp.asarray(A, op.dtype)
    full = full.astype(op.dtype)
    full = 0.5 * (full + full.T)
    values, columns = jnp.linalg.eigh(full)
    values, rows = values[::-1], columns[:, ::-1].T
    residuals = jnp.linalg.norm(dot(rows, full) - values[:, None] * rows, axis=1)
    return Eigenpairs(values, jax.vmap(op.unflatten)(rows), residuals)


def near_zero_share(eigenvalues: Float[ArrayLike, " size"], *, tolerance: Scalar = 0.05) -> Array:
    """Share of eigenvalues below ``tolerance`` times the largest, in absolute value.

    Args:
      eigenvalues: ``[P]``.
      tolerance: relative to the largest absolute value, > 0.

    Returns:
      A scalar in [0, 1]; 1 where all are zero.

    Raises:
      ValueError: ``tolerance`` not positive, or an eigenvalue that is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> float(curvature.near_zero_share(jnp.array([10.0, 1.0, 0.1, -0.1])))
      0.5

    References:
      Sagun et al. (2017), arXiv:1706.04454. :cite:`hessian-overparametrized`
    """
    checks.positive(tolerance=tolerance)
    checks.rank(1, eigenvalues=eigenvalues)
    _check_known(eigenvalues)
    size = jnp.abs(floating(eigenvalues))
    bound = jnp.asarray(tolerance, size.dtype) * jnp.max(size)
    small = (size < bound) | (size == 0)
    return jnp.where(jnp.isnan(bound), bound, jnp.mean(small.astype(size.dtype)))


def top_share(eigenvalues: Float[ArrayLike, " size"], k: int) -> Array:
    """Sum of the ``k`` largest eigenvalues over the trace.

    Args:
      eigenvalues: ``[P]``, in any order.
      k: how many, from 1 to ``P``.

    Returns:
      A scalar; above 1 where the others sum to less than zero, NaN where the trace is zero.

    Raises:
      ValueError: ``k`` out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> float(curvature.top_share(jnp.array([1.0, 6.0, 1.0]), 1))
      0.75

    References:
      Sagun et al. (2017), arXiv:1706.04454. :cite:`hessian-overparametrized`
    """
    checks.rank(1, eigenvalues=eigenvalues)
    values = jnp.asarray(eigenvalues)
    if not 1 <= k <= values.shape[0]:
        raise ValueError(f"Expected k from 1 to {values.shape[0]}, the size, got {k}.")
    return jnp.sum(jnp.sort(values)[-k:]) / jnp.sum(values)


def count_outliers(
    eigenvalues: Float[ArrayLike, " size"], *, rule: str = "gap", num_samples: int | None = None
) -> Array:
    """How many of the largest eigenvalues stand apart from the bulk.

    - "gap": those before the largest ratio of successive eigenvalues, among the upper half of the
      positive ones;
    - "quantile": those above five times the 0.9 quantile of absolute values;
    - "marchenko-pastur": those above the edge ``s^2 (1 + sqrt(P / n))^2`` of a covariance of ``n``
      samples of pure noise with the same mean eigenvalue ``s^2``.

    The rules disagree where the bulk has a tail, as those of neural networks have.

    Args:
      eigenvalues: ``[P]``, in any order; at least 2.
      rule: one of the above.
      num_samples: ``n``, for "marchenko-pastur": rows whose second moment the matrix is.

    Returns:
      An integer scalar.

    Raises:
      ValueError: an argument not as above.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> int(curvature.count_outliers(jnp.array([9.0, 8.0, 0.3, 0.2, 0.1, 0.1])))
      2

    References:
      Sagun et al. (2017), arXiv:1706.04454. :cite:`hessian-overparametrized`

      Marchenko & Pastur (1967), "Distribution of eigenvalues for some sets of random matrices".
      :cite:`marchenko:67`

    Note:
      The paper counts by eye.
    """
    checks.one_of(("gap", "quantile", "marchenko-pastur"), rule=rule)
    checks.rank(1, eigenvalues=eigenvalues)
    _check_known(eigenvalues)
    values = jnp.sort(floating(eigenvalues))[::-1]
    size = values.shape[0]
    if size < 2:
        raise ValueError(f"Expected at least 2 eigenvalues, got {size}.")
    if rule == "marchenko-pastur":
        # Not `positive_integer`, after which it may still be None to a type checker.
        if not checks.is_integer(num_samples, least=1):
            raise ValueError(f"Expected num_samples to be a positive integer, got {num_samples!r}.")
        edge = jnp.mean(values) * (1 + math.sqrt(size / num_samples)) ** 2
        return jnp.sum(values > edge, dtype=np.int32)
    if rule == "quantile":
        return jnp.sum(values > 5 * jnp.quantile(jnp.abs(values), 0.9), dtype=np.int32)
    positive = values > 0
    # A gap counts while its lower end is positive and in the upper half of the positive ones.
    inside = positive[1:] & (2 * jnp.arange(1, size) <= jnp.sum(positive, dtype=np.int32))
    ratios = jnp.where(inside, values[:-1] / jnp.where(inside, values[1:], 1), 0)
    return jnp.where(jnp.max(ratios) > 1, jnp.argmax(ratios) + 1, 0).astype(np.int32)


def _check_known(eigenvalues: Any) -> None:
    """Raise ValueError where one is NaN, as `top_eigenpairs` returns for what it did not find."""
    if checks.is_concrete(eigenvalues) and np.isnan(np.asarray(eigenvalues)).any():
        raise ValueError("Expected eigenvalues without NaN: leave out those that were not found.")


def subspace_overlap(U: PyTree, V: PyTree) -> Array:
    """Overlap of two subspaces: ``|U V^T|_F^2 / k``, from 0 (orthogonal) to 1 (the same).

    Two random subspaces of dimension ``k`` in ``P`` dimensions overlap by ``k / P``.

    Args:
      U: orthonormal vectors stacked along the first axis, arrays ``[k, P]`` or pytrees such as
        ``top_eigenpairs(...).vectors``.
      V: the same structure, as many vectors.

    Returns:
      A scalar.

    Raises:
      ValueError: structures or numbers of vectors that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> axes = jnp.eye(3)
      >>> float(curvature.subspace_overlap(axes[:2], axes[1:]))
      0.5

    References:
      Sagun et al. (2017), arXiv:1706.04454. :cite:`hessian-overparametrized`
    """
    checks.same_structure(V, U, name="V", like_name="U")

    def rows(tree: PyTree) -> list[Array]:
        return [jnp.reshape(leaf, (leaf.shape[0], -1)) for leaf in jax.tree.leaves(tree)]

    products = [dot(u, v.T) for u, v in zip(rows(U), rows(V), strict=True)]
    total = jax.tree.reduce(jnp.add, products)
    return jnp.sum(jnp.square(total)) / total.shape[0]
