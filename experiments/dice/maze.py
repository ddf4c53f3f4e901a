"""Orthogonal-gradient value learning in a point maze (Mao et al. 2024, arXiv:2402.00348).

The value of a dual (DICE) objective can be trained by the true gradient, the semi-gradient, or the
forward gradient plus the part of the backward gradient orthogonal to it. Claimed: the true gradient
fails; the semi-gradient finds the path but leaves states outside the data high; the orthogonal one
finds it and lowers them. Here: a point, a wall, two corridors, 60 noisy trajectories, a reward of
-1 per step; the four arms share seeds, batches and budget. What the paper leaves open of the
demonstrations (noise, corridors) was set by looking at the semi-gradient's success alone. A second
design (sparse data, larger steps, layer norm, a sweep of eta) looks for the claimed effects on
features and robustness.

    python -m experiments run dice/maze --preset quick --seeds 8        # about 2 minutes
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.runner import Claim
from gradkin.dice import (
    OdiceConfig,
    PointMaze,
    act,
    flatten_episodes,
    maze_demonstrations,
    maze_rollout,
    odice_init,
    odice_update,
    sample_transitions,
    success_rate,
    value_heads,
)

PAPERS = ("odice",)
VMAP_SEEDS = True


@dataclasses.dataclass(frozen=True)
class Config:
    lam: float = 0.4
    etas: tuple[float, ...] = (0.0, 1.0, 3.0)  # 0 is the semi-gradient
    sweep_etas: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 5.0)
    episodes: int = 60
    sweep_episodes: int = 20
    step: float = 0.05
    sweep_step: float = 0.1
    width: int = 32
    batch: int = 128
    num_steps: int = 3000
    every: int = 300
    learning_rate: float = 1e-3
    horizon: int = 200
    data_seed: int = 0


PRESETS = {
    "smoke": Config(
        etas=(0.0, 1.0), sweep_etas=(), episodes=4, sweep_episodes=2, width=8, batch=16,
        num_steps=4, every=2, horizon=40,
    ),
    "quick": Config(),
    "paper": Config(width=256, batch=256, num_steps=100_000, every=5_000, learning_rate=2e-4),
}  # fmt: skip


OOD_DISTANCE = 0.12  # a state further than this from every state of the data is outside it
NOISE_START, NOISE_STATE, STARTS = 0.12, 0.03, 32


def center(positions):
    """What the networks see: the square as [-1, 1]^2."""
    return 2 * positions - 1


def load(config: Config) -> dict[str, Any]:
    """Demonstrations of both designs, and which points of a grid lie outside them."""
    return {
        "main": demonstrations(config, config.episodes, config.step),
        "sweep": demonstrations(config, config.sweep_episodes, config.sweep_step),
    }


def demonstrations(config: Config, episodes: int, step: float) -> dict[str, Any]:
    key = jax.random.key(config.data_seed)
    made = maze_demonstrations(key, PointMaze(step=step), episodes, horizon=config.horizon)
    train, _ = flatten_episodes(made)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 41)] * 2, indexing="ij"), -1).reshape(-1, 2)
    nearest = np.min([np.linalg.norm(grid - s, axis=1) for s in train.observation], 0)
    ends = {name: center(getattr(train, name)) for name in ("observation", "next_observation")}
    return {
        "train": train._replace(**ends),
        "grid": center(grid).astype(np.float32),
        "outside": (nearest > OOD_DISTANCE).astype(np.float32),
    }


def agents(config: Config, etas, *, layer_norm: bool) -> tuple[OdiceConfig, OdiceConfig]:
    """Settings of the arms with a target (eta mapped over) and of the true gradient."""
    shared = OdiceConfig(
        lam=config.lam,
        eta=jnp.asarray(etas),
        value_learning_rate=config.learning_rate,
        policy_learning_rate=config.learning_rate,
        weight_decay=0.0,
        value_sizes=(config.width, config.width),
        policy_sizes=(config.width, config.width),
        num_heads=1,
        layer_norm=layer_norm,
    )
    return shared, dataclasses.replace(shared, eta=0.0, rule="true")


def train(config: Config, keys, data, loop, *, etas, step: float, layer_norm: bool, name: str):
    """All arms side by side; the last arm is the true gradient. Metrics are [S, arms, ...]."""
    with_target, true = agents(config, etas, layer_norm=layer_norm)
    per_eta = jax.tree.unflatten(jax.tree.structure(with_target), [None, 0])
    maze = PointMaze(step=step)

    def init(key):
        fresh = odice_init(key, true, observation_size=2, action_size=2)
        arms = jax.tree.map(lambda x: jnp.stack([x] * len(etas)), fresh)
        return {"key": key, "arms": arms, "true": fresh, "cosine": jnp.zeros(len(etas) + 1)}

    def update(state, data):
        key, batch_key = jax.random.split(state["key"])
        batch = sample_transitions(batch_key, data["train"], config.batch)
        many = jax.vmap(odice_update, in_axes=(per_eta, 0, None))
        arms, seen = many(with_target, state["arms"], batch)
        one, seen_true = odice_update(true, state["true"], batch)
        cosine = jnp.append(seen.diagnostics.cosine, seen_true.diagnostics.cosine)
        mean = state["cosine"] + 0.01 * (cosine - state["cosine"])
        return {"key": key, "arms": arms, "true": one, "cosine": mean}

    def both(state):
        return jax.tree.map(
            lambda a, b: jnp.concatenate([a, b[None]]), state["arms"], state["true"]
        )

    def evaluate(state, data):
        start_key, noise_key = jax.random.split(jax.random.key(1))
        jitter = NOISE_START * jax.random.normal(start_key, (STARTS, 2))
        starts = jnp.asarray(maze.start)[None] + jitter.at[0].set(0.0)
        # A perturbed start stays on its side of the wall.
        starts = jnp.clip(starts, 0.0, jnp.array([maze.wall_x - 0.02, 1.0])[None])
        noise = 2 * NOISE_STATE * jax.random.normal(noise_key, data["train"].observation.shape)

        def measure(agent):
            value = lambda s: value_heads(agent.value, s)[0].mean(0)
            here, phi = value_heads(agent.value, data["train"].observation)
            after, phi_after = value_heads(agent.value, data["train"].next_observation)
            shaken = value(data["train"].next_observation + noise)
            here, after = here.mean(0), after.mean(0)
            grid, outside = value(data["grid"]), data["outside"]
            policy = lambda at, _: act(agent.policy, center(at))
            run = lambda s: maze_rollout(maze, policy, s, config.horizon)
            product = (phi * phi_after).sum(-1)
            norms = jnp.sqrt((phi**2).sum(-1) * (phi_after**2).sum(-1))
            return {
                "value": here.mean(),
                "gap": (grid * outside).sum() / outside.sum() - here.mean(),
                "success": success_rate(run(starts[:1])),
                "perturbed": success_rate(run(starts[1:])),
                "flips": ((shaken > here) != (after > here)).mean(),
                "product": product.mean(),
                "feature_cosine": (product / jnp.maximum(norms, 1e-9)).mean(),
            }

        return {**jax.vmap(measure)(both(state)), "cosine": state["cosine"]}

    state, history = loop(
        update, jax.jit(jax.vmap(init))(keys), config.num_steps,
        every=config.every, evaluate=evaluate, data=data, name=name,
    )  # fmt: skip
    last = {name: jnp.moveaxis(value, 1, -1) for name, value in history.items()}
    return last, jax.vmap(lambda s: both(s).value)(state)


def run(config: Config, key, data, loop):
    history, final = train(
        config, key, data["main"], loop,
        etas=config.etas, step=config.step, layer_norm=False, name="main",
    )  # fmt: skip
    sweep = {}
    if config.sweep_etas:  # smoke leaves it out
        sweep, _ = train(
            config, key, data["sweep"], loop,
            etas=config.sweep_etas, step=config.sweep_step, layer_norm=True, name="sweep",
        )  # fmt: skip
    coarse = data["main"]["grid"].reshape(41, 41, 2)[::2, ::2].reshape(-1, 2)
    value = lambda params: value_heads(params, coarse)[0].mean(0).reshape(21, 21)
    seeds = key.shape[0]
    tile = lambda values: jnp.tile(jnp.asarray(values), (seeds, 1))
    return {
        **history,
        **{f"sweep_{name}": values[..., -1] for name, values in sweep.items()},
        "map": jax.jit(jax.vmap(jax.vmap(value)))(final),
        "eta": tile(config.etas),
        **({"sweep_eta": tile(config.sweep_etas)} if sweep else {}),
        "steps": tile(np.arange(config.num_steps // config.every + 1.0) * config.every),
    }


def arm(metrics: dict, eta: float, prefix: str = "") -> int:
    return int(np.flatnonzero(np.isclose(metrics[f"{prefix}eta"][0], eta))[0])


def last(metrics: dict, name: str, which: float | str) -> np.ndarray:
    """[S]: a metric at the end, of the arm with this eta or of "true"."""
    index = -1 if which == "true" else arm(metrics, float(which))
    return metrics[name][:, index, -1]


def pooled(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(mean b - mean a) / pooled sd, the same number for every seed."""
    sd = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2) if len(a) > 1 else np.nan
    return np.full(len(a), (b.mean() - a.mean()) / sd)


