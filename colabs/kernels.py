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
# # Kernel matrices that are never written down
#
# Which points are alike? A kernel answers for two of them; the matrix of all answers is what
# densities, diversities, tests of dependence, smoothers and attention are read off. `gradkin` keeps
# it lazy: a matrix of 30,000 by 30,000 takes the memory of the points, and every verb is one pass
# over its tiles. This notebook reads five things off such matrices: a density with error bars, the
# number of different digits, a test of dependence, a private release, and the work of a forest.
#
# It runs in about half a minute on two processor cores. On Colab:
# `pip install "gradkin[experiments]"`.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons
from sklearn.ensemble import RandomForestRegressor

import gradkin
from gradkin import data, kernels

# %% [markdown]
# ## One matrix, many verbs

# %%
points, side = make_moons(30_000, noise=0.12, random_state=0)
points = jnp.asarray(points, jnp.float32)
K = gradkin.kernel_matrix(kernels.Gaussian(0.1), points)
print(K.explain())

# %%
start = time.perf_counter()
total = K.sum()
print(f"{K.shape[0]:,} x {K.shape[1]:,}: sum {total:.4g} in {time.perf_counter() - start:.1f} s")

# %% [markdown]
# The bandwidth is a child of the kernel, so derivatives with respect to it (or to the points) are
# one more pass, in the same memory. Here: how fast the mean similarity of 2,000 points grows.


# %%
def similarity(bandwidth):
    return gradkin.kernel_matrix(kernels.Gaussian(bandwidth), points[:2000]).mean()


value, slope = jax.value_and_grad(similarity)(0.1)
print(f"mean similarity {value:.4f}, derivative in the bandwidth {slope:.4f}")

# %% [markdown]
# ## A density with error bars
#
# The exact log-density is a `logsumexp` of rows. Its bandwidth is chosen by the likelihood of
# points left out. A sample of 4,000 of the 30,000 points gives an unbiased estimate and knows how
# far it may be off: its interval holds the exact value about nineteen times in twenty, where the
# sample has ten neighbors or more.

# %%
candidates = jnp.geomspace(0.02, 0.5, 10)
search = kernels.cross_validated_bandwidth(kernels.Gaussian, points[:2000], candidates)
kernel = kernels.Gaussian(search.bandwidth)
print(f"bandwidth {search.bandwidth:.3f}")

line = jnp.stack([jnp.linspace(-1.8, 2.8, 200), jnp.full(200, 0.25)], axis=1)
exact = jnp.exp(kernels.log_density(kernel, points, line))
sample = lambda queries: kernels.sampled_density(
    jax.random.key(0), kernel, points, queries, size=4000
)
sampled, there = sample(line), sample(points[:500])
unit = jnp.exp(-kernels.log_normalizer(kernel, 2))
low, high = (unit * end for end in sampled.interval())
true = jnp.exp(kernels.log_density(kernel, points, points[:500])) / unit
inside = jnp.mean((there.interval()[0] <= true) & (true <= there.interval()[1]))
print(f"exact at 500 of the points, of which {inside:.0%} are inside their intervals")

ticks = jnp.linspace(-1, 1, 70)
grid = jnp.stack(jnp.meshgrid(0.5 + 2.4 * ticks, 0.25 + 1.6 * ticks), axis=-1)
picture = kernels.log_density(kernel, points[:5000], grid.reshape(-1, 2)).reshape(70, 70)

fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
axes[0].pcolormesh(grid[..., 0], grid[..., 1], jnp.exp(picture), shading="gouraud")
axes[0].axhline(0.25, color="white", lw=0.8, ls=":")
axes[0].set(title="Density")
axes[1].plot(line[:, 0], exact, label="all 30,000 points")
axes[1].plot(line[:, 0], sampled.density(), lw=1, label="4,000 of them")
axes[1].fill_between(line[:, 0], low, high, alpha=0.25, color="C1", label="95 % interval")
axes[1].set(title="Along the dotted line", xlabel="x")
axes[1].legend()
plt.show()

# %% [markdown]
# ## How many different digits?
#
# The Vendi score is the effective number of different points: the exponential of the entropy of the
# similarity matrix's eigenvalues. Of 150 images each time, drawn from ever more classes, it grows
# with the classes, and subsampling says how sure the number is.

# %%
digits = data.load("digits")
images, labels = jnp.asarray(data.images(digits, flatten=True)), digits["label"]
bandwidth = kernels.median_distance(images) / 3
K = gradkin.kernel_matrix(kernels.Gaussian(bandwidth), images).materialize()
score = jax.jit(lambda rows: kernels.vendi_score(K[rows][:, rows]))
scores, errors = [], []
for classes in range(1, 11):
    rows = jnp.asarray(np.flatnonzero(labels < classes)[:150])
    found = kernels.subsampled_score(
        jax.random.key(classes), score, rows, size=60, num_subsamples=40
    )
    scores.append(found.score)
    errors.append(found.standard_error)

fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
ax.errorbar(range(1, 11), scores, errors, marker="o", capsize=3)
ax.set(xlabel="classes among 150 images", ylabel="effective number of images")
plt.show()

