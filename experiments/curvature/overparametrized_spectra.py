"""Spectra of over-parametrised networks: a bulk at zero, outliers made by the data, one flat basin.

Levent Sagun, Utku Evci, V. Ugur Guney, Yann Dauphin and Leon Bottou, "Empirical Analysis of the
Hessian of Over-Parametrized Neural Networks", 2017, arXiv:1706.04454.

Claim: at the end of training most eigenvalues of the Hessian are near zero and a few stand apart.
Those few belong to the data: more parameters only add zeros, more classes add large eigenvalues.
They are the Gauss-Newton matrix's, whose top space the Hessian shares. And large and small batches
do not end in different basins: from the end of large-batch training small batches go on along a
straight line without a barrier.

    python -m experiments run curvature/overparametrized_spectra                       # 2 minutes
    python -m experiments run curvature/overparametrized_spectra --data fashion_mnist  # 2 minutes
    python -m experiments run curvature/overparametrized_spectra --preset paper        # not run yet

Whole spectra, from Hessians written down: tanh networks on Gaussian clusters with orthogonal
means, by full-batch descent, and ReLU networks on images (pooled to at most 8 x 8). The paper gives
no widths, steps or rates. It counts outliers by eye; here an eigenvalue is near zero below 0.05 of
the largest. "As many outliers as classes" is reported (largest gap), not claimed: gaps were soft in
trials before this experiment.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.curvature import basins, two_layer
from experiments.runner import Claim
from gradkin import data as datasets

PAPERS = ("hessian-overparametrized",)
DATA = ("digits", "mnist", "fashion_mnist")
VMAP_SEEDS = True


@dataclasses.dataclass(frozen=True)
class Config:
    """Clusters: the second of `widths` and of `classes` is the middle of the sweeps."""

    data: str = "digits"
    widths: tuple[int, ...] = (8, 16, 32, 48)
    classes: tuple[int, ...] = (2, 3, 5, 8)
    separations: tuple[float, ...] = (1.0, 2.0, 4.0)  # norm of a cluster's mean; noise 1
    features: int = 12
    examples: int = 500
    steps: int = 2000
    learning_rate: float = 0.2
    real_widths: tuple[int, ...] = (4, 8)
    real_examples: int = 1000
    line_width: int = 32
    line_steps: int = 1500
    line_rate: float = 0.1
    batches: tuple[int, int] = (1024, 32)


PRESETS = {
    "smoke": Config(
        widths=(2, 3),
        classes=(2, 3),
        separations=(1.0,),
        features=4,
        examples=16,
        steps=4,
        real_widths=(2,),
        real_examples=24,
        line_width=3,
        line_steps=4,
        batches=(16, 4),
    ),
    "quick": Config(),
    "paper": Config(
        data="mnist",
        widths=(8, 16, 32, 64, 128),
        examples=1000,
        steps=20_000,
        real_widths=(8, 32, 64),
        line_width=256,
        line_steps=20_000,
    ),
}


class State(NamedTuple):
    """Descent on examples of its own (clusters, ``n`` x ``features``) or on those of the data."""

    key: jax.Array
    params: Any
    x: jax.Array | None = None
    y: jax.Array | None = None


def load(config):
    """Pooled pixels of mean 0, together of variance 1."""
    train, test = (datasets.load(config.data, split) for split in ("train", "test"))
    x, x_test = (two_layer.pooled(datasets.images(split)[..., 0]) for split in (train, test))
    mean = x.mean(0, keepdims=True)
    scale = (x - mean).std()
    return {
        "x": (x - mean) / scale,
        "y": train["label"],
        "x_test": (x_test - mean) / scale,
        "y_test": test["label"],
    }


def data_spec(config):
    features, train, test = (64, 1438, 359) if config.data == "digits" else (49, 60_000, 10_000)
    return {
        "x": jax.ShapeDtypeStruct((train, features), np.float32),
        "y": jax.ShapeDtypeStruct((train,), np.int32),
        "x_test": jax.ShapeDtypeStruct((test, features), np.float32),
        "y_test": jax.ShapeDtypeStruct((test,), np.int32),
    }


def clusters(config, key, width, classes, separation):
    """A network and its clusters."""
    weights, noise = jax.random.split(key)
    labels = jnp.arange(config.examples) % classes
    means = np.float32(separation) * jnp.eye(classes, config.features)
    x = means[labels] + jax.random.normal(noise, (config.examples, config.features))
    return State(key, two_layer.init(weights, (config.features, width, classes)), x, labels)


def nets_of(config):
    """Width, classes and separation of the networks on clusters; and the three sweeps."""
    middle, few = config.widths[1], config.classes[1]
    many, apart = config.classes[min(2, len(config.classes) - 1)], config.separations[-1]
    sweeps = {
        "width": [(width, few, apart) for width in config.widths],
        "classes": [(middle, classes, apart) for classes in config.classes],
        "separation": [(middle, many, separation) for separation in config.separations],
    }
    return list(dict.fromkeys(net for sweep in sweeps.values() for net in sweep)), sweeps


def num_params(config, net):
    return two_layer.num_params(config.features, *net[:2])


def run(config, key, data, loop):
    nets, sweeps = nets_of(config)
    sizes = (len(nets), len(config.real_widths), 4)
    keys = jax.vmap(lambda k: jax.random.split(k, sum(sizes)))(key).T
    ends = np.cumsum(sizes)
    found, states, seeds = {}, {}, key.shape[0]
    step = lambda state, _: state._replace(
        params=two_layer.descend(
            two_layer.smooth, config.learning_rate, state.params, state.x, state.y
        )
    )
    for net, k in zip(nets, keys):
        state = jax.jit(jax.vmap(lambda k, net=net: clusters(config, k, *net)))(k)
        state, _ = loop(step, state, config.steps, every=config.steps, name=f"clusters {net}")
        measure = functools.partial(two_layer.spectrum, two_layer.smooth, net[1])
        found[net] = jax.jit(jax.vmap(measure))(state.params, state.x, state.y, k)
        states[net] = state

    width, classes, _ = sweeps["width"][1]
    # So few examples that the bound N (k - 1) lies below the number of parameters.
    few = num_params(config, (width, classes)) // (3 * (classes - 1))
    state = states[sweeps["width"][1]]
    rank = jax.jit(jax.vmap(two_layer.rank))
    results = {
        "rank": rank(state.params, state.x[:, :few], state.y[:, :few]),
        "rank_bound": jnp.full(seeds, few * (classes - 1), jnp.float32),
        "least": jnp.stack([found[net]["least"] for net in nets], axis=1),
        "overlap": jnp.stack([found[net]["overlap"] for net in nets], axis=1),
        "random_overlap": jnp.tile(
            jnp.array([[net[1] / num_params(config, net) for net in nets]]), (seeds, 1)
        ),
        "residual": jnp.stack([found[net]["residual"] for net in nets], axis=1),
    }
    for name, sweep in sweeps.items():
        for measure in ("near_zero", "large", "top_share", "gap", "loss"):
            values = [found[net][measure] for net in sweep]
            results[f"{measure}_by_{name}"] = jnp.stack(values, axis=1)
        sizes = jnp.array([float(num_params(config, net)) for net in sweep])
        results[f"params_by_{name}"] = jnp.tile(sizes[None], (seeds, 1))
    for i, net in enumerate(sweeps["width"]):
        results[f"eigenvalues_width_{i}"] = found[net]["eigenvalues"]
    for i, net in enumerate(sweeps["classes"]):
        results[f"eigenvalues_classes_{i}"] = found[net]["eigenvalues"]
    return (
        results
        | images(config, keys[ends[0] : ends[1]], data, loop)
        | basins.lines(config, keys[ends[1] :], data, loop)
    )


def images(config, keys, data, loop):
    """Spectra of ReLU networks on images, full-batch descent."""
    few = {name: data[name][: config.real_examples] for name in ("x", "y")}
    step = lambda state, few: state._replace(
        params=two_layer.descend(
            two_layer.rectified, config.line_rate, state.params, few["x"], few["y"]
        )
    )
    found = []
    for width, key in zip(config.real_widths, keys):
        widths = (data["x"].shape[1], width, 10)
        state = jax.vmap(lambda k, widths=widths: State(k, two_layer.init(k, widths)))(key)
        state, _ = loop(
            step, state, config.steps, every=config.steps, data=few, name=f"images, {width} units"
        )
        measure = jax.vmap(
            functools.partial(two_layer.spectrum, two_layer.rectified, 10), (0, None, None, 0)
        )
        found.append(jax.jit(measure)(state.params, few["x"], few["y"], key))
    results = {
        f"real_{name}": jnp.stack([one[name] for one in found], axis=1)
        for name in found[0]
        if name != "eigenvalues"
    }
    return results | {f"real_eigenvalues_{i}": one["eigenvalues"] for i, one in enumerate(found)}


def least_step(values):
    """The smallest difference of neighbours: positive where the values grow."""
    return np.diff(values, axis=1).min(1)


def plot(metrics):
    figure, axes = figures.panels(2, 3, width=3.7)
    for axis, sweep in zip(axes[0], ("width", "classes")):
        sizes = metrics[f"params_by_{sweep}"][0]
        for i, (size, colour) in enumerate(zip(sizes, figures.COLOURS)):
            values = np.abs(metrics[f"eigenvalues_{sweep}_{i}"][:, :60])
            ranks = np.arange(1, values.shape[1] + 1)
            axis.plot(ranks, values.T, color=colour, linewidth=0.6, alpha=0.5)
            axis.plot(
                ranks, np.median(values, axis=0), color=colour, label=f"{int(size)} parameters"
            )
        axis.set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue")
        axis.legend(loc="lower left")
    axes[0, 0].set(title="Wider: the same large eigenvalues")
    axes[0, 1].set(title="More classes: more of them")
    for i in range(metrics["real_large"].shape[1]):
        values = metrics[f"real_eigenvalues_{i}"][0]
        size = np.abs(values).max()
        axes[0, 2].hist(
            values / size, np.linspace(-0.3, 1, 80), alpha=0.6, label=f"{len(values)} parameters"
        )
    axes[0, 2].set(yscale="log", xlabel="eigenvalue / largest", ylabel="how many")
    axes[0, 2].set(title="Images: a bulk at zero and a tail")
    axes[0, 2].legend()

    for sweep, colour in zip(("width", "classes"), figures.COLOURS):
        sizes = metrics[f"params_by_{sweep}"][0]
        values = metrics[f"large_by_{sweep}"]
        label = {"width": "wider", "classes": "more classes"}[sweep]
        figures.band(axes[1, 0], sizes, values, label=label, marker="o", ms=4, color=colour)
    axes[1, 0].set(xlabel="parameters", ylabel="eigenvalues > 0.05 of the largest")
    axes[1, 0].set(title="What adds large eigenvalues")
    axes[1, 0].legend()
    overlap = np.concatenate([metrics["overlap"], metrics["real_overlap"]], axis=1)
    residual = np.concatenate([metrics["residual"], metrics["real_residual"]], axis=1)
    number = metrics["overlap"].shape[1]
    for part, label in ((slice(number), "clusters"), (slice(number, None), "images")):
        axes[1, 1].plot(residual[:, part].ravel(), overlap[:, part].ravel(), "o", ms=4, label=label)
    axes[1, 1].axhline(0.85, color="#5d6770", linewidth=0.8, linestyle=":")
    axes[1, 1].set(xlabel="|H - G| / |H|", ylabel="overlap of top spaces", ylim=(0, 1.05))
    axes[1, 1].set(title="The top of H is that of G")
    axes[1, 1].legend(loc="lower left")
    for i, line in enumerate(basins.LINES):
        figures.band(axes[1, 2], basins.ALPHAS, metrics["line_losses"][:, i], label=f"to: {line}")
    axes[1, 2].set(xlabel="from the end of large batches", ylabel="training loss")
    axes[1, 2].set(title="Straight lines", yscale="log", ylim=(2e-3, 10))
    axes[1, 2].legend(loc="upper left")
    return figure


claim = functools.partial(Claim, paper="hessian-overparametrized", rule="mean")
CLAIMS = (
    claim(
        text="most eigenvalues are near zero at the end of training, on clusters and images",
        reported="qualitative",
        measure=lambda m: np.minimum(
            np.minimum(m["near_zero_by_width"].min(1), m["near_zero_by_classes"].min(1)),
            m["real_near_zero"].min(1),
        ),
        holds=lambda share: share > 0.5,
        threshold="> 0.5 below 0.05 of the largest, for each width and number of classes",
        verdict="reproduced",
    ),
    claim(
        text="small negative eigenvalues remain at the end of training",
        reported="qualitative",
        measure=lambda m: m["least"].mean(1),
        holds=lambda ratio: 0 < ratio < 0.25,
        threshold="-least / largest in (0, 0.25), mean over networks on clusters",
        verdict="reproduced",
    ),
    claim(
        text="a wider network has a larger share of eigenvalues near zero",
        reported="qualitative",
        measure=lambda m: least_step(m["near_zero_by_width"]),
        holds=lambda step: step > 0,
        threshold="share grows at every width",
        verdict="reproduced",
    ),
    claim(
        text="parameters add hardly any large eigenvalues",
        reported="as many outliers",
        measure=lambda m: m["large_by_width"][:, 2] / m["large_by_width"][:, 0],
        holds=lambda ratio: ratio < 2,
        threshold="eigenvalues above 0.05 of the largest: < 2 x with 4 x the parameters",
        verdict="reproduced",
    ),
    claim(
        text="classes add large eigenvalues, faster than they add parameters",
        reported="about as many outliers as classes",
        measure=lambda m: np.minimum(
            least_step(m["large_by_classes"]),
            m["large_by_classes"][:, -1] / m["large_by_classes"][:, 0]
            - m["params_by_classes"][:, -1] / m["params_by_classes"][:, 0],
        ),
        holds=lambda margin: margin > 0,
        threshold="count grows with each k, and from k = 2 to 8 by more than the parameters",
        verdict="reproduced",
    ),
    claim(
        text="the k largest eigenvalues hold much of the trace at k <= 5 separated classes",
        reported="qualitative",
        measure=lambda m: np.minimum(
            m["top_share_by_classes"][:, :3].min(1), m["top_share_by_separation"][:, -1]
        ),
        holds=lambda share: share > 0.2,
        threshold="> 0.2 of the trace for k = 2, 3, 5",
        verdict="reproduced",
    ),
    claim(
        text="the better separated the classes, the more of the trace the k largest hold",
        reported="qualitative",
        measure=lambda m: least_step(m["top_share_by_separation"]),
        holds=lambda step: step > 0,
        threshold="grows at each separation",
        verdict="reproduced",
    ),
    claim(
        text="the top k eigenvectors of the Hessian span those of the Gauss-Newton matrix",
        reported="qualitative",
        measure=lambda m: m["overlap"].min(1),
        holds=lambda overlap: overlap > 0.85,
        threshold="overlap > 0.85 in every network on clusters (random: about 0.02)",
        verdict="reproduced",
    ),
    claim(
        text="the same on images",
        reported="qualitative",
        measure=lambda m: m["real_overlap"].min(1),
        holds=lambda overlap: overlap > 0.85,
        threshold="overlap > 0.85 for k = 10",
        verdict="reproduced",
    ),
    claim(
        text="the Gauss-Newton matrix of N examples has at most N (k - 1) eigenvalues",
        reported="at least P - N (k - 1) zeros",
        measure=lambda m: m["rank"] - m["rank_bound"],
        holds=lambda excess: excess <= 0,
        threshold="above 1e-5 of the largest: <= N (k - 1)",
        verdict="reproduced",
    ),
    claim(
        text="no barrier between large-batch training and its small-batch continuation",
        reported="no barrier",
        measure=lambda m: basins.barrier(m, basins.LINES[0]),
        holds=lambda height: height <= 0.05,
        threshold="<= 0.05 of the loss at initialisation",
        verdict="reproduced",
    ),
    claim(
        text="control: there is a barrier between two seeds",
        reported="not in the paper",
        measure=lambda m: basins.barrier(m, basins.LINES[2]),
        holds=lambda height: height > 0.05,
        threshold="> 0.05 of the loss at initialisation",
        verdict="reproduced",
    ),
)
