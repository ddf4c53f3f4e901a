"""A batch of transitions, and uniform sampling of one from a data set on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from gradkin.typing import PRNGKey, Scalar


class Transitions(NamedTuple):
    """``N`` transitions (s, a, r, s', done); the same type holds a data set and a batch.

    Attributes:
      observation: s, [N, ...].
      action: a, [N, ...].
      reward: r, [N].
      next_observation: s', like ``observation``.
      terminal: done, [N], 1 where the episode ended at s'. It masks the bootstrap only; a
        time-out is not terminal.
    """

    observation: Any
    action: Any
    reward: Any
    next_observation: Any
    terminal: Any


def check_transitions(batch: Transitions) -> int:
    """Raise ValueError unless every field has one leading length; return it."""
    sizes = {name: jnp.shape(value)[:1] for name, value in batch._asdict().items()}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        raise ValueError(f"Expected one leading length in every field of batch, got {sizes}.")
    for name in ("reward", "terminal"):
        if jnp.ndim(getattr(batch, name)) != 1:
            raise ValueError(
                f"Expected batch.{name} to have 1 axis, got shape "
                f"{jnp.shape(getattr(batch, name))}."
            )
    if jnp.shape(batch.observation) != jnp.shape(batch.next_observation):
        raise ValueError(
            "Expected batch.observation and batch.next_observation of one shape, got "
            f"{jnp.shape(batch.observation)} and "
            f"{jnp.shape(batch.next_observation)}."
        )
    (size,) = sizes["reward"]
    if size == 0:
        raise ValueError("Expected at least one transition in batch, got none.")
    return size


def sample_transitions(key: PRNGKey, data: Transitions, batch_size: int) -> Transitions:
    """``batch_size`` transitions drawn uniformly with replacement.

    Args:
      key: PRNG key.
      data: [N, ...] fields, on the device.
      batch_size: number drawn, B > 0.

    Returns:
      Transitions with [B, ...] fields.

    Raises:
      ValueError: on an empty data set, fields of unequal lengths or ``batch_size < 1``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.arange(4.)
      >>> data = Transitions(x, x, x, x, x)
      >>> sample_transitions(jax.random.key(0), data, 8).reward.shape
      (8,)
    """
    if batch_size < 1:
        raise ValueError(f"Expected batch_size >= 1, got batch_size={batch_size}.")
    rows = jax.random.randint(key, (batch_size,), 0, check_transitions(data))
    return Transitions(*(take(field, rows) for field in data))


def take(field: ArrayLike, rows: jax.Array) -> jax.Array:
    """Rows of a field; the field may still be NumPy."""
    return jnp.asarray(field)[rows]


def bootstrap_factor(batch: Transitions, discount: Scalar) -> jax.Array:
    """gamma (1 - done), [B]: what multiplies V(s')."""
    going_on = 1.0 - jnp.asarray(batch.terminal, jnp.result_type(batch.reward))
    return jnp.asarray(discount * going_on)
