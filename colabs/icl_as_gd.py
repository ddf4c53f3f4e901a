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
# # In-context learning is gradient descent
#
# A transformer that has seen many small regression problems solves a new one from the examples in
# its context, without changing a weight. *How?* Von Oswald et al. (2023, arXiv:2212.07677) answer:
# each linear attention layer performs one step of gradient descent. This notebook builds such a
# layer by hand, trains one from scratch and finds that they are the same; then it goes deeper, to
# softmax, to classification, and to inputs of unequal variance.
#
# It runs in about two minutes on two processor cores.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import gradkin
from gradkin import icl, optim

key = jax.random.key(0)

# %% [markdown]
# ## 1. Tasks and tokens
#
# A task is a random teacher $W$, ten examples $(x_i, y_i = W x_i)$ and a query $x_q$. The examples
# become tokens $(x_i, y_i)$; the query becomes $(x_q, 0)$, its target still to be filled in.

# %%
tasks = icl.linear_tasks(key, 5000)
x, y, query, target = (leaf[0] for leaf in tasks)
tokens = icl.constructed_tokens(x, y, query)
print("context", x.shape, y.shape, " tokens", tokens.shape)

# %% [markdown]
# ## 2. One attention layer that is one step of gradient descent
#
# From $W_0 = 0$ a step of rate $\eta$ on $L(W) = \frac{1}{2N}\sum_i |W x_i - y_i|^2$ predicts
#
# $$\hat y = \frac{\eta}{N} \sum_i y_i \, (x_i \cdot x_q).$$
#
# Read it as attention: $x_q$ is the query, $x_i$ the key, $y_i$ the value, and there is no softmax.
# `gd_attention` writes down the four matrices (Proposition 1 of the paper).

# %%
rate = 6.0
built = icl.gd_attention(num_inputs=10, num_outputs=1, num_context=10, rate=rate)
by_attention = icl.predict(built, tokens)
by_descent = icl.gradient_descent(x, y, rate=rate)[-1] @ query
print("attention", by_attention, " gradient descent", by_descent)
np.testing.assert_allclose(by_attention, by_descent, rtol=1e-5)

# %% [markdown]
# The same sum hides in the matrix $G$ of per-example gradients: row $i$ is
# $(W_0 x_i - y_i)\, x_i^\top$, an outer product of what attention calls a value and a key. So
# `-rate * G.mean()`, applied to the query, is the attention layer. This is why in-context learning
# lives in a library about gradients.

# %%
loss = lambda w, example: ((w @ example[0] - example[1]) ** 2).sum() / 2
G = gradkin.per_example_grads(loss)(jnp.zeros((1, 10)), (x, y))
print("from G   ", -rate * G.mean() @ query)

# %% [markdown]
# Several layers are several steps: each shifts the targets by what has been learned so far.

# %%
states = icl.transformer(built, tokens, num_layers=6)
iterates = icl.gradient_descent(x, y, rate=rate, num_steps=6)
for step, (state, w) in enumerate(zip(states, iterates)):
    print(step, float(-state[-1, -1]), float((w @ query)[0]))

# %% [markdown]
# ## 3. The best rate in closed form
#
# For inputs with independent coordinates the expected loss is a parabola in the rate, so the best
# rate and its loss need no search.

# %%
best = icl.optimal_step(jnp.full(10, 1 / 12), num_context=10, kurtosis=icl.KURTOSIS["uniform"])
print(f"best rate {best.rate:.4f}, loss {best.loss:.5f}, loss of predicting 0 {best.null_loss:.5f}")


def mean_loss(predictor, tasks):
    predictions = jax.vmap(predictor)(tasks.x, tasks.y, tasks.query)
    return ((predictions - tasks.target) ** 2).mean() / 2


def descent(rate, num_steps=1):
    return lambda x, y, q: icl.gradient_descent(x, y, rate=rate, num_steps=num_steps)[-1] @ q


rates = jnp.linspace(0.0, 14.0, 29)
losses = jax.lax.map(lambda r: mean_loss(descent(r), tasks), rates)
searched, _ = icl.line_search(lambda r: mean_loss(descent(r), tasks), rates)
figure, ax = plt.subplots(figsize=(5, 3))
ax.plot(rates, losses, label="5000 tasks")
ax.plot(best.rate, best.loss, "o", label="closed form")
ax.set(xlabel="learning rate", ylabel="½ mean squared error", title=f"searched: {searched:.2f}")
_ = ax.legend()

# %% [markdown]
# ## 4. Train a layer and look inside
#
# Now forget the construction. A layer starts from tiny random weights and sees fresh tasks at every
# step; only its prediction at the query is scored. The whole training is one `lax.scan`, and three
# initialisations train at once.

