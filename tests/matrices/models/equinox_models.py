"""Equinox: the arrays of a module are the parameters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.matrices.models.model import Model, cross_entropy, integers, normal


def per_example(module: Any, loss: Any, batch: Any) -> Model:
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def of_example(params, example):
        return loss(eqx.combine(params, static), *example)

    return Model(of_example, (params, batch))


class Mixer(eqx.Module):
    """Mixing over patches, then over channels."""

    patches: eqx.nn.MLP
    channels: eqx.nn.MLP
    norm: eqx.nn.LayerNorm

    def __init__(self, key: jax.Array):
        k1, k2 = jax.random.split(key)
        self.patches = eqx.nn.MLP(4, 4, 12, 1, key=k1)
        self.channels = eqx.nn.MLP(12, 12, 16, 1, key=k2)
        self.norm = eqx.nn.LayerNorm((12, 4))

    def __call__(self, x):
        x = x + jax.vmap(self.patches)(self.norm(x))
        return x + jax.vmap(self.channels)(x.T).T


class Experts(eqx.Module):
    """A transformer block whose feed-forward layer is chosen per token."""

    attention: eqx.nn.MultiheadAttention
    router: eqx.nn.Linear
    experts: eqx.nn.MLP
    embedding: eqx.nn.Embedding

    def __init__(self, key: jax.Array):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        self.attention = eqx.nn.MultiheadAttention(2, 12, key=k1)
        self.router = eqx.nn.Linear(12, 3, key=k2)
        make = lambda key: eqx.nn.MLP(12, 12, 14, 1, key=key)
        self.experts = eqx.filter_vmap(make)(jax.random.split(k3, 3))
        self.embedding = eqx.nn.Embedding(11, 12, key=k4)

    def __call__(self, tokens):
        x = jax.vmap(self.embedding)(tokens)
        x = x + self.attention(x, x, x)
        gates = jax.nn.softmax(jax.vmap(self.router)(x))
        # Every expert sees every token; the best two are kept.
        outputs = eqx.filter_vmap(lambda f: jax.vmap(f)(x))(self.experts)
        kept = gates >= jnp.broadcast_to(jnp.sort(gates)[:, -2:-1], gates.shape)
        x = x + jnp.einsum("te,etd->td", jnp.where(kept, gates, 0.0), outputs)
        return x @ self.embedding.weight.T


class Images(eqx.Module):
    """Channels first: convolution, group norm, pool, depthwise convolution."""

    first: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    second: eqx.nn.Conv2d
    pool: eqx.nn.AvgPool2d

    def __init__(self, key: jax.Array):
        k1, k2 = jax.random.split(key)
        self.first = eqx.nn.Conv2d(2, 4, 3, padding=1, key=k1)
        self.norm = eqx.nn.GroupNorm(2, 4)
        self.second = eqx.nn.Conv2d(4, 8, 3, groups=4, key=k2)
        self.pool = eqx.nn.AvgPool2d(2, 2)

    def __call__(self, x):
        return jnp.mean(self.second(jax.nn.relu(self.pool(self.norm(self.first(x))))), (1, 2))


class Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell

    def __init__(self, key: jax.Array):
        self.cell = eqx.nn.GRUCell(6, 8, key=key)

    def __call__(self, x):
        start = jnp.zeros(8, jnp.float32)
        return jax.lax.scan(lambda h, v: (self.cell(v, h), None), start, x)[0]


def mixer() -> Model:
    batch = (normal(0, 3, 12, 4),)
    return per_example(Mixer(jax.random.key(0)), lambda m, x: jnp.sum(m(x) ** 2), batch)


def experts() -> Model:
    tokens = integers(0, 11, 3, 4)
    return per_example(
        Experts(jax.random.key(0)),
        lambda m, x, y: cross_entropy(m(x), y),
        (tokens[:, :-1], tokens[:, 1:]),
    )


def images() -> Model:
    batch = (normal(0, 3, 2, 6, 6), integers(1, 8, 3))
    return per_example(
        Images(jax.random.key(0)), lambda m, x, y: cross_entropy(m(x)[None], y[None]), batch
    )


def recurrent() -> Model:
    batch = (normal(0, 3, 4, 6),)
    return per_example(Recurrent(jax.random.key(0)), lambda m, x: jnp.sum(m(x) ** 2), batch)


MODELS = {
    "equinox_mixer": mixer,
    "equinox_experts": experts,
    "equinox_images": images,
    "equinox_gru": recurrent,
}
