"""Which texts of a pool to tune a decoder on: LESS, and what it is compared with."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.selection import language
from experiments.selection.text_pools import LETTER, PAD, SUBTASKS
from gradkin import gradients, selection

EXAMPLES = 200  # whose gradients exist at a time


def rate_of(config, count):
    """The rate of tuning on `count` examples: it falls to zero over the epochs."""
    steps = config.epochs * -(-count // config.batch_size)
    return optax.linear_schedule(config.learning_rate, 0.0, steps)


def adapted(config, key, model):
    """``(graph, adapters, frozen)`` of a decoder; alpha is four ranks, as in the paper."""
    return language.adapted(key, *model, rank=config.rank, alpha=4 * config.rank)


def vector_of(adapters):
    """All adapters as one vector: one sketch, and one step of Adam, instead of many."""
    return jax.flatten_util.ravel_pytree(adapters)[0]


@functools.partial(jax.jit, static_argnames="config")
def examples_known(config, key, validation):
    """Those of the candidates that may be looked at, subtask after subtask."""
    known = jax.random.permutation(key, validation.tokens.shape[1])[: config.validation]
    return jax.tree.map(lambda x: x[:, known].reshape(-1, x.shape[-1]), validation)


@functools.partial(jax.jit, static_argnames="config")
def less(config, key, number, model, pools, few):
    """Numbers of the texts of pool `number` that LESS selects, and its released code: ``[2, m]``.

    That takes the mean of cosines, and Adam's direction without bias correction and with eps
    inside the root. The adapters are one vector; see `vector_of`.
    """
    for_adapters, for_warm_up, for_sketch = jax.random.split(key, 3)
    pool = jax.tree.map(lambda x: x[number], pools)
    graph, adapters, frozen = adapted(config, for_adapters, model)
    adapters, tree_of = jax.flatten_util.ravel_pytree(adapters)
    of_tree = language.loss_of(graph, frozen)
    loss = lambda adapters, text: of_tree(tree_of(adapters), text)
    rate = rate_of(config, round(config.fraction * len(pool.tokens)))
    checkpoints, _ = selection.warm_up(
        for_warm_up,
        loss,
        adapters,
        pool,
        optimizer=optax.adam(rate),
        learning_rate=rate,
        fraction=config.fraction,
        epochs=config.epochs,
        batch_size=config.batch_size,
    )
    features = functools.partial(
        selection.less_features,
        loss,
        checkpoints,
        sketch=gradients.RademacherSketch(for_sketch, config.sketch),
        batch_size=EXAMPLES,
    )
    score = functools.partial(
        selection.less_scores,
        validation=features(few, direction="gradient"),
        learning_rates=checkpoints.learning_rates,
        subtasks=np.repeat(np.arange(SUBTASKS), config.validation),
        num_subtasks=SUBTASKS,
    )
    released = features(pool, bias_correction=False, eps_inside_sqrt=True)
    scores = score(features(pool)), score(released, validation_mean="cosine")
    return jnp.stack([selection.select_top_fraction(s, config.fraction) for s in scores])


def of_subtasks(similarity):
    """The mean over the examples of a subtask, of the best subtask: ``[n, 3 m]`` to ``[n]``."""
    by_subtask = similarity.reshape(len(similarity), SUBTASKS, -1)
    return jnp.max(jnp.mean(by_subtask, axis=2), axis=1)


def nearest_words(pool, few, vocabulary, *, k1=1.5, b=0.75):
    """BM25 of the pool's texts, asked for the words of the target's: ``[n]``."""

    def counts(tokens):
        rows = jnp.broadcast_to(jnp.arange(len(tokens))[:, None], tokens.shape)
        found = jnp.zeros((len(tokens), vocabulary)).at[rows, tokens].add(1.0)
        return found.at[:, :LETTER].set(0.0)

    ours, theirs = counts(pool.tokens), counts(few.tokens) > 0
    number = jnp.sum((ours > 0).astype(jnp.float32), axis=0, keepdims=True)
    rarity = jnp.log1p((len(ours) - number + 0.5) / (number + 0.5))
    length = jnp.sum(ours, axis=1, keepdims=True)
    weight = ours * (k1 + 1) / (ours + k1 * (1 - b + b * length / jnp.mean(length)))
    return of_subtasks((weight * rarity) @ theirs.astype(jnp.float32).T)


def nearest_states(model, pool, few):
    """Cosines of the mean last states of the decoder (RDS): ``[n]``."""

    def states(tokens):
        decoder = nnx.merge(*model)
        decoder.head.kernel = nnx.Param(jnp.eye(decoder.sizes[1]))  # its logits are the states
        there = (tokens != PAD).astype(jnp.float32)
        total = jnp.einsum("ntc,nt->nc", decoder(tokens), there)
        return total / jnp.linalg.norm(total, axis=1, keepdims=True)

    return of_subtasks(states(pool.tokens) @ states(few.tokens).T)


def as_long(key, lengths, index):
    """Random examples that are as long as those at `index`."""
    order = jnp.lexsort((jax.random.uniform(key, lengths.shape), lengths))
    ranked = lengths[order]
    rank = jnp.arange(len(order)) - jnp.searchsorted(ranked, ranked)
    wanted = jnp.sum(lengths[index][None, :] == ranked[:, None], axis=1)
    return order[jnp.nonzero(rank < wanted, size=len(index))[0]]


@functools.partial(jax.jit, static_argnames=("config", "vocabulary"))
def others(config, key, number, model, pools, few, paper, *, vocabulary):
    """What `paper`, LESS's choice, is compared with: ``[3 + draws, m]``.

    The nearest by words and by states, random texts as long as LESS's, and random ones.
    """
    for_lengths, for_draws = jax.random.split(key)
    pool = jax.tree.map(lambda x: x[number], pools)
    scores = nearest_words(pool, few, vocabulary), nearest_states(model, pool, few)
    chosen = [selection.select_top_fraction(s, config.fraction) for s in scores]
    lengths = jnp.sum((pool.tokens != PAD).astype(jnp.int32), axis=1)
    chosen.append(as_long(for_lengths, lengths, paper))
    for draw in jax.random.split(for_draws, config.draws):
        chosen.append(jax.random.permutation(draw, len(lengths))[: len(paper)])
    return jnp.stack([index.astype(paper.dtype) for index in chosen])
