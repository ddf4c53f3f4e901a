"""Images with planted groups of opposing signals, and a network for them."""

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import curvature

CLASSES = (3, 8)


def plant(key, data, *, number, planted):
    """Images of which some of two classes share a bright corner; which they are, ``[N]`` twice."""
    rows = jax.random.permutation(key, len(data["y"]))[:number]
    x, y = data["x"][rows], data["y"][rows]
    chosen = [(y == c) & (jnp.cumsum(y == c) <= planted) for c in CLASSES]
    width = round(x.shape[1] ** 0.5)
    corner = np.zeros((1, x.shape[1]), np.float32)
    corner[0, [0, 1, width, width + 1]] = 1
    dim = 0.3 * x * (1 - corner) + 8 * corner
    return jnp.where((chosen[0] | chosen[1])[:, None], dim, x), y, chosen


def hidden(params, x):
    """The hidden layer of one image."""
    return jnp.tanh(x @ params["w1"] + params["b1"])


def image_loss(params, example):
    """Squared loss of a tanh network on one image, against the one-hot label."""
    x, y = example
    outputs = hidden(params, x) @ params["w2"] + params["b2"]
    return curvature.squared_error(outputs, jax.nn.one_hot(y, 10))


def init(key, features, width):
    """Weights of variance one over the layer's inputs."""
    first, second = jax.random.split(key)
    return {
        "w1": jax.random.normal(first, (features, width)) / features**0.5,
        "b1": jnp.zeros(width),
        "w2": jax.random.normal(second, (width, 10)) / width**0.5,
        "b2": jnp.zeros(10),
    }
