"""Measure variants of a job side by side, each in a process of its own.

Every variant is built (traced, compiled, warmed up) in its own process, one after another, and then
waits. The measurement goes round: each process in turn is told to time a few calls while all others
sleep. So no variant disturbs the memory of another, and a slow minute of the machine falls on all
of them alike. A ratio is the median over rounds of the ratio within a round.
"""

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runner import encoding
from experiments.runner.evidence import commit, processor

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
# What other processes may take of the machine before a measurement is not believed.
IDLE = 0.10
# How the cases that measure other libraries are named.
PEERS = ", peers"


class Variant(NamedTuple):
    """One way to do a job: how it is started, and what its time is divided by.

    Attributes:
      name: shown in the table.
      command: arguments of a process that calls `worker.serve`.
      baseline: names of variants; the ratio is to the fastest of them.
      environment: what to say is missing if the program does not exist.
    """

    name: str
    command: tuple[str, ...]
    baseline: tuple[str, ...]
    environment: str = ""


class Settings(NamedTuple):
    """How long to measure.

    Attributes:
      rounds: how often each variant gets its turn; fewer, but three, where a call takes long.
      seconds: aimed at per turn; at least one call is timed.
      budget: seconds per variant over all rounds.
      patience: seconds after which a variant that has not answered is given up.
    """

    rounds: int = 7
    seconds: float = 0.2
    budget: float = 6.0
    patience: float = 120.0


def options(description: str | None, parser: argparse.ArgumentParser | None = None) -> Any:
    """The command line that all benchmarks share."""
    parser = parser or argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--only", metavar="CASE", nargs="+", help="measure these cases only")
    parser.add_argument("--repeats", type=int, default=7, help="rounds per variant")
    parser.add_argument("--seconds", type=float, default=0.2, help="aimed at per variant and round")
    parser.add_argument("--patience", type=float, default=120.0, help="give a variant up after")
    parser.add_argument("--out", type=Path, help="write the results here")
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: only that it runs")
    parser.add_argument("--markdown", action="store_true", help="print the stored results and stop")
    return parser


