"""Structural similarity of images, at one scale and at several."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array, Scalar

# Wang et al. 2003, from judgments of images distorted at one scale; finest first.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ssim(
    x: Float[Array, "*batch H W C"],
    y: Float[Array, "*batch H W C"],
    *,
    max_val: Scalar = 1.0,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    return_map: bool = False,
) -> Float[Array, "..."]:
    """Structural similarity of images (Wang et al. 2004, eq. 13).

    .. math:: SSIM = \\frac{2 \\mu_x \\mu_y + C_1}{\\mu_x^2 + \\mu_y^2 + C_1} \\cdot
        \\frac{2 \\sigma_{xy} + C_2}{\\sigma_x^2 + \\sigma_y^2 + C_2},
        \\qquad C_i = (k_i\\, max\\_val)^2

    of the moments in a Gaussian window around each position, averaged over the positions where the
    window fits and over channels.

    Args:
      x: ``[..., H, W, C]``, images of at least ``window`` pixels either way.
      y: as ``x``, what it is compared with; the measure is symmetric.
      max_val: > 0, the range of the pixels: 1 or 255.
      window: >= 1, pixels of the window either way.
      sigma: > 0, its standard deviation in pixels.
      k1: > 0, keeps the comparison of dark means stable.
      k2: > 0, keeps the comparison of flat windows stable.
      return_map: whether to return the value at each position.

    Returns:
      ``[...]``, in (-1, 1], 1 only where the images agree; or the map ``[..., H - window + 1,
      W - window + 1, C]``.

    Raises:
      ValueError: images smaller than the window, shapes that differ, a constant not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> x = jnp.linspace(0.0, 1.0, 144).reshape(12, 12, 1)
      >>> similarity.ssim(x, x).tolist(), round(float(similarity.ssim(x, 1 - x)), 2)
      (1.0, -0.93)

    References:
      Wang et al. (2004), "Image Quality Assessment: From Error Visibility to Structural
      Similarity", IEEE Transactions on Image Processing 13. :cite:`wang:04`

    Note:
      ``dm_pix.ssim`` has the same value. Its gradient lacks the covariance's part in windows where
      the covariance is exactly zero, as in those where one image is black. Here nothing is clipped,
      and images are centered before they are squared, which keeps digits that
      ``E[x^2] - E[x]^2`` loses in float32.
    """
    luminance, structure = components(
        x, y, max_val=max_val, window=window, sigma=sigma, k1=k1, k2=k2, num_scales=1
    )
    values = luminance * structure
    return values if return_map else jnp.mean(values, axis=(-3, -2, -1))


def ms_ssim(
    x: Float[Array, "*batch H W C"],
    y: Float[Array, "*batch H W C"],
    *,
    weights: Sequence[float] = MS_SSIM_WEIGHTS,
    max_val: Scalar = 1.0,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Float[Array, "*batch"]:
    """Structural similarity of images at several scales (Wang et al. 2003, eq. 7).

    .. math:: MS\\text{-}SSIM = \\overline{SSIM}_M^{\\,w_M} \\prod_{j<M} \\overline{cs}_j^{\\,w_j}

    where cs is the second factor of `ssim`, a bar is the mean over positions, and each scale
    averages 2 x 2 pixels of the one before. Channels are compared separately and averaged.

    Args:
      x: ``[..., H, W, C]``, images of at least ``window 2^(M - 1)`` pixels either way: 176 for
        the defaults.
      y: as ``x``.
      weights: ``M`` positive exponents, finest scale first; see `first_scales` for small images.
      max_val: > 0, the range of the pixels: 1 or 255.
      window: >= 1, pixels of the Gaussian window either way.
      sigma: > 0, its standard deviation in pixels.
      k1: > 0, as in `ssim`.
      k2: > 0, as in `ssim`.

    Returns:
      ``[...]``, in [0, 1]. Where a scale's mean is negative, the value is 0 and so is the
      derivative of that channel: an image that looks like a negative of the other is not learned
      from. The loss is ``1 - ms_ssim(x, y)``.

    Raises:
      ValueError: images too small for so many scales, shapes that differ, a constant or a weight
        that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> x = jnp.tile(jnp.eye(16)[:, :, None], (3, 1, 1, 1))
      >>> options = dict(weights=similarity.first_scales(2), window=5)
      >>> similarity.ms_ssim(x, x, **options).round(4).tolist()
      [1.0, 1.0, 1.0]

    References:
      Wang, Simoncelli & Bovik (2003), "Multiscale Structural Similarity for Image Quality
      Assessment", Asilomar Conference. :cite:`wang:03`
      Ridgeway et al. (2015), "Learning to Generate Images with Perceptual Similarity Metrics",
      arXiv:1511.06409. :cite:`ms-ssim-autoencoders`

    Note:
      As in the reference code of 2003, the last factor is the mean of the product of both
      comparisons, not the product of their means; an odd last row or column is repeated.
    """
    if len(weights) == 0:
        raise ValueError("Expected weights for at least one scale, got none.")
    for number, weight in enumerate(weights):
        checks.positive(**{f"weights[{number}]": weight})
    options: dict[str, Any] = {
        "max_val": max_val,
        "window": window,
        "sigma": sigma,
        "k1": k1,
        "k2": k2,
    }
    value = None
    for scale, weight in enumerate(weights):
        left = len(weights) - scale
        luminance, structure = components(x, y, **options, num_scales=left)
        mean = jnp.mean(structure if left > 1 else luminance * structure, axis=(-3, -2))
        factor = power(mean, weight)
        value = factor if value is None else value * factor
        if left > 1:
            x, y = halve(x), halve(y)
    assert value is not None
    return jnp.mean(value, axis=-1)


def first_scales(num_scales: int) -> tuple[float, ...]:
    """The weights of MS-SSIM's finest scales, with sum 1: for images too small for all five.

    Args:
      num_scales: 1 to 5.

    Returns:
      ``num_scales`` positive numbers.

    Raises:
      ValueError: another number.

    Example:
      >>> from gradkin import similarity
      >>> [round(weight, 4) for weight in similarity.first_scales(2)]
      [0.1356, 0.8644]

    References:
      Wang, Simoncelli & Bovik (2003). :cite:`wang:03`
    """
    checks.one_of(range(1, len(MS_SSIM_WEIGHTS) + 1), num_scales=num_scales)
    kept = MS_SSIM_WEIGHTS[:num_scales]
    return tuple(weight / sum(kept) for weight in kept)


def local_contrast(
    x: Float[Array, "*batch H W C"], *, window: int = 11, sigma: float = 1.5
) -> Float[Array, "*batch"]:
    """Mean standard deviation in a Gaussian window: blur lowers it (Wang et al. 2004, eq. 15).

    Args:
      x: ``[..., H, W, C]``, images of at least ``window`` pixels either way.
      window: >= 1, pixels of the window either way.
      sigma: > 0, its standard deviation in pixels.

    Returns:
      ``[...]``, in the units of the pixels, >= 0; its derivative is 0 in flat windows.

    Raises:
      ValueError: images smaller than the window, an option that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> x = jnp.eye(16)[:, :, None]
      >>> blurred = (x + jnp.roll(x, 1, axis=0)) / 2
      >>> bool(similarity.local_contrast(blurred) < similarity.local_contrast(x))
      True

    References:
      Wang et al. (2004). :cite:`wang:04`
    """
    check_images(x, x, window=window, sigma=sigma, num_scales=1)
    x = x - center(x)
    mean, square = blur(x, window, sigma), blur(jnp.square(x), window, sigma)
    variance = square - jnp.square(mean)
    flat = variance <= 0
    deviation = jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, variance)))
    return jnp.mean(deviation, axis=(-3, -2, -1))


def components(
    x: Array,
    y: Array,
    *,
    max_val: Scalar,
    window: int,
    sigma: float,
    k1: float,
    k2: float,
    num_scales: int,
) -> tuple[Array, Array]:
    """Maps of the comparison of means, and of that of contrast and structure together."""
    check_images(x, y, window=window, sigma=sigma, num_scales=num_scales)
    checks.positive(max_val=max_val, k1=k1, k2=k2)
    c1, c2 = (jnp.square(k * jnp.asarray(max_val).astype(x.dtype)) for k in (k1, k2))
    # Variances do not depend on the centers, and squares of centered numbers lose fewer digits.
    x_center, y_center = center(x), center(y)
    x, y = x - x_center, y - y_center
    stack = jnp.stack([x, y, x * x + y * y, x * y])
    x_mean, y_mean, squares, products = blur(stack, window, sigma)
    variances = squares - jnp.square(x_mean) - jnp.square(y_mean)
    structure = (2 * (products - x_mean * y_mean) + c2) / (variances + c2)
    x_mean, y_mean = x_mean + x_center, y_mean + y_center
    luminance = (2 * x_mean * y_mean + c1) / (jnp.square(x_mean) + jnp.square(y_mean) + c1)
    return luminance, structure


def check_images(x: Array, y: Array, *, window: int, sigma: float, num_scales: int) -> None:
    """Raise ValueError unless the images fit each other and the window."""
    if x.ndim < 3 or x.shape != y.shape:
        raise ValueError(
            f"Expected x and y of one shape [..., H, W, C], got x.shape={x.shape} and "
            f"y.shape={y.shape}."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"Expected floating images, got x.dtype={x.dtype}.")
    checks.positive(window=window, sigma=sigma)
    needed = window * 2 ** (num_scales - 1)
    if min(x.shape[-3:-1]) < needed:
        raise ValueError(
            f"Expected images of at least {needed} pixels either way for window={window} and "
            f"{num_scales} scales, got x.shape={x.shape}."
        )


def center(x: Array) -> Array:
    """The mean of each image and channel, a constant to the derivative."""
    return lax.stop_gradient(jnp.mean(x, axis=(-3, -2), keepdims=True))


# Dozens of small operations, were they not compiled together.
@functools.partial(jax.jit, static_argnames=("window", "sigma"))
def blur(x: Array, window: int, sigma: float) -> Array:
    """Average ``[..., H, W, C]`` in a Gaussian window where it fits."""
    distance = (np.arange(window) - (window - 1) / 2) / sigma
    taps = np.exp(-0.5 * distance**2)
    for axis in (x.ndim - 3, x.ndim - 2):
        size = x.shape[axis] - window + 1
        # Shifted sums, not a convolution: full precision everywhere, and one fused loop.
        shifted = (lax.slice_in_dim(x, at, at + size, axis=axis) for at in range(window))
        parts = [tap * part for tap, part in zip((taps / taps.sum()).tolist(), shifted)]
        x = functools.reduce(jnp.add, parts)
    return x


def halve(x: Array) -> Array:
    """Means of 2 x 2 pixels; an odd last row or column is repeated."""
    height, width, channels = x.shape[-3:]
    margins = [(0, 0)] * (x.ndim - 3) + [(0, height % 2), (0, width % 2), (0, 0)]
    x = jnp.pad(x, margins, mode="edge")
    blocks = x.reshape(*x.shape[:-3], -(-height // 2), 2, -(-width // 2), 2, channels)
    return jnp.mean(blocks, axis=(-4, -2))


def power(x: Array, exponent: float) -> Array:
    """``x^exponent``; 0 where ``x <= 0``, with a zero derivative."""
    empty = x <= 0
    return jnp.where(empty, 0, jnp.where(empty, 1, x) ** exponent)
