"""Coherence of per-example gradients: why the same network generalizes or memorizes.

Satrajit Chatterjee and Piotr Zielinski, "On the Generalization Mystery in Deep Learning", 2022,
arXiv:2203.10036; the interventions are from "Coherent Gradients" (ICLR 2020, arXiv:2002.10657:
winsorized descent) and "Weak and Strong Gradient Directions" (2020, arXiv:2003.07422: M3, RM3).

Claim: descent generalizes where the gradients of different examples agree. m-coherence, how many
examples profit from a step along one example's gradient, is far larger on real than on random
labels; examples with right labels, whose gradients agree, are learned first; and a descent that
ignores directions of few examples does not memorize wrong labels.

    python -m experiments run gradients/coherence                       # 1 to 2 minutes, two cores
    python -m experiments run gradients/coherence --data fashion_mnist  # 4 minutes, two cores
    python -m experiments run gradients/coherence --preset paper        # for a GPU; not run yet

Thresholds were fixed on a synthetic recipe (64 features, mean squared norm 14.4); sizes, steps
and the scale of the inputs are that recipe's. The scale matters: on digits with pixels of variance
1 (mean squared norm 64) SGD memorized .90 of the replaced labels, winsorized descent .34, and the
ratio of coherences was 3.0; with pixels as they are, in [0, 1], SGD memorized .19 and winsorized
descent .15, with a clean test accuracy of .83 and .82, and the ratio was 2.8. These two scales
were run first and the recipe's was settled on afterwards: on digits the claim about the ratio
holds at this scale only.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkin
from experiments import figures
from experiments.gradients.centered_images import data_spec as data_spec
from experiments.gradients.centered_images import load as load
from experiments.runner import Claim
from gradkin import gradients, optim

PAPERS = ("coherence-metric", "chatterjee:20", "zielinski:20")
DATA = ("digits", "mnist", "fashion_mnist")
VMAP_SEEDS = True
METHODS = ("SGD", "winsorized 2", "winsorized 8", "M3", "RM3")
BINS = np.linspace(-4, 8, 49, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Config:
    """``labels_``: real against random labels. ``noise_``: half of the labels drawn anew."""

    data: str = "digits"
    labels_hidden: tuple[int, ...] = (128, 128)
    labels_train: int = 1200
    labels_steps: int = 2000
    sample: int = 500  # training examples whose coherence is measured
    noise_hidden: tuple[int, ...] = (64, 64)
    noise_train: int = 1000
    noise_steps: int = 1000
    noise: float = 0.5
    batch: int = 100
    learning_rate: float = 0.1
    squared_norm: float = 14.4  # of an input, on average


PRESETS = {
    "smoke": Config(
        labels_hidden=(8,),
        labels_train=60,
        labels_steps=20,
        sample=30,
        noise_hidden=(8,),
        noise_train=60,
        noise_steps=20,
        batch=20,
    ),
    "quick": Config(),
    # Network, batch and learning rate of the ICLR paper, 100 epochs (all as remembered).
    "paper": Config(
        data="mnist",
        labels_hidden=(256, 256, 256),
        labels_train=60_000,
        labels_steps=60_000,
        sample=10_000,
        noise_hidden=(256, 256, 256),
        noise_train=60_000,
        noise_steps=60_000,
    ),
}


class State(NamedTuple):
    """A training run, with its own subset of the data and its own labels."""

    key: jax.Array
    params: Any
    opt_state: Any
    index: jax.Array  # [n] which examples
    labels: jax.Array  # [n] what they are trained on
    replaced: jax.Array  # [n] whether that was drawn anew, uniformly


def predict(params, x):
    *hidden, last = params.values()
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def loss(params, example):
    x, label = example
    return optax.softmax_cross_entropy_with_integer_labels(predict(params, x), label)


def accuracy(params, x, labels, where=None):
    right = jax.vmap(predict, (None, 0))(params, x).argmax(-1) == labels
    return jnp.mean(right.astype(jnp.float32), where=where)


def init(key, data, hidden, size, noise, optimizer):
    """He's initialisation; a share ``noise`` of the labels is replaced by uniform ones."""
    weights, subset, which, what, key = jax.random.split(key, 5)
    widths = (data["x"].shape[1], *hidden, 10)
    params = {
        f"layer{i}": {
            "w": jax.random.normal(k, widths[i : i + 2]) * np.float32(np.sqrt(2 / widths[i])),
            "b": jnp.zeros(widths[i + 1]),
        }
        for i, k in enumerate(jax.random.split(weights, len(hidden) + 1))
    }
    index = jax.random.permutation(subset, len(data["y"]))[:size]
    replaced = jax.random.uniform(which, (size,)) < noise
    labels = jnp.where(replaced, jax.random.randint(what, (size,), 0, 10), data["y"][index])
    return State(key, params, optimizer.init(params), index, labels, replaced)


