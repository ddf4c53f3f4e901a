"""Clipping the gradient of an image pixel by pixel, inside the backward pass."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array, Scalar

NORMS = ("linf", "l2")


def pixelwise_clip(
    grad: Float[Array, "..."],
    max_norm: Scalar,
    *,
    norm: str = "linf",
    channel_axis: int = -1,
) -> Float[Array, "..."]:
    """Rescale each pixel's gradient to a bound, keeping its direction (Pan et al. 2024, PGC).

    .. math:: g'_p = g_p \\min(1, c / \\|g_p\\|)

    with the norm over channels. One pixel with a huge gradient then moves the parameters behind
    the image by at most ``c |dx_p / dtheta|`` ("l2"; times the root of the number of channels for
    "linf").

    Args:
      grad: gradient with respect to an image ``[..., channels]``.
      max_norm: ``c >= 0``; infinity changes nothing, zero gives zeros.
      norm: "linf", largest channel, as the authors' code; "l2", as their text.
      channel_axis: where the channels are.

    Returns:
      An array like ``grad``. A zero pixel stays zero; a pixel within the bound stays as it is, bit
      for bit. A pixel with NaN stays NaN; an infinite one becomes NaN.

    Raises:
      ValueError: a negative or NaN bound, an unknown norm, no such axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> gradients.pixelwise_clip(jnp.array([[3.0, 4.0], [0.25, 0.5]]), 2.0).tolist()
      [[1.5, 2.0], [0.25, 0.5]]

    References:
      Pan, Lu, Zhu & Zhang (2024), "Enhancing High-Resolution 3D Generation through Pixel-wise
      Gradient Clipping", ICLR, arXiv:2310.12474. :cite:`pixelwise-grad-clip`
    """
    _check(grad, max_norm, norm, channel_axis)
    order = np.inf if norm == "linf" else 2
    size = jnp.linalg.norm(grad, ord=order, axis=channel_axis, keepdims=True)
    bound = jnp.asarray(max_norm, size.dtype)
    above = size > bound
    ratio = bound / jnp.where(above, size, jnp.ones_like(size))
    return jnp.where(above, ratio, jnp.ones_like(size)) * grad


def clip_cotangent(
    x: Float[Array, "..."],
    max_norm: Scalar,
    *,
    norm: str = "linf",
    channel_axis: int = -1,
) -> Float[Array, "..."]:
    """The identity, whose gradient goes through `pixelwise_clip`.

    Put it on the rendered image, on the branch of the guidance loss only: clipping after the
    backward pass through the renderer, or after a sum over views, is ordinary clipping. Forward
    mode raises TypeError, as for every `jax.custom_vjp`.

    Args:
      x: an image ``[..., channels]``, returned as it is.
      max_norm: bound of a pixel's gradient. A loss that is scaled, or a mean instead of a sum,
        scales what it means.
      norm: see `pixelwise_clip`.
      channel_axis: see `pixelwise_clip`.

    Returns:
      ``x``. The bound gets a zero gradient.

    Raises:
      ValueError: see `pixelwise_clip`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import gradients
      >>> loss = lambda x: jnp.sum(jnp.array([[3.0, 4.0]]) * gradients.clip_cotangent(x, 1.0))
      >>> jax.grad(loss)(jnp.zeros((1, 2))).tolist()
      [[0.75, 1.0]]

    References:
      Pan, Lu, Zhu & Zhang (2024), ICLR, arXiv:2310.12474. :cite:`pixelwise-grad-clip`
    """
    _check(x, max_norm, norm, channel_axis)
    return _identity(norm, channel_axis, x, jnp.asarray(max_norm, np.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _identity(norm: str, channel_axis: int, x: Any, max_norm: Any) -> Any:
    del norm, channel_axis, max_norm
    return x


def _forward(norm: str, channel_axis: int, x: Any, max_norm: Any) -> Any:
    del norm, channel_axis
    return x, max_norm


def _backward(norm: str, channel_axis: int, max_norm: Any, cotangent: Any) -> Any:
    clipped = pixelwise_clip(cotangent, max_norm, norm=norm, channel_axis=channel_axis)
    return clipped, jnp.zeros_like(max_norm)


_identity.defvjp(_forward, _backward)


def _check(x: Any, max_norm: Any, norm: str, channel_axis: int) -> None:
    checks.non_negative(max_norm=max_norm)
    checks.one_of(NORMS, norm=norm)
    if not -np.ndim(x) <= channel_axis < np.ndim(x):
        raise ValueError(
            f"Expected an array with an axis of channels {channel_axis}, got shape {np.shape(x)}."
        )
