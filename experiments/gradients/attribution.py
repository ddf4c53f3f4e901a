"""Attribution by gradients: TracIn, TRAK and influence functions, judged by models trained anew.

Sung Min Park, Kristian Georgiev, Andrew Ilyas, Guillaume Leclerc and Aleksander Madry, "TRAK:
Attributing Model Behavior at Scale", 2023, arXiv:2303.14186; Garima Pruthi et al., TracIn, 2020,
arXiv:2002.08484; Pang Wei Koh and Percy Liang, 2017, arXiv:1703.04730; Roger Grosse et al. (EK-FAC
influence), 2023, arXiv:2308.03296; Mansheej Paul et al. (GraNd, EL2N), 2021, arXiv:2107.07075.

Claim: regression in the features that projected gradients are (TRAK), over a few models, predicts
what models trained on other subsets of the data will say, and does so better than inner products
of gradients (TracIn); influence functions foretell leaving one out of a convex model exactly to
first order; with Kronecker factors they come closer to the exact solution than inner products do.

Small perceptrons are trained by full-batch descent on random halves of the training examples: some
to read scores off, others only to be predicted (the linear datamodeling score, LDS: the Spearman
correlation over halves, averaged over queries). Damping is ``1 / (rate * steps)``, what stopping
descent early amounts to.

    python -m experiments run gradients/attribution                       # 1 minute, two cores
    python -m experiments run gradients/attribution --data fashion_mnist  # 2 minutes, two cores
    python -m experiments run gradients/attribution --preset paper        # for a GPU; not run yet

At `quick`, 300 digits and 64 features, TRAK over eight models has an LDS of 0.48 and TracIn over
the same models 0.56; EK-FAC influence over all models has 0.55.

The paper preset has TRAK's numbers of subsets and models on MNIST, not its networks and data sets.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import gradkin
from experiments import figures
from experiments.gradients.centered_images import data_spec as data_spec
from experiments.gradients.centered_images import load as load
from experiments.gradients.left_out import correlation, logistic
from experiments.runner import Claim
from gradkin import curvature, gradients

PAPERS = ("park:23", "pruthi:20", "koh:17", "grosse:23", "paul:21")
DATA = ("digits", "mnist", "fashion_mnist")
METHODS = (
    "random",
    "inner product",
    "TracIn",
    "TracIn, all models",
    "TRAK",
    "TRAK, all models",
    "influence, Lanczos",
    "influence, CG",
    "influence, EK-FAC",
    "EK-FAC, all models",
)


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "digits"
    train: int = 300
    queries: int = 32
    hidden: int = 32
    steps: int = 200
    learning_rate: float = 0.5
    subsets: int = 48  # models that are predicted
    models: int = 8  # models that scores are read off
    checkpoints: int = 5
    size: int = 64  # of TRAK's features
    rank: int = 32  # eigenvectors
    removed: float = 0.2  # share of the examples left out to flip a prediction
    flipped: int = 12  # queries for which that is done
    squared_norm: float = 14.4  # of an input, on average


PRESETS = {
    "smoke": Config(
        train=40, queries=4, hidden=6, steps=10, subsets=4, models=2, size=8, rank=4, flipped=2
    ),
    "quick": Config(),
    "paper": Config(
        "mnist", 5000, 500, 256, 1000, subsets=500, models=100, size=1024, rank=128, flipped=100
    ),
}


def init(key, features, hidden):
    first, last = jax.random.split(key)
    return {
        "in": jax.random.normal(first, (features, hidden)) * np.float32(features**-0.5),
        "in_bias": jnp.zeros(hidden),
        "out": jax.random.normal(last, (hidden, 10)) * np.float32(hidden**-0.5),
        "out_bias": jnp.zeros(10),
    }


def predict(params, x):
    return jnp.tanh(x @ params["in"] + params["in_bias"]) @ params["out"] + params["out_bias"]


def loss(params, example):
    return curvature.cross_entropy(predict(params, example[0]), example[1])


def margin(params, example):
    return gradients.correct_class_margin(predict(params, example[0]), example[1])


def lowered(params, example):
    """What an example that raises the margin lowers."""
    return -margin(params, example)


def descend(params, batch, weights, rate):
    """One step on the weighted mean loss."""
    total = lambda p: weights @ jax.vmap(loss, (None, 0))(p, batch) / jnp.sum(weights)
    return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(total)(params))


def run(config, key, data, loop):
    keys = jax.random.split(key, 8)
    pick = lambda k, name, n: jax.random.permutation(k, len(data[name]))[:n]
    chosen, asked = pick(keys[0], "y", config.train), pick(keys[1], "y_test", config.queries)
    train = data["x"][chosen], data["y"][chosen]
    queries = data["x_test"][asked], data["y_test"][asked]
    features, models = train[0].shape[1], config.models

    masks = gradients.random_subsets(keys[2], models + config.subsets, config.train)
    weights = masks.astype(jnp.float32)
    start = jax.vmap(lambda k: init(k, features, config.hidden))(
        jax.random.split(keys[3], len(masks))
    )

    def step(params, data):
        train, weights = data
        return jax.vmap(lambda p, w: descend(p, train, w, config.learning_rate))(params, weights)

    def looked_at(params, data):
        return jax.tree.map(lambda x: x[:models], params)

    every = config.steps // config.checkpoints
    final, history = loop(
        step, start, config.steps, every=every, evaluate=looked_at, data=(train, weights)
    )
    margins = jax.vmap(lambda p: jax.vmap(margin, (None, 0))(p, queries))(final)
    scores = attribute(config, keys[4], history, train, queries)
    of_subsets = masks[models:], margins[models:]
    lds = [jnp.mean(gradients.linear_datamodeling_score(s, *of_subsets)) for s in scores]

    exact = scores[METHODS.index("influence, CG")]
    early = jax.tree.map(lambda x: x[1], history)
    logits = jax.vmap(jax.vmap(predict, (None, 0)), (0, None))(early, train[0])
    return {
        "lds": jnp.stack(lds),
        "like_exact": jnp.stack([correlation(s, exact) for s in scores]),
        "right": jnp.mean(margins > 0),
        "grand": gradients.grand(loss, early, train),
        "el2n": gradients.el2n(logits, train[1]),
        **without(config, init(keys[5], features, config.hidden), train, queries, scores),
        **logistic(config, keys[6], data),
    }


@functools.partial(jax.jit, static_argnums=0)
def without(config, start, train, queries, scores):
    """Margins without the examples that support a query most, or without as many random ones."""
    queries = jax.tree.map(lambda x: x[: config.flipped], queries)

    def retrained(weights):
        step = lambda p, _: (descend(p, train, weights, config.learning_rate), None)
        params, _ = jax.lax.scan(step, start, length=config.steps)
        return jax.vmap(margin, (None, 0))(params, queries)

    count = int(config.removed * config.train)
    removed = [
        gradients.brittleness(retrained, scores[METHODS.index(name)][:, : config.flipped], (count,))
        for name in ("TRAK, all models", "random")
    ]
    return {
        "margin_with_all": retrained(jnp.ones(config.train)),
        "margin_without": jnp.stack([values[0] for values in removed]),
    }


@functools.partial(jax.jit, static_argnums=0)
def attribute(config, key, history, train, queries):
    """Scores ``[train, queries]`` of every method; positive where an example raises the margin."""
    for_random, for_sketch, for_start, for_labels = jax.random.split(key, 4)
    rates = np.full(config.checkpoints, config.steps // config.checkpoints, np.float32)
    rates *= config.learning_rate
    damping = 1 / (config.learning_rate * config.steps)
    models = jax.tree.map(lambda x: x[-1], history)  # [models, ...]
    one = jax.tree.map(lambda x: x[0], models)
    # Checkpoints at the ends of the stretches of training they stand for.
    traced = jax.tree.map(lambda x: jnp.swapaxes(x[1:], 0, 1), history)
    trace = lambda params: gradients.tracin(
        loss, params, rates, train, queries, query_loss_fn=lowered
    )
    traces = jax.lax.map(trace, traced)

    def by_factors(params):
        G = gradkin.per_example_grads(loss)(params, train)
        Q = gradkin.per_example_grads(lowered)(params, queries)
        F = gradkin.fisher(predict, curvature.cross_entropy)(for_labels, params, train[0])
        return gradients.influence(G, Q, curvature.ekfac(F), damping=damping).scores

    ekfac = jax.lax.map(by_factors, models)
    sketch = gradients.RademacherSketch(for_sketch, config.size)
    first = jax.tree.map(lambda x: x[None], one)
    trak = [gradients.trak(margin, p, train, queries, sketch=sketch) for p in (first, models)]
    G = gradkin.per_example_grads(loss)(one, train)
    Q = gradkin.per_example_grads(lowered)(one, queries)
    C = gradkin.gauss_newton(predict, curvature.cross_entropy)(one, *train)
    solved = gradients.influence(G, Q, C, damping=damping, rtol=1e-3, max_steps=100)
    spanned = gradients.spectral_influence(for_start, G, Q, C, rank=config.rank)
    found = {
        "random": jax.random.normal(for_random, (config.train, config.queries)),
        "inner product": G @ Q.T,
        "TracIn": traces[0],
        "TracIn, all models": jnp.mean(traces, axis=0),
        "TRAK": trak[0],
        "TRAK, all models": trak[1],
        "influence, Lanczos": spanned,
        "influence, CG": solved.scores,
        "influence, EK-FAC": ekfac[0],
        "EK-FAC, all models": jnp.mean(ekfac, axis=0),
    }
    return [found[name] for name in METHODS]


def flips(metrics):
    """Share of right predictions turned wrong: by TRAK's choice, by a random one."""
    right = metrics["margin_with_all"][:, None] > 0
    turned = right & (metrics["margin_without"] < 0)
    return turned.sum(-1) / np.maximum(right.sum(-1), 1)


