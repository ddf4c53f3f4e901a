"""Rotary position embedding: inner products of queries and keys see only their distance."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from gradkin import checks
from gradkin.matrices.contraction import at_least_float32
from gradkin.typing import Array, ArrayLike, Scalar


def rotary_embedding(
    x: Float[Array, "*batch tokens heads channels"],
    positions: Num[ArrayLike, " tokens"],
    *,
    base: Scalar = 10_000.0,
) -> Float[Array, "*batch tokens heads channels"]:
    """Rotate pairs of channels by angles that grow with the position (Su et al. 2021, eq. 34).

    Channels ``i`` and ``i + D / 2`` of the token at position ``p`` are turned by the angle
    ``p base^(-2 i / D)``. Of two vectors treated so, the inner product depends on the difference of
    their positions alone; norms stay.

    Args:
      x: queries or keys, ``[..., T, H, D]``; D even.
      positions: ``[T]``, whole numbers or not, of any sign.
      base: > 0; the longest wavelength is about ``2 pi base`` tokens.

    Returns:
      Like ``x``. The angles are computed in float32 or wider whatever the dtype of ``x``.

    Raises:
      ValueError: D odd, positions that do not fit, or a base that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import models
      >>> x = jnp.ones((3, 1, 2))  # three tokens, one head, two channels
      >>> models.rotary_embedding(x, jnp.array([0.0, jnp.pi / 2, jnp.pi]))[:, 0].round(3).tolist()
      [[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]]

    References:
      Su et al. (2021), "RoFormer: Enhanced Transformer with Rotary Position Embedding",
      arXiv:2104.09864. :cite:`su:21`

    Note:
      The paper pairs neighbouring channels; halves are paired here, as in LLaMA's public weights.
      The two differ by a permutation of channels.
    """
    checks.positive(base=base)
    tokens, channels = np.shape(x)[-3], np.shape(x)[-1]
    if channels % 2:
        raise ValueError(f"Expected an even number of channels, got x.shape={np.shape(x)}.")
    if np.shape(positions) != (tokens,):
        raise ValueError(
            f"Expected one position per token, shape ({tokens},), got positions.shape="
            f"{np.shape(positions)}."
        )
    wide = at_least_float32(x.dtype)
    exponents = -np.arange(0, channels, 2) / channels
    frequencies = jnp.asarray(base, wide) ** jnp.asarray(exponents, wide)
    angles = jnp.outer(jnp.asarray(positions, wide), frequencies)[:, None, :]
    first, second = jnp.split(x.astype(wide), 2, axis=-1)
    cos, sin = (jnp.broadcast_to(f(angles), first.shape) for f in (jnp.cos, jnp.sin))
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
