"""Convergent learning: do networks of other seeds learn the same units?

Yixuan Li, Jason Yosinski, Jeff Clune, Hod Lipson and John Hopcroft, "Convergent Learning: Do
different neural networks learn the same representations?", ICLR 2016, arXiv:1511.07543.

Claim: units of networks that differ in their seed can be matched by the correlation of what they
respond to. Some features are learned by all networks, others are not; some of the latter span the
same small subspace in another basis, so that clusters of units of both networks hold unequal
numbers of them. Units that are active on average match better. In AlexNet, lower layers match
nearly one to one, upper layers do not, and a sparse linear map predicts lower layers well.

    python -m experiments run curvature/convergent_learning                       # 1 minute
    python -m experiments run curvature/convergent_learning --data fashion_mnist  # 3 minutes
    python -m experiments run curvature/convergent_learning --preset paper        # GPU; not run yet

Four convolutional networks in AlexNet's place, which needs ImageNet. Everything is measured on
images that were not trained on; a channel is a unit and a position of an image is a sample. The
sparse maps are fitted to one half of these images and tested on the other.

Seen on digits, accuracies .97 to .99: one to one, units correlate by .53, .41 and .58 in the three
layers, by .51, .36 and .31 before training; samples shuffled, by .01, .02 and .09. What the paper
sees along AlexNet's depth is not seen in three layers: here the dense layer matches best, loses
least by matching one to one and bears most sparsity. A third of its units never fire: they are
left out everywhere, but count for the number of clusters (a third of the units).
On Fashion-MNIST (.86 to .89) training makes convolutions match worse than untrained ones, by .58
and .29 after .62 and .43, and the dense layer better, by .67 after .38, where over half of its
units are dead; clusters of both networks' units become rarer.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.curvature.convnets import forward, train
from experiments.runner import Claim
from gradkin import curvature
from gradkin import data as datasets

PAPERS = ("convergent-learning",)
DATA = ("digits", "mnist", "fashion_mnist")
VMAP_SEEDS = True
LAYERS = ("conv1", "conv2", "dense")
STAGES = ("untrained", "trained")


@dataclasses.dataclass(frozen=True)
class Config:
    """``networks``: compared in pairs; ``close``: from what correlation on two units are alike."""

    data: str = "digits"
    networks: int = 4
    channels: tuple[int, int] = (16, 32)
    dense: int = 64
    steps: int = 300
    batch: int = 64
    learning_rate: float = 3e-3
    held_out: int = 359  # test images, at most
    penalties: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    sparse_steps: int = 500
    sizeable: float = 0.02  # weights of the sparse map that count
    close: float = 0.5
    bins: int = 10


PRESETS = {
    "smoke": Config(
        networks=2,
        channels=(4, 6),
        dense=8,
        steps=2,
        batch=8,
        held_out=20,
        penalties=(0.01, 0.1),
        sparse_steps=5,
        bins=3,
    ),
    "quick": Config(),
    "paper": Config(
        data="mnist", channels=(64, 128), dense=512, steps=5000, batch=128, held_out=2000
    ),
}


def load(config):
    """Images of mean 0 and mean square 1."""
    train, test = (datasets.load(config.data, split) for split in ("train", "test"))
    x, x_test = datasets.images(train), datasets.images(test)[: config.held_out]
    mean, scale = x.mean(), x.std()
    return {
        "x": (x - mean) / scale,
        "y": train["label"],
        "x_test": (x_test - mean) / scale,
        "y_test": test["label"][: config.held_out],
    }


def data_spec(config):
    shape = jax.ShapeDtypeStruct
    rows = {"": 60_000, "_test": config.held_out}
    return {f"x{name}": shape((n, 28, 28, 1), np.float32) for name, n in rows.items()} | {
        f"y{name}": shape((n,), np.int32) for name, n in rows.items()
    }


def rank_correlation(x, y, where):
    """Spearman's, over the units that count; 0 where one side is constant."""
    weight = where.astype(x.dtype)

    def centered_ranks(v):
        above, equal = v[:, None] > v[None, :], v[:, None] == v[None, :]
        below = above.astype(v.dtype) + equal.astype(v.dtype) / 2
        ranks = below @ weight
        return (ranks - jnp.sum(weight * ranks) / jnp.sum(weight)) * weight

    p, q = centered_ranks(x), centered_ranks(y)
    scale = jnp.sqrt(jnp.sum(p * p) * jnp.sum(q * q))
    return jnp.where(scale > 0, jnp.sum(p * q) / jnp.where(scale > 0, scale, 1), 0)


def clusters(labels, size, count):
    """Shares: clusters with units of both networks, and of these the ones with unequal numbers."""
    counts = curvature.cluster_composition(labels, size, count)
    mixed = (counts > 0).all(1)
    unequal = mixed & (counts[:, 0] != counts[:, 1])
    total = lambda which: jnp.sum(which.astype(jnp.float32))
    filled = jnp.maximum(total((counts > 0).any(1)), 1)
    return total(mixed) / filled, total(unequal) / jnp.maximum(total(mixed), 1)


