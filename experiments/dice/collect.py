"""Make MuJoCo data sets: train SAC, keep its policies, roll mixtures of them out to a D4RL file.

    python -m experiments.dice.collect train --env HalfCheetah-v5 --steps 200000 --out DIR
    python -m experiments.dice.collect train ... --resume         # goes on, bit for bit
    python -m experiments.dice.collect export --policies FILE.npz --mixture random=10,expert=10 \
        --out data.hdf5

`train` appends a line per `--every` steps to progress.csv in DIR and writes policies.npz there: the
actor that first came a third of the way to the best return ("medium") and the best one ("expert").
200,000 steps of HalfCheetah take about 3 minutes on two CPU cores; the policies in
experiments/dice/policies come from 500,000. Needs `pip install gradkin[rl]`.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.dice import sac
from gradkin.dice.transitions import Transitions

UPDATES_PER_CALL = 100


def require_gymnasium() -> Any:
    """The module, or an error that names the extra it comes with."""
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("MuJoCo data need gymnasium: pip install 'gradkin[rl]'.") from error
    return gymnasium


def make_environment(name: str) -> Any:
    """A gymnasium environment; MuJoCo writes a log where it is loaded: not into the repository."""
    gymnasium = require_gymnasium()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return gymnasium.make(name)


def numpy_mlp(layers, x):
    """The actor on the host: one environment step must not pay a device dispatch."""
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0.0)
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def actor_action(actor, observation, rng=None):
    """Tanh-Gaussian action; its mode without ``rng``."""
    mean, log_std = np.split(numpy_mlp(actor, observation), 2, -1)
    if rng is not None:
        mean = mean + np.exp(np.clip(log_std, -10, 2)) * rng.standard_normal(mean.shape)
    return np.tanh(mean)


def episode(env, choose, seed: int):
    """One episode as arrays (observations, actions, rewards, terminals, timeouts, next)."""
    rows, done = [], False
    observation, _ = env.reset(seed=seed)
    while not done:
        action = np.asarray(choose(observation), np.float32)
        after, reward, terminal, timeout, _ = env.step(action)
        rows.append((observation, action, reward, terminal, timeout, after))
        observation, done = after, terminal or timeout
    return [np.asarray(column, np.float32) for column in zip(*rows)]


def evaluate(env, actor, seed: int, episodes: int = 3) -> float:
    mode = lambda o: actor_action(actor, o)
    return float(np.mean([episode(env, mode, seed + i)[2].sum() for i in range(episodes)]))


def save(path: Path, value) -> None:
    """Write aside, then rename: a kill leaves the last whole checkpoint."""
    aside = path.with_suffix(".tmp")
    aside.write_bytes(pickle.dumps(value))
    os.replace(aside, path)


def train(args) -> None:
    env = make_environment(args.env)
    sizes = env.observation_space.shape[0], env.action_space.shape[0]
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pkl"
    key = jax.random.key(args.seed)
    state = sac.init(key, *sizes, args.width)
    replay: list = []
    done, owed, number, levels = 0, 0, 0, []
    if args.resume and checkpoint.exists():
        leaves, data, replay, done, owed, number, levels = pickle.loads(checkpoint.read_bytes())
        state = jax.tree.unflatten(jax.tree.structure(state._replace(key=())), leaves)
        state = state._replace(key=jax.random.wrap_key_data(data))
    buffer = [np.concatenate(columns) for columns in zip(*replay)] if replay else None
    while done < args.steps:
        # Every draw depends on (seed, episode) only, so a resumed run repeats them.
        rng = np.random.default_rng((args.seed, number))
        actor = jax.tree.map(np.asarray, state.actor)
        if done < args.random_steps:
            choose = lambda o, rng=rng: rng.uniform(-1, 1, sizes[1])
        else:
            choose = lambda o, actor=actor, rng=rng: actor_action(actor, o, rng)
        new = episode(env, choose, args.seed * 1_000_003 + number)
        replay.append(new)
        buffer = new if buffer is None else [np.concatenate(c) for c in zip(buffer, new)]
        number, before, done = number + 1, done, done + len(new[2])
        if done >= args.random_steps:
            owed += len(new[2])
            for _ in range(owed // UPDATES_PER_CALL):
                rows = rng.integers(0, len(buffer[2]), (UPDATES_PER_CALL, args.batch))
                o, a, r, terminal, _, after = (column[rows] for column in buffer)
                state = sac.update_many(state, Transitions(o, a, r, after, terminal))
            owed %= UPDATES_PER_CALL
        if before // args.every != done // args.every:
            actor = jax.tree.map(np.asarray, state.actor)
            levels.append((done, evaluate(env, actor, 10_000_000), actor))
            with (out / "progress.csv").open("a") as file:
                file.write(f"{done},{levels[-1][1]:.1f},{datetime.datetime.now():%H:%M:%S}\n")
            leaves = jax.tree.leaves(state._replace(key=()))
            leaves = [*map(np.asarray, leaves)]
            data = np.asarray(jax.random.key_data(state.key))
            save(checkpoint, (leaves, data, replay, done, owed, number, levels))
    write_policies(out / "policies.npz", args, levels)


def write_policies(path: Path, args, levels) -> None:
    """Store the two actors and where they come from."""
    best = max(levels, key=lambda level: level[1])
    third = levels[0][1] + (best[1] - levels[0][1]) / 3
    medium = next(level for level in levels if level[1] >= third)
    arrays, about = {}, {"env": args.env, "algorithm": "SAC", "seed": args.seed}
    for name, (steps, value, actor) in {"medium": medium, "expert": best}.items():
        about[name] = {"steps": steps, "return": round(value, 1)}
        for i, layer in enumerate(actor):
            half = {leaf: layer[leaf].astype(np.float16) for leaf in ("kernel", "bias")}
            arrays |= {f"{name}/{i}/{leaf}": value for leaf, value in half.items()}
    np.savez_compressed(path, about=json.dumps(about), **arrays)


def read_policies(path) -> tuple[dict, dict]:
    """The actors by name, and what is written about them."""
    with np.load(path) as file:
        names = sorted({key.split("/")[0] for key in file.files if "/" in key})
        depth = 1 + max(int(key.split("/")[1]) for key in file.files if "/" in key)
        actors = {
            name: tuple(
                {leaf: file[f"{name}/{i}/{leaf}"].astype(np.float32) for leaf in ("kernel", "bias")}
                for i in range(depth)
            )
            for name in names
        }
        return actors, json.loads(str(file["about"]))


def roll_out(path, mixture: dict[str, int], *, seed: int = 0) -> tuple[dict, dict]:
    """Episodes of each named policy ("random" too): D4RL arrays, provenance."""
    require_gymnasium()

    actors, about = read_policies(path)
    env = make_environment(about["env"])
    columns, returns = [], {}
    for level, (name, count) in enumerate(sorted(mixture.items())):
        if name != "random" and name not in actors:
            raise ValueError(f"Expected policies among random, {sorted(actors)}, got {name!r}.")
        rng = np.random.default_rng((seed, level))
        for i in range(count):
            if name == "random":
                choose = lambda o, rng=rng: rng.uniform(-1, 1, env.action_space.shape[0])
            else:
                choose = lambda o, rng=rng, actor=actors[name]: actor_action(actor, o, rng)
            columns.append(episode(env, choose, 1_000 * (seed + 1) + 100_000 * level + i))
        last = [c[2].sum() for c in columns[len(columns) - count :]]
        returns[name] = {"episodes": count, "mean_return": round(float(np.mean(last)), 1)}
    names = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    arrays = {name: np.concatenate(c) for name, c in zip(names, zip(*columns))}
    for name in ("terminals", "timeouts"):
        arrays[name] = arrays[name].astype(bool)
    versions = {name: importlib.metadata.version(name) for name in ("gymnasium", "mujoco")}
    return arrays, about | {"mixture": returns, "rollout_seed": seed, "versions": versions}


def export(args) -> None:
    import h5py

    mixture = {k: int(v) for k, v in (part.split("=") for part in args.mixture.split(","))}
    arrays, about = roll_out(args.policies, mixture, seed=args.seed)
    with h5py.File(args.out, "w") as file:
        for name, value in arrays.items():
            file.create_dataset(name, data=value, compression="gzip")
        file.create_dataset("metadata/provenance", data=json.dumps(about))
    print(json.dumps(about, indent=1))


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("train")
    sub.set_defaults(function=train)
    sub.add_argument("--env", default="HalfCheetah-v5")
    sub.add_argument("--out", required=True)
    sub.add_argument("--resume", action="store_true")
    defaults = {
        "steps": 200_000, "random_steps": 5_000, "every": 10_000, "width": 128, "batch": 128,
        "seed": 0,
    }  # fmt: skip
    for name, default in defaults.items():
        sub.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    sub = commands.add_parser("export")
    sub.set_defaults(function=export)
    sub.add_argument("--policies", required=True)
    sub.add_argument("--mixture", default="random=10,medium=10,expert=10")
    sub.add_argument("--out", required=True)
    sub.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.function(args)


if __name__ == "__main__":
    main()
