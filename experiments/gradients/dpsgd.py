"""Deep learning with differential privacy (Abadi et al. 2016, arXiv:1607.00133).

Claim: clipping each example's gradient and adding noise trains networks under a modest privacy
budget at a modest price in accuracy (MNIST: 97% at epsilon 8, 95% at 2, 90% at 0.5, delta 1e-5;
98.3% without privacy). Beside it: automatic clipping needs no threshold and does as well (Bu et al.
2023, arXiv:2206.07136), and a threshold that follows the median norm makes up for a bad start
(Andrew et al. 2021, arXiv:1905.03871). Batches are Poisson samples, padded; the noise for each
budget is found by the accountant of the sampler and clipping that run. Both networks (a multilayer
perceptron, a convolutional one with group normalization) share all settings. Digits has 1,438
training images where MNIST has 60,000, so its price of privacy is far higher.

    python -m experiments run gradients/dpsgd --preset quick --seeds 5       # 2 minutes
    python -m experiments run gradients/dpsgd --preset paper --data mnist    # a GPU

Learning rates are the best of (0.25, 0.5, 1, 2, 4) by training accuracy on seeds that are not among
the reported ones, for each budget and for none; the variants take that of their budget. The adapted
bound fails at that step size: it follows the growing norms upwards, and noise and steps with it.
Fashion-MNIST takes the rates found on digits: there the perceptron without privacy ends below the
private ones, so what privacy costs is not seen on it.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import figures
from experiments.runner import Claim
from gradkin import data as datasets
from gradkin import gradients, optim

PAPERS = ("abadi:16", "bu:23", "andrew:21")
DATA = ("digits", "fashion_mnist", "mnist")
VMAP_SEEDS = True
# The perceptron at the middle budget, clipped in other ways.
VARIANTS = ("automatic", "per layer", "small bound", "small bound, adapted")


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "digits"
    networks: tuple[str, ...] = ("mlp", "cnn")
    epsilons: tuple[float, ...] = (1.0, 3.0, 8.0)
    variants: tuple[str, ...] = VARIANTS
    delta: float = 1e-5
    hidden: int = 64
    batch: int = 128
    num_steps: int = 300
    every: int = 50
    clip_norm: float = 1.0
    small_bound: float = 0.03
    learning_rates: tuple[float, ...] = (0.5, 0.25, 0.5, 1.0)  # without privacy, then by budget
    accountant: str = "pld"


PRESETS = {
    "smoke": Config(
        epsilons=(3.0,),
        networks=("mlp",),
        variants=("automatic",),
        learning_rates=(1.0, 1.0),
        hidden=8,
        batch=16,
        num_steps=4,
        every=2,
        accountant="rdp",
    ),
    "quick": Config(),
    # The paper's lot, bound and width; its PCA to 60 dimensions is left out.
    "paper": Config(
        data="mnist",
        epsilons=(0.5, 2.0, 8.0),
        hidden=1000,
        batch=600,
        num_steps=10_000,
        every=500,
        clip_norm=4.0,
        learning_rates=(0.1, 0.1, 0.1, 0.1),
        accountant="rdp",
    ),
}


def load(config: Config) -> dict[str, Any]:
    train, test = (datasets.load(config.data, split) for split in ("train", "test"))
    return {
        "x": datasets.images(train),
        "y": np.asarray(train["label"], np.int32),
        "x_test": datasets.images(test),
        "y_test": np.asarray(test["label"], np.int32),
    }


def data_spec(config: Config) -> dict[str, Any]:
    side, train, test = (8, 1438, 359) if config.data == "digits" else (28, 60_000, 10_000)
    return {
        "x": jax.ShapeDtypeStruct((train, side, side, 1), np.float32),
        "y": jax.ShapeDtypeStruct((train,), np.int32),
        "x_test": jax.ShapeDtypeStruct((test, side, side, 1), np.float32),
        "y_test": jax.ShapeDtypeStruct((test,), np.int32),
    }


class Perceptron(nn.Module):
    """Two hidden layers."""

    hidden: int

    @nn.compact
    def __call__(self, x):
        h = jnp.reshape(x, (-1,))
        for _ in range(2):
            h = nn.relu(nn.Dense(self.hidden)(h))
        return nn.Dense(10)(h)


class Convolutional(nn.Module):
    """Two convolutions with group normalization, which does not couple examples."""

    @nn.compact
    def __call__(self, x):
        for features in (16, 32):
            x = nn.Conv(features, (3, 3), strides=2)(x)
            x = nn.relu(nn.GroupNorm(4)(x))
        return nn.Dense(10)(jnp.reshape(x, (-1,)))


@functools.cache
def noise_for(
    sampling: Any, num_steps: int, epsilon: float, delta: float, accountant: str
) -> tuple[float, float]:
    """The noise multiplier of a budget and what it is accounted as; none without a budget."""
    if math.isinf(epsilon):
        return 0.0, math.inf
    options = {"steps": num_steps, "delta": delta, "accountant": accountant}
    z = gradients.noise_multiplier(sampling, epsilon=epsilon, **options)
    spent = gradients.epsilon(gradients.GaussianMechanism(z, sampling), **options)
    return z, spent


def train(config: Config, key, data, loop, *, network, epsilon, rate, variant, name):
    """Accuracy over time on both splits, and the epsilon that was spent."""
    model = Perceptron(config.hidden) if network == "mlp" else Convolutional()
    apply: Any = model.apply
    num_examples = data["x"].shape[0]
    sampling = gradients.PoissonSampling(num_examples, min(1.0, config.batch / num_examples))
    z, spent = noise_for(sampling, config.num_steps, epsilon, config.delta, config.accountant)
    small = variant in ("small bound", "small bound, adapted")
    bound = config.small_bound if small else config.clip_norm
    quantile = gradients.QuantileClipping(count_noise=config.batch / 20)
    private = gradients.private_gradient(
        lambda params, x, y: optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y),
        # Without privacy nothing is clipped either.
        clip_norm=math.inf if math.isinf(epsilon) else bound,
        noise_multiplier=z,
        sampling=sampling,
        style="automatic" if variant == "automatic" else "rescale",
        groups="layer" if variant == "per layer" else "flat",
        quantile=quantile if variant == "small bound, adapted" else None,
    )
    optimizer = optax.sgd(rate)

    def init(key):
        key, start = jax.random.split(key)
        params = model.init(start, jnp.zeros(data["x"].shape[1:]))
        return params, optimizer.init(params), key, jnp.float32(private.clip_norm)

    def step(state, data):
        params, opt_state, key, clip_norm = state
        key, draw, noise = jax.random.split(key, 3)
        rows, mask = sampling.sample(draw)
        x, y = data["x"][rows], data["y"][rows]
        noised = private(noise, params, x, y, mask=mask, clip_norm=clip_norm)
        if noised.next_clip_norm is not None:
            clip_norm = noised.next_clip_norm
        params, opt_state = optim.update(optimizer, noised.value, opt_state, params)
        return params, opt_state, key, clip_norm

    def evaluate(state, data):
        def accuracy(x, y):
            logits = jax.vmap(apply, (None, 0))(state[0], x)
            return jnp.mean((jnp.argmax(logits, -1) == y).astype(jnp.float32))

        return {
            "test": accuracy(data["x_test"], data["y_test"]),
            "train": accuracy(data["x"], data["y"]),
        }

    _, history = loop(
        step,
        jax.vmap(init)(key),
        config.num_steps,
        every=config.every,
        evaluate=evaluate,
        data=data,
        name=name,
    )
    return history, spent


def run(config: Config, key, data, loop) -> dict[str, Any]:
    metrics = {}
    budgets = (math.inf, *config.epsilons)
    middle = config.epsilons[len(config.epsilons) // 2]
    runs = [
        (f"{network} {label(epsilon)}", network, epsilon, rate, "flat")
        for network in config.networks
        for epsilon, rate in zip(budgets, config.learning_rates, strict=True)
    ]
    rate = config.learning_rates[budgets.index(middle)]
    runs += [(variant, "mlp", middle, rate, variant) for variant in config.variants]
    for name, network, epsilon, rate, variant in runs:
        history, spent = train(
            config,
            key,
            data,
            loop,
            network=network,
            epsilon=epsilon,
            rate=rate,
            variant=variant,
            name=name,
        )
        metrics[name] = history["test"]
        metrics[f"{name}, train"] = history["train"]
        if math.isfinite(spent):
            metrics[f"{name}, over budget"] = jnp.full(key.shape, spent / epsilon - 1)
    return metrics


def label(epsilon: float) -> str:
    return "not private" if math.isinf(epsilon) else f"epsilon {epsilon:g}"


def plot(metrics):
    figure, axes = figures.panels(1, 3, width=3.3)
    networks = [n for n in ("mlp", "cnn") if f"{n} not private" in metrics]
    titles = {"mlp": "multilayer perceptron", "cnn": "convolutional network"}
    for ax, network in zip(axes, networks):
        names = [n for n in metrics if n.startswith(network) and "," not in n]
        for name in names:
            steps = np.linspace(0, 1, metrics[name].shape[1])
            figures.band(ax, steps, 100 * metrics[name], label=name.removeprefix(f"{network} "))
        ax.set(title=titles[network], xlabel="share of the steps", ylabel="test accuracy (%)")
        ax.set_ylim(0, 102)
        ax.legend(loc="lower right")
    ax = axes[2]
    others = [name for name in VARIANTS if name in metrics]
    middle = [n for n in metrics if n.startswith("mlp epsilon") and "," not in n]
    for name in [*middle[len(middle) // 2 :][:1], *others]:
        steps = np.linspace(0, 1, metrics[name].shape[1])
        text = "flat" if name.startswith("mlp") else name
        figures.band(ax, steps, 100 * metrics[name], label=text)
    ax.set(title="ways to clip, middle budget", xlabel="share of the steps")
    ax.set_ylim(0, 170)
    ax.set_yticks(range(0, 101, 20))
    ax.legend(loc="upper left")
    return figure


def final(metrics, name):
    return metrics[name][:, -1]


def points(first, second):
    """Percentage points of test accuracy by which the first run is better at the end."""
    return lambda metrics: 100 * (final(metrics, first) - final(metrics, second))


CLAIMS = (
    Claim(
        text="No run is accounted above its budget.",
        paper="abadi:16",
        reported="every model at most its epsilon, delta 1e-5",
        measure=lambda m: np.max([v for k, v in m.items() if k.endswith("over budget")], axis=0),
        holds=lambda excess: excess <= 0,
        rule="every",
        threshold="worst epsilon / budget - 1 <= 0",
        verdict="reproduced",
    ),
    Claim(
        text="A larger budget is a more accurate perceptron: epsilon 8 beats epsilon 1.",
        paper="abadi:16",
        reported="97% at epsilon 8, 90% at 0.5 (MNIST)",
        measure=points("mlp epsilon 8", "mlp epsilon 1"),
        holds=lambda difference: difference > 0,
        rule="every",
        threshold="> 0 points",
        verdict="reproduced",
    ),
    Claim(
        text="Epsilon 8 costs a perceptron few points of accuracy, at a fortieth of the data.",
        paper="abadi:16",
        reported="1.3 points (MNIST, 60,000 examples)",
        measure=points("mlp not private", "mlp epsilon 8"),
        holds=lambda gap: gap <= 5,
        rule="mean",
        threshold="<= 5 points",
        verdict="reproduced",
    ),
    Claim(
        text="The convolutional network pays as little at epsilon 8.",
        paper="abadi:16",
        reported="about 7 points (CIFAR-10, 50,000 examples)",
        measure=points("cnn not private", "cnn epsilon 8"),
        holds=lambda gap: gap <= 10,
        rule="mean",
        threshold="<= 10 points",
        verdict="reproduced",
    ),
    Claim(
        text="Automatic clipping, without a threshold to tune, is as good as clipping at 1.",
        paper="bu:23",
        reported="matches or exceeds Abadi's clipping",
        measure=points("automatic", "mlp epsilon 3"),
        holds=lambda difference: difference >= -1,
        rule="mean",
        threshold=">= -1 point",
        verdict="reproduced",
    ),
    Claim(
        text="From a bound thirty times too small, adapting it to the median norm recovers what "
        "keeping it loses, to within a point of the bound of 1.",
        paper="andrew:21",
        reported="median clipping is on a par with the best fixed bound",
        measure=points("small bound, adapted", "mlp epsilon 3"),
        holds=lambda difference: difference >= -1,
        rule="mean",
        threshold=">= -1 point",
        verdict="not reproduced",
    ),
)
