"""QuaDMix: one search for the quality and the domains of a corpus.

Fengze Liu, Weidong Zhou, Binbin Liu and others, "QuaDMix: Quality-Diversity Balanced Data Selection
for Efficient LLM Pretraining", 2025, arXiv:2504.16511.

Claim: how often a document is drawn should depend on its quality and on its domain together. With
few parameters for each domain, searched by a regression on the losses of very small models, the
corpus is better than by filtering for quality, by weighting domains, or by chance.

    python -m experiments run selection/quadmix --seeds 5         # 2 minutes, two cores
    python -m experiments run selection/quadmix --preset paper    # larger; not run yet

The paper trains language models on web text. Here documents are sequences of five Markov chains
(domains of 40% to 5%), in each of which a share of the tokens, the document's hidden noise, is
replaced by chance. Of two quality scores one is sharp but blind in two domains, the other is
blurred everywhere. A fifth of the corpus is drawn; the model is a smoothed table of bigrams; the
target is clean text of all domains alike. The search sees one set of it; the losses shown are those
on another. RegMix, which searches domain weights alone, gets as many runs and the same average of
ten.

Seen: with 300 runs the search ends at 2.61 nats, with 1000 at 2.59; equal domains of the best
documents by the mean score, without any search, are at 2.59 too, as is the best of the 300 tried.
Random documents are at 2.73, and domain weights alone gain little (2.70).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.runner import Claim
from gradkin import kernels, selection

PAPERS = ("quadmix",)
BASELINES = (
    "random",
    "top by score 1",
    "top by mean score",
    "balanced",
    "top in each domain",
    "balanced, top in each",
    "RegMix",
    "best of searched",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """``blur``: noise of each score; ``runs``: of proxies, the baselines' number first."""

    documents: int = 20_000
    length: int = 20  # tokens of a document
    vocabulary: int = 20
    shares: tuple[float, ...] = (0.4, 0.3, 0.15, 0.1, 0.05)  # of the domains
    blur: tuple[float, ...] = (0.1, 0.3)
    informed: int = 3  # domains of which the first score knows anything
    budget: float = 0.2  # of the corpus
    peak: float = 2.0  # of transition probabilities: standard deviation of their logarithms
    smoothing: float = 0.1  # added to every count of bigrams
    target: int = 2000  # documents of each domain in either set of clean text
    runs: tuple[int, ...] = (300, 100, 1000)
    held_out: int = 100  # runs that tell how well losses are predicted
    candidates: int = 100_000
    top: int = 10


ZIPF = tuple(1 / rank / sum(1 / r for r in range(1, 27)) for rank in range(1, 27))
PRESETS = {
    "smoke": Config(
        documents=100, length=5, vocabulary=4, target=5, runs=(64,), held_out=8, candidates=30
    ),
    "quick": Config(),
    "paper": Config(
        documents=200_000,
        shares=ZIPF,
        blur=(0.1, 0.3, 0.5),
        informed=13,
        runs=(3000, 300, 1000),
        held_out=300,
    ),
}


def load(config):
    return {}


def bigrams(config, key, transitions, domain, noise):
    """Counts of bigrams of documents of some noise: ``[D, V^2]``."""
    k = jax.random.split(key, 4)
    size, v = len(domain), config.vocabulary
    logits = jnp.log(transitions)

    def step(token, key):
        following = jax.random.categorical(key, logits[domain, token])
        return following, following

    first = jax.random.randint(k[0], (size,), 0, v)
    rest = jax.lax.scan(step, first, jax.random.split(k[1], config.length - 1))[1]
    text = jnp.concatenate([first[None], rest])
    replaced = jax.random.uniform(k[2], text.shape) < noise[None]
    text = jnp.where(replaced, jax.random.randint(k[3], text.shape, 0, v), text)
    counts = jnp.zeros((size, v * v))
    return counts.at[jnp.arange(size)[None], text[:-1] * v + text[1:]].add(1)


