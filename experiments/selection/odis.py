"""ODiS: the best documents by each of several decorrelated qualities, not by their mean.

Hongyi He, Xiao Liu, Zhenghao Lin, Mingni Tang et al., "Learning from the Best, Differently: A
Diversity-Driven Rethinking on Data Selection", 2025, arXiv:2510.18909.

Claim: scores of the quality of documents are correlated, so that the top of one of them, or of
their mean, is narrow: better documents by the score are not a better corpus. Principal axes of the
scores are not correlated; the tops of several axes hardly overlap, and together train a better
model.

    python -m experiments run selection/odis                   # 1 minute, one core
    python -m experiments run selection/odis --preset paper    # larger; not run yet

The paper scores texts by a language model and trains one on what is selected. Two stand-ins.
Corpus: documents of 20 topics, each with six scores that share the document's fluency and its
topic's effect; a tenth is selected and a softmax regression on it tells topics. Quality means
nothing to this task; in a second arm labels are wrong where fluency is low, so that it does.
Digits: the scores of an image are the margins of its label under six softmax regressions, each
fitted to 100 trusted digits of which it sees half of the pixels; a second arm has random labels
for 30%. Sets for the overlap have the paper's size, an equal share of the tenth for each axis;
those that train use all of it. One arm sees scores of a tenth of the corpus and predicts the
others from features by ridge regression. A seed is the mean over four corpora and over ten draws
of digits; every corpus has its own topics and effects.

Seen: in the mean over corpora, tops of axes overlap as independent sets do; in one of twenty, two
of them by 15%: no correlation is not independence. More axes are more diverse and less good: all
but the first are contrasts of scores, which say little of whether a label is right (60% are on six
axes, 87% at the top of the mean, 53% at random). With wrong labels, random is better than six axes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import figures
from experiments.runner import Claim
from experiments.runner.claims import Rule
from gradkin import data as datasets
from gradkin import optim, selection

PAPERS = ("odis",)
SCORES = 6
AXES = (2, 3, SCORES)
ARMS = (
    "random",
    "top of the mean",
    "top of one score",
    *(f"raw, {q} scores" for q in AXES),
    *(f"ODiS, {q} axes" for q in AXES),
    "ODiS, both ends",
    "ODiS, predicted",
)


@dataclasses.dataclass(frozen=True)
class Config:
    corpora: int = 4
    documents: int = 10_000
    topics: int = 20
    dimension: int = 32  # of what the model sees
    separation: float = 0.6  # standard deviation of topics' means, of documents' around them 1
    doubt: float = 2.0  # a label is wrong with probability sigmoid(-doubt * fluency)
    share: float = 0.1  # that is selected
    sample: int = 1000  # documents whose scores the regressors are fitted to
    test: int = 2000
    trusted: int = 100  # digits
    wrong: float = 0.3  # share of digits with a random label
    trials: int = 10  # draws of digits
    steps: int = 150  # of training each model
    learning_rate: float = 0.1
    weight_decay: float = 1e-3


PRESETS = {
    "smoke": Config(corpora=2, documents=200, topics=4, sample=60, test=40, trials=2, steps=3),
    "quick": Config(),
    "paper": Config(documents=100_000, sample=10_000, trials=100, steps=1000),
}


def load(config):
    found = {}
    for split in ("train", "test"):
        digits = datasets.load("digits", split)
        found[split] = datasets.images(digits, flatten=True)
        found[f"{split}_label"] = np.asarray(digits["label"], np.int32)
    return found


def selected(drawn, scores, budget, predicted=None):
    """Documents that each arm selects, ``[15 (16), budget]``, six arms being single scores.

    And overlaps of sets of an equal share, means over pairs: ``[raw or decorrelated, 2, 3 or 6]``.
    """
    axes = selection.decorrelate_scores(scores)
    along = selection.project_scores(axes, scores)
    means = jnp.mean((scores - axes.mean[None]) / axes.scale[None], axis=1)
    single = jnp.concatenate([drawn[None], means[None], scores.T])
    # Copies of an axis change nothing: one program does for every number of axes.
    padded = lambda t, q: t[:, np.array([*range(q), *[0] * (SCORES - q)])]
    several = [padded(t, q) for t in (scores, along) for q in AXES]
    several = jnp.stack(several + ([] if predicted is None else [predicted]))
    best = jax.vmap(lambda t: selection.select_by_axes(t, budget).chosen)(several)
    both_ends = selection.select_by_axes(along, budget, both_ends=range(1, SCORES)).chosen
    chosen = jnp.concatenate([best[:6], both_ends[None], best[6:]])
    rows = jnp.argsort(~chosen, axis=1, stable=True)[:, :budget]
    rows = jnp.concatenate([jax.lax.top_k(single, budget)[1], rows.astype(np.int32)])

    def overlap(q):
        equal = lambda t: selection.select_by_axes(t[:, :q], budget, fill=False).sets
        sets = jax.vmap(equal)(jnp.stack([scores, along]))
        pairs = jax.vmap(selection.overlap_matrix)(sets)[:, *np.triu_indices(q, 1)]
        return jnp.mean(pairs, axis=1)

    return rows, jnp.stack([overlap(q) for q in AXES], axis=1)


def by_arm(values):
    """The six single scores as one arm."""
    single = jnp.mean(values[2 : 2 + SCORES], axis=0, keepdims=True)
    return jnp.concatenate([values[:2], single, values[2 + SCORES :]])


def fit(config, num_classes, x, y):
    """Softmax regression, full batch."""
    optimizer = optax.adam(config.learning_rate)
    params = {"w": jnp.zeros((x.shape[1], num_classes)), "b": jnp.zeros(num_classes)}

    def step(state, _):
        params, opt_state = state

        def loss(params):
            losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
            return jnp.mean(losses) + config.weight_decay * jnp.sum(params["w"] ** 2)

        return optim.update(optimizer, jax.grad(loss)(params), opt_state, params), None

    start = (params, optimizer.init(params))
    return jax.lax.scan(step, start, length=config.steps)[0][0]


def logits(params, x):
    return x @ params["w"] + params["b"][None]


def accuracy(params, x, y):
    return jnp.mean(jnp.argmax(logits(params, x), axis=1) == y)


def corpus(config, key):
    # Few draws, because each takes long to compile.
    for_topics, for_chance, for_noise = jax.random.split(key, 3)
    size, scale = config.documents, [config.separation] * config.dimension + [1] * (1 + SCORES)
    of_topics = jax.random.normal(for_topics, (config.topics, len(scale))) * jnp.array(scale)[None]
    chance = jax.random.uniform(for_chance, (size + config.test, 4))
    noise = jax.random.normal(for_noise, (size + config.test, config.dimension + 2 + SCORES))
    topics, other = (chance[:, :2] * config.topics).astype(np.int32).T
    x = (of_topics[topics] + noise[:, :-1])[:, : config.dimension]
    x, test, topic, test_topic = x[:size], x[size:], topics[:size], topics[size:]
    fluency, roughly, noise = noise[:size, -1], noise[:size, -2], noise[:size, -SCORES - 2 : -2]
    effect, own = of_topics[topic, -1:], of_topics[topic, -SCORES - 1 : -1]
    scores = 0.8 * (fluency[:, None] + effect) + 0.5 * own + 0.5 * noise
    wrong = chance[:size, 2] < jax.nn.sigmoid(-config.doubt * fluency)
    noisy = jnp.where(wrong, other[:size], topic)

    # An encoder that sees the text, and roughly how fluent it is.
    seen = (fluency + 0.5 * roughly)[:, None]
    features = jnp.concatenate([x, seen], axis=1)
    sample = slice(config.sample)
    axes = selection.decorrelate_scores(scores[sample])
    targets = selection.project_scores(axes, scores[sample])
    scorers = selection.fit_scorers(features[sample], targets)
    predicted = selection.predict_scores(scorers, features)

    budget = round(config.share * size)
    chosen, overlaps = selected(chance[:size, 3], scores, budget, predicted)
    tenths = jnp.argsort(-jnp.mean(scores, axis=1)).reshape(-1, budget)

    def trained(labels, rows):
        return accuracy(fit(config, config.topics, x[rows], labels[rows]), test, test_topic)

    rows = jnp.concatenate([chosen, tenths])
    of = lambda labels: jax.lax.map(functools.partial(trained, labels), rows)
    found = jax.lax.map(of, jnp.stack([topic, noisy]))
    shares = jax.vmap(lambda rows: jnp.bincount(topic[rows], length=config.topics))(chosen) / budget
    return {
        "accuracy": jax.vmap(by_arm)(found[:, : len(chosen)]),
        "tenths": found[:, len(chosen) :],
        "entropy": by_arm(jnp.sum(jax.scipy.special.entr(shares), axis=1)),
        "right": by_arm(jnp.mean((noisy == topic)[chosen], axis=1)),
        "overlap": overlaps,
    }


@functools.partial(jax.jit, static_argnums=0)
def on_corpora(config, key):
    """Means over corpora, but all of their overlaps."""
    found = jax.lax.map(functools.partial(corpus, config), jax.random.split(key, config.corpora))
    return {k: v if k == "overlap" else jnp.mean(v, axis=0) for k, v in found.items()}


def trial(config, data, wrong, key):
    for_chance, for_probes = jax.random.split(key)
    chance = jax.random.uniform(for_chance, (len(data["train"]), 4))
    shuffled = jnp.argsort(chance[:, 0])
    trusted, pool = shuffled[: config.trusted], shuffled[config.trusted :]
    x, y = data["train"][pool], data["train_label"][pool]
    other = (10 * chance[pool, 1]).astype(np.int32)
    labels = jnp.where(chance[pool, 2] < wrong, other, y)

    def margin(chance):
        half = jnp.argsort(chance) < x.shape[1] // 2
        seen = lambda x: jnp.where(half[None], x, 0)
        probe = fit(config, 10, seen(data["train"][trusted]), data["train_label"][trusted])
        found = logits(probe, seen(x))
        is_label = labels[:, None] == jnp.arange(10)[None]
        right = jnp.sum(jnp.where(is_label, found, 0), axis=1)
        return right - jnp.max(jnp.where(is_label, -jnp.inf, found), axis=1)

    scores = jax.vmap(margin)(jax.random.uniform(for_probes, (SCORES, x.shape[1]))).T
    chosen, overlaps = selected(chance[pool, 3], scores, round(config.share * len(pool)))
    models = jax.vmap(lambda rows: fit(config, 10, x[rows], labels[rows]))(chosen)
    found = jax.vmap(lambda model: accuracy(model, data["test"], data["test_label"]))(models)
    return {"accuracy": by_arm(found), "overlap": overlaps}


@functools.partial(jax.jit, static_argnums=0)
def on_digits(config, data, key):
    """Means over draws, right labels first; of overlaps the larger one."""
    keys = jax.random.split(key, config.trials)
    one = lambda wrong: jax.lax.map(functools.partial(trial, config, data, wrong), keys)
    found = jax.lax.map(one, jnp.array([0.0, config.wrong]))
    found = {f"digits_{name}": jnp.mean(value, axis=1) for name, value in found.items()}
    return found | {"digits_overlap": jnp.max(found["digits_overlap"], axis=0)}


def run(config, key, data, loop):
    for_corpora, for_digits = jax.random.split(key)
    return on_corpora(config, for_corpora) | on_digits(config, data, for_digits)


def plot(metrics):
    figure, axes = figures.panels(2, 2, width=5.2, height=3.1)
    axis = axes[0, 0]
    groups = [("overlap", i, f"corpus, {q}") for i, q in enumerate(AXES)]
    groups.append(("digits_overlap", 2, f"digits, {SCORES}"))
    at = np.arange(len(groups))
    for kind, (label, shift) in enumerate((("raw scores", -0.19), ("ODiS", 0.19))):
        heights = [metrics[name][..., kind, i].mean() for name, i, _ in groups]
        options = {"color": figures.COLOURS[1 - kind], "alpha": 0.75, "label": label}
        axis.bar(at + shift, heights, 0.36, **options)
    share = 0.1 / np.array([AXES[i] for _, i, _ in groups])
    axis.hlines(share / (2 - share), at - 0.4, at + 0.4, color="#2b3138", label="independent sets")
    axis.set_xticks(at, [label for *_, label in groups])
    axis.set(ylabel="Jaccard overlap", yscale="log", ylim=(2e-3, 1))
    axis.set_title("Tops of scores and of axes")
    axis.grid(axis="x", visible=False)
    axis.legend(loc="upper right", ncols=3, fontsize=7.5)
    for axis, name, title, arms in (
        (axes[0, 1], "accuracy", "Corpus", ("right labels", "doubtful labels")),
        (axes[1, 0], "digits_accuracy", "Digits", ("right labels", "30% wrong")),
    ):
        values = metrics[name]
        places = np.arange(values.shape[2])[::-1]
        for arm, (label, shift) in enumerate(zip(arms, (0.19, -0.19))):
            colour = figures.COLOURS[2 * arm]
            heights = values[:, arm].mean(0)
            axis.barh(places + shift, heights, 0.36, color=colour, alpha=0.75, label=label)
            at = np.tile(places + shift, (len(values), 1))
            axis.plot(values[:, arm], at, ".", color="#2b3138", markersize=3)
        axis.set_yticks(places, ARMS[: len(places)])
        axis.set(xlim=(0, 1.28), xlabel="test accuracy", title=f"{title}, trained on a tenth")
        axis.set_xticks(np.linspace(0, 1, 6))
        axis.grid(axis="y", visible=False)
        axis.legend(loc="center right", fontsize=7.5)
    axis = axes[1, 1]
    for arm, label in enumerate(("right labels", "doubtful labels")):
        colour = figures.COLOURS[2 * arm]
        options = {"label": label, "color": colour, "marker": "o", "markersize": 4}
        figures.band(axis, np.arange(1, 11), metrics["tenths"][:, arm], **options)
    axis.set(xlabel="tenth of the corpus by mean score, best first", ylabel="test accuracy")
    axis.set(ylim=(0, 1), title="Better by the score is not better")
    axis.set_xticks(range(1, 11))
    axis.legend(loc="lower center")
    return figure


def claim(text, reported, measure, holds, threshold, verdict, rule: Rule = "every"):
    return Claim(text, "odis", reported, measure, holds, rule, threshold, verdict)


def above(text, worse, verdict, *, better="ODiS, 6 axes", data="accuracy", labels=0, points=0):
    """One arm trains a better model than another, by points of accuracy in the mean over seeds."""

    def lead(metrics):
        values = metrics[data][:, labels]
        return 100 * (values[:, ARMS.index(better)] - values[:, ARMS.index(worse)])

    holds = lambda difference: difference >= points
    threshold = f"difference >= {points} points"
    return claim(text, REPORTED[worse], lead, holds, threshold, verdict, "mean")


REPORTED = {
    "random": "above random selection",
    "top of the mean": "above selection by single and by averaged scores",
}
CLAIMS = (
    claim(
        "Tops of six decorrelated axes overlap by less than 2% in every corpus (independent: 0.8%)",
        "below 2%",
        lambda m: m["overlap"][:, :, 1, 2].max(1),
        lambda overlap: overlap < 0.02,
        "< 0.02",
        "reproduced",
    ),
    claim(
        "Those of two, three and six, and of six of digits' margins, by at most 5%",
        "below 2%",
        lambda m: np.maximum(m["overlap"][:, :, 1].max((1, 2)), m["digits_overlap"][:, 1, 2]),
        lambda overlap: overlap <= 0.05,
        "largest <= 0.05",
        "not reproduced",
    ),
    claim(
        "Tops of raw scores overlap at least five times as much as those of axes, in every corpus",
        "qualitative: correlated dimensions select the same documents",
        lambda m: (m["overlap"][:, :, 0] / m["overlap"][:, :, 1]).min((1, 2)),
        lambda ratio: ratio >= 5,
        "smallest ratio >= 5",
        "not reproduced",
    ),
    claim(
        "Six axes select more topics than the mean score does",
        "qualitative: diversity is kept",
        lambda m: m["entropy"][:, ARMS.index("ODiS, 6 axes")] - m["entropy"][:, 1],
        lambda nats: nats >= 0.3,
        "entropy difference >= 0.3 nats",
        "reproduced",
        "mean",
    ),
    above(
        "Six axes train a better model than the top of the mean score",
        "top of the mean",
        "reproduced",
        points=5,
    ),
    above(
        "So do six axes that regressors predict after a tenth of the corpus",
        "top of the mean",
        "reproduced",
        better="ODiS, predicted",
        points=5,
    ),
    above(
        "Six axes train a better model than random documents, quality without a meaning",
        "random",
        "not reproduced",
    ),
    above(
        "The same where labels of documents that are not fluent are wrong",
        "random",
        "not reproduced",
        labels=1,
    ),
    above(
        "Six axes train a better model than the top of the mean score, labels as before",
        "top of the mean",
        "reproduced",
        labels=1,
    ),
    claim(
        "Some lower tenth by the mean score trains a better model than the top, labels as before",
        "qualitative: performance is not monotone in the score",
        lambda m: 100 * (m["tenths"][:, 1, 1:].max(1) - m["tenths"][:, 1, 0]),
        lambda difference: difference >= 5,
        "difference >= 5 points",
        "reproduced",
        "mean",
    ),
    above(
        "Six axes of digits' margins train a better model than the top of the mean (30% wrong)",
        "top of the mean",
        "not reproduced",
        data="digits_accuracy",
        labels=1,
    ),
    above(
        "Six axes of digits' margins train a better model than random digits (30% wrong)",
        "random",
        "not reproduced",
        data="digits_accuracy",
        labels=1,
    ),
)
