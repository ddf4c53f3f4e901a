"""All models of a grid of widths and batch sizes, trained together."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkin import curvature, kernels

MICRO = 8  # examples in a micro-batch; divides every batch


class Task(NamedTuple):
    """One seed's training set: its examples and its labels, of which some are wrong."""

    index: jax.Array
    labels: jax.Array


class State(NamedTuple):
    """All models of one seed: ``[2, widths * batches, ...]``, two members in each cell."""

    key: jax.Array
    task: Task
    params: Any
    total: Any  # gradients since the last step, summed over micro-batches
    seen: jax.Array  # micro-batches


def predict(params, x):
    hidden = jax.nn.relu(x @ params["in"] + params["bias"])
    return hidden @ params["out"] + params["out_bias"]


def nll(params, example):
    x, label = example
    return optax.softmax_cross_entropy_with_integer_labels(predict(params, x), label)


def mean_loss(params, batch, where=None):
    return jnp.mean(jax.vmap(nll, (None, 0))(params, batch), where=where)


def error(params, batch):
    logits = jax.vmap(predict, (None, 0))(params, batch[0])
    return jnp.mean((jnp.argmax(logits, axis=1) != batch[1]).astype(jnp.float32))


def each(function):
    """Over members and cells: ``[2, cells]``."""
    return jax.vmap(jax.vmap(function))


def init_models(key, features, widths):
    """He's initialisation of two members for each of the widths ``[cells]``."""
    largest, cells = max(widths), jnp.array(widths)

    def one(key, width):
        a, b = jax.random.split(key)
        used = (jnp.arange(largest) < width).astype(jnp.float32)
        into = jax.random.normal(a, (features, largest)) * np.sqrt(2 / features).astype(np.float32)
        out = jax.random.normal(b, (largest, 10)) * jnp.sqrt(2 / width.astype(jnp.float32))
        zeros = jnp.zeros(largest), jnp.zeros(10)
        return {
            "in": into * used[None],
            "bias": zeros[0],
            "out": out * used[:, None],
            "out_bias": zeros[1],
        }

    keys = jax.random.split(key, (2, len(widths)))
    return each(one)(keys, jnp.stack([cells, cells]))


def draw_task(key, config, labels):
    subset, which, what = jax.random.split(key, 3)
    index = jax.random.permutation(subset, len(labels))[: config.train]
    wrong = jax.random.uniform(which, (config.train,)) < config.noise
    drawn = jax.random.randint(what, (config.train,), 0, 10)
    return Task(index, jnp.where(wrong, drawn, labels[index]))


def batch_of(task, data, rows):
    return data["x_train"][task.index[rows]], task.labels[rows]


def grid(config, batches):
    """Width and batch size of every cell, row by row."""
    return [w for w in config.widths for _ in batches], [b for _ in config.widths for b in batches]


def begin(batches, config, data, key):
    """The state before training."""
    task, models, key = jax.random.split(key, 3)
    widths, _ = grid(config, batches)
    params = init_models(models, data["x_train"].shape[1], widths)
    zeros = jax.tree.map(jnp.zeros_like, params)
    task = draw_task(task, config, data["y_train"])
    return State(key, task, params, zeros, jnp.zeros((), jnp.int32))


def along_cells(values, leaf):
    """``[cells]`` with as many axes as the leaf ``[2, cells, ...]`` has."""
    return values.reshape(1, -1, *(1,) * (leaf.ndim - 2))


def equal_epochs(config, state, data):
    """One micro-batch; the models whose batch it completes take a step."""
    key, draw = jax.random.split(state.key)
    rows = jax.random.randint(draw, (2, MICRO), 0, config.train)
    batch = batch_of(state.task, data, rows)
    gradient = jax.vmap(jax.vmap(jax.grad(mean_loss), (0, None)))
    total = jax.tree.map(jnp.add, state.total, gradient(state.params, batch))
    parts = jnp.array(grid(config, config.batches)[1]) // MICRO
    seen = state.seen + 1
    full = seen % parts == 0
    rates = jnp.where(full, config.learning_rate / parts.astype(jnp.float32), 0)
    params = jax.tree.map(lambda w, g: w - along_cells(rates, g) * g, state.params, total)
    rest = jax.tree.map(lambda g: jnp.where(along_cells(full, g), 0, g), total)
    return State(key, state.task, params, rest, seen)


def equal_steps(config, state, data):
    """One step of every model, each with as much of a draw as its batch takes."""
    key, draw = jax.random.split(state.key)
    sizes = jnp.array(grid(config, config.equal_batches)[1])
    rows = jax.random.randint(draw, (2, max(config.equal_batches)), 0, config.train)
    batch = batch_of(state.task, data, rows)
    inside = jnp.arange(rows.shape[1])[None] < sizes[:, None]
    gradient = jax.vmap(jax.vmap(jax.grad(mean_loss), (0, None, 0)), (0, 0, None))
    grads = gradient(state.params, batch, inside)
    params = jax.tree.map(lambda w, g: w - config.learning_rate * g, state.params, grads)
    return state._replace(key=key, params=params)


def similarity(params, x):
    """CKA of the logits of the two members: ``[cells]``."""
    logits = each(lambda p: jax.vmap(predict, (None, 0))(p, x))(params)
    return jax.vmap(kernels.linear_cka)(*logits)


def matched(first, second):
    """The second model with its hidden units in the order of the first's, by their weights."""
    scores = first["in"].T @ second["in"] + first["out"] @ second["out"].T
    scores = scores + jnp.outer(first["bias"], second["bias"])
    # Units that the width lacks are no room for others.
    used = jnp.any(first["in"] != 0, axis=0)
    order = curvature.linear_assignment(jnp.where(used[:, None] == used[None], scores, -1e6))
    return {
        "in": second["in"][:, order],
        "bias": second["bias"][order],
        "out": second["out"][order],
        "out_bias": second["out_bias"],
    }
