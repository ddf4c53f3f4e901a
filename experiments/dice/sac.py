"""Soft actor-critic, small, to make MuJoCo data of several levels (:cite:`haarnoja:18`).

Networks are those of `gradkin.dice`; `collect.py` drives it. Not a replication by itself.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkin import optim
from gradkin.dice.networks import critic_heads, init_heads, init_mlp, mlp
from gradkin.dice.targets import polyak_update
from gradkin.dice.transitions import Transitions, bootstrap_factor

DISCOUNT, TARGET_RATE, LEARNING_RATE = 0.99, 0.005, 1e-3


class SacState(NamedTuple):
    actor: Any
    critic: Any
    target: Any
    log_alpha: Any
    optimizer: Any
    key: Any


def init(key, observation_size: int, action_size: int, width: int) -> SacState:
    actor_key, critic_key, key = jax.random.split(key, 3)
    actor = init_mlp(actor_key, (observation_size, width, width, 2 * action_size))
    critic = init_heads(critic_key, 2, (observation_size + action_size, width, width, 1))
    log_alpha = jnp.zeros(())
    state = optax.adam(LEARNING_RATE).init((actor, critic, log_alpha))
    return SacState(actor, critic, jax.tree.map(jnp.copy, critic), log_alpha, state, key)


def sample_action(actor, observation, key):
    """A tanh-Gaussian action and its log density."""
    mean, log_std = jnp.split(mlp(actor, observation)[0], 2, -1)
    log_std = jnp.clip(log_std, -10.0, 2.0)
    noise = jax.random.normal(key, mean.shape)
    raw = mean + jnp.exp(log_std) * noise
    # log(1 - tanh(u)^2) in the form that does not cancel.
    squash = 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))
    density = -0.5 * jnp.square(noise) - log_std - 0.5 * math.log(2 * math.pi) - squash
    return jnp.tanh(raw), density.sum(-1)


def update(state: SacState, batch: Transitions) -> tuple[SacState, None]:
    """One step of critic, actor and temperature on one batch."""
    key, next_key, actor_key = jax.random.split(state.key, 3)
    action, density = sample_action(state.actor, batch.next_observation, next_key)
    future = critic_heads(state.target, batch.next_observation, action).min(0)
    alpha = jnp.exp(state.log_alpha)
    goal = batch.reward + bootstrap_factor(batch, DISCOUNT) * (future - alpha * density)

    def loss(trained):
        actor, critic, log_alpha = trained
        q = critic_heads(critic, batch.observation, batch.action)
        critic_loss = jnp.square(q - goal[None]).mean(1).sum()
        action, density = sample_action(actor, batch.observation, actor_key)
        frozen = jax.lax.stop_gradient(critic)
        actor_loss = (
            alpha * density - critic_heads(frozen, batch.observation, action).min(0)
        ).mean()
        entropy_gap = jax.lax.stop_gradient(density - action.shape[-1]).mean()
        return critic_loss + actor_loss - log_alpha * entropy_gap

    trained = (state.actor, state.critic, state.log_alpha)
    (actor, critic, log_alpha), optimizer = optim.update(
        optax.adam(LEARNING_RATE), jax.grad(loss)(trained), state.optimizer, trained
    )
    target = polyak_update(state.target, critic, TARGET_RATE)
    return SacState(actor, critic, target, log_alpha, optimizer, key), None


@jax.jit
def update_many(state: SacState, batches: Transitions) -> SacState:
    """One update per batch of [N, B, ...] fields."""
    return jax.lax.scan(update, state, batches)[0]
