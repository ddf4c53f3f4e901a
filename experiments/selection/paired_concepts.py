"""Pairs of images and texts of made-up concepts, random encoders, and the training of heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkin import optim, selection

CONCEPTS, MEDICAL = 20, 5
INPUTS = 64
NOISE, COPY_NOISE = 0.5, 0.1  # of inputs, of near-copies
CORRUPTED, COPIED = 0.3, 0.2  # shares of the pool


def trunk(weights, x):
    return jnp.tanh(jnp.tanh(x @ weights["in"]) @ weights["out"])


@functools.partial(jax.jit, static_argnums=0)
def make(config, key):
    """Encoders, and pairs of all sorts as ``(images, texts)``, raw and through the encoders."""
    k = jax.random.split(key, 6)
    width, dimension = config.width, config.dimension
    sides = [(CONCEPTS, INPUTS), (INPUTS, width), (width, width), (width, dimension)]
    # All random numbers of a kind at once: each call of a generator is a program of its own.
    ends = np.cumsum([np.prod(shape) for shape in sides * 2])
    parts = jnp.split(jax.random.normal(k[0], (ends[-1],)), ends[:-1])
    parts = [part.reshape(shape) for part, shape in zip(parts, sides * 2)]
    looks = parts[0], parts[4]  # of concepts: as images, as texts
    weights = [x / np.float32(len(x) ** 0.5) for x in parts]
    names = "image", "text"
    trunks = {n: {"in": w[1], "out": w[2]} for n, w in zip(names, (weights[:4], weights[4:]))}

    # Which pairs, how many, and of which concepts.
    sets = {
        "learned": (config.learned, MEDICAL, CONCEPTS),
        "pool": (config.pool, 0, CONCEPTS),
        "target": (config.target, 0, MEDICAL),
        "test": (config.test, 0, MEDICAL),
        "test of the rest": (config.test, MEDICAL, CONCEPTS),
    }
    counts = [count for count, _, _ in sets.values()]
    bounds = np.array(list(sets.values()), np.int32)[:, 1:]
    low, high = np.repeat(bounds, counts, axis=0).T
    concepts = jax.random.randint(k[1], low.shape, low, high)
    noise = NOISE * jax.random.normal(k[2], (2, len(low), INPUTS))
    seen = [look[concepts] + n for look, n in zip(looks, noise)]
    edges = np.cumsum(counts)[:-1]
    labels = dict(zip(sets, jnp.split(concepts, edges)))
    pairs = dict(zip(sets, zip(*(jnp.split(x, edges) for x in seen))))

    wrong, copied = (int(share * config.pool) for share in (CORRUPTED, COPIED))
    images, texts = pairs["pool"]
    texts = texts.at[:wrong].set(jnp.roll(texts[:wrong], 1, axis=0))
    chosen = jax.random.permutation(k[3], config.learned)[:copied]
    change = COPY_NOISE * jax.random.normal(k[4], (2, copied, INPUTS))
    again = [x[chosen] + d for x, d in zip(pairs["learned"], change)]
    at = slice(wrong, wrong + copied)
    images, texts = images.at[at].set(again[0]), texts.at[at].set(again[1])
    place = jnp.arange(config.pool)
    kinds = jnp.where(labels["pool"] < MEDICAL, 0, 1)
    kinds = jnp.where(place < wrong, 2, jnp.where(place < wrong + copied, 3, kinds))
    order = jax.random.permutation(k[5], config.pool)
    pairs["pool"] = images[order], texts[order]

    encode = lambda pairs: tuple(trunk(trunks[n], x) for n, x in zip(names, pairs))
    return {
        "trunks": trunks,
        "raw": {n: [x[: config.compared] for x in pairs[n]] for n in ("pool", "target")},
        **{name: encode(pairs[name]) for name in ("learned", "pool", "target")},
        "kinds": kinds[order],
        "tests": [(encode(pairs[name])[0], labels[name]) for name in list(sets)[3:]],
        "captions": trunk(trunks["text"], looks[1]),
        "heads": selection.EndpointHeads(
            weights[3], weights[7], jnp.asarray(np.float32(np.log(1 / 0.07)))
        ),
    }


def mean_loss(heads, pairs):
    return jnp.mean(selection.info_nce(heads, *pairs))


def adam(steps):
    """Adam of rate 1 that is brought down to nothing, for `descend`."""
    schedule = optax.cosine_decay_schedule(1.0, steps)
    return optax.adam(schedule, b1=0.9, b2=0.98, eps=1e-6)


def descend(optimizer, heads, opt_state, loss, rate):
    """One step of the optimizer, ``rate`` times as long."""
    there, opt_state = optim.update(optimizer, jax.grad(loss)(heads), opt_state, heads)
    return jax.tree.map(lambda a, b: a + rate * (b - a), heads, there), opt_state


def batches(pairs, size):
    """Whole batches: a leading axis more."""
    return jax.tree.map(lambda x: x.reshape((-1, size, *x.shape[1:])), pairs)