def pearson(a, b):
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b)])


def of(measure, name):
    return lambda metrics: metrics[measure][:, METHODS.index(name)]


def plot(metrics):
    figure, axes = figures.panels(1, 3, width=3.9, height=3.2)
    places = np.arange(len(METHODS))[::-1]
    for place, values in zip(places, metrics["lds"].T):
        axes[0].barh(place, values.mean(), color=figures.COLOURS[0], alpha=0.75)
        axes[0].plot(values, np.full(len(values), place), ".", color="#2b3138", ms=4)
    axes[0].set_yticks(places, METHODS)
    axes[0].set(xlabel="LDS", title="Models on other halves, foretold")
    axes[0].grid(axis="y", visible=False)
    axes[1].plot(metrics["left_out_predicted"][0], metrics["left_out_exact"][0], ".", ms=4)
    axes[1].axline((0, 0), slope=1, color="#5d6770", linewidth=0.8, linestyle=":")
    axes[1].set(xlabel="influence / n", ylabel="change of a query's loss", title="Leaving one out")
    axes[1].ticklabel_format(scilimits=(-2, 2))
    axes[2].plot(metrics["grand"][0], metrics["el2n"][0], ".", ms=4)
    axes[2].set(xlabel="GraNd", ylabel="EL2N", title="Early in training")
    return figure


