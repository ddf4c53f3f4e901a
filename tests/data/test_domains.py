"""Coloured and rotated images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from gradkin import data


def images(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, shape).astype(np.float32))


def test_colour_follows_the_noisy_label(key):
    x = images(20_000, 2, 2, 1)
    bits = jax.random.bernoulli(key, 0.5, (len(x),)).astype(jnp.int32)
    paint = jax.jit(lambda key, flip: data.color_by_label(key, x, bits, color_flip=flip))
    colored, labels = paint(key, 0.1)
    channel = np.asarray(colored)[:, 0, 0].argmax(-1)
    np.testing.assert_allclose(np.mean(np.asarray(labels != bits)), 0.25, atol=0.01)
    np.testing.assert_allclose(np.mean(channel != np.asarray(labels)), 0.1, atol=0.01)
    # What was painted is the image; the other channel is empty.
    np.testing.assert_array_equal(np.asarray(colored).sum(-1), np.asarray(x)[..., 0])
    np.testing.assert_array_equal(np.asarray(colored).min(-1), 0)
    again, same = paint(key, 0.9)
    np.testing.assert_array_equal(same, labels)
    assert np.mean(np.asarray(again)[:, 0, 0].argmax(-1) == channel) < 0.25


@pytest.mark.parametrize("degrees", [30.0, -75.0, 200.0])
def test_rotation_against_scipy(degrees):
    x = images(2, 7, 9, 2)
    turned = jax.jit(lambda x: data.rotate(x, degrees=degrees))(x)
    wanted = ndimage.rotate(
        np.asarray(x), degrees, axes=(1, 2), reshape=False, order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(turned, wanted, atol=1e-5)


def test_quarter_turns_are_exact():
    x = images(3, 6, 6, 1)
    np.testing.assert_allclose(
        data.rotate(x, degrees=90.0), np.rot90(x, axes=(1, 2)), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(data.rotate(x, degrees=0.0), x, rtol=1e-6)


def test_bad_input(key):
    x, labels = images(4, 3, 3, 1), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match="N, H, W, 1"):
        data.color_by_label(key, images(4, 3, 3, 2), labels, color_flip=0.1)
    with pytest.raises(ValueError, match="4 labels"):
        data.color_by_label(key, x, labels[1:], color_flip=0.1)
    with pytest.raises(ValueError, match="color_flip"):
        data.color_by_label(key, x, labels, color_flip=1.1)
    with pytest.raises(ValueError, match="label_flip >= 0"):
        data.color_by_label(key, x, labels, color_flip=0.1, label_flip=-0.1)
    with pytest.raises(ValueError, match="4 axes"):
        data.rotate(x[0], degrees=1.0)
    with pytest.raises(TypeError, match="floating point"):
        data.rotate(x.astype(jnp.uint8), degrees=1.0)
