"""Kill writers of a gradient store, again and again, and look at what they leave.

    python -m tests.store.kill_writers FOLDER --kills 1000          # at random times
    python -m tests.store.kill_writers FOLDER --calls               # before each system call

Writers and checkers are forks of this process, which has imported everything and started no
thread: a fork costs milliseconds. One JSON object is printed; any error ends with status 1.
"""

import argparse
import functools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from gradkin import store
from gradkin.store import manifest, rows
from gradkin.store.layout import DTYPES

DIM, SHARD_SIZE = 3, 4
CHECKPOINTS = ("first", "last")
# The first fill ends inside a shard, the second appends to it.
TOTALS = (10, 19)
# One shard in two parts.
SHORT = (3, 4)


def features_of(start: int, stop: int, checkpoint: str) -> np.ndarray:
    """The rows of some examples, a function of their numbers."""
    numbers = np.arange(start, stop)[:, None] * 31 + np.arange(DIM) * 7 + len(checkpoint)
    return (numbers % 251 - 125).astype(np.float32)


def write(
    folder: Path,
    dtype: str,
    process: int,
    processes: int,
    *,
    checkpoints: Sequence[str] = CHECKPOINTS,
    totals: Sequence[int] = TOTALS,
) -> None:
    """What a writer does: make the store, or open it, and fill it."""
    made = store.create_store(folder, dim=DIM, dtype=dtype, shard_size=SHARD_SIZE)
    for checkpoint in checkpoints:
        for total in totals:
            made.fill(
                functools.partial(features_of, checkpoint=checkpoint),
                num_examples=total,
                checkpoint=checkpoint,
                process_index=process,
                num_processes=processes,
            )


def check(
    folder: Path, before: list[list], checkpoints: Sequence[str] = (), total: int = 0
) -> list[list]:
    """Everything committed is right, once, and still there; return it.

    Args:
      folder: of a store, perhaps not made yet.
      before: what was committed the last time.
      checkpoints: those that must be complete.
      total: examples that they have.
    """
    if not checkpoints and not (folder / "store.json").exists():
        assert not before
        return []
    found = store.open_store(folder)
    found.verify()
    committed = []
    for checkpoint in CHECKPOINTS:
        times = np.zeros(TOTALS[-1], int)
        for entries in manifest.listing(folder, found.spec, checkpoint).values():
            for entry in entries:
                committed.append([checkpoint, entry.start, entry.stop, entry.folder])
                times[entry.start : entry.stop] += 1
                wanted = features_of(entry.start, entry.stop, checkpoint)
                wanted = rows.decode(*rows.encode(wanted, found.spec))
                read = found.read(entry.start, entry.stop, checkpoint=checkpoint)
                np.testing.assert_array_equal(read, wanted)
        assert times.max() <= 1, f"rows doubled: {times}"
        if checkpoint in checkpoints:
            assert times.sum() == times[:total].sum() == total, f"rows lost: {times}"
    lost = [entry for entry in before if entry not in committed]
    assert not lost, f"committed and lost: {lost}"
    return committed


def fork(function: Callable[..., object], *arguments, **keywords) -> tuple[int, int]:
    """Run a function in a child; its process, and where its result comes as JSON."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    status = 1
    try:
        os.close(reader)
        result = json.dumps(function(*arguments, **keywords))
        os.write(writer, result.encode())
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def wait(child: int, reader: int) -> tuple[int, object]:
    """The status of a child, negative for a signal, and its result."""
    with os.fdopen(reader) as file:
        text = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(text) if text else None


def checked(folder: Path, before: list, *whole: Any) -> list:
    """`check` in a child: this process must not start a thread."""
    status, found = wait(*fork(check, folder, before, *whole))
    assert status == 0, f"the check of {folder} failed"
    assert isinstance(found, list)
    return found


def unused(folder: Path) -> int:
    """Folders that killed writers left and nobody removed."""
    named = {
        json.loads(path.read_text())["folder"] for path in (folder / "manifest").glob("*/*.json")
    }
    there = {str(path.relative_to(folder)) for path in (folder / "shards").glob("*/*/*")}
    assert named <= there
    return len(there - named)


def at_random(base: Path, kills: int, seed: int) -> dict:
    """Two writers share a store; each is killed at a random time, until ``kills`` have been."""
    draw, start = random.Random(seed), time.monotonic()
    report = dict.fromkeys(("kills", "ended before", "stores", "commits", "left over"), 0)
    status, _ = wait(*fork(write, base / "whole", "float32", 0, 1))
    assert status == 0
    seconds = time.monotonic() - start
    while report["kills"] < kills:
        folder, dtype = base / f"store{report['stores']}", DTYPES[report["stores"] % len(DTYPES)]
        committed, remaining = [], {0, 1}
        while remaining:
            children = {
                process: fork(write, folder, dtype, process, 2) for process in sorted(remaining)
            }
            for process, (child, reader) in children.items():
                time.sleep(draw.uniform(0, 0.5 * seconds))
                os.kill(child, signal.SIGKILL)
                status, _ = wait(child, reader)
                assert status in (0, -signal.SIGKILL), f"a writer failed with {status}"
                if status == 0:
                    remaining.discard(process)
                    report["ended before"] += 1
                else:
                    report["kills"] += 1
            committed = checked(
                folder, committed, *(() if remaining else (CHECKPOINTS, TOTALS[-1]))
            )
        report["stores"] += 1
        report["commits"] += len(committed)
        report["left over"] += unused(folder)
    return {**report, "seconds": round(time.monotonic() - start, 1)}


def write_guarded(folder: Path, dtype: str, calls: int) -> None:
    """A writer that is killed just before one of its system calls; a file then says which."""

    def guard(module: Any, name: str) -> None:
        original = getattr(module, name)

        def guarded(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            if not calls:
                folder.with_suffix(".txt").write_text(name)
                os.kill(os.getpid(), signal.SIGKILL)
            calls -= 1
            return original(*arguments, **keywords)

        setattr(module, name, guarded)

    for name in ("mkdir", "fsync", "rename", "link", "unlink"):
        guard(os, name)
    guard(tensorstore, "open")
    write(folder, dtype, 0, 1, checkpoints=CHECKPOINTS[:1], totals=SHORT)


def before_each_call(base: Path) -> dict:
    """A writer is killed just before its n-th system call, for every n until it gets through."""
    start, names = time.monotonic(), []
    while True:
        number = len(names)
        folder, dtype = base / f"call{number}", DTYPES[number % len(DTYPES)]

        status, _ = wait(*fork(write_guarded, folder, dtype, number))
        committed, one = checked(folder, []), CHECKPOINTS[:1]
        after, _ = wait(*fork(write, folder, dtype, 0, 1, checkpoints=one, totals=SHORT))
        assert after == 0
        checked(folder, committed, one, SHORT[-1])
        if status == 0:
            break
        assert status == -signal.SIGKILL, f"the writer failed with {status}"
        names.append(folder.with_suffix(".txt").read_text())
    return {
        "calls": len(names),
        "kinds": {name: names.count(name) for name in sorted(set(names))},
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", action="store_true")
    given = parser.parse_args()
    folder = given.folder.absolute()
    report = {}
    if given.calls:
        report["before each call"] = before_each_call(folder)
    if given.kills:
        report["at random"] = at_random(folder, given.kills, given.seed)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
