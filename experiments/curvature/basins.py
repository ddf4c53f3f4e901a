"""Small and large batches: the straight lines between where they end."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.curvature import two_layer

LINES = ("continued with small batches", "small batches alone", "another seed")
ALPHAS = np.linspace(-0.25, 1.25, 31, dtype=np.float32)


class Pair(NamedTuple):
    """Two networks of one seed, trained on the same batches."""

    key: jax.Array
    params: Any  # leaves [2, ...]


def train(loop, key, params, data, *, batch, rate, steps, name):
    """Descent of pairs with batches of a size; params ``[S, 2, ...]``."""
    move = functools.partial(two_layer.descend, two_layer.rectified, rate)

    def step(state, data):
        key, use = jax.random.split(state.key)
        rows = jax.random.randint(use, (batch,), 0, data["x"].shape[0])
        move_both = jax.vmap(move, (0, None, None))
        return Pair(key, move_both(state.params, data["x"][rows], data["y"][rows]))

    state, _ = loop(step, Pair(key, params), steps, every=steps, data=data, name=name)
    return state.params


def pair(*trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *trees)


def member(number, pairs):
    return jax.tree.map(lambda leaf: leaf[:, number], pairs)


def measure(first, start, ends, data):
    """Losses and accuracies along the lines from ``start`` to each end, and distances."""

    def at(end, a):
        params = jax.tree.map(lambda w, v: (1 - a) * w + a * v, start, end)
        loss = two_layer.mean_loss(two_layer.rectified, params, data["x"], data["y"])
        outputs = jax.vmap(two_layer.rectified, (None, 0))(params, data["x_test"])
        right = outputs.argmax(-1) == data["y_test"]
        return loss, jnp.mean(right.astype(jnp.float32))

    along = [jax.lax.map(functools.partial(at, end), jnp.asarray(ALPHAS)) for end in ends]
    losses, accuracies = zip(*along)
    length = lambda tree: jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))
    return {
        "line_losses": jnp.stack(losses),
        "line_accuracies": jnp.stack(accuracies),
        "line_lengths": jnp.stack([length(jax.tree.map(jnp.subtract, start, e)) for e in ends]),
        "norms": jnp.stack([length(tree) for tree in (first, start, *ends)]),
        "first_loss": two_layer.mean_loss(two_layer.rectified, first, data["x"], data["y"]),
    }


def lines(config, keys, data, loop):
    """Train with large batches; go on with small ones; train with small ones from the start."""
    widths = (data["x"].shape[1], config.line_width, 10)
    begin = jax.vmap(lambda key: two_layer.init(key, widths))
    options = {"rate": config.line_rate, "steps": config.line_steps}
    large, small = config.batches
    first, other = begin(keys[0]), begin(keys[1])
    ends = train(
        loop, keys[2], pair(first, other), data, batch=large, name="large batches", **options
    )
    end, other_end = member(0, ends), member(1, ends)
    ends = train(
        loop, keys[3], pair(end, first), data, batch=small, name="small batches", **options
    )
    ends = (member(0, ends), member(1, ends), other_end)
    return jax.jit(jax.vmap(measure, (0, 0, 0, None)))(first, end, ends, data)


def barrier(metrics, line):
    """The highest rise above the chord, over the loss at initialisation."""
    inside = (ALPHAS >= 0) & (ALPHAS <= 1)
    losses, a = metrics["line_losses"][:, LINES.index(line)][:, inside], ALPHAS[inside]
    chord = (1 - a) * losses[:, :1] + a * losses[:, -1:]
    return (losses - chord).max(1) / metrics["first_loss"]
