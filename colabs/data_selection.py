# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which examples to train on
#
# An example's gradient says what it would teach the model. Compare gradients, and you know which
# examples teach the same, which one lowered the loss of which other, and which few out of many are
# worth training on. This notebook goes from a model and a pool of digits, some turned and some
# called by a wrong name, to a selected subset: features from gradients, a store of them on disk and
# its nearest neighbors, scores of influence beside the exact answer, selection for a target (LESS),
# and diversity.
#
# It runs in about half a minute on two processor cores. On Colab:
# `pip install "gradkin[experiments]"`.

# %%
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import gradkin
from gradkin import curvature, data, gradients, optim, selection, store

# %% [markdown]
# ## A pool, and a target that is only part of it
#
# Every digit of the pool comes from one of four domains: upright, turned by 45 or by 90 degrees, or
# upright with a wrong label. The target is to read digits that are turned by 90 degrees. A few of
# them, apart from the pool, say so; the others measure the outcome.

# %%
train, test = (data.load("digits", split) for split in ("train", "test"))
names = ["upright", "45°", "90°", "wrong label"]
rng, N = np.random.default_rng(0), len(train)
domain = rng.integers(len(names), size=N)
views = jnp.stack([data.rotate(data.images(train), degrees=angle) for angle in (0.0, 45.0, 90.0)])
pictures = jnp.concatenate([views, views[:1]])[domain, jnp.arange(N)]
truth = jnp.asarray(train["label"])
wrong = (truth + rng.integers(1, 10, size=N)) % 10
center = pictures.mean(0)


def inputs(images):
    return 2 * (images - center).reshape(len(images), -1)


pool = inputs(pictures), jnp.where(domain == 3, wrong, truth)
target_pictures = data.rotate(data.images(test), degrees=90.0)
target = inputs(target_pictures), jnp.asarray(test["label"])


def take(batch, rows):
    return jax.tree.map(lambda a: a[rows], batch)


validation, held_out = take(target, slice(0, 60)), take(target, slice(60, None))


def show(axis, image, title, color="black"):
    axis.imshow(image[:, :, 0], cmap="gray_r")
    axis.set_title(title, fontsize=7, color=color)
    axis.set(xticks=[], yticks=[])


fig, axes = plt.subplots(1, 10, figsize=(11, 1.6))
for axis, i in zip(axes, rng.permutation(N), strict=False):
    show(axis, pictures[i], f"'{pool[1][i]}'\n{names[domain[i]]}")
plt.show()

# %% [markdown]
# ## A model, and its loss of *one* example
#
# Trained by Adam on any part of the pool, with no word on domains.

# %%
optimizer = optax.adam(3e-3)


def init(key, widths=(64, 32, 10)):
    return [
        jax.random.normal(k, (m, n)) * (1 / m) ** 0.5
        for k, m, n in zip(jax.random.split(key), widths[:-1], widths[1:], strict=True)
    ]


def predict(params, x):
    first, last = params
    return jnp.tanh(x @ first) @ last


def loss(params, example):
    x, label = example
    return curvature.cross_entropy(predict(params, x), label)


def mean_loss(params, batch):
    return jnp.mean(jax.vmap(loss, (None, 0))(params, batch))


@jax.jit
def error(params):
    return jnp.mean(jax.vmap(predict, (None, 0))(params, held_out[0]).argmax(1) != held_out[1])


def weights_of(rows):
    """The same probability for each of these rows of the pool."""
    return jnp.zeros(N).at[jnp.asarray(rows)].set(1 / len(rows))


@jax.jit
def fit(key, weights):
    """Parameters after training on examples of the pool, drawn with these probabilities."""
    start, key = jax.random.split(key)
    params = init(start)

    def step(carry, key):
        params, state = carry
        drawn = jax.random.choice(key, N, (32,), p=weights)
        grads = jax.grad(mean_loss)(params, take(pool, drawn))
        return optim.update(optimizer, grads, state, params), None

    carry = params, optimizer.init(params)
    return jax.lax.scan(step, carry, jax.random.split(key, 400))[0][0]


model = fit(jax.random.key(1), weights_of(jnp.arange(N)))
print(f"error on the target after training on the whole pool: {error(model):.3f}")

# %% [markdown]
# ## Gradients as features
#
# `G` has a row of thousands of numbers for every example, not written down. A sketch projects each
# to `k` numbers and keeps inner products, on average; the error falls as $1 / \sqrt{k}$, whatever
# the number of parameters. Sketches differ in what they cost, and the one that never forms a
# gradient (Kronecker) pays with variance.