def make_corpus(config, key):
    """Counts, domains and scores of documents, and two sets of clean text: ``[2, V^2]``."""
    k = jax.random.split(key, 6)
    size, v, m = config.documents, config.vocabulary, len(config.shares)
    transitions = jax.nn.softmax(config.peak * jax.random.normal(k[0], (m, v, v)))
    ends = np.cumsum(config.shares)[:-1] * size
    domain = jnp.asarray(np.searchsorted(ends, np.arange(size) + 0.5).astype(np.int32))
    noise = jax.random.uniform(k[1], (size,))
    blur = jnp.asarray(config.blur)[None] * jax.random.normal(k[2], (size, len(config.blur)))
    scores = 1 - noise[:, None] + blur
    blind = domain >= config.informed
    scores = scores.at[:, 0].set(jnp.where(blind, jax.random.uniform(k[3], (size,)), scores[:, 0]))
    of_target = jnp.repeat(jnp.arange(m, dtype=np.int32), config.target)

    def clean(key):
        counts = bigrams(config, key, transitions, of_target, jnp.zeros(len(of_target)))
        return jnp.mean(counts, axis=0) / (config.length - 1)

    return {
        "counts": bigrams(config, k[4], transitions, domain, noise),
        "domain": domain,
        "scores": selection.normalize_scores(scores),
        "targets": jnp.stack([clean(key) for key in jax.random.split(k[5])]),
    }


def expected_copies(config, corpus, params):
    """What QuaDMix draws by some parameters: ``[D]``."""
    domain = corpus["domain"]
    quality = selection.merge_quality(corpus["scores"], domain, params.alpha, norm="none")
    rank = selection.domain_rank(quality, domain)
    values = selection.sampling_value(rank, domain, params)
    return selection.scale_to_budget(values, config.budget * config.documents)


def cross_entropy(config, corpus, target, copies):
    """Of clean text under the bigrams of a corpus that was drawn."""
    v = config.vocabulary
    counts = (copies.astype(np.float32) @ corpus["counts"]).reshape(v, v) + config.smoothing
    return -jnp.vdot(target, jnp.log(counts / jnp.sum(counts, axis=1, keepdims=True)).ravel())