class Process:
    """A running variant, and what it said last."""

    def __init__(self, variant: Variant, patience: float):
        self.variant, self.patience = variant, patience
        self.report: dict[str, Any] = {}
        self.blocks: list[dict[str, Any]] = []
        self.skipped: str | None = None
        self.child: Any = None
        program = variant.command[0]
        if not os.access(program, os.X_OK):
            self.skipped = f"no {variant.environment or program}"
            return
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the child)
        self.child = subprocess.Popen(
            variant.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
        )
        message = self.answer()
        if "skipped" in message:
            self.stop(message["skipped"])
        else:
            self.report = message

    def answer(self) -> dict[str, Any]:
        ready, _, _ = select.select([self.child.stdout], [], [], self.patience)
        if not ready:
            return {"skipped": f"no answer within {self.patience:.0f} s"}
        line = self.child.stdout.readline()
        if line:
            return json.loads(line)
        self.log.seek(0)
        last = self.log.read().decode(errors="replace").strip().split("\n")[-1]
        return {"skipped": f"the process ended: {last[:300]}"}

    def measure(self, calls: int, warm_up_calls: int) -> dict[str, Any] | None:
        """Time a block of calls; None, and the process is stopped, where it does not answer."""
        try:
            self.child.stdin.write(f"{calls} {warm_up_calls}\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            self.stop("the process ended")
            return None
        message = self.answer()
        if "skipped" in message:
            self.stop(message["skipped"])
            return None
        return message

    def stop(self, why: str | None = None) -> None:
        """End the process."""
        self.skipped = self.skipped or why
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
            self.log.close()
            self.child = None


def measure(variants: Sequence[Variant], settings: Settings) -> dict[str, dict[str, Any]]:
    """Measure the variants of one case against each other.

    Args:
      variants: of one case; baselines are names among them.
      settings: rounds and times.

    Returns:
      For each variant a JSON object: what its process reported (trace and compile seconds, bytes),
      the median and quartiles of its times, and its ratio to its baseline; or why it is missing.
    """
    processes: list[Process] = []
    others = []
    try:
        for variant in variants:
            show(f"  {variant.name}: building")
            processes.append(Process(variant, settings.patience))
        calls, rounds = {}, {}
        for process in processes:
            if process.skipped is None and (first := process.measure(1, 0)):
                one, name = first["seconds"][0], process.variant.name
                calls[name] = max(1, min(100, round(settings.seconds / one)))
                fits = int(settings.budget / (calls[name] * one))
                rounds[name] = min(settings.rounds, max(3, fits))
        for number in range(settings.rounds):
            for process in processes:
                name = process.variant.name
                if process.skipped is not None or number >= rounds[name]:
                    continue
                show(f"  round {number + 1} of {settings.rounds}: {name}")
                before, start = busy_seconds(), time.perf_counter()
                # A long call warms itself up; a short one finds cold caches after the others.
                block = process.measure(calls[name], 2 if calls[name] > 1 else 0)
                wall = time.perf_counter() - start
                if block is not None:
                    process.blocks.append(block)
                    if before is not None and wall > 0.05:
                        used = (busy_seconds() or before) - before - block["processor"]
                        others.append(max(0.0, used) / wall / (os.cpu_count() or 1))
    finally:
        for process in processes:
            process.stop()
        show("")
    rows = {p.variant.name: summarise(p) for p in processes}
    for process in processes:
        compare(process, processes, rows)
    if others:
        for row in rows.values():
            row["others_busy"] = round(statistics.mean(others), 3)
    return rows


def summarise(process: Process) -> dict[str, Any]:
    """One row without its ratio."""
    if not process.blocks or process.skipped is not None:
        return {"skipped": process.skipped or "not measured"}
    times = sorted(s for block in process.blocks for s in block["seconds"])
    return {
        **process.report,
        "milliseconds": rounded(1e3 * statistics.median(times)),
        "quartiles": [rounded(1e3 * q) for q in quartiles(times)],
        "calls": len(times),
        "peak_rss_mb": process.blocks[-1]["peak_rss_mb"],
    }


def compare(
    process: Process, processes: Sequence[Process], rows: dict[str, dict[str, Any]]
) -> None:
    """Add the ratio to the fastest baseline, and whether the numbers computed agree."""
    row = rows[process.variant.name]
    present = {p.variant.name: p for p in processes if "milliseconds" in rows[p.variant.name]}
    baselines = [name for name in process.variant.baseline if name in present]
    if "skipped" in row or not baselines:
        return
    fastest = min(baselines, key=lambda name: rows[name]["milliseconds"])
    ratios = sorted(
        statistics.median(mine["seconds"]) / statistics.median(base["seconds"])
        for mine, base in zip(process.blocks, present[fastest].blocks, strict=False)
    )
    row["baseline"] = fastest
    row["ratio"] = rounded(statistics.median(ratios))
    row["ratio_quartiles"] = [rounded(q) for q in quartiles(ratios)]
    if "quantity" in row:
        same = [rows[n]["value"] for n in present if rows[n].get("quantity") == row["quantity"]]
        row["agrees"] = abs(row["value"] - same[0]) <= 1e-3 * abs(same[0])


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def rounded(x: float) -> float:
    """Three significant digits."""
    return float(f"{x:.3g}")


def busy_seconds() -> float | None:
    """Processor seconds spent by everybody since the start of the machine; None if unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, *_ = map(int, fields)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def busy_share(seconds: float = 1.0) -> float:
    """The share of all processors in use during the next ``seconds``; zero where unknown."""
    before = busy_seconds()
    if before is None:
        return 0.0
    start = time.perf_counter()
    time.sleep(seconds)
    used = (busy_seconds() or before) - before
    return used / (time.perf_counter() - start) / (os.cpu_count() or 1)


def refuse_if_busy(allowed: bool) -> float:
    """Exit unless the machine is idle or ``allowed``; return the share in use."""
    share = busy_share()
    if share > IDLE:
        text = f"{share:.0%} of the processors are in use by other processes"
        if not allowed:
            sys.exit(f"Not measured: {text}. Stop them, or pass --busy to look all the same.")
        print(f"Warning: {text}; do not believe these numbers.", file=sys.stderr)
    return share


def run(
    name: str,
    cases: Mapping[str, Sequence[Variant]],
    given: argparse.Namespace,
    *,
    goals: dict[str, float] | None = None,
) -> int:
    """Measure the cases, print their tables and write the results.

    A case is written as soon as it is measured and replaces the stored case of the same name; the
    rest of the file stays. Toy sizes and busy machines are written only where ``--out`` says.

    Args:
      name: the results go to ``results/<name>.json``.
      cases: the variants of each case.
      given: parsed `options`.
      goals: greatest ratio allowed, by variant.

    Returns:
      The exit status: 0, or 1 where variants that should agree do not.
    """
    path = given.out or RESULTS / f"{name}.json"
    if given.markdown:
        print(markdown(json.loads(path.read_text())["cases"], goals or {}))
        return 0
    unknown = sorted(set(given.only or ()) - set(cases))
    if unknown:
        sys.exit(f"There is no case {', '.join(unknown)}; there are {', '.join(cases)}.")
    busy = refuse_if_busy(given.busy or given.tiny)
    keep = given.out is not None or not (given.tiny or busy > IDLE)
    settings = Settings(given.repeats, given.seconds, patience=given.patience)
    disagreements = []
    for case, variants in cases.items():
        if given.only and case not in given.only:
            continue
        start, load = time.perf_counter(), os.getloadavg()
        rows = measure(variants, settings)
        print(f"\n{case}\n{table(rows, goals or {})}", flush=True)
        disagreements += [f"{case}: {n}" for n, row in rows.items() if row.get("agrees") is False]
        shared = {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average_before": [round(x, 2) for x in load],
            "load_average_after": [round(x, 2) for x in os.getloadavg()],
            "rounds": settings.rounds,
            "seconds": round(time.perf_counter() - start, 1),
            "commit": commit(),
            "environment": {
                k: v for k, v in os.environ.items() if k in ("XLA_FLAGS", "JAX_PLATFORMS")
            },
        }
        if keep:
            store(path, name, case, {"measured": shared, "variants": rows})
    if keep:
        print(f"\nwritten to {path}")
    if disagreements:
        print("These compute something else: " + "; ".join(disagreements), file=sys.stderr)
    return 1 if disagreements else 0


def store(path: Path, name: str, case: str, measured: dict[str, Any]) -> None:
    """Put one case into the file of results, whole or not at all."""
    document = {"benchmark": name, "cases": {}}
    if path.exists():
        document = json.loads(path.read_text(encoding="utf-8"))
    document["cases"][case] = measured
    encoding.write_atomically(path, encoding.dumps(document))


def table(rows: dict[str, dict[str, Any]], goals: dict[str, float]) -> str:
    """One case as text, a line per variant."""
    width = max(map(len, rows))
    lines = [
        f"{'':{width}}  {'ms':>8} {'ratio':>6} {'to':20} {'trace':>6} {'compile':>7} {'temp MB':>8}"
    ]
    for name, row in rows.items():
        if "skipped" in row:
            lines.append(f"{name:{width}}  skipped: {row['skipped']}")
            continue
        marks = "" if row.get("agrees", True) else "  COMPUTES SOMETHING ELSE"
        if name in goals and "ratio" in row:
            marks += f"  {'meets' if row['ratio'] <= goals[name] else 'MISSES'} {goals[name]:g}"
        lines.append(
            f"{name:{width}}  {row['milliseconds']:8.4g} {shown(row, 'ratio'):>6} "
            f"{row.get('baseline', ''):20} {shown(row, 'trace_seconds'):>6} "
            f"{shown(row, 'compile_seconds'):>7} {shown(row, 'temporary_mb'):>8}{marks}"
        )
    return "\n".join(lines)


def shown(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.3g}" if key in row else ""


def markdown(cases: dict[str, Any], goals: dict[str, float]) -> str:
    """All stored cases as one Markdown table: a line per case, a column per variant, its ratio.

    "NAME, peers" joins the line of NAME. A ratio above its goal is bold.
    """
    lines: dict[str, dict[str, Any]] = {}
    for case, stored in cases.items():
        lines.setdefault(case.removesuffix(PEERS), {}).update(stored["variants"])
    named = dict.fromkeys(v for rows in lines.values() for v, row in rows.items() if "ratio" in row)
    columns = [name for name in named if not is_plain(name)]
    head = ["case", "plain (ms)", *columns]
    text = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for case, rows in lines.items():
        plain = [
            r["milliseconds"] for n, r in rows.items() if n.startswith("plain") and "ratio" in r
        ]
        cells = [case, f"{min(plain):.3g}" if plain else ""]
        for name in columns:
            row = rows.get(name, {})
            missed = name in goals and row.get("ratio", 0) > goals[name]
            cells.append(f"**{shown(row, 'ratio')}**" if missed else shown(row, "ratio"))
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def is_plain(name: str) -> bool:
    """Whether a variant is what others are compared with."""
    return name.startswith("plain") or name.endswith(" plain")


def show(text: str) -> None:
    """A line of progress that the next one overwrites, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:78}", end="" if text else "\r", file=sys.stderr, flush=True)
