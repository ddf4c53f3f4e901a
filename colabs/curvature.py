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
# # How the loss bends
#
# The curvature of a loss is a matrix with a row and a column for every parameter: too large to
# write down, and not needed so. `gradkin` keeps it lazy; a product with it costs about two
# gradients, and spectra, traces, solves and damped Newton steps are read off products. This
# notebook looks at a network's spectrum before and after training, draws the loss around it, walks
# from one trained network to another, takes Newton steps with wrong Hessians, and keeps a small zoo
# of models on disk.
#
# It runs in about half a minute on two processor cores. On Colab:
# `pip install "gradkin[experiments]"`.

# %%
import functools
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import gradkin
from gradkin import curvature, data, kernels, optim, store

# %% [markdown]
# ## A network, its loss of *one* example, and four trained copies
#
# Two different starts at each of two batch sizes, trained together by `vmap`.

# %%
train, test = (data.load("digits", split) for split in ("train", "test"))
batch = jnp.asarray(data.images(train, flatten=True)), jnp.asarray(train["label"])
held_out = jnp.asarray(data.images(test, flatten=True)), jnp.asarray(test["label"])


def init(key, widths=(64, 32, 10)):
    keys = jax.random.split(key, len(widths) - 1)
    return {
        f"layer{i}": {"w": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, "b": jnp.zeros(n)}
        for i, (k, m, n) in enumerate(zip(keys, widths[:-1], widths[1:], strict=True))
    }


def predict(params, x):
    hidden = jax.nn.relu(x @ params["layer0"]["w"] + params["layer0"]["b"])
    return hidden @ params["layer1"]["w"] + params["layer1"]["b"]


def loss(params, x, label):
    return optax.softmax_cross_entropy_with_integer_labels(predict(params, x), label)


def mean_loss(params, batch=batch):
    return jnp.mean(jax.vmap(loss, (None, 0, 0))(params, *batch))


def error(params, batch=held_out):
    return jnp.mean(jax.vmap(predict, (None, 0))(params, batch[0]).argmax(1) != batch[1])


def drawn(key, size):
    rows = jax.random.randint(key, (size,), 0, len(batch[1]))
    return batch[0][rows], batch[1][rows]


@functools.partial(jax.jit, static_argnames=("size", "steps"))
def trained(key, size, steps=600):
    start, key = jax.random.split(key)
    optimizer = optax.sgd(0.2)

    def step(carry, key):
        params, state = carry
        grads = jax.grad(mean_loss)(params, drawn(key, size))
        return optim.update(optimizer, grads, state, params), None

    params = init(start)
    carry = params, optimizer.init(params)
    return jax.lax.scan(step, carry, jax.random.split(key, steps))[0][0]


seeds = jax.random.split(jax.random.key(0))
cells = {size: jax.vmap(functools.partial(trained, size=size))(seeds) for size in (16, 256)}
for size, models in cells.items():
    errors = ", ".join(f"{e:.3f}" for e in jax.vmap(error)(models))
    print(f"batches of {size}: test errors {errors}")

# %% [markdown]
# ## The spectrum, before and after
#
# `gradkin.hessian` transforms the loss of one example, in the manner of `jax.grad`. Stochastic
# Lanczos quadrature shows all 2,410 eigenvalues at once: a broad bulk around zero before training,
# and after it a narrow one with a few large values apart. The Gauss-Newton matrix leaves out the
# curvature of the network itself and has no negative ones (those in the picture are the smoothing).

# %%
model = jax.tree.map(lambda leaf: leaf[0], cells[256])
H = gradkin.hessian(loss)(model, *batch)
print(H.explain())

matrices = {
    "Hessian at the start": gradkin.hessian(loss)(init(seeds[0]), *batch),
    "Hessian, trained": H,
    "Gauss-Newton, trained": gradkin.gauss_newton(predict, curvature.cross_entropy)(model, *batch),
}
fig, axes = plt.subplots(1, 3, figsize=(11, 2.8), layout="constrained", sharey=True)
spectrum = jax.jit(lambda key, A: A.spectral_density(key, num_matvecs=30, num_probes=4))
for ax, (name, A) in zip(axes, matrices.items(), strict=True):
    found = spectrum(jax.random.key(1), A)
    ax.semilogy(found.grid, found.density)
    ax.set(title=name, xlabel="eigenvalue", ylim=(1e-5, 100))
