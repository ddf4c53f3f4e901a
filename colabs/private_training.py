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
# # Private training on the gradient matrix
#
# DP-SGD clips the gradient of every example, adds noise to the sum, and so bounds what anyone can
# learn about one example from the trained model. The usual price is a gradient per example; on the
# lazy matrix `G` it is one backward pass. This notebook trains a small network at epsilon 3, reads
# the price off an accountant, attacks its own mechanism, and removes the bias of clipping.
#
# It runs in about a minute on two processor cores. On Colab: `pip install "gradkin[experiments]"`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import gradkin
from gradkin import data, gradients, optim

# %% [markdown]
# ## What one object knows
#
# The sampler says how a batch is drawn: each example joins by its own coin flip, and the batch is
# padded to one static size. The accountant is asked about *that* sampler, so the two cannot differ.

# %%
train, test = data.load("digits"), data.load("digits", "test")
x, y = jnp.asarray(data.images(train, flatten=True)), jnp.asarray(train["label"])
x_test, y_test = jnp.asarray(data.images(test, flatten=True)), jnp.asarray(test["label"])

sampling = gradients.PoissonSampling(len(x), 128 / len(x))
print(f"expected batch {sampling.expected_size:.0f}, padded to {sampling.size}")
print(f"a batch overflows with probability {sampling.overflow_probability:.0e}")

STEPS, DELTA = 200, 1e-5
z = gradients.noise_multiplier(sampling, steps=STEPS, epsilon=3.0, delta=DELTA)
print(f"noise multiplier for epsilon 3 over {STEPS} steps: {z:.3f}")


