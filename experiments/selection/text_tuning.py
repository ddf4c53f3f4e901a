"""Train a decoder, and tune its adapters on several choices of texts at once."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.selection import language
from experiments.selection.text_choices import adapted, rate_of, vector_of
from gradkin import models, optim

PRETRAINING_RATE = 3e-3


@jax.jit
def with_axis(tree):
    return jax.tree.map(lambda x: x[None], tree)


@jax.jit
def without_axis(tree):
    return jax.tree.map(lambda x: x[0], tree)


def pretrain(config, model, corpus, loop, *, name):
    """Train all parameters, once for all seeds.

    Args:
      config: says ``pretraining_steps`` and ``pretraining_batch``.
      model: graph and parameters of a decoder.
      corpus: examples.
      loop: that of the runner, over the seeds.
      name: for its progress bar.

    Returns:
      Graph and parameters, and the last loss.
    """

    def once(step, state, *arguments, **options):
        return without_axis(loop(step, with_axis(state), *arguments, **options))

    steps = config.pretraining_steps
    optimizer, _ = language.adam(PRETRAINING_RATE, steps)
    options = {"optimizer": optimizer, "batch": config.pretraining_batch, "steps": steps}
    options |= {"every": math.gcd(steps, 50), "name": name}
    key, (graph, params) = jax.random.key(1), model
    params, losses = language.fit(once, key, graph, params, (), corpus, **options)
    return (graph, params), losses[-1]


class Tuning(NamedTuple):
    """Adapters being tuned, one vector for each choice."""

    adapters: Any
    opt_state: Any
    chosen: Any  # [choices, m]
    count: Any
    key: Any


@functools.partial(jax.jit, static_argnames="config")
def first_adapters(config, keys, model):
    """One vector for each key."""
    return jax.vmap(lambda key: vector_of(adapted(config, key, model)[1]))(keys)


def decoder_of(config, model):
    """``adapters (one vector) -> decoder``."""
    shapes = jax.eval_shape(functools.partial(adapted, config), jax.random.key(0), model)
    graph, adapters, _ = shapes
    leaves, structure = jax.tree.flatten(adapters)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def decoder(vector, model):
        parts = jnp.split(vector, ends)
        parts = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves)]
        return nnx.merge(graph, structure.unflatten(parts), model[1])

    return decoder


def tune(config, model, keys, adapters, chosen, texts, loop, *, name):
    """Tune by Adam for some epochs, from the same adapters and in the same order.

    Args:
      config: says ``epochs``, ``batch_size``, ``learning_rate`` and ``rank``.
      model: graph and parameters of the decoder.
      keys: one for each seed.
      adapters: where to start, ``[seeds, P]``.
      chosen: numbers of the texts, ``[seeds, choices, m]``; the batch divides m, or is m.
      texts: examples.
      loop: that of the runner, over the seeds.
      name: for its progress bar.

    Returns:
      Adapters after each epoch, behind those at the start: ``[seeds, epochs + 1, choices, P]``.

    Raises:
      ValueError: texts would be left over.
    """
    amount = chosen.shape[-1]
    batch_size = min(config.batch_size, amount)
    if amount % batch_size:
        raise ValueError(
            "Expected batch_size to divide the texts to tune on, got "
            f"batch_size={batch_size} and {amount} texts."
        )
    per_epoch = amount // batch_size
    optimizer = optax.adam(rate_of(config, amount))
    decoder = decoder_of(config, model)

    @jax.jit
    def start(keys, adapters, chosen):
        several = lambda x: jnp.broadcast_to(x[:, None], (*chosen.shape[:2], *x.shape[1:]))
        state = adapters, jax.vmap(optimizer.init)(adapters)
        adapters, opt_state = jax.tree.map(several, state)
        return Tuning(adapters, opt_state, chosen, jnp.zeros(len(keys), jnp.int32), keys)

    def step(state, data):
        texts, model = data
        epoch, place = state.count // per_epoch, state.count % per_epoch
        order = jax.random.permutation(jax.random.fold_in(state.key, epoch), amount)
        batch = jax.lax.dynamic_slice_in_dim(order, place * batch_size, batch_size)

        def one(adapters, opt_state, chosen):
            tokens, answer = jax.tree.map(lambda x: x[chosen[batch]], texts)
            logits = lambda a: decoder(a, model)(tokens)
            loss = lambda a: jnp.mean(models.token_loss(logits(a), tokens, answer))
            return optim.update(optimizer, jax.grad(loss)(adapters), opt_state, adapters)

        adapters, opt_state = jax.vmap(one)(state.adapters, state.opt_state, state.chosen)
        return state._replace(adapters=adapters, opt_state=opt_state, count=state.count + 1)

    options = {"every": per_epoch, "evaluate": lambda state, _: state.adapters, "name": name}
    state = start(keys, adapters, chosen)
    return loop(step, state, config.epochs * per_epoch, data=(texts, model), **options)[1]


@functools.partial(jax.jit, static_argnames="config")
def answers(config, model, adapters, test):
    """Loss, share of right tokens of an answer, and share of right answers: ``[..., 3]``.

    All with the tokens before given; what is wholly right would be so without.

    Args:
      config: says ``rank``.
      model: graph and parameters of the decoder.
      adapters: ``[..., P]``.
      test: examples.
    """
    decoder, (tokens, answer) = decoder_of(config, model), test

    def one(vector):
        logits = decoder(vector, model)(tokens)
        asked = answer[:, 1:]
        right = (jnp.argmax(logits, axis=2)[:, :-1] == tokens[:, 1:]) & asked
        share = jnp.sum(right, axis=1) / jnp.sum(asked, axis=1)
        whole = jnp.all(right == asked, axis=1).astype(jnp.float32)
        losses = models.token_loss(logits, tokens, answer)
        return jnp.stack([jnp.mean(losses), jnp.mean(share), jnp.mean(whole)])

    found = jax.lax.map(one, adapters.reshape(-1, adapters.shape[-1]))
    return found.reshape(*adapters.shape[:-1], 3)
