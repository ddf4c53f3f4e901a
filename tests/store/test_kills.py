"""Writers killed at any point lose nothing that was committed and double nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# More, and for longer, where the environment asks for it.
KILLS = int(os.environ.get("GRADKIN_KILLS", "12"))


@pytest.mark.slow
def test_killed_at_random_times_and_before_each_system_call(tmp_path):
    path = os.pathsep.join([str(ROOT / "lib"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.kill_writers", tmp_path, "--calls", f"--kills={KILLS}"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["at random"]["kills"] >= KILLS
    assert report["at random"]["stores"] >= 1
    kinds = report["before each call"]["kinds"]
    assert set(kinds) >= {"fsync", "link", "mkdir", "open", "rename"}
    assert kinds["rename"] == kinds["open"] / 2  # each commit writes two arrays
