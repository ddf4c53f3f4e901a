"""Why LESS compares directions: inner products of gradients prefer short answers.

Mengzhou Xia, Sadhika Malladi, Suchin Gururangan, Sanjeev Arora and Danqi Chen, "LESS: Selecting
Influential Data for Targeted Instruction Tuning", 2024, arXiv:2402.04333.

Claim: the gradient of an example, a mean over its tokens, is the shorter the longer the answer; so
selection by inner products takes short examples, and cosines do not.

    python -m experiments run selection/less_length                   # 1 minute, one core
    python -m experiments run selection/less_length --preset paper    # for a GPU; not run yet

An instruction names one of eight sources; its answer, of 2 to 40 letters, is drawn letter by letter
from the source's distribution, the same Zipf law over another order of the alphabet: no letter is
harder for coming later. A small decoder is pre-trained on answers of uniform letters and on copying
strings; then LESS: adapters on 5% of a pool, Adam's directions at four checkpoints, 5% selected for
a target source of which 16 examples are known. "Inner product" is LESS's sum over checkpoints
without the division by norms; both are also taken of plain gradients. Beside it, without a claim:
how the loss per token goes with the length, and both for copies, of which longer ones may be
harder.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkin
from experiments import figures
from experiments.runner import Claim
from experiments.selection import language
from gradkin import gradients, selection

PAPERS = ("less-data-selection",)
PAD, SAY, COPY, SOURCE = range(4)
SOURCES, LETTERS = 8, 26
LETTER = SOURCE + SOURCES
VOCABULARY = LETTER + LETTERS
SHORTEST, LONGEST = 2, 40  # letters of an answer
COPIED = (3, 11)
CONTENT = 3  # letters of an instruction
LENGTH = CONTENT + 2 + LONGEST
MICRO_BATCH = 200  # examples whose gradients exist at a time
DIRECTIONS = ("adam", "gradient")
SCORES = ("dot", "cosine")


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 64
    depth: int = 2
    rank: int = 8
    corpus: int = 4096
    steps: int = 300  # of pre-training
    batch: int = 16
    learning_rate: float = 3e-3
    pool: int = 800
    validation: int = 16
    fraction: float = 0.05  # warmed up on, and selected
    epochs: int = 4
    adapter_batch: int = 8
    adapter_rate: float = 3e-3
    sketch: int = 1024


PRESETS = {
    "smoke": Config(
        width=8, depth=1, rank=1, corpus=16, steps=2, pool=40, validation=2, epochs=2,
        adapter_batch=2, sketch=16,
    ),
    "quick": Config(),
    "paper": Config(
        width=256, depth=4, rank=32, corpus=65_536, steps=20_000, batch=64, pool=20_000,
        adapter_batch=32, sketch=8192,
    ),
}  # fmt: skip


def load(config):
    return {}


def sources(key):
    """Log-probabilities of letters ``[SOURCES, LETTERS]``."""
    ranks = jax.vmap(lambda k: jax.random.permutation(k, LETTERS))(jax.random.split(key, SOURCES))
    return jax.nn.log_softmax(-jnp.log1p(ranks.astype(np.float32)))


def instructions(key, count, logits, *, source=None):
    """Examples of given sources, or of random ones; with each its source and length."""
    k = jax.random.split(key, 4)
    source = jax.random.randint(k[0], (count,), 0, SOURCES) if source is None else source
    lengths = jax.random.randint(k[1], (count,), SHORTEST, LONGEST + 1)
    content = jax.random.randint(k[2], (count, CONTENT), LETTER, VOCABULARY)
    letters = jax.random.categorical(k[3], logits[source][:, None, :], shape=(count, LONGEST))
    mark = lambda token: jnp.full((count, 1), token)
    tokens = jnp.concatenate(
        [SOURCE + source[:, None], content, mark(SAY), LETTER + letters], axis=1
    )
    first = CONTENT + 2
    place = jnp.arange(LENGTH)[None]
    answer = (place >= first) & (place < first + lengths[:, None])
    tokens = jnp.where((place < first) | answer, tokens, PAD)
    return language.Examples(tokens, answer), source, lengths


def copies(key, count):
    """Examples of copying a string."""
    for_lengths, for_letters = jax.random.split(key)
    lengths = jax.random.randint(for_lengths, (count, 1), COPIED[0], COPIED[1] + 1)
    letters = jax.random.randint(for_letters, (count, COPIED[1]), LETTER, VOCABULARY)
    place = jnp.broadcast_to(jnp.arange(LENGTH)[None], (count, LENGTH))
    first = lengths + 2
    answer = (place >= first) & (place < first + lengths)
    which = jnp.where(answer, place - first, place - 1)
    tokens = jnp.take_along_axis(letters, jnp.clip(which, 0, COPIED[1] - 1), axis=1)
    tokens = jnp.where((place < first + lengths), tokens, PAD)
    tokens = jnp.where(place == 0, COPY, jnp.where(place == first - 1, SAY, tokens))
    return language.Examples(tokens, answer), lengths[:, 0]


@functools.partial(jax.jit, static_argnames="config")
def corpus_of(key, config):
    """What is pre-trained on: uniform letters, whatever the source, and copies."""
    one, other = jax.random.split(key)
    uniform = jnp.zeros((SOURCES, LETTERS))
    said, _, _ = instructions(one, config.corpus // 2, uniform)
    copied, _ = copies(other, config.corpus // 2)
    return jax.tree.map(lambda *x: jnp.concatenate(x), said, copied)


def run(config, key, data, loop):
    k = jax.random.split(key, 4)
    sizes = {"width": config.width, "depth": config.depth, "num_heads": 4, "max_length": LENGTH}
    graph, params = language.init(k[0], VOCABULARY, tuple(sizes.items()))
    optimizer, _ = language.adam(config.learning_rate, config.steps)
    params, losses = language.fit(
        loop,
        k[1],
        graph,
        params,
        (),
        corpus_of(k[2], config),
        optimizer=optimizer,
        batch=config.batch,
        steps=config.steps,
        every=max(config.steps // 10, 1),
    )
    return {"losses": losses} | select(k[3], config, graph, params)


@functools.partial(jax.jit, static_argnames="config")
def select(key, config, graph, params):
    """LESS with both scores and both directions, and what goes with the length."""
    k = jax.random.split(key, 7)
    logits = sources(k[0])
    pool, source, lengths = instructions(k[1], config.pool, logits)
    target = jnp.zeros(config.validation, int)
    validation, _, _ = instructions(k[2], config.validation, logits, source=target)
    graph, lora, frozen = language.adapted(k[3], graph, params, rank=config.rank)
    loss = language.loss_of(graph, frozen)
    steps = config.epochs * -(-round(config.fraction * config.pool) // config.adapter_batch)
    rate = optax.linear_schedule(config.adapter_rate, 0.0, steps)
    checkpoints, _ = selection.warm_up(
        k[4],
        loss,
        lora,
        pool,
        optimizer=optax.adam(rate),
        learning_rate=rate,
        fraction=config.fraction,
        epochs=config.epochs,
        batch_size=config.adapter_batch,
    )
    features = functools.partial(
        selection.less_features,
        loss,
        checkpoints,
        sketch=gradients.RademacherSketch(k[5], config.sketch),
        batch_size=min(MICRO_BATCH, config.pool),
    )
    rates = checkpoints.learning_rates
    wanted = features(validation, direction="gradient")
    chosen = []
    for direction in DIRECTIONS:
        rows = features(pool, direction=direction)
        for metric in SCORES:
            scores = selection.less_scores(rows, wanted, rates, metric=metric)
            chosen.append(selection.select_top_fraction(scores, config.fraction))
    chosen = jnp.reshape(jnp.stack(chosen), (len(DIRECTIONS), len(SCORES), -1))
    copied, copied_lengths = copies(k[6], config.pool // 4)
    own, others = look(loss, checkpoints, pool), look(loss, checkpoints, copied)
    found = {
        "pool_length": jnp.mean(lengths.astype(np.float32)),
        "mean_length": jnp.mean(lengths[chosen].astype(np.float32), axis=-1),
        "share_of_target": jnp.mean((source[chosen] == 0).astype(np.float32), axis=-1),
        "selected_lengths": jnp.sort(lengths[chosen], axis=-1),
    }
    for name, (values, of) in {
        "answers": (own, lengths),
        "copies": (others, copied_lengths),
    }.items():
        for measure, rows in values.items():
            found[f"{name}_{measure}_correlation"] = jax.vmap(correlation, (None, 0))(of, rows)
            found[f"{name}_{measure}"] = by_length(of, jnp.mean(rows, axis=0))
    return found


def look(loss, checkpoints, examples):
    """Losses and norms of gradients at each checkpoint, ``[C, n]``."""

    def at(params):
        losses, G = gradkin.value_and_per_example_grads(loss, batch_size=size)(params, examples)
        return {"norm": G.norms(), "loss": losses}

    size = min(MICRO_BATCH, len(examples.tokens))

    return jax.lax.map(at, checkpoints.params)


def correlation(lengths, values):
    return jnp.corrcoef(lengths.astype(values.dtype), values)[0, 1]


def by_length(lengths, values):
    """Means ``[LONGEST + 1]``; NaN for lengths of which there is none."""
    total = jnp.zeros(LONGEST + 1).at[lengths].add(values)
    return total / jnp.zeros(LONGEST + 1).at[lengths].add(1)


def plot(metrics):
    figure, axes = figures.panels(1, 3, width=3.8)
    lengths = np.arange(LONGEST + 1)
    for axis, measure in zip(axes, ("norm", "loss")):
        for name, label in (("answers", "letters at random"), ("copies", "copies")):
            shown = np.isfinite(metrics[f"{name}_{measure}"]).any(0)
            r = metrics[f"{name}_{measure}_correlation"].mean()
            figures.band(
                axis,
                lengths[shown],
                metrics[f"{name}_{measure}"][:, shown],
                label=f"{label}: r = {r:.2f}",
            )
        axis.set(xlabel="letters in the answer", ylim=(0, None))
        axis.legend()
    axes[0].set(ylabel="norm of the gradient", title="Gradients of mean losses")
    axes[1].set(ylabel="nats per token", title="Losses")
    for direction, style in zip(range(len(DIRECTIONS)), ("-", "--")):
        for score, colour in zip(range(len(SCORES)), figures.COLOURS):
            found = np.sort(metrics["selected_lengths"][:, direction, score].ravel())
            label = f"{('inner product', 'cosine')[score]}, {DIRECTIONS[direction]}"
            share = np.arange(1, len(found) + 1) / len(found)
            axes[2].plot(found, share, style, color=colour, label=label)
    axes[2].plot([SHORTEST, LONGEST], [0, 1], color="0.6", linewidth=1, label="pool")
    axes[2].set(xlabel="letters in the answer", ylabel="share no longer", title="Selected")
    axes[2].legend(fontsize=7)
    return figure


def shorter(direction):
    """Mean length selected by inner products over that selected by cosines."""
    return lambda m: m["mean_length"][:, direction, 0] / m["mean_length"][:, direction, 1]


claim = functools.partial(Claim, paper=PAPERS[0], rule="every", verdict="reproduced")
CLAIMS = (
    claim(
        text="The norm of an example's gradient falls with the length of its answer",
        reported="correlates negatively",
        measure=lambda m: m["answers_norm_correlation"].mean(1),
        holds=lambda r: r < 0,
        threshold="correlation < 0",
    ),
    claim(
        text="Inner products select shorter answers than cosines, of Adam's directions (LESS)",
        reported="biased to short sequences",
        measure=shorter(0),
        holds=lambda ratio: ratio < 1,
        threshold="ratio of mean lengths < 1",
    ),
    claim(
        text="Inner products select shorter answers than cosines, of plain gradients",
        reported="biased to short sequences",
        measure=shorter(1),
        holds=lambda ratio: ratio < 1,
        threshold="ratio of mean lengths < 1",
    ),
)