CLAIMS = (
    Claim(
        text="TRAK over several models foretells models on other subsets better than TracIn",
        paper="park:23",
        reported="several times the LDS of TracIn, CIFAR-2 and -10 (as remembered)",
        measure=lambda m: of("lds", "TRAK, all models")(m) - of("lds", "TracIn, all models")(m),
        holds=lambda gain: gain > 0,
        rule="mean",
        threshold="LDS of TRAK > LDS of TracIn, both over all models",
        verdict="not reproduced",
    ),
    Claim(
        text="More models make TRAK better",
        paper="park:23",
        reported="LDS grows with the number of models",
        measure=lambda m: of("lds", "TRAK, all models")(m) - of("lds", "TRAK")(m),
        holds=lambda gain: gain > 0,
        rule="every",
        threshold="LDS over all models > LDS of one",
        verdict="reproduced",
    ),
    Claim(
        text="Without the examples of highest TRAK score predictions flip",
        paper="park:23",
        reported="qualitative",
        measure=lambda m: flips(m)[:, 0] - flips(m)[:, 1],
        holds=lambda more: more >= 0.2,
        rule="mean",
        threshold="share of right predictions flipped >= that of random removals + 0.2",
        verdict="reproduced",
    ),
    Claim(
        text="Influence functions foretell leaving one out of a logistic regression",
        paper="koh:17",
        reported="match closely (MNIST)",
        measure=lambda m: m["left_out"],
        holds=lambda r: r >= 0.95,
        rule="every",
        threshold="Pearson correlation >= 0.95",
        verdict="reproduced",
    ),
    Claim(
        text="EK-FAC influence is closer to the exact solution than inner products",
        paper="grosse:23",
        reported="qualitative",
        measure=lambda m: (
            of("like_exact", "influence, EK-FAC")(m) - of("like_exact", "inner product")(m)
        ),
        holds=lambda gain: gain > 0,
        rule="every",
        threshold="correlation with CG higher",
        verdict="reproduced",
    ),
    Claim(
        text="Tracing over checkpoints beats the last one's inner product",
        paper="pruthi:20",
        reported="qualitative",
        measure=lambda m: of("lds", "TracIn")(m) - of("lds", "inner product")(m),
        holds=lambda gain: gain > 0,
        rule="mean",
        threshold="LDS of TracIn > LDS of one inner product",
        verdict="reproduced",
    ),
    Claim(
        text="Early in training EL2N ranks examples as GraNd does",
        paper="paul:21",
        reported="qualitative",
        measure=lambda m: pearson(m["grand"], m["el2n"]),
        holds=lambda r: r >= 0.8,
        rule="mean",
        threshold="Pearson correlation >= 0.8",
        verdict="reproduced",
    ),
)
