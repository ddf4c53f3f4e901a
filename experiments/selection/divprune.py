"""DivPrune: which few of the visual tokens stand for all.

Saeed Ranjbar Alvar, Gursimran Singh, Mohammad Akbari and Yong Zhang, "DivPrune: Diversity-based
Visual Token Pruning for Large Multimodal Models", CVPR 2025, arXiv:2503.02175.

Claim: visual tokens chosen greedily for the greatest smallest cosine distance cover what an image
shows better than those of high attention; nothing is trained, and at a tenth of the tokens about
84% of a language model's work on the prompt is saved at little loss.

    python -m experiments run selection/divprune                   # 1 minute, one core
    python -m experiments run selection/divprune --preset paper    # for a GPU; not run yet

Two stand-ins for the paper's multimodal models. Directions: 576 tokens in 30 clusters of very
unequal size. Digits: a small vision transformer, trained on 16 patches of 2x2 pixels and a class
token, whose tokens are pruned before its first layer; then the same transformer sees each token
four times with a little noise, because the paper's images are redundant and patches of 8x8 digits
are not. Attention is the class token's in a pass over all tokens. The cost of a prompt is the
paper's formula at LLaVA-1.5-7B's sizes; its models themselves are not run.
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
from experiments.runner.claims import Rule
from gradkin import data as datasets
from gradkin import optim, selection

PAPERS = ("divprune-tokens",)
PRUNERS = ("DivPrune", "random", "importance")
RANKINGS = ("DivPrune", "random", "norm", "first attention", "last attention")
PATCHES = 16
COPIES = 4
# Prompts of LLaVA-1.5-7B: visual tokens, those kept, text of the paper's eleven image sets.
VISUAL, KEPT = 576, 56
TEXT = (15, 15, 23, 83, 25, 113, 15, 39, 21, 91, 57)
LLAVA = {"layers": 32, "width": 4096, "hidden": 11008}


@dataclasses.dataclass(frozen=True)
class Config:
    """``noise``: length of what is added to unit directions, and share of tokens' for copies."""

    tokens: int = 576
    kept: int = 58
    clusters: int = 30
    dimension: int = 64
    noise: float = 0.3
    copy_noise: float = 0.1
    trials: int = 20
    width: int = 32
    layers: int = 3
    heads: int = 4
    steps: int = 800
    batch: int = 64
    learning_rate: float = 3e-3
    numbers: tuple[int, ...] = (16, 12, 8, 4, 2)  # of tokens kept


PRESETS = {
    "smoke": Config(
        tokens=40, kept=6, clusters=5, trials=2, width=8, layers=2, heads=2, steps=4, batch=8
    ),
    "quick": Config(),
    "paper": Config(trials=200, width=64, steps=3000),
}


def load(config):
    """Patches ``[N, 16, 4]`` of scikit-learn's digits and labels, for training and for testing."""
    found = {}
    for split in ("train", "test"):
        digits = datasets.load("digits", split)
        images = datasets.images(digits).reshape(-1, 4, 2, 4, 2)
        found[split] = images.transpose(0, 1, 3, 2, 4).reshape(-1, PATCHES, 4)
        found[f"{split}_label"] = np.asarray(digits["label"], np.int32)
    return found


# ---- directions --------------------------------------------------------------------------------


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def on_directions(config, key):
    """Coverage, smallest distance kept and distance to what is kept: ``[trials, pruner]``."""

    def trial(key):
        k = jax.random.split(key, 5)
        centers = unit(jax.random.normal(k[0], (config.clusters, config.dimension)))
        zipf = -jnp.log(jnp.arange(1.0, config.clusters + 1))
        labels = jax.random.categorical(k[1], zipf, shape=(config.tokens,))
        spread = jax.random.normal(k[2], (config.tokens, config.dimension))
        tokens = centers[labels] + config.noise / math.sqrt(config.dimension) * spread
        sizes = jnp.bincount(labels, length=config.clusters)
        untied = jax.random.uniform(k[3], labels.shape)
        chosen = (
            selection.farthest_first(tokens, config.kept),
            jax.random.permutation(k[4], config.tokens)[: config.kept],
            jnp.argsort(sizes[labels].astype(float) + untied)[-config.kept :],
        )

        def measure(kept):
            seen = jnp.bincount(labels[kept], length=config.clusters) > 0
            near = 1 - jnp.max(unit(tokens) @ unit(tokens[kept]).T, axis=1)
            pruned = jnp.ones(config.tokens).at[kept].set(0)
            return {
                "coverage": jnp.sum(seen) / jnp.sum(sizes > 0),
                "smallest": selection.max_min_distance(tokens, kept),
                "nearest": jnp.vdot(near, pruned) / jnp.sum(pruned),
            }

        return jax.tree.map(lambda *m: jnp.stack(m), *[measure(kept) for kept in chosen])

    return jax.lax.map(trial, jax.random.split(key, config.trials))


