"""Stable multi-interest networks on sessions (DESMIL, Liu et al. 2022, arXiv:2207.07910).

End to end, on made sessions.

Claim: a multi-interest network (self-attentive, as ComiRec-SA) recommends better to users whose
interests go together in another way than in training, when examples are weighted so that its
interests become independent; network and weights are trained in turns. Sessions are made: each user
has two topics, half of the session's items and the next item are of either; biased exposure pairs
most topics with one partner in training, and with another in the shifted test. Items are retrieved
by the best of the interests. Beside it, along training, how dependent the interests of new users
are (unbiased HSIC, linear alignment), of which the paper says that it rises and harms.

    python -m experiments run kernels/desmil_sessions --preset quick --seeds 5    # 2 minutes

The softmax is over all items, not sampled. Rates and steps are fixed, the same for both methods.
What is seen is small: over five seeds 1.2 points of recall are won on the shifted users (sd 3.4)
and 1.2 lost on the others (sd 4.0): neither differs clearly from zero, whatever its rule says.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import figures
from experiments.runner import Claim
from gradkin import kernel_matrix, kernels, optim

PAPERS = ("desmil-hsic",)
VMAP_SEEDS = True
METHODS = ("equal weights", "stable weights")


@dataclasses.dataclass(frozen=True)
class Config:
    topics: int = 8
    items: int = 25  # of a topic
    length: int = 20  # of a session
    paired: float = 0.9  # share of users whose topics are partners
    interests: int = 4
    width: int = 16
    train: int = 2000
    test: int = 500
    batch: int = 128
    steps: int = 600
    learning_rate: float = 0.01
    features: int = 5
    weight_steps: int = 20
    penalty: float = 0.01


PRESETS = {
    "smoke": Config(train=40, test=20, batch=8, steps=4, weight_steps=2),
    "quick": Config(),
    "paper": Config(
        topics=64, items=100, width=64, train=200_000, test=2000, steps=20_000, batch=1024
    ),
}


class State(NamedTuple):
    key: jax.Array
    params: Any
    opt_state: Any
    memory: kernels.Memory
    users: dict[str, Any]  # split -> (sessions, next items)


def load(config):
    """Sessions are drawn while the experiment runs."""
    return {}


def sessions(config, key, size, shift):
    """Sessions ``[size, length]`` of two topics, and the next item ``[size]``."""
    keys = jax.random.split(key, 6)
    first = jax.random.randint(keys[0], (size,), 0, config.topics)
    partner = (first + shift) % config.topics
    other = (first + jax.random.randint(keys[1], (size,), 1, config.topics)) % config.topics
    second = jnp.where(jax.random.uniform(keys[2], (size,)) < config.paired, partner, other)
    topics = jnp.stack([first, second], axis=1)
    which = jax.random.bernoulli(keys[3], shape=(size, config.length + 1)).astype(np.int32)
    topic = jnp.take_along_axis(topics, which, axis=1)
    item = topic * config.items + jax.random.randint(keys[4], topic.shape, 0, config.items)
    return item[:, :-1], item[:, -1]


def init_params(config, key):
    keys = jax.random.split(key, 3)
    d = config.width
    normal = lambda k, *shape: jax.random.normal(k, shape) / np.float32(np.sqrt(d))
    return {
        "items": normal(keys[0], config.topics * config.items, d),
        "hidden": normal(keys[1], d, d),
        "attention": normal(keys[2], d, config.interests),
    }


def interests(params, session):
    """What a session is about, ``[interests, width]``: attention over its items."""
    items = params["items"][session]
    attention = jax.nn.softmax(jnp.tanh(items @ params["hidden"]) @ params["attention"], axis=0)
    return attention.T @ items


def example_loss(params, session, target):
    """Cross-entropy of the next item under the interest that fits it best."""
    vectors = interests(params, session)
    best = jnp.argmax(vectors @ params["items"][target])
    logits = params["items"] @ vectors[best]
    return optax.softmax_cross_entropy_with_integer_labels(logits, target)


def recall(params, users, count=20):
    """Share of users whose next item is among the first ``count``, by the best interest."""

    def hit(session, target):
        scores = jnp.max(interests(params, session) @ params["items"].T, axis=0)
        return jnp.sum((scores > scores[target]).astype(np.float32)) < count

    return jnp.mean(jax.vmap(hit)(*users).astype(np.float32))


def dependence(config, params, users):
    """Mean over pairs of interests of unbiased HSIC, and of linear alignment."""
    vectors = jax.vmap(lambda s: interests(params, s))(users[0])
    found = []
    for i in range(config.interests):
        for j in range(i):
            x, y = vectors[:, i], vectors[:, j]
            K, L = (
                kernel_matrix(kernels.Gaussian(kernels.median_distance(v) + 1e-6), v)
                for v in (x, y)
            )
            hsic = kernels.hsic(K, L, unbiased=True)
            found.append(jnp.stack([hsic, kernels.linear_cka(x, y, unbiased=True)]))
    return jnp.mean(jnp.stack(found), axis=0)


def train(config, key, method, loop):
    optimizer = optax.adam(config.learning_rate)
    shape = (config.interests, config.batch, config.features)

    def init(key):
        splits = {"train": (config.train, 1), "same": (config.test, 1), "shifted": (config.test, 3)}
        start, key, *draws = jax.random.split(key, 5)
        params = init_params(config, start)
        users = {
            name: sessions(config, k, *options) for k, (name, options) in zip(draws, splits.items())
        }
        memory = kernels.empty_memory(jnp.zeros(shape))
        return State(key, params, optimizer.init(params), memory, users)

    def weigh(key, params, batch, memory):
        """Weights that make the batch's interests independent, and the memory after it."""
        vectors = jax.vmap(lambda s: interests(params, s))(batch[0])
        features = jnp.stack(
            [
                kernels.cosine_features(
                    k,
                    vectors[:, i],
                    size=config.features,
                    bandwidth=jax.lax.stop_gradient(kernels.median_distance(vectors[:, i]) + 1e-6),
                )
                for i, k in enumerate(jax.random.split(key, config.interests))
            ]
        )
        found = kernels.decorrelating_weights(
            features,
            num_steps=config.weight_steps,
            learning_rate=0.1,
            penalty=config.penalty,
            memory=memory,
        )
        return found.weights, memory.updated(features, found.logits)

    def step(state, data):
        key, draw, frequencies = jax.random.split(state.key, 3)
        rows = jax.random.randint(draw, (config.batch,), 0, config.train)
        batch = jax.tree.map(lambda a: a[rows], state.users["train"])
        weights, memory = jnp.ones(config.batch), state.memory
        if method == "stable weights":
            weights, memory = weigh(frequencies, state.params, batch, memory)

        def loss(params):
            losses = jax.vmap(example_loss, (None, 0, 0))(params, *batch)
            return jnp.mean(weights * losses)

        grads = jax.grad(loss)(state.params)
        params, opt_state = optim.update(optimizer, grads, state.opt_state, state.params)
        return State(key, params, opt_state, memory, state.users)

    def evaluate(state, data):
        return {
            "same": recall(state.params, state.users["same"]),
            "shifted": recall(state.params, state.users["shifted"]),
            "dependence": dependence(config, state.params, state.users["same"]),
        }

    every = max(config.steps // 10, 1)
    state = jax.vmap(init)(key)
    return loop(step, state, config.steps, every=every, evaluate=evaluate, name=method)[1]


def run(config, key, data, loop):
    histories = [train(config, key, method, loop) for method in METHODS]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *histories)


