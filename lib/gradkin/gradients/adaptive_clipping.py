"""A clipping bound that follows a quantile of the gradient norms, privately."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.gradients.clipping import ClippedSum
from gradkin.typing import Array, PRNGKey, Scalar


@dataclasses.dataclass(frozen=True)
class QuantileClipping:
    """Geometric updates of the bound towards a quantile (Andrew et al. 2021, algorithm 1).

    .. math:: C \\leftarrow C \\exp(-\\eta (\\tilde b - \\gamma)),\\qquad
        \\tilde b = \\tfrac12 + \\tfrac1m \\big(\\textstyle\\sum_i (1[\\|g_i\\| \\le C] - \\tfrac12)
        + N(0, \\sigma_b^2)\\big)

    The count is released together with the gradient. For the joint release to have the noise
    multiplier z that is accounted for, the gradient gets the larger one
    ``(z^-2 - (2 sigma_b)^-2)^(-1/2)``.

    Args:
      quantile: ``gamma`` in [0, 1], the share of examples to leave unclipped.
      learning_rate: ``eta > 0``.
      count_noise: ``sigma_b > z / 2``, standard deviation of the noise on the count (twice that
        under "replace_one"); the paper takes a twentieth of the batch size.

    Raises:
      ValueError: values out of range.

    Example:
      >>> from gradkin import gradients
      >>> rule = gradients.QuantileClipping(quantile=0.5, count_noise=5.0)
      >>> round(rule.gradient_noise(1.0), 4)
      1.005

    References:
      Andrew, Thakkar, McMahan & Ramaswamy (2021), "Differentially Private Learning with Adaptive
      Clipping", NeurIPS, arXiv:1905.03871. :cite:`andrew:21`
    """

    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float = 10.0

    def __post_init__(self):
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"Expected quantile in [0, 1], got quantile={self.quantile}.")
        checks.positive(learning_rate=self.learning_rate, count_noise=self.count_noise)

    def gradient_noise(self, noise_multiplier: float) -> float:
        """Noise multiplier of the gradient so that the joint release has ``noise_multiplier``."""
        if noise_multiplier == 0:
            return 0.0
        left = noise_multiplier**-2 - (2 * self.count_noise) ** -2
        if left <= 0:
            raise ValueError(
                f"Expected count_noise > noise_multiplier / 2, got count_noise={self.count_noise} "
                f"and noise_multiplier={noise_multiplier}: the count alone would spend the budget."
            )
        return 1 / math.sqrt(left)

    def next_clip_norm(
        self, key: PRNGKey, total: ClippedSum, expected_size: Scalar, relation: str
    ) -> Array:
        """The bound of the next step, from this step's noised count."""
        signs = jnp.where(total.clipped[:, 0], np.float32(-0.5), np.float32(0.5))
        # Rows zeroed for NaN took part: they count as not clipped.
        centred = jnp.sum(jnp.where(total.kept, signs, np.float32(0)))
        centred = centred + np.float32(0.5) * total.nonfinite.astype(np.float32)
        std = np.float32(self.count_noise * (2 if relation == "replace_one" else 1))
        released = centred + std * jax.random.normal(key, (), np.float32)
        share = np.float32(0.5) + released / jnp.asarray(expected_size, np.float32)
        exponent = np.float32(self.learning_rate) * (share - np.float32(self.quantile))
        return total.clip_norms[0] * jnp.exp(-exponent)
