"""The offline RL algorithm: orthogonal-gradient value learning and weighted behavior cloning."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkin import optim
from gradkin.checks import positive
from gradkin.dice.networks import init_heads, value_heads
from gradkin.dice.policy import (
    GaussianPolicy,
    init_policy,
    log_prob,
    policy_weight,
    weighted_cloning_loss,
)
from gradkin.dice.targets import polyak_update
from gradkin.dice.transitions import Transitions
from gradkin.dice.value import ValueDiagnostics, check_lambda, value_gradient
from gradkin.pytrees import register_dataclass
from gradkin.typing import PRNGKey, PyTree

STATIC: Any = {"static": True}


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class OdiceConfig:
    """Settings of `odice_update`; ``lam``, ``eta`` are children and may be traced or mapped over.

    The paper tunes lambda and eta per data set and its values are not published with the code, so
    both must be given; the reference code's defaults are 0.6 and 1.0 (its default data set is
    hopper-medium-replay) and 0.4 and 1.0 for imitation. The other defaults are its offline RL ones.

    Attributes:
      lam: lambda in (0, 1); larger is greedier.
      eta: weight of the projected backward gradient, >= 0.
      rule: ``"orthogonal"`` (O-DICE), ``"semi"`` (S-DICE) or ``"true"`` (V-DICE).
      divergence: name for `f_divergence`.
      weight_rule: rule of `policy_weight`.
      discount: gamma.
      target_rate: rate of the target's moving average.
      value_learning_rate: Adam's, no schedule.
      policy_learning_rate: Adam's, no schedule.
      weight_decay: L2 inside Adam, policy only.
      value_sizes: hidden widths of V.
      policy_sizes: hidden widths of the policy.
      num_heads: 2 are twin heads; 1 for the large antmaze sets.
      layer_norm: in V; off for antmaze.
      tanh: squash the policy's mean.
    """

    # Any: under vmap and in tree prefixes these are whole arrays, axis numbers or None.
    lam: Any
    eta: Any
    rule: str = field(default="orthogonal", metadata=STATIC)
    divergence: str = field(default="pearson", metadata=STATIC)
    weight_rule: str = field(default="residual", metadata=STATIC)
    discount: float = field(default=0.99, metadata=STATIC)
    target_rate: float = field(default=0.005, metadata=STATIC)
    value_learning_rate: float = field(default=2e-4, metadata=STATIC)
    policy_learning_rate: float = field(default=2e-4, metadata=STATIC)
    weight_decay: float = field(default=1e-4, metadata=STATIC)
    value_sizes: tuple[int, ...] = field(default=(256, 256), metadata=STATIC)
    policy_sizes: tuple[int, ...] = field(default=(1024, 1024), metadata=STATIC)
    num_heads: int = field(default=2, metadata=STATIC)
    layer_norm: bool = field(default=True, metadata=STATIC)
    tanh: bool = field(default=False, metadata=STATIC)


class OdiceState(NamedTuple):
    """Parameters and optimizer states.

    Attributes:
      value: online V, `init_heads`' tree.
      target: its moving average.
      policy: a `GaussianPolicy`.
      value_optimizer: optax state.
      policy_optimizer: optax state.
    """

    value: PyTree
    target: PyTree
    policy: GaussianPolicy
    value_optimizer: Any
    policy_optimizer: Any


class OdiceMetrics(NamedTuple):
    """What one update saw.

    Attributes:
      value: mean V(s) = linear loss / (1 - lambda).
      forward_loss: lambda mean f*(y_f).
      policy_loss: weighted cloning loss.
      weight: mean weight.
      diagnostics: of the value gradient.
    """

    value: Any
    forward_loss: Any
    policy_loss: Any
    weight: Any
    diagnostics: ValueDiagnostics


def optimizers(
    config: OdiceConfig,
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Adam for V; Adam with the decay added to the gradient (not AdamW) for the policy."""
    decayed = optax.chain(
        optax.add_decayed_weights(config.weight_decay), optax.adam(config.policy_learning_rate)
    )
    return optax.adam(config.value_learning_rate), decayed


