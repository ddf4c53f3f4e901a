"""Dependence of several variables at once: mutual, or of one on all the others together."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from gradkin import checks
from gradkin.kernels.centered import check_matrices, mean_product
from gradkin.kernels.distance_covariance import squared_distance_covariance
from gradkin.kernels.energy import Energy
from gradkin.matrices import distances
from gradkin.matrices.kernel import kernel_matrix
from gradkin.typing import Array, ArrayLike, Scalar


def joint_distance_covariance(
    variables: Sequence[Any],
    *,
    offset: Scalar = 1.0,
    unbiased: bool = False,
    mask: ArrayLike | None = None,
    block: int | None = None,
) -> Float[Array, ""]:
    """Squared joint distance covariance (Chakraborty & Zhang 2019; Lee et al. 2025).

    .. math:: \\frac{1}{n^2} \\sum_{i,j} \\Bigl[ \\prod_m \\bigl( A^{(m)}_{ij} + c \\bigr)
        - c^k \\Bigr]
        \\quad \\text{or, unbiased,} \\quad
        \\frac{1}{n(n-3)} \\sum_{i \\neq j} \\Bigl[ \\prod_m \\bigl( A^{(m)}_{ij} + c \\bigr)
        - c^k \\Bigr]

    with ``A^(m)`` the double-centered, or U-centered, matrix of *minus* the distances of variable
    m. It is the sum over all subsets of at least two variables, of size s, of ``c^(k-s)`` times
    their joint term: zero in population if and only if all variables are mutually independent,
    where pairwise measures miss, for example, an exclusive or. For two variables it is the squared
    distance covariance. Two streaming passes, differentiable, memory linear in n.

    Args:
      variables: k >= 2 arrays ``[n]`` or ``[n, ...]`` of paired points.
      offset: c > 0, how much small subsets count.
      unbiased: the second form, of U-centered matrices; needs 4 points, and may be negative. The
        first needs 2.
      mask: ``[n]`` booleans; False leaves a point out, whatever it holds.
      block: rows of a tile; chosen automatically.

    Returns:
      A scalar. Not invariant to the scales of the variables.

    Raises:
      ValueError: fewer than two variables, different or too few points, ``offset`` not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> s, t = jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([0.0, 1.0, 0.0, 1.0])
      >>> pairwise = kernels.squared_distance_covariance(s, t)
      >>> float(pairwise), float(kernels.joint_distance_covariance((s, t, jnp.abs(s - t))))
      (0.0, 0.125)

    References:
      Chakraborty & Zhang (2019), "Distance Metrics for Measuring Joint Dependence with Application
      to Causal Inference", JASA 114. :cite:`chakraborty:19`

      Lee, Antonio, Avanzi, Marchi & Zhou (2025), "Machine Learning with Multitype Protected
      Attributes: Intersectional Fairness through Regularisation", arXiv:2509.08163.
      :cite:`ccdcov-fairness`

    Note:
      The usual sign of centered distances flips all terms of odd size; with the sign here each is
      non-negative in population. The sum of the pairwise terms only, which some packages give this
      name, cannot see an exclusive or.
    """
    if len(variables) < 2:
        raise ValueError(f"Expected at least 2 variables, got {len(variables)}.")
    checks.positive(offset=offset)
    matrices = [kernel_matrix(Energy(), v, mask=mask, block=block) for v in variables]
    check_matrices(matrices, unbiased=unbiased)
    # Of two variables the offset multiplies row sums, which are zero.
    return mean_product(matrices, offset=offset if len(matrices) > 2 else 0.0, unbiased=unbiased)


def concatenated_distance_covariance(
    x: ArrayLike,
    attributes: Sequence[Any],
    *,
    standardize: bool = True,
    unbiased: bool = False,
    mask: ArrayLike | None = None,
    block: int | None = None,
) -> Float[Array, ""]:
    """Squared distance covariance of a variable and others taken as one vector (Lee et al. 2025).

    Zero in population if and only if ``x`` is independent of the attributes *together*: with a
    model's output for ``x``, demographic parity for every combination of protected attributes of
    any type. Costs two matrices of distances however many there are. Its difference from the sum
    over the single attributes is what only their combinations tell, and may be negative.

    Args:
      x: ``[n]`` or ``[n, ...]`` points.
      attributes: arrays ``[n]`` or ``[n, ...]``; of a nominal one, its dummies.
      standardize: divide every column of the attributes by its standard deviation, so that units do
        not decide which matters; a constant column stays as it is. False takes them as they are.
      unbiased: see `squared_distance_covariance`; needs 4 points.
      mask: ``[n]`` booleans; False leaves a point out, whatever it holds.
      block: rows of a tile; chosen automatically.

    Returns:
      A scalar, the square.

    Raises:
      ValueError: no attributes, different or too few points.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> s, t = jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([0.0, 1.0, 0.0, 1.0])
      >>> xor = jnp.abs(s - t)
      >>> single = [float(kernels.squared_distance_covariance(xor, a)) for a in (s, t)]
      >>> single, round(float(kernels.concatenated_distance_covariance(xor, (s, t))), 4)
      ([0.0, 0.0], 0.1464)

    References:
      Lee, Antonio, Avanzi, Marchi & Zhou (2025), "Machine Learning with Multitype Protected
      Attributes: Intersectional Fairness through Regularisation", arXiv:2509.08163.
      :cite:`ccdcov-fairness`

    Note:
      The dummies of a factor lie a distance sqrt(2) apart before standardizing, a binary column 1.
    """
    if not attributes:
        raise ValueError("Expected at least one attribute, got none.")
    sizes = [np.shape(a)[:1] for a in (x, *attributes)]
    if len(set(sizes)) != 1 or not sizes[0]:
        raise ValueError(f"Expected x and attributes of the same, paired points, got {sizes}.")
    columns = [distances.points(jnp.asarray(a)) for a in attributes]
    dtype = np.result_type(*(c.dtype for c in columns))
    together = jnp.concatenate([c.astype(dtype) for c in columns], axis=1)
    keep = None if mask is None else jnp.asarray(mask)
    if keep is not None:
        together = jnp.where(keep[:, None], together, jnp.zeros_like(together))
    if standardize:
        where = None if keep is None else keep[:, None]
        deviation = lax.stop_gradient(jnp.std(together, axis=0, where=where, keepdims=True))
        together = together / jnp.where(deviation == 0, jnp.ones_like(deviation), deviation)
    return squared_distance_covariance(
        x, together, unbiased=unbiased, mask=mask, method="tiles", block=block
    )
