"""Retraining without some of the data: exact influence, all retrainings in one program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from gradkin import checks
from gradkin.typing import PyTree


def retrain(
    train_fn: Callable[..., Any], weights: ArrayLike, *, batch_size: int | None = None
) -> PyTree:
    """Train once for each row of example weights, all in one mapped program.

    Args:
      train_fn: ``train_fn(weights)`` with weights ``[n]``, one per training example -> whatever is
        looked at after training, such as the losses of the queries. Traceable: a `lax.scan` of
        steps on the weighted mean loss.
      weights: ``[R, n]``; zero leaves an example out. Booleans become zeros and ones.
      batch_size: trainings that run at a time; None for all.

    Returns:
      The results of ``train_fn`` with a leading axis ``R``.

    Raises:
      ValueError: weights without two axes, or a batch size that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> x = jnp.array([1.0, 2.0, 6.0])
      >>> fit = lambda w: jnp.sum(w * x) / jnp.sum(w)  # the least-squares constant
      >>> gradients.retrain(fit, jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])).tolist()
      [3.0, 1.5]
    """
    checks.rank(2, weights=weights)
    weights = jnp.asarray(weights)
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        weights = weights.astype(jnp.float32)
    if batch_size is None:
        return jax.vmap(train_fn)(weights)
    checks.positive(batch_size=batch_size)
    return jax.lax.map(train_fn, weights, batch_size=batch_size)


def leave_one_out(
    train_fn: Callable[..., Any], num_examples: int, *, batch_size: int | None = None
) -> PyTree:
    """What changes when an example is left out of training: the oracle of attribution.

    ``num_examples + 1`` trainings in one mapped program: for small models only.

    Args:
      train_fn: see `retrain`.
      num_examples: ``n``, at least 2.
      batch_size: see `retrain`.

    Returns:
      A pytree like the result of ``train_fn`` with a leading axis ``n``: the result without
      example ``i`` minus the result with all. For losses, positive where the example helps.

    Raises:
      ValueError: fewer than two examples.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> x = jnp.array([1.0, 2.0, 6.0])
      >>> fit = lambda w: jnp.sum(w * x) / jnp.sum(w)
      >>> gradients.leave_one_out(fit, 3).tolist()
      [1.0, 0.5, -1.5]

    References:
      Koh & Liang (2017), "Understanding Black-box Predictions via Influence Functions",
      arXiv:1703.04730, sec. 4.1. :cite:`koh:17`

    Note:
      Training must not depend on chance beyond the weights (fix initialisation and the order of
      batches inside ``train_fn``), or the differences are those of chance.
    """
    if not checks.is_integer(num_examples, least=2):
        raise ValueError(f"Expected num_examples >= 2, got {num_examples!r}.")
    weights = jnp.concatenate([jnp.ones((1, num_examples)), 1 - jnp.eye(num_examples)])
    results = retrain(train_fn, weights, batch_size=batch_size)
    return jax.tree.map(lambda x: x[1:] - jnp.broadcast_to(x[:1], x[1:].shape), results)
