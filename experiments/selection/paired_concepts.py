"""Pairs of images and texts of made-up concepts, random encoders, and the training of heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkin import optim, selection

CONCEPTS, MEDICAL = 20, 5
LATENT, INPUTS = 16, 64
SPREAD, NOISE, COPY_NOISE = 0.5, 0.5, 0.1  # within a concept, of inputs, of near-copies
CORRUPTED, COPIED = 0.3, 0.2  # shares of the pool


def trunk(weights, x):
    return jnp.tanh(jnp.tanh(x @ weights["in"]) @ weights["out"])


@functools.partial(jax.jit, static_argnums=0)
def make(config, key):
    """Encoders, and pairs of all sorts as ``(images, texts)``, raw and through the encoders."""
    k = iter(jax.random.split(key, 40))
    normal = lambda *shape: jax.random.normal(next(k), shape)
    weights = lambda i, o: normal(i, o) / np.float32(i**0.5)
    centers = normal(CONCEPTS, LATENT)
    maps = weights(LATENT, INPUTS), weights(LATENT, INPUTS)

    def draw(number, low, high):
        concepts = jax.random.randint(next(k), (number,), low, high)
        latent = centers[concepts] + SPREAD * normal(number, LATENT)
        return concepts, tuple(latent @ m + NOISE * normal(number, INPUTS) for m in maps)

    _, learned = draw(config.learned, MEDICAL, CONCEPTS)
    concepts, (images, texts) = draw(config.pool, 0, CONCEPTS)
    wrong, copied = (int(share * config.pool) for share in (CORRUPTED, COPIED))
    texts = texts.at[:wrong].set(jnp.roll(texts[:wrong], 1, axis=0))
    chosen = jax.random.permutation(next(k), config.learned)[:copied]
    again = [x[chosen] + COPY_NOISE * normal(copied, INPUTS) for x in learned]
    at = slice(wrong, wrong + copied)
    images, texts = images.at[at].set(again[0]), texts.at[at].set(again[1])
    place = jnp.arange(config.pool)
    kinds = jnp.where(concepts < MEDICAL, 0, 1)
    kinds = jnp.where(place < wrong, 2, jnp.where(place < wrong + copied, 3, kinds))
    order = jax.random.permutation(next(k), config.pool)

    tests = [draw(config.test, 0, MEDICAL), draw(config.test, MEDICAL, CONCEPTS)]
    names = "image", "text"
    trunks = {
        name: {"in": weights(INPUTS, config.width), "out": weights(config.width, config.width)}
        for name in names
    }
    encode = lambda pairs: tuple(trunk(trunks[n], x) for n, x in zip(names, pairs))
    raw = {"pool": (images[order], texts[order]), "target": draw(config.target, 0, MEDICAL)[1]}
    return {
        "trunks": trunks,
        "raw": jax.tree.map(lambda x: x[: config.compared], raw),
        "learned": encode(learned),
        **{name: encode(pairs) for name, pairs in raw.items()},
        "kinds": kinds[order],
        "tests": [(trunk(trunks["image"], pairs[0]), label) for label, pairs in tests],
        "captions": trunk(trunks["text"], centers @ maps[1]),
        "heads": selection.EndpointHeads(
            weights(config.width, config.dimension),
            weights(config.width, config.dimension),
            jnp.asarray(np.float32(np.log(1 / 0.07))),
        ),
    }


def mean_loss(heads, pairs):
    return jnp.mean(selection.info_nce(heads, *pairs))


def descend(optimizer, heads, opt_state, loss):
    return optim.update(optimizer, jax.grad(loss)(heads), opt_state, heads)


def adam(config, steps):
    schedule = optax.cosine_decay_schedule(config.learning_rate, steps)
    return optax.adam(schedule, b1=0.9, b2=0.98, eps=1e-6)


def batches(pairs, size):
    """Whole batches: a leading axis more."""
    return jax.tree.map(lambda x: x.reshape((-1, size, *x.shape[1:])), pairs)
