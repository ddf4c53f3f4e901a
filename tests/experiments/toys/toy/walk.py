"""Pearson 1905: a random walk spreads like the square root of time (arXiv:0000.00001).

Used by the tests of the runner alone: its seeds are one `vmap`.

    python -m experiments run toy/walk --preset quick
"""

import dataclasses

import jax
import jax.numpy as jnp

from experiments import figures
from experiments.runner import Claim

PAPERS = ("toy",)
VMAP_SEEDS = True


@dataclasses.dataclass(frozen=True)
class Config:
    """The size of the problem."""

    steps: int = 20
    walkers: int = 50


PRESETS = {"smoke": Config(steps=4), "quick": Config(), "paper": Config(steps=100, walkers=1000)}


def load(config):
    """Nothing is read."""
    return {}


def run(config, key, data, loop):
    """The seeds are the leading axis of the keys, and so of the state."""

    def init(key):
        return jnp.zeros(config.walkers), key

    def step(state, data):
        x, key = state
        key, draw = jax.random.split(key)
        return x + jax.random.normal(draw, x.shape), key

    def evaluate(state, data):
        return jnp.std(state[0])

    _, spread = loop(step, jax.vmap(init)(key), config.steps, every=2, evaluate=evaluate, data=data)
    return {"spread": spread}


def plot(metrics):
    """The spread over time."""
    figure, axes = figures.panels()
    figures.band(axes, range(metrics["spread"].shape[1]), metrics["spread"])
    return figure


CLAIMS = (
    Claim(
        text="The spread is zero",
        paper="toy",
        reported="0 | 1",
        measure=lambda m: m["spread"][:, -1],
        holds=lambda spread: spread == 0,
        rule="mean",
        threshold="= 0",
        verdict="not reproduced",
    ),
)
