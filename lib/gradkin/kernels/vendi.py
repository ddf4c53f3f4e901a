"""Vendi scores: how many different points there are in effect, told by their similarities."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices.kernel import KernelMatrix
from gradkin.matrices.low_rank import LowRankMatrix
from gradkin.typing import Array, ArrayLike, Scalar

LAZY = (KernelMatrix, LowRankMatrix)
# A trace of 1 may have this much below zero before a matrix is not positive semidefinite.
NEGATIVE = 1e-5


def vendi_score(
    K: Any, *, order: Scalar = 1.0, weights: ArrayLike | None = None, normalize: bool = False
) -> Float[Array, ""]:
    """Effective number of different points among ``n`` (Friedman & Dieng 2023).

    .. math:: VS_q = \\Big( \\sum_i \\lambda_i^q \\Big)^{1/(1-q)}, \\qquad
        VS_1 = \\exp\\Big( -\\sum_i \\lambda_i \\log \\lambda_i \\Big), \\qquad
        VS_\\infty = 1 / \\max_i \\lambda_i

    with :math:`\\lambda_i` the eigenvalues of ``K / n``, or of
    :math:`\\sqrt{p_i} K_{ij} \\sqrt{p_j}`. Points all alike give 1, points without similarity
    ``n``; a point that is repeated counts as one of the summed weight; the score does not grow with
    the order. It grows with ``n``: compare sets of one size (`subsampled_score`).

    Args:
      K: ``[n, n]`` similarities, symmetric and positive semidefinite with ones on the diagonal: an
        array or a `gradkin.kernel_matrix`. Of a kernel matrix, order 2 streams tiles; every other
        order writes the matrix out and takes O(n^3). Of one of `nystrom` or `random_features`
        with rank ``r``, all take O(n r^2), and the diagonal, only nearly 1, is not looked at.
        Points that a matrix masks do not count: they are left out, and what ``weights`` says of
        them with them.
      order: ``q >= 0``: 0 counts the rank, 1 is the paper's score, 2 needs no eigenvalues,
        ``jnp.inf`` looks at the largest one. Small orders mind rare points. May be traced; it is
        not differentiated.
      weights: ``[n]`` probabilities ``p`` of the points; uniform by default. Those of points that
        are not masked are divided by their sum.
      normalize: whether to divide by :math:`\\sqrt{K_{ii} K_{jj}}` first.

    Returns:
      The score, in ``[1, n]``, in float32 or wider; NaN where a traced matrix is not positive
      semidefinite. The derivative comes from one eigendecomposition and is finite however often an
      eigenvalue repeats. Second derivatives need distinct eigenvalues.

    Raises:
      ValueError: a matrix that is not square, empty, not finite, asymmetric, whose diagonal is not
        1 (within 1e-3) without ``normalize``, or with clearly negative eigenvalues; a negative
        order; weights that are negative or do not sum to 1. Values are looked at where they are
        not traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> K = jnp.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
      >>> round(float(kernels.vendi_score(K)), 4)
      2.1573
      >>> K = jnp.eye(3)
      >>> round(float(kernels.vendi_score(K, weights=jnp.array([0.5, 0.5, 0.0]))), 4)
      2.0

    References:
      Friedman & Dieng (2023), "The Vendi Score: A Diversity Evaluation Metric for Machine
      Learning", arXiv:2210.02410. :cite:`vendi-score`
      Pasarkar & Dieng (2023), "Cousins of the Vendi Score", arXiv:2310.12952, for the orders.
      :cite:`pasarkar:23`

    Note:
      Eigenvalues below rounding count as zero (``2 eps`` of the largest in float32, ``2 sqrt(n)
      eps`` in float64, where that loses nothing) and the rest is divided by its sum. The reference
      package does neither: for a matrix of rank 16 with n = 200 it gives 107 at order 0. Orders
      below 1 of a long tail of small eigenvalues need float64.
      The derivative of the score is unbounded in directions that raise a zero eigenvalue; there the
      eigenvalue is taken to be that bound.
    """
    checks.non_negative(order=order)
    n = square(K)
    lazy = isinstance(K, LAZY)
    dtype = np.promote_types(K.dtype, np.float32) if lazy else wide(K).dtype
    p = probabilities(weights, n, dtype, K.row_mask if lazy else None)
    if isinstance(K, LowRankMatrix):
        return score_of(moment_of(K, p, normalize), order, name="K")
    if isinstance(K, KernelMatrix) and is_two(order):
        rho = density_matrix(K, p, normalize)
        return rho.trace() ** 2 / rho.frobenius_norm() ** 2
    matrix = wide(K.materialize() if lazy else K)
    check_similarities(matrix, p, normalize)
    return score_of(density_matrix(matrix, p, normalize), order, name="K")


def internal_diversity(
    K: Any, *, weights: ArrayLike | None = None, power: int = 1
) -> Float[Array, ""]:
    """One minus the mean similarity, self-similarities included (Friedman & Dieng 2023).

    .. math:: 1 - \\sum_{ij} p_i\\, p_j\\, K_{ij}^s

    What the Vendi score is compared with: sets with the same mean similarity and very different
    spectra tie.

    Args:
      K: ``[n, n]`` similarities in [0, 1], an array or a `gradkin.kernel_matrix`. Points that it
        masks are left out, as in `vendi_score`.
      weights: ``[n]`` probabilities; uniform by default, and as there of the points left.
      power: ``s``, to which each similarity is raised; other than 1 writes the matrix out.

    Returns:
      The diversity; 0 for points all alike, ``1 - 1/n`` for points without similarity.

    Raises:
      ValueError: a matrix that is not square; weights that are negative or do not sum to 1; a power
        below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> float(kernels.internal_diversity(jnp.eye(4)))
      0.75

    References:
      Friedman & Dieng (2023), arXiv:2210.02410. :cite:`vendi-score`
    """
    checks.positive(power=power)
    n, lazy = square(K), isinstance(K, LAZY)
    matrix = K if lazy and power == 1 else wide(K.materialize() if lazy else K)
    if power != 1:
        matrix = matrix**power
    dtype = np.promote_types(matrix.dtype, np.float32)
    p = probabilities(weights, n, dtype, K.row_mask if lazy else None)
    return 1 - jnp.sum(p * (matrix @ p))


def renyi_entropy(p: ArrayLike, *, order: Scalar = 1.0) -> Float[Array, ""]:
    """Entropy of order ``q`` of a distribution, in nats (Renyi 1961); Shannon's at order 1.

    .. math:: H_q(p) = \\frac{1}{1-q} \\log \\sum_i p_i^q

    Its exponential is Hill's number of order ``q``, the effective number of kinds.

    Args:
      p: ``[n]`` probabilities, or counts: they are divided by their sum. Zeros are left out.
      order: ``q >= 0``, ``jnp.inf`` included; may be traced, is not differentiated.

    Returns:
      The entropy, in ``[0, log n]``. Accurate close to order 1 too, where the formula cancels.

    Raises:
      ValueError: a negative order, a negative entry, or nothing but zeros.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> round(float(jnp.exp(kernels.renyi_entropy(jnp.array([5, 5, 0])))), 4)
      2.0

    References:
      Hill (1973), "Diversity and Evenness: A Unifying Notation and Its Consequences",
      doi:10.2307/1934352. :cite:`hill:73`
    """
    checks.non_negative(order=order, p=p)
    checks.rank(1, p=p)
    p = wide(p)
    total = jnp.sum(p)
    if checks.is_concrete(total) and not 0 < float(total) < np.inf:
        raise ValueError(f"Expected p to have a positive, finite sum, got {float(total)}.")
    return entropy(p / total, order)


def square(K: Any) -> int:
    """The number of points; raise where the matrix is not one of points with themselves."""
    lazy = isinstance(K, LAZY)
    shape = K.shape if lazy else np.shape(K)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"Expected K to be a square matrix, not empty, got K.shape={shape}.")
    if lazy:
        other = K.right if isinstance(K, LowRankMatrix) else K.y
        if other is not None or not K.keep_diagonal:
            raise ValueError("Expected K to compare points with themselves, with its diagonal.")
        if K.weights is not None or K.row_weights is not None:
            raise ValueError("Expected K without weights of its own; pass weights= here.")
    return shape[0]


def wide(x: Any) -> Array:
    """As an array of at least float32."""
    x = jnp.asarray(x)
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    return x.astype(np.promote_types(dtype, np.float32))


def probabilities(weights: Any, n: int, dtype: np.dtype, mask: Array | None = None) -> Array:
    """The weights checked, or uniform ones; with a mask, of the points that it keeps."""
    p = checked_probabilities(weights, n, dtype)
    if mask is None:
        return p
    kept = jnp.where(mask, p, jnp.zeros_like(p))
    return kept / jnp.sum(kept)


def checked_probabilities(weights: Any, n: int, dtype: np.dtype) -> Array:
    if weights is None:
        return jnp.full(n, 1 / n, dtype)
    if np.shape(weights) != (n,):
        raise ValueError(f"Expected weights of shape ({n},), got {np.shape(weights)}.")
    checks.non_negative(weights=weights)
    if checks.is_concrete(weights):
        total = float(np.sum(np.asarray(weights, np.float64)))
        if not abs(total - 1) <= 1e-4:
            raise ValueError(f"Expected weights to sum to 1, got {total}.")
    return jnp.asarray(weights, dtype)


@jax.jit
def facts(matrix: Array, p: Array) -> tuple[Array, Array, Array, Array]:
    """Whether finite; the largest asymmetry; the least diagonal entry; how far one is from 1."""
    diagonal = jnp.where(p > 0, jnp.diagonal(matrix), jnp.ones_like(p))
    return (
        jnp.all(jnp.isfinite(matrix)),
        jnp.max(jnp.abs(matrix - matrix.T)) / jnp.max(jnp.abs(matrix)),
        jnp.min(diagonal),
        jnp.max(jnp.abs(diagonal - 1)),
    )


def check_similarities(matrix: Array, p: Array, normalize: bool) -> None:
    """Raise ValueError where a concrete matrix is not one of similarities."""
    if not checks.is_concrete(matrix) or not checks.is_concrete(p):
        return
    finite, asymmetry, least, off_one = facts(matrix, p)
    if not finite:
        raise ValueError("Expected K to be finite, got NaN or infinity.")
    if asymmetry > 1e-4:
        raise ValueError(
            f"Expected K to be symmetric, got entries that differ by {float(asymmetry):.2g} of "
            "the largest."
        )
    if normalize and least <= 0:
        raise ValueError(f"Expected the diagonal of K > 0, got {float(least):.3g}.")
    if not normalize and off_one > 1e-3:
        raise ValueError(
            f"Expected K to have ones on the diagonal, got an entry {float(off_one):.3g} away; "
            "normalize=True divides by it."
        )


@functools.partial(jax.jit, static_argnums=2)
def density_matrix(K: Any, p: Array, normalize: bool) -> Any:
    """``sqrt(p_i) K_ij sqrt(p_j)``, of the normalized matrix if asked for; lazy as ``K`` is."""
    lazy = isinstance(K, LAZY)
    present = p > 0
    scale = jnp.where(present, jnp.sqrt(jnp.where(present, p, jnp.ones_like(p))), 0.0)
    if normalize:
        diagonal = K.diagonal() if lazy else jnp.diagonal(K)
        scale = scale / jnp.sqrt(jnp.where(present, diagonal, jnp.ones_like(diagonal)))
    if lazy:
        return dataclasses.replace(K, weights=scale, row_weights=scale)
    return K * scale[:, None] * scale[None, :]


def moment_of(K: LowRankMatrix, p: Array, normalize: bool) -> Array:
    """``sum_i p_i f_i f_i^T`` of features ``f``: the spectrum of ``F F^T``, weighted."""
    rho = density_matrix(K, p, normalize)
    rows = wide(rho.left) * rho.row_weights[:, None]
    return jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)


def is_two(order: Scalar) -> bool:
    """Whether the order is the number 2, not a traced one."""
    return isinstance(order, int | float) and order == 2


def score_of(matrix: Array, order: Scalar, *, name: str) -> Array:
    """Score of a positive semidefinite matrix over its trace; raise where it is concrete and not.

    Order 2, given as a number, takes no eigenvalues and so does not see whether they are negative.
    """
    if is_two(order):
        return jnp.trace(matrix) ** 2 / jnp.sum(matrix**2)
    score = jnp.exp(log_score_jit(matrix, jnp.asarray(order, matrix.dtype)))
    if checks.is_concrete(score) and np.isnan(score):
        raise ValueError(
            f"Expected {name} to be finite and positive semidefinite, got an eigenvalue below "
            f"{-NEGATIVE:g} of the trace, or NaN."
        )
    return score


@jax.custom_jvp
def log_score(matrix: Array, order: Array) -> Array:
    """Log of the score of a matrix divided by its trace."""
    return entropy(spectrum(jnp.linalg.eigvalsh(matrix))[0], order)


@log_score.defjvp
def log_score_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The derivative of the sum of ``f(eigenvalue)`` is ``U f'(eigenvalues) U^T``.

    Eigenvectors of repeated eigenvalues need not be differentiated, so nothing is divided by zero.
    """
    matrix, order = primals
    values, vectors = jnp.linalg.eigh(matrix)
    p, total, floor = spectrum(values)
    h = entropy(p, order)
    slopes = slope(jnp.maximum(values, floor) / total, p, h, order) / total
    gradient = jnp.matmul(vectors * slopes[None, :], vectors.T, precision=jax.lax.Precision.HIGHEST)
    return h, jnp.sum(gradient * tangents[0])


