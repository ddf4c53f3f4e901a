"""Gaussian policies and weighted behavior cloning."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gradkin.checks import one_of, positive
from gradkin.dice.divergences import f_divergence
from gradkin.dice.networks import init_mlp, mlp
from gradkin.typing import PRNGKey, Scalar

WEIGHT_RULES = ("residual", "ratio")


class GaussianPolicy(NamedTuple):
    """Parameters of a diagonal Gaussian whose log standard deviation ignores the state.

    Attributes:
      mean: an MLP from observation to action.
      log_std: [A], clipped to [-5, 2] where it is used.
    """

    mean: Any
    log_std: Any


def init_policy(key: PRNGKey, sizes: tuple[int, ...]) -> GaussianPolicy:
    """A Gaussian policy with log standard deviation 0.

    Args:
      key: PRNG key.
      sizes: widths from observation to action.

    Returns:
      The policy's parameters.

    Example:
      >>> import jax
      >>> init_policy(jax.random.key(0), (3, 8, 2)).log_std.shape
      (2,)
    """
    return GaussianPolicy(init_mlp(key, sizes), jnp.zeros(sizes[-1]))


def policy_mean(
    policy: GaussianPolicy, observation: Float[Array, "*B I"], *, tanh: bool = False
) -> Float[Array, "*B A"]:
    """The Gaussian's mean; ``tanh`` squashes it into (-1, 1).

    Args:
      policy: parameters.
      observation: [..., I].
      tanh: squash the mean (the imitation variant does).

    Returns:
      Means [..., A].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> policy_mean(init_policy(jax.random.key(0), (3, 8, 2)), jnp.ones(3)).shape
      (2,)
    """
    mean = mlp(policy.mean, observation)[0]
    return jnp.tanh(mean) if tanh else mean


def act(
    policy: GaussianPolicy, observation: Float[Array, "*B I"], *, tanh: bool = False
) -> Float[Array, "*B A"]:
    """The deterministic action: the mean, clipped to [-1, 1] as the environments do.

    Args:
      policy: parameters.
      observation: [..., I].
      tanh: as in `policy_mean`.

    Returns:
      Actions [..., A] in [-1, 1].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> act(init_policy(jax.random.key(0), (3, 8, 2)), 100 * jnp.ones(3)).shape
      (2,)
    """
    return jnp.clip(policy_mean(policy, observation, tanh=tanh), -1.0, 1.0)


def log_prob(
    policy: GaussianPolicy,
    observation: Float[Array, "B I"],
    action: Float[Array, "B A"],
    *,
    tanh: bool = False,
) -> Float[Array, " B"]:
    """log pi(a|s), summed over the action's coordinates.

    Args:
      policy: parameters.
      observation: [B, I].
      action: [B, A].
      tanh: as in `policy_mean`.

    Returns:
      Log densities [B].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> policy = init_policy(jax.random.key(0), (3, 8, 2))
      >>> log_prob(policy, jnp.ones((4, 3)), jnp.ones((4, 2))).shape
      (4,)
    """
    mean = policy_mean(policy, observation, tanh=tanh)
    log_std = jnp.clip(policy.log_std, -5.0, 2.0)[None]
    standard = (action - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * jnp.square(standard) - log_std - 0.5 * math.log(2 * math.pi), -1)


def policy_weight(
    residual: Float[Array, "*S"],
    *,
    divergence: str = "pearson",
    rule: str = "residual",
    clip: Scalar = 100.0,
) -> Float[Array, "*S"]:
    """The weight of a transition in behavior cloning, without gradient.

    ``residual`` is the rule of the reference code, max(R, 0); ``ratio`` is the theory's density
    ratio, omega*(R) = max(0, (f')^{-1}(R)) (Mao et al. 2024, section 3).

    Args:
      residual: R = r + gamma (1 - done) V(s') - V(s), any shape.
      divergence: name of the f-divergence, read by rule ``ratio`` only.
      rule: ``"residual"`` or ``"ratio"``.
      clip: weights are cut at this value, > 0.

    Returns:
      Weights of ``residual``'s shape, in [0, clip].

    Raises:
      ValueError: on an unknown rule or divergence, or ``clip <= 0``.

    Note:
      The two differ: for Pearson a transition with R = -1 weighs 0 under ``residual`` and 1/2
      under ``ratio``. The paper's experiments ran with ``residual``.

    Example:
      >>> import jax.numpy as jnp
      >>> policy_weight(jnp.array([-3., -1., 1.])).tolist()
      [0.0, 0.0, 1.0]
      >>> policy_weight(jnp.array([-3., -1., 1.]), rule="ratio").tolist()
      [0.0, 0.5, 1.5]

    References:
        Mao et al. (2024), "ODICE: Revealing the Mystery of Distribution Correction Estimation via
        Orthogonal-gradient Update", arXiv:2402.00348. :cite:`odice`
    """
    one_of(WEIGHT_RULES, rule=rule)
    positive(clip=clip)
    f = f_divergence(divergence)
    weight = f.density_ratio(residual) if rule == "ratio" else jnp.maximum(residual, 0.0)
    return jax.lax.stop_gradient(jnp.minimum(weight, clip))


def weighted_cloning_loss(
    log_probs: Float[Array, " B"], weights: Float[Array, "*H B"]
) -> Float[Array, ""]:
    """- mean of weight * log pi(a|s), over the batch and over the value heads if there are any.

    Args:
      log_probs: log pi(a|s), [B].
      weights: [B], or [H, B] with one row per value head.

    Returns:
      The loss.

    Raises:
      ValueError: if the last axis of ``weights`` is not the batch.

    Example:
      >>> import jax.numpy as jnp
      >>> float(weighted_cloning_loss(jnp.array([-1., -2.]), jnp.array([[2., 0.], [0., 0.]])))
      0.5
    """
    if weights.shape[-1:] != log_probs.shape:
        raise ValueError(
            f"Expected weights [..., B] with B={log_probs.shape[0]}, got {weights.shape}."
        )
    return -jnp.mean(weights.reshape(-1, log_probs.shape[0]).mean(0) * log_probs)
