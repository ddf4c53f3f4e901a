"""Run one experiment: data, seeds, metrics, figure, evidence, verdict."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.runner import discover, encoding, evidence, folder, page, replications, table
from experiments.runner import mesh as meshes
from experiments.runner.seeds import metrics_of


class Run(NamedTuple):
    """One run, made ready."""

    module: ModuleType
    name: str
    preset: str
    config: Any
    other_data: str | None  # the data set's name where it is not the preset's own
    seeds: int
    out: Path
    mesh: jax.sharding.Mesh | None
    earlier_seconds: float  # what attempts that were killed have computed
    resume: bool
    save_evidence: bool

    @property
    def file(self) -> str:
        """Where the evidence lies, below a folder of results."""
        return evidence.file_name(self.name, self.other_data)

    @property
    def evidence(self) -> Path:
        """The evidence of this run."""
        return self.out / Path(self.file).name


def prepare(
    name: str,
    *,
    preset: str = "quick",
    seeds: int = 3,
    data: str | None = None,
    out: Path | None = None,
    mesh: str | None = None,
    multihost: bool = False,
    resume: bool = False,
    save_evidence: bool = False,
    root: Path = discover.ROOT,
) -> Run:
    """Check what was asked for and make the folder ready; see ``run --help``."""
    if seeds < 1:
        raise ValueError(f"Expected seeds to be at least 1, got seeds={seeds}.")
    if save_evidence and preset == "smoke":
        raise ValueError("Expected a preset that evaluates claims to save, got preset='smoke'.")
    if multihost:
        if mesh is None:
            raise ValueError("Expected mesh=data=N with multihost, got no mesh.")
        jax.distributed.initialize()
    devices = None if mesh is None else meshes.make_mesh(mesh, multihost=multihost)

    module = discover.load(name, root)
    config, other_data = configure(module, preset, data)
    out = out or Path("runs") / evidence.file_name(name, other_data).removesuffix(".json")
    identity = {
        "experiment": name,
        "preset": preset,
        "seeds": seeds,
        "config": dataclasses.asdict(config),
        "mesh": mesh,
    }
    seconds = folder.begin(out, identity, resume=resume) if jax.process_index() == 0 else 0.0
    if multihost:
        multihost_utils.sync_global_devices("the run's folder is ready")
    return Run(
        module,
        name,
        preset,
        config,
        other_data,
        seeds,
        out,
        devices,
        seconds,
        resume,
        save_evidence,
    )


def configure(module: ModuleType, preset: str, data: str | None) -> tuple[Any, str | None]:
    """Return the preset's config, and the data set's name if it is not the preset's own."""
    if preset not in module.PRESETS:
        raise ValueError(f"Expected preset to be one of {list(module.PRESETS)}, got {preset!r}.")
    config = module.PRESETS[preset]
    if data is None:
        return config, None
    if not hasattr(config, "data"):
        raise ValueError(f"Expected no data (the experiment makes its own), got data={data!r}.")
    other = None if data == config.data else data
    return dataclasses.replace(config, data=data), other


def execute(run: Run, data: Any, *, save_seconds: float = 10.0) -> dict[str, Any] | None:
    """Compute and write the evidence, or read that of a finished run; None on helping processes."""
    if run.resume and run.evidence.exists():
        return evidence.read(run.evidence)
    start = time.monotonic()
    metrics = metrics_of(
        run.module,
        run.config,
        run.seeds,
        meshes.place(data, run.mesh),
        folder=run.out / folder.CHECKPOINTS,
        sharding=meshes.replicated(run.mesh),
        save_seconds=save_seconds,
        quiet=None if jax.process_index() == 0 else True,
    )
    if jax.process_index() != 0:
        return None
    # All digits, and before the JSON may refuse.
    np.savez(run.out / "metrics.npz", allow_pickle=False, **metrics)
    found = evidence.make(
        run.module,
        name=run.name,
        preset=run.preset,
        seeds=range(run.seeds),
        config=run.config,
        metrics=metrics,
        seconds=run.earlier_seconds + time.monotonic() - start,
    )
    evidence.write(run.evidence, found)
    shutil.rmtree(run.out / folder.CHECKPOINTS, ignore_errors=True)
    return found


def finish(run: Run, found: Mapping[str, Any], *, results: Path = evidence.RESULTS) -> int:
    """Draw, report, and compare the verdicts with the committed ones; return the exit status."""
    committed = results / run.file
    expected = expected_verdicts(run, committed)
    if run.save_evidence:
        evidence.write(committed, found)
        replications.write(results)
    picture = page.draw(run.module, found)
    (run.out / f"{committed.stem}.png").write_bytes(picture)
    report = run.out / "report.html"
    name = run.file.removesuffix(".json")
    encoding.write_atomically(
        report, page.render([(name, found, run.module)], [picture], title=f"gradkin: {name}")
    )

    print(table.render(found))
    different = [
        f"{claim['text']!r} is {claim['verdict']}, committed as {expected[claim['text']]}"
        for claim in found["claims"]
        if claim["verdict"] != expected.get(claim["text"], claim["verdict"])
    ]
    for line in different:
        print(f"verdict changed: {line}", file=sys.stderr)
    print(f"evidence: {committed if run.save_evidence else run.evidence}")
    print(f"report:   {report}")
    return 1 if different else 0


def expected_verdicts(run: Run, committed: Path) -> dict[str, str]:
    """Claim -> committed verdict: in the code for the preset's own data, else in the evidence."""
    if run.other_data is None:
        return {claim.text: claim.verdict for claim in run.module.CLAIMS}
    if not committed.exists():
        return {}
    return {claim["text"]: claim["verdict"] for claim in evidence.read(committed)["claims"]}
