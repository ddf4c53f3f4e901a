"""Networks with one hidden layer, small enough that their Hessians can be written down."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import gradkin
from gradkin import curvature


def pooled(images):
    """Means over squares of pixels, at most 8 x 8 of them; flat."""
    side = images.shape[1]
    block = -(-side // 8)
    parts = images.reshape(len(images), side // block, block, side // block, block)
    return parts.mean((2, 4)).reshape(len(images), -1)


def smooth(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def rectified(params, x):
    return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def init(key, widths):
    """Normal weights of variance 1 over the number of inputs."""
    first, second = jax.random.split(key)
    inputs, hidden, outputs = widths
    return {
        "w1": jax.random.normal(first, (inputs, hidden)) * np.float32(inputs**-0.5),
        "b1": jnp.zeros(hidden),
        "w2": jax.random.normal(second, (hidden, outputs)) * np.float32(hidden**-0.5),
        "b2": jnp.zeros(outputs),
    }


def num_params(inputs, hidden, outputs):
    return hidden * (inputs + 1) + outputs * (hidden + 1)


def mean_loss(predict, params, x, y):
    outputs = jax.vmap(predict, (None, 0))(params, x)
    return jnp.mean(jax.vmap(curvature.cross_entropy)(outputs, y))


def descend(predict, rate, params, x, y):
    grads = jax.grad(functools.partial(mean_loss, predict))(params, x, y)
    return jax.tree.map(lambda w, g: w - np.float32(rate) * g, params, grads)


def spectrum(predict, classes, params, x, y, key):
    """What the whole spectra of the Hessian and of the Gauss-Newton matrix say."""
    entropy = curvature.cross_entropy
    loss = lambda params, x, y: entropy(predict(params, x), y)
    H = curvature.full_spectrum(gradkin.hessian(loss)(params, x, y))
    G = curvature.full_spectrum(gradkin.gauss_newton(predict, entropy)(params, x, y))
    R = curvature.residual_curvature(predict, entropy)(params, x, y)
    top_h, top_g = (jax.tree.map(lambda v: v[:classes], pairs.vectors) for pairs in (H, G))
    share = curvature.near_zero_share(H.values)
    return {
        "eigenvalues": H.values,
        "loss": mean_loss(predict, params, x, y),
        "near_zero": share,
        "large": (1 - share) * H.values.shape[0],
        "top_share": curvature.top_share(H.values, classes),
        "overlap": curvature.subspace_overlap(top_h, top_g),
        "residual": R.frobenius_norm(key).value / jnp.linalg.norm(H.values),
        "least": -H.values[-1] / H.values[0],
        "gap": curvature.count_outliers(H.values).astype(jnp.float32),
    }


def rank(params, x, y):
    """Eigenvalues of the Gauss-Newton matrix that are not rounding."""
    G = gradkin.gauss_newton(smooth, curvature.cross_entropy)(params, x, y)
    values = curvature.full_spectrum(G).values
    return jnp.sum((values > 1e-5 * values[0]).astype(jnp.float32))