# ---- digits ------------------------------------------------------------------------------------


def init(key, config):
    width, layers = config.width, config.layers
    k = jax.random.split(key, 9)
    normal = lambda key, *shape: jax.random.normal(key, shape) / math.sqrt(shape[-2])
    return {
        "embed": normal(k[0], 4, width),
        "positions": 0.5 * jax.random.normal(k[1], (PATCHES, width)),
        "class": jax.random.normal(k[2], (1, width)),
        "head": normal(k[3], width, 10),
        "layers": {
            "qkv": normal(k[4], layers, width, 3 * width),
            "out": normal(k[5], layers, width, width),
            "up": normal(k[6], layers, width, 2 * width),
            "down": normal(k[7], layers, 2 * width, width),
        },
    }


def embedded(params, patches):
    """The tokens that are pruned: ``[16, width]``."""
    return patches @ params["embed"] + params["positions"]


def with_class(params, tokens):
    return jnp.concatenate([params["class"], tokens])


def normalized(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def classify(params, x, heads):
    """Logits, and the class token's attention to the others in each layer, mean over heads."""

    def layer(x, weights):
        q, k, v = jnp.split(normalized(x) @ weights["qkv"], 3, axis=1)
        q, k, v = (y.reshape(len(x), heads, -1) for y in (q, k, v))
        scores = jnp.einsum("thc,shc->hts", q, k) / math.sqrt(q.shape[-1])
        attention = jax.nn.softmax(scores, axis=-1)
        mixed = jnp.einsum("hts,shc->thc", attention, v).reshape(x.shape)
        x = x + mixed @ weights["out"]
        x = x + jax.nn.gelu(normalized(x) @ weights["up"]) @ weights["down"]
        return x, jnp.mean(attention[:, 0, 1:], axis=0)

    x, attention = jax.lax.scan(layer, x, params["layers"])
    return normalized(x[0]) @ params["head"], attention


@functools.partial(jax.jit, static_argnums=(0, 1))
def pruned_accuracy(config, copies, params, patches, labels, key):
    """Accuracy ``[ranking, number kept]`` when each token is there ``copies`` times."""
    size = PATCHES * copies

    def rankings(key, tokens):
        attention = classify(params, with_class(params, tokens), config.heads)[1]
        downwards = lambda score: jnp.argsort(-score)
        return jnp.stack(
            [
                selection.farthest_first(tokens, size),
                jax.random.permutation(key, size).astype(np.int32),
                downwards(jnp.linalg.norm(tokens, axis=1)),
                downwards(attention[0]),
                downwards(attention[-1]),
            ]
        )

    def guesses(key, patches):
        for_noise, for_random = jax.random.split(key)
        tokens = jnp.repeat(embedded(params, patches), copies, axis=0)
        if copies > 1:
            noise = jax.random.normal(for_noise, tokens.shape)
            tokens = tokens + config.copy_noise * jnp.std(tokens) * noise
        sequence = with_class(params, tokens)

        def guess(kept):
            short = selection.prune_sequence(sequence, kept, visual=(1, 1 + size))
            return jnp.argmax(classify(params, short, config.heads)[0])

        order = rankings(for_random, tokens)
        numbers = [n for n in config.numbers if n < PATCHES or copies > 1]
        few = [jax.vmap(guess)(order[:, :number]) for number in numbers]
        whole = jnp.argmax(classify(params, sequence, config.heads)[0])
        return jnp.stack(few, axis=1), whole

    few, whole = jax.vmap(guesses)(jax.random.split(key, len(patches)), patches)
    right = few == labels[:, None, None]
    return jnp.mean(right, axis=0), jnp.mean(whole == labels)


def run(config, key, data, loop):
    k = jax.random.split(key, 5)
    params = init(k[0], config)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def logits(params, patches):
        tokens = with_class(params, embedded(params, patches))
        return classify(params, tokens, config.heads)[0]

    def step(state, data):
        params, opt_state, key = state
        key, draw = jax.random.split(key)
        batch = jax.random.randint(draw, (config.batch,), 0, len(data["train"]))

        def loss(params):
            out = jax.vmap(logits, (None, 0))(params, data["train"][batch])
            labels = data["train_label"][batch]
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(out, labels))

        grads = jax.grad(loss)(params)
        return *optim.update(optimizer, grads, opt_state, params), key

    start = (params, optimizer.init(params), k[1])
    (params, _, _), _ = loop(step, start, config.steps, every=config.steps, data=data)
    test = params, data["test"], data["test_label"]
    plain, unpruned = pruned_accuracy(config, 1, *test, k[2])
    redundant, unpruned_copies = pruned_accuracy(config, COPIES, *test, k[3])
    cost = lambda visual: [selection.prefill_flops(t + visual, **LLAVA) for t in TEXT]
    return on_directions(config, k[4]) | {
        "accuracy": plain,
        "copies_accuracy": redundant,
        "unpruned": unpruned,
        "unpruned_copies": unpruned_copies,
        "cost": jnp.asarray(cost(KEPT)) / jnp.asarray(cost(VISUAL)),
    }


