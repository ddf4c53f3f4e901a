"""Vendi scores where the eigenvalues cost too much: estimates that say how far off they may be."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matfree import decomp

from gradkin import checks
from gradkin.kernels.vendi import (
    LAZY,
    density_matrix,
    entropy,
    probabilities,
    square,
    wide,
)
from gradkin.kernels.vendi_features import num_steps, outer, streamed_moment
from gradkin.matrices.kernel import kernel_matrix
from gradkin.typing import Array, ArrayLike, PRNGKey, Scalar


class NystromVendi(NamedTuple):
    """A score from a low-rank part of the matrix, and how far it can be from that of the whole.

    Attributes:
      score: from the eigenvalues found, divided by their sum.
      lower: no matrix with this low-rank part and this trace has a smaller score.
      upper: none has a greater one.
      captured: share of the trace that the low-rank part has, in [0, 1].
    """

    score: Array
    lower: Array
    upper: Array
    captured: Array


class VendiEstimate(NamedTuple):
    """An estimate and its standard error.

    Attributes:
      score: the estimate.
      standard_error: of the estimate, from the spread of the probes.
    """

    score: Array
    standard_error: Array


class SubsampledScore(NamedTuple):
    """A score, and what subsamples tell about it.

    Attributes:
      score: of all points.
      standard_error: how much it would vary between samples of ``n`` points.
      rarefied: mean score of subsamples: what sets of different sizes are compared by.
      rarefied_error: standard error of that mean as an estimate for these ``n`` points.
    """

    score: Array
    standard_error: Array
    rarefied: Array
    rarefied_error: Array


def vendi_score_nystrom(
    key: PRNGKey,
    kernel: Any,
    x: ArrayLike,
    *,
    rank: int,
    order: Scalar = 1.0,
    weights: ArrayLike | None = None,
    block: int | None = None,
) -> NystromVendi:
    """Vendi score of any kernel from ``r`` landmarks, with bounds (Nystrom's approximation).

    .. math:: \\hat K = K_{nr} K_{rr}^{-1} K_{rn} \\preceq K, \\qquad
        \\hat\\lambda_i \\le \\lambda_i, \\qquad \\sum_i \\lambda_i = 1

    The eigenvalues come from an ``r x r`` matrix summed over blocks of points: O(n r^2) time and
    O(r^2) memory beside the points. What trace is missing may lie anywhere. The score is largest
    where it levels the smallest eigenvalues, smallest where it goes to the greatest: `upper` and
    `lower`, for every order, up to rounding.

    Args:
      key: draws the landmarks, with probability ``weights``.
      kernel: as in `gradkin.kernel_matrix`; positive semidefinite, 1 for a point and itself.
      x: ``[n, ...]`` points.
      rank: ``r`` landmarks, at most ``n``.
      order: as in `vendi_score`.
      weights: ``[n]`` probabilities of the points; uniform by default.
      block: points at a time; by default about a million kernel values.

    Returns:
      `NystromVendi`. Differentiate `vendi_score` or `vendi_score_features` instead.

    Raises:
      ValueError: a rank outside ``[1, n]``, a negative order, wrong weights, a kernel that is not 1
        (within 1e-3) on the landmarks' diagonal.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.repeat(jnp.array([[0.0], [100.0], [200.0]]), 20, axis=0)
      >>> found = kernels.vendi_score_nystrom(
      ...     jax.random.key(0), kernels.Gaussian(1.0), x, rank=20)
      >>> round(float(found.score), 3), round(float(found.captured), 3)
      (3.0, 1.0)

    References:
      Williams & Seeger (2000), "Using the Nystrom Method to Speed Up Kernel Machines", NeurIPS.
      :cite:`williams:00`
      Friedman & Dieng (2023), arXiv:2210.02410. :cite:`vendi-score`
    """
    checks.non_negative(order=order)
    x = wide(x)
    if x.ndim == 0 or not 1 <= rank <= len(x):
        raise ValueError(f"Expected rank in [1, n], got rank={rank} for x.shape={x.shape}.")
    p = probabilities(weights, len(x), x.dtype)
    draw = None if weights is None else p
    landmarks = x[jax.random.choice(key, len(x), (rank,), replace=False, p=draw)]
    similarities = wide(kernel_matrix(kernel, landmarks).materialize())
    if checks.is_concrete(similarities):
        off_one = float(jnp.max(jnp.abs(jnp.diagonal(similarities) - 1)))
        if not off_one <= 1e-3:
            raise ValueError(f"Expected kernel(x, x) = 1, got a value {off_one:.3g} away.")
    steps = num_steps(len(x), max(rank, math.prod(x.shape[1:])), block)
    return nystrom_score(kernel, x, p, landmarks, similarities, order, steps)


@functools.partial(jax.jit, static_argnames="steps")
def nystrom_score(
    kernel: Any,
    x: Array,
    p: Array,
    landmarks: Array,
    similarities: Array,
    order: Scalar,
    steps: int,
) -> NystromVendi:
    values, vectors = jnp.linalg.eigh(similarities)
    kept = values > rounding(values) * jnp.max(values)
    roots = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, jnp.ones_like(values))), 0.0)
    whiten = vectors * roots[None, :]

    def features(rows: Array, weights: Array) -> Array:
        tile = kernel_matrix(kernel, rows, landmarks).materialize()
        mapped = jnp.matmul(tile, whiten, precision=jax.lax.Precision.HIGHEST)
        return mapped * jnp.sqrt(weights)[:, None]

    moment = outer(features(x, p)) if steps == 1 else streamed_moment(features, x, p, steps)
    found = jnp.linalg.eigvalsh(moment)[::-1]
    found = jnp.where(found > rounding(found) * found[0], found, jnp.zeros_like(found))
    captured = jnp.sum(found)
    lower, upper = extremes(found, len(x), order)
    score = entropy(found / captured, order)
    lower, upper = jnp.minimum(lower, score), jnp.maximum(upper, score)
    return NystromVendi(jnp.exp(score), jnp.exp(lower), jnp.exp(upper), jnp.minimum(captured, 1))


def rounding(values: Array) -> float:
    """What of the largest eigenvalue may be nothing but rounding."""
    return 2 * math.sqrt(len(values)) * float(jnp.finfo(values.dtype).eps)


def extremes(found: Array, n: int, order: Scalar) -> tuple[Array, Array]:
    """Least and greatest entropy of ``n`` eigenvalues that sum to 1 and are at least ``found``.

    Entropy is Schur-concave: a spectrum that majorises another has less of it.
    """
    r = len(found)
    found = found / jnp.maximum(jnp.sum(found), 1)  # rounding may have found more than all
    missing = 1 - jnp.sum(found)
    concentrated = found.at[0].add(missing)
    # Keep the k greatest and level the n - k others at `level`; the smallest k that is possible.
    kept = jnp.arange(min(r + 1, n), dtype=found.dtype)
    sums = jnp.concatenate([jnp.zeros(1, found.dtype), jnp.cumsum(found)])[: len(kept)]
    level = (1 - sums) / (n - kept)
    following = jnp.append(found, jnp.zeros(1, found.dtype))[: len(kept)]
    possible = (level >= following).at[-1].set(True)
    at = jnp.argmax(possible)
    p = jnp.append(jnp.where(jnp.arange(r) < at, found, jnp.zeros_like(found)), level[at])
    counts = jnp.append(jnp.ones_like(found), n - kept[at])
    return entropy(concentrated, order), entropy(p, order, counts)


def vendi_score_slq(
    key: PRNGKey,
    K: Any,
    *,
    order: Scalar = 1.0,
    weights: ArrayLike | None = None,
    num_probes: int = 16,
    num_matvecs: int = 32,
) -> VendiEstimate:
    """Vendi score from products ``K @ v`` alone, by stochastic Lanczos quadrature.

    .. math:: \\operatorname{tr} f(\\rho) \\approx \\frac{1}{m} \\sum_{j=1}^m v_j^T f(\\rho) v_j,
        \\qquad \\rho = K / n, \\quad f(\\lambda) = -\\lambda \\log \\lambda
        \\text{ or } \\lambda^q

    Of a `gradkin.kernel_matrix`, nothing of size ``n^2`` is written: memory is
    O(n m s) for ``s`` products of each of ``m`` probes.

    Args:
      key: draws the probes, vectors of signs.
      K: ``[n, n]`` similarities, symmetric and positive semidefinite, ones on the diagonal:
        an array or a `gradkin.kernel_matrix`. Points that it masks are left out, as in
        `vendi_score`.
      order: finite and positive; orders below 1 converge slowly, their functions being steep at 0.
      weights: ``[n]`` probabilities of the points; uniform by default.
      num_probes: ``m``, at least 2.
      num_matvecs: ``s``, at least 2 and at most ``n``; the steps of Lanczos.

    Returns:
      `VendiEstimate`. The standard error covers the probes, not the bias of ``s`` steps, which
      falls geometrically with ``s``.

    Raises:
      ValueError: ``K`` not square, an order of 0 or infinity, wrong weights, numbers out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> found = kernels.vendi_score_slq(jax.random.key(0), jnp.eye(8), num_matvecs=4)
      >>> round(float(found.score), 3), round(float(found.standard_error), 3)
      (8.0, 0.0)

    References:
      Ubaru, Chen & Saad (2017), "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature",
      doi:10.1137/16M1104974. :cite:`ubaru:17`
      Friedman & Dieng (2023), arXiv:2210.02410. :cite:`vendi-score`
    """
    checks.positive(order=order)
    if checks.is_concrete(order) and np.isinf(order):
        raise ValueError("Expected a finite order, got order=inf; vendi_score has it.")
    n = square(K)
    if not 2 <= num_matvecs <= n:
        raise ValueError(f"Expected num_matvecs in [2, {n}], got num_matvecs={num_matvecs}.")
    if num_probes < 2:
        raise ValueError(f"Expected num_probes >= 2, got num_probes={num_probes}.")
    if not isinstance(K, LAZY):
        K = wide(K)
    mask = K.row_mask if isinstance(K, LAZY) else None
    p = probabilities(weights, n, np.promote_types(K.dtype, np.float32), mask)
    rho = density_matrix(K, p, False)
    return slq_score(key, rho, order, num_probes, num_matvecs)


@functools.partial(jax.jit, static_argnames=("num_probes", "num_matvecs"))
def slq_score(
    key: PRNGKey, rho: Any, order: Scalar, num_probes: int, num_matvecs: int
) -> VendiEstimate:
    n, dtype = rho.shape[0], np.promote_types(rho.dtype, np.float32)
    order = jnp.asarray(order, dtype)
    probe_key, other_key = jax.random.split(key)
    eps = float(jnp.finfo(dtype).eps)
    other = 4 * eps * jax.random.normal(other_key, (n,), dtype)

    def product(v: Array) -> Array:
        u = rho @ v
        # Where Krylov's space is used up Lanczos would divide by zero; a matrix changed as much as
        # rounding changes it has a space that never is.
        return u + (jnp.linalg.norm(u) + 1 / n) * other * v

    lanczos = decomp.tridiag_sym(num_matvecs, custom_vjp=False)

    def quadrature(v: Array) -> tuple[Array, Array]:
        """Nodes and weights: ``v^T f(rho) v = sum_k weights_k f(nodes_k)``."""
        nodes, vectors = jnp.linalg.eigh(lanczos(product, v / math.sqrt(n)).J_small)
        positive = nodes > 2 * math.sqrt(n) * eps * jnp.max(nodes)
        return jnp.where(positive, nodes, jnp.ones_like(nodes)), jnp.where(
            positive, n * vectors[0] ** 2, jnp.zeros_like(nodes)
        )

    nodes, mass = jax.vmap(quadrature)(jax.random.rademacher(probe_key, (num_probes, n), dtype))
    shannon = jnp.abs(order - 1) < 1e-3
    values = jnp.where(shannon, -nodes * jnp.log(nodes), nodes**order)
    # The traces of rho and of its square are known, so what the probes say of them may be
    # corrected: only what f leaves of its least squared fit a l + b l^2 is left to chance.
    if isinstance(rho, LAZY):
        traces = rho.trace(), rho.frobenius_norm() ** 2
    else:
        traces = jnp.trace(rho), jnp.sum(rho**2)
    linear, quadratic = fit(nodes, mass, values)
    left = values - linear * nodes - quadratic * nodes**2
    samples = jnp.sum(mass * left, axis=1) + linear * traces[0] + quadratic * traces[1]
    trace, error = jnp.mean(samples), jnp.std(samples, ddof=1) / math.sqrt(num_probes)
    t = jnp.where(shannon, jnp.ones_like(order), 1 - order)
    score = jnp.where(shannon, jnp.exp(trace), trace ** (1 / t))
    relative = jnp.where(shannon, error, error / (jnp.abs(t) * trace))
    return VendiEstimate(score, score * relative)


def fit(x: Array, mass: Array, y: Array) -> tuple[Array, Array]:
    """Coefficients of ``a x + b x^2`` nearest to ``y`` in mean square; b = 0 where all x agree."""
    scale = jnp.max(jnp.where(mass > 0, x, jnp.zeros_like(x)))
    u = x / scale
    m2, m3, m4, r1, r2 = (jnp.sum(mass * v) for v in (u**2, u**3, u**4, y * u, y * u**2))
    determinant = m2 * m4 - m3**2
    both = determinant > 1e-4 * m2 * m4
    safe = jnp.where(both, determinant, jnp.ones_like(determinant))
    a = jnp.where(both, (r1 * m4 - r2 * m3) / safe, r1 / m2)
    b = jnp.where(both, (r2 * m2 - r1 * m3) / safe, jnp.zeros_like(r2))
    return a / scale, b / scale**2


def subsampled_score(
    key: PRNGKey,
    score: Callable[[Any], Array],
    x: Array,
    *,
    size: int,
    num_subsamples: int = 100,
) -> SubsampledScore:
    """Standard error of a score of ``n`` points, from subsamples of ``m`` of them.

    .. math:: SE_n^2 = \\frac{m}{n - m}\\, \\operatorname{Var}\\big[ score(x_S) \\big],
        \\qquad |S| = m, \\text{ drawn without replacement}

    Repeated points of a bootstrap would count as alike and lower a diversity; subsamples have none.
    Scores that grow with ``n`` are compared at one size: `rarefied`.

    Args:
      key: draws the subsamples.
      score: maps ``[m, ...]`` points to a scalar: ``lambda x: kernels.vendi_score_features(x)``.
        For a matrix of similarities, let the points be numbers: ``lambda i:
        kernels.vendi_score(K[i][:, i])`` with ``x = jnp.arange(n)``.
      x: ``[n, ...]`` points.
      size: ``m``, at least 2 and less than ``n``; a fifth to a half of it serves.
      num_subsamples: at least 2; the relative error of the standard error is about
        ``1 / sqrt(2 num_subsamples)``.

    Returns:
      `SubsampledScore`. The standard error supposes that the variance falls as ``1 / n``, which
      holds where ``n`` is large against the score.

    Raises:
      ValueError: a size outside ``[2, n - 1]``, fewer than 2 subsamples.

    Example:
      >>> import jax
      >>> from gradkin import kernels
      >>> x = jax.random.normal(jax.random.key(0), (200, 3))
      >>> found = kernels.subsampled_score(
      ...     jax.random.key(1), kernels.vendi_score_features, x, size=50)
      >>> bool(found.standard_error < 0.05), bool(found.rarefied < 3)
      (True, True)

    References:
      Politis & Romano (1994), "Large Sample Confidence Regions Based on Subsamples under Minimal
      Assumptions", doi:10.1214/aos/1176325770. :cite:`politis:94`
    """
    n = len(x)
    if not 2 <= size < n:
        raise ValueError(f"Expected size in [2, {n - 1}], got size={size}.")
    if num_subsamples < 2:
        raise ValueError(f"Expected num_subsamples >= 2, got num_subsamples={num_subsamples}.")

    def one(key: PRNGKey) -> Array:
        return score(x[jax.random.permutation(key, n)[:size]])

    scores = jax.lax.map(one, jax.random.split(key, num_subsamples))
    sd = jnp.std(scores, ddof=1)
    return SubsampledScore(
        score(x),
        sd * math.sqrt(size / (n - size)),
        jnp.mean(scores),
        sd / math.sqrt(num_subsamples),
    )
