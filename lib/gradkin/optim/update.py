"""One optax step, under any promotion setting."""

from typing import Any

import jax
import optax

from gradkin.typing import PyTree


def update(
    optimizer: optax.GradientTransformation, grads: PyTree, state: Any, params: PyTree
) -> tuple[PyTree, Any]:
    """Apply one optax update and return ``(params, state)``.

    optax mixes integer step counts with floats, which strict dtype promotion forbids; standard
    promotion is restored around the update and nowhere else.

    Args:
      optimizer: any optax gradient transformation.
      grads: pytree like ``params``.
      state: the optimizer's state.
      params: the parameters.

    Returns:
      The new parameters and the new optimizer state.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from gradkin import optim
      >>> opt = optax.sgd(0.5)
      >>> w, _ = optim.update(opt, jnp.ones(2), opt.init(jnp.zeros(2)), jnp.zeros(2))
      >>> w.tolist()
      [-0.5, -0.5]
    """
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state
