"""TD3+BC, a baseline from the same parts."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gradkin import optim
from gradkin.dice.networks import critic_heads, init_heads, init_mlp, mlp
from gradkin.dice.targets import polyak_update
from gradkin.dice.transitions import Transitions, bootstrap_factor
from gradkin.typing import PRNGKey, PyTree


@dataclass(frozen=True, kw_only=True)
class Td3BcConfig:
    """Settings of `td3_bc_update`.

    Attributes:
      alpha: weight of Q against cloning.
      noise: standard deviation of the target policy's noise.
      noise_clip: its cut.
      policy_every: critic steps per policy step.
      discount: gamma.
      target_rate: of both moving averages.
      learning_rate: Adam's, for both.
      hidden_sizes: widths of both.
    """

    alpha: float = 2.5
    noise: float = 0.2
    noise_clip: float = 0.5
    policy_every: int = 2
    discount: float = 0.99
    target_rate: float = 0.005
    learning_rate: float = 3e-4
    hidden_sizes: tuple[int, ...] = (256, 256)


class Td3BcState(NamedTuple):
    """Attributes: policy and twin critic, their targets, two Adam states, the step's number."""

    policy: PyTree
    critic: PyTree
    target_policy: PyTree
    target_critic: PyTree
    policy_optimizer: Any
    critic_optimizer: Any
    step: Any


def td3_bc_init(
    key: PRNGKey, config: Td3BcConfig, *, observation_size: int, action_size: int
) -> Td3BcState:
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
      >>> config = Td3BcConfig(hidden_sizes=(8,))
      >>> int(td3_bc_init(jax.random.key(0), config, observation_size=3, action_size=2).step)
      0
    """
    policy_key, critic_key = jax.random.split(key)
    hidden = config.hidden_sizes
    policy = init_mlp(policy_key, (observation_size, *hidden, action_size))
    critic = init_heads(critic_key, 2, (observation_size + action_size, *hidden, 1))
    adam = optax.adam(config.learning_rate)
    copy = lambda tree: jax.tree.map(jnp.copy, tree)
    states = adam.init(policy), adam.init(critic)
    step = jnp.zeros((), jnp.int32)
    return Td3BcState(policy, critic, copy(policy), copy(critic), states[0], states[1], step)


def td3_bc_action(policy: PyTree, observation: Float[Array, "*B I"]) -> Float[Array, "*B A"]:
    """The deterministic policy tanh(mlp(s)).

    Args:
      policy: parameters.
      observation: [..., I], normalised as in training.

    Returns:
      Actions [..., A].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> td3_bc_action(init_mlp(jax.random.key(0), (3, 8, 2)), jnp.ones(3)).shape
      (2,)
    """
    return jnp.tanh(mlp(policy, observation)[0])


def td3_bc_update(
    key: PRNGKey, config: Td3BcConfig, state: Td3BcState, batch: Transitions
) -> tuple[Td3BcState, Float[Array, ""]]:
    """One critic step and, every ``policy_every`` steps, one policy step and both targets.

    The policy descends - lambda Q(s, pi(s)) + |pi(s) - a|^2, lambda = alpha / mean |Q|.

    Args:
      key: PRNG key of the target policy's noise.
      config: settings.
      state: the state.
      batch: B transitions; the method expects normalised observations.

    Returns:
      The new state and the critic's loss.

    Example:
      >>> import functools, jax, numpy as np
      >>> s, r = np.ones((4, 3), np.float32), np.zeros(4, np.float32)
      >>> config, key = Td3BcConfig(hidden_sizes=(8,)), jax.random.key(0)
      >>> init = functools.partial(td3_bc_init, config=config, observation_size=3, action_size=2)
      >>> update = lambda key, state, batch: td3_bc_update(key, config, state, batch)
      >>> batch = Transitions(s, s[:, :2], r, s, r)
      >>> jax.eval_shape(update, key, jax.eval_shape(init, key), batch)[1].shape
      ()

    References:
        Fujimoto & Gu (2021), "A Minimalist Approach to Offline Reinforcement Learning",
        arXiv:2106.06860. :cite:`fujimoto:21`
    """
    noise = config.noise * jax.random.normal(key, batch.action.shape, batch.action.dtype)
    noise = jnp.clip(noise, -config.noise_clip, config.noise_clip)
    after = td3_bc_action(state.target_policy, batch.next_observation)
    after = jnp.clip(after + noise, -1.0, 1.0)
    future = critic_heads(state.target_critic, batch.next_observation, after).min(0)
    goal = batch.reward + bootstrap_factor(batch, config.discount) * future

    def critic_loss(critic: PyTree) -> Array:
        errors = critic_heads(critic, batch.observation, batch.action) - goal[None]
        return jnp.square(errors).mean(1).sum()

    adam = optax.adam(config.learning_rate)
    loss, grads = jax.value_and_grad(critic_loss)(state.critic)
    critic, critic_opt = optim.update(adam, grads, state.critic_optimizer, state.critic)

    def policy_loss(policy: PyTree) -> Array:
        action = td3_bc_action(policy, batch.observation)
        q = critic_heads(critic, batch.observation, action)[0]
        scale = config.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
        return -scale * q.mean() + jnp.square(action - batch.action).mean()

    def move(state: Td3BcState) -> Td3BcState:
        grads = jax.grad(policy_loss)(state.policy)
        policy, policy_opt = optim.update(adam, grads, state.policy_optimizer, state.policy)
        return state._replace(
            policy=policy,
            policy_optimizer=policy_opt,
            target_policy=polyak_update(state.target_policy, policy, config.target_rate),
            target_critic=polyak_update(state.target_critic, critic, config.target_rate),
        )

    step = state.step + 1
    state = state._replace(critic=critic, critic_optimizer=critic_opt, step=step)
    return jax.lax.cond(step % config.policy_every == 0, move, lambda s: s, state), loss