def odice_init(
    key: PRNGKey, config: OdiceConfig, *, observation_size: int, action_size: int
) -> OdiceState:
    """Fresh networks; the target starts equal to V.

    Args:
      key: PRNG key.
      config: settings.
      observation_size: length of an observation.
      action_size: length of an action.

    Returns:
      The state.

    Raises:
      ValueError: on ``lam`` outside (0, 1) or a size < 1.

    Example:
      >>> import jax
      >>> config = OdiceConfig(lam=0.6, eta=1.0, value_sizes=(8,), policy_sizes=(8,))
      >>> init = lambda key: odice_init(key, config, observation_size=3, action_size=2)
      >>> jax.eval_shape(init, jax.random.key(0)).policy.log_std.shape
      (2,)
    """
    check_lambda(config.lam)
    positive(observation_size=observation_size, action_size=action_size)
    value_key, policy_key = jax.random.split(key)
    sizes = (observation_size, *config.value_sizes, 1)
    value = init_heads(value_key, config.num_heads, sizes, layer_norm=config.layer_norm)
    policy = init_policy(policy_key, (observation_size, *config.policy_sizes, action_size))
    value_optimizer, policy_optimizer = optimizers(config)
    # A copy: the two buffers are donated or sharded apart.
    target = jax.tree.map(jnp.copy, value)
    return OdiceState(
        value, target, policy, value_optimizer.init(value), policy_optimizer.init(policy)
    )


def odice_update(
    config: OdiceConfig, state: OdiceState, batch: Transitions
) -> tuple[OdiceState, OdiceMetrics]:
    """One update of value, target and policy (Mao et al. 2024, algorithm 1).

    The order is the reference code's: the residual and the step of V with the old networks, then
    the target's average, then the policy's step weighted by the *old* residual, whose heads are
    averaged. ``rule="semi"`` is S-DICE, ``rule="true"`` V-DICE.

    Args:
      config: settings; a pytree, so that lambda and eta can be mapped over by ``vmap``.
      state: the state.
      batch: B transitions with rewards already processed.

    Returns:
      The new state and the update's metrics.

    Raises:
      ValueError: as `value_gradient` and `policy_weight`.

    Example:
      >>> import functools, jax, numpy as np
      >>> config = OdiceConfig(lam=0.6, eta=1.0, value_sizes=(8,), policy_sizes=(8,))
      >>> init = functools.partial(odice_init, config=config, observation_size=3, action_size=2)
      >>> state = jax.eval_shape(init, jax.random.key(0))
      >>> s, r = np.ones((4, 3), np.float32), np.zeros(4, np.float32)
      >>> batch = Transitions(s, s[:, :2], r, s, r)
      >>> state, metrics = jax.eval_shape(odice_update, config, state, batch)
      >>> metrics.weight.shape
      ()

    References:
        Mao et al. (2024), "ODICE: Revealing the Mystery of Distribution Correction Estimation via
        Orthogonal-gradient Update", arXiv:2402.00348. :cite:`odice`
    """
    out = value_gradient(
        value_heads,
        state.value,
        state.target,
        batch,
        lam=config.lam,
        eta=config.eta,
        discount=config.discount,
        divergence=config.divergence,
        rule=config.rule,
        has_features=True,
    )
    weights = policy_weight(out.residual, divergence=config.divergence, rule=config.weight_rule)

    def cloning(policy: GaussianPolicy) -> jax.Array:
        log_probs = log_prob(policy, batch.observation, batch.action, tanh=config.tanh)
        return weighted_cloning_loss(log_probs, weights)

    policy_loss, policy_gradient = jax.value_and_grad(cloning)(state.policy)
    value_optimizer, policy_optimizer = optimizers(config)
    value, value_state = optim.update(
        value_optimizer, out.gradient, state.value_optimizer, state.value
    )
    policy, policy_state = optim.update(
        policy_optimizer, policy_gradient, state.policy_optimizer, state.policy
    )
    target = polyak_update(state.target, value, config.target_rate)
    metrics = OdiceMetrics(
        out.linear_loss / (1 - config.lam),
        out.forward_loss,
        policy_loss,
        weights.mean(),
        out.diagnostics,
    )
    return OdiceState(value, target, policy, value_state, policy_state), metrics
