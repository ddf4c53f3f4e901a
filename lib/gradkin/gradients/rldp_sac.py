"""A small soft actor-critic, as pure functions on flat arrays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from gradkin import checks, optim
from gradkin.typing import Array, PRNGKey

LOG_STD = (-5.0, 1.0)


class SacAgent(NamedTuple):
    """Actor, twin critics with targets, temperature and the state of their optimizers.

    Attributes:
      params: actor, critics and log temperature.
      targets: slow copies of the critics.
      opt_state: of one Adam over ``params``.
    """

    params: dict[str, Any]
    targets: Any
    opt_state: Any


class Transitions(NamedTuple):
    """What an agent learns from; leading axis ``[B]``.

    Attributes:
      observation: ``[B, O]``.
      action: ``[B, A]`` in [-1, 1].
      reward: ``[B]``.
      next_observation: ``[B, O]``.
    """

    observation: Any
    action: Any
    reward: Any
    next_observation: Any


def sac_init(
    key: PRNGKey,
    *,
    observation_size: int,
    action_size: int,
    hidden: int = 32,
    learning_rate: float = 3e-4,
) -> SacAgent:
    """A fresh agent (Haarnoja et al. 2018): two layers each, twin critics.

    Args:
      key: of the weights.
      observation_size: length of an observation.
      action_size: length of an action.
      hidden: width.
      learning_rate: of Adam.

    Returns:
      The agent. Its first actions are small: the actor's last layer starts at zero.

    Raises:
      ValueError: sizes that are not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import gradients
      >>> agent = gradients.sac_init(jax.random.key(0), observation_size=3, action_size=2)
      >>> gradients.sac_act(jax.random.key(1), agent, jnp.zeros(3), explore=False).tolist()
      [0.0, 0.0]

    References:
      Haarnoja, Zhou, Abbeel & Levine (2018), "Soft Actor-Critic", ICML, arXiv:1801.01290.
      :cite:`haarnoja:18`
    """
    checks.positive(observation_size=observation_size, action_size=action_size, hidden=hidden)
    keys = jax.random.split(key, 3)
    pair = observation_size + action_size
    actor = layers(keys[0], (observation_size, hidden, 2 * action_size))
    actor[-1] = jax.tree.map(jnp.zeros_like, actor[-1])
    critics = [layers(k, (pair, hidden, hidden, 1)) for k in keys[1:]]
    params = {"actor": actor, "critics": critics, "log_alpha": jnp.float32(np.log(0.1))}
    return SacAgent(params, critics, optax.adam(learning_rate).init(params))


def layers(key: PRNGKey, sizes: tuple[int, ...]) -> list[dict[str, Array]]:
    """Weights of a multilayer perceptron."""
    return [
        {"w": jax.random.normal(k, (m, n)) / np.float32(np.sqrt(m)), "b": jnp.zeros(n)}
        for k, m, n in zip(jax.random.split(key, len(sizes) - 1), sizes, sizes[1:], strict=False)
    ]


def forward(net: Any, x: Array) -> Array:
    """A multilayer perceptron of one input."""
    for layer in net[:-1]:
        x = jax.nn.tanh(x @ layer["w"] + layer["b"])
    return x @ net[-1]["w"] + net[-1]["b"]


def squashed(key: PRNGKey, actor: Any, observation: Array) -> tuple[Array, Array]:
    """A tanh-Gaussian action and its log probability."""
    mean, log_std = jnp.split(forward(actor, observation), 2)
    std = jnp.exp(jnp.clip(log_std, *LOG_STD))
    noise = jax.random.normal(key, mean.shape)
    return jnp.tanh(mean + std * noise), log_probability(mean, std, mean + std * noise)


def log_probability(mean: Array, std: Array, u: Array) -> Array:
    """``log N(u; mean, std) - log(1 - tanh(u)^2 + 1e-6)``, summed over the action."""
    gaussian = -0.5 * jnp.square((u - mean) / std) - jnp.log(std) - np.float32(0.9189385)
    return jnp.sum(gaussian - jnp.log(1 - jnp.square(jnp.tanh(u)) + np.float32(1e-6)))


def sac_act(
    key: PRNGKey, agent: SacAgent, observation: Float[Array, " size"], *, explore: bool = True
) -> Float[Array, " actions"]:
    """An action in [-1, 1].

    Args:
      key: of the exploration.
      agent: from `sac_init`.
      observation: ``[O]``.
      explore: False takes the middle of the policy.

    Returns:
      The action ``[A]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import gradients
      >>> agent = gradients.sac_init(jax.random.key(0), observation_size=3, action_size=2)
      >>> gradients.sac_act(jax.random.key(1), agent, jnp.zeros(3)).shape
      (2,)
    """
    if not explore:
        return jnp.tanh(jnp.split(forward(agent.params["actor"], observation), 2)[0])
    return squashed(key, agent.params["actor"], observation)[0]


def sac_update(
    key: PRNGKey,
    agent: SacAgent,
    batch: Transitions,
    *,
    learning_rate: float = 3e-4,
    discount: float = 0.99,
    polyak: float = 0.005,
) -> SacAgent:
    """One step on a batch of transitions (Haarnoja et al. 2018, with a learned temperature).

    Args:
      key: of the actions drawn.
      agent: from `sac_init`.
      batch: transitions ``[B]``.
      learning_rate: that of `sac_init`.
      discount: gamma in [0, 1).
      polyak: share of the critics that enters their slow copies.

    Returns:
      The updated agent; the target entropy is minus the number of actions.

    Raises:
      ValueError: a batch without a leading axis.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import gradients
      >>> agent = gradients.sac_init(jax.random.key(0), observation_size=1, action_size=1)
      >>> batch = gradients.Transitions(*(jnp.zeros(s) for s in ((4, 1), (4, 1), (4,), (4, 1))))
      >>> agent = gradients.sac_update(jax.random.key(1), agent, batch)

    References:
      Haarnoja, Zhou, Abbeel & Levine (2018), ICML, arXiv:1801.01290. :cite:`haarnoja:18`
    """
    checks.rank(2, observation=batch.observation, action=batch.action)
    size, actions = batch.action.shape
    keys = jax.random.split(key, (2, size))
    pair = lambda o, a: jnp.concatenate([o, a])
    alpha = jnp.exp(agent.params["log_alpha"])

    def target(key: Any, t: Transitions) -> Array:
        action, log_prob = squashed(key, agent.params["actor"], t.next_observation)
        values = [forward(q, pair(t.next_observation, action))[0] for q in agent.targets]
        return t.reward + discount * (jnp.minimum(*values) - alpha * log_prob)

    targets = jax.lax.stop_gradient(jax.vmap(target)(keys[0], batch))

    def loss(params: Any) -> Array:
        def one(key: Any, t: Transitions, y: Array) -> Array:
            fit = sum(
                jnp.square(forward(q, pair(t.observation, t.action))[0] - y)
                for q in params["critics"]
            )
            action, log_prob = squashed(key, params["actor"], t.observation)
            critics = jax.lax.stop_gradient(params["critics"])
            value = jnp.minimum(*(forward(q, pair(t.observation, action))[0] for q in critics))
            policy = alpha * log_prob - value
            surplus = jax.lax.stop_gradient(log_prob - actions)
            temperature = -jnp.exp(params["log_alpha"]) * surplus
            return fit + policy + temperature

        return jnp.mean(jax.vmap(one)(keys[1], batch, targets))

    grads = jax.grad(loss)(agent.params)
    params, opt_state = optim.update(
        optax.adam(learning_rate), grads, agent.opt_state, agent.params
    )
    slow = jax.tree.map(lambda s, q: s + polyak * (q - s), agent.targets, params["critics"])
    return SacAgent(params, slow, opt_state)