def compare(config, key, a, b):
    """Two networks' activations ``[n, ..., s]`` of one layer."""
    of_null, of_clusters = jax.random.split(key)
    size, half = a.shape[-1], len(a) // 2
    moments = curvature.activation_moments(a, b)
    found = moments.correlations()
    live: dict[str, Any] = {"live_a": found.live_a, "live_b": found.live_b}
    semi = curvature.semi_match(found.between, **live)
    match = curvature.bipartite_match(found.between, **live)
    shuffled = jax.random.permutation(of_null, b.reshape(-1, size))
    null = curvature.activation_moments(a.reshape(-1, size), shuffled).correlations()
    information = curvature.mutual_information(a, b, num_bins=config.bins)
    by_information = curvature.semi_match(information, **live)

    def share(which):
        counted = found.live_a.astype(jnp.float32)
        return jnp.sum(which.astype(jnp.float32) * counted) / jnp.maximum(jnp.sum(counted), 1)

    def sparse(penalty):
        mapping = curvature.sparse_mapping(
            a[:half], b[:half], l1=penalty, num_steps=config.sparse_steps
        )
        sizeable = (jnp.abs(mapping.weights) > config.sizeable).astype(jnp.float32)
        # A unit that hardly ever fires in the first half may have any loss in the second.
        losses = jnp.where(found.live_b, mapping.losses(a[half:], b[half:]), jnp.nan)
        pairs = found.live_b[:, None] & found.live_a[None, :]
        return jnp.nanmedian(losses), jnp.mean(sizeable, where=pairs)

    affinity, count = curvature.joint_affinity(found), max(size // 3, 1)
    mixed, unequal = clusters(
        curvature.spectral_clusters(of_clusters, affinity, count), size, count
    )
    losses, shares = jax.lax.map(sparse, jnp.asarray(config.penalties))
    descending = lambda values: -jnp.sort(-values)
    return {
        "semi": semi.mean(),
        "match": match.mean(),
        "null": curvature.bipartite_match(null.between, **live).mean(),
        "close": share(semi.value >= config.close),
        "agreement": share(semi.index == by_information.index),
        "activity": rank_correlation(moments.mean_a, match.value, match.matched),
        "mixed": mixed,
        "unequal": unequal,
        "mixed_linkage": clusters(curvature.linkage_clusters(affinity, count), size, count)[0],
        "live": jnp.mean(found.live_a.astype(jnp.float32)),
        "sparse_loss": losses,
        "sparse_share": shares,
        "curve": jnp.stack([descending(semi.value), descending(match.value)]),
    }


def pairs(config, key, params, data):
    """All pairs of one seed's networks, by layer; and the networks' accuracies."""
    first, second = np.triu_indices(config.networks, 1)
    layers, logits = jax.lax.map(lambda p: forward(p, data["x_test"]), params)
    found = []
    for layer in layers:
        one = lambda at, layer=layer: compare(config, at[0], layer[at[1]], layer[at[2]])
        found.append(jax.lax.map(one, (jax.random.split(key, len(first)), first, second)))
    curves = {
        f"curve_{name}": of_layer.pop("curve").mean(0) for name, of_layer in zip(LAYERS, found)
    }
    metrics = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *found)
    right = (logits.argmax(-1) == data["y_test"][None]).astype(jnp.float32)
    return metrics | curves | {"accuracy": right.mean(1)}


def run(config, key, data, loop):
    """``[S, stages, pairs, layers, ...]``; curves ``[S, stages, (semi, match), units]``."""
    keys = jax.vmap(jax.random.split)(key)
    stages = train(config, keys[:, 0], data, loop)

    @functools.partial(jax.jit, static_argnums=0)
    def over_seeds(config, keys, params, data):
        return jax.lax.map(lambda one: pairs(config, one[0], one[1], data), (keys, params))

    found = [over_seeds(config, keys[:, 1], params, data) for params in stages]
    metrics = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *found)
    penalties = jnp.tile(jnp.asarray(config.penalties)[None], (len(key), 1))
    return metrics | {"penalty": penalties}


