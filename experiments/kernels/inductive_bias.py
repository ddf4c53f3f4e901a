"""How much inductive bias a task requires, and how much a class of models provides.

Akhilan Boopathy, William Yue, Jaedong Hwang, Abhiram Iyer and Ila Fiete, "Towards Exact Computation
of Inductive Bias", IJCAI 2024, arXiv:2406.15941.

Claim: the bias that a task requires is minus the log-probability that a random hypothesis which
fits the training data has a small enough test error. Sampled test losses follow a scaled
non-central chi-square, which is fitted and extrapolated. Tasks of more dimensions require more,
tasks with more data less; and networks provide more than other expressive classes.

    python -m experiments run kernels/inductive_bias --preset quick --seeds 3   # a minute or two
    python -m experiments run kernels/inductive_bias --data fashion_mnist
    python -m experiments run kernels/inductive_bias --preset paper             # not run yet

The first tasks are y = sum_i sin(2 x_i) / sqrt(d) with inputs uniform in [-1, 1]^d, of a variance
that d does not change, and the hypotheses a Gaussian process with bandwidth 1. There the test loss
is a generalized chi-square with known weights, so besides the paper's extrapolation from samples
the probability is computed from the weights. Images: networks trained on few of them from random
starts, as hypotheses; and a Gaussian process (bandwidth: the median distance) as the reference on
which the test errors of a linear model, a decision tree and the networks are read off.

Seen: the fitted law meets the quantiles of the samples, but far below them it is too heavy. The
bias of 14, 30 and 25 nats (6 and 8 dimensions; 6 dimensions with 20 points) is extrapolated to 11,
25 and 17, and the formula of the paper's code makes that 8, 20 and 13; the order of the tasks is
the same. After equally many steps narrow networks fit the training images less well (mean squared
error .038 against .005), so that their larger bias is not one of width alone. On Fashion-MNIST both
claims about networks fail: ridge regression has the smaller test error with 200 images.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import figures
from experiments.kernels import trees
from experiments.runner import Claim
from gradkin import data as datasets
from gradkin import kernels, optim

PAPERS = ("exact-inductive-bias",)
DATA = ("digits", "mnist", "fashion_mnist")
QUANTILES = (0.5, 0.1)
MODELS = ("linear", "tree", "network")


@dataclasses.dataclass(frozen=True)
class Config:
    """Of the synthetic tasks, then of the images."""

    data: str = "digits"
    dimensions: tuple[int, ...] = (2, 4, 6, 8)
    train_sizes: tuple[int, ...] = (20, 60, 120, 240)
    size: int = 60
    size_dimension: int = 6
    test: int = 40
    draws: int = 5
    samples: int = 4000
    error: float = 0.05
    images: int = 200
    test_images: int = 100
    networks: int = 40
    widths: tuple[int, ...] = (16, 128)
    steps: int = 400
    learning_rate: float = 1e-3


PRESETS = {
    "smoke": Config(
        dimensions=(2, 6),
        train_sizes=(60,),
        draws=2,
        samples=100,
        networks=4,
        widths=(4,),
        steps=4,
        images=30,
    ),
    "quick": Config(),
    "paper": Config(
        data="mnist",
        draws=10,
        samples=10_000,
        images=2000,
        test_images=1000,
        networks=200,
        widths=(16, 64, 256, 1024),
        steps=5000,
    ),
}


class State(NamedTuple):
    """Networks side by side."""

    params: Any
    opt_state: Any


def load(config):
    train, test = (datasets.load(config.data, split) for split in ("train", "test"))
    x, x_test = (datasets.images(split, flatten=True) for split in (train, test))
    return {"x": x, "y": train["label"], "x_test": x_test, "y_test": test["label"]}


def data_spec(config):
    features, train, test = (64, 1438, 359) if config.data == "digits" else (784, 60_000, 10_000)
    return {
        "x": jax.ShapeDtypeStruct((train, features), np.float32),
        "y": jax.ShapeDtypeStruct((train,), np.int32),
        "x_test": jax.ShapeDtypeStruct((test, features), np.float32),
        "y_test": jax.ShapeDtypeStruct((test,), np.int32),
    }


@functools.partial(jax.jit, static_argnames=("config", "size", "dimension"))
def draw(config, key, *, size, dimension):
    """Losses of samples for draws of the synthetic task, and the bias from the exact law."""

    def task(key, number):
        x = jax.random.uniform(key, (number, dimension), minval=-1)
        return x, jnp.sum(jnp.sin(2 * x), axis=1, keepdims=True) / dimension**0.5

    def one(key):
        train, test, sample = jax.random.split(key, 3)
        tasks = *task(train, size), *task(test, config.test)
        loss = kernels.interpolant_loss(kernels.Gaussian(1.0), *tasks)
        return loss.sample(sample, config.samples), loss.inductive_bias(config.error)

    return jax.vmap(one)(jax.random.split(key, config.draws))


@jax.jit
def extrapolate(losses, error):
    """Bias from the samples of every draw, and what the fitted law says at their quantiles."""

    def one(losses):
        law = kernels.fit_noncentral_chi_square(losses)
        return {
            "bias": law.neg_log_cdf(error),
            "reference": law.neg_log_cdf(error, method="reference"),
            "at_quantiles": law.neg_log_cdf(jnp.quantile(losses, jnp.array(QUANTILES))),
        }

    return jax.vmap(one)(losses)


def predict(params, x):
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def init(key, features, width):
    first, second = jax.random.split(key)
    return {
        "w1": jax.random.normal(first, (features, width)) * (2 / features) ** 0.5,
        "b1": jnp.zeros((1, width)),
        "w2": jax.random.normal(second, (width, 10)) * (1 / width) ** 0.5,
        "b2": jnp.zeros((1, 10)),
    }


def mse(prediction, y):
    return jnp.mean(jnp.square(prediction - y))


def ensemble(config, key, train, test, width, loop):
    """Test and training losses of networks that differ by their first weights, ``[networks]``."""
    optimizer = optax.adam(config.learning_rate)
    loss = lambda params, data: mse(predict(params, data["x"]), data["y"])

    def step(state, data):
        def one(params, opt_state):
            grads = jax.grad(loss)(params, data)
            return State(*optim.update(optimizer, grads, opt_state, params))

        return jax.vmap(one)(*state)

    keys = jax.random.split(key, config.networks)
    params = jax.vmap(lambda k: init(k, train[0].shape[1], width))(keys)
    data = {"x": train[0], "y": train[1]}
    start = State(params, jax.vmap(optimizer.init)(params))
    name = f"width {width}"
    state, _ = loop(step, start, config.steps, every=config.steps, data=data, name=name)
    return tuple(
        jax.vmap(loss, (0, None))(state.params, {"x": x, "y": y}) for x, y in (test, train)
    )


def networks(config, key, train, test, loop):
    """Bias required of networks by width, at an error none of them reaches."""
    fold = functools.partial(jax.random.fold_in, key)
    found = [ensemble(config, fold(w), train, test, w, loop) for w in config.widths]
    losses, train_losses = (jnp.stack(part) for part in zip(*found))
    error = 0.98 * jnp.min(losses)
    bias = lambda losses: kernels.required_inductive_bias(losses, error)
    again = jax.random.randint(key, (50, config.networks), 0, config.networks)
    # A resample of few losses may hold too few different ones to fit.
    resampled = jax.vmap(lambda row: jax.vmap(lambda rows: bias(row[rows]))(again))(losses)
    return {
        "network_losses": losses,
        "network_train_losses": train_losses,
        "network_error": error,
        "network_bias": jax.vmap(bias)(losses),
        "network_interval": jnp.nanquantile(resampled, jnp.array([0.05, 0.95]), axis=1).T,
    }


def ridge(x, y, x_test):
    """Predictions with the penalty of least leave-one-out error on the training images."""
    one = lambda a: jnp.pad(a, ((0, 0), (0, 1)), constant_values=1)
    found = []
    for penalty in (0.1, 1.0, 10.0, 100.0):
        S = kernels.linear_smoother(one(x), one(x), penalty=penalty)
        left_out = (y - S @ y) / (1 - jnp.diagonal(S))[:, None]
        S_test = kernels.linear_smoother(one(x), one(x_test), penalty=penalty)
        found.append((jnp.mean(jnp.square(left_out)), S_test @ y))
    errors, predictions = (jnp.stack(values) for values in zip(*found))
    return predictions[jnp.argmin(errors)]


def classes(key, train, test, network_losses):
    """Test errors of classes of models, read off on the curve of one reference space."""
    (x, y), (x_test, y_test) = train, test
    kernel = kernels.Gaussian(kernels.median_distance(x))
    loss = kernels.interpolant_loss(kernel, x, y, x_test, y_test)
    errors = jnp.stack(
        [
            mse(ridge(x, y, x_test), y_test),
            mse(trees.tree_predictions(key, x, y, x_test), y_test),
            jnp.mean(network_losses),
        ]
    )
    curve = loss.mean() * jnp.linspace(0.02, 1, 30)
    read = jax.vmap(loss.inductive_bias)
    return {
        "class_error": errors,
        "class_bias": read(errors),
        "curve_error": curve,
        "curve_bias": read(curve),
    }


def run(config, key, data, loop):
    by_dimension, by_size, pick, nets, classed = jax.random.split(key, 5)
    found = {}
    for name, key, settings in (
        ("dimension", by_dimension, [(config.size, d) for d in config.dimensions]),
        ("size", by_size, [(n, config.size_dimension) for n in config.train_sizes]),
    ):
        each = []
        for i, (n, d) in enumerate(settings):
            losses, exact = draw(config, jax.random.fold_in(key, i), size=n, dimension=d)
            each.append(extrapolate(losses, config.error) | {"exact": exact})
        for what in each[0]:
            found[f"{name}_{what}"] = jnp.stack([one[what] for one in each])
    train, test = (
        (data[f"x{suffix}"][rows], jax.nn.one_hot(data[f"y{suffix}"][rows], 10))
        for suffix, number, draw in (("", config.images, 0), ("_test", config.test_images, 1))
        for rows in [
            jax.random.permutation(jax.random.fold_in(pick, draw), len(data[f"x{suffix}"]))[:number]
        ]
    )
    found |= networks(config, nets, train, test, loop)
    found |= classes(classed, train, test, found["network_losses"][-1])
    return found | {
        "dimensions": jnp.array(config.dimensions),
        "sizes": jnp.array(config.train_sizes),
        "widths": jnp.array(config.widths),
    }


def plot(metrics):
    figure, axes = figures.panels(1, 4, width=3.2, height=2.8)
    for axis, name, place in (
        (axes[0], "dimension", metrics["dimensions"][0]),
        (axes[1], "size", metrics["sizes"][0]),
    ):
        for what, label, ls in (
            ("bias", "extrapolated", "-"),
            ("exact", "from the weights", "--"),
            ("reference", "paper's formula", ":"),
        ):
            figures.band(axis, place, metrics[f"{name}_{what}"].mean(2), label=label, ls=ls)
        axis.set(ylabel="nats")
        axis.legend()
    axes[0].set(xlabel="dimensions", title="A task of more dimensions")
    axes[1].set(xlabel="training points", title="A task with more data")
    for i, width in enumerate(metrics["widths"][0]):
        losses = metrics["network_losses"][:, i].ravel()
        axes[2].hist(
            losses,
            20,
            density=True,
            alpha=0.6,
            color=figures.COLOURS[i],
            label=f"width {width:.0f}",
        )
    axes[2].set(xlabel="test loss", ylabel="density", title="Networks as hypotheses")
    axes[2].legend()
    axes[3].plot(metrics["curve_error"].mean(0), metrics["curve_bias"].mean(0), color="#5d6770")
    for i, name in enumerate(MODELS):
        axes[3].plot(
            metrics["class_error"][:, i], metrics["class_bias"][:, i], "o", label=name, zorder=3
        )
    axes[3].set(xlabel="test error", ylabel="nats", title="Bias that classes provide")
    axes[3].set(xlim=(0, None), ylim=(0, 1.4 * metrics["class_bias"].max()))
    axes[3].legend()
    return figure


def steps_up(values):
    """The smallest step from one setting to the next of the mean over draws, ``[S]``."""
    return np.min(np.diff(values.mean(2), axis=1), axis=1)


claim = functools.partial(Claim, paper=PAPERS[0], rule="every", verdict="reproduced")
CLAIMS = (
    claim(
        text="tasks of more dimensions require more bias (smallest step, mean over draws)",
        reported="consistent with prior work",
        measure=lambda m: steps_up(m["dimension_bias"]),
        holds=lambda step: step > 0,
        threshold="> 0 nats",
    ),
    claim(
        text="the step from 6 to 8 dimensions is large (mean over draws)",
        reported="qualitative",
        measure=lambda m: np.diff(m["dimension_bias"].mean(2), axis=1)[:, -1],
        holds=lambda step: step > 5,
        threshold="> 5 nats",
    ),
    claim(
        text="tasks with more training data require less (smallest step, mean over draws)",
        reported="qualitative",
        measure=lambda m: steps_up(-m["size_bias"]),
        holds=lambda step: step > 0,
        threshold="> 0 nats",
    ),
    claim(
        text="the fitted law has the losses' quantiles .5 and .1 at 6 and 8 dimensions",
        reported="a scaled non-central chi-square",
        measure=lambda m: np.max(
            np.abs(m["dimension_at_quantiles"][:, 2:] / -np.log(QUANTILES) - 1), axis=(1, 2, 3)
        ),
        holds=lambda gap: gap <= 0.1,
        threshold="largest relative gap in nats <= 0.1",
    ),
    claim(
        text="extrapolated bias is that of the exact law at 6 and 8 dimensions (mean over draws)",
        reported="approximation error bounds",
        measure=lambda m: np.max(
            np.abs(m["dimension_bias"][:, 2:].mean(2) / m["dimension_exact"][:, 2:].mean(2) - 1),
            axis=1,
        ),
        holds=lambda gap: gap <= 0.1,
        threshold="largest relative gap <= 0.1",
        verdict="not reproduced",
    ),
    claim(
        text="wider networks require less further bias at the same error",
        reported="quantifies differences of architectures",
        measure=lambda m: m["network_bias"][:, 0] - m["network_bias"][:, -1],
        holds=lambda less: less > 0,
        threshold="narrow - wide > 0 nats",
    ),
    claim(
        text="networks provide more bias than linear models and decision trees",
        reported="massive amounts relative to other classes",
        measure=lambda m: m["class_bias"][:, 2] - m["class_bias"][:, :2].max(1),
        holds=lambda more: more > 0,
        threshold="network - best other > 0 nats",
    ),
)
