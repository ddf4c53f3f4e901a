"""Convolutions of every kind, pooling and norms over channels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tests.matrices.models.model import Model, normal


def _conv(
    x: jax.Array, kernel: jax.Array, layout: tuple[str, str, str], **options: Any
) -> jax.Array:
    """A convolution of one example, which has no batch axis."""
    return jax.lax.conv_general_dilated(x[None], kernel, dimension_numbers=layout, **options)[0]


def single(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    layout: tuple[str, str, str] = ("NHWC", "HWIO", "NHWC"),
    **options: Any,
) -> Callable[[], Model]:
    """One convolution followed by something curved."""
    options = {"window_strides": (1,) * (len(shape) - 1), "padding": "SAME", **options}

    def build() -> Model:
        def loss(params, x):
            y = _conv(x, params["kernel"], layout, **options)
            return jnp.sum(jnp.tanh(y) ** 2)

        return Model(loss, ({"kernel": normal(0, *kernel, scale=0.3)}, normal(1, 3, *shape)))

    return build


def transposed() -> Model:
    """`conv_transpose` up, a strided convolution down, the same kernel for both."""

    def loss(params, x):
        up = jax.lax.conv_transpose(x[None], params["up"], (2, 2), "SAME")[0]
        layout = ("NHWC", "HWIO", "NHWC")
        options = {"window_strides": (2, 2), "padding": "SAME"}
        down = _conv(jnp.tanh(up), params["down"], layout, **options)
        again = _conv(jnp.tanh(down), params["same"], layout, window_strides=(1, 1), padding="SAME")
        again = _conv(
            jnp.tanh(again), params["same"], layout, window_strides=(1, 1), padding="SAME"
        )
        return jnp.sum(again**2)

    params = {
        "up": normal(0, 2, 2, 3, 4, scale=0.3),
        "down": normal(1, 3, 3, 4, 5, scale=0.3),
        "same": normal(2, 3, 3, 5, 5, scale=0.3),
    }
    return Model(loss, (params, normal(3, 3, 3, 4, 3)))


def small_cnn() -> Model:
    """Convolution, group norm, max pool, convolution, average pool, wide late layer, head."""

    def loss(params, example):
        x, y = example
        layout = ("NHWC", "HWIO", "NHWC")
        x = _conv(x, params["first"], layout, window_strides=(1, 1), padding="SAME")
        groups = x.reshape(*x.shape[:2], 2, 2)
        mean = groups.mean((0, 1, 3), keepdims=True)
        deviation = jnp.sqrt(groups.var((0, 1, 3), keepdims=True) + 1e-5)
        x = ((groups - mean) / deviation).reshape(x.shape)
        x = x * jnp.broadcast_to(params["scale"], x.shape)
        x = jax.nn.relu(x + jnp.broadcast_to(params["shift"], x.shape))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2, 1), (2, 2, 1), "VALID")
        x = jax.nn.relu(_conv(x, params["late"], layout, window_strides=(2, 2), padding="SAME"))
        return jnp.sum((x.mean((0, 1)) @ params["head"] - y) ** 2)

    params = {
        "first": normal(0, 3, 3, 2, 4, scale=0.3),
        "scale": 1 + normal(1, 4, scale=0.1),
        "shift": normal(2, 4, scale=0.1),
        "late": normal(3, 3, 3, 4, 16, scale=0.2),
        "head": normal(4, 16, 3, scale=0.3),
    }
    return Model(loss, (params, (normal(5, 3, 6, 6, 2), normal(6, 3, 3))))


def images_per_example() -> Model:
    """An example that is a small stack of images, all convolved with one kernel."""

    def loss(params, x):
        y = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(jnp.tanh(y) ** 2)

    return Model(loss, ({"kernel": normal(0, 2, 2, 3, 8, scale=0.3)}, normal(1, 3, 2, 3, 3, 3)))


def filter_per_example() -> Model:
    """A kernel that depends on the example, a kernel that is itself convolved."""

    def loss(params, example):
        x, code = example
        kernel = jnp.tanh(code @ params["maker"]).reshape(3, 3, 2, 2)
        layout = ("NHWC", "HWIO", "NHWC")
        y = _conv(x, kernel, layout, window_strides=(1, 1), padding="SAME")
        smooth = jnp.convolve(params["blurred"], jnp.ones(2, jnp.float32), mode="valid")
        return jnp.sum(jnp.convolve(y.ravel(), smooth, mode="same") ** 2)

    params = {"maker": normal(0, 5, 36, scale=0.3), "blurred": normal(1, 4)}
    return Model(loss, (params, (normal(2, 3, 4, 4, 2), normal(3, 3, 5))))


MODELS = {
    "conv_1d": single((6, 3), (3, 3, 5), ("NWC", "WIO", "NWC")),
    "conv_2d_same": single((5, 4, 3), (3, 3, 3, 6)),
    "conv_2d_valid": single((5, 4, 3), (3, 2, 3, 6), padding="VALID"),
    "conv_2d_pixels": single((3, 3, 6), (1, 1, 6, 8)),
    "conv_2d_late": single((2, 2, 8), (3, 3, 8, 8)),
    "conv_2d_strided": single((5, 6, 3), (3, 3, 3, 4), window_strides=(2, 3)),
    "conv_2d_dilated": single((6, 5, 3), (2, 2, 3, 4), rhs_dilation=(2, 1)),
    "conv_2d_input_dilated": single(
        (3, 3, 3), (3, 3, 3, 4), lhs_dilation=(2, 2), padding=((1, 2), (2, 1))
    ),
    "conv_2d_padded": single((3, 4, 3), (3, 3, 3, 4), padding=((2, 0), (-1, 3))),
    "conv_2d_grouped": single((4, 4, 6), (3, 3, 3, 4), feature_group_count=2),
    "conv_2d_depthwise": single((4, 4, 4), (3, 3, 1, 8), feature_group_count=4),
    "conv_2d_grouped_strided": single(
        (5, 5, 4), (3, 3, 2, 6), feature_group_count=2, window_strides=(2, 2), padding="VALID"
    ),
    "conv_2d_nchw": single((3, 4, 5), (6, 3, 3, 3), ("NCHW", "OIHW", "NCHW")),
    "conv_3d": single((3, 3, 4, 2), (2, 2, 2, 2, 4), ("NDHWC", "DHWIO", "NDHWC")),
    "conv_transposed": transposed,
    "small_cnn": small_cnn,
    "images_per_example": images_per_example,
    "filter_per_example": filter_per_example,
}  # fmt: skip