# %%
optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(1e-3, b1=0.9, b2=0.98))


def attention(weights, **options):
    return lambda x, y, q: icl.predict(weights, icl.constructed_tokens(x, y, q), **options)


def train(key, weights, num_steps, batch=256, **options):
    """Train on fresh tasks; return the weights and the loss at every step."""

    def step(state, key):
        weights, opt_state = state
        batch_tasks = icl.linear_tasks(key, batch)
        loss_fn = lambda w: mean_loss(attention(w, **options), batch_tasks)
        value, grads = jax.value_and_grad(loss_fn)(weights)
        return optim.update(optimizer, grads, opt_state, weights), value

    start = (weights, optimizer.init(weights))
    (weights, _), losses = jax.lax.scan(step, start, jax.random.split(key, num_steps))
    return weights, losses


draw = functools.partial(icl.init_attention, width=11)
keys = jax.random.split(jax.random.key(1), 3)
trained, curves = jax.jit(lambda keys: jax.vmap(lambda k: train(k, draw(k), num_steps=3000))(keys))(
    keys
)
figure, ax = plt.subplots(figsize=(5, 3))
ax.plot(curves.reshape(3, -1, 50).mean(2).T)
ax.axhline(best.loss, color="k", linestyle="--", label="best step of gradient descent")
ax.set(xlabel="training step / 50", ylabel="½ mean squared error")
_ = ax.legend()

# %% [markdown]
# All or most of the curves end on the dashed line. (One that stays near 0.4 is on a plateau of rank
# one: keys read the targets there, and values the inputs. The layer to look at is the best one.)
#
# Multiply query by key and value by output: what training found is the construction.

