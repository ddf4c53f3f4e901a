"""Offline RL data: D4RL's HDF5 files and Minari's folders, read with h5py alone."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Episodes(NamedTuple):
    """Recorded steps of many episodes, one after the other.

    Attributes:
      observations: [N, ...].
      actions: [N, ...].
      rewards: [N] float32, finite.
      terminals: [N] bool, the episode ended in that step.
      timeouts: [N] bool, it was cut after that step.
      next_observations: like ``observations`` where the file tells them, else None.
      source: the file's name, for messages.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminals: np.ndarray
    timeouts: np.ndarray
    next_observations: np.ndarray | None
    source: str


def read_d4rl(path: str | Path, *, max_episode_steps: int | None = None) -> Episodes:
    """Read a D4RL file: ``observations``, ``actions``, ``rewards``, ``terminals``, flat over steps.

    Args:
      path: an HDF5 file.
      max_episode_steps: for files without ``timeouts``, the length at which episodes were cut;
        None: they were not cut.

    Returns:
      The episodes. ``next_observations`` is taken from the file where it has them.

    Raises:
      FileNotFoundError: if there is no such file.
      KeyError: if a required key is missing; names file and key.
      ValueError: on mismatched lengths, no steps, or rewards that are not finite.
      ImportError: without h5py (``pip install 'gradkin[rl]'``).

    Example:
      >>> read_d4rl("nowhere.hdf5")  # transitions(read_d4rl(path)) is what to train on
      Traceback (most recent call last):
        ...
      FileNotFoundError: There is no RL data at nowhere.hdf5.

    References:
        Fu et al. (2020), "D4RL: Datasets for Deep Data-Driven Reinforcement Learning",
        arXiv:2004.07219. :cite:`fu:20`
    """
    with open_hdf5(path) as file:
        columns = {name: read(file, name) for name in ("observations", "actions")}
        flat = {name: read(file, name).reshape(-1) for name in ("rewards", "terminals")}
        if "timeouts" in file:
            timeouts = read(file, "timeouts").reshape(-1).astype(bool)
        else:
            timeouts = infer_timeouts(flat["terminals"].astype(bool), max_episode_steps)
        after = read(file, "next_observations") if "next_observations" in file else None
        source = str(file.filename)
    terminals = flat["terminals"].astype(bool)
    # A step that ends the episode is not cut as well.
    timeouts = timeouts & ~terminals if len(timeouts) == len(terminals) else timeouts
    rewards = flat["rewards"].astype(np.float32)
    return checked(Episodes(**columns, rewards=rewards, terminals=terminals, timeouts=timeouts,
                            next_observations=after, source=source))  # fmt: skip


def read_minari(path: str | Path, *, observation_keys: Sequence[str] | None = None) -> Episodes:
    """Read a Minari data set: one group per episode, T + 1 observations and T actions each.

    Args:
      path: the data set's folder, its ``data`` folder, or the HDF5 file itself.
      observation_keys: for dictionary observations, the entries to concatenate, in this order;
        None: the observations must be an array.

    Returns:
      The episodes in the order of their numbers, with ``next_observations``.

    Raises:
      FileNotFoundError: if there is no such file.
      KeyError: if an episode lacks a key; names file and key.
      ValueError: on mismatched lengths, no steps, or rewards that are not finite.
      ImportError: without h5py (``pip install 'gradkin[rl]'``).

    Example:
      >>> read_minari("nowhere.hdf5")  # path: ~/.minari/datasets/NAME
      Traceback (most recent call last):
        ...
      FileNotFoundError: There is no RL data at nowhere.hdf5.
    """
    where = Path(path)
    for folder in (where, where / "data"):
        if (folder / "main_data.hdf5").exists():
            where = folder / "main_data.hdf5"
    parts: list[tuple[np.ndarray, ...]] = []
    with open_hdf5(where) as file:
        numbers = sorted(int(name.split("_")[1]) for name in file if name.startswith("episode_"))
        for number in numbers:
            group = file[f"episode_{number}"]
            observations = np.concatenate(list(entries(group, observation_keys)), -1)
            names = ("actions", "rewards", "terminations", "truncations")
            rest = [read(group, name) for name in names]
            steps = len(rest[1])
            if len(observations) != steps + 1:
                raise ValueError(
                    f"Expected {steps + 1} observations for {steps} steps in {where}, episode_"
                    f"{number}, got {len(observations)}."
                )
            parts.append((observations[:-1], *rest, observations[1:]))
    if not parts:
        raise ValueError(f"Expected groups episode_<number> in {where}, got none.")
    s, a, r, terminals, timeouts, after = (np.concatenate(column) for column in zip(*parts))
    ends = terminals.astype(bool)
    cut = timeouts.astype(bool) & ~ends
    return checked(Episodes(s, a, r.astype(np.float32), ends, cut, after, str(where)))


