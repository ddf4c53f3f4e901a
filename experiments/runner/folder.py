"""The folder of one run: what it is a run of, and whether it may be continued."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.runner.encoding import dumps, write_atomically

IDENTITY = "run.json"
CHECKPOINTS = "checkpoints"


def begin(out: Path, identity: Mapping[str, Any], *, resume: bool) -> float:
    """Make the folder ready and return the seconds that earlier attempts have computed.

    With `resume`, a folder of the same run is kept as it is; of another run, it is refused; without
    a run in it, the run starts. Without `resume`, what an earlier run left is removed first.
    """
    identity = json.loads(json.dumps(identity))  # tuples are lists in a file
    file = out / IDENTITY
    seconds = 0.0
    if resume and file.exists():
        earlier = json.loads(file.read_text())
        check_same(earlier["identity"], identity, out)
        seconds = earlier["seconds"] + max(0.0, newest(out / CHECKPOINTS) - earlier["started"])
    else:
        clear(out)
    document = {"identity": identity, "seconds": seconds, "started": time.time()}
    write_atomically(file, dumps(document))
    return seconds


def check_same(earlier: Mapping[str, Any], identity: Mapping[str, Any], out: Path) -> None:
    """Raise ValueError where two runs differ, naming what differs."""

    def flat(part: Mapping[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in part.items() if name != "config"}
        return rest | {f"config.{name}": value for name, value in part["config"].items()}

    old, new = flat(earlier), flat(identity)
    different = [name for name in old | new if old.get(name) != new.get(name)]
    if different:
        shown = "; ".join(f"{n} was {old.get(n)!r}, is {new.get(n)!r}" for n in different)
        raise ValueError(
            f"Expected the run to resume to be the one in {out}, but {shown}. Start it without "
            "--resume, or give another --out."
        )


def clear(out: Path) -> None:
    """Remove what a run writes, and nothing else; first of all what makes it resumable."""
    (out / IDENTITY).unlink(missing_ok=True)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    for pattern in ("metrics.npz", "*.json", "*.png", "report.html"):
        for file in out.glob(pattern):
            file.unlink()


def newest(folder: Path) -> float:
    """When something in the folder was last written; 0 where there is nothing."""
    return max((path.stat().st_mtime for path in folder.rglob("*")), default=0.0)