# %%
fresh = icl.linear_tasks(jax.random.key(2), 5000)
scores = jax.vmap(lambda w: mean_loss(attention(w), fresh))(trained)
weights = jax.tree.map(lambda w: w[jnp.argmin(scores)], trained)
balanced = icl.balance(weights, num_inputs=10)
figure, axes = plt.subplots(1, 2, figsize=(8, 3))
for ax, matrix, title in zip(axes, (balanced.query, balanced.value), ("query-key", "value-output")):
    image = ax.imshow(matrix[0, 0], cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_title(f"{title} product")
    figure.colorbar(image, ax=ax)

# %%
constructed = icl.gd_attention(num_inputs=10, num_outputs=1, num_context=10, rate=best.rate)
print("loss     trained", float(mean_loss(attention(weights), fresh)))
print("loss  step of GD", float(mean_loss(descent(best.rate), fresh)))
print(icl.compare(attention(weights), descent(best.rate), fresh))
found = icl.project_on_construction(weights, num_inputs=10, num_outputs=1, num_context=10)
print(f"learned rate {found.rate:.3f}, residual {found.residual:.3f}")
halfway = icl.interpolate(weights, constructed, num_inputs=10)
print("loss halfway between the two in weight space", float(mean_loss(attention(halfway), fresh)))

# %% [markdown]
# **Exercise.** Scale the inputs, or draw them from another law (`icl.shifted_tasks`), or replace
# some targets by noise (`icl.replace_targets`). Both learners fail alike. Why must they?

# %%
for name, other in (
    ("inputs of other laws", icl.shifted_tasks(key, 5000, scale=3.0)),
    ("four noisy targets", icl.replace_targets(key, fresh, 4)),
):
    pair = mean_loss(attention(weights), other), mean_loss(descent(best.rate), other)
    print(f"{name:22} trained {pair[0]:.4f}   gradient descent {pair[1]:.4f}")

# %% [markdown]
# ## 5. Deeper: GD++
#
# Two trained layers beat two steps of gradient descent. What they find is close to **GD++**:
# besides descending, each layer shrinks the inputs along directions of large variance,
# $x_j \leftarrow (I - \gamma X^\top X)\, x_j$, so that the next step is better conditioned. Two
# scalars per step describe it.


# %%
def plus_plus(scalars, num_steps):
    rates, decays = (jnp.broadcast_to(s, (num_steps,)) for s in scalars)
    return lambda x, y, q: icl.gd_plus_plus(x, y, q, rates=rates, decays=decays)[-1]


few = jax.tree.map(lambda leaf: leaf[:1000], tasks)
adam = optax.adam(0.03)


@functools.partial(jax.jit, static_argnums=0)
def tune(num_steps, decay):
    """Adam on the logarithms of rate and decay, or on the rate alone where `decay` is 0."""
    scalars = lambda logs: jnp.exp(logs) * jnp.array([1.0, decay])
    objective = lambda logs: mean_loss(plus_plus(scalars(logs), num_steps), few)

    def step(state, _):
        logs, opt_state = state
        return optim.update(adam, jax.grad(objective)(logs), opt_state, logs), None

    start = jnp.log(jnp.array([6.0, 0.1]))
    (logs, _), _ = jax.lax.scan(step, (start, adam.init(start)), length=150)
    return scalars(logs)


for num_steps in (2, 3, 5):
    plain, plus = tune(num_steps, 0.0), tune(num_steps, 1.0)
    pair = [float(mean_loss(plus_plus(s, num_steps), fresh)) for s in (plain, plus)]
    print(f"{num_steps} steps: GD {pair[0]:.4f}, GD++ {pair[1]:.4f} (decay {plus[1]:.3f})")

# %% [markdown]
# ## 6. Softmax
#
# One softmax head cannot descend: its scores are positive. Two heads with opposite keys and
# opposite outputs cancel the constant term of
# $\mathrm{softmax}(bk)_i \approx \frac1N(1 + b(k_i - \bar k))$, and what is left is a step on
# centred inputs. `softmax_gd_attention` writes it down.


# %%
def centred_descent(x, y, q):
    return descent(best.rate)(x - x.mean(0, keepdims=True), y, q)


for sharpness in (3.0, 1.0, 0.3):
    heads = icl.softmax_gd_attention(
        num_inputs=10, num_outputs=1, num_context=10, rate=best.rate, sharpness=sharpness
    )
    alike = icl.compare(attention(heads, softmax="all"), centred_descent, fresh)
    print(f"sharpness {sharpness}: difference of predictions {alike.prediction_difference:.5f}")

# %% [markdown]
# ## 7. Classification
#
# At zero weights the softmax of the logits is uniform, so minus the gradient of the cross-entropy
# is $\frac1N\sum_i (y_i - 1/C)\, x_i^\top$: the same layer, with centred labels as values.

# %%
classes = icl.classification_tasks(key, 2000, num_context=40, num_classes=3)
layer = icl.gd_attention(num_inputs=10, num_outputs=3, num_context=40, rate=10.0)


def classify(x, y, query):
    shifted = icl.constructed_tokens(x, icl.centered_labels(y), query)
    return icl.predict(layer, shifted, num_outputs=3)


logits = jax.vmap(classify)(classes.x, classes.y, classes.query)
accuracy = (logits.argmax(-1) == classes.target.argmax(-1)).mean()
print(f"accuracy of one attention layer on new tasks: {accuracy:.3f} (chance 0.333)")

# %% [markdown]
# ## 8. Unequal variances: preconditioned descent
#
# Where input directions differ in variance $v_k$, the best layer takes a different rate in each:
# $p_k = N / ((N + \kappa - 2) v_k + \sum_j v_j + \sigma^2)$. The gain over a single rate grows with
# the condition number, and one `vmap` draws the whole curve.

# %%
conditions = jnp.logspace(0, 3, 30)
spectra = conditions[:, None] ** -jnp.linspace(0, 1, 10)[None]
spectra = spectra / spectra.sum(1, keepdims=True)
figure, ax = plt.subplots(figsize=(5, 3))
for noise, style in ((0.0, "-"), (0.5, "--")):
    optimum = functools.partial(icl.optimal_step, num_context=20, kurtosis=3.0, noise=noise)
    sweep = jax.vmap(optimum)(spectra)
    ax.semilogx(conditions, sweep.loss, style, color="C0", label=f"best rate, noise {noise}")
    ax.semilogx(
        conditions, sweep.preconditioned_loss, style, color="C1", label=f"preconditioned, {noise}"
    )
ax.set(xlabel="condition number", ylabel="expected loss")
_ = ax.legend(fontsize=7)

# %% [markdown]
# ## 9. The same model in Flax NNX
#
# The weights move between pure functions and an NNX module without loss.

# %%
module = icl.nnx_transformer(weights)
batch = jax.vmap(icl.constructed_tokens)(fresh.x, fresh.y, fresh.query)
difference = jnp.abs(module(batch) - jax.vmap(functools.partial(icl.predict, weights))(batch))
print("largest difference", float(difference.max()))

# %% [markdown]
# ## Where to go on
#
# - `python -m experiments run icl/gradient_descent` is section 4 as an experiment, with claims that
#   can fail; `icl/deep`, `icl/softmax`, `icl/nonlinear`, `icl/copying` and `icl/preconditioning`
#   cover the rest.
# - `icl/softmax_regression` asks the same question of softmax regression (Li et al. 2023,
#   arXiv:2304.13276): `icl.label_shift` and `icl.shift_bounds`.
