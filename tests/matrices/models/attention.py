"""Decoder transformers in plain functions, with the usual ways to store their weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tests.matrices.models.model import (
    Model,
    cross_entropy,
    integers,
    normal,
    plus,
    times,
    weight,
)


def layer_norm(p: Any, x: jax.Array) -> jax.Array:
    mean = jnp.broadcast_to(x.mean(-1, keepdims=True), x.shape)
    deviation = jnp.broadcast_to(jnp.sqrt(x.var(-1, keepdims=True) + 1e-5), x.shape)
    return plus(times((x - mean) / deviation, p["scale"]), p["bias"])


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Causal attention of ``[T, H, K]`` arrays."""
    scores = jnp.einsum("thk,shk->hts", query, key) * query.shape[-1] ** -0.5
    mask = jnp.broadcast_to(jnp.tri(query.shape[0], dtype=bool), scores.shape)
    return jnp.einsum("hts,shk->thk", jax.nn.softmax(jnp.where(mask, scores, -1e9)), value)


def block(p: Any, x: jax.Array) -> jax.Array:
    h = layer_norm(p["norm1"], x)
    heads = [jnp.einsum("td,dhk->thk", h, p[name]) for name in ("query", "key", "value")]
    x = x + jnp.einsum("thk,hkd->td", attend(*heads), p["out"])
    h = layer_norm(p["norm2"], x)
    return x + plus(jax.nn.gelu(plus(h @ p["up"], p["up_bias"])) @ p["down"], p["down_bias"])


def block_params(seed: int, d: int, heads: int) -> dict[str, Any]:
    k = d // heads
    norm = {"scale": 1 + normal(seed, d, scale=0.1), "bias": normal(seed + 1, d, scale=0.1)}
    return {
        "norm1": norm,
        "norm2": {name: x + 0.1 for name, x in norm.items()},
        "query": weight(seed + 2, d, heads, k),
        "key": weight(seed + 3, d, heads, k),
        "value": weight(seed + 4, d, heads, k),
        "out": normal(seed + 5, heads, k, d, scale=d**-0.5),
        "up": weight(seed + 6, d, 2 * d),
        "up_bias": normal(seed + 7, 2 * d, scale=0.1),
        "down": weight(seed + 8, 2 * d, d),
        "down_bias": normal(seed + 9, d, scale=0.1),
    }


def transformer(
    *,
    d: int = 16,
    heads: int = 2,
    length: int = 4,
    vocabulary: int = 24,
    layers: int = 2,
    batch: int = 3,
    tied: bool = False,
    scan: bool = False,
    remat: bool = False,
) -> Model:
    apply = jax.checkpoint(block) if remat else block

    def loss(params, example):
        tokens, targets = example
        x = params["embedding"][tokens] + params["position"]
        if scan:
            x, _ = jax.lax.scan(lambda x, p: (apply(p, x), None), x, params["blocks"])
        else:
            for p in params["blocks"]:
                x = apply(p, x)
        x = layer_norm(params["norm"], x)
        return cross_entropy(x @ (params["embedding"].T if tied else params["head"]), targets)

    blocks: Any = [block_params(10 * i, d, heads) for i in range(layers)]
    if scan:
        blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    params = {
        "embedding": normal(1, vocabulary, d, scale=0.3),
        "position": normal(2, length, d, scale=0.3),
        "blocks": blocks,
        "norm": block_params(3, d, heads)["norm1"],
    }
    if not tied:
        params["head"] = weight(4, d, vocabulary)
    tokens = integers(5, vocabulary, batch, length + 1)
    return Model(loss, (params, (tokens[:, :-1], tokens[:, 1:])))


