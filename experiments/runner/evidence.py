"""The evidence of a run: one JSON file."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.runner import claims, encoding
from experiments.runner.discover import ROOT

RESULTS = ROOT / "results"
PACKAGES = ("gradkin", "jax", "jaxlib", "numpy", "optax", "flax")


def make(
    module: Any,
    *,
    name: str,
    preset: str,
    seeds: Sequence[int],
    config: Any,
    metrics: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Return the evidence: what was run, what came out, what it says, and where it ran.

    The claims are evaluated on the metrics as they are written, so that they can be evaluated again
    from the file. The preset "smoke" evaluates none.
    """
    encoded = encoding.encode(metrics)
    stored = encoding.decode(encoded)
    judged = () if preset == "smoke" else module.CLAIMS
    return {
        "experiment": name,
        "papers": list(module.PAPERS),
        "preset": preset,
        "seeds": list(seeds),
        "config": dataclasses.asdict(config),
        "claims": [claims.evaluate(claim, stored) for claim in judged],
        "seconds": round(seconds, 1),
        "peak_rss_mb": peak_rss_mb(),
        "peak_device_mb": peak_device_mb(),
        "device": device(),
        "versions": versions(),
        "commit": commit(),
        "metrics": encoded,
    }


def read(path: Path) -> dict[str, Any]:
    """Return one evidence file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, evidence: Mapping[str, Any]) -> None:
    """Write one evidence file, whole or not at all."""
    encoding.write_atomically(path, encoding.dumps(evidence))


def file_name(name: str, data: str | None) -> str:
    """``<subject>/<slug>.json``, or ``<subject>/<slug>@<data>.json`` for another data set."""
    return f"{name}.json" if data is None else f"{name}@{Path(data).stem}.json"


def device() -> str:
    """What the run computed on."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"{processor()}, {len(os.sched_getaffinity(0))} cores"
    return kind if len(devices) == 1 else f"{len(devices)} x {kind}"


def processor() -> str:
    """The name of the processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that compute."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout, with ``+changes`` where tracked files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        return head + ("+changes" if git("status", "--porcelain", "-uno", "--", "lib", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_rss_mb() -> int:
    """The most memory the process has held, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def peak_device_mb() -> int | None:
    """The most memory that one accelerator has held, in MB; None where it does not say."""
    peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use") for d in jax.local_devices()]
    return max((round(peak / 2**20) for peak in peaks if peak), default=None)