def read_episodes(path: str | Path, **options: Any) -> Episodes:
    """Read either format: a folder, or a file with ``episode_<number>`` groups, is Minari's.

    Args:
      path: as in `read_d4rl` and `read_minari`.
      **options: passed on to the reader.

    Returns:
      The episodes.

    Raises:
      FileNotFoundError: if there is no such file.

    Example:
      >>> read_episodes("nowhere.hdf5")
      Traceback (most recent call last):
        ...
      FileNotFoundError: There is no RL data at nowhere.hdf5.
    """
    if Path(path).is_dir():
        return read_minari(path, **options)
    with open_hdf5(path) as file:
        minari = any(name.startswith("episode_") for name in file)
    return (read_minari if minari else read_d4rl)(path, **options)


def provenance(path: str | Path) -> dict[str, Any]:
    """What ``metadata/provenance`` of a file made by `experiments.dice.collect` says; {} without.

    Args:
      path: an HDF5 file.

    Returns:
      The dictionary.

    Raises:
      FileNotFoundError: if there is no such file.

    Example:
      >>> provenance("nowhere.hdf5")
      Traceback (most recent call last):
        ...
      FileNotFoundError: There is no RL data at nowhere.hdf5.
    """
    with open_hdf5(path) as file:
        if "metadata/provenance" not in file:
            return {}
        return json.loads(file["metadata/provenance"].asstr()[()])


def transitions(episodes: Episodes) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Steps with their successors, and the episode of each.

    Without ``next_observations`` the successor is the next row, so the last step of a cut episode
    and the last row of all have none and are left out; a terminal step is kept, since its
    successor is masked wherever it is used.

    Args:
      episodes: from a reader.

    Returns:
      A dict with observation, action, reward, next_observation, terminal (float32, 1 at an end),
      [M, ...] each, which `gradkin.dice.Transitions` takes by name; and episode numbers [M].

    Raises:
      ValueError: if no step is left.

    Example:
      >>> import numpy as np
      >>> x, no = np.arange(4.), np.zeros(4, bool)
      >>> cut = np.array([False, True, False, False])
      >>> data, ids = transitions(Episodes(x, x, x, no, cut, None, "memory"))
      >>> data["observation"].tolist(), data["next_observation"].tolist(), ids.tolist()
      ([0.0, 2.0], [1.0, 3.0], [0, 1])
    """
    ends = episodes.terminals | episodes.timeouts
    ids = np.concatenate([[0], np.cumsum(ends[:-1])]).astype(np.int64)
    after = episodes.next_observations
    keep = np.ones(len(ends), bool)
    if after is None:
        after = np.roll(episodes.observations, -1, 0)
        keep = ~episodes.timeouts
        keep[-1] &= episodes.terminals[-1]
    if not keep.any():
        raise ValueError(f"Expected a step with a successor in {episodes.source}, got none.")
    data = {
        "observation": episodes.observations[keep],
        "action": episodes.actions[keep],
        "reward": episodes.rewards[keep],
        "next_observation": after[keep],
        "terminal": episodes.terminals[keep].astype(np.float32),
    }
    return data, ids[keep]


def infer_timeouts(terminals: np.ndarray, max_episode_steps: int | None) -> np.ndarray:
    """True in every ``max_episode_steps``-th step since the last end."""
    if max_episode_steps is None:
        return np.zeros(len(terminals), bool)
    starts = np.concatenate([[0], np.flatnonzero(terminals) + 1, [len(terminals)]])
    age = np.arange(len(terminals)) - np.repeat(starts[:-1], np.diff(starts))
    return (age + 1) % max_episode_steps == 0


def open_hdf5(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no RL data at {path}.")
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Reading RL data needs h5py: pip install 'gradkin[rl]'.") from error
    return h5py.File(path, "r")


def read(group: Any, name: str) -> np.ndarray:
    if name not in group:
        raise KeyError(
            f"Expected the key {name!r} in {group.file.filename}{group.name}, got {sorted(group)}."
        )
    value = np.asarray(group[name])
    return value.astype(np.float32) if value.dtype == np.float64 else value


def entries(group: Any, keys: Sequence[str] | None) -> Iterator[np.ndarray]:
    """The arrays whose concatenation is the observation."""
    if keys is None:
        if "observations" in group and hasattr(group["observations"], "keys"):
            raise ValueError(
                f"Expected observation_keys among {sorted(group['observations'])} for the "
                f"dictionary observations of {group.file.filename}, got None."
            )
        yield read(group, "observations")
        return
    for key in keys:
        value = read(group, f"observations/{key}")
        yield value.reshape(len(value), -1)


def checked(episodes: Episodes) -> Episodes:
    """The episodes, if all lengths agree, there are steps, and every reward is finite."""
    lengths = {
        name: len(value) for name, value in episodes._asdict().items() if hasattr(value, "ndim")
    }
    if len(set(lengths.values())) != 1:
        raise ValueError(f"Expected one length for every key in {episodes.source}, got {lengths}.")
    if lengths["rewards"] == 0:
        raise ValueError(f"Expected at least one step in {episodes.source}, got none.")
    bad = np.flatnonzero(~np.isfinite(episodes.rewards))
    if len(bad):
        raise ValueError(
            f"Expected finite rewards in {episodes.source}, got {episodes.rewards[bad[0]]} at key "
            f"'rewards', row {bad[0]}."
        )
    return episodes
