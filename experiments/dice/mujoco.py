"""MuJoCo for the offline experiments: data by name, and rollouts as a callback of a jitted loop."""

import os
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.dice import collect
from gradkin.data import rl
from gradkin.dice import normalized_score

ENVIRONMENTS = {
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
    "ant": "Ant-v5",
}
POLICIES = Path(__file__).with_name("policies")


def family(name: str) -> str:
    """The environment's short name in a data set's: "sac-halfcheetah", "hopper-medium-v2"."""
    parts = Path(name).stem.lower().split("-")
    known = [part for part in parts if part in ENVIRONMENTS]
    if not known:
        raise ValueError(f"Expected one of {list(ENVIRONMENTS)} in the data's name, got {name!r}.")
    return known[0]


def episodes(name: str, mixture: dict[str, int], *, seed: int = 0) -> rl.Episodes:
    """Steps by name: "sac-<environment>" rolls out the policies kept here; else a file.

    A file is a path, or NAME.hdf5 in the folder that D4RL uses (D4RL_DATASET_DIR, by default
    ~/.d4rl/datasets).
    """
    if name.startswith("sac-"):
        policies = POLICIES / f"{family(name)}.npz"
        if not policies.exists():
            raise FileNotFoundError(
                f"There are no policies at {policies}: python -m experiments.dice.collect train "
                f"--env {ENVIRONMENTS[family(name)]} --out DIR makes them."
            )
        arrays, _ = collect.roll_out(policies, mixture, seed=seed)
        return rl.Episodes(**arrays, source=name)
    path = Path(name).expanduser()
    if not path.exists():
        folder = os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")
        path = Path(folder).expanduser() / f"{name}.hdf5"
    return rl.read_episodes(path)


@lru_cache(maxsize=8)
def environment(name: str) -> Any:
    return collect.make_environment(ENVIRONMENTS[family(name)])


def roll_out(layers, shift, scale, *, name: str, count: int, tanh: bool) -> np.ndarray:
    """Normalised scores of ``count`` deterministic episodes, always from the same starts."""
    layers = jax.tree.map(np.asarray, layers)
    shift, scale = np.asarray(shift), np.asarray(scale)
    squash = np.tanh if tanh else partial(np.clip, a_min=-1.0, a_max=1.0)
    choose = lambda o: squash(collect.numpy_mlp(layers, (np.float32(o) - shift) / scale))
    env = environment(name)
    returns = [collect.episode(env, choose, 7_000_000 + i)[2].sum() for i in range(count)]
    return np.asarray(normalized_score(np.asarray(returns), family(name)), np.float32)


def scores(layers, shift, scale, *, name: str, count: int, tanh: bool) -> jax.Array:
    """`roll_out` inside a jitted program: [count] normalised scores of an MLP policy."""
    call = partial(roll_out, name=name, count=count, tanh=tanh)
    shape = jax.ShapeDtypeStruct((count,), jnp.float32)
    return jax.pure_callback(call, shape, layers, shift, scale, vmap_method="sequential")
