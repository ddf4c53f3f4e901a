"""Why LESS compares directions: inner products of gradients prefer short answers.

Mengzhou Xia, Sadhika Malladi, Suchin Gururangan, Sanjeev Arora and Danqi Chen, "LESS: Selecting
Influential Data for Targeted Instruction Tuning", 2024, arXiv:2402.04333.

Claim: the gradient of an example, a mean over its tokens, is the shorter the longer the answer; so
selection by inner products takes short examples, and cosines do not.

    python -m experiments run selection/less_length                   # 2 minutes, one core
    python -m experiments run selection/less_length --preset paper    # for a GPU; not run yet

An instruction names one of eight sources; its answer, of 2 to 40 letters, is drawn letter by letter
from the source's distribution, the same Zipf law over another order of the alphabet: no letter is
harder for coming later. A small decoder is pre-trained on answers of uniform letters and on copying
strings; then LESS: adapters on 5% of a pool, Adam's directions at four checkpoints, 5% selected for
a target source of which 16 examples are known; a seed is the mean over four draws of these. "Inner
product" is LESS's sum over checkpoints without the division by norms; both are also taken of plain
gradients. Norms are those of projected gradients, as LESS sees them (within 3% at `quick`). Beside
it, without a claim: how the loss per token goes with the length, and both for copies, of which
longer ones may be harder.

Seen at `quick`: inner products of plain gradients select answers 29% shorter than cosines do: 17.6
letters on average, where the pool has 20.9. Cosines are not neutral either, they prefer long
answers (24.9 letters), and of Adam's directions both scores do (24.0 and 23.6): these are no
shorter for longer answers (the correlation is about +0.1: the root of the squares evens out large
gradients); there both scores select nearly the same, and which of them takes the shorter answers is
chance. The first run had one draw for each of three seeds, and on all three inner products did, by
one percent; on eight seeds they did three times. The draws were added then.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
RESERVE = 8  # times what a draw takes
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
    draws: int = 4  # of pool, target and adapters, for each decoder
    adapter_batch: int = 8
    adapter_rate: float = 3e-3
    sketch: int | None = 1024  # None: gradients are not projected


PRESETS = {
    "smoke": Config(
        width=8, depth=1, rank=1, corpus=16, steps=2, pool=40, validation=2, epochs=2,
        draws=1, adapter_batch=2, sketch=None,
    ),
    "quick": Config(),
    "paper": Config(
        width=256, depth=4, rank=32, corpus=65_536, steps=20_000, batch=64, pool=20_000,
        adapter_batch=32, sketch=8192,
    ),
}  # fmt: skip


def load(config):
    """More examples than a draw takes, the known ones of the target apart from the pool."""
    rng = np.random.default_rng(0)
    zipf = 1 / np.arange(1, LETTERS + 1)
    letters = np.stack([rng.permutation(zipf / zipf.sum()) for _ in range(SOURCES)])
    uniform = np.full_like(letters, 1 / LETTERS)
    spread = lambda count: rng.integers(0, SOURCES, count)
    half = config.corpus // 2
    said, copied = instructions(rng, spread(half), uniform), copies(rng, half)
    source = spread(RESERVE * config.pool)
    return {
        "corpus": language.Examples(*map(np.concatenate, zip(said, copied))),
        "pool": instructions(rng, source, letters),
        "source": source.astype(np.int32),
        "target": instructions(rng, np.zeros(RESERVE * config.validation, int), letters),
        "copies": copies(rng, config.pool // 4),
    }


def instructions(rng, source, letters):
    """An example of each source: its name, the instruction, and letters drawn one by one."""
    count = len(source)
    lengths = rng.integers(SHORTEST, LONGEST + 1, count)
    content = rng.integers(0, LETTERS, (count, CONTENT))
    drawn = rng.uniform(size=(count, LONGEST))
    for number, cumulative in enumerate(np.cumsum(letters, axis=1)):
        rows = source == number
        drawn[rows] = np.searchsorted(cumulative[:-1], drawn[rows])
    mark = np.full((count, 1), SAY)
    parts = [SOURCE + source[:, None], LETTER + content, mark, LETTER + drawn]
    return cut(np.concatenate(parts, axis=1), CONTENT + 2, lengths)


def copies(rng, count):
    """Examples of copying a string."""
    lengths = rng.integers(COPIED[0], COPIED[1] + 1, count)
    strings = [LETTER + rng.integers(0, LETTERS, length) for length in lengths]
    return language.pack([[COPY, *s, SAY] for s in strings], strings, LENGTH, pad=PAD)


def cut(tokens, first, lengths):
    """Answers that begin at ``first``, no longer than they are to be."""
    place = np.arange(tokens.shape[1])
    answer = (place >= first) & (place < first + lengths[:, None])
    tokens = np.where((place < first) | answer, tokens, PAD)
    return language.Examples(tokens.astype(np.int32), answer)


def run(config, key, data, loop):
    k = jax.random.split(key, 3)
    sizes = {"width": config.width, "depth": config.depth, "num_heads": 4, "max_length": LENGTH}
    graph, params = language.init(k[0], VOCABULARY, tuple(sizes.items()))
    optimizer, _ = language.adam(config.learning_rate, config.steps)
    params, losses = language.fit(
        loop,
        k[1],
        graph,
        params,
        (),
        data["corpus"],
        optimizer=optimizer,
        batch=config.batch,
        steps=config.steps,
        every=max(config.steps // 10, 1),
    )
    return {"losses": losses[1:]} | select(k[2], config, graph, params, data)


@functools.partial(jax.jit, static_argnames="config")
def select(key, config, graph, params, data):
    """Means over draws of everything but the pre-trained decoder."""
    one = functools.partial(select_once, config=config, graph=graph, params=params, data=data)
    found = jax.lax.map(one, jax.random.split(key, config.draws))
    lengths = jnp.concatenate(found.pop("selected_lengths"), axis=-1)
    means = {name: jnp.mean(values, axis=0) for name, values in found.items()}
    return means | {"selected_lengths": jnp.sort(lengths, axis=-1)}


def select_once(key, config, graph, params, data):
    """LESS with both scores and both directions, and what goes with the length."""
    k = jax.random.split(key, 5)
    n = config.pool
    taken = jax.random.permutation(k[0], RESERVE * n)[:n]
    pool, source = jax.tree.map(lambda x: x[taken], (data["pool"], data["source"]))
    known = jax.random.permutation(k[1], RESERVE * config.validation)[: config.validation]
    validation = jax.tree.map(lambda x: x[known], data["target"])
    graph, lora, frozen = language.adapted(k[2], graph, params, rank=config.rank)
    loss = language.loss_of(graph, frozen)
    steps = config.epochs * -(-round(config.fraction * n) // config.adapter_batch)
    rate = optax.linear_schedule(config.adapter_rate, 0.0, steps)
    checkpoints, _ = selection.warm_up(
        k[3],
        loss,
        lora,
        pool,
        optimizer=optax.adam(rate),
        learning_rate=rate,
        fraction=config.fraction,
        epochs=config.epochs,
        batch_size=config.adapter_batch,
    )
    sketch = gradients.RademacherSketch(k[4], config.sketch) if config.sketch else None
    features = functools.partial(
        selection.less_features, loss, checkpoints, sketch=sketch, batch_size=MICRO_BATCH
    )
    everything = joined(pool, data["copies"], validation)
    plain = features(everything, direction="gradient")
    rows, wanted = jnp.stack([features(pool), plain[:, :n]]), plain[:, -config.validation :]
    chosen = [score_and_select(config, rows, wanted, checkpoints, metric) for metric in SCORES]
    chosen = jnp.stack(chosen, axis=1)
    lengths = jnp.sum(everything.answer, axis=1)
    found = {
        "pool_length": jnp.mean(lengths[:n].astype(np.float32)),
        "mean_length": jnp.mean(lengths[chosen].astype(np.float32), axis=-1),
        "share_of_target": jnp.mean((source[chosen] == 0).astype(np.float32), axis=-1),
        "selected_lengths": lengths[chosen],
    }
    losses = jax.lax.map(lambda p: jax.vmap(loss, (None, 0))(p, everything), checkpoints.params)
    parts = {"answers": slice(n), "copies": slice(n, -config.validation)}
    steps = jnp.linalg.norm(rows[0], axis=-1)
    found["answers_step_correlation"] = jax.vmap(correlation, (None, 0))(lengths[:n], steps)
    for measure, values in {"norm": jnp.linalg.norm(plain, axis=-1), "loss": losses}.items():
        for name, part in parts.items():
            here, numbers = lengths[part], values[:, part]
            found[f"{name}_{measure}_correlation"] = jax.vmap(correlation, (None, 0))(here, numbers)
            found[f"{name}_{measure}"] = by_length(here, jnp.mean(numbers, axis=0))
    return found


def joined(*examples):
    return jax.tree.map(lambda *x: jnp.concatenate(x), *examples)


def score_and_select(config, rows, wanted, checkpoints, metric):
    """For each direction what is selected, best first."""
    score = functools.partial(selection.less_scores, metric=metric)
    scores = jax.vmap(score, (0, None, None))(rows, wanted, checkpoints.learning_rates)
    return jax.vmap(lambda x: selection.select_top_fraction(x, config.fraction))(scores)


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
    for direction, style in enumerate(("-", "--")):
        for score, colour in enumerate(figures.COLOURS[: len(SCORES)]):
            found = np.sort(metrics["selected_lengths"][:, direction, score].ravel())
            label = f"{('inner product', 'cosine')[score]}, {DIRECTIONS[direction]}"
            share = np.arange(1, len(found) + 1) / len(found)
            axes[2].plot(found, share, style, color=colour, label=label)
    axes[2].plot([SHORTEST, LONGEST], [0, 1], color="0.6", linewidth=1, label="pool")
    axes[2].set(xlabel="letters in the answer", ylabel="share no longer", title="Selected")
    axes[2].legend(fontsize=7, loc="upper left")
    return figure


def shorter(direction):
    """Mean length selected by inner products over that selected by cosines."""
    return lambda m: m["mean_length"][:, direction, 0] / m["mean_length"][:, direction, 1]


claim = functools.partial(Claim, paper=PAPERS[0], rule="every")
CLAIMS = (
    claim(
        text="The norm of an example's gradient falls with the length of its answer",
        reported="correlates negatively",
        measure=lambda m: m["answers_norm_correlation"].mean(1),
        holds=lambda r: r < 0,
        threshold="correlation < 0",
        verdict="reproduced",
    ),
    claim(
        text="Inner products select shorter answers than cosines, of Adam's directions (LESS)",
        reported="biased to short sequences",
        measure=shorter(0),
        holds=lambda ratio: ratio < 1,
        threshold="ratio of mean lengths < 1",
        verdict="not reproduced",
    ),
    claim(
        text="Inner products select shorter answers than cosines, of plain gradients",
        reported="biased to short sequences",
        measure=shorter(1),
        holds=lambda ratio: ratio < 1,
        threshold="ratio of mean lengths < 1",
        verdict="reproduced",
    ),
)
