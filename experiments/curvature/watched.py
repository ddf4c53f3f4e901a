"""Full-batch training that watches every example, the sharpness, and the first spike."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import gradkin
from gradkin import optim


class Spike(NamedTuple):
    """The first step at which the training loss rose."""

    step: jax.Array  # -1: none yet
    change: jax.Array  # [N] of the examples' losses
    params: Any  # before the step
    direction: Any  # top eigenvector there


class Descent(NamedTuple):
    """Full-batch training, watched."""

    params: Any
    opt_state: Any
    losses: jax.Array  # [N]
    direction: Any  # estimate of the top eigenvector
    sharpness: jax.Array
    step: jax.Array
    spike: Spike


def descend(loop, loss, params, data, optimizer, steps, *, after, rise, every, name):
    """Train on all examples; catch the first step at which the training loss rises.

    Args:
      loop: the runner's.
      loss: ``(params, example) -> scalar``.
      params: where to start.
      data: ``{"batch": examples, "weight": their weights, of mean one}``.
      optimizer: of optax.
      steps: how many.
      after: steps in which a rise does not count.
      rise: what counts: the loss above ``1 + rise`` times that before.
      every: steps between evaluations.
      name: for the progress bar.

    Returns:
      The last `Descent`, and its losses ``[E, N]``, their weighted mean and the sharpness over
      time, ``[E]``.
    """

    def losses_of(params, data):
        return jax.vmap(loss, (None, 0))(params, data["batch"])

    def mean(losses, data):
        return jnp.mean(losses * data["weight"])

    def weighted(params, batch, weight):
        return weight * loss(params, batch)

    def step(state, data):
        H = gradkin.hessian(weighted)(state.params, data["batch"], data["weight"])
        product = H @ state.direction
        sharpness = jnp.asarray(optax.tree.vdot(state.direction, product))
        norm = optax.tree.norm(product)
        direction = jax.tree.map(lambda x: x / jnp.where(norm > 0, norm, 1), product)
        grads = jax.grad(lambda params: mean(losses_of(params, data), data))(state.params)
        params, opt_state = optim.update(optimizer, grads, state.opt_state, state.params)
        losses = losses_of(params, data)
        grows = mean(losses, data) > (1 + rise) * mean(state.losses, data)
        first = grows & (state.step >= after) & (state.spike.step < 0)
        seen = Spike(state.step, losses - state.losses, state.params, state.direction)
        spike = jax.tree.map(lambda new, old: jnp.where(first, new, old), seen, state.spike)
        return Descent(params, opt_state, losses, direction, sharpness, state.step + 1, spike)

    def evaluate(state, data):
        return {"losses": state.losses, "sharpness": state.sharpness}

    @jax.jit
    def begin(params, data):
        keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(params)))
        leaves, structure = jax.tree.flatten(params)
        drawn = [jax.random.normal(k, jnp.shape(x)) for k, x in zip(keys, leaves)]
        direction = jax.tree.unflatten(structure, drawn)
        norm = optax.tree.norm(direction)
        direction = jax.tree.map(lambda x: x / norm, direction)
        losses, zero = losses_of(params, data), jnp.zeros((), jnp.int32)
        nothing = Spike(zero - 1, jnp.zeros_like(losses), params, direction)
        opt_state = optimizer.init(params)
        return Descent(params, opt_state, losses, direction, jnp.zeros(()), zero, nothing)

    options: dict[str, Any] = {"evaluate": evaluate, "data": data, "name": name}
    state, history = loop(step, begin(params, data), steps, every=every, **options)
    history["loss"] = jax.vmap(mean, (0, None))(history["losses"], data)
    return state, history
