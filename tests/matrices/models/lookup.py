"""Embeddings, gathers, slices and other ways to read a part of a parameter."""

import jax
import jax.numpy as jnp

from tests.matrices.models.model import Model, cross_entropy, integers, normal, weight


def embeddings() -> Model:
    """Repeated ids, two tables, a bag of words, a one-hot product."""

    def loss(params, example):
        tokens, segment = example
        x = params["tokens"][tokens] + jnp.take(params["positions"], jnp.arange(5), axis=0)
        x = x + jnp.broadcast_to(params["segments"][segment], x.shape)
        bag = jnp.mean(params["bag"][tokens], axis=0)
        hot = jax.nn.one_hot(tokens, 11) @ params["hot"]
        return jnp.sum(jnp.tanh(x + hot) ** 2) + jnp.sum(jnp.tanh(bag) ** 2)

    params = {
        "tokens": normal(0, 11, 7),
        "positions": normal(1, 5, 7),
        "segments": normal(2, 3, 7),
        "bag": normal(3, 11, 7),
        "hot": normal(4, 11, 7),
    }
    tokens = integers(5, 4, 4, 5)  # few values: every example repeats an id
    return Model(loss, (params, (tokens, integers(6, 3, 4))))


def tied_embedding() -> Model:
    """The same table read at ids and multiplied, twice and in both layouts."""

    def loss(params, tokens):
        x = jnp.tanh(params["table"][tokens])
        logits = x @ params["table"].T
        more = jnp.tanh(params["columns"][:, tokens].T) @ params["columns"]
        return cross_entropy(logits, tokens[::-1]) + jnp.sum(jnp.tanh(more))

    params = {"table": normal(0, 13, 8), "columns": normal(1, 8, 13)}
    return Model(loss, (params, integers(2, 13, 4, 3)))


def scalar_lookup() -> Model:
    """One row, one column, one entry; row by dynamic slice; a row of a table of tables."""

    def loss(params, example):
        i, j, x = example
        row = params["row"][i]
        column = params["column"][:, j]
        entry = params["entry"][i, j]
        cut = jax.lax.dynamic_slice_in_dim(params["cut"], i, 2, axis=0).sum(0)
        taken = jax.lax.dynamic_index_in_dim(params["taken"], j, axis=1, keepdims=False)
        deep = params["deep"][i]
        return jnp.sum(jnp.tanh(row + column + cut + taken + x @ deep)) * entry

    params = {
        "row": normal(0, 6, 8),
        "column": normal(1, 8, 6),
        "entry": normal(2, 6, 6),
        "cut": normal(3, 7, 8),
        "taken": normal(4, 8, 6),
        "deep": normal(5, 6, 8, 8),
    }
    return Model(loss, (params, (integers(6, 6, 4), integers(7, 6, 4), normal(8, 4, 8))))


def lookup_modes() -> Model:
    """Negative ids count from the end; clipped, filled and dropped ids keep their meaning."""

    def loss(params, tokens):
        wrapped = params["wrap"][tokens - 4]
        clipped = params["clip"].at[tokens * 3].get(mode="clip")
        filled = params["fill"].at[tokens * 3].get(mode="fill", fill_value=0.0)
        promised = params["promise"].at[tokens].get(mode="promise_in_bounds")
        return jnp.sum(jnp.tanh(wrapped + clipped + filled + promised) ** 2)

    names = ("wrap", "clip", "fill", "promise")
    params = {name: normal(i, 9, 6) for i, name in enumerate(names)}
    return Model(loss, (params, integers(5, 9, 4, 3)))


def sliced() -> Model:
    """Halves, strides, reversal, rolling, padding and pieces of one parameter."""

    def loss(params, x):
        x = jnp.tanh(x @ params["halves"][:6] + x @ params["halves"][6:])
        x = jnp.tanh(x @ params["strided"][::2, 1::2])
        x = jnp.tanh(x @ params["flipped"][::-1])
        x = jnp.tanh(x @ jnp.roll(params["rolled"], 2, axis=1))
        x = jnp.tanh(x @ jnp.pad(params["padded"], ((1, 1), (0, 0))))
        return jnp.sum(jnp.tanh(x @ params["three"][1]) @ params["three"][2])

    params = {
        "halves": weight(0, 12, 6),
        "strided": weight(1, 12, 12),
        "flipped": weight(2, 6, 6),
        "rolled": weight(3, 6, 6),
        "padded": weight(4, 4, 6),
        "three": normal(5, 3, 6, 6, scale=0.4),
    }
    return Model(loss, (params, normal(6, 4, 6)))


def concatenated() -> Model:
    """Parameters joined before use: side by side, stacked, tiled, one inside another."""

    def loss(params, x):
        x = jnp.tanh(x @ jnp.concatenate([params["left"], params["right"]], axis=1))
        top = jnp.concatenate([params["top"], params["bottom"]], axis=0)
        x = jnp.tanh(x @ top)
        both = jnp.stack([params["first"], params["second"]])
        x = jnp.tanh(jnp.einsum("i,nij->nj", x, both))
        x = jnp.tanh(x.sum(0) @ jnp.tile(params["tiled"], (1, 2)))
        return jnp.sum(x @ params["whole"].at[:3, :].set(params["part"]))

    params = {
        "left": weight(0, 6, 4),
        "right": weight(1, 6, 4),
        "top": weight(2, 5, 8),
        "bottom": weight(3, 3, 8),
        "first": weight(4, 8, 6),
        "second": weight(5, 8, 6),
        "tiled": weight(6, 6, 3),
        "whole": weight(7, 6, 5),
        "part": weight(8, 3, 5),
    }
    return Model(loss, (params, normal(9, 4, 6)))


def stopped() -> Model:
    """Gradients stopped for one use, a copy, a straight-through estimator."""

    def loss(params, x):
        still = jax.lax.stop_gradient(params["w"])
        x = jnp.tanh(x @ params["w"] + jnp.tanh(x @ still))
        hard = params["sign"] + jax.lax.stop_gradient(jnp.sign(params["sign"]) - params["sign"])
        return jnp.sum(jnp.tanh(x @ hard)) + jnp.sum(jax.lax.stop_gradient(params["off"]) * x)

    params = {"w": weight(0, 8, 8), "sign": weight(1, 8, 8), "off": normal(2, 8)}
    return Model(loss, (params, normal(3, 4, 8)))


def triangular() -> Model:
    """A matrix filled from a vector, a diagonal, a symmetric part, a skew-symmetric part."""

    def loss(params, x):
        rows, columns = jnp.tril_indices(6)
        lower = jnp.zeros((6, 6), jnp.float32).at[rows, columns].set(params["packed"])
        x = jnp.tanh(x @ lower) + jnp.tanh(jnp.diag(params["diagonal"]) @ x)
        square = params["square"]
        x = jnp.tanh(x @ (square + square.T)) + jnp.tanh(x @ (square - square.T))
        return jnp.sum(x @ jnp.diagonal(params["on"])[:, None])

    params = {
        "packed": normal(0, 21),
        "diagonal": normal(1, 6),
        "square": weight(2, 6, 6),
        "on": normal(3, 6, 6),
    }
    return Model(loss, (params, normal(4, 4, 6)))


MODELS = {
    f.__name__: f
    for f in (
        embeddings, tied_embedding, scalar_lookup, lookup_modes, sliced, concatenated, stopped,
        triangular,
    )
}  # fmt: skip
