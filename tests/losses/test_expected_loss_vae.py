"""The expected-loss VAE: its divergence, and the linear Gaussian case in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import losses


def squared(x, y):
    return jnp.sum(jnp.square(x - y), axis=1)


@jax.jit
def linear(key, x, mean_scale, log_std, weight):
    """Codes ``mean_scale x + exp(log_std) noise``, decoded by doubling."""
    encode = lambda x: (mean_scale * x, jnp.broadcast_to(log_std, x.shape))
    return losses.expected_loss_vae(
        key, encode, lambda z: 2 * z, x, distortion=squared, weight=weight
    )


def test_closed_form(key):
    x = jnp.tile(jnp.array([[1.0, -2.0]]), (20_000, 1))
    found = linear(key, x, 0.3, jnp.log(0.5), 7.0)
    # |x - 2 (0.3 x + 0.5 e)|^2 = 0.16 * 5 + 2 on average.
    np.testing.assert_allclose(found.distortion, 2.8, rtol=0.03)
    divergence = 0.5 * (2 * (0.25 - 1 - 2 * np.log(0.5)) + 0.09 * 5)
    np.testing.assert_allclose(found.divergence, divergence, rtol=1e-4)
    np.testing.assert_allclose(found.loss, 7 * found.distortion + found.divergence, rtol=1e-5)


def test_divergence_vanishes_for_the_prior_only(key):
    x = jnp.ones((4, 2))
    assert linear(key, x, 0.0, jnp.zeros(()), 1.0).divergence == 0
    for scale, log_std in ((0.1, 0.0), (0.0, 0.3), (0.0, -0.3)):
        assert linear(key, x, scale, jnp.asarray(log_std), 1.0).divergence > 0


def test_gradient_is_that_of_samples(key):
    """Reparameterised: the derivative by the mean's scale equals a finite difference."""
    x = jax.random.normal(key, (8, 2))
    loss = lambda scale: linear(key, x, scale, jnp.zeros(()), 3.0).loss
    slope = (loss(0.31) - loss(0.29)) / 0.02
    np.testing.assert_allclose(jax.grad(loss)(0.3), slope, rtol=1e-3)


def test_bad_input(key):
    x = jnp.ones((3, 2))
    encode = lambda x: (x, x)
    with pytest.raises(ValueError, match="weight > 0"):
        losses.expected_loss_vae(key, encode, lambda z: z, x, distortion=squared, weight=0.0)
    with pytest.raises(ValueError, match=r"shape \(3,\), one number per example, got \(\)"):
        losses.expected_loss_vae(
            key, encode, lambda z: z, x, distortion=lambda x, y: jnp.mean(x - y), weight=1.0
        )