# %%
some = take(pool, slice(0, 200))
G = gradkin.per_example_grads(loss)(model, some)
kinds = {
    "dense signs": gradients.RademacherSketch,
    "Kronecker": gradients.KroneckerSketch,
}
sizes = [16, 128, 1024]
others = ~np.eye(len(some[1]), dtype=bool)
lengths = np.asarray(G.norms())
cosines = np.asarray(G.gram()) / np.outer(lengths, lengths)
print(f"{G.shape[1]} numbers for each of {len(G)} examples")


def cosines_of(features):
    return features @ features.T / np.outer(*2 * [np.linalg.norm(features, axis=1)])


def nearest(similarity, k=10):
    return np.argsort(np.where(others, -similarity, np.inf), axis=1)[:, :k]


fig, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
key = jax.random.key(2)
project = jax.jit(lambda G: {n: [G.sketch(kinds[n](key, k)) for k in sizes] for n in kinds})
for name, sketched in jax.tree.map(np.asarray, project(G)).items():
    errors = [f @ f.T / np.outer(lengths, lengths) - cosines for f in sketched]
    axes[0].loglog(sizes, [np.sqrt(np.mean(e[others] ** 2)) for e in errors], "o-", label=name)
    found = [nearest(cosines_of(f)) for f in sketched]
    same = [(f[:, :, None] == nearest(cosines)[:, None]).any(2).mean() for f in found]
    axes[1].semilogx(sizes, same, "o-", label=name)
    if name == "dense signs":
        axes[2].plot(cosines[others][::7], cosines_of(sketched[1])[others][::7], ",")
axes[0].loglog(sizes, np.array(sizes) ** -0.5, "k:", lw=1, label="$1/\\sqrt{k}$")
axes[0].set(xlabel="k", ylabel="error of an inner product", title="Inner products")
axes[1].set(xlabel="k", ylabel="share found", title="Ten nearest neighbors", ylim=(0, 1))
axes[2].axline((0, 0), slope=1, color="k", lw=0.8)
axes[2].set(xlabel="exact", ylabel=f"from {sizes[1]} numbers", title="Cosines")
axes[0].legend()
plt.show()

# %% [markdown]
# ## A store of them, and who is near
#
# Features of all examples go to disk, shard by shard; `fill` computes what is missing, so after a
# kill it goes on where it was. `top_k` streams the shards and is exact. For the target's most
# difficult examples: those of the pool whose gradients point the same way (a step on one of these
# would help), and those that point the other way. Red: the label is wrong.

# %%
sketch = gradients.RademacherSketch(jax.random.key(3), 512)


@jax.jit
def features(params, batch):
    return gradkin.per_example_grads(loss)(params, batch).sketch(sketch)


hardest = jnp.argsort(-jax.vmap(loss, (None, 0))(model, validation))[:3]
queries = features(model, take(validation, hardest))
with tempfile.TemporaryDirectory() as folder:
    kept = store.create_store(folder, dim=512, sketch="dense signs, key 3")
    kept.fill(
        lambda start, stop: features(model, take(pool, slice(start, stop))),
        num_examples=N,
        checkpoint="trained",
    )
    print("missing rows:", kept.missing(N, checkpoint="trained"))
    rows = kept.read(0, N, checkpoint="trained")
    ends = [kept.top_k(sign * queries, 4, metric="cosine") for sign in (1, -1)]

fig, axes = plt.subplots(len(hardest), 9, figsize=(11, 4.6))
for row, i, *lists in zip(axes, hardest, *(end.indices for end in ends), strict=True):
    show(row[0], target_pictures[i], f"target: '{validation[1][i]}'", "C0")
    for axis, j in zip(row[1:], np.concatenate(lists), strict=True):
        color = "C3" if domain[j] == 3 else "black"
        show(axis, pictures[j], f"'{pool[1][j]}' {names[domain[j]]}", color)
axes[0, 3].set_title("the same way\n\n" + axes[0, 3].get_title(), fontsize=7)
axes[0, 7].set_title("the other way\n\n" + axes[0, 7].get_title(), fontsize=7)
plt.show()

# %% [markdown]
# ## Scores beside the exact answer
#
# What would a query's margin be had this example not been there? For a small problem one can ask:
# leave each example out in turn and train anew, all in one program. Scores read off gradients are
# to say the same without retraining. TracIn adds inner products over checkpoints; influence
# functions (by conjugate gradients with the Gauss-Newton matrix) take the curvature into account;
# TRAK regresses on sketched gradients, here of one model. Red: wrong labels.

