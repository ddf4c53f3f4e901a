"""LESS on text: which 5% of an instruction pool a decoder should be tuned on for a target task.

Mengzhou Xia, Sadhika Malladi, Suchin Gururangan, Sanjeev Arora and Danqi Chen, "LESS: Selecting
Influential Data for Targeted Instruction Tuning", 2024, arXiv:2402.04333.

Claim: the 5% of a pool whose low-rank gradients, as Adam would step, point where those of a few
examples of the target point are better to train on than a random 5%, often better than the whole
pool, and better than the nearest by words or by hidden states; a small model can select for a
larger one.

    python -m experiments run selection/less_text                 # 1 minute, two cores
    python -m experiments run selection/less_text --data FOLDER   # public sets, 2 minutes
    python -m experiments run selection/less_text --preset paper  # for a GPU; not run yet

A decoder is trained on a corpus and then has adapters (LoRA on q, k, v, o), which alone are tuned.
The pool "own" holds the target among nine sources; the pool "related" holds another task instead
(`experiments/selection/text_pools.py`): with letters, the target is to reverse them, the other task
asks for the same in words that the target never has. Subtasks are three lengths, with four known
examples each. Every choice is tuned on from the same start for as many epochs as the warm-up, in
the same order; the rate is that of four which was best for random choices, on validation examples
(the lowest; at each a random 5% made the loss greater than before). FOLDER holds gsm8k, bbh,
self_instruct, sst2, scan and tiny_shakespeare; the target there is SCAN's "jump" with other words.

At `quick`, with letters, the loss on the target is 0.85 before, 1.04 after a random 5% of the pool
"own", 0.47 after LESS's, 0.58 after the small model's choice, 0.33 after the whole pool; 0.17 after
the nearest by words, since the target's source uses the target's words. In the pool "related" words
do not tell (1.29; LESS 0.52, random 1.07), and tuning on the whole pool unlearns the target (3.24).
With the public sets, of which only SCAN looks like SCAN, words, states and even lengths find it:
"own" has 1.75 (random), 1.29 (LESS), 1.24 (words), 1.26 (states); "related" 1.79, 1.66, 1.68, 1.67.

"Released code" is the mean of cosines, and Adam's direction without bias correction and with eps
inside the root. "Lengths of LESS" are random examples as long as those that LESS selects.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.runner import Claim
from experiments.runner.claims import Rule
from experiments.selection import language, text_choices, text_pools, text_tuning

PAPERS = ("less-data-selection",)
DATA = ("synthetic",)  # or a folder
VMAP_SEEDS = True
POOLS = ("own", "related")
CHOICES = (
    "LESS",
    "released code",
    "small model",
    "nearest words",
    "nearest states",
    "lengths of LESS",
)
ARMS = (*CHOICES, "random", "whole pool")


@dataclasses.dataclass(frozen=True)
class Config:
    """`validation`: known examples of each subtask; `draws`: random choices to average over."""

    data: str = "synthetic"
    pool: int = 1800
    fraction: float = 0.05
    width: int = 48
    small_width: int = 24  # of the model that selects for the other
    depth: int = 2
    rank: int = 4
    sketch: int = 256
    pretraining_steps: int = 1000
    pretraining_batch: int = 64
    learning_rate: float = 2e-3
    epochs: int = 4
    batch_size: int = 6
    draws: int = 3
    validation: int = 4
    test: int = 120


PRESETS = {
    "smoke": Config(
        pool=36, fraction=0.1, width=8, small_width=8, depth=1, rank=1, sketch=8,
        pretraining_steps=2, pretraining_batch=4, epochs=2, batch_size=2, draws=1, validation=1,
        test=6,
    ),
    "quick": Config(),
    "paper": Config(
        pool=18_000, width=256, small_width=64, depth=4, rank=32, sketch=8192,
        pretraining_steps=20_000, pretraining_batch=256, batch_size=30, test=300,
    ),
}  # fmt: skip


def load(config):
    """See `text_pools.gathered`; twice as many candidates for validation as are used."""
    sizes = 2 * config.validation, config.test
    if config.data == "synthetic":
        return text_pools.synthetic(config.pool, documents(config), *sizes)
    return text_pools.read(config.data, config.pool, vocabulary(config), *sizes)


def data_spec(config):
    """Of the strings."""

    def texts(*shape):
        shape = (*shape, text_pools.STRINGS)
        return language.Examples(*(jax.ShapeDtypeStruct(shape, d) for d in (np.int32, np.bool_)))

    return {
        "pools": texts(len(POOLS), config.pool),
        "sources": jax.ShapeDtypeStruct((len(POOLS), config.pool), np.int32),
        "validation": texts(text_pools.SUBTASKS, 2 * config.validation),
        "test": texts(config.test),
        "corpus": texts(documents(config)),
    }


def documents(config):
    """How many the corpus of strings has."""
    return min(30_000, config.pretraining_steps * config.pretraining_batch)


def vocabulary(config):
    return 64 if config.data == "synthetic" else 768


def pretrained(config, width, data, loop):
    """Graph and parameters of a decoder that has learned the corpus, and its last loss."""
    length = data["corpus"].tokens.shape[1]
    sizes = {"width": width, "depth": config.depth, "max_length": length}
    model = language.init(jax.random.key(0), vocabulary(config), tuple(sizes.items()))
    return text_tuning.pretrain(config, model, data["corpus"], loop, name=f"width {width}")


def choose(config, key, number, model, small, data):
    """Numbers of the examples chosen in one pool: ``[choices, m]``."""
    k = jax.random.split(key, 4)
    few = text_choices.examples_known(config, k[0], data["validation"])
    ours, of_small = (
        text_choices.less(config, k, number, decoder, data["pools"], few)
        for k, decoder in ((k[1], model), (k[2], small))
    )
    options = {"paper": ours[0], "vocabulary": vocabulary(config)}
    others = text_choices.others(config, k[3], number, model, data["pools"], few, **options)
    return jnp.concatenate([ours, of_small[:1], others])


@jax.jit
def measured(chosen, sources, found):
    """The metrics; of the random choices their mean."""

    def over_draws(x, axis):
        ours, random = jnp.split(x, [len(CHOICES)], axis=axis)
        return jnp.concatenate([ours, jnp.mean(random, axis=axis, keepdims=True)], axis=axis)

    few, whole_pool = found[:, :, :, :-1], found[:, :, :, -1:]
    found = jnp.concatenate([over_draws(few, 3), whole_pool], axis=3)
    of_source = jax.nn.one_hot(sources, text_pools.SOURCES)  # pool, example, source
    share = [jnp.mean(of_source[p][chosen[:, p]], axis=2) for p in range(len(POOLS))]
    same = jax.vmap(lambda c: jnp.mean(jnp.isin(c, c[0]).astype(jnp.float32), axis=1))
    return {
        "loss": found[..., 0],  # seed, epoch, pool, arm
        "accuracy": found[..., 1],
        "answered": found[..., 2],
        "share": over_draws(jnp.stack(share, axis=1), 2),  # seed, pool, arm, source
        "overlap": over_draws(jax.vmap(same)(chosen), 2),  # with LESS: seed, pool, arm
    }


def run(config, key, data, loop):
    data = jax.tree.map(jnp.asarray, data)
    model, loss = pretrained(config, config.width, data, loop)
    small, small_loss = pretrained(config, config.small_width, data, loop)
    seeds, (pools, n) = len(key), data["sources"].shape
    keys = jax.vmap(lambda k: jax.random.split(k, pools + 1))(key)
    chosen = [
        choose(config, keys[seed, p], jnp.int32(p), model, small, data)
        for seed in range(seeds)
        for p in range(pools)
    ]
    chosen = jnp.stack(chosen).reshape(seeds, pools, *chosen[0].shape)

    # The pools are tuned on at once; their texts lie one behind the other.
    texts = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), data["pools"])
    first = n * jnp.arange(pools, dtype=jnp.int32)[None, :, None, None]

    start = text_tuning.first_adapters(config, keys[:, pools], model)

    def tuned(chosen, name):
        numbers = (chosen + first).reshape(seeds, -1, chosen.shape[-1])
        given = keys[:, pools], start, numbers, texts
        adapters = text_tuning.tune(config, model, *given, loop, name=name)
        return adapters.reshape(seeds, -1, pools, *chosen.shape[2:3], adapters.shape[-1])

    everything = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (seeds, pools, 1, n))
    adapters = jnp.concatenate([tuned(chosen, "5%"), tuned(everything, "whole pool")], axis=3)
    found = text_tuning.answers(config, model, adapters, data["test"])
    losses = jnp.broadcast_to(jnp.stack([loss, small_loss]), (seeds, 2))
    return measured(chosen, data["sources"], found) | {"pretrained": losses}


def plot(metrics):
    figure, axes = figures.panels(1, 3, width=3.6, height=3.0)
    places = np.arange(len(ARMS))
    for axis, name, arms in ((axes[0], "loss", ARMS), (axes[1], "share", ARMS[:-1])):
        values = metrics["loss"][:, -1] if name == "loss" else metrics["share"][..., 0]
        for p, pool in enumerate(POOLS):
            at = places[: len(arms)] + 0.2 * (2 * p - 1)
            axis.barh(at, values[:, p].mean(0), 0.38, color=figures.COLOURS[p], label=pool)
            for seed in values[:, p]:
                axis.plot(seed, at, ".", color="#2b3138", markersize=3)
        axis.set_yticks(places[: len(arms)], arms)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
    highest = metrics["loss"][:, -1, :, :-1].mean(0).max()  # of 5%
    axes[0].set(xlabel="loss on the target, held out", title="Tuned on 5%, or on all")
    axes[0].set_xlim(0, 1.4 * highest)
    for p, value in enumerate(metrics["loss"][:, -1, :, -1].mean(0)):
        if value > 1.4 * highest:
            at = 1.38 * highest, places[-1] + 0.2 * (2 * p - 1)
            axes[0].annotate(f"{value:.1f}", at, ha="right", va="center", color="w", size=8)
    axes[1].axvline(1 / text_pools.SOURCES, color="#5d6770", linestyle="--", linewidth=1)
    axes[1].set(xlabel="from the target's source", title="Selected", xlim=(0, 1.02))
    legend = {"loc": "lower right", "bbox_to_anchor": (1, 0.98), "ncols": 2, "fontsize": 8}
    axes[1].legend(**legend)
    epochs = np.arange(metrics["accuracy"].shape[1])
    for arm in ("LESS", "small model", "nearest words", "random", "whole pool"):
        figures.band(axes[2], epochs, metrics["accuracy"][:, :, 1, ARMS.index(arm)], label=arm)
    axes[2].set(xlabel="epochs", ylabel="right tokens of answers", title='Pool "related"')
    axes[2].set(ylim=(0, 1.02))
    axes[2].set_xticks(epochs)
    axes[2].legend(fontsize=7.5, ncols=2, loc="lower left")
    return figure


# ---- claims ----------------------------------------------------------------------------------


def last(metrics, name, arm):
    """At the end of tuning: ``[seeds, pools]``."""
    return metrics[name][:, -1, :, ARMS.index(arm)]


def lower(arm, worse, pools, text, reported, verdict, rule: Rule = "mean"):
    """A claim that the loss of `arm` is below that of `worse`, in each of the pools."""
    at = [POOLS.index(pool) for pool in pools]
    return Claim(
        text=text,
        paper="less-data-selection",
        reported=reported,
        measure=lambda m: (last(m, "loss", worse) - last(m, "loss", arm))[:, at].min(1),
        holds=lambda difference: difference > 0,
        rule=rule,
        threshold="difference of loss > 0",
        verdict=verdict,
    )


def gain(other, least, text, reported, verdict):
    """A claim on right tokens, in the pool with the target."""
    return Claim(
        text=text,
        paper="less-data-selection",
        reported=reported,
        measure=lambda m: (last(m, "accuracy", "LESS") - last(m, "accuracy", other))[:, 0],
        holds=lambda difference: difference >= least,
        rule="mean",
        threshold=f"difference of accuracy >= {least}",
        verdict=verdict,
    )


def purity(pool, text, verdict):
    return Claim(
        text=text,
        paper="less-data-selection",
        reported="qualitative: what is selected asks for the same skill",
        measure=lambda m: m["share"][:, POOLS.index(pool), 0, 0],
        holds=lambda share: share > 1 / text_pools.SOURCES,
        rule="every",
        threshold="> 1/9, the share in the pool",
        verdict=verdict,
    )


POINTS = "MMLU 50.2 against 46.5, TydiQA 56.2 against 52.7, BBH 41.5 against 38.9 (Llama-2-7B)"
CLAIMS = (
    lower(
        "LESS",
        "random",
        ["own"],
        "In a pool with the target, the loss after LESS's 5% is below that after a random 5%",
        POINTS,
        "reproduced",
        rule="every",
    ),
    lower(
        "LESS",
        "random",
        ["related"],
        "In a pool without the target, the loss after LESS's 5% is below that after a random 5%",
        POINTS,
        "reproduced",
        rule="every",
    ),
    gain(
        "random",
        0.026,
        "LESS's 5% gains at least 2.6 points of accuracy over a random 5%",
        POINTS,
        "reproduced",
    ),
    purity("own", "LESS prefers the target's own source where the pool has it", "reproduced"),
    purity(
        "related", "LESS prefers the related source where the pool lacks the target", "reproduced"
    ),
    lower(
        "small model",
        "random",
        POOLS,
        "What a model of half the width selects is better than a random 5%, in both pools",
        "LESS-T, Llama-2-7B for Mistral-7B: MMLU 61.8 against 60.0 (random)",
        "reproduced",
    ),
    lower(
        "LESS",
        "lengths of LESS",
        POOLS,
        "LESS's 5% is better than random examples of the same lengths, in both pools",
        "not reported",
        "reproduced",
    ),
    lower(
        "LESS",
        "nearest words",
        POOLS,
        "LESS's 5% is better than the nearest by words (BM25), in both pools",
        "qualitative: above BM25 on all three",
        "not reproduced",
    ),
    lower(
        "LESS",
        "nearest states",
        POOLS,
        "LESS's 5% is better than the nearest by hidden states (RDS), in both pools",
        "qualitative: above RDS on all three",
        "reproduced",
    ),
    gain(
        "whole pool",
        0.0,
        "In a pool with the target, LESS's 5% is as accurate as the whole pool",
        "often better: TydiQA 56.2 against 54.0, but BBH 41.5 against 43.2 (Llama-2-7B)",
        "not reproduced",
    ),
)
