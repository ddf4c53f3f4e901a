"""Variational autoencoders whose likelihood is any measure of distortion."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array, PRNGKey, Scalar


class ExpectedLossVAE(NamedTuple):
    """The objective and its two parts, averaged over a batch.

    Attributes:
      loss: ``weight * distortion + divergence``, what is minimised.
      distortion: of reconstructions from one sample of each code.
      divergence: KL divergence of the codes from the standard normal distribution, in nats.
    """

    loss: Array
    distortion: Array
    divergence: Array


def expected_loss_vae(
    key: PRNGKey,
    encode: Callable[[Array], tuple[Array, Array]],
    decode: Callable[[Array], Array],
    x: Float[Array, "B ..."],
    *,
    distortion: Callable[[Array, Array], Array],
    weight: Scalar,
) -> ExpectedLossVAE:
    """Objective of the expected-loss VAE (Ridgeway et al. 2015, sec. 4).

    .. math:: C\\, E_{q(z | x)}[\\Delta(x, \\hat x(z))] + KL(q(z | x)\\, \\|\\, N(0, I))

    An autoencoder of any bounded distortion, such as ``1 - ms_ssim``, with a Gaussian code. With
    the squared error and ``weight = 1 / (2 s^2)`` it is the usual Gaussian VAE.

    Args:
      key: a PRNG key, for the codes.
      encode: maps a batch to mean and log standard deviation of its codes, ``[B, k]`` each.
      decode: maps codes ``[B, k]`` to reconstructions of ``x``.
      x: ``[B, ...]``, a batch.
      distortion: maps ``x`` and reconstructions to ``[B]``.
      weight: ``C`` > 0, nats that one unit of distortion is worth.

    Returns:
      `ExpectedLossVAE`; ``.loss`` is differentiated by what ``encode`` and ``decode`` close over.

    Raises:
      ValueError: a weight that is not positive, a distortion that is not one number per example.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import losses
      >>> encode = lambda x: (x, jnp.zeros_like(x))
      >>> squared = lambda x, y: jnp.sum((x - y) ** 2, axis=1)
      >>> terms = losses.expected_loss_vae(
      ...     jax.random.key(0), encode, jnp.zeros_like, jnp.ones((3, 2)),
      ...     distortion=squared, weight=10.0)
      >>> [float(term) for term in terms]
      [21.0, 2.0, 1.0]

    References:
      Ridgeway et al. (2015), "Learning to Generate Images with Perceptual Similarity Metrics",
      arXiv:1511.06409. :cite:`ms-ssim-autoencoders`
    """
    checks.positive(weight=weight)
    mean, log_std = encode(x)
    std = jnp.exp(log_std)
    found = distortion(x, decode(mean + std * jax.random.normal(key, mean.shape, mean.dtype)))
    if found.shape != (len(x),):
        raise ValueError(
            f"Expected distortion to return shape ({len(x)},), one number per example, got "
            f"{found.shape}."
        )
    divergence = jnp.sum(jnp.square(std) + jnp.square(mean) - 1 - 2 * log_std, axis=1) / 2
    found, divergence = jnp.mean(found), jnp.mean(divergence)
    return ExpectedLossVAE(
        jnp.asarray(weight).astype(found.dtype) * found + divergence, found, divergence
    )
