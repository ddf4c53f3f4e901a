# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of G, the matrix of per-example gradients
#
# `jax.grad` gives one vector: the gradient of the mean loss. It is the mean of as many vectors as
# there are examples, and who pulls with whom is lost in it. `gradkin.per_example_grads` keeps the
# matrix: one row per example, one column per parameter, never multiplied out unless asked.
#
# On Colab, first install gradkin as the README says, so that jax keeps its GPU.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import gradkin
from gradkin import data, gradients, optim

# %% [markdown]
# ## A network and a loss of *one* example

# %%
train = data.load("digits")
images, labels = data.images(train), jnp.asarray(train["label"])
x = jnp.asarray(data.images(train, flatten=True))
x = 2 * (x - x.mean(0))


def init(key, widths=(64, 64, 64, 10)):
    keys = jax.random.split(key, len(widths) - 1)
    return [
        {"w": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, "b": jnp.zeros(n)}
        for k, m, n in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def predict(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def loss(params, example):
    x, label = example
    return optax.softmax_cross_entropy_with_integer_labels(predict(params, x), label)


@jax.jit
def train_steps(key, params, labels, steps):
    """Plain SGD with batches of 100."""

    def step(i, params):
        rows = jax.random.randint(jax.random.fold_in(key, i), (100,), 0, len(x))
        G = gradkin.per_example_grads(loss)(params, (x[rows], labels[rows]))
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, G.mean())

    return jax.lax.fori_loop(0, steps, step, params)


params = train_steps(jax.random.key(1), init(jax.random.key(0)), labels, 60)

# %% [markdown]
# ## The matrix
#
# Used like `jax.grad`, with a batch. What is stored are the factors of one backward pass.

# %%
batch = x[:300], labels[:300]
losses, G = gradkin.value_and_per_example_grads(loss)(params, batch)
print(G.shape, G.dtype)

# %%
print(G.explain())

# %% [markdown]
# Row 7 is the gradient of example 7, the mean of the rows the gradient of the mean loss:

# %%
row, mean = G[7], G.mean()
same_row = jax.grad(loss)(params, (x[7], labels[7]))
same_mean = jax.grad(lambda p: jnp.mean(jax.vmap(loss, (None, 0))(p, batch)))(params)
for ours, plain in ((row, same_row), (mean, same_mean)):
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), ours, plain)
    print("largest difference:", max(jax.tree.leaves(gaps)))

# %% [markdown]
# ## Norms: which examples still pull
#
# After 60 steps most digits are learned. Those with large gradients are the odd ones.


# %%
def show(indices, titles):
    figure, axes = plt.subplots(1, len(indices), figsize=(1.1 * len(indices), 1.6))
    for axis, i, title in zip(axes, np.asarray(indices), titles, strict=True):
        axis.imshow(images[i, :, :, 0], cmap="gray_r")
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    plt.show()


norms = G.norms()
order = jnp.argsort(-norms)
show(order[:10], [f"'{labels[i]}'\n{norms[i]:.1f}" for i in order[:10]])
show(order[-10:], [f"'{labels[i]}'\n{norms[i]:.1g}" for i in order[-10:]])

# %% [markdown]
# ## Gram matrix: who pulls with whom
#
# `G.cosine()` compares all pairs of gradients, from the factors. Sorted by class, the blocks on the
# diagonal are examples that help each other.

# %%
early = init(jax.random.key(0))
figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.8), layout="constrained")
for axis, p, title in zip(axes, (early, params), ("at the start", "after 60 steps"), strict=True):
    by_class = jnp.argsort(batch[1])
    cosines = gradkin.per_example_grads(loss)(p, batch).cosine()[by_class][:, by_class]
    picture = axis.imshow(cosines, cmap="RdBu", vmin=-1, vmax=1)
    sizes = np.bincount(np.asarray(batch[1]), minlength=10)
    middles = np.cumsum(sizes) - sizes / 2
    axis.set_xticks(middles, range(10))
    axis.set_yticks(middles, range(10))
    axis.set_title(f"Cosine between gradients, {title}")
figure.colorbar(picture, ax=axes, shrink=0.8)
plt.show()

# %% [markdown]
# ## Linear algebra on rows
#
# Weights on the left, a direction of parameter space on the right. Nothing is formed.

# %%
print("G @ direction  ", (G @ mean).shape, " how much each loss falls along the mean gradient")
print("weights @ G    ", jax.tree.map(jnp.shape, jnp.ones(300) @ G)[0])
print("clipped mean   ", jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(G.clip(0.5).mean()))))
print("one layer      ", G.select(lambda path: path.startswith("1/")).shape)
print("some rows      ", G[labels[:300] == 3].shape)

# %% [markdown]
# ## Coherence: does a step along one gradient help the others?
#
# m-coherence is $\|\sum_i g_i\|^2 / \sum_i \|g_i\|^2$: how many of the examples profit from a step
# along one example's gradient (Chatterjee & Zielinski 2022). On real labels many do; on random
# labels each example is on its own.

# %%
random_labels = jax.random.randint(jax.random.key(2), labels.shape, 0, 10)


