"""Linear mode connectivity by weight matching: what it aligns, and why two networks then merge.

Akira Ito, Masanori Yamada and Atsutoshi Kumagai, "Analysis of Linear Mode Connectivity via
Permutation-Based Weight Matching", ICLR 2025, arXiv:2402.04051.

Claim: the permutation of one network's hidden units that brings its weights closest to another's
removes the barrier of the loss between them, though it hardly shortens their distance. What it
changes are the directions of singular vectors, and those of large singular values, which make up
the function, come to agree; in wide networks, with weight decay and at a high learning rate they
dominate. Activation matching works alike. A permutation found by the midpoint's loss (STE) connects
two networks without aligning them, so that a third one is not connected.

    python -m experiments run curvature/weight_matching                       # 3 minutes
    python -m experiments run curvature/weight_matching --data fashion_mnist  # 3 minutes
    python -m experiments run curvature/weight_matching --preset paper        # GPU; not run yet

Perceptrons of two hidden layers, as in the paper for MNIST and Fashion-MNIST; its convolutional
networks are left out. The straight-through estimator starts from random latent weights (from a's
own weights its first projection is weight matching itself; shown beside it) and takes the
permutation of the lowest training loss of all its steps.

Seen on digits: weight matching lowers the barrier in test loss from .89 to .13 at width 64 and from
.54 to .11 at width 256 (in the worst of nine pairs to .31 of what it was); it shortens the distance
by 15 and 13 %. Matching by activations connects better (.04 and .03) and aligns singular directions
less (R = .11 and .05, by weights .20 and .16): their alignment alone does not tell how well two
networks connect. Of what should make it easier little is seen once networks are matched: barriers
are so low that single pairs decide. STE from a random start connects b to a as well as weights do
(.14) without aligning them (R = .04), and b to c worse (.66 against .45); yet the mean of all three
classifies no worse (.92 against .88).
On Fashion-MNIST width, weight decay and a high learning rate do what the paper says: the barrier
that weight matching leaves falls from .31 at width 64 to .12 and .02, with decay to .18, at three
times the rate to .05. It matches narrow networks worse there, and as well for all directions as for
those of large singular values.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.curvature.merging import compare, stack, three, train
from experiments.runner import Claim
from gradkin import data as datasets

PAPERS = ("lmc-weight-matching",)
DATA = ("digits", "mnist", "fashion_mnist")
VMAP_SEEDS = True
METHODS = ("none", "weights", "activations", "STE, random start", "STE, from a")
SCORES = ("train loss", "test loss", "train error", "test error")
SETTINGS = ("base", "weight decay", "fast")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes; ``decay`` and ``fast`` are tried on the narrowest networks."""

    data: str = "digits"
    widths: tuple[int, ...] = (64, 128, 256)
    hidden: int = 2
    examples: int = 6000  # at most, to train on
    measured: int = 2000  # at most, of training and of test examples
    steps: int = 600
    batch: int = 100
    learning_rate: float = 1e-3
    fast: float = 3e-3
    decay: float = 1e-3  # times half the squared weights, in the loss
    gammas: tuple[float, ...] = (0.0, 0.3, 0.6, 0.9)
    points: int = 11
    ste_steps: int = 400
    ste_examples: int = 1500


PRESETS = {
    "smoke": Config(
        widths=(4,), measured=20, steps=4, batch=8, points=3, ste_steps=2, ste_examples=20
    ),
    "quick": Config(),
    "paper": Config(
        data="mnist",
        widths=(256, 512, 1024),
        hidden=3,
        examples=60_000,
        measured=10_000,
        steps=30_000,
        ste_examples=10_000,
    ),
}


def load(config):
    """Pixels minus the mean training image, of mean square 1; how many examples the config says."""
    train, test = (datasets.load(config.data, split) for split in ("train", "test"))
    x, x_test = (datasets.images(split, flatten=True) for split in (train, test))
    mean, kept = x.mean(0, keepdims=True), config.examples
    scale = np.sqrt(np.mean(np.square(x - mean)))
    return {
        "x": (x[:kept] - mean) / scale,
        "y": train["label"][:kept],
        "x_test": (x_test[: config.measured] - mean) / scale,
        "y_test": test["label"][: config.measured],
    }


def data_spec(config):
    shape = jax.ShapeDtypeStruct
    rows = {"": config.examples, "_test": config.measured}
    return {f"x{name}": shape((n, 784), np.float32) for name, n in rows.items()} | {
        f"y{name}": shape((n,), np.int32) for name, n in rows.items()
    }


