"""REPLICATIONS.md: one row per claim, written from the committed evidence and nothing else."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.runner import bibliography, evidence
from experiments.runner.discover import ROOT
from experiments.runner.encoding import write_atomically
from experiments.runner.table import MARKS, needed, summary

FILE = ROOT.parent / "REPLICATIONS.md"
HEADER = """\
# Replications

Written by `python -m experiments report` from the evidence in `experiments/results/`; a test
evaluates every claim again on the stored metrics. A claim's threshold comes from its paper or from
theory and was fixed before the run. "mean", "median" and "every" say what over the seeds is held
against it. Measured: mean ± standard deviation over the seeds. Do a row again with

    python -m experiments run <experiment> --preset <preset> --seeds <seeds>
"""
COLUMNS = (
    "paper",
    "experiment",
    "claim",
    "paper's number",
    "measured",
    "needed",
    "verdict",
    "device",
    "seconds",
)


def collect(results: Path = evidence.RESULTS) -> dict[str, dict[str, Any]]:
    """Return ``<subject>/<slug>[@<data>]`` -> evidence of every committed file, sorted."""
    files = sorted(results.glob("*/*.json"))
    return {f"{file.parent.name}/{file.stem}": evidence.read(file) for file in files}


def write(results: Path = evidence.RESULTS) -> None:
    """Write the page of our own results; of other results there is none."""
    if results == evidence.RESULTS:
        write_atomically(FILE, render(collect(results)))


def render(found: Mapping[str, Mapping[str, Any]], papers: Mapping[str, Any] | None = None) -> str:
    """Return the page."""
    papers = bibliography.read() if papers is None else papers
    lines = [HEADER, tally(found), ""]
    for subject, group in itertools.groupby(found.items(), lambda item: item[0].split("/")[0]):
        lines += [f"## {subject}", "", row(*COLUMNS), row(*["---"] * len(COLUMNS))]
        for name, one in group:
            lines += [claim_row(name, one, claim, papers) for claim in one["claims"]]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def claim_row(name: str, one: Mapping, claim: Mapping, papers: Mapping[str, Any]) -> str:
    """One claim."""
    paper = papers.get(claim["paper"])
    cited = claim["paper"] if paper is None else paper.label
    if paper is not None and paper.url:
        cited = f"[{escape(cited)}]({paper.url})"
    else:
        cited = escape(cited)
    seeds = len(one["seeds"])
    return row(
        cited,
        f"[{name}](experiments/results/{name}.json), {one['preset']}, {seeds} seeds",
        escape(claim["text"]),
        escape(claim["reported"]),
        summary(claim["measured"]),
        escape(needed(claim)),
        f"{MARKS[claim['verdict']]} {claim['verdict']}",
        escape(one["device"]),
        f"{one['seconds']:.0f}",
    )


def tally(found: Mapping[str, Mapping[str, Any]]) -> str:
    """How many claims came out how."""
    verdicts = [claim["verdict"] for one in found.values() for claim in one["claims"]]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in MARKS)
    return f"{len(verdicts)} claims in {len(found)} runs: {counts}."


def row(*cells: str) -> str:
    """One row of a table."""
    return "| " + " | ".join(cells) + " |"


def escape(text: str) -> str:
    """Text that a table cell can hold."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
