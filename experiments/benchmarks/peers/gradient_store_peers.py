"""Exact search in a NumPy memory map and in a FAISS flat index, and the rows of both sides.

python -m experiments.benchmarks.peers.gradient_store_peers CASE JOB FOLDER [--tiny]
"""

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.worker import serve

BLOCK = 16384


class Case(NamedTuple):
    """What is searched, and whether the files are in the page cache.

    Attributes:
      queries: how many at once.
      dropped: the files are dropped from the page cache before every call.
      num_rows: rows.
      dim: their length.
      k: best rows wanted for each query.
    """

    queries: int
    dropped: bool
    num_rows: int = 1_000_000
    dim: int = 1024
    k: int = 100


CASES = {
    "16 queries, in the page cache": Case(16, False),
    "16 queries, dropped from the page cache": Case(16, True),
    "1 query, in the page cache": Case(1, False),
}


def case_of(name: str, tiny: bool) -> Case:
    """The case, or a toy of it."""
    return CASES[name]._replace(num_rows=20_000, dim=32) if tiny else CASES[name]


def blocks(case: Case) -> Iterator[tuple[int, Any]]:
    """Rows, block by block: cheap to make, all different, the same for everybody."""
    import numpy as np

    base = np.random.default_rng(0).standard_normal((BLOCK, case.dim), np.float32)
    for number, start in enumerate(range(0, case.num_rows, BLOCK)):
        rows = np.roll(base, 17 * number, axis=1) * np.float32(1 + number / 1000)
        yield start, rows[: case.num_rows - start]


def make_queries(case: Case) -> Any:
    """``[queries, dim]`` standard normal."""
    import numpy as np

    return np.random.default_rng(1).standard_normal((case.queries, case.dim), np.float32)


def drop(folder: Path) -> None:
    """Drop the files of a folder from the page cache of this machine; they are on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_read() -> int:
    """What this process has had read from a disk so far."""
    lines = Path("/proc/self/io").read_text().split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def call_of(case: Case, folder: Path, search: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """The timed call of any variant, and what there is to say about its first result.

    Where the cache is dropped, the call drops it, which is a part of its time.
    """
    import numpy as np

    def step() -> Any:
        if case.dropped:
            drop(folder)
        return search()

    if not case.dropped:
        for path in folder.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    while file.read(2**24):
                        pass
    before, (scores, indices) = bytes_read(), step()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    start = time.perf_counter()
    drop(folder) if case.dropped else None
    return step, {
        **json.loads(folder.with_suffix(".written.json").read_text()),
        "value": float(np.sqrt(np.sum(np.square(scores, dtype=np.float64)))),
        "quantity": "scores",
        "gigabytes": round(size / 1e9, 6),
        "gigabytes_read_from_disk": round((bytes_read() - before) / 1e9, 3),
        "seconds_to_drop": round(time.perf_counter() - start, 3),
        "indices": np.asarray(indices).tolist(),
    }


def note_written(folder: Path, case: Case, seconds: float) -> None:
    """Keep beside the rows how fast they were written: a later case does not write them again."""
    rate = {"rows_per_second_written": round(case.num_rows / seconds)}
    folder.with_suffix(".written.json").write_text(json.dumps(rate))


def memory_map(case: Case, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A product with each block of the map, and `argpartition`."""
    import numpy as np

    path, queries = folder / "rows.npy", make_queries(case)
    if not path.exists():
        folder.mkdir(parents=True)
        shape, seconds = (case.num_rows, case.dim), 0.0
        rows = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        for first, block in blocks(case):
            start = time.perf_counter()
            rows[first : first + len(block)] = block
            seconds += time.perf_counter() - start
        start = time.perf_counter()
        rows.flush()
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        seconds += time.perf_counter() - start
        note_written(folder, case, seconds)

    def search() -> tuple[Any, Any]:
        rows = np.load(path, mmap_mode="r")
        scores = np.full((case.queries, 0), -np.inf, np.float32)
        numbers = np.zeros((case.queries, 0), np.int64)
        for first in range(0, case.num_rows, BLOCK):
            products = queries @ rows[first : first + BLOCK].T
            best = np.argpartition(-products, case.k - 1, axis=1)[:, : case.k]
            scores = np.concatenate([scores, np.take_along_axis(products, best, 1)], axis=1)
            numbers = np.concatenate([numbers, best + first], axis=1)
            best = np.argpartition(-scores, case.k - 1, axis=1)[:, : case.k]
            scores = np.take_along_axis(scores, best, 1)
            numbers = np.take_along_axis(numbers, best, 1)
        order = np.argsort(-scores, axis=1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)

    step, report = call_of(case, folder, search)
    return step, {**report, "versions": versions("numpy")}


def faiss_flat(case: Case, folder: Path) -> tuple[Any, dict[str, Any]]:
    """`IndexFlatIP`, in memory; read from its file where the cache is dropped."""
    import faiss

    path, queries = folder / "flat.index", make_queries(case)
    if not path.exists():
        folder.mkdir(parents=True)
        index = faiss.IndexFlatIP(case.dim)
        for _, block in blocks(case):
            index.add(block)
        start = time.perf_counter()
        faiss.write_index(index, str(path))
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        seconds = time.perf_counter() - start
        note_written(folder, case, seconds)
        del index
    kept = None if case.dropped else faiss.read_index(str(path))

    def search() -> tuple[Any, Any]:
        index = faiss.read_index(str(path)) if kept is None else kept
        return index.search(queries, case.k)

    step, report = call_of(case, folder, search)
    return step, {**report, "versions": versions("numpy", "faiss-cpu")}


def versions(*packages: str) -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def build(name: str, job: str, folder: Path, tiny: bool) -> tuple[Any, dict[str, Any]]:
    """The call of one peer; its rows stay in the folder for the next case."""
    make = {"NumPy memory map": memory_map, "FAISS flat": faiss_flat}[job]
    step, report = make(case_of(name, tiny), folder / job.replace(" ", "_"))
    report.pop("indices")
    return step, report


if __name__ == "__main__":
    _, chosen, what, where, *rest = sys.argv
    serve(lambda: build(chosen, what, Path(where), bool(rest)))
