"""Runs of damped Newton methods that note when they reach what."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkin import curvature


class Problem(NamedTuple):
    """A loss measured from its minimum, and an approximate Hessian (or None)."""

    loss: Callable[[Any, Any], Any]  # (arguments, params)
    matrix: Callable[[Any, Any], Any] | None


class State(NamedTuple):
    """A run, and when it first was below each tolerance."""

    arguments: Any
    params: Any
    optimizer: Any
    step: jax.Array
    steps: jax.Array  # [tolerances], 0 while not reached
    solves: jax.Array  # [tolerances]


def init(problem, optimizer, arguments, params, tolerances):
    value, grad = jax.value_and_grad(functools.partial(problem.loss, arguments))(params)
    start = optimizer.init(params)._replace(value=value, grad=grad)
    none = jnp.zeros(tolerances, jnp.int32)
    return State(arguments, params, start, jnp.zeros((), jnp.int32), none, none)


def method(problem, products=100):
    """The optimizer of one problem whose arguments are known."""

    def bound(arguments):
        matrix = problem.matrix and functools.partial(problem.matrix, arguments)
        return curvature.gns(matrix, max_solve_steps=products)

    return bound


def advance(problem, bound, tolerances, state):
    """One step, unless all is done."""
    optimizer = bound(state.arguments)
    loss = functools.partial(problem.loss, state.arguments)
    before = state.optimizer
    updates, after = optimizer.update(
        before.grad, before, state.params, value=before.value, value_fn=loss
    )
    step = state.step + 1
    new = (after.value[None] < tolerances) & (state.steps == 0)
    moved = State(
        state.arguments,
        optax.apply_updates(state.params, updates),
        after,
        step,
        jnp.where(new, step, state.steps),
        jnp.where(new, after.num_solves, state.solves),
    )
    done = jnp.all(state.steps > 0)
    return jax.tree.map(lambda a, b: jnp.where(done, a, b), state, moved)


def observe(state, data):
    norm = optax.tree.norm(state.optimizer.grad)
    return {
        "gap": state.optimizer.value,
        "gamma": state.optimizer.gamma,
        "norm": norm,
        "count": state.optimizer.num_solves,
    }


def descend(loop, problem, start, num_steps, every, tolerances, name, products=100, axes=0):
    """Run `gradkin.curvature.gns` from many starts.

    Args:
      loop: of the runner, with seeds as one `vmap`.
      problem: the loss and its curvature.
      start: arguments and parameters, with a leading axis of seeds and then ``axes`` more.
      num_steps: steps.
      every: steps between evaluations.
      tolerances: values of the loss whose first time is noted.
      name: for the progress bar.
      products: of conjugate gradients per trial, at most.
      axes: axes of the start behind that of the seeds.

    Returns:
      Histories ``[S, E, ...]``; numbers of steps and of solves to each tolerance ``[S, ...,
      tolerances]``, one more than there were where it was not reached.
    """
    bound = method(problem, products)
    tolerances = jnp.asarray(tolerances, jnp.float32)
    one = functools.partial(advance, problem, bound, tolerances)
    measure = functools.partial(observe, data=None)

    def begin(start):
        arguments, params = start
        return init(problem, bound(arguments), arguments, params, len(tolerances))

    for _ in range(axes):
        one, measure, begin = jax.vmap(one), jax.vmap(measure), jax.vmap(begin)
    state, history = loop(
        lambda state, data: one(state),
        jax.jit(jax.vmap(begin))(start),
        num_steps,
        every=every,
        evaluate=lambda state, data: measure(state),
        name=name,
    )
    # What was not reached took longer than it was given.
    reached = state.steps > 0
    steps = jnp.where(reached, state.steps, num_steps + 1)
    spent = state.optimizer.num_solves[..., None] + 1
    return history, steps, jnp.where(reached, state.solves, spent)
