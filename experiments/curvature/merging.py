"""Perceptrons that are trained, matched to one another and merged."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkin import curvature, optim


class State(NamedTuple):
    """A network in training."""

    key: jax.Array
    params: Any
    opt_state: Any


def init(key, sizes):
    """He's initialisation."""
    return {
        f"layer{i}": {
            "w": jax.random.normal(k, sizes[i : i + 2]) * np.float32(np.sqrt(2 / sizes[i])),
            "b": jnp.zeros(sizes[i + 1]),
        }
        for i, k in enumerate(jax.random.split(key, len(sizes) - 1))
    }


def forward(params, x):
    """Hidden activations, and logits."""
    *hidden, last = params.values()
    found = []
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"][None])
        found.append(x)
    return found, x @ last["w"] + last["b"][None]


def loss(params, x, y):
    logits = forward(params, x)[1]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def error(params, x, y):
    return jnp.mean((forward(params, x)[1].argmax(1) != y).astype(jnp.float32))


def shape_of(config, data, width):
    return (data["x"].shape[1], *(width,) * config.hidden, 10)


def train(config, key, data, loop, width, settings, count):
    """Some networks at each setting (learning rate, decay): parameters ``[S, V, count, ...]``."""
    rates, decays = (jnp.asarray(column) for column in zip(*settings))

    def begin(key):
        def one(key):
            key, draw = jax.random.split(key)
            params = init(draw, shape_of(config, data, width))
            return State(key, params, optax.adam(1.0).init(params))

        # The settings share initial weights and batches.
        networks = jax.vmap(one)(jax.random.split(key, count))
        return jax.vmap(lambda _: networks)(rates)

    def step(states, data):
        def one(state, rate, decay):
            key, draw = jax.random.split(state.key)
            rows = jax.random.randint(draw, (config.batch,), 0, len(data["y"]))
            x, y = data["x"][rows], data["y"][rows]

            def penalized(params):
                squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)]
                return loss(params, x, y) + decay / 2 * sum(squares)

            grads = jax.grad(penalized)(state.params)
            updated = optim.update(optax.adam(rate), grads, state.opt_state, state.params)
            return State(key, *updated)

        return jax.vmap(jax.vmap(one, (0, None, None)))(states, rates, decays)

    every = max(config.steps // 4, 1)
    states, _ = loop(
        step, jax.vmap(begin)(key), config.steps, every=every, data=data, name=f"width {width}"
    )
    return states.params


def rows_of(config, data):
    """The measured training and test examples."""
    kept = config.measured
    return (data["x"][:kept], data["y"][:kept]), (data["x_test"], data["y_test"])


def symmetry(params, data):
    return curvature.infer_permutations(lambda p, x: forward(p, x)[1], params, data["x"][:1])


def simple_matches(key, config, spec, a, b, data):
    """b as it is, and matched by weights and by activations."""
    x = rows_of(config, data)[0][0]
    named = lambda params: dict(zip(spec.sizes, forward(params, x)[0]))
    by_weights = curvature.weight_matching(key, spec, a, b).permutation
    by_activations = curvature.activation_matching(named(a), named(b))
    moved = lambda permutation: curvature.apply_permutation(spec, permutation, b)
    return [b, moved(by_weights), moved(by_activations)]


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def compare(config, key, nets, data):
    """The first two of some networks, matched by each simple method."""
    a, b = (jax.tree.map(lambda leaf, i=i: leaf[i], nets) for i in range(2))
    spec = symmetry(a, data)
    (x, y), (x_test, y_test) = rows_of(config, data)
    gammas = jnp.asarray(config.gammas)

    def scores(params):
        rows = ((x, y), (x_test, y_test))
        return jnp.stack([fun(params, *each) for fun in (loss, error) for each in rows])

    def measure(other):
        path = curvature.loss_path(scores, a, other, num_points=config.points)
        merged = curvature.interpolate(a, other, 0.5)
        alignment = lambda one, two: curvature.singular_alignment(one, two, gamma=gammas).total
        return {
            "path": path.losses,
            "barrier": path.barrier(),
            "alignment": alignment(a, other),
            "merged": (alignment(merged, a) + alignment(merged, other)) / 2,
            "distance": curvature.distance_reduction(a, b, other),
            "taylor": curvature.taylor_barrier(lambda params: loss(params, x, y), a, other),
        }

    found = jax.lax.map(measure, stack(simple_matches(key, config, spec, a, b, data)))
    values = lambda params: [
        jnp.linalg.svd(layer["w"], compute_uv=False) for layer in params.values()
    ]
    gap = [jnp.linalg.norm(s - t) / jnp.linalg.norm(s) for s, t in zip(values(a), values(b))]
    return found | {"spectra": jnp.stack(gap)}


def three(config, key, nets, data):
    """Two networks matched to the first, by each method; the second to the third is not sought."""
    a, *others = (jax.tree.map(lambda leaf, i=i: leaf[i], nets) for i in range(3))
    spec = symmetry(a, data)
    (x, y), (x_test, y_test) = rows_of(config, data)
    x, y = x[: config.ste_examples], y[: config.ste_examples]
    sizes = shape_of(config, data, a["layer0"]["b"].shape[0])

    def match(key, b):
        of_simple, of_start, *of_ste = jax.random.split(key, 4)
        ste = functools.partial(curvature.ste_matching, num_steps=config.ste_steps)
        starts = init(of_start, sizes), a
        found = [
            ste(k, spec, a, b, lambda params: loss(params, x, y), init=start).permutation
            for k, start in zip(of_ste, starts)
        ]
        moved = [curvature.apply_permutation(spec, permutation, b) for permutation in found]
        return stack([*simple_matches(of_simple, config, spec, a, b, data), *moved])

    def measure(pair):
        b, c = pair
        test = lambda params: loss(params, x_test, y_test)
        barrier = lambda one, two: curvature.loss_path(
            test, one, two, num_points=config.points
        ).barrier()
        merged = jax.tree.map(lambda *leaves: sum(leaves) / 3, a, b, c)
        alignment = lambda other: curvature.singular_alignment(a, other).total
        return {
            "to_first": (barrier(a, b) + barrier(a, c)) / 2,
            "second_to_third": barrier(b, c),
            "accuracy": 1 - error(merged, x_test, y_test),
            "aligned": (alignment(b) + alignment(c)) / 2,
        }

    pair = tuple(match(k, other) for k, other in zip(jax.random.split(key), others))
    return jax.lax.map(measure, pair)
