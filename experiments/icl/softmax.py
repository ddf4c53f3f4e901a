"""Softmax attention and in-context gradient descent (von Oswald et al. 2023, arXiv:2212.07677).

One softmax self-attention layer on constructed tokens. One head cannot do a step of gradient
descent: its scores are positive. Two heads can subtract each other's constant term, and training
finds that: predictions and sensitivities come close to those of gradient descent. The explicit
two-head construction, whose limit is gradient descent on centred inputs, is compared too.

Most initial weights of the softmax layers stay on a plateau, so each seed trains from several and
keeps the best on search tasks. With three as with six per seed, one seed of three has none that
leaves it; the other two reach a loss of 0.22 and a cosine of 0.95. The means fail for that seed.

    python -m experiments run icl/softmax --preset quick --seeds 3      # one to two minutes
"""

import dataclasses
import functools

import jax
import numpy as np

from experiments.figures import band, panels
from experiments.icl import training
from experiments.runner import Claim
from gradkin import icl

PAPERS = ("icl-gradient-descent",)
VMAP_SEEDS = True
MODELS = {"linear": (1, "none"), "one_head": (1, "all"), "two_heads": (2, "all")}


@dataclasses.dataclass(frozen=True)
class Config:
    """The reference's settings for one layer, with smaller batches at `quick`."""

    num_inputs: int = 10
    num_context: int = 10
    steps: int = 5000
    every: int = 100
    batch: int = 2048
    restarts: int = 6
    learning_rate: float = 1e-3
    max_norm: float = 1e-3
    variance: float = 0.002
    search_tasks: int = 5000
    test_tasks: int = 10_000
    curve_tasks: int = 1000
    models: tuple[str, ...] = tuple(MODELS)


PRESETS = {
    "smoke": Config(
        steps=4,
        every=2,
        batch=8,
        restarts=2,
        search_tasks=16,
        test_tasks=32,
        curve_tasks=8,
        models=("two_heads",),
    ),
    "quick": Config(batch=256),
    "paper": Config(),
}


def load(config):
    """Everything is drawn while the experiment runs."""
    return {}


def draw(config, key, number):
    return icl.linear_tasks(
        key, number, num_context=config.num_context, num_inputs=config.num_inputs
    )


def loss_of(predictor, tasks):
    return training.half_mse(training.over_tasks(predictor)(tasks), tasks)


def prepare(config, key):
    """Search and test tasks, the best rates of GD and of the two-head construction."""
    tasks = draw(config, key, config.search_tasks + config.test_tasks)
    search = training.first(config.search_tasks, tasks)
    test = jax.tree.map(lambda leaf: leaf[config.search_tasks :], tasks)

    def best_rate(predictor):
        base = training.over_tasks(predictor)(search)
        return (base * search.target).sum() / (base**2).sum()

    gd_rate = best_rate(training.descent_predictor(1.0))
    built_rate = best_rate(training.attention_predictor(constructed(config, 1.0), softmax="all"))
    return search, test, {"rate": gd_rate, "constructed_rate": built_rate}


def constructed(config, rate):
    return icl.softmax_gd_attention(
        num_inputs=config.num_inputs,
        num_outputs=1,
        num_context=config.num_context,
        rate=rate,
        sharpness=0.1,
    )


def measure(predictor, rate, tasks):
    alike = icl.compare(predictor, training.descent_predictor(rate), tasks)
    return {"loss": loss_of(predictor, tasks), **alike._asdict()}


def train(config, name, keys, rate, curve_tasks, search, loop):
    """Train from several initial weights; return those with the smallest loss on search tasks."""
    heads, softmax = MODELS[name]
    optimizer = training.adam(config.learning_rate, config.max_norm)
    predictor = functools.partial(training.attention_predictor, softmax=softmax)
    draw_weights = jax.vmap(
        lambda key: icl.init_attention(
            key, width=config.num_inputs + 1, num_heads=heads, variance=config.variance
        )
    )
    weights = jax.vmap(lambda k: draw_weights(jax.random.split(k, config.restarts)))(keys)
    weights, history, _ = training.train_restarts(
        loop,
        lambda params, tasks: loss_of(predictor(params), tasks),
        lambda params, *extra: measure(predictor(params), *extra),
        lambda key: draw(config, key, config.batch),
        optimizer,
        weights,
        keys,
        (rate, curve_tasks),
        search,
        steps=config.steps,
        every=config.every,
        name=name,
    )
    return weights, history


