"""Exact top-k over a million rows on disk, against a NumPy memory map and a FAISS flat index.

A million rows of 1024 numbers, the best hundred for each query by inner product, on all cores. Ours
reads the shards through TensorStore and checks every byte against its CRC-32C; the memory map reads
and checks nothing but pages; FAISS holds all rows in memory (where the page cache is dropped, it
reads its file first). Rows per second written include encoding and syncing to the disk, not the
making of the rows. *Dropped* means from this machine's page cache, before every call and as a part
of it; what a host of a virtual machine keeps is not known.

    python -m experiments.benchmarks.gradient_store                 # 13 GB on disk, 10 minutes
    python -m experiments.benchmarks.gradient_store --folder DIR    # there, and kept for next time
    python -m experiments.benchmarks.gradient_store --no-peers      # without FAISS
"""

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Variant
from experiments.benchmarks.peers import gradient_store_peers as peers
from experiments.benchmarks.worker import serve

PEERS = harness.ROOT / ".venv-peers" / "bin" / "python"
DTYPES = ("float32", "int8")
MAP = "NumPy memory map"


def build(name: str, dtype: str, folder: Path, tiny: bool) -> tuple[Any, dict[str, Any]]:
    """Write the store, unless an earlier case has; return the search and what it found."""
    import jax
    import numpy as np

    from gradkin import store

    case = peers.case_of(name, tiny)
    made = store.create_store(folder / dtype, dim=case.dim, dtype=dtype)
    if made.missing(case.num_rows, checkpoint="last"):
        seconds = 0.0
        # Whole shards: of several blocks where the rows are small.
        size, waiting = made.spec.shard_size, []
        for first, block in peers.blocks(case):
            waiting.append(block)
            count, stop = sum(map(len, waiting)), first + len(block)
            if count >= size or stop == case.num_rows:
                rows = np.concatenate(waiting)
                waiting = []
                start = time.perf_counter()
                made.write(rows, start=stop - count, checkpoint="last")
                seconds += time.perf_counter() - start
        peers.note_written(made.folder, case, seconds)
    queries = peers.make_queries(case)
    search = lambda: made.top_k(queries, case.k)
    search()  # compiles
    step, report = peers.call_of(case, made.folder, search)
    exact, found = folder / f"exact-{case.queries}.json", report.pop("indices")
    if dtype == "float32":
        exact.write_text(json.dumps(found))
    else:
        report["quantity"] = f"scores of {dtype} rows"
        wanted = json.loads(exact.read_text())
        shared = sum(len(set(a) & set(b)) for a, b in zip(found, wanted, strict=True))
        report["recall"] = round(shared / (case.queries * case.k), 4)
    device = jax.devices()[0]
    return step, {
        **report,
        "device": f"{device.platform} {device.device_kind}",
        "versions": peers.versions("jax", "numpy", "tensorstore"),
    }


def variants(name: str, *, tiny: bool, python: Path | None, folder: Path) -> list[Variant]:
    """Ours in each dtype, the memory map and FAISS; ratios are to the memory map."""
    suffix = (str(folder), "--tiny") if tiny else (str(folder),)
    theirs = "experiments.benchmarks.peers.gradient_store_peers"
    found = [Variant(MAP, (sys.executable, "-m", theirs, name, MAP, *suffix), (MAP,))]
    for dtype in DTYPES:
        command = (sys.executable, "-m", __spec__.name, "--worker", name, dtype, *suffix)
        found.append(Variant(f"store, {dtype}", command, (MAP,)))
    if python is not None:
        command = (str(python), "-m", theirs, name, "FAISS flat", *suffix)
        found.append(Variant("FAISS flat", command, (MAP,), "faiss-cpu: make peers"))
    return found


def speeds(rows: dict[str, dict[str, Any]]) -> str:
    """GB/s scanned and rows/s written of one measured case, a line per variant."""
    lines = []
    for name, row in rows.items():
        if "milliseconds" in row:
            rate = row["gigabytes"] / row["milliseconds"] * 1e3
            written = row.get("rows_per_second_written")
            lines.append(
                f"{name:18} {row['gigabytes']:6.2f} GB {rate:6.2f} GB/s, of which from disk "
                f"{row['gigabytes_read_from_disk']:6.2f} GB; {row['peak_rss_mb']:6} MB"
                + (f"; {written} rows/s written" if written else "")
                + (f"; recall {row['recall']}" if "recall" in row else "")
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["--worker"]:
        _, name, dtype, folder, *rest = given_arguments
        serve(lambda: build(name, dtype, Path(folder), bool(rest)))
        return 0
    parser = harness.options(__doc__)
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python of the peers")
    parser.add_argument("--no-peers", action="store_true", help="without FAISS")
    parser.add_argument("--folder", type=Path, help="keep the rows there: 13 GB")
    parser.set_defaults(patience=400.0)
    given = parser.parse_args(given_arguments)
    python = None if given.no_peers else given.peers
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cases: dict[str, Sequence[Variant]] = {
            name: variants(name, tiny=given.tiny, python=python, folder=folder)
            for name in peers.CASES
        }
        status = harness.run("gradient_store", cases, given)
    path = given.out or harness.RESULTS / "gradient_store.json"
    if path.exists():
        for name, case in json.loads(path.read_text())["cases"].items():
            print(f"\n{name}\n{speeds(case['variants'])}")
    return status


if __name__ == "__main__":
    sys.exit(main())