def run(config, key, data, loop):
    """``[S, widths, methods, ...]`` at the base setting; ``setting_``: the narrowest's settings."""
    keys = jax.vmap(lambda k: jax.random.split(k, 2 * len(config.widths) + 1))(key)
    base = (config.learning_rate, 0.0)
    settings = [base, (config.learning_rate, config.decay), (config.fast, 0.0)]

    @functools.partial(jax.jit, static_argnums=0)
    def over_seeds(measure, keys, nets, data):
        return jax.lax.map(lambda pair: measure(config, *pair, data), (keys, nets))

    found = []
    for i, width in enumerate(config.widths):
        tried = settings if i == 0 else [base]
        count = 3 if i == 0 else 2
        params = train(config, keys[:, 2 * i], data, loop, width, tried, count)
        of_setting = [
            over_seeds(
                compare, keys[:, 2 * i + 1], jax.tree.map(lambda p, v=v: p[:, v], params), data
            )
            for v in range(len(tried))
        ]
        found.append(of_setting[0])
        if i == 0:
            at_settings = stack(of_setting)
            narrow = jax.tree.map(lambda p: p[:, 0], params)
    metrics = {name: jnp.swapaxes(leaf, 0, 1) for name, leaf in stack(found).items()}
    metrics |= {
        f"setting_{name}": jnp.swapaxes(at_settings[name], 0, 1)
        for name in ("barrier", "alignment")
    }
    trio = over_seeds(three, keys[:, -1], narrow, data)
    metrics |= {f"three_{name}": leaf for name, leaf in trio.items()}
    axes = {"width": config.widths, "gamma": config.gammas}
    return metrics | {
        name: jnp.tile(jnp.asarray(values)[None], (len(key), 1)) for name, values in axes.items()
    }


def plot(metrics):
    figure, axes = figures.panels(2, 2, width=4.2, height=3.0)
    at = np.linspace(0, 1, metrics["path"].shape[3])
    for method, name in enumerate(METHODS[:3]):
        figures.band(axes[0, 0], at, metrics["path"][:, 0, method, :, 1], label=name)
    width = metrics["width"][0]
    axes[0, 0].set(xlabel="share of a", ylabel="test loss", title=f"The path, width {width[0]}")
    axes[0, 0].legend(title="b matched by")

    for method, name in enumerate(METHODS[:3]):
        figures.band(axes[0, 1], width, metrics["barrier"][:, :, method, 1], marker="o", label=name)
    axes[0, 1].set(xlabel="width", ylabel="barrier, test loss", xscale="log")
    axes[0, 1].set(title="By width")
    axes[0, 1].set_xticks(width, [str(w) for w in width])
    axes[0, 1].minorticks_off()
    axes[0, 1].legend()

    for i, w in enumerate(width):
        for method, line in ((0, ":"), (1, "-")):
            label = f"{w}" if method else None
            values = metrics["alignment"][:, i, method].mean(0)
            axes[1, 0].plot(
                metrics["gamma"][0], values, line, marker="o", ms=4, color=f"C{i}", label=label
            )
    axes[1, 0].set(xlabel="gamma: least singular value kept", ylabel="alignment R")
    axes[1, 0].set(title="Directions before (dotted) and after")
    axes[1, 0].legend(title="width")

    names = [name.replace(", ", ",\n") for name in METHODS]
    places = np.arange(len(METHODS))
    rows = (("to_first", "a to b and c"), ("second_to_third", "b to c"))
    for bar, (row, label) in enumerate(rows):
        values = metrics[f"three_{row}"]
        axes[1, 1].bar(
            places + 0.4 * bar - 0.2,
            values.mean(0),
            0.36,
            color=figures.COLOURS[bar],
            alpha=0.75,
            label=label,
        )
        for seed in values:
            axes[1, 1].plot(places + 0.4 * bar - 0.2, seed, ".", color="#2b3138", ms=4)
    top = np.maximum(metrics["three_to_first"], metrics["three_second_to_third"]).max(0)
    for place, height, accuracy in zip(places, top, metrics["three_accuracy"].mean(0)):
        axes[1, 1].text(place, height + 0.03, f"{accuracy:.2f}", ha="center", fontsize=7)
    axes[1, 1].set_ylim(0, 1.25 * max(top.max(), 0.1))
    axes[1, 1].set_xticks(places, names, fontsize=7)
    axes[1, 1].set(ylabel="barrier, test loss", title="Three networks; accuracy of their mean")
    axes[1, 1].legend()
    axes[1, 1].grid(axis="x", visible=False)
    return figure


def ratio(metrics, score):
    """Barrier after weight matching over that before, by seed and width."""
    return metrics["barrier"][:, :, 1, score] / metrics["barrier"][:, :, 0, score]


