"""Weights reused over time, and control flow."""

import jax
import jax.numpy as jnp

from tests.matrices.models.model import Model, cross_entropy, integers, normal, plus, weight


def rnn() -> Model:
    """A plain recurrent net whose readout happens inside the scan."""

    def loss(params, x):
        def step(h, value):
            h = jnp.tanh(value @ params["input"] + h @ params["hidden"] + params["bias"])
            return h, h @ params["readout"]

        _, y = jax.lax.scan(step, jnp.zeros(16, jnp.float32), x)
        return jnp.sum(y**2)

    params = {
        "input": weight(0, 12, 16),
        "hidden": weight(1, 16, 16),
        "bias": normal(2, 16),
        "readout": weight(3, 16, 12),
    }
    return Model(loss, (params, normal(4, 3, 4, 12)))


def lstm() -> Model:
    def loss(params, tokens):
        def step(state, x):
            h, c = state
            gates = x @ params["input"] + h @ params["hidden"] + params["bias"]
            i, f, g, o = jnp.split(gates, 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), h

        zero = jnp.zeros(8, jnp.float32)
        (h, _), _ = jax.lax.scan(step, (zero, zero), params["embedding"][tokens])
        return cross_entropy((h @ params["head"])[None], tokens[-1:])

    params = {
        "embedding": normal(0, 15, 8),
        "input": weight(1, 8, 32),
        "hidden": weight(2, 8, 32),
        "bias": normal(3, 32),
        "head": weight(4, 8, 15),
    }
    return Model(loss, (params, integers(5, 15, 3, 4)))


def gru() -> Model:
    """Run backwards in time, two steps unrolled, each step rematerialized."""

    def loss(params, x):
        @jax.checkpoint
        def step(h, value):
            both = jnp.concatenate([value, h])
            r, z = jnp.split(jax.nn.sigmoid(both @ params["gates"]), 2)
            new = jnp.tanh(jnp.concatenate([value, r * h]) @ params["candidate"])
            h = z * h + (1 - z) * new
            return h, h

        h, _ = jax.lax.scan(step, jnp.zeros(10, jnp.float32), x, reverse=True, unroll=2)
        return jnp.sum(h**2)

    params = {"gates": weight(0, 18, 20), "candidate": weight(1, 18, 10)}
    return Model(loss, (params, normal(2, 3, 4, 8)))


def nested_scans() -> Model:
    """Layers over time over repeats; a weight that is also used outside; an initial state."""

    def loss(params, x):
        def layer(h, w):
            return jnp.tanh(h @ w), None

        def step(h, value):
            h, _ = jax.lax.scan(layer, h + value @ params["input"], params["layers"])
            h, _ = jax.lax.scan(lambda a, _: (jnp.tanh(a @ params["shared"]), None), h, length=2)
            return h, None

        h = jnp.tanh(params["start"] @ params["shared"])
        h, _ = jax.lax.scan(step, h, x)
        return jnp.sum((h @ params["shared"]) ** 2)

    params = {
        "input": weight(0, 8, 12),
        "layers": normal(1, 2, 12, 12, scale=0.3),
        "shared": weight(2, 12, 12),
        "start": normal(3, 12),
    }
    return Model(loss, (params, normal(4, 3, 2, 8)))


def read_and_written_carry() -> Model:
    """A parameter carried through a scan and changed there: its gradient cannot accumulate."""

    def loss(params, x):
        def step(state, value):
            w, h = state
            h = jnp.tanh(h @ w + value)
            return (0.9 * w + 0.1 * jnp.outer(h, h), h), None

        (w, h), _ = jax.lax.scan(step, (params["fast"], params["start"]), x)
        return jnp.sum(w**2) + jnp.sum(h @ params["readout"])

    params = {"fast": weight(0, 8, 8), "start": normal(1, 8), "readout": weight(2, 8, 8)}
    return Model(loss, (params, normal(3, 3, 3, 8)))


def branches() -> Model:
    """Branches on the example, on the parameters and on a constant; a switch."""

    def loss(params, example):
        x, flag, which = example
        x = jax.lax.cond(flag, lambda x: jnp.tanh(x @ params["yes"]), lambda x: x @ params["no"], x)
        heavy = jnp.sum(params["switch"][0]) > 0
        x = jax.lax.cond(heavy, lambda x: x @ params["both"], lambda x: -x @ params["both"], x)
        x = jax.lax.switch(which, [lambda x, i=i: x @ params["switch"][i] for i in range(2)], x)
        return jnp.sum(jnp.tanh(x))

    params = {
        "yes": weight(0, 8, 8),
        "no": weight(1, 8, 8),
        "both": weight(2, 8, 8),
        "switch": [weight(3, 8, 8), weight(4, 8, 8)],
    }
    flags = jnp.asarray([True, False, True, False])
    return Model(loss, (params, (normal(5, 4, 8), flags, integers(6, 2, 4))))


def loops() -> Model:
    """Loops of a fixed number of steps, and a while loop off the gradient's path."""

    def loss(params, x):
        x = jax.lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ params["w"]), x)
        start = jax.lax.stop_gradient(jnp.sum(x**2))
        scale = jax.lax.while_loop(lambda s: s > 1.0, lambda s: s / 2, start)
        return scale * jnp.sum(x @ params["v"])

    return Model(loss, ({"w": weight(0, 12, 12), "v": weight(1, 12, 4)}, normal(2, 4, 12)))


def prefix_products() -> Model:
    """A linear recurrence by `associative_scan`; cumulative sums."""

    def loss(params, x):
        decay = jax.nn.sigmoid(x @ params["decay"])
        value = x @ params["value"]

        def combine(left, right):
            return left[0] * right[0], left[1] * right[0] + right[1]

        _, h = jax.lax.associative_scan(combine, (decay, value))
        return jnp.sum(jnp.tanh(plus(jnp.cumsum(h, axis=0), params["bias"])) ** 2)

    params = {"decay": weight(0, 10, 12), "value": weight(1, 10, 12), "bias": normal(2, 12)}
    return Model(loss, (params, normal(3, 3, 4, 10)))


MODELS = {
    f.__name__: f
    for f in (
        rnn, lstm, gru, nested_scans, read_and_written_carry, branches, loops, prefix_products,
    )
}  # fmt: skip
