"""The small networks of offline RL: an MLP, several heads of it, a value and a critic."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gradkin.checks import positive
from gradkin.typing import PRNGKey, PyTree

Layers = tuple[dict[str, Any], ...]


def init_mlp(key: PRNGKey, sizes: tuple[int, ...], *, layer_norm: bool = False) -> Layers:
    """Parameters of an MLP; weights and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Args:
      key: PRNG key.
      sizes: widths from input to output, at least two.
      layer_norm: normalise each hidden layer before its ReLU.

    Returns:
      One dict per layer.

    Raises:
      ValueError: on fewer than two widths or a width < 1.

    Example:
      >>> import jax
      >>> [layer["kernel"].shape for layer in init_mlp(jax.random.key(0), (3, 8, 1))]
      [(3, 8), (8, 1)]
    """
    if len(sizes) < 2:
        raise ValueError(f"Expected sizes from input to output, got sizes={sizes}.")
    positive(sizes=sizes)
    # One draw for all layers: a draw per array takes seconds to compile.
    counts = [(fan_in + 1) * width for fan_in, width in zip(sizes[:-1], sizes[1:])]
    drawn = jax.random.uniform(key, (sum(counts),), minval=-1.0, maxval=1.0)
    layers, position = [], 0
    for index, (fan_in, width, count) in enumerate(zip(sizes[:-1], sizes[1:], counts)):
        block = drawn[position : position + count].reshape(fan_in + 1, width) * fan_in**-0.5
        layer = {"kernel": block[:-1], "bias": block[-1]}
        position += count
        if layer_norm and index < len(sizes) - 2:
            layer["norm_scale"] = jnp.ones(width)
            layer["norm_bias"] = jnp.zeros(width)
        layers.append(layer)
    return tuple(layers)


def mlp(params: Layers, x: Float[Array, "*B I"]) -> tuple[Float[Array, "*B O"], Array]:
    """Apply an MLP: linear, layer norm where it has one, ReLU; the last layer is linear.

    Args:
      params: from `init_mlp`.
      x: [..., I].

    Returns:
      The output [..., O] and the penultimate features [..., F].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> y, features = mlp(init_mlp(jax.random.key(0), (3, 8, 1)), jnp.ones((5, 3)))
      >>> y.shape, features.shape
      ((5, 1), (5, 8))
    """
    for layer in params[:-1]:
        x = affine(x @ layer["kernel"], layer["bias"])
        if "norm_scale" in layer:
            x = x - x.mean(-1, keepdims=True)
            x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
            x = affine(x * expand(layer["norm_scale"], x), layer["norm_bias"])
        x = jax.nn.relu(x)
    return affine(x @ params[-1]["kernel"], params[-1]["bias"]), x


def expand(vector: Array, like: Array) -> Array:
    return jnp.expand_dims(vector, tuple(range(like.ndim - vector.ndim)))


def affine(x: Array, bias: Array) -> Array:
    return x + expand(bias, x)


def init_heads(
    key: PRNGKey, num_heads: int, sizes: tuple[int, ...], *, layer_norm: bool = False
) -> Layers:
    """Parameters of ``num_heads`` independent MLPs, stacked on a leading axis.

    Args:
      key: PRNG key.
      num_heads: H >= 1; 2 are twin heads.
      sizes: widths of each.
      layer_norm: as in `init_mlp`.

    Returns:
      `init_mlp`'s tree with leaves [H, ...].

    Raises:
      ValueError: on ``num_heads < 1``.

    Example:
      >>> import jax
      >>> init_heads(jax.random.key(0), 2, (3, 8, 1))[0]["kernel"].shape
      (2, 3, 8)
    """
    positive(num_heads=num_heads)
    init = lambda k: init_mlp(k, sizes, layer_norm=layer_norm)
    return jax.vmap(init)(jax.random.split(key, num_heads))


def value_heads(
    params: PyTree, observation: Float[Array, "B I"]
) -> tuple[Float[Array, "H B"], Float[Array, "H B F"]]:
    """V of every head, and the features it is linear in.

    Args:
      params: from `init_heads` with last width 1.
      observation: [B, I].

    Returns:
      Values [H, B] and penultimate features [H, B, F].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = jax.eval_shape(lambda key: init_heads(key, 2, (3, 8, 1)), jax.random.key(0))
      >>> [x.shape for x in jax.eval_shape(value_heads, params, jnp.ones((5, 3)))]
      [(2, 5), (2, 5, 8)]
    """
    values, features = jax.vmap(mlp, in_axes=(0, None))(params, observation)
    return values[..., 0], features


def critic_heads(
    params: PyTree, observation: Float[Array, "B I"], action: Float[Array, "B A"]
) -> Float[Array, "H B"]:
    """Q(s, a) of every head.

    Args:
      params: from `init_heads` with first width I + A and last width 1.
      observation: [B, I].
      action: [B, A].

    Returns:
      Values [H, B].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = jax.eval_shape(lambda key: init_heads(key, 2, (5, 8, 1)), jax.random.key(0))
      >>> jax.eval_shape(critic_heads, params, jnp.ones((4, 3)), jnp.ones((4, 2))).shape
      (2, 4)
    """
    return value_heads(params, jnp.concatenate([observation, action], -1))[0]
