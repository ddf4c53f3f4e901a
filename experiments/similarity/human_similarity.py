"""Words as an approximation of human similarity judgments.

Raja Marjieh, Pol van Rijn, Ilia Sucholutsky, Theodore R. Sumers, Harin Lee, Thomas L. Griffiths
and Nori Jacoby, "Words are all you need? Language as an approximation for human similarity
judgments", ICLR 2023, arXiv:2206.04105.

Claim: tags that people add and check in turns (STEP-tag) predict judgments of similarity at a cost
that grows with the number of stimuli and not of pairs; they know what the embeddings of networks do
not, so both together predict best; re-weighting a representation's features helps, also on stimuli
that it was not fitted to.

The paper's judgments are not at hand, so people are simulated. Stimuli have ten latent attributes
of falling importance; ten raters see their weighted inner product with noise as large as the
signal. The network mixes the same attributes with importances of its own and adds noise and
features that say nothing. Participants add the tags of strong attributes, and some wrong ones,
rate those they see and flag wrong ones. All of these constants were fixed before the first run, so
what is tested are the measures and the logic of the paper, not people.

    python -m experiments run similarity/human_similarity --preset quick --seeds 3    # 30 seconds
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.runner import Claim
from gradkin import similarity

PAPERS = ("words-human-similarity",)
VMAP_SEEDS = True
PREDICTORS = ("network", "tags", "stacked")


@dataclasses.dataclass(frozen=True)
class Config:
    """The world that is simulated, and how it is measured."""

    stimuli: int = 120
    attributes: int = 10
    decay: float = 0.8  # of an attribute's importance, from one to the next
    raters: int = 10
    rater_noise: float = 1.0  # in standard deviations of the true similarities
    network_features: int = 20
    nuisance: int = 20
    network_noise: float = 0.5
    strong: float = 0.5  # an attribute beyond this, either way, deserves a tag
    wrong_tags: int = 20
    iterations: int = 10  # participants in a chain
    folds: int = 4
    ridge: float = 30.0
    permutations: int = 200


PRESETS = {
    "smoke": Config(stimuli=24, iterations=2, permutations=5),
    "quick": Config(),
    "paper": Config(stimuli=1000, raters=20, permutations=999),
}


def load(config):
    """Everything is simulated."""
    return {}


def tag_chain(key, true, config):
    """STEP-tag: weights of the tags ``[iterations, n, v]`` after each participant."""
    adds = jnp.where(true, 0.15, 0.02)
    removes = jnp.where(true, 0.02, 0.3)
    opinion = jnp.where(true, 4.0, 2.0)

    def participant(state, key):
        present, total, count = state
        for_new, for_rating, for_flag = jax.random.split(key, 3)
        seen = jnp.clip(opinion + 0.7 * jax.random.normal(for_rating, true.shape), 1, 5)
        total, count = total + jnp.where(present, seen, 0), count + present.astype(count.dtype)
        flagged = present & (jax.random.uniform(for_flag, true.shape) < removes)
        new = ~present & (jax.random.uniform(for_new, true.shape) < adds)
        # Who adds a tag rates it; a tag that comes back starts again.
        total = jnp.where(new, seen, jnp.where(flagged, 0, total))
        count = jnp.where(new, 1, jnp.where(flagged, 0, count))
        present = (present & ~flagged) | new
        return (present, total, count), jnp.where(present, total / jnp.maximum(count, 1), 0)

    start = jnp.zeros(true.shape, bool), jnp.zeros(true.shape), jnp.zeros(true.shape)
    return jax.lax.scan(participant, start, jax.random.split(key, config.iterations))[1]


def world(config, key):
    """Ratings ``[raters, n, n]``, the network's features and the tags after each participant."""
    keys = jax.random.split(key, 7)
    n, k = config.stimuli, config.attributes
    latent = jax.random.normal(keys[0], (n, k))
    importance = np.float32(config.decay) ** np.arange(k, dtype=np.float32)
    importance = importance / np.linalg.norm(importance)  # similarities of variance 1
    true = (latent * importance[None]) @ latent.T
    noise = jax.random.normal(keys[1], (config.raters, n, n))
    # Symmetric noise of the same variance off the diagonal.
    noise = jnp.triu(noise, 1) + jnp.swapaxes(jnp.triu(noise, 1), 1, 2)
    ratings = true[None] + config.rater_noise * noise

    gains = jnp.exp(0.7 * jax.random.normal(keys[2], (k, 1)))
    mixture = gains * jax.random.normal(keys[3], (k, config.network_features)) / k**0.5
    signal = latent @ mixture
    signal = signal + config.network_noise * jax.random.normal(keys[4], signal.shape)
    nuisance = jax.random.normal(keys[5], (n, config.nuisance))
    network = jnp.concatenate([signal, nuisance], axis=1)

    deserved = jnp.concatenate([latent > config.strong, latent < -config.strong], axis=1)
    deserved = jnp.pad(deserved, ((0, 0), (0, config.wrong_tags)))
    return ratings, network, tag_chain(keys[6], deserved, config)


