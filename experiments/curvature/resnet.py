"""ResNet-18 for small images, group-normalised, on one image."""

import jax
import jax.numpy as jnp
import numpy as np

WIDTHS = (64, 128, 256, 512)
GROUPS = 32


def init(key, shape, classes):
    """He's initialisation; each block's last scale begins at zero."""
    keys = iter(jax.random.split(key, 64))

    def conv(size, inputs, outputs):
        deviation = np.float32(np.sqrt(2 / (size * size * inputs)))
        return jax.random.normal(next(keys), (size, size, inputs, outputs)) * deviation

    def norm(channels, scale=1.0):
        return {"scale": jnp.full(channels, scale), "bias": jnp.zeros(channels)}

    params = {"stem": conv(3, shape[-1], WIDTHS[0]), "stem_norm": norm(WIDTHS[0])}
    inputs = WIDTHS[0]
    for stage, width in enumerate(WIDTHS):
        for number in range(2):
            block = {
                "conv1": conv(3, inputs, width),
                "norm1": norm(width),
                "conv2": conv(3, width, width),
                "norm2": norm(width, 0.0),
            }
            if inputs != width:
                block["shortcut"] = conv(1, inputs, width)
            params[f"block{stage}{number}"] = block
            inputs = width
    head = jax.random.normal(next(keys), (inputs, classes)) * np.float32(inputs**-0.5)
    return params | {"head": {"w": head, "b": jnp.zeros(classes)}}


def convolve(x, kernel, stride=1):
    dims = ("NHWC", "HWIO", "NHWC")
    padding = "SAME"
    return jax.lax.conv_general_dilated(
        x[None], kernel, (stride, stride), padding, dimension_numbers=dims
    )[0]


def normalize(x, params):
    height, width, channels = x.shape
    groups = x.reshape(height, width, GROUPS, channels // GROUPS)
    mean = jnp.mean(groups, axis=(0, 1, 3), keepdims=True)
    variance = jnp.var(groups, axis=(0, 1, 3), keepdims=True)
    x = ((groups - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)
    return x * params["scale"][None, None] + params["bias"][None, None]


def apply(params, x):
    """Outputs of one image ``[height, width, channels]``."""
    x = jax.nn.relu(normalize(convolve(x, params["stem"]), params["stem_norm"]))
    for stage in range(len(WIDTHS)):
        for number in range(2):
            block = params[f"block{stage}{number}"]
            stride = 2 if stage and not number else 1
            y = jax.nn.relu(normalize(convolve(x, block["conv1"], stride), block["norm1"]))
            y = normalize(convolve(y, block["conv2"]), block["norm2"])
            shortcut = convolve(x, block["shortcut"], stride) if "shortcut" in block else x
            x = jax.nn.relu(shortcut + y)
    return jnp.mean(x, axis=(0, 1)) @ params["head"]["w"] + params["head"]["b"]
