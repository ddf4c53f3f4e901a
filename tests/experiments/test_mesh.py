"""Data on a mesh: where they lie, and the same numbers as on one device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.runner import mesh as meshes
from experiments.runner.run import execute, prepare

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
import jax
from experiments.runner.run import execute, prepare
toys, out, port, process = sys.argv[1:]
initialize = jax.distributed.initialize
jax.distributed.initialize = lambda: initialize(f"localhost:{port}", 2, int(process))
jax.config.update("jax_num_cpu_devices", 2)
run = prepare("toy/walk", root=Path(toys), out=Path(out), mesh="data=4", multihost=True)
assert (execute(run, {}, save_seconds=1000) is None) == (process == "1")
"""


def test_leading_axis_that_divides_is_split():
    mesh = meshes.make_mesh("data=4")
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,)
    data = {"x": np.zeros((8, 3)), "y": np.arange(4), "odd": np.zeros((6, 4)), "one": np.float32(2)}
    placed = meshes.place(data, mesh)
    assert placed["x"].sharding.shard_shape((8, 3)) == (2, 3)
    assert placed["y"].sharding.shard_shape((4,)) == (1,)
    assert placed["odd"].is_fully_replicated
    assert placed["one"].is_fully_replicated
    assert jax.tree.map(lambda x: x.dtype, placed)["y"] == np.int32
    jax.tree.map(np.testing.assert_array_equal, placed, data)


def test_keys_are_replicated(key):
    sharding = meshes.replicated(meshes.make_mesh("data=8"))
    assert sharding is not None
    copy = meshes.replicate(key, sharding)
    assert len(copy.sharding.device_set) == 8
    assert (jax.random.key_data(copy) == jax.random.key_data(key)).all()


@pytest.mark.parametrize("name", ["toy/descent", "toy/walk"])
def test_same_result_as_on_one_device(toys, tmp_path, name):
    metrics = []
    for spec in (None, "data=8"):
        run = prepare(name, seeds=2, root=toys, out=tmp_path, mesh=spec)
        execute(run, run.module.load(run.config))
        metrics.append(dict(np.load(tmp_path / "metrics.npz")))
    for one, other in zip(*(m.values() for m in metrics)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_are_one_run(toys, tmp_path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = str(listener.getsockname()[1])
    out = tmp_path / "both"
    path = os.pathsep.join([str(ROOT / "lib"), str(ROOT)])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(toys), str(out), port, str(process)],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    run = prepare("toy/walk", root=toys, out=tmp_path / "one")
    execute(run, {})
    both, one = np.load(out / "metrics.npz"), np.load(tmp_path / "one" / "metrics.npz")
    np.testing.assert_allclose(both["spread"], one["spread"], rtol=1e-5)
