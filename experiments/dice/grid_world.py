"""Dual value learning in a grid world against the exact optimum (Mao et al., arXiv:2402.00348).

A tabular, deterministic world in which everything can be computed: V* by value iteration, the value
of a policy by a linear solve, and, for the semi-gradient, a bound on how far its fixed point lies
from V*. At that fixed point the mean density ratio over the moves of a state is
(1 - lambda)/lambda, so with A equally frequent moves the best residual m of a state obeys, for
Pearson, 2((1 - lambda)/lambda - 1) <= m <= 2(A (1 - lambda)/lambda - 1), and
|V/c - V*| <= max|m| / (c (1 - gamma)) where c scales the rewards. The policy is read off by the
density ratio, pi(a|s) ~ omega*(R(s, a)).

    python -m experiments run dice/grid_world --preset quick --seeds 3      # under a minute
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.runner import Claim
from gradkin.dice import (
    Transitions,
    f_divergence,
    grid_transitions,
    grid_world,
    move_values,
    policy_value,
    polyak_update,
    value_gradient,
    value_iteration,
)

PAPERS = ("odice",)
VMAP_SEEDS = True

SMALL = "S..\n.#.\n..G"
ROOMS = """
S...#....
....#....
.........
....#....
#.#####.#
....#....
....#....
.........
....#...G
"""


@dataclasses.dataclass(frozen=True)
class Config:
    drawing: str = ROOMS
    lam: float = 0.5
    etas: tuple[float, ...] = (0.0, 1.0)
    scales: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    discount: float = 0.95
    learning_rate: float = 20.0
    target_rate: float = 0.1
    num_steps: int = 20_000
    every: int = 1_000
    spread: float = 1.0  # of the initial table; the only thing the seeds change


PRESETS = {
    "smoke": Config(drawing=SMALL, scales=(1.0, 3.0), num_steps=4, every=2),
    "quick": Config(),
    "paper": Config(num_steps=200_000, every=10_000),
}


def load(config: Config) -> Transitions:
    """Every move of every state once: the exact expectation over uniform data."""
    return grid_transitions(grid_world(config.drawing))


def bound(config: Config) -> float:
    """How far V/c may lie from V* at the semi-gradient's fixed point, times c."""
    odds = (1 - config.lam) / config.lam
    low, high = 2 * (odds - 1), 2 * (4 * odds - 1)
    return max(abs(low), abs(high)) / (1 - config.discount)


