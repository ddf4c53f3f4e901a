"""Utility-diversity sampling: which examples of a batch are worth a backward pass.

Heming Zou, Yixiu Mao, Yun Qu, Qi Wang and Xiangyang Ji, "Utility-Diversity Aware Online Batch
Selection for LLM Supervised Fine-tuning", 2025, arXiv:2510.16882.

Claim: at the same number of updates, learning only from the examples of a batch whose logits have
the greatest nuclear norm and are farthest from those of examples selected before is better than
learning from random ones or from those of the highest loss, and diversity is part of why.

    python -m experiments run selection/uds                   # 2 minutes, one core
    python -m experiments run selection/uds --preset paper    # larger; not run yet

The paper tunes language models of billions of parameters. Here a small decoder learns six tasks on
three digits (copy, reverse, sort, add neighbours, parity, look up in a table), of a pool in which
80% are near-copies of one another: copies of which only the last digit differs. 8 of 32 candidates
are selected at each step; all methods have the same learning rate and start. The weight of
diversity was fixed before the first run, not tuned. Measured is what is answered exactly, mean over
the tasks, on digits drawn uniformly. No label here is wrong, which the highest loss would find
first. Time per step is measured apart (`experiments/benchmarks/batch_selection.py`): on a larger
decoder a step that selects 4 of 16 takes half of one on all.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import figures
from experiments.runner import Claim
from gradkin import optim, selection

PAPERS = ("uds-batch-selection",)
METHODS = ("random", "highest loss", "nuclear norm", "UDS", "all candidates")
VOCABULARY = 20
DIGITS = 3
FIRST, EQUALS = 10, 16  # of the tasks' tokens, and after it
LENGTH = 2 * DIGITS + 1  # of the input


@dataclasses.dataclass(frozen=True)
class Config:
    """``alpha``: weight of distances, which are in units of logits ("jl")."""

    width: int = 48
    layers: int = 2
    heads: int = 4
    candidates: int = 32
    selected: int = 8
    alpha: float = 1.0
    rows: int = 4
    columns: int = 16
    memory: int = 256
    steps: int = 600
    every: int = 100
    learning_rate: float = 3e-3
    redundant: float = 0.8
    test: int = 64  # examples of each task


PRESETS = {
    "smoke": Config(width=8, heads=2, candidates=8, selected=2, memory=8, steps=4, every=2, test=4),
    "quick": Config(),
    "paper": Config(width=64, steps=10_000, every=1000, test=200),
}


def load(config):
    return {"table": np.random.default_rng(0).permutation(10).astype(np.int32)}


def examples(tasks, digits, table):
    """Tokens ``[n, 8]``: task, digits, equals, answer."""
    answers = jnp.stack(
        [
            digits,
            digits[:, ::-1],
            jnp.sort(digits, axis=1),
            (digits + jnp.roll(digits, 1, axis=1)) % 10,
            digits % 2,
            table[digits],
        ]
    )
    answer = answers[tasks, jnp.arange(len(tasks))]
    mark = jnp.full_like(tasks, EQUALS)
    return jnp.concatenate([FIRST + tasks[:, None], digits, mark[:, None], answer], axis=1)


def draw(config, key, table):
    """Candidates of one step."""
    k = jax.random.split(key, 3)
    tasks = jax.random.randint(k[0], (config.candidates,), 0, 6)
    digits = jax.random.randint(k[1], (config.candidates, DIGITS), 0, 10)
    redundant = jax.random.uniform(k[2], tasks.shape) < config.redundant
    near_copies = digits.at[:, :-1].set(7)
    tasks = jnp.where(redundant, 0, tasks)
    return examples(tasks, jnp.where(redundant[:, None], near_copies, digits), table)


def init(key, config):
    normal = lambda key, *shape: jax.random.normal(key, shape) / math.sqrt(shape[-2])
    width, layers = config.width, config.layers
    k = jax.random.split(key, 7)
    return {
        "embedding": jax.random.normal(k[0], (VOCABULARY, width)),
        "positions": jax.random.normal(k[1], (LENGTH, width)),
        "head": normal(k[2], width, VOCABULARY),
        "layers": {
            "qkv": normal(k[3], layers, width, 3 * width),
            "out": normal(k[4], layers, width, width),
            "up": normal(k[5], layers, width, 4 * width),
            "down": normal(k[6], layers, 4 * width, width),
        },
    }


def normalized(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def logits_of(params, tokens, heads):
    """Of the next token: ``[n, LENGTH, VOCABULARY]``."""
    x = params["embedding"][tokens] + params["positions"][None]
    shape = (*tokens.shape, heads, -1)
    causal = np.tril(np.ones((1, 1, LENGTH, LENGTH), bool))

    def layer(x, weights):
        q, k, v = (y.reshape(shape) for y in jnp.split(normalized(x) @ weights["qkv"], 3, axis=-1))
        scores = jnp.einsum("nthc,nshc->nhts", q, k) / math.sqrt(q.shape[-1])
        attention = jax.nn.softmax(jnp.where(causal, scores, -1e9), axis=-1)
        mixed = jnp.einsum("nhts,nshc->nthc", attention, v).reshape(x.shape)
        x = x + mixed @ weights["out"]
        return x + jax.nn.gelu(normalized(x) @ weights["up"]) @ weights["down"], None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    return normalized(x) @ params["head"]


def losses_of(logits, tokens):
    """Mean loss over the answer of each example."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return jnp.mean(losses[:, -DIGITS:], axis=1)


