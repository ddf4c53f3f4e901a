"""Cauchy 1847: gradient descent on a quadratic reaches its minimum (arXiv:0000.00000).

Used by the tests of the runner alone.

    python -m experiments run toy/descent --preset quick
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.runner import Claim

PAPERS = ("toy",)
DATA = ("line", "parabola")


@dataclasses.dataclass(frozen=True)
class Config:
    """The size of the problem."""

    steps: int = 40
    every: int = 4
    width: int = 3
    data: str = "line"


PRESETS = {
    "smoke": Config(steps=4),
    "quick": Config(),
    "paper": Config(steps=400),
}


def load(config):
    """Sixteen points."""
    x = np.linspace(-1, 1, 16, dtype=np.float32)
    return {"x": x, "y": x if config.data == "line" else x**2}


def run(config, key, data, loop):
    """Noisy descent twice: a seed's key travels in the state."""

    def step(state, data):
        w, key = state
        key, draw = jax.random.split(key)
        slope = jax.grad(loss)(w, data)
        return w - 0.1 * slope + 0.01 * jax.random.normal(draw, w.shape), key

    def loss(w, data):
        return jnp.mean(jnp.square(data["x"] * jnp.sum(w) - data["y"]))

    def evaluate(state, data):
        return {"loss": loss(state[0], data)}

    state = (jax.random.normal(key, (config.width,)), key)
    state, first = loop(
        step, state, config.steps, every=config.every, evaluate=evaluate, data=data, name="first"
    )
    state, second = loop(
        step, state, config.steps, every=config.every, evaluate=evaluate, data=data, name="second"
    )
    return {"loss": jnp.concatenate([first["loss"], second["loss"]]), "w": state[0]}


def plot(metrics):
    """The loss of both loops."""
    figure, axes = figures.panels()
    figures.band(axes, np.arange(metrics["loss"].shape[1]), metrics["loss"])
    return figure


CLAIMS = (
    Claim(
        text="The loss falls",
        paper="toy",
        reported="qualitative",
        measure=lambda m: m["loss"][:, -1] / m["loss"][:, 0],
        holds=lambda ratio: ratio < 1,
        rule="every",
        threshold="< 1",
        verdict="reproduced",
    ),
)
