"""Inductive bias: how much must be known beforehand for the data to single out good hypotheses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.kernels import saddlepoint
from gradkin.kernels.noncentral_chi_square import fit_noncentral_chi_square
from gradkin.matrices.kernel import kernel_matrix
from gradkin.typing import Array, ArrayLike, PRNGKey, Scalar

# Halvings of the interval that holds the tilt's logarithm, and its ends: squares stay finite.
BISECTIONS = 60
LOWEST, HIGHEST = -60.0, 40.0


def required_inductive_bias(
    losses: Float[ArrayLike, " samples"], error: ArrayLike, *, method: str = "saddlepoint"
) -> Array:
    """Nats to be known beforehand to reach a test error (Boopathy et al. 2024).

    .. math:: I(\\epsilon) = -\\log P_{h \\sim p(h \\mid \\mathrm{train})}
        \\big( L_{\\mathrm{test}}(h) \\le \\epsilon \\big)

    for hypotheses ``h`` drawn at random among those that fit the training data. Errors worth
    reaching are far below every sampled loss, so the law of the losses is modelled, as a scaled
    non-central chi-square, and extrapolated.

    Args:
      losses: test losses of sampled hypotheses, ``[samples]``: of a random function
        (`interpolant_loss`), or of networks trained from random starts.
      error: the test error ``epsilon`` > 0, any shape.
      method: how the tail is computed, see `ScaledNoncentralChiSquare.neg_log_cdf`.

    Returns:
      Of ``error``'s shape, >= 0; about 0 where every hypothesis is good enough. A value says
      nothing without its ``error`` and its space of hypotheses.

    Raises:
      ValueError: losses that cannot be fitted, ``error`` not positive, or an unknown method.

    Example:
      >>> import jax
      >>> from gradkin import kernels
      >>> losses = 0.1 * jax.random.chisquare(jax.random.key(0), 20.0, shape=(4000,))
      >>> bool(abs(kernels.required_inductive_bias(losses, 0.4) - 9.98) < 0.5)
      True

    References:
      Boopathy, Yue, Hwang, Iyer & Fiete (2024), "Towards Exact Computation of Inductive Bias",
      IJCAI, arXiv:2406.15941. :cite:`exact-inductive-bias`

    Note:
      The paper's code falls back on ``z^2 / 2`` where the probability underflows, which is 15 to
      35 % too small between 7 and 40 nats: ``method="reference"``. Extrapolation itself may be too
      low: for Gaussian processes by a fifth at 15 to 30 nats, where the weights of the losses are
      known and `InterpolantLoss.inductive_bias` needs no samples.
    """
    return fit_noncentral_chi_square(losses).neg_log_cdf(error, method=method)


class InterpolantLoss(NamedTuple):
    """Test loss of a random function that fits the training data.

    ``L = mean_{i,o} (residual_io + sqrt(variance_i) z_io)^2`` with independent normal ``z``: the
    posterior's covariance is diagonal in the coordinates used, which do not change a norm.

    Attributes:
      residual: ``[t, outputs]``, posterior mean minus target.
      variance: ``[t]``, of the posterior, >= 0.
    """

    residual: Float[Array, "t outputs"]
    variance: Float[Array, " t"]

    def mean(self) -> Array:
        """The expected loss."""
        return jnp.mean(jnp.square(self.residual)) + jnp.mean(self.variance)

    def sample(self, key: PRNGKey, num_samples: int) -> Float[Array, " samples"]:
        """Losses of independent random functions."""
        checks.positive(num_samples=num_samples)
        std = jnp.sqrt(self.variance)[:, None]

        def one(key: PRNGKey) -> Array:
            noise = jax.random.normal(key, self.residual.shape, self.residual.dtype)
            return jnp.mean(jnp.square(self.residual + std * noise))

        return jax.lax.map(one, jax.random.split(key, num_samples), batch_size=128)

    def inductive_bias(self, error: Scalar) -> Float[Array, ""]:
        """``-log P(L <= error)`` without sampling: a generalized chi-square's tail.

        By the saddlepoint approximation from the exact cumulants. Infinite below the loss that the
        directions without variance have in any case.

        Raises:
          ValueError: ``error`` not positive.
        """
        checks.positive(error=error)
        return generalized_chi_square_tail(
            jnp.asarray(error).astype(self.variance.dtype), self.residual, self.variance
        )


def interpolant_loss(
    kernel: Any,
    x: ArrayLike,
    y: Float[ArrayLike, "n outputs"],
    x_test: ArrayLike,
    y_test: Float[ArrayLike, "t outputs"],
    *,
    jitter: Scalar = 1e-4,
) -> InterpolantLoss:
    """Test loss of a Gaussian process with this kernel, given that it fits the training data.

    The kernel's space of hypotheses: ``h(x) = phi(x) theta`` with normal ``theta``, of which those
    with ``h(x_i) = y_i`` are left.

    Args:
      kernel: positive semidefinite, such as ``kernels.Gaussian(bandwidth)``.
      x: training inputs, ``[n, ...]``.
      y: training outputs, ``[n, outputs]``.
      x_test: test inputs, ``[t, ...]``.
      y_test: test outputs, ``[t, outputs]``.
      jitter: variance with which the data are met, > 0: what makes the kernel matrix invertible.

    Returns:
      `InterpolantLoss`: ``.sample(key, num_samples)`` for `required_inductive_bias`, or
      ``.inductive_bias(error)`` directly. O((n + t)^2) memory, O((n + t)^3) time.

    Raises:
      ValueError: shapes that do not fit, ``jitter`` not positive, or so small that the kernel
        matrix is not positive definite in its precision (NaN under a transformation).

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [1.0]])
      >>> x_test, y_test = jnp.array([[0.5]]), jnp.array([[0.5]])
      >>> loss = kernels.interpolant_loss(kernels.Gaussian(1.0), x, y, x_test, y_test)
      >>> bool(loss.inductive_bias(0.01) > loss.inductive_bias(0.1))
      True

    References:
      Boopathy, Yue, Hwang, Iyer & Fiete (2024), arXiv:2406.15941. :cite:`exact-inductive-bias`

    Note:
      The reference solves for the posterior by Adam; here it is a Cholesky factorization, exact up
      to the jitter. Its covariance is made symmetric, and eigenvalues that rounding made negative
      are zero.
    """
    checks.positive(jitter=jitter)
    checks.rank(2, y=y, y_test=y_test)
    x, y, x_test, y_test = (jnp.asarray(value) for value in (x, y, x_test, y_test))
    if len(x) != len(y) or len(x_test) != len(y_test) or y.shape[1] != y_test.shape[1]:
        raise ValueError(
            f"Expected x, y of one length, x_test, y_test of one length, and y, y_test of one "
            f"number of outputs, got shapes {x.shape}, {y.shape}, {x_test.shape}, {y_test.shape}."
        )
    prior = kernel_matrix(kernel, x).materialize()
    cross = kernel_matrix(kernel, x, x_test).materialize()
    factor = jnp.linalg.cholesky(prior + jitter * jnp.eye(len(x), dtype=prior.dtype))
    solve = lambda right: jax.scipy.linalg.solve_triangular(factor, right, lower=True)
    product = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    half = solve(cross)
    mean = product(half.T, solve(y.astype(prior.dtype)))
    covariance = kernel_matrix(kernel, x_test).materialize() - product(half.T, half)
    variance, directions = jnp.linalg.eigh(0.5 * (covariance + covariance.T))
    residual = product(directions.T, mean - y_test.astype(prior.dtype))
    if checks.is_concrete(variance) and not np.all(np.isfinite(np.asarray(variance))):
        raise ValueError(
            f"Expected a kernel matrix that is positive definite with jitter={jitter}, got one "
            f"that is not; raise jitter or use float64."
        )
    return InterpolantLoss(residual, jnp.maximum(variance, 0))


@jax.jit
def generalized_chi_square_tail(error: Array, residual: Array, variance: Array) -> Array:
    """``-log P(mean (residual + sqrt(variance) z)^2 <= error)``."""
    outputs = residual.shape[1]
    largest = jnp.max(variance) / residual.size
    unit = jnp.where(largest > 0, largest, 1)
    # In units of the largest weight: none over- or underflows however far out.
    weight = variance / residual.size / unit
    offset = jnp.sum(jnp.square(residual), axis=1) / residual.size / unit
    error = error / unit

    def tilted(tau: Array) -> tuple[Array, Array]:
        """The tilt, rising with ``tau``, and ``1 / (1 - 2 theta w)`` for every direction."""
        return -0.5 * jnp.expm1(-tau), 1 / (1 - weight + weight * jnp.exp(-tau))

    def mean(tau: Array) -> Array:
        v = tilted(tau)[1]
        return jnp.sum(outputs * weight * v + offset * jnp.square(v))

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        too_high = mean(middle) > error
        return jnp.where(too_high, low, middle), jnp.where(too_high, middle, high)

    ends = jnp.full((), LOWEST, error.dtype), jnp.full((), HIGHEST, error.dtype)
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, ends)
    tilt, v = tilted(0.5 * (low + high))
    own, shift = weight * v, offset * v
    cgf = jnp.sum(0.5 * outputs * jnp.log(v) + tilt * shift)
    second = jnp.sum(2 * outputs * own**2 + 4 * shift * own * v)
    third = jnp.sum(8 * outputs * own**3 + 24 * shift * own**2 * v)
    # Not tilt * sqrt(second), which underflows.
    own, shift = tilt * own, tilt * shift
    std = jnp.sqrt(jnp.sum(2 * outputs * own**2 + 4 * shift * own * v))
    value = saddlepoint.neg_log_cdf(error, tilt, cgf, jnp.sign(tilt) * std, third / second**1.5)
    certain = jnp.where(jnp.sum(offset) <= error, 0, jnp.inf)
    unreachable = mean(ends[0]) > error
    return jnp.where(largest > 0, jnp.where(unreachable, jnp.inf, value), certain)