def plot(metrics):
    figure, axes = figures.panels(2, 2, width=4.2, height=3.0)
    for layer, name in enumerate(LAYERS):
        curves = metrics[f"curve_{name}"][:, 1]
        at = np.linspace(0, 1, curves.shape[-1])
        axes[0, 0].plot(at, curves[:, 0].mean(0), ":", color=f"C{layer}")
        axes[0, 0].plot(at, curves[:, 1].mean(0), color=f"C{layer}", label=name)
    axes[0, 0].set(xlabel="units, sorted (dead ones: 0)", ylabel="correlation with partner")
    axes[0, 0].set(title="One to one, and to the closest (dotted)")
    axes[0, 0].legend()

    places = np.arange(len(LAYERS))

    def bars(axes, rows):
        for bar, (values, label, colour) in enumerate(rows):
            x = places + (bar - (len(rows) - 1) / 2) * 0.8 / len(rows)
            height = values.mean((0, 1))
            axes.bar(x, height, 0.7 / len(rows), color=colour, alpha=0.75, label=label)
            axes.plot(x, values.mean(1).T, ".", color="#2b3138", ms=4)
        axes.set_xticks(places, LAYERS)
        axes.grid(axis="x", visible=False)
        axes.legend()

    match, colours = metrics["match"], figures.COLOURS
    null = (metrics["null"][:, 1], "samples shuffled", colours[5])
    stages = lambda values: [(values[:, i], STAGES[i], colours[i]) for i in range(2)]
    bars(axes[0, 1], [null, *stages(match)])
    axes[0, 1].set(ylabel="mean correlation", title="One-to-one matching", ylim=(0, 1))

    for layer, name in enumerate(LAYERS):
        losses = metrics["sparse_loss"][:, 1, :, layer].mean(1)
        figures.band(axes[1, 0], metrics["penalty"][0], losses, marker="o", ms=4, label=name)
    axes[1, 0].set(xscale="log", xlabel="L1 penalty", ylabel="held-out loss, median unit")
    axes[1, 0].set(title="Sparse prediction")
    axes[1, 0].legend()

    bars(axes[1, 1], stages(metrics["mixed"]))
    axes[1, 1].set(ylabel="share of clusters", title="Spectral clusters of both networks")
    axes[1, 1].set_ylim(0, 1.35)
    return figure


def trained(metrics, name):
    """A trained layer's measure, mean over pairs: ``[S, layers]``."""
    return metrics[name][:, 1].mean(1)


def gap(metrics):
    """How much the closest partner exceeds the one-to-one partner, ``[S, layers]``."""
    return trained(metrics, "semi") - trained(metrics, "match")


def inputs_needed(metrics):
    """Share of sizeable weights at the largest penalty that costs 10 % of loss, ``[S, layers]``."""
    losses, shares = trained(metrics, "sparse_loss"), trained(metrics, "sparse_share")
    allowed = losses <= 1.1 * losses.min(-1, keepdims=True)
    last = allowed.shape[-1] - 1 - np.argmax(allowed[..., ::-1], axis=-1)
    return np.take_along_axis(shares, last[..., None], axis=-1)[..., 0]


def claim(text, measure, holds, rule, threshold, verdict, reported="qualitative"):
    return Claim(
        text=text,
        paper="convergent-learning",
        reported=reported,
        measure=measure,
        holds=holds,
        rule=rule,
        threshold=threshold,
        verdict=verdict,
    )


CLAIMS = (
    claim(
        "trained networks' units match better than untrained ones', in every layer",
        lambda m: (m["match"][:, 1] - m["match"][:, 0]).mean(1).min(1),
        lambda value: value > 0,
        "every",
        "mean correlation one to one, trained - untrained > 0, least of the layers",
        "reproduced",
    ),
    claim(
        "some features are learned by both networks, others are not",
        lambda m: np.minimum(trained(m, "close"), 1 - trained(m, "close")).min(1),
        lambda value: value >= 0.05,
        "every",
        "both >= 5 % of the units: closest correlation >= 0.5, < 0.5; least of the layers",
        "reproduced",
    ),
    claim(
        "units that are more active match better",
        lambda m: trained(m, "activity").mean(1),
        lambda value: value > 0,
        "every",
        "rank correlation of mean activation and match > 0, mean over layers",
        "reproduced",
    ),
    claim(
        "correlation and mutual information find mostly the same partners",
        lambda m: trained(m, "agreement").mean(1),
        lambda value: value >= 0.5,
        "every",
        "share of units whose closest is the same >= 0.5, mean over layers",
        "reproduced",
    ),
    claim(
        "training makes clusters of both networks' units more frequent",
        lambda m: (m["mixed"][:, 1] - m["mixed"][:, 0]).mean((1, 2)),
        lambda value: value > 0,
        "mean",
        "share of spectral clusters, trained - untrained > 0, mean over layers",
        "reproduced",
        "no such control",
    ),
    claim(
        "some of these hold unequal numbers: one subspace, two bases",
        lambda m: trained(m, "unequal").mean(1),
        lambda value: value >= 0.1,
        "every",
        "share of the mixed clusters >= 0.1, mean over layers",
        "reproduced",
    ),
    claim(
        "lower layers match better one to one",
        lambda m: trained(m, "match")[:, 0] - trained(m, "match")[:, 2],
        lambda value: value > 0,
        "every",
        "mean correlation, conv1 - dense > 0",
        "not reproduced",
        "AlexNet, conv1 to conv5",
    ),
    claim(
        "and lose less by it: the closest partner's advantage grows with depth",
        lambda m: gap(m)[:, 2] - gap(m)[:, 0],
        lambda value: value > 0,
        "every",
        "closest - one-to-one correlation, dense - conv1 > 0",
        "not reproduced",
        "AlexNet, conv1 to conv5",
    ),
    claim(
        "lower layers are predicted from fewer of the other network's units",
        lambda m: inputs_needed(m)[:, 2] - inputs_needed(m)[:, 0],
        lambda value: value > 0,
        "every",
        "share of inputs at the largest penalty that costs 10 % of loss, dense - conv1 > 0",
        "not reproduced",
        "AlexNet: conv1 and conv2 bear strong sparsity",
    ),
)
