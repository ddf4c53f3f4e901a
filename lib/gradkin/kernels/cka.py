"""Centered kernel alignment: how alike two representations of the same examples are."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from gradkin import checks
from gradkin.kernels.centered import MINIMUM, check_matrices, count
from gradkin.matrices import distances
from gradkin.matrices.verbs import safe_sqrt
from gradkin.typing import Array, ArrayLike


class HSICStats(NamedTuple):
    """The three criteria whose ratio alignment is; of several batches they are added.

    Attributes:
      kl: HSIC of the two representations.
      kk: HSIC of the first with itself.
      ll: HSIC of the second with itself.
    """

    kl: Array
    kk: Array
    ll: Array

    def merge(self, other: "HSICStats") -> "HSICStats":
        """The sum: alignment over mini-batches is the ratio of sums, never the mean of ratios."""
        return HSICStats(self.kl + other.kl, self.kk + other.kk, self.ll + other.ll)

    def cka(self) -> Array:
        """``kl / sqrt(kk ll)``; 0 where a representation is constant."""
        # Not the root of a product, which overflows; what rounding made negative is zero.
        kk, ll = (jnp.maximum(value, jnp.zeros_like(value)) for value in (self.kk, self.ll))
        scale = safe_sqrt(kk) * safe_sqrt(ll)
        zero = scale == 0
        return jnp.where(
            zero, jnp.zeros_like(scale), self.kl / jnp.where(zero, jnp.ones_like(scale), scale)
        )


def hsic_stats(K: Any, L: Any, *, unbiased: bool = False, passes: int = 1) -> HSICStats:
    """HSIC of two representations and of each with itself, in one streaming pass.

    For alignment over mini-batches (Nguyen et al. 2021, eq. 3) take them ``unbiased``, `merge`
    those of equal batches, and read off ``.cka()``: what it estimates then does not depend on the
    size of the batches.

    Args:
      K: `gradkin.kernel_matrix` of one representation, ``[n, n]``.
      L: that of the other, of the same examples in the same order.
      unbiased: see `hsic`; needs 4 points.
      passes: see `hsic`.

    Returns:
      `HSICStats`. The last two are never negative beyond rounding.

    Raises:
      TypeError: not kernel matrices.
      ValueError: different or too few points, weighted columns.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import kernel_matrix, kernels
      >>> x = jax.random.normal(jax.random.key(0), (20, 3))
      >>> K, L = kernel_matrix(kernels.Linear(), x), kernel_matrix(kernels.Linear(), 2 * x + 1)
      >>> stats = kernels.hsic_stats(K, L, unbiased=True)
      >>> round(float(stats.merge(stats).cka()), 4)
      1.0

    References:
      Nguyen, Raghu & Kornblith (2021), "Do Wide and Deep Networks Learn the Same Things?", ICLR,
      eqs. (2) and (3). :cite:`nguyen:21`
    """
    check_matrices((K, L), unbiased=unbiased)
    sums = K.centered_sums(L, unbiased=unbiased, passes=passes)
    n = count((K, L), sums.kl.dtype, unbiased=unbiased)
    scale = n * (n - 3) if unbiased else jnp.square(n - 1)
    return HSICStats(sums.kl / scale, sums.kk / scale, sums.ll / scale)


def cka(K: Any, L: Any, *, unbiased: bool = False, passes: int = 1) -> Float[Array, ""]:
    """Centered kernel alignment (Kornblith et al. 2019, eq. 4).

    .. math:: \\frac{HSIC(K, L)}{\\sqrt{HSIC(K, K)\\, HSIC(L, L)}}

    Args:
      K: `gradkin.kernel_matrix` of one representation, ``[n, n]``.
      L: that of the other, of the same examples in the same order.
      unbiased: the ratio of unbiased criteria ("debiased"): about 0, not about 1, for unrelated
        representations of more features than examples; needs 4 points.
      passes: see `hsic`.

    Returns:
      A scalar in [0, 1], or in [-1, 1] where unbiased. 0 where a representation is constant.

    Raises:
      TypeError: not kernel matrices.
      ValueError: different or too few points, weighted columns.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernel_matrix, kernels
      >>> x = jnp.array([[0.0, 1.0], [1.0, 0.0], [3.0, 2.0], [1.0, 1.0]])
      >>> K, L = (kernel_matrix(kernels.Linear(), points) for points in (x, x[:, ::-1]))
      >>> round(float(kernels.cka(K, L)), 4)
      1.0

    References:
      Kornblith, Norouzi, Lee & Hinton (2019), "Similarity of Neural Network Representations
      Revisited", ICML, eq. (4). :cite:`kornblith:19`
    """
    return hsic_stats(K, L, unbiased=unbiased, passes=passes).cka()


def linear_cka(
    x: Float[ArrayLike, "points features"],
    y: Float[ArrayLike, "points others"],
    *,
    unbiased: bool = False,
) -> Float[Array, ""]:
    """Centered kernel alignment of linear kernels (Kornblith et al. 2019, eq. 5).

    .. math:: \\frac{\\|Y^T X\\|_F^2}{\\|X^T X\\|_F\\, \\|Y^T Y\\|_F}

    of centered ``X`` and ``Y``: what `cka` gives for two `Linear` kernels, in time and memory
    linear in the number of points, which pays where there are more points than features.

    Args:
      x: ``[n, d]``, one representation.
      y: ``[n, e]``, the other, of the same examples in the same order.
      unbiased: see `cka`; needs 4 points.

    Returns:
      A scalar, see `cka`.

    Raises:
      ValueError: different or too few points.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.array([[0.0, 1.0], [1.0, 0.0], [3.0, 2.0], [1.0, 1.0]])
      >>> round(float(kernels.linear_cka(x, x[:, ::-1])), 4)
      1.0

    References:
      Kornblith, Norouzi, Lee & Hinton (2019), "Similarity of Neural Network Representations
      Revisited", ICML, eq. (5). :cite:`kornblith:19`

    Note:
      The unbiased form follows from that of `hsic` by expanding its sums in feature space; the
      centered features sum to zero, which leaves three terms.
    """
    checks.rank(2, x=x, y=y)
    n = np.shape(x)[0]
    if np.shape(y)[:1] != (n,):
        raise ValueError(
            f"Expected x and y of the same, paired points, got {np.shape(x)} and {np.shape(y)}."
        )
    if n < MINIMUM[unbiased]:
        raise ValueError(
            f"Expected at least {MINIMUM[unbiased]} points for unbiased={unbiased}, got {n}."
        )
    x, y = (distances.points(jnp.asarray(a)) for a in (x, y))
    dtype = np.promote_types(x.dtype, y.dtype)
    x, y = (a.astype(dtype) - jnp.mean(a.astype(dtype), axis=0, keepdims=True) for a in (x, y))
    # The ratio does not change with their scales; squares of squares overflow.
    x, y = (a / nonzero(jnp.max(jnp.abs(a))) for a in (x, y))
    pairs = [(a, jnp.sum(jnp.square(a), axis=1)) for a in (x, y)]

    def criterion(left: tuple[Array, Array], right: tuple[Array, Array]) -> Array:
        (a, a_squares), (b, b_squares) = left, right
        over_points = (((0,), (0,)), ((), ()))
        cross = lax.dot_general(a, b, over_points, precision=lax.Precision.HIGHEST)
        whole = jnp.sum(jnp.square(cross))
        if not unbiased:
            return whole
        diagonal = jnp.sum(a_squares * b_squares) * (n / (n - 2))
        return whole - diagonal + jnp.sum(a_squares) * jnp.sum(b_squares) / float((n - 1) * (n - 2))

    first, second = pairs
    return HSICStats(
        criterion(first, second), criterion(first, first), criterion(second, second)
    ).cka()


def nonzero(scale: Array) -> Array:
    """The scale, or 1 where it is 0; a constant for derivatives."""
    return lax.stop_gradient(jnp.where(scale == 0, jnp.ones_like(scale), scale))
