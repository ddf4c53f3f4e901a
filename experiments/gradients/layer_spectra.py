"""Spectra of layer-wise gradients: what good and bad training examples do to attention's matrices.

Ming Li, Yanhong Li, Ziyue Li and Tianyi Zhou, "How Instruction and Reasoning Data shape
Post-Training: Data Quality through the Lens of Layer-wise Gradients", 2025, arXiv:2504.10766.

Claim: the gradients of good examples in attention's projections have a lower nuclear norm and a
higher effective rank than those of bad ones; reasoning that is spelled out has a higher effective
rank than a short answer; gradients of different projections are nearly orthogonal.

A decoder learns to copy, sort and add digits, with and without carries spelled out. Bad examples
have three in ten tokens of the right answer replaced at random, which is not what a low score of a
quality metric means. Rank is bounded by the number of tokens: as a control, short answers are
padded with filler tokens to the length of the long ones (`padded` in the evidence and the figure).
At `quick` their rank is as high as that of reasoning: here length explains the comparison.

    python -m experiments run gradients/layer_spectra                   # 1 minute, two cores
    python -m experiments run gradients/layer_spectra --preset paper    # for a GPU; not run yet

The paper differentiates pretrained models of 1.5 to 14 billion parameters; its preset here is the
card's larger decoder, trained on the same tasks.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkin
from experiments import figures
from experiments.runner import Claim
from gradkin import gradients, optim

PAPERS = ("layerwise-gradient-spectra",)
PROJECTIONS = ("q", "k", "v", "o")
KINDS = ("right", "wrong", "short", "long", "padded")
EQUALS, COPY, SORT, ADD, THINK, PLUS, STEP, FILLER, END = range(10, 19)
VOCABULARY = 19
LENGTH = 33  # of the longest example, less one
DIGITS = 3


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 64
    layers: int = 2
    heads: int = 4
    steps: int = 600
    batch: int = 16
    learning_rate: float = 3e-3
    pool: int = 4096  # training examples of each task
    examples: int = 100  # of each kind, whose gradients are looked at
    wrong: float = 0.3  # share of the answer's tokens


PRESETS = {
    "smoke": Config(width=8, heads=2, steps=10, batch=4, pool=16, examples=4),
    "quick": Config(),
    "paper": Config(width=128, layers=4, steps=3000, batch=64, pool=65_536, examples=200),
}


def padded(prompt, answer):
    """Tokens ``[N, LENGTH + 1]`` and which of the targets count: those of the answer."""
    tokens = np.full((len(prompt), LENGTH + 1), END, np.int32)
    both = np.concatenate([prompt, answer], axis=1)
    tokens[:, : both.shape[1]] = both
    counts = np.zeros((len(prompt), LENGTH), np.float32)
    counts[:, prompt.shape[1] - 1 : both.shape[1] - 1] = 1
    return tokens, counts


def tokens_of(values, width):
    return np.stack([values // 10**i % 10 for i in reversed(range(width))], axis=1)


def column(numbers, token):
    return np.full((len(numbers), 1), token, np.int32)


def made(rng, task, count):
    """Prompts and answers of one task."""
    if task in (COPY, SORT):
        digits = rng.integers(0, 10, (count, 8))
        prompt = np.concatenate([column(digits, task), digits, column(digits, EQUALS)], axis=1)
        return prompt, digits if task == COPY else np.sort(digits, axis=1)
    x, y = rng.integers(0, 10**DIGITS, (2, count))
    mark = functools.partial(column, x)
    first, second = tokens_of(x, DIGITS), tokens_of(y, DIGITS)
    prompt = np.concatenate([mark(task), first, mark(PLUS), second, mark(EQUALS)], axis=1)
    answer = tokens_of(x + y, DIGITS + 1)
    if task == ADD:
        return prompt, answer
    carry, steps = np.zeros(count, int), []
    for place in reversed(range(DIGITS)):
        a, b = first[:, place], second[:, place]
        total = a + b + carry
        steps += [a, b, carry, total % 10, total // 10, np.full(count, STEP)]
        carry = total // 10
    return prompt, np.concatenate([np.stack(steps, axis=1), answer], axis=1)


def load(config):
    """Training examples of all tasks, and five kinds of examples to look at."""
    rng = np.random.default_rng(0)
    pool = [padded(*made(rng, task, config.pool)) for task in (COPY, SORT, ADD, THINK)]
    data: dict[str, Any] = {"tokens": np.concatenate([p[0] for p in pool])}
    data["counts"] = np.concatenate([p[1] for p in pool])
    share = -(-config.examples // 3)
    right = [padded(*made(rng, task, share)) for task in (COPY, SORT, ADD)]
    tokens, counts = (np.concatenate(x)[: config.examples] for x in zip(*right))
    replaced = (rng.uniform(size=counts.shape) < config.wrong) & (counts > 0)
    wrong = tokens.copy()
    wrong[:, 1:] = np.where(replaced, rng.integers(0, 10, counts.shape), tokens[:, 1:])
    prompt, answer = made(rng, ADD, config.examples)
    steps = made(np.random.default_rng(1), THINK, config.examples)
    filler = np.full((len(prompt), steps[1].shape[1] - answer.shape[1]), FILLER)
    kinds = {
        "right": (tokens, counts),
        "wrong": (wrong, counts),
        "short": padded(prompt, answer),
        "long": padded(*steps),
        "padded": padded(prompt, np.concatenate([answer, filler], axis=1)),
    }
    for name, (tokens, counts) in kinds.items():
        data |= {f"{name}_tokens": tokens.astype(np.int32), f"{name}_counts": counts}
    return data


def init(key, config):
    def normal(key, *shape):
        return jax.random.normal(key, shape) * np.float32(shape[0] ** -0.5)

    width = config.width
    shapes = dict.fromkeys(PROJECTIONS, (width, width))
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    *for_layers, a, b, c = jax.random.split(key, config.layers + 3)
    return {
        "layers": [
            {name: normal(k, *s) for k, (name, s) in zip(jax.random.split(k, 6), shapes.items())}
            for k in for_layers
        ],
        "embedding": jax.random.normal(a, (VOCABULARY, width)),
        "positions": jax.random.normal(b, (LENGTH, width)),
        "head": normal(c, width, VOCABULARY),
    }


def normalized(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def loss(params, example, heads):
    """Mean loss over the tokens of the answer."""
    tokens, counts = example
    x = params["embedding"][tokens[:-1]] + params["positions"]
    causal = np.tril(np.ones((1, LENGTH, LENGTH), bool))
    for layer in params["layers"]:
        h = normalized(x)
        q, k, v = (jnp.reshape(h @ layer[n], (LENGTH, heads, -1)) for n in "qkv")
        scores = jnp.einsum("thc,shc->hts", q, k) / np.float32(q.shape[-1] ** 0.5)
        mixed = jax.nn.softmax(jnp.where(causal, scores, -1e9), axis=-1)
        x = x + jnp.reshape(jnp.einsum("hts,shc->thc", mixed, v), x.shape) @ layer["o"]
        x = x + jax.nn.gelu(normalized(x) @ layer["up"]) @ layer["down"]
    log = jax.nn.log_softmax(normalized(x) @ params["head"])
    chosen = jnp.take_along_axis(log, tokens[1:, None], axis=1)[:, 0]
    return -jnp.vdot(chosen, counts) / jnp.sum(counts)


@functools.cache
def loss_of(heads):
    """One function for all calls, so that it is compiled once."""
    return functools.partial(loss, heads=heads)


def run(config, key, data, loop):
    for_init, for_batches = jax.random.split(key)
    example_loss = loss_of(config.heads)
    mean_loss = lambda params, batch: jnp.mean(jax.vmap(example_loss, (None, 0))(params, batch))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))
    params = init(for_init, config)

    def step(state, data):
        params, opt_state, key = state
        key, draw = jax.random.split(key)
        chosen = jax.random.randint(draw, (config.batch,), 0, len(data["tokens"]))
        batch = data["tokens"][chosen], data["counts"][chosen]
        grads = jax.grad(mean_loss)(params, batch)
        params, opt_state = optim.update(optimizer, grads, opt_state, params)
        return params, opt_state, key

    def evaluate(state, data):
        kinds = {k: (data[f"{k}_tokens"], data[f"{k}_counts"]) for k in ("right", "short", "long")}
        return jnp.stack([mean_loss(state[0], batch) for batch in kinds.values()])

    start = (params, optimizer.init(params), for_batches)
    every = max(config.steps // 10, 1)
    state, losses = loop(step, start, config.steps, every=every, evaluate=evaluate, data=data)
    found = [
        look(config, state[0], (data[f"{kind}_tokens"], data[f"{kind}_counts"])) for kind in KINDS
    ]
    names = ("nuclear", "rank", "cosines")
    return {"losses": losses} | {n: jnp.stack([f[n] for f in found]) for n in names}


def look(config, params, batch):
    """Averages over examples: ``[layers, 4]``, and of absolute cosines."""
    G = gradkin.per_example_grads(loss_of(config.heads))(params, batch)
    G = G.select(lambda path: path.split("/")[-1] in PROJECTIONS)
    stats = {
        path: gradients.spectral_stats(values)
        for path, values in gradients.gradient_spectra(G).items()
    }
    grid = lambda fun: jnp.stack(
        [
            jnp.stack([jnp.mean(fun(stats[f"layers/{i}/{n}"])) for n in PROJECTIONS])
            for i in range(config.layers)
        ]
    )
    same = [
        (f"layers/{i}/{a}", f"layers/{i}/{b}")
        for i in range(config.layers)
        for a, b in ("qo", "kv")
    ]
    next_to = [
        (f"layers/{i}/{n}", f"layers/{i + 1}/{n}")
        for i in range(config.layers - 1)
        for n in PROJECTIONS
    ]
    return {
        "nuclear": grid(lambda s: s.nuclear_norm),
        "rank": grid(lambda s: s.effective_rank),
        "cosines": jnp.mean(jnp.abs(gradients.gradient_cosines(G, same + next_to)), axis=0),
    }


def share(measure, more, less):
    """In which share of the matrices a kind of example has more than another."""

    def of(metrics):
        values = metrics[measure]
        higher = values[:, KINDS.index(more)] > values[:, KINDS.index(less)]
        return higher.reshape(len(values), -1).mean(1)

    return of


def plot(metrics):
    figure, axes = figures.panels(1, 3, width=3.6)
    layers = metrics["rank"].shape[2]
    names = [f"{n.upper()}{i + 1}" for i in range(layers) for n in PROJECTIONS]
    places = np.arange(len(names))
    for axis, measure, kinds in zip(
        axes, ("nuclear", "rank", "rank"), (KINDS[:2], KINDS[:2], KINDS[2:]), strict=True
    ):
        for kind, colour in zip(kinds, figures.COLOURS):
            values = metrics[measure][:, KINDS.index(kind)].reshape(-1, len(names))
            axis.plot(places, values.mean(0), "o-", color=colour, label=kind, markersize=4)
            axis.plot(places, values.T, ".", color=colour, markersize=2)
        axis.set_xticks(places, names)
        axis.legend()
    axes[0].set(ylabel="nuclear norm", yscale="log", title="Right and wrong answers")
    axes[1].set(ylabel="effective rank", title="Right and wrong answers")
    axes[2].set(ylabel="effective rank", title="Answers to sums")
    return figure


def of_matrices(text, reported, measure, verdict):
    return Claim(
        text=text,
        paper="layerwise-gradient-spectra",
        reported=reported,
        measure=measure,
        holds=lambda found: found >= 0.8,
        rule="mean",
        threshold="in >= 80% of layers and projections",
        verdict=verdict,
    )


CLAIMS = (
    of_matrices(
        "Right answers have a lower nuclear norm than corrupted ones",
        "holds for all four quality metrics",
        share("nuclear", "wrong", "right"),
        "reproduced",
    ),
    of_matrices(
        "Right answers have a higher effective rank than corrupted ones",
        "holds for all four quality metrics",
        share("rank", "right", "wrong"),
        "not reproduced",
    ),
    of_matrices(
        "Reasoning spelled out has a higher effective rank than short answers",
        "largest for the reasoning set s1.1",
        share("rank", "long", "short"),
        "reproduced",
    ),
    Claim(
        text="Gradients of different projections are nearly orthogonal",
        paper="layerwise-gradient-spectra",
        reported="cosines about 0",
        measure=lambda m: m["cosines"][:, 0].mean(-1),
        holds=lambda cosine: cosine < 0.1,
        rule="every",
        threshold="mean absolute cosine < 0.1",
        verdict="reproduced",
    ),
)