def run(config: Config, key, data, loop):
    world = grid_world(config.drawing)
    states = len(world.cells)
    scales = jnp.asarray(config.scales)
    rules = [("orthogonal", eta) for eta in config.etas] + [("true", 0.0)]
    lookup = lambda table, state: table[state]

    def init(key):
        table = config.spread * jax.random.normal(key, (states,))
        tables = jnp.broadcast_to(table, (len(rules), len(config.scales), states))
        return {"online": tables, "target": tables}

    def step(state, data):
        def one(online, target, scale, rule, eta):
            batch = data._replace(reward=scale * jnp.asarray(data.reward))
            out = value_gradient(
                lookup, online, target, batch,
                lam=config.lam, eta=eta, discount=config.discount, rule=rule,
            )  # fmt: skip
            online = online - config.learning_rate * out.gradient
            return online, polyak_update(target, online, config.target_rate)

        rows = []
        for index, (rule, eta) in enumerate(rules):
            along = jax.vmap(lambda o, t, s, rule=rule, eta=eta: one(o, t, s, rule, eta))
            rows.append(along(state["online"][index], state["target"][index], scales))
        online, target = (jnp.stack(side) for side in zip(*rows))
        return {"online": online, "target": target}

    uniform = jnp.full((states, 4), 0.25)
    optimum = jax.jit(lambda: value_iteration(world, config.discount))()
    random = jax.jit(lambda: policy_value(world, uniform, config.discount))()
    free = jnp.asarray(np.arange(states) != world.goal, jnp.float32)

    def read(online, scale):
        value = online * free / scale
        residual = scale * (move_values(world, value, config.discount) - value[:, None])
        ratio = f_divergence("pearson").density_ratio(residual)
        total = ratio.sum(1, keepdims=True)
        policy = jnp.where(total > 0, ratio / jnp.where(total > 0, total, 1.0), 0.25)
        reached = policy_value(world, policy, config.discount)[world.start]
        best, worst = optimum[world.start], random[world.start]
        return {
            "error": jnp.max(jnp.abs(value - optimum)),
            "regret": (best - reached) / (best - worst),
            "mean_ratio": (ratio.mean(1) * free).sum() / free.sum(),
        }

    def evaluate(state, data):
        return jax.vmap(jax.vmap(read), in_axes=(0, None))(state["online"], scales)

    state, history = loop(
        step, jax.jit(jax.vmap(init))(key), config.num_steps, every=config.every, evaluate=evaluate,
        data=data,
    )  # fmt: skip
    tile = lambda x: jnp.tile(jnp.asarray(x)[None], (key.shape[0], *[1] * jnp.ndim(x)))
    return {
        **{f"{name}_curve": values for name, values in history.items() if name != "mean_ratio"},
        **{name: values[:, -1] for name, values in history.items()},
        "value": state["online"][:, :, -1] * free[None, None] / scales[-1],
        "optimum": tile(optimum),
        "cells": tile(world.cells),
        "scales": tile(scales),
        "bound": tile(bound(config) / scales),
        "odds": tile((1 - config.lam) / config.lam),
        "steps": tile(np.arange(config.num_steps // config.every + 1.0) * config.every),
    }


SEMI, ORTHOGONAL, TRUE = 0, 1, 2

CLAIMS = (
    Claim(
        "The semi-gradient's value lies within the bound of V* at every reward scale (largest "
        "error over bound).",
        "odice", "theory", lambda m: (m["error"][:, SEMI] / m["bound"]).max(1),
        lambda x: x <= 1, "every", "<= 1", "reproduced",
    ),
    Claim(
        "At the semi-gradient's fixed point the mean density ratio is (1 - lambda)/lambda "
        "(relative difference, all scales).",
        "odice", "theory",
        lambda m: np.abs(m["mean_ratio"][:, SEMI] / m["odds"][:, None] - 1).max(1),
        lambda x: x < 0.02, "every", "< 0.02", "reproduced",
    ),
    Claim(
        "The policy of the semi-gradient is optimal at the largest reward scale (regret, random "
        "policy = 1).",
        "odice", "qualitative", lambda m: m["regret"][:, SEMI, -1],
        lambda x: x <= 0.05, "every", "<= 0.05", "reproduced",
    ),
    Claim(
        "So is the policy of the orthogonal gradient.",
        "odice", "qualitative", lambda m: m["regret"][:, ORTHOGONAL, -1],
        lambda x: x <= 0.05, "every", "<= 0.05", "reproduced",
    ),
    Claim(
        "The true gradient does not find the path: its regret is larger than the orthogonal's.",
        "odice", "qualitative", lambda m: m["regret"][:, TRUE, -1] - m["regret"][:, ORTHOGONAL, -1],
        lambda x: x > 0.05, "every", "> 0.05", "reproduced",
    ),
)  # fmt: skip


def plot(metrics):
    figure, axes = figures.panels(2, 3, height=2.8)
    cells = metrics["cells"][0].astype(int)
    picture = np.full(cells.max(0) + 1, np.nan)
    shown = (("V* (value iteration)", metrics["optimum"][0]),)
    titles = ("semi-gradient", "orthogonal, eta 1", "true gradient")
    shown += tuple(zip(titles, metrics["value"].mean(0)))
    for ax, (title, value) in zip(axes.ravel()[:4], shown):
        picture[tuple(cells.T)] = value
        image = ax.imshow(picture.copy())
        ax.set(title=title, xticks=(), yticks=())
        ax.grid(False)
        figure.colorbar(image, ax=ax, shrink=0.8)
    scales = metrics["scales"][0]
    for index, label in enumerate(("semi", "orthogonal", "true")):
        error = metrics["error"][:, index].mean(0)
        axes[1, 1].loglog(scales, error, "o-", label=label)
        axes[1, 2].semilogx(scales, metrics["regret"][:, index].mean(0), "o-", label=label)
    axes[1, 1].loglog(scales, metrics["bound"][0], "--", label="bound (semi)")
    axes[1, 1].set(title="max |V / scale - V*|", xlabel="reward scale")
    axes[1, 2].set(title="regret (random policy: 1)", xlabel="reward scale")
    axes[1, 1].legend()
    return figure
