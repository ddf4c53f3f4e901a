"""Pixel-wise gradient clipping: exact semantics, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import gradients

ORDER = {"linf": np.inf, "l2": 2}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pixels_keep_their_direction_and_get_a_bound(key, norm):
    g = 3 * jax.random.normal(key, (2, 5, 4, 3))
    clipped = np.asarray(gradients.pixelwise_clip(g, 1.5, norm=norm))
    sizes = np.linalg.norm(clipped, ord=ORDER[norm], axis=-1)
    assert sizes.max() <= 1.5 * (1 + 1e-6)
    cosine = np.sum(clipped * g, axis=-1) / (
        np.linalg.norm(clipped, axis=-1) * np.linalg.norm(g, axis=-1)
    )
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)
    # As the reference code writes it: the least of the channels' own ratios, or that of the norm.
    original = np.linalg.norm(g, ord=ORDER[norm], axis=-1, keepdims=True)
    np.testing.assert_allclose(clipped, g * np.minimum(1, 1.5 / original), rtol=1e-5)
    again = gradients.pixelwise_clip(jnp.asarray(clipped), 1.5, norm=norm)
    np.testing.assert_allclose(again, clipped, rtol=2e-7)


def test_limits(key):
    g = jax.random.normal(key, (4, 3)).at[1].set(0.0)
    for bound in (jnp.inf, 100.0):
        np.testing.assert_array_equal(gradients.pixelwise_clip(g, bound), g)
    np.testing.assert_array_equal(gradients.pixelwise_clip(g, 0.0), 0)
    np.testing.assert_array_equal(gradients.pixelwise_clip(g, 0.1)[1], 0)


def test_one_channel_is_a_value_clamp(key):
    g = jax.random.normal(key, (6, 1))
    for norm in ORDER:
        clipped = gradients.pixelwise_clip(g, 0.5, norm=norm)
        np.testing.assert_allclose(clipped, jnp.clip(g, -0.5, 0.5), rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_backward_is_the_clip_and_forward_the_identity(key, norm):
    x, a = jax.random.normal(key, (2, 3, 5, 2))  # channels in the middle
    options = {"norm": norm, "channel_axis": 1}
    clipped = lambda x, c: jnp.sum(a * gradients.clip_cotangent(x, c, **options))
    np.testing.assert_array_equal(gradients.clip_cotangent(x, 0.3, **options), x)
    expected = gradients.pixelwise_clip(a, 0.3, **options)
    np.testing.assert_array_equal(jax.grad(clipped)(x, 0.3), expected)
    np.testing.assert_array_equal(jax.jit(jax.grad(clipped))(x, jnp.float32(0.3)), expected)
    assert float(jax.grad(clipped, argnums=1)(x, 0.3)) == 0.0


def test_mapped_over_images(key):
    x = jax.random.normal(key, (4, 3, 3, 2))
    pull = jax.grad(lambda x: jnp.sum(jnp.sin(gradients.clip_cotangent(x, 0.2)) * 5))
    np.testing.assert_allclose(jax.vmap(pull)(x), pull(x), rtol=1e-6)


def test_forward_mode_is_refused(key):
    x = jnp.ones((2, 3))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: gradients.clip_cotangent(x, 1.0), (x,), (x,))


def test_same_on_eight_devices(key, mesh):
    g = jax.random.normal(key, (8, 4, 3))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    clip = jax.jit(lambda g: gradients.pixelwise_clip(g, 0.5))
    np.testing.assert_array_equal(clip(jax.device_put(g, rows)), clip(g))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: gradients.pixelwise_clip(x, -1.0), "Expected max_norm >= 0"),
        (lambda x: gradients.pixelwise_clip(x, np.nan), "Expected max_norm >= 0"),
        (lambda x: gradients.pixelwise_clip(x, 1.0, norm="l1"), "Expected norm to be one of"),
        (lambda x: gradients.pixelwise_clip(x, 1.0, channel_axis=2), "axis of channels"),
        (lambda x: gradients.clip_cotangent(x[0, 0], 1.0), "axis of channels"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 3)))