# %%
def init(key, widths=(64, 64, 10)):
    keys = jax.random.split(key, len(widths) - 1)
    return [
        {"w": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, "b": jnp.zeros(n)}
        for k, m, n in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def predict(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def loss(params, x, label):
    return optax.softmax_cross_entropy_with_integer_labels(predict(params, x), label)


private = gradients.private_gradient(loss, clip_norm=1.0, noise_multiplier=z, sampling=sampling)
spent = gradients.epsilon(private.mechanism, steps=STEPS, delta=DELTA)
print(f"epsilon of what will run: {spent:.3f}")

# %% [markdown]
# ## One step
#
# The result is typed: a mean knows that it is a mean, and its sensitivity and noise were divided
# with it. Only `value` is private; norms and clipped fractions are diagnostics for *you*.

# %%
params = init(jax.random.key(0))
rows, mask = sampling.sample(jax.random.key(1))
noised = private(jax.random.key(2), params, x[rows], y[rows], mask=mask)
print("reduction:", noised.reduction, " relation:", noised.relation)
print(f"sensitivity {noised.sensitivity:.5f}, noise {noised.noise_std[0]:.5f} per coordinate")
print(f"{noised.num_examples} examples, {noised.clipped_fraction[0]:.0%} clipped")

# %% [markdown]
# ## Training
#
# Any optax optimizer follows. Nothing recompiles although the number of examples changes.


# %%
def fit(private, rate, key):
    optimizer = optax.sgd(rate)

    @jax.jit
    def step(carry, key):
        params, state = carry
        draw, noise = jax.random.split(key)
        rows, mask = sampling.sample(draw)
        noised = private(noise, params, x[rows], y[rows], mask=mask)
        params, state = optim.update(optimizer, noised.value, state, params)
        right = jnp.mean(jnp.argmax(predict(params, x_test), axis=1) == y_test)
        return (params, state), right

    start = init(jax.random.key(0))
    (params, _), right = jax.lax.scan(
        step, (start, optimizer.init(start)), jax.random.split(key, STEPS)
    )
    return params, np.asarray(right)


ordinary = gradients.private_gradient(
    loss, clip_norm=np.inf, noise_multiplier=0.0, sampling=sampling
)
automatic = gradients.private_gradient(
    loss, clip_norm=1.0, noise_multiplier=z, sampling=sampling, style="automatic"
)
curves = {
    "no privacy": fit(ordinary, 0.5, jax.random.key(3))[1],
    "epsilon 3, clipped at 1": fit(private, 0.5, jax.random.key(3))[1],
    "epsilon 3, automatic clipping": fit(automatic, 0.5, jax.random.key(3))[1],
}
fig, ax = plt.subplots(figsize=(6, 3.2))
for name, curve in curves.items():
    ax.plot(100 * curve, label=f"{name} ({curve[-1]:.0%})")
ax.set(xlabel="step", ylabel="test accuracy (%)", ylim=(0, 100))
ax.legend()
plt.show()

# %% [markdown]
# With 1,438 training images privacy is expensive; with 60,000 the same epsilon costs a few points.
#
# ## What the budget buys
#
# Two accountants and three ways to draw a batch. What cannot be accounted for is refused.

# %%
for accountant in ("pld", "rdp"):
    spent = gradients.epsilon(private.mechanism, steps=STEPS, delta=DELTA, accountant=accountant)
    print(f"{accountant}: epsilon {spent:.3f}")
cut = gradients.PoissonSampling(len(x), 128 / len(x), padded_size=136)
mechanism = gradients.GaussianMechanism(z, cut)
print(f"padded to 136 only: epsilon {gradients.epsilon(mechanism, steps=STEPS, delta=DELTA):.3f}")
fixed = gradients.GaussianMechanism(z, gradients.FixedSizeSampling(len(x), 128))
try:
    gradients.epsilon(fixed, steps=STEPS, delta=DELTA)
except ValueError as error:
    print("refused:", error)

# %% [markdown]
# ## An attack
#
# A thousand canaries, each with a parameter of its own, join the data by coin flips. An attacker
# who sees the noised sum guesses which did. The guesses must not be better than epsilon allows.

# %%
everyone = gradients.FullBatch(1000)
budget = 1.0
strong = gradients.noise_multiplier(everyone, steps=1, epsilon=budget, delta=1e-6)
release = gradients.private_gradient(
    lambda w, i: 10.0 * w[i],
    clip_norm=1.0,
    noise_multiplier=strong,
    sampling=everyone,
    reduction="sum",
)
joined = jax.random.bernoulli(jax.random.key(4), 0.5, (1000,))
seen = release(jax.random.key(5), jnp.zeros(1000), jnp.arange(1000), mask=joined).value
order = np.argsort(np.asarray(seen))
right = np.sum(joined[order[-100:]]) + np.sum(~joined[order[:100]])
print(f"{right} of the 200 most confident guesses are right;")
allowed = 1 / (1 + np.exp(-budget))
print(f"an attacker at epsilon {budget:g} is right at most {allowed:.0%} of the time")

# %% [markdown]
# ## The bias of clipping, and its cure
#
# Clipping moves the optimum: on a line with four points at 0 and one at 10, descent along clipped
# gradients rests at 0.25 instead of 2. DiceSGD (Zhang et al. 2024) feeds back what clipping held
# back.

# %%
points = jnp.array([0.0, 0.0, 0.0, 0.0, 10.0])


def rest(feedback):
    transform = gradients.dicesgd(jax.random.key(0), clip_norm=1.0, feedback_clip_norm=feedback)

    def step(carry, _):
        w, state = carry
        G = gradkin.per_example_grads(lambda w, a: 0.5 * (w - a) ** 2)(w, points)
        update, state = transform.update(G, state)
        return (w - 0.01 * update, state), w

    w = jnp.float32(5.0)
    return jax.lax.scan(step, (w, transform.init(w)), length=6000)[1]


G = gradkin.per_example_grads(lambda w, a: 0.5 * (w - a) ** 2)(jnp.float32(2.0), points)
print(f"at the optimum the clipped mean is off by {gradients.clipping_bias(G, 1.0):.1f}")

fig, ax = plt.subplots(figsize=(6, 2.6))
ax.plot(rest(0.0), label="clipping alone")
ax.plot(rest(1.0), label="with error feedback")
ax.axhline(2.0, color="0.6", lw=1)
ax.set(xlabel="step", ylabel="w")
ax.legend()
plt.show()

# %% [markdown]
# The feedback remembers every batch, so the subsampled accountant does not apply to it, and the
# library says so instead of printing a number:

# %%
try:
    gradients.dicesgd_mechanism(
        clip_norm=1.0, feedback_clip_norm=1.0, noise_std=0.1, batch_size=128, sampling=sampling
    )
except ValueError as error:
    print("refused:", error)
std = gradients.dicesgd_noise_std(
    clip_norm=1.0, feedback_clip_norm=1.0, batch_size=128, num_examples=len(x), steps=STEPS,
    epsilon=8.0, delta=DELTA,
)  # fmt: skip
print(f"a sound but loose bound asks for noise of {std:.0f} on a mean clipped at 1")
