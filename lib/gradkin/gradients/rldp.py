"""RLDP: clipping bounds and noise chosen by an agent while a private run goes on."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.gradients.clipping import ClippedSum
from gradkin.gradients.rdp_filter import RdpFilter
from gradkin.typing import Array, PRNGKey, Scalar

SOURCES = ("noised", "public", "private_unaccounted")


@dataclasses.dataclass(frozen=True)
class RldpController:
    """What the agent's actions do, and where the statistics it sees come from.

    An action in ``[-1, 1]^(K + 1)`` moves the logarithms of the K clipping bounds and of the noise
    multiplier by at most ``clip_step`` and ``noise_step``, within ranges.

    Args:
      clip_range: least and largest bound.
      noise_range: least and largest noise multiplier.
      clip_step: largest change of a log bound, > 0.
      noise_step: largest change of the log noise multiplier, >= 0; 0 keeps it.
      stat_source: "noised" (released with the gradient, see `noised_statistics`), "public", or
        "private_unaccounted", for which no epsilon is given.

    Raises:
      ValueError: values out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> controller = gradients.RldpController((0.01, 10.0), (0.5, 4.0), stat_source="public")
      >>> bounds, noise = controller.apply(jnp.ones(2), jnp.float32(1.0), jnp.zeros(3))
      >>> bounds.tolist(), float(noise)
      ([1.0, 1.0], 1.0)

    Note:
      From the paper: bounds per parameter group and noise set by soft actor-critic online, under
      an unchanged (epsilon, delta). Everything else is our design, as the paper's details were not
      available: log-scale steps, the observation, the reward's form, the noised statistics, and
      the Renyi filter that makes adaptively chosen noise sound.

    References:
      Khadangi, Sartipi, Tchappi, Bahmani & Fridgen (2025), "Efficient Differentially Private
      Fine-Tuning of LLMs via Reinforcement Learning", arXiv:2507.22565. :cite:`rldp-adaptive-dp`
    """

    clip_range: tuple[float, float]
    noise_range: tuple[float, float]
    clip_step: float = 0.2
    noise_step: float = 0.1
    stat_source: str = "noised"

    def __post_init__(self):
        checks.positive(
            clip_range=self.clip_range, noise_range=self.noise_range, clip_step=self.clip_step
        )
        checks.non_negative(noise_step=self.noise_step)
        checks.one_of(SOURCES, stat_source=self.stat_source)

    def apply(
        self, clip_norms: Float[Array, " groups"], noise_multiplier: Scalar, action: Array
    ) -> tuple[Array, Array]:
        """The next bounds and noise multiplier; a zero action changes nothing."""
        if action.shape != (clip_norms.shape[0] + 1,):
            raise ValueError(
                f"Expected action of shape ({clip_norms.shape[0] + 1},), one per group and one for "
                f"the noise, got {action.shape}."
            )
        noise = jnp.asarray(noise_multiplier, np.float32)
        moved = clip_norms * jnp.exp(np.float32(self.clip_step) * action[:-1])
        noise = noise * jnp.exp(np.float32(self.noise_step) * action[-1])
        return jnp.clip(moved, *self.clip_range), jnp.clip(noise, *self.noise_range)

    def spent_epsilon(self, budget: RdpFilter, spent: Scalar) -> Array:
        """Epsilon of a run; refused where the agent saw private statistics for free."""
        if self.stat_source == "private_unaccounted":
            raise ValueError(
                "Expected stat_source='noised' or 'public', got 'private_unaccounted': bounds and "
                "noise that depend on raw losses or norms leak them, and nothing was paid for it."
            )
        return budget.spent_epsilon(spent)


def rldp_reward(
    utility_gain: Scalar, epsilon_spent: Scalar, *, kappa: float = 1e-3
) -> Float[Array, ""]:
    """Utility gained per privacy spent: ``sign(dU) log(1 + |dU| / (d eps + kappa))``.

    Args:
      utility_gain: drop of a smoothed loss since the last action.
      epsilon_spent: privacy spent since then, >= 0.
      kappa: > 0.

    Returns:
      The reward; negative where the loss rose.

    Raises:
      ValueError: a non-positive kappa.

    Example:
      >>> from gradkin import gradients
      >>> float(gradients.rldp_reward(0.0, 0.1))
      0.0

    Note:
      The paper's logarithm of gain over cost, with a sign of ours so that a worsening is punished.

    References:
      Khadangi et al. (2025), arXiv:2507.22565. :cite:`rldp-adaptive-dp`
    """
    checks.positive(kappa=kappa)
    gain = jnp.asarray(utility_gain, np.float32)
    cost = jnp.asarray(epsilon_spent, np.float32) + np.float32(kappa)
    return jnp.sign(gain) * jnp.log1p(jnp.abs(gain) / cost)


def noised_statistics(
    key: PRNGKey,
    total: ClippedSum,
    losses: Float[Array, " examples"],
    *,
    loss_bound: float,
    expected_size: float,
    noise_multiplier: Scalar,
) -> tuple[Float[Array, " groups"], Float[Array, ""]]:
    """Shares of unclipped examples and the mean loss, released with noise of their own.

    K bits and a loss in [0, loss_bound], each centred to +-1/2: together they move by at most
    ``sqrt(K + 1) / 2`` when one example is added or removed. Joint with a gradient of noise
    multiplier ``g``, the step has ``(g^-2 + noise_multiplier^-2)^(-1/2)``: see `joint_noise`.

    Args:
      key: a key used for nothing else.
      total: from `clipped_sum`.
      losses: of the examples ``[B]``; padding is left out.
      loss_bound: losses are cut at this value, > 0.
      expected_size: expected number of examples.
      noise_multiplier: noise over sensitivity of these statistics, > 0.

    Returns:
      Estimated shares ``[K]`` and the estimated mean of the cut loss.

    Raises:
      ValueError: values that are not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import gradients
      >>> G = gradkin.per_example_grads(lambda w, x: w @ x)(jnp.zeros(2), jnp.eye(2))
      >>> total = gradients.clipped_sum(G, 2.0)
      >>> shares, loss = gradients.noised_statistics(
      ...     jax.random.key(0), total, jnp.ones(2), loss_bound=2.0, expected_size=2.0,
      ...     noise_multiplier=1e-6)
      >>> shares.round(3).tolist(), round(float(loss), 3)
      ([1.0], 1.0)
    """
    checks.positive(
        loss_bound=loss_bound, expected_size=expected_size, noise_multiplier=noise_multiplier
    )
    bits = jnp.where(total.clipped, np.float32(-0.5), np.float32(0.5))
    share = jnp.clip(losses.astype(np.float32) / np.float32(loss_bound), 0.0, 1.0)
    share = jnp.where(jnp.isfinite(share), share, np.float32(1)) - np.float32(0.5)
    rows = jnp.concatenate([bits, share[:, None]], axis=1)
    rows = jnp.where(total.kept[:, None], rows, np.float32(0))
    sums = jnp.sum(rows, axis=0)
    std = jnp.asarray(noise_multiplier, np.float32) * np.float32(0.5 * math.sqrt(len(sums)))
    released = (sums + std * jax.random.normal(key, sums.shape)) / np.float32(expected_size)
    released = released + np.float32(0.5)
    return released[:-1], released[-1] * np.float32(loss_bound)


def joint_noise(noise_multiplier: Scalar, statistics_noise: Scalar) -> Float[Array, ""]:
    """Noise multiplier left for the gradient when statistics are released with it.

    Args:
      noise_multiplier: ``z > 0`` of the whole step, which the accountant sees.
      statistics_noise: of the statistics, above ``z``.

    Returns:
      ``(z^-2 - statistics_noise^-2)^(-1/2)``; infinite where the statistics alone cost that much.

    Raises:
      ValueError: values that are not positive.

    Example:
      >>> from gradkin import gradients
      >>> round(float(gradients.joint_noise(1.0, 5.0)), 4)
      1.0206
    """
    checks.positive(noise_multiplier=noise_multiplier, statistics_noise=statistics_noise)
    whole = jnp.asarray(noise_multiplier, np.float32) ** -2
    left = whole - jnp.asarray(statistics_noise, np.float32) ** -2
    return jnp.where(left > 0, 1 / jnp.sqrt(jnp.maximum(left, np.float32(1e-30))), np.inf)
