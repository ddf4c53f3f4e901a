"""Images as several domains: coloured against their labels, or rotated."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gradkin import checks
from gradkin.typing import Array, ArrayLike, PRNGKey, Scalar


def color_by_label(
    key: PRNGKey,
    images: Float[ArrayLike, "n h w 1"],
    labels: Int[ArrayLike, " n"],
    *,
    color_flip: Scalar,
    label_flip: Scalar = 0.25,
) -> tuple[Float[Array, "n h w 2"], Int[Array, " n"]]:
    """Colour images so that the colour tells a noisy label (Arjovsky et al. 2019).

    Each label is flipped with probability ``label_flip``; the colour is the flipped label, itself
    flipped with probability ``color_flip``. Domains differ in ``color_flip``: where it is below
    ``label_flip`` the colour tells the label better than the shape does, and in another domain it
    may say the opposite.

    Args:
      key: PRNG key.
      images: grey images, ``[N, H, W, 1]``.
      labels: 0 or 1, ``[N]``.
      color_flip: probability that the colour is not the label, in [0, 1].
      label_flip: probability that the label is not the given one, in [0, 1].

    Returns:
      ``(images [N, H, W, 2], labels [N])``: an image is in the channel of its colour, the other is
      zero.

    Raises:
      ValueError: no grey images, another number of labels, or a probability outside [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import data
      >>> image, label = jnp.ones((2, 1, 1, 1)), jnp.array([0, 1])
      >>> colored, y = data.color_by_label(
      ...     jax.random.key(0), image, label, color_flip=1.0, label_flip=0.0
      ... )
      >>> colored[:, 0, 0].tolist(), y.tolist()
      ([[0.0, 1.0], [1.0, 0.0]], [0, 1])

    References:
      Arjovsky, Bottou, Gulrajani & Lopez-Paz (2019), "Invariant Risk Minimization",
      arXiv:1907.02893. :cite:`arjovsky:19`
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    if images.ndim != 4 or images.shape[-1] != 1:
        raise ValueError(f"Expected images of shape [N, H, W, 1], got {images.shape}.")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"Expected {len(images)} labels, got labels.shape={labels.shape}.")
    checks.non_negative(color_flip=color_flip, label_flip=label_flip)
    for name, value in (("color_flip", color_flip), ("label_flip", label_flip)):
        if checks.is_concrete(value) and float(value) > 1:
            raise ValueError(f"Expected {name} in [0, 1], got {name}={value}.")
    noise, paint = jax.random.split(key)
    flipped = jax.random.uniform(noise, labels.shape) < label_flip
    labels = jnp.where(flipped, 1 - labels, labels)
    repainted = jax.random.uniform(paint, labels.shape) < color_flip
    colors = jnp.where(repainted, 1 - labels, labels)
    channels = jax.nn.one_hot(colors, 2, dtype=images.dtype)
    return images * channels[:, None, None, :], labels


def rotate(images: Float[ArrayLike, "n h w c"], *, degrees: float) -> Float[Array, "n h w c"]:
    """Rotate images counter-clockwise, as in rotated MNIST (Ghifary et al. 2015).

    They turn about their middle. Between pixels the value is interpolated linearly; what comes from
    outside is 0.

    Args:
      images: ``[N, H, W, C]``, floating point.
      degrees: the angle, a number known when the program is traced.

    Returns:
      Images of the same shape.

    Raises:
      ValueError: an array that is no stack of images.
      TypeError: integer pixels.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import data
      >>> image = jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
      >>> data.rotate(image, degrees=90.0)[0, :, :, 0].round(4).tolist()
      [[2.0, 4.0], [1.0, 3.0]]

    References:
      Ghifary, Kleijn, Zhang & Balduzzi (2015), "Domain Generalization for Object Recognition with
      Multi-task Autoencoders", arXiv:1508.07680. :cite:`ghifary:15`
    """
    images = jnp.asarray(images)
    checks.rank(4, images=images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"Expected images in floating point, got {images.dtype}.")
    _, height, width, _ = images.shape
    weights = jnp.asarray(_interpolation(height, width, float(degrees)), images.dtype)
    flat = images.reshape(len(images), height * width, -1)
    return jnp.einsum("pq,nqc->npc", weights, flat).reshape(images.shape)


def _interpolation(height: int, width: int, degrees: float) -> np.ndarray:
    """Weights ``[H W, H W]`` of the pixels of an image in those of the rotated one."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows, columns = np.mgrid[:height, :width].reshape(2, -1)
    middle = (height - 1) / 2, (width - 1) / 2
    down, right = rows - middle[0], columns - middle[1]
    # Where a pixel of the rotated image comes from; rows count downwards.
    from_row = cosine * down + sine * right + middle[0]
    from_column = cosine * right - sine * down + middle[1]
    tent = lambda x: np.maximum(0, 1 - np.abs(x))
    return tent(from_row[:, None] - rows[None]) * tent(from_column[:, None] - columns[None])