@jax.jit
def coherence(params, labels):
    G = gradkin.per_example_grads(loss)(params, (x[:500], labels[:500]))
    return gradients.coherence_stats(G).m_coherence()


figure, axis = plt.subplots(figsize=(5.5, 3), layout="constrained")
for name, targets in (("real labels", labels), ("random labels", random_labels)):
    p, curve = init(jax.random.key(0)), []
    for i in range(30):
        p = train_steps(jax.random.key(i), p, targets, 10)
        curve.append(coherence(p, targets))
    axis.plot(10 * np.arange(1, 31), curve, label=name)
axis.axhline(1, color="gray", linewidth=0.8, linestyle=":")
axis.set(xlabel="step", ylabel="m-coherence of 500 examples", xscale="log")
axis.legend()
plt.show()

# %% [markdown]
# The sums add over batches and split over layers:

# %%
halves = [
    gradients.coherence_stats(gradkin.per_example_grads(loss)(params, (x[rows], labels[rows])))
    for rows in (slice(0, 150), slice(150, 300))
]
stats = halves[0].merge(halves[1])
print("merged ", stats.m_coherence(), " at once ", gradients.coherence_stats(G).m_coherence())
print("by layer ", {k: round(float(v), 2) for k, v in stats.m_coherence(by="layer").items()})

# %% [markdown]
# When per-example gradients cost too much, gradients of micro-batches tell the same: means of $b$
# independent examples are more coherent by a known factor.

# %%
alpha = stats.unbiased_coherence()
loss_of_five = lambda p, five: jnp.mean(jax.vmap(loss, (None, 0))(p, five))
fives = jax.tree.map(lambda a: a.reshape(60, 5, *a.shape[1:]), batch)
of_means = gradients.coherence_stats(
    gradkin.per_example_grads(loss_of_five)(params, fives)
).unbiased_coherence()
print(
    "means of 5: measured", of_means, "expected", gradients.coherence_of_means(alpha, batch_size=5)
)
print("back: ", gradients.coherence_from_means(of_means, batch_size=5), "examples: ", alpha)

# %% [markdown]
# ## Alignment: one number per example
#
# Half of the labels are replaced. After 20 steps the examples with right labels go along with the
# mean gradient; the others, on average, do not.

# %%
replaced = jax.random.bernoulli(jax.random.key(3), shape=labels.shape)
noisy = jnp.where(replaced, random_labels, labels)
p = train_steps(jax.random.key(4), init(jax.random.key(0)), noisy, 20)
aligned = gradients.example_alignment(gradkin.per_example_grads(loss)(p, (x, noisy)))
plt.figure(figsize=(5.5, 2.6), layout="constrained")
bins = np.linspace(-5, 7, 60)
plt.hist(aligned[~replaced], bins, alpha=0.6, label="right label")
plt.hist(aligned[replaced], bins, alpha=0.6, label="replaced label")
plt.xlabel("alignment with the mean gradient")
plt.legend()
plt.show()
worst = jnp.argsort(aligned)[:10]
show(worst, [f"called {noisy[i]}\n{aligned[i]:.1f}" for i in worst])

# %% [markdown]
# ## Averages that ignore the few
#
# The mean lets every example have its way a little; over many steps wrong labels are memorized. A
# winsorized mean moves the 8 largest and smallest values of every coordinate to the ninth. As optax
# transformations these take per-example gradients, so they come first in a chain.

# %%
methods = {
    "mean": optax.chain(gradients.winsorized_aggregate(0), optax.sgd(0.1)),
    "winsorized 8": optax.chain(gradients.winsorized_aggregate(8), optax.sgd(0.1)),
    "median of 10 means": optax.chain(gradients.median_of_means_aggregate(10), optax.sgd(0.1)),
    "rolling median": optax.chain(
        gradients.winsorized_aggregate(0), gradients.rolling_median(window=3), optax.sgd(0.1)
    ),
}
test = data.load("digits", "test")
x_test = 2 * (data.images(test, flatten=True) - data.images(train, flatten=True).mean(0))
small = 1000  # few examples are memorized sooner


def fit(optimizer, steps=800):
    def step(carry, key):
        p, state = carry
        rows = jax.random.randint(key, (100,), 0, small)
        G = gradkin.per_example_grads(loss)(p, (x[rows], noisy[rows]))
        return optim.update(optimizer, G.materialize(), state, p), None

    p = init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(5), steps)
    return jax.jit(lambda c: jax.lax.scan(step, c, keys)[0][0])((p, optimizer.init(p)))


for name, optimizer in methods.items():
    p = fit(optimizer)
    memorized = jnp.mean(predict(p, x[:small]).argmax(1) == noisy[:small], where=replaced[:small])
    correct = jnp.mean(predict(p, x_test).argmax(1) == test["label"])
    print(f"{name:20s} replaced labels {memorized:.2f}   clean test {correct:.2f}")

# %% [markdown]
# ## More examples than fit
#
# With `batch_size` the matrix is streamed: every verb is one pass over micro-batches.

# %%
streamed = gradkin.per_example_grads(loss, batch_size=100)(params, (x, labels))
print(streamed.shape, gradients.coherence_stats(streamed).m_coherence())
