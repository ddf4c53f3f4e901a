"""Training on fresh tasks at every step, shared by the experiments on in-context learning."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.runner import Claim
from experiments.runner.claims import Rule
from gradkin import icl, optim


class State(NamedTuple):
    """What training carries; `extra` is passed through to the evaluation."""

    params: Any
    optimizer: Any
    key: jax.Array
    extra: Any = ()


def adam(learning_rate, max_norm, *, b2=0.98):
    """Adam behind a clipping of the global norm, as the reference trains."""
    return optax.chain(
        optax.clip_by_global_norm(max_norm), optax.adam(learning_rate, b1=0.9, b2=b2)
    )


def begin(params, optimizer, key, extra=(), *, restarts=False):
    """The first state of one seed; with `restarts`, params has a leading axis of them."""
    init = jax.vmap(optimizer.init) if restarts else optimizer.init
    return State(params, init(params), key, extra)


def descend(loss_fn, optimizer):
    """One step of the optimizer: ``(params, opt_state, tasks) -> (params, opt_state)``."""

    def move(params, opt_state, tasks):
        grads = jax.grad(loss_fn)(params, tasks)
        return optim.update(optimizer, grads, opt_state, params)

    return move


def make_step(loss_fn, draw, optimizer, *, restarts=False):
    """A step for the loop: draw tasks, descend ``loss_fn(params, tasks)``.

    With `restarts` each of several parameters descends on the same tasks, on its own.
    """
    move = descend(loss_fn, optimizer)
    if restarts:
        move = jax.vmap(move, in_axes=(0, 0, None))

    def step(state, data):
        key, use = jax.random.split(state.key)
        params, opt_state = move(state.params, state.optimizer, draw(use))
        return state._replace(params=params, optimizer=opt_state, key=key)

    return step


def best_restart(losses, params):
    """The restart of the smallest loss, and its number."""
    best = jnp.argmin(losses)
    return jax.tree.map(lambda leaf: leaf[best], params), best


def train_restarts(
    loop, loss_fn, measure, draw, optimizer, weights, keys, extra, search, *, steps, every, name
):
    """Train every restart of every seed at once; keep each seed's best on other tasks.

    ``weights`` has leaves [S, R, ...], ``extra`` is a tuple of trees [S, ...] for
    ``measure(params, *extra)``. Returns the kept weights, their history and all R losses on
    ``search``.
    """
    state = jax.vmap(lambda weights, *rest: begin(weights, optimizer, *rest, restarts=True))(
        weights, keys, extra
    )
    state, history = loop(
        make_step(loss_fn, draw, optimizer, restarts=True),
        state,
        steps,
        every=every,
        evaluate=lambda state, data: jax.vmap(lambda w: measure(w, *state.extra))(state.params),
        name=name,
    )

    def select(params, search, history):
        losses = jax.vmap(loss_fn, (0, None))(params, search)
        chosen, best = best_restart(losses, params)
        return chosen, {k: v[:, best] for k, v in history.items()}, losses

    return per_seed(select, state.params, search, history)


def over_tasks(predictor):
    """From ``(x, y, query) -> prediction`` to a function of `Tasks`."""
    return lambda tasks: jax.vmap(predictor)(tasks.x, tasks.y, tasks.query)


def half_mse(predictions, tasks):
    """1/2 mean squared error, the loss of the paper."""
    return ((predictions - tasks.target) ** 2).sum(-1).mean() / 2


def attention_predictor(weights, **options):
    """A transformer on constructed tokens as a function of one task's (x, y, query)."""
    return lambda x, y, query: icl.predict(
        weights, icl.constructed_tokens(x, y, query), num_outputs=y.shape[1], **options
    )


def descent_predictor(rate, **options):
    """Gradient descent from zero as a function of one task's (x, y, query)."""
    return lambda x, y, query: icl.gradient_descent(x, y, rate=rate, **options)[-1] @ query


def per_seed(function, *arguments):
    """Apply a function to each seed, compiled once."""
    return jax.jit(jax.vmap(function))(*arguments)


def split_seeds(key, number):
    """``[S]`` keys to ``number`` arrays of ``[S]`` keys."""
    keys = jax.vmap(lambda k: jax.random.split(k, number))(key)
    return [keys[:, i] for i in range(number)]


def step_axis(config, key):
    """The steps of the evaluations, one row per seed."""
    steps = jnp.arange(0, config.steps + 1, config.every)
    return jnp.broadcast_to(steps[None], (key.shape[0], steps.shape[0]))


def gap(a, b):
    """|a - b| of two metrics, as NumPy arrays."""
    return np.abs(np.asarray(a) - np.asarray(b))


def first(number, tasks):
    """The first tasks of many."""
    return jax.tree.map(lambda leaf: leaf[:number], tasks)


def at_most(paper, bound, text, reported, measure, rule: Rule = "mean"):
    """A claim that a measure stays below a bound; committed as reproduced."""
    return Claim(
        text=text,
        paper=paper,
        reported=reported,
        measure=measure,
        holds=lambda v: v <= bound,
        rule=rule,
        threshold=f"<= {bound}",
        verdict="reproduced",
    )