def eased(metrics, setting):
    """Barrier after weight matching at a setting over that at the base, by seed."""
    after = metrics["setting_barrier"][:, :, 1, 1]
    return after[:, SETTINGS.index(setting)] / after[:, 0]


def gained(metrics, method, gamma=0):
    """Alignment after matching minus that before, the least over widths, by seed."""
    alignment = metrics["alignment"][..., gamma]
    return (alignment[:, :, METHODS.index(method)] - alignment[:, :, 0]).min(1)


def beaten(metrics, name):
    """Three networks: weight matching minus STE from a random start, by seed."""
    values = metrics[f"three_{name}"]
    return values[:, METHODS.index("weights")] - values[:, METHODS.index("STE, random start")]


def claim(text, measure, holds, rule, threshold, verdict, reported="qualitative"):
    return Claim(
        text=text,
        paper="lmc-weight-matching",
        reported=reported,
        measure=measure,
        holds=holds,
        rule=rule,
        threshold=threshold,
        verdict=verdict,
    )


CLAIMS = (
    claim(
        "weight matching removes most of the barrier, at every width",
        lambda m: ratio(m, 1).max(1),
        lambda value: value <= 0.3,
        "every",
        "barrier in test loss after / before <= 0.3, worst width",
        "not reproduced",
    ),
    claim(
        "it hardly shortens the distance",
        lambda m: m["distance"][:, :, 1].max(1),
        lambda value: value < 0.3,
        "every",
        "reduction of the distance < 0.3, greatest of the widths",
        "reproduced",
    ),
    claim(
        "the barrier falls by more than a shorter distance explains, which is its square",
        lambda m: (ratio(m, 0) / (1 - m["distance"][:, :, 1]) ** 2).max(1),
        lambda value: value <= 0.5,
        "every",
        "(train barrier after / before) / (distance after / before)^2 <= 0.5, worst width",
        "reproduced",
    ),
    claim(
        "networks of other seeds have nearly the same singular values",
        lambda m: m["spectra"].max((1, 2)),
        lambda value: value <= 0.1,
        "every",
        "relative distance of sorted singular values <= 0.1, worst layer and width",
        "reproduced",
    ),
    claim(
        "weight matching aligns singular directions",
        lambda m: gained(m, "weights"),
        lambda value: value > 0.05,
        "every",
        "R after - before > 0.05, all directions, least of the widths",
        "reproduced",
    ),
    claim(
        "and most those of large singular values",
        lambda m: (m["alignment"][:, :, 1, 1] - m["alignment"][:, :, 1, 0]).min(1),
        lambda value: value >= 0,
        "every",
        "R after at gamma 0.3 - at gamma 0 >= 0, least of the widths",
        "reproduced",
    ),
    claim(
        "the merged network shares its parents' large singular directions only then",
        lambda m: (m["merged"][:, :, 1, 1] - m["merged"][:, :, 0, 1]).min(1),
        lambda value: value > 0,
        "every",
        "R of merged and parents at gamma 0.3, after - before > 0, least of the widths",
        "reproduced",
    ),
    claim(
        "activation matching aligns singular directions too",
        lambda m: gained(m, "activations"),
        lambda value: value > 0.05,
        "every",
        "R after - before > 0.05, all directions, least of the widths",
        "not reproduced",
    ),
    claim(
        "wider networks are closer to connected",
        lambda m: m["barrier"][:, -1, 1, 1] / m["barrier"][:, 0, 1, 1],
        lambda value: value < 1,
        "every",
        "barrier after matching, widest / narrowest < 1",
        "not reproduced",
    ),
    claim(
        "so are networks with weight decay",
        lambda m: eased(m, "weight decay"),
        lambda value: value < 1,
        "mean",
        "barrier after matching, with / without < 1",
        "not reproduced",
    ),
    claim(
        "and networks trained at a higher learning rate",
        lambda m: eased(m, "fast"),
        lambda value: value < 1,
        "mean",
        "barrier after matching, at 3 times the rate / at the rate < 1",
        "reproduced",
    ),
    claim(
        "STE from a random start aligns singular directions less",
        lambda m: beaten(m, "aligned"),
        lambda value: value > 0,
        "every",
        "R by weights - by STE > 0",
        "reproduced",
    ),
    claim(
        "two networks matched to a third are closer to connected by weights than by STE",
        lambda m: beaten(m, "second_to_third"),
        lambda value: value < 0,
        "every",
        "barrier between the two, by weights - by STE < 0",
        "reproduced",
    ),
    claim(
        "and the mean of all three classifies better",
        lambda m: beaten(m, "accuracy"),
        lambda value: value > 0,
        "mean",
        "test accuracy, by weights - by STE > 0",
        "not reproduced",
    ),
)
