"""A run that is killed, at any moment, gives the same bits when it is resumed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.runner.run import execute, prepare

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from experiments.runner.run import execute, prepare
toys, out, resume = sys.argv[1:]
run = prepare("toy/descent", preset="paper", seeds=2, root=Path(toys), out=Path(out),
              resume=resume == "True")
execute(run, run.module.load(run.config), save_seconds=0.0)
"""


def start(toys: Path, out: Path, *, resume: bool) -> subprocess.Popen:
    """The run in a process of its own, which saves after every chunk."""
    path = os.pathsep.join([str(ROOT / "lib"), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(toys), str(out), str(resume)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )


def kill_when(process: subprocess.Popen, condition) -> None:
    """SIGKILL as soon as the condition holds."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_killed_twice_and_resumed_is_bit_equal(toys, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first = killed / "checkpoints" / "seed0" / "loop000"
    second = killed / "checkpoints" / "seed0" / "loop001"

    # In the middle of the first loop, while a checkpoint is being written.
    process = start(toys, killed, resume=False)
    kill_when(process, lambda: any(first.glob("[5-9]")) and any(first.glob("*tmp*")))
    # In the second loop, at whatever moment: the first has finished.
    process = start(toys, killed, resume=True)
    kill_when(process, lambda: any(second.glob("[1-9][0-9]")))
    finished = {p.name: p.stat().st_mtime_ns for p in first.iterdir()}
    assert "100" in finished

    options = {"preset": "paper", "seeds": 2, "root": toys}
    run = prepare("toy/descent", out=killed, resume=True, **options)
    assert run.earlier_seconds > 0
    data = run.module.load(run.config)
    execute(run, data)
    execute(prepare("toy/descent", out=whole, **options), data)
    resumed, straight = np.load(killed / "metrics.npz"), np.load(whole / "metrics.npz")
    assert set(resumed) == {"loss", "w"}
    assert np.isfinite(straight["loss"]).all()
    for name in resumed:
        np.testing.assert_array_equal(resumed[name], straight[name])
