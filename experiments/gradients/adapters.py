"""A one-layer character transformer with low-rank adapters, and Markov text to train it on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

PROJECTIONS = ("q", "k", "v", "o")


def model_init(key, config):
    """Base weights; adapters start at zero."""
    shapes = {
        "embed": (config.vocabulary, config.width),
        "position": (config.length, config.width),
        **dict.fromkeys(PROJECTIONS, (config.width, config.width)),
        "up": (config.width, 2 * config.width),
        "down": (2 * config.width, config.width),
        "head": (config.width, config.vocabulary),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape) / np.float32(np.sqrt(shape[0] if name[0] != "e" else 4))
        for k, (name, shape) in zip(keys, shapes.items())
    }


def adapters_init(key, config):
    down = lambda k: jax.random.normal(k, (config.width, config.rank)) / np.float32(config.rank)
    return {
        name: {"down": down(k), "up": jnp.zeros((config.rank, config.width))}
        for name, k in zip(PROJECTIONS, jax.random.split(key, len(PROJECTIONS)))
    }


def sentence_loss(adapters, base, tokens):
    """Mean next-token loss of one sentence ``[length + 1]``."""
    project = lambda name, h: h @ base[name] + (h @ adapters[name]["down"]) @ adapters[name]["up"]
    h = base["embed"][tokens[:-1]] + base["position"]
    q, k, v = (project(name, h) for name in "qkv")
    scores = q @ k.T / np.float32(np.sqrt(h.shape[1]))
    causal = np.tril(np.ones((len(tokens) - 1,) * 2, bool))
    h = h + project("o", jax.nn.softmax(jnp.where(causal, scores, -1e9), axis=-1) @ v)
    h = h + jax.nn.relu(h @ base["up"]) @ base["down"]
    logits = h @ base["head"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:]))


def corpus(key, config, table, count):
    """Sentences of an order-one Markov source."""
    first, rest = jax.random.split(key)
    start = jax.random.randint(first, (count,), 0, config.vocabulary)

    def step(token, key):
        token = jax.random.categorical(key, table[token])
        return token, token

    _, tokens = jax.lax.scan(step, start, jax.random.split(rest, config.length))
    return jnp.concatenate([start[None], tokens]).T
