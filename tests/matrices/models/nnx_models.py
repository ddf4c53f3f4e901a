"""Flax NNX: split off the parameters, merge inside the loss."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.matrices.models.model import Model, cross_entropy, integers, normal


def per_example(module: nnx.Module, loss: Any, batch: Any) -> Model:
    """The recipe of the documentation; what is no parameter is an argument of its own."""
    module.eval()
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def of_example(params, rest, example):
        return loss(nnx.merge(graph, params, rest), example)

    return Model(of_example, (params, rest, batch), (None, None, 0))


class Block(nnx.Module):
    """Attention and a gated layer, each behind a root-mean-square norm."""

    def __init__(self, d: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = nnx.RMSNorm(d, rngs=rngs), nnx.LayerNorm(d, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, d, decode=False, rngs=rngs)
        self.up = nnx.Linear(d, 2 * d, rngs=rngs)
        self.down = nnx.Linear(2 * d, d, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norm2(x)))))


class Decoder(nnx.Module):
    """Tied embedding and head."""

    def __init__(self, vocabulary: int, d: int, layers: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, d, rngs=rngs)
        self.blocks = nnx.List([Block(d, rngs) for _ in range(layers)])

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(x)


def transformer(*, d: int = 16, vocabulary: int = 24, layers: int = 1, length: int = 4) -> Model:
    tokens = integers(0, vocabulary, 3, length + 1)
    return per_example(
        Decoder(vocabulary, d, layers, nnx.Rngs(0)),
        lambda model, e: cross_entropy(model(e[0]), e[1]),
        (tokens[:, :-1], tokens[:, 1:]),
    )


def scanned_perceptron() -> Model:
    """Layers made by `nnx.vmap` and run by `nnx.scan`."""

    class Layers(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            @nnx.split_rngs(splits=3)
            @nnx.vmap(in_axes=(0,), out_axes=0)
            def make(rngs):
                return nnx.Linear(12, 12, rngs=rngs)

            self.layers = make(rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def run(x, layer):
                return jnp.tanh(layer(x))

            return run(x, self.layers)

    return per_example(
        Layers(nnx.Rngs(0)), lambda model, x: jnp.sum(model(x) ** 2), normal(0, 4, 12)
    )


def recurrent(cell: Any) -> Model:
    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.rnn = nnx.RNN(cell(6, 8, rngs=rngs))
            self.head = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            zero = jnp.zeros(8, jnp.float32)
            carry = zero if cell is nnx.GRUCell else (zero, zero)
            outputs: Any = self.rnn(x, initial_carry=carry)
            return self.head(outputs[-1])

    return per_example(
        Network(nnx.Rngs(0)), lambda model, x: jnp.sum(jnp.tanh(model(x))), normal(0, 3, 4, 6)
    )


def adapter() -> Model:
    """Only the low-rank parameters are differentiated: a filter on the variable's type."""

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layer = nnx.LoRALinear(10, 10, lora_rank=2, rngs=rngs)
            self.head = nnx.LoRALinear(10, 4, lora_rank=2, rngs=rngs)

        def __call__(self, x):
            return self.head(jnp.tanh(self.layer(x)))

    network = Network(nnx.Rngs(0))
    for layer in (network.layer, network.head):
        b = layer.lora.lora_b
        b.set_value(normal(1, *b.get_value().shape))
    graph, params, rest = nnx.split(network, nnx.LoRAParam, ...)

    def loss(params, rest, x):
        return jnp.sum(nnx.merge(graph, params, rest)(x) ** 2)

    return Model(loss, (params, rest, normal(0, 3, 10)), (None, None, 0))


def tversky() -> Model:
    """Similarity by common and distinctive features, learned as a layer."""

    class Tversky(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            key = rngs.params
            self.prototypes = nnx.Param(jax.random.normal(key(), (5, 8)))
            self.features = nnx.Param(jax.random.normal(key(), (9, 8)))
            self.alpha = nnx.Param(jnp.float32(0.3))
            self.beta = nnx.Param(jnp.float32(0.7))

        def __call__(self, x):
            own = x @ self.features.T
            theirs = self.prototypes @ self.features.T
            own = jnp.broadcast_to(own, theirs.shape)
            common = jnp.where((own > 0) & (theirs > 0), own * theirs, 0.0)
            only_x = jnp.where((own > 0) & (theirs <= 0), own, 0.0)
            only_p = jnp.where((theirs > 0) & (own <= 0), theirs, 0.0)
            alpha, beta = self.alpha.get_value(), self.beta.get_value()
            return jnp.sum(common - alpha * only_x - beta * only_p, axis=1)

    return per_example(
        Tversky(nnx.Rngs(0)),
        lambda model, e: cross_entropy(model(e[0])[None], e[1][None]),
        (normal(0, 4, 8), integers(1, 5, 4)),
    )


MODELS = {
    "nnx_transformer": transformer,
    "nnx_scan": scanned_perceptron,
    "nnx_lstm": lambda: recurrent(nnx.OptimizedLSTMCell),
    "nnx_gru": lambda: recurrent(nnx.GRUCell),
    "nnx_adapter": adapter,
    "nnx_tversky": tversky,
}