def sweep_gain(metrics: dict, name: str) -> np.ndarray:
    """[S]: the metric at eta = 1 minus at eta = 0 in the second design."""
    values = metrics[f"sweep_{name}"]
    return values[:, arm(metrics, 1.0, "sweep_")] - values[:, arm(metrics, 0.0, "sweep_")]


def largest_eta(metrics: dict) -> float:
    return float(metrics["eta"][0].max())


CLAIMS = (
    Claim(
        "The true gradient diverges: |mean V| is over ten times that of the orthogonal gradient.",
        "odice", "qualitative", lambda m: np.abs(last(m, "value", "true") / last(m, "value", 1.0)),
        lambda x: x > 10, "every", "> 10", "reproduced",
    ),
    Claim(
        "The true gradient never reaches the goal from the start.",
        "odice", "qualitative", lambda m: last(m, "success", "true"),
        lambda x: x == 0, "every", "= 0", "reproduced",
    ),
    Claim(
        "Orthogonal and semi-gradient both reach the goal from the start.",
        "odice", "qualitative",
        lambda m: np.minimum(last(m, "success", 1.0), last(m, "success", 0.0)),
        lambda x: x >= 0.9, "mean", ">= 0.9", "reproduced",
    ),
    Claim(
        "States outside the data are valued lower, against the data's, by the orthogonal gradient "
        "with eta = 1 than by the semi-gradient (difference of the gaps in pooled sd).",
        "odice", "qualitative", lambda m: pooled(last(m, "gap", 1.0), last(m, "gap", 0.0)),
        lambda x: x > 2, "mean", "> 2", "not reproduced",
    ),
    Claim(
        "The same with the largest eta of the main design (3).",
        "odice", "qualitative",
        lambda m: pooled(last(m, "gap", largest_eta(m)), last(m, "gap", 0.0)),
        lambda x: x > 2, "mean", "> 2", "not reproduced",
    ),
    Claim(
        "The more backward gradient, the lower: the gap's ratio to the semi-gradient's falls from "
        "eta = 1 to eta = 3.",
        "odice", "qualitative",
        lambda m: (last(m, "gap", largest_eta(m)) - last(m, "gap", 1.0)) / last(m, "gap", 0.0),
        lambda x: x < 0, "mean", "< 0", "reproduced",
    ),
    Claim(
        "Forward and backward gradient conflict: their cosine late in training is negative.",
        "odice", "qualitative", lambda m: m["cosine"][:, arm(m, 1.0), -3:].mean(-1),
        lambda x: x < -0.3, "mean", "< -0.3", "reproduced",
    ),
    Claim(
        "From perturbed starts the orthogonal gradient succeeds more often than the semi-gradient.",
        "odice", "qualitative",
        lambda m: last(m, "perturbed", 1.0) - last(m, "perturbed", 0.0),
        lambda x: x > 0, "mean", "> 0", "not reproduced",
    ),
    Claim(
        "Second design: noise on s' flips the sign of V(s') - V(s) less often (eta 1 against 0).",
        "odice", "qualitative", lambda m: sweep_gain(m, "flips"),
        lambda x: x < 0, "every", "< 0", "not reproduced",
    ),
    Claim(
        "Second design: the features' inner product at s and s' is smaller (eta 1 against 0).",
        "odice", "qualitative", lambda m: sweep_gain(m, "product"),
        lambda x: x < 0, "mean", "< 0", "reproduced",
    ),
)  # fmt: skip


