"""The manifest: which rows are committed is the list of files in a folder, one file per commit.

The parts of a shard are numbered from 0 and each starts where the last one ended, so of two
processes that write the same rows one finds the number taken. No file is ever changed.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from gradkin.store.layout import CorruptShardError, Spec, parse, signed

ENTRY = re.compile(r"(\d{8,})\.(\d{4,})\.json")


class Entry(NamedTuple):
    """One commit.

    Attributes:
      shard: number of the shard.
      part: number of the part.
      start: first example.
      stop: one past the last example.
      folder: where its arrays lie, relative to the store.
      checksums: CRC-32C of each array's bytes, hexadecimal.
    """

    shard: int
    part: int
    start: int
    stop: int
    folder: str
    checksums: dict[str, str]


def folder_of(store: Path, checkpoint: str) -> Path:
    return store / "manifest" / checkpoint


def path_of(store: Path, checkpoint: str, shard: int, part: int) -> Path:
    """The file of one commit."""
    return folder_of(store, checkpoint) / f"{shard:08d}.{part:04d}.json"


def encode(entry: Entry) -> bytes:
    return signed(entry._asdict())


def read(path: Path, spec: Spec) -> Entry:
    """One entry, checked against its own name.

    Raises:
      CorruptShardError: it is damaged.
    """
    try:
        entry = Entry(**parse(path.read_bytes(), path))
    except TypeError:
        raise CorruptShardError(f"{path} is damaged: not an entry of a manifest.") from None
    _, first, end = spec.shard_of(entry.start)
    if path.name != f"{entry.shard:08d}.{entry.part:04d}.json" or not (
        entry.shard * spec.shard_size == first <= entry.start < entry.stop <= end
    ):
        raise CorruptShardError(f"{path} is damaged: it speaks of other rows.")
    return entry


def parts_of(store: Path, spec: Spec, checkpoint: str, shard: int) -> list[Entry]:
    """The commits of one shard, in order; those of a writer at work may come in at any time."""
    found: list[Entry] = []
    while (path := path_of(store, checkpoint, shard, len(found))).exists():
        found.append(read(path, spec))
    check(store, spec, checkpoint, found)
    return found


def listing(store: Path, spec: Spec, checkpoint: str) -> dict[int, list[Entry]]:
    """All commits of a checkpoint: shard -> its parts in order, shards ascending.

    Raises:
      CorruptShardError: an entry is damaged or one between others is gone.
    """
    folder = folder_of(store, checkpoint)
    if not folder.is_dir():
        return {}
    names: dict[int, set[int]] = {}
    for name in os.listdir(folder):
        if match := ENTRY.fullmatch(name):
            names.setdefault(int(match[1]), set()).add(int(match[2]))
        elif not name.startswith("."):
            raise CorruptShardError(f"{folder / name} does not belong into a manifest.")
    shards = {}
    for shard in sorted(names):
        missing = set(range(max(names[shard]) + 1)) - names[shard]
        if missing:
            path = path_of(store, checkpoint, shard, min(missing))
            raise CorruptShardError(f"{path} is gone, though a later part is there.")
        paths = (path_of(store, checkpoint, shard, part) for part in sorted(names[shard]))
        shards[shard] = [read(path, spec) for path in paths]
        check(store, spec, checkpoint, shards[shard])
    return shards


def check(store: Path, spec: Spec, checkpoint: str, parts: list[Entry]) -> None:
    """Raise CorruptShardError unless each part starts where the last one ended."""
    at = parts[0].shard * spec.shard_size if parts else 0
    for entry in parts:
        if entry.start != at:
            path = path_of(store, checkpoint, entry.shard, entry.part)
            raise CorruptShardError(f"{path} starts at example {entry.start}, expected {at}.")
        at = entry.stop


def extent(spec: Spec, checkpoint: str, found: dict[int, list[Entry]]) -> int:
    """The number of examples, all of which have a row.

    Raises:
      ValueError: there are none, or some between others have no row.
    """
    if not found:
        raise ValueError(f"Expected rows of checkpoint {checkpoint}: none are committed.")
    size, last = spec.shard_size, max(found)
    total = found[last][-1].stop
    for shard in range(last):
        stop = found[shard][-1].stop if shard in found else shard * size
        if stop != (shard + 1) * size:
            raise ValueError(
                f"Expected rows of all examples below {total} for checkpoint {checkpoint}: those "
                f"of {stop} to {(shard + 1) * size - 1} are missing; fill the store."
            )
    return total


def common_extent(spec: Spec, parts: dict[str, dict[int, list[Entry]]]) -> int:
    """The number of examples of several checkpoints.

    Raises:
      ValueError: they have different ones.
    """
    totals = {name: extent(spec, name, found) for name, found in parts.items()}
    if len(set(totals.values())) != 1:
        raise ValueError(f"Expected checkpoints with the same examples, got {totals}.")
    return next(iter(totals.values()))
