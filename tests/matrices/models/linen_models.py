"""Flax Linen: `module.apply` of one example."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tests.matrices.models.model import Model, cross_entropy, integers, normal


def per_example(module: nn.Module, loss: Any, batch: Any) -> Model:
    first = jax.tree.map(lambda x: x[0], batch)
    variables = module.init(jax.random.key(0), *first[:1])

    def of_example(params, example):
        return loss(module.apply({"params": params}, example[0]), *example[1:])

    return Model(of_example, (variables["params"], batch))


class ResNetBlock(nn.Module):
    """Two convolutions with group norms and a strided projection."""

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(8, (3, 3), strides=2, use_bias=False)(x)
        y = nn.relu(nn.GroupNorm(num_groups=4)(y))
        y = nn.GroupNorm(num_groups=2)(nn.Conv(8, (3, 3), use_bias=False)(y))
        y = nn.relu(y + nn.Conv(8, (1, 1), strides=2)(x))
        return nn.Dense(5)(y.mean((0, 1)))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))


class VisionTransformer(nn.Module):
    """Patches by a strided convolution, a class token, learned positions."""

    @nn.compact
    def __call__(self, image):
        x = nn.Conv(16, (2, 2), strides=2)(image).reshape(-1, 16)
        token = self.param("token", nn.initializers.normal(1.0), (1, 16))
        x = jnp.concatenate([token, x])
        x = x + self.param("position", nn.initializers.normal(1.0), x.shape)
        x = nn.remat(Encoder)()(x)
        return nn.Dense(5)(nn.LayerNorm()(x[0]))


class UNet(nn.Module):
    """Down and up once, with a skip connection and a transposed convolution."""

    @nn.compact
    def __call__(self, x):
        skip = nn.relu(nn.Conv(4, (3, 3))(x))
        y = nn.max_pool(skip, (2, 2), (2, 2))
        y = nn.relu(nn.Conv(8, (3, 3))(y))
        y = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(y)
        y = nn.relu(nn.Conv(4, (3, 3))(jnp.concatenate([y, skip], axis=-1)))
        return nn.Conv(1, (1, 1))(y)


class Decoder(nn.Module):
    """Tied embedding, layers stacked by `nn.scan`."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(24, 16)
        stack = nn.scan(
            lambda module, x, _: (module(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        x, _ = stack(Encoder(), embed(tokens), None)
        return embed.attend(x)


def resnet_block() -> Model:
    batch = (normal(0, 3, 4, 4, 4), integers(1, 5, 3))
    return per_example(ResNetBlock(), lambda y, t: cross_entropy(y[None], t[None]), batch)


def vision_transformer() -> Model:
    batch = (normal(0, 3, 4, 4, 3), integers(1, 5, 3))
    return per_example(VisionTransformer(), lambda y, t: cross_entropy(y[None], t[None]), batch)


def unet() -> Model:
    batch = (normal(0, 3, 4, 4, 2), normal(1, 3, 4, 4, 1))
    return per_example(UNet(), lambda y, target: jnp.sum((y - target) ** 2), batch)


def decoder() -> Model:
    tokens = integers(0, 24, 3, 5)
    return per_example(Decoder(), cross_entropy, (tokens[:, :-1], tokens[:, 1:]))


MODELS = {
    "linen_resnet_block": resnet_block,
    "linen_vision_transformer": vision_transformer,
    "linen_unet": unet,
    "linen_decoder": decoder,
}