def search(config, key, corpus):
    """Parameters by QuaDMix with each number of runs and by baselines, rank correlations."""
    k = jax.random.split(key, 5)
    m, n = len(config.shares), len(config.blur)
    shares = jnp.asarray(config.shares)
    runs, most, size = config.runs[0], max(config.runs), config.documents
    draw = jax.vmap(lambda key: selection.sample_mix_params(key, m, n))
    weigh = lambda w: selection.mixture_params(w, shares, num_scores=n)

    def draw_weights(key, number):  # Dirichlet(1)
        weights = jax.random.exponential(key, (number, m))
        return weights / jnp.sum(weights, axis=1, keepdims=True)

    def proxy_loss(params):
        # One key for all: what differs is not chance.
        copies = selection.draw_copies(k[0], expected_copies(config, corpus, params))
        return cross_entropy(config, corpus, corpus["targets"][0], copies)

    tried = draw(jax.random.split(k[1], most + config.held_out))
    weights = draw_weights(k[2], runs)
    everything = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves), tried, jax.vmap(weigh)(weights)
    )
    losses = jax.lax.map(proxy_loss, everything)

    candidates = draw(jax.random.split(k[3], config.candidates))
    held_out = jax.tree.map(lambda leaf: leaf[most:], tried), losses[most:-runs]
    found = []
    for number in config.runs:
        first = jax.tree.map(lambda leaf, number=number: leaf[:number], tried)
        options = {"top": config.top, "held_out": held_out}
        found.append(selection.regression_search(first, losses[:number], candidates, **options))
    mixture = selection.regression_search(
        weights, losses[-runs:], draw_weights(k[4], config.candidates), top=config.top
    )
    even = jnp.full((m, n), 1 / n)
    equal = jnp.full(m, 1 / m)
    best = jnp.argmin(losses[:runs])
    # A balanced corpus may want more of a small domain than there is of it: then all is drawn.
    balanced_shares = jnp.minimum(config.budget / (m * shares), 1)
    params = [
        weigh(shares),  # random
        weigh(equal),  # balanced
        selection.quality_filter_params(jnp.full(m, config.budget), alpha=even),
        selection.quality_filter_params(balanced_shares, alpha=even),
        weigh(mixture.params),
        jax.tree.map(lambda leaf: leaf[best], tried),
        *(search.params for search in found),
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    by_params = jax.lax.map(functools.partial(expected_copies, config, corpus), stacked)
    # Over all domains at once: one domain, as far as ranks are concerned.
    top = jnp.stack([corpus["scores"][:, 0], jnp.mean(corpus["scores"], axis=1)])
    one = jnp.zeros(size, np.int32)
    ranks = jax.lax.map(lambda quality: selection.domain_rank(quality, one), top)
    by_threshold = (ranks <= config.budget).astype(np.float32)
    copies = jnp.concatenate([by_params[:1], by_threshold, by_params[1:]])
    return copies, jnp.stack([search.correlation for search in found])


@functools.partial(jax.jit, static_argnums=0)
def study(config, key):
    k = jax.random.split(key, 3)
    corpus = make_corpus(config, k[0])
    expected, correlation = search(config, k[1], corpus)
    copies = jax.vmap(functools.partial(selection.draw_copies, k[2]))(expected)
    loss = functools.partial(cross_entropy, config, corpus, corpus["targets"][1])
    mixture = jax.vmap(
        lambda copies: selection.expected_mixture(copies, corpus["domain"], len(config.shares))
    )(expected)
    return {
        "loss": jax.vmap(loss)(copies),
        "mixture": mixture,
        "domains": jnp.exp(jax.vmap(kernels.renyi_entropy)(mixture)),
        "drawn": jnp.mean(copies.astype(np.float32), axis=1) / config.budget,
        "correlation": correlation,
        "runs": jnp.asarray(config.runs),
    }


def run(config, key, data, loop):
    return study(config, key)


def plot(metrics):
    figure, axes = figures.panels(1, 3, width=3.9, height=3.0)
    runs, loss = metrics["runs"][0], metrics["loss"]
    names = [*BASELINES, *(f"QuaDMix, {number} runs" for number in runs)]
    order = [*range(len(BASELINES)), *(len(BASELINES) + np.argsort(runs))]
    places = np.arange(len(names))[::-1]
    ours = ["QuaDMix" in names[i] for i in order]
    colours = [figures.COLOURS[1 if mine else 0] for mine in ours]
    # Ticks at the means and no bars: the axis does not begin at zero.
    axes[0].scatter(loss.mean(0)[order], places, 130, color=colours, marker="|", linewidths=3)
    at = np.tile(places, (len(loss), 1))
    axes[0].plot(loss[:, order], at, ".", color="#2b3138", markersize=4)
    axes[0].set(xlabel="cross-entropy of clean text, nats", title="Trained on a fifth of a corpus")
    mixture = metrics["mixture"].mean(0)[order]
    left = np.zeros(len(places))
    for domain, share in enumerate(mixture.T):
        colour = figures.COLOURS[domain % len(figures.COLOURS)]
        axes[1].barh(places, share, 0.7, left=left, color=colour, alpha=0.75)
        left = left + share
    axes[1].set(xlim=(0, 1), xlabel="share of the tokens drawn", title="Domains, large to small")
    for axis in axes[:2]:
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(places, [names[i] for i in order])
    axes[1].set_yticks(places, [""] * len(places))
    sizes = np.argsort(runs)
    figures.band(axes[2], runs[sizes], metrics["correlation"][:, sizes], marker="o", markersize=4)
    axes[2].set(xscale="log", ylim=(0, 1), xlabel="runs of the proxy", ylabel="Spearman")
    axes[2].set_xticks(runs[sizes], [str(number) for number in runs[sizes]])
    axes[2].set_xticks([], minor=True)
    axes[2].set_title("Predicted and measured losses")
    return figure


QUADMIX = len(BASELINES)  # with the first number of runs


def better_than(name, text, reported, verdict):
    """QuaDMix with the first number of runs has the lower loss, on average over seeds."""
    other = BASELINES.index(name)
    return Claim(
        text=text,
        paper="quadmix",
        reported=reported,
        measure=lambda m: m["loss"][:, QUADMIX] - m["loss"][:, other],
        holds=lambda difference: difference < 0,
        rule="mean",
        threshold="difference of cross-entropies < 0",
        verdict=verdict,
    )


ALONE = "qualitative: better than either strategy alone"
CLAIMS = (
    better_than(
        "random",
        "The searched corpus is better than a random one",
        "+7.2% on average over benchmarks",
        "reproduced",
    ),
    better_than(
        "top by score 1",
        "The searched corpus is better than the best by one quality score",
        ALONE,
        "reproduced",
    ),
    better_than(
        "top by mean score",
        "The searched corpus is better than the best by the mean score",
        ALONE,
        "reproduced",
    ),
    better_than(
        "balanced",
        "The searched corpus is better than domains of equal shares",
        ALONE,
        "reproduced",
    ),
    better_than(
        "RegMix", "The searched corpus is better than searched domain weights", ALONE, "reproduced"
    ),
    better_than(
        "balanced, top in each",
        "The searched corpus is better than equal domains of the best, without a search",
        "qualitative: quality filtering, then domain weights, is worse than both together",
        "not reproduced",
    ),
    Claim(
        text="Losses of parameters that were not tried are predicted",
        paper="quadmix",
        reported="qualitative: a regression on runs of very small models finds the parameters",
        measure=lambda m: m["correlation"][:, 0],
        holds=lambda correlation: correlation > 0.3,
        rule="mean",
        threshold="Spearman correlation of predicted and measured losses > 0.3",
        verdict="reproduced",
    ),
)