log_score_jit = jax.jit(log_score)


def spectrum(values: Array) -> tuple[Array, Array, Array]:
    """Eigenvalues above rounding over their sum; that sum; the bound.

    NaN where one is clearly negative.
    """
    # In float32 a generous bound would cut off the tail of a smooth kernel.
    spread = math.sqrt(len(values)) if values.dtype == np.float64 else 1.0
    floor = 2 * spread * float(jnp.finfo(values.dtype).eps) * jnp.max(values)
    kept = jnp.where(values > floor, values, jnp.zeros_like(values))
    total = jnp.sum(kept)
    total = jnp.where(jnp.min(values) < -NEGATIVE * total, jnp.full_like(total, jnp.nan), total)
    return kept / total, total, floor


def entropy(p: Array, order: Any, counts: Array | None = None) -> Array:
    """Entropy of probabilities that sum to 1, the i-th of them present ``counts[i]`` times."""
    order = jax.lax.stop_gradient(jnp.asarray(order, p.dtype))
    counts = jnp.ones_like(p) if counts is None else counts
    present = (p > 0) | jnp.isnan(p)
    log_p = jnp.log(jnp.where(present, p, jnp.ones_like(p)))
    counts = jnp.where(present, counts, jnp.zeros_like(counts))
    infinite = jnp.isinf(order)
    t = jnp.where(infinite, jnp.ones_like(order), order - 1)
    near = jnp.abs(t) < 0.5
    # Close to order 1, sum p^q - 1 = sum p (p^t - 1) without the cancellation.
    small = jnp.where(near & (t != 0), t, jnp.full_like(t, 0.25))
    close = -jnp.log1p(jnp.sum(counts * p * jnp.expm1(small * log_p))) / small
    shannon = -jnp.sum(counts * p * log_p)
    large = jnp.where(near, jnp.ones_like(t), t)
    far = -jax.nn.logsumexp((1 + large) * log_p, b=counts) / large
    # Of probabilities the logarithm is at most 0, so that of an absent one, 0, must not win.
    greatest = jnp.max(jnp.where(counts > 0, log_p, jnp.full_like(log_p, -jnp.inf)))
    finite = jnp.where(t == 0, shannon, jnp.where(near, close, far))
    return jnp.where(infinite, -greatest, finite)


def slope(values: Array, p: Array, h: Array, order: Array) -> Array:
    """Derivative of the entropy by each eigenvalue, where dividing by the sum is part of it."""
    infinite = jnp.isinf(order)
    t = jnp.where(infinite, jnp.ones_like(order), order - 1)
    excess = jnp.log(values) + h
    safe = jnp.where(t == 0, jnp.ones_like(t), t)
    general = -(1 + t) * jnp.expm1(safe * excess) / safe
    finite = jnp.where(t == 0, -excess, general)
    greatest = jnp.max(p)
    top = (p >= greatest * (1 - 100 * float(jnp.finfo(p.dtype).eps))).astype(p.dtype)
    return jnp.where(infinite, 1 - top / (jnp.sum(top) * greatest), finite)
