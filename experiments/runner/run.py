"""Run one experiment: data, seeds, metrics, figure, evidence, verdict."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import figures
from experiments.runner import discover, encoding, evidence, folder, mesh, table
from experiments.runner.seeds import metrics_of


def configure(module: ModuleType, preset: str, data: str | None) -> tuple[Any, str | None]:
    """Return the preset's config, and the data set's name if it is not the preset's own."""
    if preset not in module.PRESETS:
        raise ValueError(f"Expected preset to be one of {list(module.PRESETS)}, got {preset!r}.")
    config = module.PRESETS[preset]
    if data is None:
        return config, None
    if not hasattr(config, "data"):
        raise ValueError(
            f"Expected no data, since the experiment makes its own, got data={data!r}."
        )
    other = None if data == config.data else data
    return dataclasses.replace(config, data=data), other


def execute(
    name: str,
    *,
    preset: str = "quick",
    seeds: int = 3,
    data: str | None = None,
    out: Path | None = None,
    mesh_spec: str | None = None,
    multihost: bool = False,
    resume: bool = False,
    save_evidence: bool = False,
    save_seconds: float = 10.0,
    root: Path = discover.ROOT,
    results: Path = evidence.RESULTS,
) -> int:
    """Run an experiment and return the exit status; see ``python -m experiments run --help``."""
    if seeds < 1:
        raise ValueError(f"Expected seeds to be at least 1, got seeds={seeds}.")
    if multihost:
        if mesh_spec is None:
            raise ValueError("Expected mesh data=N with multihost, got mesh=None.")
        jax.distributed.initialize()
    where = None if mesh_spec is None else mesh.make_mesh(mesh_spec, multihost=multihost)
    writes = jax.process_index() == 0

    module = discover.load(name, root)
    config, other_data = configure(module, preset, data)
    file = evidence.file_name(name, other_data)
    out = out or Path("runs") / file.removesuffix(".json")
    target = out / Path(file).name
    identity = {
        "experiment": name,
        "preset": preset,
        "seeds": list(range(seeds)),
        "config": dataclasses.asdict(config),
        "mesh": mesh_spec,
    }
    before = folder.begin(out, identity, resume=resume) if writes else 0.0
    if multihost:
        multihost_utils.sync_global_devices("the run's folder is ready")

    if resume and target.exists():
        found = evidence.read(target)
    else:
        start = time.monotonic()
        arrays = mesh.place(module.load(config), where)
        metrics = metrics_of(
            module,
            config,
            seeds,
            arrays,
            folder=out / folder.CHECKPOINTS,
            sharding=mesh.replicated(where),
            save_seconds=save_seconds,
        )
        seconds = before + time.monotonic() - start
        if not writes:
            return 0
        np.savez(out / "metrics.npz", **metrics)  # all digits, and before the JSON may refuse
        found = evidence.make(
            module,
            name=name,
            preset=preset,
            seeds=range(seeds),
            config=config,
            metrics=metrics,
            seconds=seconds,
        )
        evidence.write(target, found)
        shutil.rmtree(out / folder.CHECKPOINTS, ignore_errors=True)
    return finish(module, found, out, results / file, other_data, save_evidence)


def finish(
    module: ModuleType,
    found: Mapping[str, Any],
    out: Path,
    committed: Path,
    other_data: str | None,
    save_evidence: bool,
) -> int:
    """Draw the figure, show the claims, and compare the verdicts with the committed ones."""
    expected = {claim.text: claim.verdict for claim in module.CLAIMS}
    if other_data is not None:  # the verdicts in the code are those of the preset's own data
        expected = {}
        if committed.exists():
            expected = {c["text"]: c["verdict"] for c in evidence.read(committed)["claims"]}
    if save_evidence:
        evidence.write(committed, found)

    with figures.style():
        picture = module.plot(encoding.decode(found["metrics"]))
        picture.savefig(out / f"{committed.stem}.png")
    print(table.render(found))
    different = [
        f"{claim['text']!r} is {claim['verdict']}, committed as {expected[claim['text']]}"
        for claim in found["claims"]
        if claim["verdict"] != expected.get(claim["text"], claim["verdict"])
    ]
    for line in different:
        print(f"verdict changed: {line}", file=sys.stderr)
    return 1 if different else 0
