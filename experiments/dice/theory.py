"""The theorems of ODICE in checkable form (Mao et al. 2024, arXiv:2402.00348, section 4).

Four statements on one update, checked on random networks and transitions instead of cited:
T1 the projected backward gradient does not disturb the forward loss to first order (log-log slope
2 in the step size; 1 for the plain backward gradient); T2 it lowers the full residual loss, on a
single transition by eta (lambda gamma w |grad V(s')| sin(angle))^2 per unit step; T3 its effect on
the features' inner product grad V(s) . grad V(s') to first order, and the claim that the product
falls; T4 for a linear V, a large inner product makes the order of V(s), V(s') fragile to noise.
All steps are plain gradient steps: Adam rescales coordinates and breaks the first-order argument.

    python -m experiments run dice/theory --preset quick --seeds 3       # under a minute
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.runner import Claim
from gradkin.dice import (
    Transitions,
    f_divergence,
    init_heads,
    orthogonal_gradient,
    value_heads,
)

PAPERS = ("odice",)
VMAP_SEEDS = True


@dataclasses.dataclass(frozen=True)
class Config:
    draws: int = 64
    batch: int = 32
    width: int = 32
    observation_size: int = 4
    lam: float = 0.4
    eta: float = 1.0
    discount: float = 0.99
    step: float = 1e-2  # the largest of the steps, halved each time
    halvings: int = 6


PRESETS = {
    "smoke": Config(draws=2, batch=4, width=8, halvings=2),
    "quick": Config(),
    "paper": Config(draws=1024, batch=256, width=256),
}


def load(config: Config) -> dict:
    return {}


def dot(left, right) -> Any:
    return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)))


def moved(params, direction, step):
    return jax.tree.map(lambda p, d: p - step * d, params, direction)


def value(params, states):
    return value_heads(params, states)[0][0]


def problem(config: Config, key, batch: int):
    """A random network, a target near it, and random transitions."""
    keys = jax.random.split(key, 4)
    params = init_heads(keys[0], 1, (config.observation_size, config.width, config.width, 1))
    drift = jax.random.normal(keys[1], ())
    target = jax.tree.map(lambda p: p * (1 + 0.05 * drift), params)
    states = jax.random.normal(keys[2], (2, batch, config.observation_size))
    reward = jax.random.normal(keys[3], (batch,))
    data = Transitions(states[0], reward, reward, states[1], jnp.zeros(batch))
    return params, target, data


def losses(config: Config, target, data):
    """Forward, backward (other side constant) and full loss, as functions of the parameters."""
    f = f_divergence("pearson")

    def loss(here, after):
        return config.lam * f.conjugate(data.reward + config.discount * after - here).mean()

    here, after = value(target, data.observation), value(target, data.next_observation)
    forward = lambda p: loss(value(p, data.observation), after)
    backward = lambda p: loss(here, value(p, data.next_observation))
    full = lambda p: loss(value(p, data.observation), value(p, data.next_observation))
    return forward, backward, full


def gradients(config: Config, params, target, data):
    forward, backward, full = losses(config, target, data)
    g_f, g_b = jax.grad(forward)(params), jax.grad(backward)(params)
    combined = orthogonal_gradient(g_f, g_b, config.eta).gradient
    perp = jax.tree.map(lambda g, f: g - f, combined, g_f)
    return forward, full, g_f, g_b, perp


def interference(config: Config, key):
    """T1: |L1(theta - a (g_f + d)) - L1(theta - a g_f)| over step sizes a, d = projected or not."""
    params, target, data = problem(config, key, config.batch)
    forward, _, g_f, g_b, perp = gradients(config, params, target, data)
    steps = config.step * 0.5 ** jnp.arange(config.halvings + 1.0)

    def change(direction, step):
        # The line integral of the slope: the difference of two nearly equal losses would be noise.
        base = moved(params, g_f, step)
        share = (jnp.arange(8.0) + 0.5) / 8
        slope = lambda u: -dot(jax.grad(forward)(moved(base, direction, u * step)), direction)
        return jnp.abs(step * jax.vmap(slope)(share).mean())

    curve = lambda d: jax.vmap(lambda a: change(d, a))(steps)
    norms = jnp.sqrt(dot(g_f, g_f) * dot(g_b, g_b))
    return {
        "steps": steps,
        "projected": curve(perp),
        "plain": curve(g_b),
        "orthogonality": jnp.abs(dot(g_f, perp)) / norms,
    }


def decrease(config: Config, key):
    """T2 on one transition, target = online: slope of the full loss along the projected part."""
    params, _, data = problem(config, key, 1)
    forward, full, g_f, _, perp = gradients(config, params, params, data)
    seen = dot(jax.grad(full)(params), perp)
    grad_here = jax.grad(lambda p: value(p, data.observation)[0])(params)
    grad_after = jax.grad(lambda p: value(p, data.next_observation)[0])(params)
    residual = data.reward + config.discount * value(params, data.next_observation)
    residual = residual - value(params, data.observation)
    weight = f_divergence("pearson").density_ratio(residual)[0]
    after_squared = dot(grad_after, grad_after)
    sine_squared = after_squared - dot(grad_here, grad_after) ** 2 / dot(grad_here, grad_here)
    scale = config.eta * (config.lam * config.discount * weight) ** 2
    predicted = scale * sine_squared
    return {"slope": seen, "predicted": predicted, "scale": scale * after_squared}


def adaptation(config: Config, key):
    """T3 on one transition: change of grad V(s) . grad V(s'), to first order and measured."""
    params, target, data = problem(config, key, 1)
    _, _, _, _, perp = gradients(config, params, target, data)
    at = lambda states: jax.grad(lambda p: value(p, states)[0])

    def product(p):
        return dot(at(data.observation)(p), at(data.next_observation)(p))

    curved = lambda states: jax.jvp(at(states), (params,), (perp,))[1]
    first = -dot(at(data.observation)(params), curved(data.next_observation))
    first = first - dot(at(data.next_observation)(params), curved(data.observation))
    # A smooth piece of the ReLU network, so a central difference of small steps is exact enough.
    small = 1e-3
    ahead, behind = product(moved(params, perp, small)), product(moved(params, perp, -small))
    return {"first_order": first, "measured": (ahead - behind) / (2 * small)}


def fragility(config: Config, key):
    """T4 for V(s) = w . W s: with |phi| <= sqrt(A), Psi > A - C |noise|^2 makes a flip possible."""
    keys = jax.random.split(key, 5)
    size = config.observation_size
    features = jax.random.normal(keys[0], (config.width, size)) / size**0.5
    weights = jax.random.normal(keys[1], (config.width,))
    s = jax.random.normal(keys[2], (size,))
    after = s + jnp.exp(jax.random.uniform(keys[3], minval=-6, maxval=1)) * jax.random.normal(
        keys[4], (size,)
    )
    phi, phi_after = features @ s, features @ after
    bound = jnp.maximum(phi @ phi, phi_after @ phi_after)
    slope = features.T @ weights
    constant = (slope @ slope) / (2 * (weights @ weights))
    noise_size = 0.3
    condition = phi @ phi_after > bound - constant * noise_size**2
    order = jnp.sign(weights @ (phi_after - phi))
    noise = -order * noise_size * slope / jnp.sqrt(slope @ slope)
    flipped = jnp.sign(weights @ (features @ (after + noise) - phi)) != order
    return {"condition": condition, "flipped": flipped}


def run(config: Config, key, data, loop):
    checks = {"T1": interference, "T2": decrease, "T3": adaptation, "T4": fragility}

    @jax.jit
    def everything(keys):
        out = {}
        for index, (name, check) in enumerate(checks.items()):
            draw = jax.vmap(jax.vmap(functools.partial(check, config)))
            fold = functools.partial(jax.random.fold_in, data=index)
            split = lambda k, fold=fold: jax.random.split(fold(k), config.draws)
            out |= {f"{name}_{part}": v for part, v in draw(jax.vmap(split)(keys)).items()}
        return out

    return everything(key)


def slope(metrics, name):
    """[S]: median over the draws of the log-log slope in the step size, T1."""
    x = np.log(metrics["T1_steps"][0, 0])
    y = np.log(np.maximum(metrics[f"T1_{name}"], 1e-30))
    x = x - x.mean()
    return np.median((y * x).sum(-1) / (x * x).sum(), -1)


def conditional(metrics):
    """[S]: of the draws that meet T4's condition, the share that the noise flips."""
    met = metrics["T4_condition"]
    return (met & metrics["T4_flipped"]).sum(1) / np.maximum(met.sum(1), 1)


def falls(metrics):
    """[S]: share of the draws in which T3's product changes that lower it."""
    change = metrics["T3_first_order"]
    return (change < 0).sum(1) / np.maximum((change != 0).sum(1), 1)


CLAIMS = (
    Claim(
        "The projected backward gradient is orthogonal to the forward one (worst draw).",
        "odice", "exact", lambda m: m["T1_orthogonality"].max(1),
        lambda x: x < 1e-5, "every", "< 1e-5", "reproduced",
    ),
    Claim(
        "T1: it changes the forward loss only to second order in the step.",
        "odice", "theorem", lambda m: slope(m, "projected"),
        lambda x: abs(x - 2) <= 0.1, "every", "2 +- 0.1", "reproduced",
    ),
    Claim(
        "T1, contrast: the plain backward gradient changes it to first order.",
        "odice", "theorem", lambda m: slope(m, "plain"),
        lambda x: abs(x - 1) <= 0.1, "every", "1 +- 0.1", "reproduced",
    ),
    Claim(
        "T2: along it the full residual loss falls at the rate of the closed form (worst "
        "difference, relative to the rate without the sine).",
        "odice", "theorem",
        lambda m: np.max(np.abs(m["T2_slope"] - m["T2_predicted"]) / (m["T2_scale"] + 1e-12), 1),
        lambda x: x < 1e-4, "every", "< 1e-4", "reproduced",
    ),
    Claim(
        "T3: the change of the features' product is the predicted one to first order (median "
        "relative difference).",
        "odice", "theorem",
        lambda m: np.median(
            np.abs(m["T3_measured"] - m["T3_first_order"])
            / (np.abs(m["T3_first_order"]) + 1e-6), 1),
        lambda x: x < 0.02, "every", "< 0.02", "reproduced",
    ),
    Claim(
        "T3: without the theorem's conditions, at initialisation, the orthogonal part still lowers "
        "the features' inner product (share of the draws with a change).",
        "odice", "theorem under conditions",
        falls, lambda x: x >= 0.9, "mean", ">= 0.9", "not reproduced",
    ),
    Claim(
        "T4: where the features' product exceeds A - C |noise|^2, noise of that size flips the "
        "order of V(s) and V(s').",
        "odice", "theorem", conditional, lambda x: x == 1, "every", "= 1", "reproduced",
    ),
)  # fmt: skip


def plot(metrics):
    figure, axes = figures.panels(1, 3)
    steps = metrics["T1_steps"][0, 0]
    for name, label in (("projected", "projected (slope 2)"), ("plain", "plain (slope 1)")):
        axes[0].loglog(steps, np.median(metrics[f"T1_{name}"], (0, 1)), "o-", label=label)
    axes[0].set(title="T1: change of the forward loss", xlabel="step size")
    axes[0].legend()
    for ax, x, y, title in (
        (axes[1], "T2_predicted", "T2_slope", "T2: decrease of the full loss"),
        (axes[2], "T3_first_order", "T3_measured", "T3: change of the product"),
    ):
        ax.plot(metrics[x].ravel(), metrics[y].ravel(), ".")
        ends = [metrics[x].min(), metrics[x].max()]
        ax.plot(ends, ends, linewidth=1)
        ax.set(title=title, xlabel="predicted per unit step", ylabel="seen")
    return figure