def plot(metrics):
    figure, axes = figures.panels(2, 3, width=3.1, height=2.8)
    maps = metrics["map"].mean(0)
    shown = [("true gradient", -1), ("semi-gradient", arm(metrics, 0.0)), ("orthogonal, eta 1", 1)]
    for ax, (title, index) in zip(axes[0], shown):
        image = ax.imshow(maps[index].T, origin="lower", extent=(0, 1, 0, 1))
        ax.plot([0.5, 0.5], [0, 0.7], color="white", linewidth=3)
        ax.plot(*PointMaze().start, "o", color="white")
        ax.plot(*PointMaze().goal, "*", color="white", markersize=11)
        ax.set(title=f"V: {title}", xticks=(0, 1), yticks=(0, 1))
        ax.grid(False)
        figure.colorbar(image, ax=ax, shrink=0.8)
    steps = metrics["steps"][0]
    for index, eta in enumerate(metrics["eta"][0]):
        figures.band(axes[1, 0], steps, metrics["gap"][:, index], label=f"eta {eta:g}")
        figures.band(axes[1, 1], steps, metrics["cosine"][:, index])
    axes[1, 0].set(title="V outside the data - V on it", xlabel="update")
    axes[1, 0].legend()
    axes[1, 1].set(title="cosine of the two gradients", xlabel="update", ylim=(-1, 1))
    etas = metrics.get("sweep_eta", np.zeros((1, 0)))[0]
    shown = (("product", "features' product"), ("flips", "flips"), ("gap", "gap"))
    for name, label in shown if len(etas) else ():
        values = metrics[f"sweep_{name}"][:, : len(etas)]
        figures.band(axes[1, 2], etas, values / values[:, :1].mean(), label=label)
        axes[1, 2].legend()
    axes[1, 2].set(title="second design, relative to eta 0", xlabel="eta")
    return figure
