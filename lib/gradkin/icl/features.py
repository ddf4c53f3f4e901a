"""A perceptron in front of the attention layer: gradient descent on deep features."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array, PRNGKey, Scalar


class FeatureWeights(NamedTuple):
    """embed ``[inputs, D]``, up ``[D, H]``, up_bias ``[H]``, down ``[H, D]``, down_bias ``[D]``."""

    embed: Any
    up: Any
    up_bias: Any
    down: Any
    down_bias: Any


@functools.partial(jax.jit, static_argnames=("num_inputs", "width", "hidden"))
def init_features(
    key: PRNGKey,
    *,
    num_inputs: int,
    width: int,
    hidden: int | None = None,
    variance: Scalar = 0.002,
) -> FeatureWeights:
    """Draw an embedding and a perceptron: truncated normal of variance ``variance / fan_in``.

    Args:
      key: PRNG key.
      num_inputs: width of the tokens that come in.
      width: D, the width of the tokens that come out.
      hidden: units of the perceptron, 4 D by default.
      variance: the scale.

    Returns:
      ``FeatureWeights`` with zero biases.

    Raises:
      ValueError: for a size that is not positive.

    Example:
      >>> import jax
      >>> from gradkin import icl
      >>> icl.init_features(jax.random.key(0), num_inputs=2, width=40).up.shape
      (40, 160)

    References:
      von Oswald et al. (2023), section on non-linear regression, arXiv:2212.07677.
      :cite:`icl-gradient-descent`
    """
    hidden = 4 * width if hidden is None else hidden
    checks.positive(num_inputs=num_inputs, width=width, hidden=hidden)
    shapes = (num_inputs, width), (width, hidden), (hidden, width)
    root = jnp.sqrt(jnp.asarray(variance)) / 0.87962566103423978
    embed, up, down = (
        jax.random.truncated_normal(k, -2.0, 2.0, shape) * root / math.sqrt(shape[0])
        for k, shape in zip(jax.random.split(key, 3), shapes)
    )
    return FeatureWeights(embed, up, jnp.zeros(hidden), down, jnp.zeros(width))


@jax.jit
def features(
    weights: FeatureWeights, tokens: Float[Array, "tokens inputs"]
) -> Float[Array, "tokens width"]:
    """Embed each token and add a perceptron of the embedding: h + gelu(h U + u) D + d.

    Args:
      weights: the embedding and the perceptron.
      tokens: one task's tokens.

    Returns:
      ``[tokens, width]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import icl
      >>> weights = icl.init_features(jax.random.key(0), num_inputs=2, width=8)
      >>> icl.features(weights, jnp.zeros((3, 2))).shape
      (3, 8)
    """
    h = tokens @ weights.embed
    hidden = jax.nn.gelu(h @ weights.up + weights.up_bias[None])
    return h + hidden @ weights.down + weights.down_bias[None]
