"""In-context learning of sine waves (von Oswald et al. 2023, arXiv:2212.07677).

A perceptron in front of one linear attention layer, trained on sine regressions, is compared with
the same perceptron trained through one exact step of gradient descent on its features. If the layer
learns to do the step, the two reach the same loss: gradient descent on deep features.

    python -m experiments run icl/nonlinear --preset quick --seeds 3      # half a minute
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import band, panels
from experiments.icl import training
from experiments.runner import Claim
from gradkin import icl

PAPERS = ("icl-gradient-descent",)
VMAP_SEEDS = True
GRID = tuple(float(x) for x in np.linspace(-5.0, 5.0, 61))


@dataclasses.dataclass(frozen=True)
class Config:
    """The notebook's settings at `paper`; `quick` takes fewer steps from larger weights."""

    num_context: int = 10
    width: int = 40
    steps: int = 20_000
    every: int = 500
    batch: int = 2048
    learning_rate: float = 1e-3
    descent_rate: float = 3e-4
    max_norm: float = 100.0
    variance: float = 0.002
    tied: bool = False
    test_tasks: int = 5000
    curve_tasks: int = 1000


PRESETS = {
    "smoke": Config(width=8, steps=4, every=2, batch=8, test_tasks=32, curve_tasks=8),
    "quick": Config(
        steps=5000,
        every=100,
        batch=64,
        learning_rate=2e-3,
        descent_rate=2e-3,
        max_norm=1.0,
        variance=0.5,
    ),  # fmt: skip
    "paper": Config(),
}


def load(config):
    """Everything is drawn while the experiment runs."""
    return {}


def attention_prediction(params, x, y, query):
    """The perceptron on the tokens, then one linear attention layer."""
    tokens = icl.features(params["features"], icl.constructed_tokens(x, y, query))
    return icl.predict(params["attention"], tokens)


def descent_prediction(params, x, y, query):
    """The perceptron on the tokens, then the layer that is one step of gradient descent."""
    tokens = icl.features(params["features"], icl.constructed_tokens(x, y, query))
    layer = icl.gd_attention(
        num_inputs=tokens.shape[1] - 1,
        num_outputs=1,
        num_context=x.shape[0],
        rate=jnp.exp(params["log_rate"]),
    )
    return icl.predict(layer, tokens)


def features_alone(params, x, y, query):
    """What the perceptron predicts before the layer."""
    tokens = icl.features(params["features"], icl.constructed_tokens(x, y, query))
    return -tokens[-1, -1:]


def loss_of(predict, params, tasks):
    predictor = functools.partial(predict, params)
    return training.half_mse(training.over_tasks(predictor)(tasks), tasks)


def train(config, name, predict, params, rate, keys, tasks, loop):
    optimizer = training.adam(rate, config.max_norm)
    state = jax.vmap(lambda *leaves: training.begin(leaves[0], optimizer, *leaves[1:]))(
        params, keys, tasks
    )
    step = training.make_step(
        functools.partial(loss_of, predict),
        lambda key: icl.sine_tasks(
            key, config.batch, num_context=config.num_context, tied=config.tied
        ),
        optimizer,
    )
    evaluate = lambda state, data: {
        "loss": loss_of(predict, state.params, state.extra),
        "before": loss_of(features_alone, state.params, state.extra),
    }
    state, history = loop(
        step, state, config.steps, every=config.every, evaluate=evaluate, name=name
    )
    return state.params, history


def analyse(config, attention, descent, tasks):
    """Test losses, alignment, and the curves that the two draw for one task."""
    first = functools.partial(attention_prediction, attention)
    second = functools.partial(descent_prediction, descent)
    task = jax.tree.map(lambda leaf: leaf[0], tasks)
    grid = jnp.array(GRID)[:, None]
    curve = lambda predictor: jax.vmap(lambda q: predictor(task.x, task.y, q)[0])(grid)
    return {
        "loss_attention": training.half_mse(training.over_tasks(first)(tasks), tasks),
        "loss_descent": training.half_mse(training.over_tasks(second)(tasks), tasks),
        "loss_zero": (tasks.target**2).mean() / 2,
        **icl.compare(first, second, tasks)._asdict(),
        "curve_attention": curve(first),
        "curve_before": curve(functools.partial(features_alone, attention)),
        "curve_descent": curve(second),
        "context_x": task.x[:, 0],
        "context_y": task.y[:, 0],
    }


def run(config, key, data, loop):
    """Train the two, compare them."""
    init, first, second, test = training.split_seeds(key, 4)
    tasks = training.per_seed(
        lambda k: icl.sine_tasks(
            k, config.test_tasks, num_context=config.num_context, tied=config.tied
        ),
        test,
    )
    few = jax.vmap(functools.partial(training.first, config.curve_tasks))(tasks)

    def draw(key):
        keys = jax.random.split(key)
        return {
            "features": icl.init_features(
                keys[0], num_inputs=2, width=config.width, variance=config.variance
            ),
            "attention": icl.init_attention(
                keys[1], width=config.width, variance=min(config.variance, 0.2)
            ),
        }

    params = training.per_seed(draw, init)
    log_rate = jnp.full(key.shape, math.log(0.5))
    attention, history = train(
        config, "attention", attention_prediction, params, config.learning_rate, first, few, loop
    )
    descent, other = train(
        config,
        "descent",
        descent_prediction,
        {"features": params["features"], "log_rate": log_rate},
        config.descent_rate,
        second,
        few,
        loop,
    )
    metrics = training.per_seed(functools.partial(analyse, config), attention, descent, tasks)
    metrics |= {f"history_attention_{name}": value for name, value in history.items()}
    metrics |= {f"history_descent_{name}": value for name, value in other.items()}
    return metrics | {"step": training.step_axis(config, key)}


def plot(metrics):
    """Losses while training; what each draws for a task, before the layer and after."""
    figure, axes = panels(1, 3, width=3.8, height=2.9)
    steps = metrics["step"][0]
    axes[0].set(title="Loss on fresh sines", xlabel="training step", yscale="log", ylim=(1e-3, 0.1))
    band(axes[0], steps, metrics["history_attention_loss"], label="perceptron + attention")
    band(axes[0], steps, metrics["history_descent_loss"], label="perceptron + GD", linestyle="--")
    axes[0].set_ylabel("½ mean squared error")
    axes[0].legend()
    for ax, seed in zip(axes[1:], (0, -1)):
        ax.plot(GRID, metrics["curve_before"][seed], color="0.6", label="before the layer")
        ax.plot(GRID, metrics["curve_attention"][seed], label="perceptron + attention")
        ax.plot(GRID, metrics["curve_descent"][seed], "--", label="perceptron + GD")
        ax.plot(metrics["context_x"][seed], metrics["context_y"][seed], "k.", label="context")
        ax.set(title=f"One task, seed {seed % len(metrics['step'])}", xlabel="x", ylabel="y")
    axes[1].legend(fontsize=7)
    return figure


claim = functools.partial(Claim, paper=PAPERS[0], rule="mean", verdict="reproduced")
CLAIMS = (
    claim(
        text="attention on learned features does as well as GD on learned features (loss ratio)",
        reported="curves coincide",
        measure=lambda m: m["loss_attention"] / m["loss_descent"],
        holds=lambda v: v <= 1.5,
        threshold="<= 1.5",
    ),
    claim(
        text="both learn the sines (larger of the two losses)",
        reported="below 0.01",
        measure=lambda m: np.maximum(m["loss_attention"], m["loss_descent"]),
        holds=lambda v: v < 0.01,
        threshold="< 0.01",
    ),
)
