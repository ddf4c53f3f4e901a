"""Target networks by exponential moving average."""

import jax

from gradkin.checks import same_structure
from gradkin.typing import PyTree, Scalar


def polyak_update(target: PyTree, online: PyTree, rate: Scalar) -> PyTree:
    """Move a target network towards the online one: (1 - rate) target + rate online.

    Args:
      target: pytree of the target's parameters.
      online: pytree like ``target``.
      rate: share of the online parameters, in [0, 1]; 0.005 in ODICE.

    Returns:
      The new target.

    Raises:
      ValueError: if the trees differ.

    Example:
      >>> import jax.numpy as jnp
      >>> polyak_update(jnp.zeros(2), jnp.ones(2), 0.25).tolist()
      [0.25, 0.25]
    """
    same_structure(online, target, name="online", like_name="target")
    return jax.tree.map(lambda old, new: old + rate * (new - old), target, online)
