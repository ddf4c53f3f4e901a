"""Tail probabilities from a cumulant generating function, also where they underflow."""

import jax
import jax.numpy as jnp

from gradkin.typing import Array

# Nearer to the mean, the two terms of the formula cancel: their limit is used.
NEAR_MEAN = 0.05


def neg_log_cdf(value: Array, tilt: Array, cgf: Array, tilted_std: Array, skewness: Array) -> Array:
    """``-log P(X <= x)`` by the saddlepoint approximation (Barndorff-Nielsen 1986).

    .. math:: P \\approx \\Phi\\big(r + \\tfrac1r \\log\\tfrac ur\\big), \\quad
        r = \\mathrm{sign}(\\theta) \\sqrt{2(\\theta x - K(\\theta))}, \\quad
        u = \\theta \\sqrt{K^{(2)}(\\theta)}

    Args:
      value: ``x``.
      tilt: ``theta`` with ``K^(1)(theta) = x``.
      cgf: ``K(theta)``, the cumulant generating function ``log E exp(theta X)``.
      tilted_std: ``u``; its factors may over- and underflow where it does not.
      skewness: ``K^(3)(theta) / K^(2)(theta)^{3/2}``, needed near the mean only.

    Returns:
      Nats; relative errors of probabilities stay bounded however far out.

    References:
      Barndorff-Nielsen (1986), "Inference on Full or Partial Parameters Based on the Standardized
      Signed Log Likelihood Ratio", Biometrika 73. :cite:`barndorff-nielsen:86`
    """
    r = jnp.sign(tilt) * jnp.sqrt(2 * jnp.maximum(tilt * value - cgf, 0))
    near = jnp.abs(r) < NEAR_MEAN
    ratio = jnp.where(near, 1.0, tilted_std / jnp.where(near, 1.0, r))
    far = r + jnp.log(ratio) / jnp.where(near, 1.0, r)
    return -jax.scipy.special.log_ndtr(jnp.where(near, tilted_std + skewness / 6, far))
