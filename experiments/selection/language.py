"""Language models for the experiments on text: examples, training, adapters split off."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from gradkin import models, optim


class Examples(NamedTuple):
    """Tokens ``[n, T]``, and which of them the model has to answer, ``[n, T]``."""

    tokens: Any
    answer: Any


def pack(prompts, answers, length, *, pad=0):
    """Prompts and answers, lists of tokens, as `Examples` of ``length`` tokens, padded behind.

    Of what is too long, the beginning of the prompt is left out, then the end of the answer.
    """
    tokens = np.full((len(prompts), length), pad, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        answer = list(answer)[: length - 1]
        prompt = list(prompt)[-(length - len(answer)) :]
        both = prompt + answer
        tokens[row, : len(both)] = both
        mask[row, len(prompt) : len(both)] = True
    return Examples(tokens, mask)


@functools.partial(jax.jit, static_argnames=("vocabulary", "sizes"))
def init(key, vocabulary, sizes):
    """A decoder's graph and parameters; ``sizes`` are pairs of option and value."""
    return nnx.split(models.Decoder(vocabulary, **dict(sizes), rngs=nnx.Rngs(key)))


@functools.partial(jax.jit, static_argnames=("rank", "alpha"))
def adapted(key, graph, params, *, rank, alpha=None):
    """The graph with adapters, the adapters, and what is frozen beside them."""
    decoder = nnx.merge(graph, params)
    decoder = models.add_lora(decoder, rank, alpha=alpha, rngs=nnx.Rngs(key))
    return nnx.split(decoder, nnx.LoRAParam, ...)


def loss_of(graph, *frozen):
    """``(trained, example) -> mean loss over the tokens of the answer``."""

    def loss(trained, example):
        tokens, answer = example
        logits = nnx.merge(graph, trained, *frozen)(tokens)
        return models.token_loss(logits, tokens, answer)

    return loss


def fit(
    loop, key, graph, trained, frozen, examples, *, optimizer, batch, steps, every, name="train"
):
    """Train on random batches; returns what was trained, and the last batch's loss over time."""

    def mean_loss(trained, frozen, batch):
        loss = loss_of(graph, *frozen)
        return jnp.mean(jax.vmap(loss, (None, 0))(trained, batch))

    def step(state, examples):
        trained, opt_state, key, frozen, _ = state
        key, draw = jax.random.split(key)
        chosen = jax.random.randint(draw, (batch,), 0, len(examples[0]))
        drawn = jax.tree.map(lambda x: x[chosen], examples)
        loss, grads = jax.value_and_grad(mean_loss)(trained, frozen, drawn)
        trained, opt_state = optim.update(optimizer, grads, opt_state, trained)
        return trained, opt_state, key, frozen, loss

    # That of the batch learned from, so that nothing else is compiled: NaN before the first.
    state = trained, optimizer.init(trained), key, tuple(frozen), jnp.float32(jnp.nan)
    state, history = loop(
        step, state, steps, every=every, evaluate=lambda s, _: s[-1], data=examples, name=name
    )
    return state[0], history


def adam(learning_rate, steps, *, warm_up=0.05):
    """Adam after clipping, its rate rising linearly and then falling to zero; and the rate."""
    rising = max(int(warm_up * steps), 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, rising, max(steps, 2))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)), schedule
