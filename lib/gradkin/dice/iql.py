"""Implicit Q-learning, a baseline from the same parts."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gradkin import optim
from gradkin.dice.networks import critic_heads, init_heads, value_heads
from gradkin.dice.policy import (
    GaussianPolicy,
    init_policy,
    log_prob,
    weighted_cloning_loss,
)
from gradkin.dice.targets import polyak_update
from gradkin.dice.transitions import Transitions, bootstrap_factor
from gradkin.typing import PRNGKey, PyTree, Scalar


@dataclass(frozen=True, kw_only=True)
class IqlConfig:
    """Settings of `iql_update`.

    Attributes:
      expectile: tau in (0, 1); 0.7 for locomotion, 0.9 for antmaze.
      temperature: beta of the weights exp(beta (Q - V)); 3 and 10.
      max_weight: the weights' cut.
      discount: gamma.
      target_rate: of the critics' moving average.
      learning_rate: Adam's, for all three.
      hidden_sizes: widths of all three.
      tanh: squash the policy's mean.
    """

    expectile: float = 0.7
    temperature: float = 3.0
    max_weight: float = 100.0
    discount: float = 0.99
    target_rate: float = 0.005
    learning_rate: float = 3e-4
    hidden_sizes: tuple[int, ...] = (256, 256)
    tanh: bool = True


class IqlState(NamedTuple):
    """Attributes: value, critic (twin), target (of the critic), policy, optimizer (one Adam)."""

    value: PyTree
    critic: PyTree
    target: PyTree
    policy: GaussianPolicy
    optimizer: Any


def expectile_loss(difference: Float[Array, "*S"], expectile: Scalar) -> Float[Array, "*S"]:
    """|tau - 1(u < 0)| u^2 (Kostrikov et al. 2022, eq. 5).

    Args:
      difference: u, any shape.
      expectile: tau in (0, 1).

    Returns:
      The loss, elementwise.

    Example:
      >>> import jax.numpy as jnp
      >>> expectile_loss(jnp.array([-2., 2.]), 0.75).tolist()
      [1.0, 3.0]
    """
    weight = jnp.where(difference < 0, 1.0 - expectile, expectile)
    return weight * jnp.square(difference)


def iql_init(
    key: PRNGKey, config: IqlConfig, *, observation_size: int, action_size: int
) -> IqlState:
    """Fresh networks.

    Args:
      key: PRNG key.
      config: settings.
      observation_size: length of an observation.
      action_size: length of an action.

    Returns:
      The state.

    Example:
      >>> import jax
      >>> config = IqlConfig(hidden_sizes=(8,))
      >>> init = lambda key: iql_init(key, config, observation_size=3, action_size=2)
      >>> jax.eval_shape(init, jax.random.key(0)).policy.log_std.shape
      (2,)
    """
    value_key, critic_key, policy_key = jax.random.split(key, 3)
    hidden = config.hidden_sizes
    value = init_heads(value_key, 1, (observation_size, *hidden, 1))
    critic = init_heads(critic_key, 2, (observation_size + action_size, *hidden, 1))
    policy = init_policy(policy_key, (observation_size, *hidden, action_size))
    optimizer = optax.adam(config.learning_rate).init((value, critic, policy))
    return IqlState(value, critic, jax.tree.map(jnp.copy, critic), policy, optimizer)


def iql_update(
    config: IqlConfig, state: IqlState, batch: Transitions
) -> tuple[IqlState, Float[Array, ""]]:
    """One step: V to an expectile of Q, the policy by advantage weights, Q to r + gamma V(s').

    Args:
      config: settings.
      state: the state.
      batch: B transitions.

    Returns:
      The new state and mean V(s).

    Note:
      One Adam over the three disjoint losses equals three; the critic's goal uses the V of before
      the step, the original the V of after it.

    Example:
      >>> import functools, jax, numpy as np
      >>> s, r = np.ones((4, 3), np.float32), np.zeros(4, np.float32)
      >>> config = IqlConfig(hidden_sizes=(8,))
      >>> init = functools.partial(iql_init, config=config, observation_size=3, action_size=2)
      >>> state = jax.eval_shape(init, jax.random.key(0))
      >>> update = functools.partial(iql_update, config)
      >>> jax.eval_shape(update, state, Transitions(s, s[:, :2], r, s, r))[1].shape
      ()

    References:
        Kostrikov, Nair & Levine (2022), "Offline Reinforcement Learning with Implicit Q-Learning",
        arXiv:2110.06169. :cite:`kostrikov:22`
    """
    q = critic_heads(state.target, batch.observation, batch.action).min(0)
    after = value_heads(state.value, batch.next_observation)[0][0]
    goal = batch.reward + bootstrap_factor(batch, config.discount) * after

    def loss(trained: tuple[PyTree, PyTree, GaussianPolicy]) -> tuple[Array, Array]:
        value, critic, policy = trained
        v = value_heads(value, batch.observation)[0][0]
        advantage = jax.lax.stop_gradient(q - v)
        weights = jnp.minimum(jnp.exp(config.temperature * advantage), config.max_weight)
        log_probs = log_prob(policy, batch.observation, batch.action, tanh=config.tanh)
        errors = critic_heads(critic, batch.observation, batch.action) - goal[None]
        total = expectile_loss(q - v, config.expectile).mean() + jnp.square(errors).mean(1).sum()
        return total + weighted_cloning_loss(log_probs, weights), v.mean()

    trained = (state.value, state.critic, state.policy)
    grads, mean_value = jax.grad(loss, has_aux=True)(trained)
    optimizer = optax.adam(config.learning_rate)
    (value, critic, policy), opt = optim.update(optimizer, grads, state.optimizer, trained)
    target = polyak_update(state.target, critic, config.target_rate)
    return IqlState(value, critic, target, policy, opt), mean_value
