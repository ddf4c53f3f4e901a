"""Run an experiment's `run` over the seeds: once per seed, or once with the seeds as one `vmap`."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from experiments.runner.loop import make_loop


def metrics_of(
    module: ModuleType,
    config: Any,
    seeds: int,
    data: Any,
    *,
    folder: Path | None,
    sharding: jax.sharding.NamedSharding | None = None,
    save_seconds: float = 10.0,
    quiet: bool | None = None,
) -> dict[str, np.ndarray]:
    """Return what `run` measures, with a leading axis of seeds."""
    options: dict[str, Any] = {"sharding": sharding, "save_seconds": save_seconds, "quiet": quiet}
    if getattr(module, "VMAP_SEEDS", False):
        keys = jnp.stack([jax.random.key(seed) for seed in range(seeds)])
        loop = make_loop(folder and folder / "seeds", vmap_seeds=True, **options)
        found = host(module.run(config, keys, data, loop))
    else:
        runs = []
        for seed in range(seeds):
            loop = make_loop(
                folder and folder / f"seed{seed}", label=f"seed {seed + 1}/{seeds} ", **options
            )
            runs.append(host(module.run(config, jax.random.key(seed), data, loop)))
        found = {name: np.stack([run[name] for run in runs]) for name in runs[0]}
    for name, value in found.items():
        if value.shape[:1] != (seeds,):
            raise ValueError(
                f"Expected run to return arrays with a leading axis of {seeds} seeds, got "
                f"{name} of shape {value.shape}."
            )
    return found


def host(metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The metrics as NumPy arrays; what several processes share is brought together."""

    def fetch(value):
        if isinstance(value, jax.Array) and not (
            value.is_fully_addressable or value.is_fully_replicated
        ):
            return multihost_utils.process_allgather(value, tiled=True)
        return np.asarray(value)

    return {name: fetch(value) for name, value in metrics.items()}
