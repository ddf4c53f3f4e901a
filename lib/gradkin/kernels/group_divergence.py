"""How much groups differ in a model's outputs."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gradkin import checks
from gradkin.kernels.functions import Gaussian
from gradkin.matrices.kernel import kernel_matrix
from gradkin.typing import Array, ArrayLike, Scalar

# Probabilities below count as this.
FLOOR = 1e-10


def group_divergence(
    values: Float[ArrayLike, " n"],
    groups: Int[ArrayLike, " n"],
    *,
    num_groups: int,
    bandwidth: Scalar = 0.15,
    num_points: int = 1000,
    equal: bool = False,
) -> Float[Array, ""]:
    """Generalized Jensen-Shannon divergence of outputs by group, in bits (Lin 1991, eq. 5.1).

    .. math:: H\\Bigl(\\sum_g \\pi_g\\, p_g\\Bigr) - \\sum_g \\pi_g\\, H(p_g)

    where ``p_g`` is the Gaussian kernel density of the outputs of group g at equally spaced points
    from the least to the greatest output, scaled to sum 1.

    Args:
      values: ``[n]`` outputs.
      groups: ``[n]`` integers from 0 to ``num_groups - 1``.
      num_groups: G; a group without members counts nothing.
      bandwidth: standard deviation of the kernel, in units of the outputs.
      num_points: at how many points densities are compared.
      equal: weigh groups equally; False by their sizes.

    Returns:
      A scalar from 0, for equal distributions, to the entropy of the groups' weights, at most
      ``log2 G``, for disjoint ones.

    Raises:
      ValueError: groups outside the range, a bandwidth not positive, different lengths.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> apart = jnp.array([0.0, 0.0, 9.0, 9.0])
      >>> groups = jnp.array([0, 0, 1, 1])
      >>> round(float(kernels.group_divergence(apart, groups, num_groups=2)), 3)
      1.0

    References:
      Lin (1991), "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on
      Information Theory 37. :cite:`lin:91`

      Lee, Antonio, Avanzi, Marchi & Zhou (2025), "Machine Learning with Multitype Protected
      Attributes: Intersectional Fairness through Regularisation", arXiv:2509.08163.
      :cite:`ccdcov-fairness`

    Note:
      The bandwidth is fixed, so shrinking all outputs lowers the divergence: report their standard
      deviation, or `explained_by_groups`, beside it.
    """
    values = jnp.asarray(values)
    members = membership(values, groups, num_groups)
    sizes = jnp.sum(members, axis=0)
    grid = jnp.linspace(jnp.min(values), jnp.max(values), num_points, dtype=values.dtype)
    densities = kernel_matrix(Gaussian(bandwidth), grid, values) @ members
    sums = jnp.sum(densities, axis=0, keepdims=True)
    shares = densities / jnp.where(sums == 0, jnp.ones_like(sums), sums)
    present = (sizes > 0).astype(values.dtype)
    weights = present / jnp.sum(present) if equal else sizes / jnp.sum(sizes)
    mixture = jnp.sum(shares * weights[None, :], axis=1)
    return entropy(mixture) - jnp.sum(weights * jax.vmap(entropy, 1)(shares))


def explained_by_groups(
    values: Float[ArrayLike, " n"], groups: Int[ArrayLike, " n"], *, num_groups: int
) -> Float[Array, ""]:
    """Unfairness ``Var_g(E[f | g]) / Var(f)`` of outputs, free of their scale (Lee et al. 2025).

    Args:
      values: ``[n]`` outputs.
      groups: ``[n]`` integers from 0 to ``num_groups - 1``.
      num_groups: G; a group without members is left out.

    Returns:
      A scalar >= 0, both variances with the divisor ``number - 1``; 0 for constant outputs or a
      single group.

    Raises:
      ValueError: groups outside the range, different lengths.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> values, groups = jnp.array([0.0, 2.0, 1.0, 3.0]), jnp.array([0, 0, 1, 1])
      >>> round(float(kernels.explained_by_groups(values, groups, num_groups=2)), 4)
      0.3

    References:
      Lee, Antonio, Avanzi, Marchi & Zhou (2025), "Machine Learning with Multitype Protected
      Attributes: Intersectional Fairness through Regularisation", arXiv:2509.08163.
      :cite:`ccdcov-fairness`
    """
    values = jnp.asarray(values)
    means, present = group_means(values, groups, num_groups=num_groups)
    number = jnp.sum(present.astype(values.dtype))
    middle = jnp.sum(means, where=present) / number
    spread = jnp.sum(jnp.square(means - middle), where=present)
    between = jnp.where(number > 1, spread / jnp.maximum(number - 1, 1), 0)
    whole = jnp.var(values, ddof=1)
    zero = whole == 0
    return jnp.where(zero, 0, between / jnp.where(zero, jnp.ones_like(whole), whole))


def group_means(values: Array, groups: ArrayLike, *, num_groups: int) -> tuple[Array, Array]:
    """Mean output ``[G]`` of each group, and which groups have members; 0 where none.

    Args:
      values: ``[n]`` outputs.
      groups: ``[n]`` integers from 0 to ``num_groups - 1``.
      num_groups: G.

    Returns:
      The means and booleans, both ``[G]``.

    Raises:
      ValueError: groups outside the range, different lengths.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> values, groups = jnp.array([1.0, 3.0]), jnp.array([1, 1])
      >>> means, present = kernels.group_means(values, groups, num_groups=2)
      >>> means.tolist(), present.tolist()
      ([0.0, 2.0], [False, True])
    """
    members = membership(values, groups, num_groups)
    sizes = jnp.sum(members, axis=0)
    sums = jnp.sum(values[:, None] * members, axis=0)
    return sums / jnp.maximum(sizes, 1), sizes > 0


def membership(values: Array, groups: ArrayLike, num_groups: int) -> Array:
    """``[n, G]`` zeros and ones in the dtype of the values, checked."""
    checks.positive(num_groups=num_groups)
    groups = jnp.asarray(groups)
    if values.ndim != 1 or groups.shape != values.shape:
        raise ValueError(
            f"Expected values and groups of one shape (n,), got {values.shape} and {groups.shape}."
        )
    if checks.is_concrete(groups):
        found = np.asarray(groups)
        if found.size and not (found.min() >= 0 and found.max() < num_groups):
            raise ValueError(
                f"Expected groups from 0 to {num_groups - 1}, got {found.min()} to {found.max()}."
            )
    return jax.nn.one_hot(groups, num_groups, dtype=values.dtype)


def entropy(p: Array) -> Array:
    """Entropy in bits."""
    p = jnp.maximum(p, jnp.asarray(FLOOR, p.dtype))
    return -jnp.sum(p * jnp.log2(p))