def fused_projection() -> Model:
    """Query, key and value in one matrix, split after the product or before it."""

    def loss(params, x):
        t, d = x.shape
        heads = jnp.split(x @ params["after"], 3, axis=-1)
        y = attend(*(h.reshape(t, 2, d // 2) for h in heads)).reshape(t, d)
        heads = [y @ w for w in jnp.split(params["before"], 3, axis=1)]
        y = attend(*(h.reshape(t, 2, d // 2) for h in heads)).reshape(t, d)
        heads = [y @ params["stacked"][i] for i in range(3)]
        y = attend(*(h.reshape(t, 2, d // 2) for h in heads)).reshape(t, d)
        return jnp.sum(y**2)

    params = {
        "after": weight(0, 12, 36),
        "before": weight(1, 12, 36),
        "stacked": normal(2, 3, 12, 12, scale=0.3),
    }
    return Model(loss, (params, normal(3, 4, 3, 12)))


def grouped_query() -> Model:
    """Fewer key and value heads than query heads: broadcast or repeated."""

    def loss(params, x):
        query = jnp.einsum("td,dhk->thk", x, params["query"])
        key = jnp.repeat(jnp.einsum("td,dhk->thk", x, params["key"]), 2, axis=1)
        value = jnp.einsum("td,dhk->thk", x, params["value"])
        value = jnp.broadcast_to(value[:, :, None], (3, 2, 2, 4)).reshape(3, 4, 4)
        y = jnp.einsum("thk,hkd->td", attend(query, key, value), params["out"])
        # The weight itself is repeated over heads.
        again = jnp.einsum("td,dhk->thk", y, jnp.repeat(params["weight"], 4, axis=1))
        wide = jnp.broadcast_to(params["wide"][:, None], (12, 4, 4))
        return jnp.sum(again**2) + jnp.sum(jnp.tanh(jnp.einsum("td,dhk->thk", y, wide)))

    params = {
        "query": weight(0, 12, 4, 4),
        "key": weight(1, 12, 2, 4),
        "value": weight(2, 12, 2, 4),
        "out": normal(3, 4, 4, 12, scale=0.3),
        "weight": weight(4, 12, 1, 4),
        "wide": weight(5, 12, 4),
    }
    return Model(loss, (params, normal(6, 3, 3, 12)))


def mixture_of_experts() -> Model:
    """Experts by a soft sum, by gathering the chosen expert's weights, by a one-hot dispatch."""

    def loss(params, x):
        gates = jax.nn.softmax(x @ params["router"])
        x = x + jnp.einsum("te,td,edf->tf", gates, x, params["soft"])
        chosen = jnp.argmax(x @ params["router"], axis=-1)
        score = jnp.take_along_axis(gates, chosen[:, None], axis=1)
        x = x + jnp.broadcast_to(score, x.shape) * jnp.einsum(
            "td,tdf->tf", x, params["gathered"][chosen]
        )
        sent = jax.nn.one_hot(chosen, 3)
        expert_in = jnp.einsum("te,td->etd", sent, x)
        hidden = jax.nn.relu(jnp.einsum("etd,edf->etf", expert_in, params["up"]))
        out = jnp.einsum("etf,efd->etd", hidden, params["down"])
        return jnp.sum(jnp.einsum("te,etd->td", sent, out) ** 2)

    params = {
        "router": weight(0, 8, 3),
        "soft": normal(1, 3, 8, 8, scale=0.3),
        "gathered": normal(2, 3, 8, 8, scale=0.3),
        "up": normal(3, 3, 8, 10, scale=0.3),
        "down": normal(4, 3, 10, 8, scale=0.3),
    }
    return Model(loss, (params, normal(5, 3, 2, 8)))


MODELS = {
    "transformer": functools.partial(transformer, layers=1),
    "transformer_tied": functools.partial(transformer, layers=1, tied=True),
    "transformer_scan": functools.partial(transformer, scan=True),
    "transformer_scan_tied_remat": functools.partial(transformer, scan=True, tied=True, remat=True),
    "transformer_remat": functools.partial(transformer, layers=1, remat=True),
    "fused_projection": fused_projection,
    "grouped_query": grouped_query,
    "mixture_of_experts": mixture_of_experts,
}