def run(config, key, data, loop):
    key = jax.vmap(jax.random.split)(key)
    sgd = optax.sgd(config.learning_rate)
    multiple_of_3 = config.batch - config.batch % 3

    def train(key, part, noise, evaluate, name, times, reduce=lambda G: G.mean(), before=None):
        """Descend along ``before(reduce(G))`` of batches drawn with replacement; the history."""
        optimizer = sgd if before is None else optax.chain(before, sgd)
        hidden, size, steps = (
            getattr(config, f"{part}_{what}") for what in ("hidden", "train", "steps")
        )

        def step(state, data):
            key, draw = jax.random.split(state.key)
            chosen = jax.random.randint(draw, (config.batch,), 0, size)
            batch = data["x"][state.index[chosen]], state.labels[chosen]
            G = gradkin.per_example_grads(loss)(state.params, batch)
            params, opt_state = optim.update(optimizer, reduce(G), state.opt_state, state.params)
            return state._replace(key=key, params=params, opt_state=opt_state)

        start = jax.vmap(lambda k: init(k, data, hidden, size, noise, optimizer))(key)
        every = max(steps // times, 1)
        _, history = loop(step, start, steps, every=every, evaluate=evaluate, data=data, name=name)
        at = every * jnp.arange(steps // every + 1)
        return {f"{part}_step": jnp.broadcast_to(at, (len(key), len(at))), **history}

    def coherence(state, data):
        x = data["x"][state.index]
        sample = x[: config.sample], state.labels[: config.sample]
        stats = gradients.coherence_stats(gradkin.per_example_grads(loss)(state.params, sample))
        return {
            "loss": jnp.mean(jax.vmap(loss, (None, 0))(state.params, (x, state.labels))),
            "coherence": stats.m_coherence(),
            "layers": jnp.stack(list(stats.m_coherence(by="layer").values())),
            "train": accuracy(state.params, x, state.labels),
            "test": accuracy(state.params, data["x_test"], data["y_test"]),
        }

    def memory(state, data):
        x = data["x"][state.index]
        return {
            "wrong": accuracy(state.params, x, state.labels, where=state.replaced),
            "clean_test": accuracy(state.params, data["x_test"], data["y_test"]),
        }

    def memory_and_alignment(state, data):
        G = gradkin.per_example_grads(loss)(state.params, (data["x"][state.index], state.labels))
        along = gradients.example_alignment(G)
        groups = jnp.stack([~state.replaced, state.replaced]).astype(jnp.float32)
        inside = jnp.clip(along, BINS[0], BINS[-1] - 1e-3)
        counts = jax.vmap(lambda group: jnp.histogram(inside, BINS, weights=group)[0])(groups)
        sizes = jnp.sum(groups, axis=1)
        return memory(state, data) | {
            "alignment": groups @ along / sizes,
            "alignment_bins": counts / sizes[:, None],
        }

    real, random = (
        train(key[:, 0], "labels", noise, coherence, name, 200)
        for name, noise in (("real labels", 0.0), ("random labels", 1.0))
    )
    methods = (
        {},
        {"reduce": functools.partial(gradients.winsorized_mean, level=2)},
        {"reduce": functools.partial(gradients.winsorized_mean, level=8)},
        {"reduce": lambda G: gradients.median_of_means(G[:multiple_of_3], num_groups=3)},
        {"before": gradients.rolling_median(window=3)},
    )
    noisy = []
    for name, options in zip(METHODS, methods, strict=True):
        evaluate = memory if options else memory_and_alignment
        noisy.append(train(key[:, 1], "noise", config.noise, evaluate, name, 50, **options))
    measured = ("loss", "coherence", "layers", "train", "test")
    return {
        **{f"real_{name}": real[name] for name in measured},
        **{f"random_{name}": random[name] for name in measured},
        **{
            name: jnp.stack([history[name] for history in noisy], axis=1)
            for name in ("wrong", "clean_test")
        },
        "alignment": noisy[0]["alignment"],
        "alignment_bins": noisy[0]["alignment_bins"][:, 1],
        "labels_step": real["labels_step"],
        "noise_step": noisy[0]["noise_step"],
    }


def at_equal_loss(metrics, labels):
    """m-coherence when the training loss is first measured below 1.5, not at the start."""
    below = metrics[f"{labels}_loss"][:, 1:] < 1.5
    found = np.take_along_axis(
        metrics[f"{labels}_coherence"][:, 1:], below.argmax(1)[:, None], axis=1
    )[:, 0]
    return np.where(below.any(1), found, np.nan)


def final(metrics, measure, method):
    return metrics[measure][:, METHODS.index(method), -1]


def plot(metrics):
    figure, axes = figures.panels(2, 3)
    grey = {"color": "#5d6770", "linewidth": 0.8, "linestyle": ":"}
    steps = metrics["labels_step"][0, 1:]
    for labels, colour in zip(("real", "random"), figures.COLOURS):
        look = {"color": colour, "label": f"{labels} labels"}
        losses, values = (metrics[f"{labels}_{name}"][:, 1:] for name in ("loss", "coherence"))
        figures.band(axes[0, 0], steps, values, **look)
        figures.band(axes[0, 1], steps, losses, **look)
        first = (losses.mean(0) < 1.5).argmax()
        dot = {"color": colour, "markersize": 8, "markeredgecolor": "white", "zorder": 4}
        axes[0, 0].plot(steps[first], values[:, first].mean(), "o", **dot)
    for layer in range(metrics["real_layers"].shape[-1]):
        look = {"color": figures.COLOURS[2 + layer], "label": f"layer {layer + 1}"}
        figures.band(axes[0, 2], steps, metrics["real_layers"][:, 1:, layer], **look)
    axes[0, 0].axhline(1, **grey)
    axes[0, 1].axhline(1.5, **grey)
    axes[0, 0].set(ylabel="m-coherence", yscale="log", title="Coherence; dots: loss 1.5")
    axes[0, 1].set(ylabel="training loss", title="Both are learned")
    axes[0, 2].set(ylabel="m-coherence", yscale="log", title="By layer, real labels")
    for axis in axes[0]:
        axis.set(xscale="log", xlabel="step")
        axis.legend()

    steps = metrics["noise_step"][0]
    for method, name in enumerate(METHODS):
        figures.band(axes[1, 0], steps, metrics["wrong"][:, method], label=name)
        for bar, measure in enumerate(("wrong", "clean_test")):
            values, place = final(metrics, measure, name), method + 0.4 * bar - 0.2
            axes[1, 1].bar(place, values.mean(), 0.36, color=figures.COLOURS[1 - bar], alpha=0.75)
            axes[1, 1].plot(np.full(len(values), place), values, ".", color="#2b3138", ms=4)
    axes[1, 0].set(xlabel="step", ylabel="accuracy", title="On replaced training labels")
    axes[1, 0].legend()
    axes[1, 1].axhline(0.1, **grey)
    axes[1, 1].set_xticks(range(len(METHODS)), [m.replace("orized", ".") for m in METHODS])
    axes[1, 1].set(ylabel="accuracy", ylim=(0, 1.15), title="At the end; dotted: chance")
    axes[1, 1].legend(axes[1, 1].containers[:2], ("replaced labels", "clean test"), ncols=2)
    axes[1, 1].grid(axis="x", visible=False)

    for group, (name, colour) in enumerate(zip(("right", "replaced"), figures.COLOURS)):
        share = metrics["alignment_bins"][:, group].mean(0)
        axes[1, 2].bar(BINS[:-1], share, np.diff(BINS), 0, align="edge", color=colour, alpha=0.6)
        axes[1, 2].axvline(
            metrics["alignment"][:, 1, group].mean(), color=colour, label=f"{name} labels"
        )
    axes[1, 2].set(xlabel="alignment with the mean gradient", ylabel="share of examples")
    axes[1, 2].set(xlim=(-4, 6), title=f"SGD at step {steps[1]}; lines: means")
    axes[1, 2].margins(y=0.3)
    axes[1, 2].legend(loc="upper right", frameon=True, edgecolor="white")
    return figure


def memorizes(method, reported, verdict):
    return Claim(
        text=f"{method}: wrong labels are not memorized",
        paper="zielinski:20" if "M3" in method else "chatterjee:20",
        reported=reported,
        measure=lambda m: final(m, "wrong", method),
        holds=lambda fit: fit <= 0.2,
        rule="mean",
        threshold="accuracy on replaced training labels <= 0.2 (chance 0.1)",
        verdict=verdict,
    )


CLAIMS = (
    Claim(
        text="m-coherence is far larger on real than on random labels at equal training loss",
        paper="coherence-metric",
        reported="random labels much smaller than real",
        measure=lambda m: at_equal_loss(m, "real") / at_equal_loss(m, "random"),
        holds=lambda ratio: ratio >= 3,
        rule="every",
        threshold="real / random >= 3 when the loss first falls below 1.5",
        verdict="reproduced",
    ),
    Claim(
        text="m-coherence on random labels clearly exceeds that of orthogonal gradients, 1",
        paper="coherence-metric",
        reported='on ImageNet hundreds (2020), "moderately high" (2022)',
        measure=lambda m: np.median(m["random_coherence"][:, 1:], axis=1),
        holds=lambda value: value >= 2,
        rule="every",
        threshold="median over training >= 2",
        verdict="not reproduced",
    ),
    Claim(
        text="examples with right labels align with the mean gradient before wrong ones do",
        paper="coherence-metric",
        reported="qualitative",
        measure=lambda m: m["alignment"][:, 1, 0] - m["alignment"][:, 1, 1],
        holds=lambda gap: gap > 0.5,
        rule="every",
        threshold="alignment of right > of replaced labels + 0.5 after 1/50 of training",
        verdict="reproduced",
    ),
    memorizes("winsorized 8", "qualitative, MNIST", "not reproduced"),
    Claim(
        text="winsorized 8: generalizes better than SGD under label noise",
        paper="chatterjee:20",
        reported="qualitative, MNIST",
        measure=lambda m: final(m, "clean_test", "winsorized 8") - final(m, "clean_test", "SGD"),
        holds=lambda gain: gain >= 0.05,
        rule="mean",
        threshold="clean test accuracy >= SGD + 0.05",
        verdict="reproduced",
    ),
    memorizes("M3", "qualitative, ImageNet", "not reproduced"),
    memorizes("RM3", "qualitative, ImageNet", "not reproduced"),
)
