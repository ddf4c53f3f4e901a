"""Hilbert-Schmidt independence criterion: how dependent two kernels find paired samples."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from gradkin.kernels.centered import check_matrices, count, shared_mask
from gradkin.matrices.kernel_arguments import probabilities
from gradkin.matrices.kernel_tiles import pairwise_sum
from gradkin.typing import Array, ArrayLike


def hsic(
    K: Any,
    L: Any,
    *,
    unbiased: bool = False,
    weights: ArrayLike | None = None,
    passes: int = 1,
) -> Float[Array, ""]:
    """Hilbert-Schmidt independence criterion (Gretton et al. 2005; Song et al. 2012, eq. 5).

    .. math:: \\frac{\\operatorname{tr}(K H L H)}{(n-1)^2}, \\qquad H = I - 1 1^T / n

    and unbiased, with ``K~`` and ``L~`` without their diagonals,

    .. math:: \\frac{1}{n(n-3)} \\left[ \\operatorname{tr}(\\tilde K \\tilde L)
        + \\frac{1^T \\tilde K 1\\; 1^T \\tilde L 1}{(n-1)(n-2)}
        - \\frac{2}{n-2} 1^T \\tilde K \\tilde L 1 \\right].

    Zero in population if and only if the variables are independent, where the kernels are
    characteristic (Gaussian, Laplacian, `Energy`). One streaming pass, differentiable in the points
    and the kernels.

    Args:
      K: `gradkin.kernel_matrix` of the points of one variable with themselves, ``[n, n]``.
      L: that of the paired points of the other.
      unbiased: the second formula, whose expectation is exact, so that it may be negative; needs 4
        points. The first needs 2, and is never negative beyond rounding.
      weights: ``[n]`` weights of the points: non-negative, not all zero, divided by their sum.
        Means are then weighted, and ``1 / (n-1)^2`` becomes ``1 / (n - n sum p^2)^2``. Not with
        ``unbiased``.
      passes: 1, or 2 for matrices whose entries are nearly sums ``a_i + b_j``; see
        `KernelMatrix.centered_sums`.

    Returns:
      A scalar. Points that either matrix masks are left out; NaN where too few are not.

    Raises:
      TypeError: not kernel matrices.
      ValueError: different or too few points, weighted columns, bad weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernel_matrix, kernels
      >>> x, y = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[1.0], [3.0], [5.0]])
      >>> K, L = (kernel_matrix(kernels.Linear(), points) for points in (x, y))
      >>> float(kernels.hsic(K, L))  # the squared covariance
      4.0

    References:
      Gretton, Bousquet, Smola & Schoelkopf (2005), "Measuring Statistical Dependence with
      Hilbert-Schmidt Norms", ALT. :cite:`gretton:05`

      Song, Smola, Gretton, Bedo & Borgwardt (2012), "Feature Selection via Dependence
      Maximization", JMLR 13, eq. (5). :cite:`song:12`

    Note:
      Some texts divide the first form by ``n^2``. `squared_distance_covariance` does.
    """
    check_matrices((K, L), unbiased=unbiased)
    sums = K.centered_sums(L, unbiased=unbiased, passes=passes, weights=weights).kl
    n = count((K, L), sums.dtype, unbiased=unbiased)
    if unbiased:
        return sums / (n * (n - 3))
    if weights is None:
        return sums / jnp.square(n - 1)
    share = probabilities(weights, len(K), mask=shared_mask((K, L))).astype(sums.dtype)
    # centered_sums scales weights to mean 1.
    return sums / jnp.square(n * (1 - pairwise_sum(jnp.square(share))))