def plot(metrics):
    figure, axes = figures.panels(1, 4)
    places = np.linspace(0, 1, metrics["same"].shape[2])
    panels = (
        ("shifted", "recall@20", "Users with other pairs"),
        ("same", "recall@20", "Users like those of training"),
    )
    for axis, (name, label, title) in zip(axes, panels):
        for method, colour in zip(range(2), figures.COLOURS):
            look = {"color": colour, "label": METHODS[method]}
            figures.band(axis, places, metrics[name][:, method], **look)
        axis.set(xlabel="share of training", ylabel=label, title=title)
    names = (("HSIC", "Dependence of interests"), ("CKA, linear", "Alignment of interests"))
    for measure, (axis, (label, title)) in enumerate(zip(axes[2:], names)):
        for method, colour in zip(range(2), figures.COLOURS):
            values = metrics["dependence"][:, method, :, measure]
            figures.band(axis, places, values, color=colour, label=METHODS[method])
        axis.set(xlabel="share of training", ylabel=f"unbiased {label}", title=title)
    axes[1].legend()
    return figure


def gain(metrics, name):
    return metrics[name][:, 1, -1] - metrics[name][:, 0, -1]


CLAIMS = (
    Claim(
        text="stable weights improve recall for users whose interests go together otherwise",
        paper="desmil-hsic",
        reported="better than the network without, by a margin",
        measure=lambda m: gain(m, "shifted"),
        holds=lambda value: value >= 0.01,
        rule="mean",
        threshold="recall@20 >= that of equal weights + 0.01, shifted test",
        verdict="reproduced",
    ),
    Claim(
        text="stable weights cost nothing for users like those of training",
        paper="desmil-hsic",
        reported="better on public data too",
        measure=lambda m: gain(m, "same"),
        holds=lambda value: value >= -0.01,
        rule="mean",
        threshold="recall@20 >= that of equal weights - 0.01",
        verdict="not reproduced",
    ),
)