# %%
few = np.concatenate([np.flatnonzero(domain == 0)[:80], np.flatnonzero(domain == 3)[:20]])
studied = take(pool, few)
asked = inputs(data.images(test)[:16]), jnp.asarray(test["label"][:16])
RATE, STEPS, EVERY = 0.3, 120, 40
start = init(jax.random.key(4))


def margin(params, example):
    return gradients.correct_class_margin(predict(params, example[0]), example[1])


def lowered(params, example):
    """What an example that raises the margin lowers."""
    return -margin(params, example)


def trajectory(weights):
    """Parameters on the way of gradient descent on the weighted loss."""
    total = lambda p: weights @ jax.vmap(loss, (None, 0))(p, studied) / jnp.sum(weights)
    step = lambda p, _: (jax.tree.map(lambda p, g: p - RATE * g, p, jax.grad(total)(p)), None)

    def stretch(params, _):
        params, _ = jax.lax.scan(step, params, length=EVERY)
        return params, params

    return jax.lax.scan(stretch, start, length=STEPS // EVERY)[1]


def outcome(weights):
    params = jax.tree.map(lambda a: a[-1], trajectory(weights))
    return jax.vmap(lowered, (None, 0))(params, asked)


@jax.jit
def exact_and_scores(key):
    way = trajectory(jnp.ones(len(few)))
    last = jax.tree.map(lambda a: a[-1], way)
    ours = gradkin.per_example_grads(loss)(last, studied)
    theirs = gradkin.per_example_grads(lowered)(last, asked)
    damping = 1 / (RATE * STEPS)
    C = gradkin.gauss_newton(predict, curvature.cross_entropy)(last, *studied)
    small = gradients.RademacherSketch(key, 32)
    one = jax.tree.map(lambda a: a[-1:], way)
    return gradients.leave_one_out(outcome, len(few)), {
        "inner product": ours @ theirs.T,
        "TracIn": gradients.tracin(loss, way, RATE, studied, asked, query_loss_fn=lowered),
        "TRAK": gradients.trak(margin, one, studied, asked, sketch=small),
        "influence": gradients.influence(ours, theirs, C, damping=damping, max_steps=50).scores,
    }


left_out, scores = jax.tree.map(np.asarray, exact_and_scores(jax.random.key(5)))
fig, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
matches = {
    name: [np.corrcoef(left_out[:, j], s[:, j])[0, 1] for j in range(len(asked[1]))]
    for name, s in scores.items()
}
for place, values in enumerate(matches.values()):
    axes[0].barh(place, np.mean(values), color="#b0b7bd")
    axes[0].plot(values, np.full(len(values), place), "k.", ms=3)
axes[0].set_yticks(range(len(matches)), list(matches))
axes[0].set(xlabel="correlation, for each query", title="Scores with leaving one out")
clean = domain[few] == 0
for kind, color in ((clean, "C0"), (~clean, "C3")):
    axes[1].plot(scores["influence"][kind] / len(few), left_out[kind], ".", ms=2, color=color)
    axes[2].plot(scores["TracIn"][kind], left_out[kind], ".", ms=2, color=color)
axes[1].set(xlabel="influence / n", ylabel="change of a margin", title="Influence")
axes[2].set(xlabel="TracIn", title="TracIn")
plt.show()
print({name: round(float(np.mean(values)), 2) for name, values in matches.items()})

# %% [markdown]
# ## LESS: the part of the pool that serves the target
#
# LESS (Xia et al. 2024) warms up on a few examples with Adam, takes for every checkpoint the step
# that Adam would make on each example, sketched, and compares it with the target's gradients. A
# score is the best match over subtasks, here the ten digits. It says nothing about repetitions: the
# best are much alike.

# %%
FRACTION = 0.1
found = selection.less(
    jax.random.key(6),
    loss,
    init(jax.random.key(7)),
    pool,
    validation,
    optimizer=optimizer,
    learning_rate=3e-3,
    sketch=sketch,
    subtasks=validation[1],
    fraction=FRACTION,
    warm_up_fraction=0.2,
    epochs=4,
    batch_size=32,
)
size = len(found.indices)
shares = lambda rows: np.bincount(domain[np.asarray(rows)], minlength=4) / len(rows)
fig, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
bins = np.linspace(float(found.scores.min()), float(found.scores.max()), 40)
for i, name in enumerate(names):
    axes[0].hist(np.asarray(found.scores)[domain == i], bins, histtype="step", label=name, lw=1.5)
axes[0].axvline(float(found.scores[found.indices].min()), color="k", lw=0.8, ls=":")
axes[0].set(xlabel="LESS score (selected: right of the line)", ylabel="examples")
axes[0].legend()
places = np.arange(4)
axes[1].bar(places - 0.2, shares(np.arange(N)), 0.4, label="pool", color="#b0b7bd")
axes[1].bar(places + 0.2, shares(found.indices), 0.4, label="selected")
axes[1].set_xticks(places, names)
axes[1].set(ylabel="share")
axes[1].legend()
plt.show()

fig, axes = plt.subplots(2, 10, figsize=(11, 3))
order = np.argsort(-np.asarray(found.scores))
for row, chosen in zip(axes, (order[:10], order[-10:]), strict=True):
    for axis, j in zip(row, chosen, strict=True):
        color = "C3" if domain[j] == 3 else "black"
        show(axis, pictures[j], f"'{pool[1][j]}' {names[domain[j]]}", color)
axes[0, 0].set_ylabel("best", fontsize=8)
axes[1, 0].set_ylabel("worst", fontsize=8)
plt.show()

# %% [markdown]
# `selection.less` keeps the features of the whole pool in memory. For a large pool take its steps
# one by one: `warm_up` (or checkpoints of your own), `fill` a store with features of each
# checkpoint, and search it for `less_queries` of a target. Features are written once, and each new
# target is one pass over them; with 8 bits to a number they take a quarter of the room.

# %%
rates = found.checkpoints.learning_rates
states = found.checkpoints.params, found.checkpoints.moments  # of each checkpoint
with tempfile.TemporaryDirectory() as small_folder:
    small = store.create_store(small_folder, dim=512, dtype="int8")
    for c in range(len(rates)):
        params, moments = jax.tree.map(lambda a, c=c: a[c], states)
        small.fill(
            lambda start, stop, params=params, moments=moments: gradients.gradient_features(
                loss,
                params,
                take(pool, slice(start, stop)),
                sketch=sketch,
                direction="adam",
                moments=moments,
            ),
            num_examples=N,
            checkpoint=f"epoch-{c}",
        )
    of_target = selection.less_features(
        loss, found.checkpoints, validation, sketch=sketch, direction="gradient"
    )
    again = small.top_k(
        selection.less_queries(of_target, subtasks=validation[1]),
        size,
        checkpoints=small.checkpoints,
        weights=rates.tolist(),
        metric="normalized",
        largest_of_queries=True,
    )
both = set(again.indices.tolist()) & set(found.indices.tolist())
print(f"{len(both)} of {size} selected examples are the same")

# %% [markdown]
# ## Diversity
#
# Farthest-first traversal takes the example whose gradient is least like all that were taken
# before. On the whole pool it gathers what is odd; among the examples that serve the target it
# leaves out repetitions.

# %%
scores = np.asarray(found.scores)
better = scores >= np.quantile(scores, 1 - 2 * FRACTION)
chosen = {
    "random": rng.permutation(N)[:size],
    "diverse": selection.farthest_first(rows, size, mask=np.ones(N, bool)),
    "LESS": found.indices,
    "LESS, diverse": selection.farthest_first(rows, size, mask=better),
}
for name, picked in chosen.items():
    print(
        f"{name:14s} wrong labels {shares(picked)[3]:.2f}, of the target's domain "
        f"{shares(picked)[2]:.2f}, least distance {selection.max_min_distance(rows, picked):.3f}"
    )

# %% [markdown]
# ## Training on what was selected
#
# Anew from five starts, on as many steps each, with the whole pool for comparison.
#
# Other ways to choose, each with a replication in `experiments/selection`: image-text pairs for
# adapting CLIP (`selection.chips`), quality scores without their common part (`decorrelate_scores`,
# ODiS), shares of domains and quality of a corpus (`sampling_value`, QuaDMix), clusters with
# quality (`k_means_quality`), and batches while training (`utility_diversity_select`, UDS).

# %%
chosen["whole pool"] = jnp.arange(N)
seeds = jax.random.split(jax.random.key(9), 5)
errors = np.array(
    [[error(fit(key, weights_of(rows))) for key in seeds] for rows in chosen.values()]
)
fig, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
for place, (name, values) in enumerate(zip(chosen, errors, strict=True)):
    axis.bar(place, values.mean(), color="C0" if "LESS" in name else "#b0b7bd")
    axis.plot(np.full(len(values), place), values, "k.", ms=4)
axis.set_xticks(range(len(chosen)), list(chosen))
axis.set(ylabel="error on the target")
plt.show()