def analyse(config, weights, rates, test):
    """Test losses and alignment of all, and one task's attention."""
    metrics = {"loss_gd": loss_of(training.descent_predictor(rates["rate"]), test)}
    predictors = {
        name: training.attention_predictor(weights[name], softmax=MODELS[name][1])
        for name in config.models
    }
    built = constructed(config, rates["constructed_rate"])
    predictors["constructed"] = training.attention_predictor(built, softmax="all")
    for name, predictor in predictors.items():
        metrics |= {f"{k}_{name}": v for k, v in measure(predictor, rates["rate"], test).items()}
    tokens = icl.constructed_tokens(test.x[0], test.y[0], test.query[0])
    for name in config.models:
        layer = jax.tree.map(lambda w: w[0], weights[name])
        metrics[f"scores_{name}"] = icl.attention_scores(
            layer, tokens, tokens[:-1], softmax=MODELS[name][1] == "all"
        )
    return metrics


def run(config, key, data, loop):
    """Train each kind of layer and compare it with gradient descent."""
    before, *models = training.split_seeds(key, 1 + len(config.models))
    search, test, rates = training.per_seed(functools.partial(prepare, config), before)
    curve_tasks = jax.tree.map(lambda leaf: leaf[:, : config.curve_tasks], test)
    metrics, weights = dict(rates), {}
    for name, keys in zip(config.models, models):
        weights[name], history = train(config, name, keys, rates["rate"], curve_tasks, search, loop)
        metrics |= {f"curve_{k}_{name}": v for k, v in history.items()}
    metrics |= training.per_seed(functools.partial(analyse, config), weights, rates, test)
    return metrics | {"step": training.step_axis(config, key)}


def plot(metrics):
    """Loss, alignment and one task's attention for each kind of layer."""
    figure, axes = panels(2, 3, width=3.6, height=2.8)
    steps = metrics["step"][0]
    titles = {"linear": "linear", "one_head": "softmax, 1 head", "two_heads": "softmax, 2 heads"}
    titles = {name: title for name, title in titles.items() if f"loss_{name}" in metrics}
    for name, title in titles.items():
        band(axes[0, 0], steps, metrics[f"curve_loss_{name}"], label=title)
        band(axes[0, 1], steps, metrics[f"curve_cosine_{name}"], label=title)
        band(axes[0, 2], steps, metrics[f"curve_sensitivity_difference_{name}"], label=title)
    axes[0, 0].axhline(metrics["loss_gd"].mean(), color="0.3", linestyle="--", label="one step")
    axes[0, 0].set(title="Loss on fresh tasks", ylabel="½ mean squared error")
    axes[0, 1].set(title="Cosine of sensitivities with GD", ylim=(-0.05, 1.05))
    axes[0, 2].set(title="Difference of sensitivities")
    for ax in axes[0]:
        ax.set_xlabel("training step")
        ax.legend()
    for ax, (name, title) in zip(axes[1], titles.items()):
        scores = np.concatenate(list(metrics[f"scores_{name}"][0]), axis=1)
        bound = np.abs(scores).max()
        image = ax.imshow(scores, cmap="RdBu_r", vmin=-bound, vmax=bound)
        ax.set(title=f"Attention, {title}", xlabel="context token", ylabel="reading token")
        ax.grid(False)
        figure.colorbar(image, ax=ax, shrink=0.8)
    return figure


claim = functools.partial(Claim, paper=PAPERS[0], rule="mean", verdict="reproduced")
CLAIMS = (
    claim(
        text="two softmax heads come close to the loss of one step of gradient descent",
        reported="slightly above GD",
        measure=lambda m: m["loss_two_heads"],
        holds=lambda v: 0.207 <= v <= 0.24,
        threshold="0.207 to 0.24",
        verdict="not reproduced",
    ),
    claim(
        text="two softmax heads align with gradient descent (cosine of sensitivities)",
        reported="close to 1",
        measure=lambda m: m["cosine_two_heads"],
        holds=lambda v: v >= 0.93,
        threshold=">= 0.93",
        verdict="not reproduced",
    ),
    claim(
        text="one softmax head is clearly worse than two (difference of the losses)",
        reported="qualitative",
        measure=lambda m: m["loss_one_head"] - m["loss_two_heads"],
        holds=lambda v: v > 0.02,
        threshold="> 0.02",
    ),
)