# %% [markdown]
# ## Dependence that correlation does not see
#
# Points near a circle: the coordinates are uncorrelated, yet far from independent. HSIC is zero
# only for independent variables; shuffling one of them says what it is by chance. All 999
# permutations are one jitted call on matrices that are centered once.

# %%
angle, noise = jax.random.split(jax.random.key(2))
angle = jax.random.uniform(angle, (200,), maxval=2 * jnp.pi)
circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)]) + 0.2 * jax.random.normal(noise, (2, 200))
matrices = [gradkin.kernel_matrix(kernels.Gaussian(0.5), x[:, None]) for x in circle]
test = kernels.independence_test(jax.random.key(3), matrices)
print(f"correlation {jnp.corrcoef(circle)[0, 1]:.3f}, HSIC p-value {test.p_value:.3f}")

fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
axes[0].plot(*circle, ".")
axes[0].set(title="The points", aspect="equal")
axes[1].hist(np.asarray(test.permuted), 40, color="0.7", label="shuffled")
axes[1].axvline(test.statistic, color="C3", label="as they are")
axes[1].set(title="HSIC", xlabel="statistic")
axes[1].legend()
plt.show()

# %% [markdown]
# ## A density that keeps secrets
#
# Random features turn a sum of kernels over private points into a few hundred numbers; noise on
# those numbers makes them safe to publish, once, and every later question is free. The release
# carries its budget, and knows how much of an answer is noise.

# %%
private = points[:20_000]
broad = kernels.Gaussian(0.25)
queries = grid.reshape(-1, 2)
true = kernels.log_density(broad, private, queries).reshape(70, 70)
pictures, shares = [jnp.exp(true)], []
scale = jnp.exp(-kernels.log_normalizer(broad, 2)) / len(private)
for epsilon in (1.0, 0.1):
    budget = kernels.PrivacyBudget(epsilon)
    release = kernels.private_kernel_sums(
        jax.random.key(4), broad, private, size=600, budget=budget
    )
    pictures.append(scale * release.sum(queries).reshape(70, 70))
    shares.append(jnp.max(scale * release.noise_std(queries)) / jnp.max(pictures[0]))

fig, axes = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained")
names = ["exact", "epsilon 1", "epsilon 0.1"]
for ax, picture, name in zip(axes, pictures, names, strict=True):
    shown = ax.pcolormesh(
        grid[..., 0], grid[..., 1], picture, vmin=0, vmax=pictures[0].max(), shading="gouraud"
    )
    ax.set(title=name)
fig.colorbar(shown, ax=axes)
plt.show()
for epsilon, share in zip((1, 0.1), shares, strict=True):
    print(f"epsilon {epsilon}: noise is {share:.1%} of the highest density")

# %% [markdown]
# ## What a random forest does
#
# A forest's prediction is a weighted mean of the training outcomes, `S @ y`, with weights that a
# kernel of shared leaves gives. Its effective parameters, measured by the norms of the rows of `S`,
# are the number of points on the training inputs, where fully grown trees interpolate; away from
# them the forest is far smoother, the more so the more trees there are
# (Curth et al. 2024, arXiv:2402.01502).

# %%
rng = np.random.default_rng(0)
x, x_new = rng.uniform(size=(2, 300, 5)).astype(np.float32)
law = lambda x: 4 / (1 + np.exp(-20 * (x[:, 0] - 0.5))) + 3 * x[:, 1]
y = law(x) + rng.normal(size=300)
forest = RandomForestRegressor(50, max_features=1 / 3, bootstrap=False, random_state=0).fit(x, y)
leaves, new_leaves = forest.apply(x), forest.apply(x_new)

S = kernels.forest_smoother(leaves, new_leaves)
gap = np.abs(S @ jnp.asarray(y, jnp.float32) - forest.predict(x_new)).max()
print(f"{S}: S @ y is the forest's prediction, to {gap:.0e}")

sizes = [1, 2, 5, 10, 20, 50]
parameters = {"training inputs": leaves, "new inputs": new_leaves}
fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for name, at in parameters.items():
    p = [
        kernels.effective_parameters(kernels.forest_smoother(leaves[:, :t], at[:, :t]))
        for t in sizes
    ]
    axes[0].plot(sizes, p, "o-", label=name)
axes[0].set(xlabel="trees", ylabel="effective parameters", yscale="log")
axes[0].set_yticks([30, 100, 300], ["30", "100", "300"], minor=False)
axes[0].minorticks_off()
axes[0].legend()
weights = np.sort(np.asarray(S.materialize()), axis=1)[:, ::-1].mean(0)
axes[1].plot(np.arange(1, 31), weights[:30], "o-", ms=3)
axes[1].set(xlabel="training points, heaviest first", ylabel="weight in a prediction")
plt.show()

# %% [markdown]
# The forest's own similarity, the share of trees in which two points meet, is a kernel like any
# other: everything above reads it.

# %%
own = kernels.forest_kernel(new_leaves)
print(f"effective number of different points: {kernels.vendi_score(own):.0f} of {len(x_new)}")
truth = jnp.asarray(law(x_new), jnp.float32)[:, None]
outcomes = gradkin.kernel_matrix(kernels.Gaussian(1.0), truth)
print(f"alignment with the noiseless outcomes (CKA): {kernels.cka(own, outcomes):.2f}")
