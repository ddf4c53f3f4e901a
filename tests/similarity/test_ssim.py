"""SSIM and MS-SSIM against a plain implementation in float64, closed forms and invariances."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads
from scipy.signal import convolve2d

from gradkin import similarity

SMALL = {"window": 5, "sigma": 1.0}


def window2d(size, sigma):
    at = np.arange(size) - (size - 1) / 2
    taps = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * sigma**2))
    return taps / taps.sum()


def plain_maps(x, y, max_val=1.0, window=11, sigma=1.5):
    """Both comparisons of two single-channel images, by the definitions of the moments."""
    mean = functools.partial(convolve2d, in2=window2d(window, sigma), mode="valid")
    x, y = (np.asarray(image, np.float64) for image in (x, y))
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * max_val) ** 2, (0.03 * max_val) ** 2
    return (2 * mx * my + c1) / (mx**2 + my**2 + c1), (2 * vxy + c2) / (vx + vy + c2)


def plain_ms_ssim(x, y, weights, **options):
    value = 1.0
    for scale, weight in enumerate(weights):
        luminance, structure = plain_maps(x, y, **options)
        last = scale == len(weights) - 1
        value *= max((luminance * structure if last else structure).mean(), 0) ** weight
        x, y = (np.pad(image, [(0, n % 2) for n in image.shape], mode="edge") for image in (x, y))
        shape = (x.shape[0] // 2, 2, x.shape[1] // 2, 2)
        x, y = x.reshape(shape).mean((1, 3)), y.reshape(shape).mean((1, 3))
    return value


@pytest.fixture(scope="module")
def images():
    """Two batches of smooth images with three channels, 21 x 27 pixels."""
    keys = jax.random.split(jax.random.key(3), 2)
    coarse = jax.random.uniform(keys[0], (8, 7, 9, 3))
    x = jax.image.resize(coarse, (8, 21, 27, 3), "linear")
    return x, jnp.clip(x + 0.2 * jax.random.normal(keys[1], x.shape), 0, 1)


contrast = jax.jit(similarity.local_contrast)
ssim = jax.jit(similarity.ssim, static_argnames=("window", "sigma", "return_map"))
WEIGHTS = similarity.first_scales(3)


@jax.jit
def ms_ssim(x, y):
    return similarity.ms_ssim(x, y, weights=WEIGHTS, **SMALL)


def test_ssim_against_plain(images):
    x, y = images
    found = ssim(x, y, return_map=True)
    assert found.shape == (8, 11, 17, 3)
    for channel in range(3):
        luminance, structure = plain_maps(x[0, :, :, channel], y[0, :, :, channel])
        np.testing.assert_allclose(found[0, :, :, channel], luminance * structure, atol=2e-6)
    np.testing.assert_allclose(ssim(x, y), found.mean((1, 2, 3)), rtol=1e-6)


def test_ms_ssim_against_plain(images):
    x, y = images
    for image in range(2):
        channels = [
            plain_ms_ssim(x[image, ..., c], y[image, ..., c], WEIGHTS, **SMALL) for c in range(3)
        ]
        np.testing.assert_allclose(ms_ssim(x, y)[image], np.mean(channels), rtol=2e-5)


def test_against_dm_pix(images):
    """Where it is installed."""
    x, y = images
    pix = pytest.importorskip("dm_pix")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(ssim(x, y), pix.ssim(x, y), atol=1e-5)


def test_one_scale_is_ssim(images):
    np.testing.assert_allclose(
        similarity.ms_ssim(*images, weights=(1.0,), **SMALL), ssim(*images, **SMALL), rtol=1e-5
    )


def test_of_itself_and_symmetry(images):
    x, y = images
    np.testing.assert_allclose(ssim(x, x), 1, rtol=1e-6)
    np.testing.assert_allclose(ms_ssim(x, x), 1, rtol=1e-6)
    np.testing.assert_allclose(ms_ssim(x, y), ms_ssim(y, x), rtol=1e-6)
    assert np.all(ms_ssim(x, y) < 0.99)
    np.testing.assert_array_less(ssim(x, y), 1)


def test_a_constant_changes_luminance_only(images):
    from gradkin.similarity.ssim import components

    x, _ = images
    options = {"max_val": 1.0, "k1": 0.01, "k2": 0.03, "num_scales": 1, **SMALL}
    luminance, structure = components(x, x + 0.25, **options)
    np.testing.assert_allclose(structure, 1, atol=5e-5)
    assert np.all(luminance < 1)


def test_contrast_of_one_window():
    """Scaling about the mean of a single window changes the contrast by a known factor."""
    x = jax.random.uniform(jax.random.key(0), (11, 11, 1))
    weights = window2d(11, 1.5)
    mean = float((weights * x[..., 0]).sum())
    variance = float((weights * (np.asarray(x[..., 0], np.float64) - mean) ** 2).sum())
    a, c2 = 0.4, 0.03**2
    expected = (2 * a * variance + c2) / ((1 + a**2) * variance + c2)
    np.testing.assert_allclose(ssim(x, mean + a * (x - mean)), expected, rtol=1e-5)


def test_range_of_pixels_and_precision(images):
    """The same images in [0, 255]; and far from zero, where squares lose their digits."""
    x, y = images
    scaled = similarity.ssim(255 * x, 255 * y, max_val=255.0)
    np.testing.assert_allclose(scaled, ssim(x, y), rtol=1e-4)
    dim = [0.9 + 0.01 * image for image in (x, y)]
    found = ssim(*dim, return_map=True)[0, :, :, 0]
    luminance, structure = plain_maps(*(image[0, :, :, 0] for image in dim))
    np.testing.assert_allclose(found, luminance * structure, atol=1e-5)


def test_gradients():
    with jax.enable_x64(True):
        x, y = jax.random.uniform(jax.random.key(0), (2, 12, 12, 1), jnp.float64)
        y = (x + y) / 2
        options = {"weights": similarity.first_scales(2), "window": 3}
        value = jax.jit(lambda x, y: similarity.ms_ssim(x, y, **options))
        assert 0.1 < value(x, y) < 0.99
        check_grads(value, (x, y), order=1, modes=["rev"], rtol=1e-5, atol=1e-8, eps=1e-6)


def test_gradient_where_an_image_is_black():
    """The covariance is exactly zero there, and its derivative is not."""
    x = jax.random.uniform(jax.random.key(0), (11, 11, 1))
    black = jnp.zeros_like(x)
    found = jax.jit(jax.grad(lambda y: similarity.ssim(x, y)))(black)
    weights = window2d(11, 1.5)
    mean = (weights * x[..., 0]).sum()
    variance = (weights * (x[..., 0] - mean) ** 2).sum()
    c1, c2 = 0.01**2, 0.03**2
    luminance, structure = c1 / (mean**2 + c1), c2 / (variance + c2)
    of_mean = 2 * mean / (mean**2 + c1) * weights * structure
    of_covariance = 2 * weights * (x[..., 0] - mean) / (variance + c2) * luminance
    np.testing.assert_allclose(found[..., 0], of_mean + of_covariance, rtol=1e-3, atol=1e-6)


def test_negatives_give_zero_and_no_gradient():
    x = jax.random.uniform(jax.random.key(0), (1, 16, 16, 1))
    options = {"weights": similarity.first_scales(2), **SMALL}
    total = lambda y: similarity.ms_ssim(x, y, **options)[0]
    value, gradient = jax.jit(jax.value_and_grad(total))(1 - x)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_vmap_and_sharded(images, mesh):
    x, y = images
    expected = ms_ssim(x, y)
    np.testing.assert_allclose(jax.vmap(ms_ssim)(x, y), expected, rtol=1e-5)
    split = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(ms_ssim(*split), expected, rtol=1e-5)


def test_local_contrast(images):
    x, _ = images
    image = np.asarray(x[0, ..., 0], np.float64)
    mean = functools.partial(convolve2d, in2=window2d(11, 1.5), mode="valid")
    expected = np.sqrt(mean(image * image) - mean(image) ** 2).mean()
    found = contrast(x[..., :1])
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    half = contrast(0.3 + 0.5 * x[..., :1])
    np.testing.assert_allclose(half, 0.5 * found, rtol=1e-4)
    flat = jnp.full((12, 12, 1), 0.5)
    value, gradient = jax.jit(jax.value_and_grad(similarity.local_contrast))(flat)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_bad_input(images):
    x, y = images
    with pytest.raises(ValueError, match=r"at least 44 pixels either way for window=11 and 3"):
        similarity.ms_ssim(x, y, weights=(0.5, 0.3, 0.2))
    with pytest.raises(ValueError, match="one shape"):
        similarity.ssim(x, y[:1])
    with pytest.raises(ValueError, match="one shape"):
        similarity.ssim(x[0, 0], y[0, 0])
    with pytest.raises(ValueError, match="floating images"):
        similarity.ssim(x.astype(jnp.int32), y.astype(jnp.int32))
    for option in ("max_val", "window", "sigma", "k1", "k2"):
        options: dict[str, Any] = {option: 0}
        with pytest.raises(ValueError, match=f"{option} > 0"):
            similarity.ssim(x, y, **options)
    with pytest.raises(ValueError, match=r"weights\[1\] > 0"):
        similarity.ms_ssim(x, y, weights=(0.5, -0.5), window=5)
    with pytest.raises(ValueError, match="at least one scale"):
        similarity.ms_ssim(x, y, weights=())
    with pytest.raises(ValueError, match="num_scales"):
        similarity.first_scales(6)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        similarity.local_contrast(x[:, :8])