axes[0].set(ylabel="density")
plt.show()

top = H.top_eigenpairs(jax.random.key(2), 3)
trace = H.trace(jax.random.key(3))
print("largest eigenvalues", np.round(top.values, 2), "residuals", np.round(top.residuals, 5))
print(f"trace {trace.value:.1f} +- {trace.standard_error:.1f}")

# %% [markdown]
# ## The loss around it
#
# Along the two sharpest directions the loss rises as the eigenvalues say (dashed: the quadratic
# model); along random directions of the same length it hardly moves.

# %%
steps = jnp.linspace(-1, 1, 17)
sharp = curvature.hessian_directions(jax.random.key(2), H)
random = [curvature.random_direction(key, model) for key in seeds]
random = [optax.tree.scale(1 / optax.tree.norm(direction), direction) for direction in random]
surface = jax.jit(
    lambda first, second: curvature.loss_surface(
        mean_loss, model, (first, second), alphas=steps, betas=steps
    )
)
fig = plt.figure(figsize=(11, 3.2), layout="constrained")
pictures = [surface(*sharp), surface(*random)]
for place, (values, name) in enumerate(
    zip(pictures, ["Sharpest directions", "Random directions"], strict=True)
):
    ax = fig.add_subplot(1, 3, place + 1, projection="3d")
    grid = np.meshgrid(steps, steps, indexing="ij")
    ax.plot_surface(*grid, np.asarray(values), cmap="viridis", lw=0)
    ax.set(title=name, zlim=(0, pictures[0].max()))
ax = fig.add_subplot(1, 3, 3)
for row, value in enumerate(top.values[:2]):
    along = pictures[0][:, 8] if row == 0 else pictures[0][8]
    ax.plot(steps, along, f"C{row}", label=f"eigenvector {row + 1}")
    ax.plot(steps, mean_loss(model) + 0.5 * value * steps**2, f"C{row}--", lw=1)
ax.set(xlabel="step", ylabel="loss", title="Cuts and the quadratic model")
ax.legend()
plt.show()

# %% [markdown]
# ## From one network to another
#
# Two trained networks, a barrier between them on the straight line. Part of it is a matter of
# names: hidden units can be permuted, so those of the second network are matched to those of the
# first. And without matching there is a way around: a Bezier curve, trained for low loss all along
# it.

# %%
first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], cells[16]) for i in range(2))
spec = curvature.infer_permutations(predict, first, batch[0][0])
matching = curvature.weight_matching(jax.random.key(0), spec, first, second)
matched = curvature.apply_permutation(spec, matching.permutation, second)
curve = jax.jit(
    lambda key: curvature.fit_bezier(
        key,
        lambda key, params: mean_loss(params, drawn(key, 64)),
        first,
        second,
        optimizer=optax.adam(1e-2),
        num_steps=500,
    )
)(jax.random.key(1))

times = jnp.linspace(0, 1, 21)
middles = {
    "straight": jax.tree.map(lambda a, b: (a + b) / 2, first, second),
    "straight, units matched": jax.tree.map(lambda a, b: (a + b) / 2, first, matched),
    "curve": curve.middle,
}
fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
walk = jax.jit(
    lambda middle, end: curvature.bezier_connectivity(mean_loss, first, middle, end, times=times)
)
for name, middle in middles.items():
    found = walk(middle, matched if "matched" in name else second)
    ax.plot(times, found.errors, label=f"{name}: {found.value:.2f}")
ax.set(xlabel="from one network to the other", ylabel="training loss")
ax.set(title="Mode connectivity (below 0: a barrier)")
ax.legend()
plt.show()

# %% [markdown]
# ## Newton steps that put up with a wrong Hessian
#
# Gradient-normalized smoothness (Semenov et al. 2026, arXiv:2506.13710) damps a Newton step by the
# gradient's norm over a radius that is found by trial. Softmax regression with three Hessians: the
# exact one, the empirical Fisher, and none.


# %%
def linear(params, x):
    return x @ params


def linear_loss(params, x, label):
    data_loss = optax.softmax_cross_entropy_with_integer_labels(linear(params, x), label)
    return data_loss + 5e-4 * jnp.sum(params**2)


