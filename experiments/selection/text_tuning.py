"""Tune the adapters of one decoder on several choices of texts at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.selection import language
from experiments.selection.text_choices import adapters_of, rate_of
from gradkin import models, optim


class Tuning(NamedTuple):
    """Adapters being tuned, one set for each choice."""

    adapters: Any
    opt_state: Any
    chosen: Any  # [choices, m]
    count: Any
    key: Any


def tune(config, model, keys, chosen, texts, test, loop, *, name):
    """Tune by Adam for some epochs, from the same adapters and in the same order.

    Args:
      config: says ``epochs``, ``batch_size``, ``learning_rate`` and ``rank``.
      model: graph and parameters of the decoder.
      keys: one for each seed.
      chosen: numbers of the texts, ``[seeds, choices, m]``; the last few of an epoch's order are
        left out where the batch does not divide m.
      texts: examples.
      test: examples, held out.
      loop: that of the runner, over the seeds.
      name: for its progress bar.

    Returns:
      Loss, share of right tokens of an answer and share of right answers, each with the tokens
      before it given: ``[seeds, epochs + 1, choices, 3]``.
    """
    amount = chosen.shape[-1]
    batch_size = min(config.batch_size, amount)
    per_epoch = amount // batch_size
    optimizer = optax.adam(rate_of(config, amount))
    graph, _, frozen = adapters_of(config, keys[0], *model)

    def start(key, chosen):
        _, adapters, _ = adapters_of(config, key, *model)
        several = lambda x: jnp.broadcast_to(x, (len(chosen), *jnp.shape(x)))
        state = jax.tree.map(several, (adapters, optimizer.init(adapters)))
        return Tuning(*state, chosen, jnp.zeros((), jnp.int32), key)

    def step(state, data):
        texts, _, frozen = data
        loss = language.loss_of(graph, frozen)
        epoch, place = state.count // per_epoch, state.count % per_epoch
        order = jax.random.permutation(jax.random.fold_in(state.key, epoch), amount)
        batch = jax.lax.dynamic_slice_in_dim(order, place * batch_size, batch_size)

        def one(adapters, opt_state, chosen):
            few = jax.tree.map(lambda x: x[chosen[batch]], texts)
            grads = jax.grad(lambda a: jnp.mean(jax.vmap(loss, (None, 0))(a, few)))(adapters)
            return optim.update(optimizer, grads, opt_state, adapters)

        adapters, opt_state = jax.vmap(one)(state.adapters, state.opt_state, state.chosen)
        return state._replace(adapters=adapters, opt_state=opt_state, count=state.count + 1)

    def evaluate(state, data):
        _, (tokens, answer), frozen = data

        def one(adapters):
            logits = nnx.merge(graph, adapters, frozen)(tokens)
            asked = answer[:, 1:]
            right = (jnp.argmax(logits, axis=2)[:, :-1] == tokens[:, 1:]) & asked
            share = jnp.sum(right, axis=1) / jnp.sum(asked, axis=1)
            whole = jnp.all(right == asked, axis=1).astype(jnp.float32)
            losses = models.token_loss(logits, tokens, answer)
            return jnp.stack([jnp.mean(losses), jnp.mean(share), jnp.mean(whole)])

        return jax.lax.map(one, state.adapters)

    options = {"every": per_epoch, "evaluate": evaluate, "data": (texts, test, frozen)}
    state = jax.vmap(start)(keys, chosen)
    return loop(step, state, config.epochs * per_epoch, **options, name=name)[1]
