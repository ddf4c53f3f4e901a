"""Domains to learn from and one to be tested on: synthetic, coloured and rotated."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkin import data as datasets

FLIPS = (0.2, 0.1, 0.9)  # of the colour; the last is the test
ANGLES = (0.0, 15.0, 30.0, 45.0, 60.0, 75.0)  # the last is the test


class Problem(NamedTuple):
    """Training domains ``x [E, n, d]`` and ``y [E, n, ...]``, and one for the test."""

    x: Any
    y: Any
    x_test: Any
    y_test: Any


def flip(key, bits, probability):
    """Each bit turned with that probability."""
    return jnp.where(jax.random.uniform(key, bits.shape) < probability, 1 - bits, bits)


def synthetic(key, points):
    """Five noisy copies of a shape bit and five of a colour bit."""

    def domain(key, color_flip):
        bit, noise, paint, draw = jax.random.split(key, 4)
        shape = jax.random.bernoulli(bit, 0.5, (points,)).astype(jnp.float32)
        label = flip(noise, shape, 0.25)
        color = flip(paint, label, color_flip)
        means = jnp.repeat(2 * jnp.stack([shape, color], axis=1) - 1, 5, axis=1)
        return means + jax.random.normal(draw, means.shape), label[:, None]

    keys = jax.random.split(key, len(FLIPS))
    x, y = jax.vmap(domain)(keys, jnp.array(FLIPS))
    return Problem(x[:-1], y[:-1], x[-1], y[-1])


def parts(key, data, number, most):
    """Images and labels of equal parts of the training images, and of the test images."""
    first, second = jax.random.split(key)
    size = min(most, len(data["y"]) // number)
    rows = jax.random.permutation(first, len(data["y"]))[: number * size].reshape(number, size)
    test = jax.random.permutation(second, len(data["y_test"]))[:most]
    # 14 x 14 of 28 x 28 pixels, as the papers have it.
    skip = max(1, data["x"].shape[1] // 14)
    small = lambda x: x[..., ::skip, ::skip, :]
    both = [(small(data["x"][row]), data["y"][row]) for row in rows]
    return both, (small(data["x_test"][test]), data["y_test"][test])


def flat(x):
    """Images as vectors."""
    return x.reshape(len(x), -1)


def colored(key, data, most):
    """Images of classes below 5 against the others, coloured."""
    draw, *keys = jax.random.split(key, 1 + len(FLIPS))
    train, test = parts(draw, data, len(FLIPS) - 1, most)
    domains = []
    for key, (x, y), color_flip in zip(keys, [*train, test], FLIPS, strict=True):
        shape = (y < 5).astype(jnp.int32)
        x, label = datasets.color_by_label(key, x, shape, color_flip=color_flip)
        domains.append((flat(x), label.astype(jnp.float32)[:, None]))
    *train, (x_test, y_test) = domains
    x, y = (jnp.stack(arrays) for arrays in zip(*train))
    return Problem(x, y, x_test, y_test)


def rotated(key, data, most):
    """All classes, each domain at its angle."""
    train, (x_test, y_test) = parts(key, data, len(ANGLES) - 1, most)
    turned = [flat(datasets.rotate(x, degrees=a)) for (x, _), a in zip(train, ANGLES)]
    x_test = flat(datasets.rotate(x_test, degrees=ANGLES[-1]))
    return Problem(jnp.stack(turned), jnp.stack([y for _, y in train]), x_test, y_test)