def objective(params):
    return jnp.mean(jax.vmap(linear_loss, (None, 0, 0))(params, *batch))


def empirical_fisher(params):
    return gradkin.empirical_fisher(gradkin.per_example_grads(linear_loss)(params, *batch))


hessians = {
    "Hessian": lambda params: gradkin.hessian(linear_loss)(params, *batch),
    "empirical Fisher": empirical_fisher,
    "none": None,
}


@functools.partial(jax.jit, static_argnames="name")
def descend(name):
    optimizer = curvature.gns(hessians[name], max_solve_steps=30)
    params = jnp.zeros((64, 10))
    value, grad = jax.value_and_grad(objective)(params)
    state = optimizer.init(params)._replace(value=value, grad=grad)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(
            state.grad, state, params, value=state.value, value_fn=objective
        )
        return (params + updates, state), (state.value, state.num_solves)

    return jax.lax.scan(step, (params, state), length=40)[1]


fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
curves = {name: descend(name) for name in hessians}
least = min(float(values.min()) for values, _ in curves.values())
for name, (values, _) in curves.items():
    ax.semilogy(np.arange(1, 31), values[:30] - least, label=name)
ax.set(xlabel="step", ylabel="loss above the least seen")
ax.legend()
plt.show()
print({name: int(solves[29]) for name, (_, solves) in curves.items()}, "trials in 30 steps")

# %% [markdown]
# The radius is a property of the function: how far the linear model of its gradient holds, relative
# to the gradient. For `cosh` it does not shrink towards the minimum, if only steps downhill count.

# %%
points = jnp.geomspace(0.01, 3, 12)
radii = jnp.geomspace(1e-2, 20, 300)
fig, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
for region in ("halfspace", "ball"):
    found = jax.vmap(
        lambda x, region=region: curvature.smoothness_radius(
            jax.random.key(0), jnp.cosh, x, jnp.cosh(x)[None, None], radii=radii, region=region
        )
    )(points)
    ax.loglog(points, found, "o-", label=region)
ax.set(xlabel="distance to the minimum", ylabel="radius")
ax.legend()
plt.show()
minimum = curvature.minimize_gns(jnp.cosh, 3.0, curvature_fn=lambda x: jnp.cosh(x)[None, None])
print(f"cosh from 3: {minimum.params:.1e} after {minimum.num_steps} steps")

# %% [markdown]
# ## A zoo on disk
#
# Every model in an Orbax checkpoint of its own, what is known about them in one file. Measures of
# the landscape tell in which phase of training a cell of hyper-parameters is.

# %%
line = jax.jit(functools.partial(curvature.bezier_connectivity, error, times=times))
pairs = []
for size, models in cells.items():
    one, two = (jax.tree.map(lambda leaf, i=i: leaf[i], models) for i in range(2))
    middle = jax.tree.map(lambda a, b: (a + b) / 2, one, two)
    logits = [jax.vmap(predict, (None, 0))(m, held_out[0]) for m in (one, two)]
    cell = {
        "batch": size,
        "loss": (mean_loss(one) + mean_loss(two)) / 2,
        "connectivity": line(one, middle, two).value,
        "similarity": kernels.linear_cka(*logits),
    }
    phase = curvature.classify_phase(
        cell["loss"],
        cell["connectivity"],
        cell["similarity"],
        loss_threshold=0.1,
        tolerance=0.03,
        similarity_threshold=0.9,
    )
    cell["phase"] = curvature.PHASES[int(phase)]
    pairs += [(one, {"seed": 0, **cell}), (two, {"seed": 1, **cell})]

with tempfile.TemporaryDirectory() as folder:
    store.save_zoo(folder, pairs)
    zoo = store.open_zoo(folder)
    for number in zoo.find(seed=0):
        record = zoo.records[number]
        sharpest = gradkin.hessian(loss)(zoo.params(number), *batch).top_eigenpairs(seeds[0])
        print(
            f"batch {record['batch']}: loss {record['loss']:.3f}, largest eigenvalue "
            f"{sharpest.values[0]:.1f}, connectivity {record['connectivity']:.2f}, "
            f"similarity {record['similarity']:.2f}: phase {record['phase']}"
        )
