"""The loss of a language model on the tokens of its answer."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from gradkin.matrices.contraction import at_least_float32
from gradkin.typing import Array, ArrayLike


def token_loss(
    logits: Float[Array, "*batch tokens vocabulary"],
    tokens: Int[ArrayLike, "*batch tokens"],
    mask: Bool[ArrayLike, "*batch tokens"],
) -> Float[Array, "*batch"]:
    r"""Mean cross-entropy of the next token, over the targets that a mask keeps.

    .. math:: \frac{\sum_{t \ge 1} m_t \, (-\log p_{t-1}(x_t))}{\sum_{t \ge 1} m_t}

    Args:
      logits: ``[..., T, V]``; those at position ``t - 1`` predict the token at ``t``.
      tokens: ``[..., T]``; a target that counts but is not in ``[0, V)`` makes the loss NaN.
      mask: ``[..., T]``, which tokens count as targets: those of the answer, say. Nothing predicts
        the first token; its entry is not looked at.

    Returns:
      ``[...]``, one mean per sequence, in nats, float32 or wider. A sequence without targets has
      the loss 0 and zero gradient. Logits that predict no target that counts are not looked at,
      even if not finite.

    Raises:
      TypeError: a mask that is not boolean, or tokens that are not integers.
      ValueError: shapes that disagree.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import models
      >>> tokens = jnp.array([3, 1, 2])
      >>> loss = models.token_loss(jnp.zeros((3, 4)), tokens, tokens < 3)  # log 4
      >>> round(float(loss), 4)
      1.3863
    """
    shape = np.shape(tokens)
    if np.shape(logits)[:-1] != shape or np.shape(mask) != shape or not shape:
        raise ValueError(
            "Expected logits [..., T, V], tokens [..., T] and mask [..., T], got logits.shape="
            f"{np.shape(logits)}, tokens.shape={shape} and mask.shape={np.shape(mask)}."
        )
    if jnp.result_type(mask) != np.bool_:
        raise TypeError(f"Expected a boolean mask, got mask of dtype {jnp.result_type(mask)}.")
    if not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise TypeError(f"Expected integer tokens, got dtype {jnp.result_type(tokens)}.")
    size = np.shape(logits)[-1]
    keep, targets = jnp.asarray(mask)[..., 1:], jnp.asarray(tokens)[..., 1:].astype(np.int32)
    # Negative numbers are no tokens, though NumPy would count them from the end.
    targets = jnp.where(targets < 0, size, targets)
    # By select, before anything is computed: the gradient of what is left out is exactly zero.
    kept = jnp.broadcast_to(keep[..., None], (*keep.shape, size))
    logits = jnp.where(kept, logits[..., :-1, :], 0)
    logits = logits.astype(at_least_float32(logits.dtype))
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="fill")[..., 0]
    losses = jnp.where(keep, jax.nn.logsumexp(logits, axis=-1) - chosen, 0)
    count = jnp.sum(keep, axis=-1, dtype=losses.dtype)
    return jnp.sum(losses, axis=-1) / jnp.maximum(count, 1)