def run(config, key, data, loop):
    k = jax.random.split(key, 4)
    forward = functools.partial(logits_of, heads=config.heads)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))
    projection = selection.init_bilinear_projection(
        k[2],
        time=LENGTH,
        vocabulary=VOCABULARY,
        rows=config.rows,
        columns=config.columns,
        scale="jl",
    )
    tasks = jnp.repeat(jnp.arange(6), config.test)
    digits = jax.random.randint(k[3], (len(tasks), DIGITS), 0, 10)
    held_out = examples(tasks, digits, data["table"])

    def chosen(method, key, params, tokens, memory):
        """Numbers of the candidates to learn from, and the memory."""
        number = config.selected
        if method == "all candidates":
            return jnp.arange(config.candidates), memory
        if method == "random":
            return jax.random.permutation(key, config.candidates)[:number], memory
        logits = forward(params, tokens[:, :-1])
        if method == "highest loss":
            return jax.lax.top_k(losses_of(logits, tokens), number)[1], memory
        alpha = config.alpha if method == "UDS" else 0.0
        found = selection.utility_diversity_select(memory, projection, logits, number, alpha=alpha)
        return found.indices, found.memory

    def train(method):
        def step(state, data):
            params, opt_state, memory, redundant, key = state
            key, for_batch, for_choice = jax.random.split(key, 3)
            tokens = draw(config, for_batch, data["table"])
            index, memory = chosen(method, for_choice, params, tokens, memory)
            few = tokens[index]

            def loss(params):
                return jnp.mean(losses_of(forward(params, few[:, :-1]), few))

            grads = jax.grad(loss)(params)
            params, opt_state = optim.update(optimizer, grads, opt_state, params)
            alike = (few[:, 0] == FIRST) & (few[:, 1] == 7) & (few[:, 2] == 7)
            return params, opt_state, memory, redundant + jnp.mean(alike), key

        def evaluate(state, data):
            guesses = jnp.argmax(forward(state[0], held_out[:, :-1]), axis=2)[:, -DIGITS:]
            right = jnp.all(guesses == held_out[:, -DIGITS:], axis=1)
            return jnp.mean(right.reshape(6, -1), axis=1)

        params = init(k[0], config)
        memory = selection.init_memory(config.memory, config.rows * config.columns)
        start = (params, optimizer.init(params), memory, jnp.zeros(()), k[1])
        options = {"every": config.every, "evaluate": evaluate, "data": data, "name": method}
        state, history = loop(step, start, config.steps, **options)
        return history, state[3] / config.steps

    found = [train(method) for method in METHODS]
    return {
        "accuracy": jnp.stack([history for history, _ in found]),  # method, evaluation, task
        "redundant": jnp.stack([share for _, share in found]),
    }


def plot(metrics):
    figure, axes = figures.panels(1, 2, width=4.2)
    accuracy = metrics["accuracy"].mean(-1)
    share = np.linspace(0, 1, accuracy.shape[2])
    for i, method in enumerate(METHODS):
        figures.band(axes[0], share, accuracy[:, i], label=method)
    axes[0].set(xlabel="share of the steps", ylabel="answered exactly", ylim=(0, 1.02))
    axes[0].set(title="Held out, mean of six tasks")
    axes[0].legend(ncols=2, loc="lower right", fontsize=7.5)
    places = np.arange(len(METHODS))
    axes[1].bar(places, metrics["redundant"].mean(0), 0.6, color=figures.COLOURS[: len(METHODS)])
    for values in metrics["redundant"]:
        axes[1].plot(places, values, ".", color="#2b3138", markersize=4)
    axes[1].set_xticks(places, [m.replace(" ", "\n") for m in METHODS])
    axes[1].set(ylabel="share of what is learned from", title="Near-copies of one another")
    axes[1].grid(axis="x", visible=False)
    return figure


def lead(worse, text, verdict):
    at = METHODS.index
    final = lambda m: m["accuracy"][:, :, -1].mean(-1)
    return Claim(
        text=text,
        paper="uds-batch-selection",
        reported="qualitative: above all baselines, on MMLU, ScienceQA, GSM8K and HumanEval",
        measure=lambda m: final(m)[:, at("UDS")] - final(m)[:, at(worse)],
        holds=lambda difference: difference >= 0,
        rule="mean",
        threshold="difference of accuracy >= 0",
        verdict=verdict,
    )


CLAIMS = (
    lead("random", "UDS is no worse than random candidates", "reproduced"),
    lead("highest loss", "UDS is no worse than candidates of the highest loss", "not reproduced"),
    lead("nuclear norm", "UDS is no worse than the nuclear norm alone", "reproduced"),
)
