"""A scaled non-central chi-square law: fitted to losses, asked for its far lower tail."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.kernels import saddlepoint
from gradkin.typing import Array, ArrayLike, Scalar

# Newton steps of the likelihood; each is at most this long in every logarithm.
NEWTON_STEPS = 40
LONGEST_STEP = 1.0


class ScaledNoncentralChiSquare(NamedTuple):
    """The law of ``scale |z + m|^2``: ``z`` normal in ``df`` dimensions, ``|m|^2 = noncentrality``.

    Attributes:
      df: degrees of freedom > 0, not necessarily whole.
      noncentrality: >= 0.
      scale: > 0.
    """

    df: Scalar
    noncentrality: Scalar
    scale: Scalar

    def mean(self) -> Array:
        """``scale (df + noncentrality)``."""
        return jnp.asarray(self.scale) * (self.df + self.noncentrality)

    def log_density(self, value: ArrayLike) -> Array:
        """Log-density by the saddlepoint approximation with its second-order correction.

        Within 0.01 of the truth where ``df + noncentrality >= 2``; near zero below, where the law
        has no moderate number of degrees of freedom.
        """
        x = jnp.asarray(value) / self.scale
        v, tilt, cgf = self._tilted(x)
        # Cumulants over v^r: those themselves underflow near zero.
        second, third, fourth = (self._cumulant(r, v) for r in (2, 3, 4))
        correction = fourth / (8 * second**2) - 5 * third**2 / (24 * second**3)
        log_density = cgf - tilt * x - 0.5 * jnp.log(2 * jnp.pi * second) - jnp.log(v) + correction
        return log_density - jnp.log(self.scale)

    def neg_log_cdf(self, value: ArrayLike, *, method: str = "saddlepoint") -> Array:
        """``-log P(X <= value)`` in nats, also where the probability underflows.

        =============  ==========================================================================
        method         formula, and the error against the exact law
        =============  ==========================================================================
        saddlepoint    Barndorff-Nielsen (1986); within 0.1 nats at any depth from 2 degrees on
        sankaran       ``-log Phi(z)`` of a transformed value; close for a noncentrality of hundreds
        reference      ``z^2 / 2`` of the same, the paper's code; misses 2 to 3 nats more
        =============  ==========================================================================

        Args:
          value: any shape, > 0.
          method: one of the three.

        Raises:
          ValueError: ``value`` not positive, or an unknown method.
        """
        checks.one_of(("saddlepoint", "sankaran", "reference"), method=method)
        checks.positive(value=value)
        x = jnp.asarray(value) / self.scale
        if method == "saddlepoint":
            v, tilt, cgf = self._tilted(x)
            second, third = self._cumulant(2, v), self._cumulant(3, v)
            tilted_std = 0.5 * (v - 1) * jnp.sqrt(second)
            return saddlepoint.neg_log_cdf(x, tilt, cgf, tilted_std, third / second**1.5)
        z = self._sankaran(x)
        if method == "sankaran":
            return -jax.scipy.special.log_ndtr(z)
        return jnp.where(z < 0, 0.5 * jnp.square(z), 0.0)

    def _tilted(self, x: Array) -> tuple[Array, Array, Array]:
        """``1 / (1 - 2 theta)``, the tilt ``theta`` with mean ``x``, and ``K(theta)``."""
        k, nc = jnp.asarray(self.df), jnp.asarray(self.noncentrality)
        v = 2 * x / (k + jnp.sqrt(jnp.square(k) + 4 * nc * x))
        tilt = 0.5 * (1 - 1 / v)
        return v, tilt, 0.5 * k * jnp.log(v) + tilt * nc * v

    def _cumulant(self, order: int, v: Array) -> Array:
        """``K^(r)(theta) / v^r = 2^{r-1} (r-1)! (df + r noncentrality v)``."""
        factor = 2 ** (order - 1) * math.factorial(order - 1)
        return factor * (self.df + order * self.noncentrality * v)

    def _sankaran(self, x: Array) -> Array:
        """The normal quantile that belongs to ``x``, approximately."""
        k, nc = jnp.asarray(self.df), jnp.asarray(self.noncentrality)
        mean, spread = k + nc, k + 2 * nc
        h = 1 - 2 / 3 * mean * (k + 3 * nc) / jnp.square(spread)
        p = spread / jnp.square(mean)
        m = (h - 1) * (1 - 3 * h)
        middle = 1 + h * p * (h - 1 - 0.5 * (2 - h) * m * p)
        return ((x / mean) ** h - middle) / (h * jnp.sqrt(2 * p) * (1 + 0.5 * m * p))


def fit_noncentral_chi_square(losses: Float[ArrayLike, " samples"]) -> ScaledNoncentralChiSquare:
    """Fit a scaled non-central chi-square to losses by maximum likelihood, location zero.

    Newton's method on the logarithms of the three parameters, from those that match the first
    three cumulants. The losses are divided by their mean first, so that their size does not matter.

    Args:
      losses: ``[samples]`` >= 0, at least three that differ; hundreds for a tail worth reading.

    Returns:
      The law; its arrays can be mapped, as over bootstrap samples.

    Raises:
      ValueError: fewer than three losses, a negative or non-finite one, or all equal.

    Example:
      >>> import jax
      >>> from gradkin import kernels
      >>> losses = 0.1 * jax.random.chisquare(jax.random.key(0), 6.0, shape=(5000,))
      >>> law = kernels.fit_noncentral_chi_square(losses)
      >>> bool(abs(law.neg_log_cdf(0.1) - 4.24) < 0.1)  # the chi-square's own is 4.24
      True

    References:
      Boopathy, Yue, Hwang, Iyer & Fiete (2024), "Towards Exact Computation of Inductive Bias",
      arXiv:2406.15941. :cite:`exact-inductive-bias`

    Note:
      The likelihood is that of the saddlepoint density, in closed form; the reference maximizes
      the exact one from SciPy's default start, which gives nonsense for small losses. Where the
      losses are more skewed than any such law, the noncentrality goes to zero.
    """
    checks.rank(1, losses=losses)
    losses = jnp.asarray(losses)
    if losses.shape[0] < 3:
        raise ValueError(f"Expected at least 3 losses, got {losses.shape[0]}.")
    if checks.is_concrete(losses):
        host = np.asarray(losses)
        if not np.all(np.isfinite(host)) or np.any(host < 0) or np.all(host == host[0]):
            raise ValueError(
                f"Expected finite losses >= 0 that differ, got values from {host.min()} to "
                f"{host.max()}."
            )
    return maximize_likelihood(losses)


@jax.jit
def maximize_likelihood(losses: Array) -> ScaledNoncentralChiSquare:
    """The fit itself."""
    mean = jnp.mean(losses)
    # A loss of zero has no logarithm; none can be told from the smallest normal number.
    x = jnp.maximum(losses / mean, jnp.finfo(losses.dtype).tiny ** 0.5)

    def objective(logs: Array) -> Array:
        return -jnp.mean(ScaledNoncentralChiSquare(*jnp.exp(logs)).log_density(x))

    def newton(_: Any, logs: Array) -> Array:
        slope, bend = jax.grad(objective)(logs), jax.hessian(objective)(logs)
        curvatures, directions = jnp.linalg.eigh(bend)
        # Rounding decides the sign of a flat direction, so every direction goes downhill.
        floor = jnp.sqrt(jnp.finfo(x.dtype).eps) * jnp.max(jnp.abs(curvatures))
        step = directions @ ((directions.T @ slope) / jnp.maximum(jnp.abs(curvatures), floor))
        step = step * jnp.minimum(1.0, LONGEST_STEP / jnp.maximum(jnp.max(jnp.abs(step)), 1e-30))
        lengths = jnp.append(0.5 ** jnp.arange(8, dtype=x.dtype), 0.0)
        candidates = logs[None] - lengths[:, None] * step[None]
        values = jax.lax.map(objective, candidates)
        return candidates[jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))]

    logs = jax.lax.fori_loop(0, NEWTON_STEPS, newton, jnp.log(jnp.stack(match_cumulants(x))))
    df, noncentrality, scale = jnp.exp(logs)
    return ScaledNoncentralChiSquare(df, noncentrality, scale * mean)


def match_cumulants(x: Array) -> ScaledNoncentralChiSquare:
    """The law with the first three cumulants of ``x``, or the nearest one with positive parameters.

    With ``a, b, c`` the cumulants over 1, 2, 8: ``a s^2 - 2 b s + c = 0``, the smaller root.
    """
    centered = x - jnp.mean(x)
    a, b, c = jnp.mean(x), jnp.mean(centered**2) / 2, jnp.mean(centered**3) / 8
    root = (b - jnp.sqrt(jnp.maximum(b**2 - a * c, 0))) / a
    # Where df and noncentrality are positive; a little inside, for the logarithms' sake.
    scale = jnp.clip(root, 0.55 * b / a, 0.95 * b / a)
    return ScaledNoncentralChiSquare(2 * a / scale - b / scale**2, (b / scale - a) / scale, scale)