# ---- figure and claims -------------------------------------------------------------------------


def plot(metrics):
    figure, axes = figures.panels(1, 3, width=3.6)
    measures = ("coverage", "smallest", "nearest")
    for bar, (name, colour) in enumerate(zip(PRUNERS, figures.COLOURS)):
        values = np.stack([metrics[m].mean(1)[:, bar] for m in measures], axis=1)
        at = np.arange(len(measures)) + 0.27 * (bar - 1)
        axes[0].bar(at, values.mean(0), 0.25, color=colour, alpha=0.75, label=name)
    axes[0].set_xticks(
        range(len(measures)), ["clusters\ncovered", "smallest\ndistance", "distance\nto kept"]
    )
    axes[0].set(yscale="log", title="Directions in clusters")
    axes[0].grid(axis="x", visible=False)
    axes[0].legend(ncols=1)
    for axis, name, numbers, whole, title in (
        (axes[1], "accuracy", (12, 8, 4, 2), "unpruned", "Digits, 16 different tokens"),
        (axes[2], "copies_accuracy", (16, 12, 8, 4, 2), "unpruned_copies", "64: each four times"),
    ):
        for i, ranking in enumerate(RANKINGS):
            figures.band(
                axis, numbers, metrics[name][:, i], label=ranking, marker="o", markersize=4
            )
        axis.axhline(metrics[whole].mean(), color="#2b3138", linestyle=":", label="all tokens")
        axis.set(xlabel="tokens kept", ylabel="accuracy", ylim=(0, 1.02), title=title)
    axes[2].legend(fontsize=7.5, loc=(0.02, 0.47))
    return figure


def margin(measure, better, worse, number=None):
    """By how much one exceeds another, mean over trials or at a number of tokens: ``[S]``."""

    def of(metrics):
        if number is None:
            values, names = metrics[measure].mean(1), PRUNERS
        else:
            values, names = metrics[measure][:, :, number], RANKINGS
        return values[:, names.index(better)] - values[:, names.index(worse)]

    return of


def above(text, reported, measure, verdict, rule: Rule = "every"):
    return Claim(
        text=text,
        paper="divprune-tokens",
        reported=reported,
        measure=measure,
        holds=lambda difference: difference >= 0,
        rule=rule,
        threshold="difference >= 0",
        verdict=verdict,
    )


CLAIMS = (
    above(
        "A tenth of the tokens, chosen for diversity, covers more clusters than a random tenth",
        "qualitative",
        margin("coverage", "DivPrune", "random"),
        "reproduced",
    ),
    above(
        "A random tenth covers more clusters than the tokens of highest importance",
        "qualitative",
        margin("coverage", "random", "importance"),
        "reproduced",
    ),
    above(
        "The smallest distance between kept tokens is greatest for DivPrune",
        "what it maximizes",
        lambda m: m["smallest"].mean(1)[:, 0] - m["smallest"].mean(1)[:, 1:].max(1),
        "reproduced",
    ),
    Claim(
        text="56 of 576 visual tokens leave 16% of the work on LLaVA-1.5-7B's prompts",
        paper="divprune-tokens",
        reported="about 84% less, by its formula",
        measure=lambda m: m["cost"].mean(1),
        holds=lambda share: abs(share - 0.16) < 0.01,
        rule="every",
        threshold="within 0.01 of 0.16",
        verdict="reproduced",
    ),
    above(
        "Untrained pruning by diversity beats pruning by the first layer's attention "
        "(digits, 4 of 16 tokens)",
        "a few points lost where FastV loses most, on large models",
        margin("accuracy", "DivPrune", "first attention", 2),
        "not reproduced",
        "mean",
    ),
    above(
        "The same where tokens are redundant (16 of 64, each patch four times)",
        "a few points lost where FastV loses most, on large models",
        margin("copies_accuracy", "DivPrune", "first attention", 0),
        "reproduced",
        "mean",
    ),
)
