"""``python -m experiments list | run | report``: replicate papers and show what came out."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from experiments.runner import discover

app = tyro.extras.SubcommandApp()


@app.command(name="list")
def list_experiments() -> int:
    """Show every experiment and the data sets it can use."""
    for name in discover.names():
        listed = discover.describe(name)
        print(f"{name}\n    {listed.title}")
        own, *others = listed.data or ["made by the experiment"]
        print(f"    data: {own}" + (f"; with --data: {', '.join(others)}" if others else ""))
    return 0


@app.command
def run(
    experiment: Positional[str],
    preset: Literal["smoke", "quick", "paper"] = "quick",
    seeds: int = 3,
    data: str | None = None,
    out: Path | None = None,
    mesh: Annotated[str | None, arg(metavar="data=N")] = None,
    multihost: bool = False,
    resume: bool = False,
    save_evidence: bool = False,
    checkpoint_seconds: float = 10.0,
) -> int:
    """Run one experiment; exit with status 1 when a verdict differs from the committed one.

    Args:
        experiment: <subject>/<slug>, as list shows it.
        preset: smoke (seconds, no claim), quick (two cores, minutes), paper (the paper's setting).
        seeds: how many seeds.
        data: another data set: a name that gradkin.data.load knows, or a folder.
        out: where the evidence, figure, report and checkpoints go; default runs/<subject>/<slug>.
        mesh: data=N splits arrays over N devices (on a CPU, makes them).
        multihost: one process of several, on a cluster that jax.distributed.initialize recognises.
        resume: continue a run that was killed.
        save_evidence: also write experiments/results/<subject>/<slug>.json, to be committed.
        checkpoint_seconds: seconds between checkpoints.
    """
    from experiments.runner.compiled import shared_programs
    from experiments.runner.run import execute, finish, prepare

    try:
        ready = prepare(
            experiment,
            preset=preset,
            seeds=seeds,
            data=data,
            out=out,
            mesh=mesh,
            multihost=multihost,
            resume=resume,
            save_evidence=save_evidence,
        )
        arrays = ready.module.load(ready.config)
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)  # one line, not a traceback
        return 2
    try:
        with shared_programs():
            found = execute(ready, arrays, save_seconds=checkpoint_seconds)
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume goes on from here", file=sys.stderr)
        return 130
    return 0 if found is None else finish(ready, found)


@app.command
def report(out: Path = Path("runs/report.html"), reassess: bool = False) -> int:
    """Write REPLICATIONS.md and one HTML page from experiments/results.

    Args:
        out: the page.
        reassess: first evaluate the claims again on the stored metrics, after a claim was reworded.
    """
    from experiments.runner.report import write_report

    return write_report(out, reassess=reassess)


if __name__ == "__main__":
    sys.exit(app.cli(prog="python -m experiments"))
