"""Behavior cloning: the baseline whose weight is one everywhere."""

from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float

from gradkin import optim
from gradkin.dice.policy import GaussianPolicy, init_policy, log_prob
from gradkin.dice.transitions import Transitions
from gradkin.typing import PRNGKey


class CloningState(NamedTuple):
    """Attributes: policy, a `GaussianPolicy`; optimizer, its Adam state."""

    policy: GaussianPolicy
    optimizer: Any


def cloning_init(key: PRNGKey, sizes: tuple[int, ...]) -> CloningState:
    """A fresh policy.

    Args:
      key: PRNG key.
      sizes: widths from observation to action.

    Returns:
      The state.

    Example:
      >>> import jax
      >>> init = lambda key: cloning_init(key, (3, 8, 2))
      >>> jax.eval_shape(init, jax.random.key(0)).policy.log_std.shape
      (2,)
    """
    policy = init_policy(key, sizes)
    return CloningState(policy, optax.adam(1.0).init(policy))


def cloning_update(
    state: CloningState,
    batch: Transitions,
    *,
    learning_rate: float = 2e-4,
    tanh: bool = False,
) -> tuple[CloningState, Float[Array, ""]]:
    """One Adam step on - mean log pi(a|s).

    Args:
      state: the state.
      batch: B transitions.
      learning_rate: Adam's.
      tanh: squash the policy's mean.

    Returns:
      The new state and the loss.

    Example:
      >>> import jax, numpy as np
      >>> s, r = np.ones((4, 3), np.float32), np.zeros(4, np.float32)
      >>> state = jax.eval_shape(lambda key: cloning_init(key, (3, 8, 2)), jax.random.key(0))
      >>> jax.eval_shape(cloning_update, state, Transitions(s, s[:, :2], r, s, r))[1].shape
      ()
    """
    loss_fn = lambda p: -log_prob(p, batch.observation, batch.action, tanh=tanh).mean()
    loss, grads = jax.value_and_grad(loss_fn)(state.policy)
    optimizer = optax.adam(learning_rate)
    return CloningState(*optim.update(optimizer, grads, state.optimizer, state.policy)), loss
