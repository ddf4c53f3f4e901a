"""Scores of how much an example still has to teach: norms of gradients and of errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gradkin import checks
from gradkin.matrices.per_example import per_example_grads
from gradkin.typing import Array, PyTree


def grand(
    loss_fn: Callable[..., Any],
    checkpoints: PyTree,
    batch: PyTree,
    *,
    batch_size: int | None = None,
) -> Float[Array, " examples"]:
    """GraNd: expected norm of an example's gradient (Paul et al. 2021, sec. 2.2).

    .. math:: \\chi(z) = E_\\theta\\, \\| \\nabla_\\theta \\ell(\\theta, z) \\|

    Norms come from the gradients' factors; no gradient is formed.

    Args:
      loss_fn: ``loss_fn(params, example)`` -> scalar.
      checkpoints: parameters of independently initialised models early in training, with a
        leading axis at each leaf.
      batch: ``n`` examples, batched.
      batch_size: examples whose gradients exist at a time; None for all.

    Returns:
      ``[n]``: the mean over models.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> loss = lambda w, x: w @ x  # the gradient is x
      >>> gradients.grand(loss, jnp.zeros((5, 2)), jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
      [5.0, 1.0]

    References:
      Paul, Ganguli & Dziugaite (2021), "Deep Learning on a Data Diet", arXiv:2107.07075,
      sec. 2.2. :cite:`paul:21`
    """
    norms = lambda params: per_example_grads(loss_fn, batch_size=batch_size)(params, batch).norms()
    return jnp.mean(jax.lax.map(norms, checkpoints), axis=0)


def el2n(
    logits: Float[Array, "*models examples classes"], labels: Int[Array, " examples"]
) -> Float[Array, " examples"]:
    """EL2N: expected norm of a classifier's error (Paul et al. 2021, sec. 2.2).

    .. math:: E_\\theta\\, \\| p_\\theta(x) - y \\|_2

    The gradient of cross-entropy in the logits: `grand` of a model whose last layer has unit
    inputs and whose other layers are fixed.

    Args:
      logits: ``[..., n, classes]``; leading axes are models.
      labels: right classes ``[n]``.

    Returns:
      ``[n]`` in [0, sqrt(2)]: the mean over models.

    Raises:
      ValueError: as many labels as examples are missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> round(float(gradients.el2n(jnp.zeros((1, 2)), jnp.array([0]))[0]), 4)
      0.7071

    References:
      Paul, Ganguli & Dziugaite (2021), arXiv:2107.07075. :cite:`paul:21`
    """
    if logits.ndim < 2 or labels.shape != logits.shape[-2:-1]:
        raise ValueError(
            f"Expected one label per example, got labels {labels.shape} for logits {logits.shape}."
        )
    if checks.is_concrete(labels):
        classes = np.asarray(labels)
        if classes.size and not (classes.min() >= 0 and classes.max() < logits.shape[-1]):
            raise ValueError(
                f"Expected labels of {logits.shape[-1]} classes, got {classes.min()} to "
                f"{classes.max()}."
            )
    wide = logits.astype(np.promote_types(logits.dtype, np.float32))
    wanted = jax.nn.one_hot(labels, logits.shape[-1], dtype=wide.dtype)
    errors = jax.nn.softmax(wide) - jnp.broadcast_to(wanted, wide.shape)
    norms = jnp.sqrt(jnp.sum(jnp.square(errors), axis=-1))
    return jnp.mean(norms, axis=tuple(range(norms.ndim - 1)))
