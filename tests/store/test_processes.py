"""Two processes that write their own shards and search together find what one finds."""

import json
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from gradkin import store

PROGRAM = """
    import json, sys
    import jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    address, rank, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
    import numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import NamedSharding, PartitionSpec as P
    from gradkin import store
    from tests.store.test_processes import SIZE, TOTAL, features_of, queries

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    made = store.create_store(folder, dim=5, shard_size=SIZE)
    made.fill(features_of, num_examples=TOTAL, checkpoint="filled")
    # Rows that lie on both: each writes the shard that it holds.
    rows = features_of(0, 2 * SIZE)
    local = rows[rank * SIZE : (rank + 1) * SIZE]
    rows = jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), local)
    made.write(rows, start=0, checkpoint="written")
    multihost_utils.sync_global_devices("written")
    assert made.num_examples(checkpoint="written") == 2 * SIZE
    found = made.top_k(queries(), 7, checkpoints=("filled",), metric="cosine", mesh=mesh)
    print("RESULT", json.dumps([found.indices.tolist(), found.scores.tolist()]))
    multihost_utils.sync_global_devices("searched")
    if rank == 0:
        for path in made.folder.glob("shards/filled/00000001/*/features/c.0.0"):
            path.write_bytes(b"")
    multihost_utils.sync_global_devices("damaged")
    try:
        made.top_k(queries(), 7, checkpoints=("filled",), mesh=mesh)
    except (store.CorruptShardError, RuntimeError) as error:
        print("ERROR", f"{type(error).__name__}: {error}")
    jax.distributed.shutdown()
"""

SIZE, TOTAL = 8, 37


def features_of(start, stop):
    rows = np.random.default_rng(0).normal(size=(TOTAL, 5)).astype(np.float32)
    return rows[start:stop]


def queries():
    return np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), address]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "both")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    finished = [process.communicate(timeout=240) for process in running]
    alone = store.create_store(tmp_path / "one", dim=5, shard_size=SIZE)
    alone.fill(features_of, num_examples=TOTAL, checkpoint="filled")
    wanted = alone.top_k(queries(), 7, metric="cosine")
    errors = []
    for process, (out, err) in zip(running, finished, strict=True):
        assert process.returncode == 0, err[-2000:]
        lines = dict(line.split(" ", 1) for line in out.splitlines() if " " in line)
        indices, scores = json.loads(lines["RESULT"])
        np.testing.assert_array_equal(indices, wanted.indices)
        np.testing.assert_allclose(scores, wanted.scores, rtol=1e-6)
        errors.append(lines["ERROR"])
    assert "RuntimeError: Process 1 failed" in errors[0]
    assert "CorruptShardError" in errors[1]
    both = store.open_store(tmp_path / "both")
    np.testing.assert_array_equal(
        both.read(0, 2 * SIZE, checkpoint="written"), features_of(0, 2 * SIZE)
    )