def measure(config, key):
    """All correlations for one simulated world."""
    of_world, of_splits, of_folds, of_permutations = jax.random.split(key, 4)
    ratings, network, tags = world(config, of_world)
    judged = ratings.mean(0)
    features = {
        "network": similarity.stack_features(network),
        "tags": similarity.stack_features(tags[-1]),
        "stacked": similarity.stack_features(network, tags[-1]),
    }
    predicted = {name: z @ z.T for name, z in features.items()}
    predicted["tags"] = similarity.tag_similarity(tags[-1])
    r = similarity.similarity_correlation
    i, j = np.triu_indices(config.stimuli, 1)
    reliability = similarity.split_half_reliability(of_splits, ratings[:, i, j])
    crossed = [
        similarity.cross_validate_reweighting(
            of_folds, features[name], judged, ridge=config.ridge, num_folds=config.folds
        )
        for name in PREDICTORS
    ]
    chance = similarity.mantel_test(
        of_permutations, predicted["tags"], judged, num_permutations=config.permutations
    )
    return {
        "correlation": jnp.stack([r(predicted[name], judged) for name in PREDICTORS]),
        "by_participant": jax.lax.map(lambda t: r(similarity.tag_similarity(t), judged), tags),
        "tfidf": r(similarity.tag_similarity(tags[-1], mode="tfidf"), judged),
        "reweighted": jnp.stack([found.reweighted.mean() for found in crossed]),
        "unweighted": jnp.stack([found.unweighted.mean() for found in crossed]),
        "reliability": reliability,
        "ceiling": similarity.noise_ceiling(reliability),
        "p_value": chance.p_value,
        # A judgment of each pair by each rater, against one visit to each stimulus by each.
        "judgments": jnp.asarray(config.raters * len(i)),
        "tag_visits": jnp.asarray(config.iterations * config.stimuli),
    }


def run(config, key, data, loop):
    """Every seed is a world of its own."""
    return jax.jit(jax.vmap(lambda k: measure(config, k)))(key)


def plot(metrics):
    figure, axes = figures.panels(1, 3, width=3.4, height=2.9)
    places = np.arange(len(PREDICTORS))
    ceiling = metrics["ceiling"].mean()
    line = {"color": "#5d6770", "linestyle": ":"}
    axes[0].bar(places, metrics["correlation"].mean(0), 0.6, alpha=0.75)
    axes[0].plot(places, metrics["correlation"].T, ".", color="#2b3138", markersize=4)
    axes[0].set(title="As they are", ylabel="correlation with mean ratings")
    for at, name in enumerate(("unweighted", "reweighted")):
        values, place = metrics[name], places + 0.4 * at - 0.2
        axes[1].bar(place, values.mean(0), 0.36, alpha=0.75, label=name)
        axes[1].plot(place, values.T, ".", color="#2b3138", markersize=4)
    axes[1].set(title="On stimuli held out")
    steps = 1 + np.arange(metrics["by_participant"].shape[1])
    figures.band(axes[2], steps, metrics["by_participant"], marker="o", markersize=3)
    axes[2].set(title="Tags, as the chain grows", xlabel="participants", xticks=steps[1::2])
    for axis in axes:
        axis.axhline(ceiling, **line, label="noise ceiling" if axis is axes[1] else None)
        axis.set_ylim(0, 1.3 if axis is axes[1] else 1.05)
    for axis in axes[:2]:
        axis.set_xticks(places, PREDICTORS)
        axis.grid(axis="x", visible=False)
    axes[1].legend(loc="upper left", ncols=2)
    return figure


CLAIMS = (
    Claim(
        text="network and tags together predict judgments better than either",
        paper="words-human-similarity",
        reported="stacked representations are best",
        measure=lambda m: m["correlation"][:, 2] - m["correlation"][:, :2].max(1),
        holds=lambda gain: gain > 0,
        rule="every",
        threshold="correlation above that of the better one",
        verdict="reproduced",
    ),
    Claim(
        text="re-weighted features predict better, on stimuli that were held out",
        paper="words-human-similarity",
        reported="qualitative",
        measure=lambda m: (m["reweighted"] - m["unweighted"]).min(1),
        holds=lambda gain: gain > 0,
        rule="every",
        threshold="correlation above that of equal weights, for each representation",
        verdict="reproduced",
    ),
    Claim(
        text="no prediction exceeds the noise ceiling of the ratings",
        paper="words-human-similarity",
        reported="by theory: sqrt of the Spearman-Brown reliability",
        measure=lambda m: np.maximum(m["correlation"], m["reweighted"]).max(1) - m["ceiling"],
        holds=lambda excess: excess <= 0.02,
        rule="every",
        threshold="correlation <= ceiling + 0.02",
        verdict="reproduced",
    ),
    Claim(
        text="tags predict better after the whole chain than after its first participant",
        paper="words-human-similarity",
        reported="qualitative",
        measure=lambda m: m["by_participant"][:, -1] - m["by_participant"][:, 0],
        holds=lambda gain: gain > 0,
        rule="every",
        threshold="correlation at the end > at the start",
        verdict="reproduced",
    ),
)
