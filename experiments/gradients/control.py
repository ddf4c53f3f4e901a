"""The agent of the RLDP experiment at work: what it remembers, how it learns and acts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkin import gradients


class Control(NamedTuple):
    """An agent, what it controls and what it last saw and did."""

    agent: Any
    replay: Any  # the last transitions, oldest first
    bounds: Any
    noise: Any
    observation: Any
    action: Any
    loss: Any
    count: Any


REPLAY, SAC_BATCH, SAC_RATE = 64, 32, 3e-3


def start_control(key, bounds, noise, observation_size):
    actions = len(bounds) + 1
    agent = gradients.sac_init(
        key, observation_size=observation_size, action_size=actions, learning_rate=SAC_RATE
    )
    rows = lambda *shape: jnp.zeros((REPLAY, *shape))
    replay = gradients.Transitions(
        rows(observation_size), rows(actions), rows(), rows(observation_size)
    )
    observation, action = jnp.zeros(observation_size), jnp.zeros(actions)
    zero = jnp.float32(0)
    return Control(agent, replay, bounds, jnp.float32(noise), observation, action, zero, zero)


def decide(key, control, controller, seen, loss, cost):
    """Learn from the interval that ended and act for the next."""
    draw, first, second, act = jax.random.split(key, 4)
    observation = jnp.concatenate([seen, jnp.log(control.bounds), jnp.log(control.noise)[None]])
    reward = gradients.rldp_reward(control.loss - loss, cost)
    new = gradients.Transitions(control.observation, control.action, reward, observation)
    replay = jax.tree.map(lambda r, x: jnp.concatenate([r[1:], x[None]]), control.replay, new)
    # The first interval has nothing before it.
    known = control.count >= 1
    replay = jax.tree.map(lambda a, b: jnp.where(known, a, b), replay, control.replay)
    stored = jnp.clip(control.count, 1, REPLAY)
    rows = REPLAY - 1 - jnp.floor(jax.random.uniform(draw, (2, SAC_BATCH)) * stored).astype(int)

    def learn(agent, use):
        key, picked = use
        batch = jax.tree.map(lambda r: r[picked], replay)
        updated = gradients.sac_update(key, agent, batch, learning_rate=SAC_RATE)
        return jax.tree.map(lambda a, b: jnp.where(known, a, b), updated, agent), None

    agent, _ = jax.lax.scan(learn, control.agent, (jnp.stack([first, second]), rows))
    action = gradients.sac_act(act, agent, observation)
    bounds, noise = controller.apply(control.bounds, control.noise, action)
    count = control.count + 1
    return Control(agent, replay, bounds, noise, observation, action, loss, count)
