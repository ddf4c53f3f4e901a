"""Small convolutional networks, whose activations are looked at."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkin import optim


class State(NamedTuple):
    """A network in training."""

    key: jax.Array
    params: Any
    opt_state: Any


def init(config, key, side):
    """He's initialisation; kernels of 3 x 3 are matrices of 9 x channels rows."""
    first, second = config.channels
    sizes = ((9, first), (9 * first, second), ((side // 4) ** 2 * second, config.dense))
    return [
        {
            "w": jax.random.normal(k, size) * np.float32(np.sqrt(2 / size[0])),
            "b": jnp.zeros(size[1]),
        }
        for k, size in zip(jax.random.split(key, 4), (*sizes, (config.dense, 10)))
    ]


def neighbourhoods(x):
    """The 3 x 3 positions around each, zeros outside: ``[n, h, w, 9 c]``."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = x.shape[1:3]
    shifts = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifts, axis=-1)


def forward(params, x):
    """Activations of the hidden layers, before they are pooled, and logits."""
    *convolutions, dense, last = params
    affine = lambda layer, x: x @ layer["w"] + layer["b"].reshape((1,) * (x.ndim - 1) + (-1,))
    found = []
    for layer in convolutions:
        x = jax.nn.relu(affine(layer, neighbourhoods(x)))
        found.append(x)
        n, h, w, c = x.shape
        x = x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
    x = jax.nn.relu(affine(dense, x.reshape(len(x), -1)))
    return [*found, x], affine(last, x)


def train(config, key, data, loop):
    """Untrained and trained parameters, ``[S, networks, ...]``."""
    side = data["x"].shape[1]

    def begin(key):
        def one(key):
            key, draw = jax.random.split(key)
            params = init(config, draw, side)
            return State(key, params, optax.adam(1.0).init(params))

        return jax.vmap(one)(jax.random.split(key, config.networks))

    def step(states, data):
        def one(state):
            key, draw = jax.random.split(state.key)
            rows = jax.random.randint(draw, (config.batch,), 0, len(data["y"]))

            def loss(params):
                logits = forward(params, data["x"][rows])[1]
                labels = data["y"][rows]
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

            grads = jax.grad(loss)(state.params)
            optimizer = optax.adam(config.learning_rate)
            return State(key, *optim.update(optimizer, grads, state.opt_state, state.params))

        return jax.vmap(one)(states)

    start = jax.jit(jax.vmap(begin))(key)
    every = max(config.steps // 2, 1)
    states, _ = loop(step, start, config.steps, every=every, data=data, name="networks")
    return start.params, states.params
