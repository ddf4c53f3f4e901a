"""Two processes that hold half of the examples each find the numbers of one."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

import gradkin
from tests.matrices.models import dense

PROGRAM = """
    import json, sys
    import jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    address, rank = sys.argv[1], int(sys.argv[2])
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from tests.matrices.test_processes import read
    from tests.matrices.models import dense

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model = dense.mlp(batch=8)
    params, batch = jax.tree.map(np.asarray, model.args)
    rows = slice(4 * rank, 4 * rank + 4)
    batch = jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), x[rows]),
        batch,
    )
    everywhere = NamedSharding(mesh, P())
    params = jax.tree.map(lambda x: jax.make_array_from_process_local_data(everywhere, x), params)
    found = jax.jit(read, static_argnums=0, out_shardings=everywhere)(model.loss, params, batch)
    print("RESULT", json.dumps([np.asarray(x).tolist() for x in jax.tree.leaves(found)]))
    jax.distributed.shutdown()
"""


def read(loss, params, batch):
    """Row results, a parameter result and inner products, recorded and streamed."""
    results = []
    for batch_size in (None, 4):
        G = gradkin.per_example_grads(loss, batch_size=batch_size)(params, batch)
        results += [G.norms(), G.clip(0.5).mean()[1]["kernel"], G.gram()]
    return results


@pytest.mark.slow
def test_two_processes():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), address]
    running = [
        subprocess.Popen(
            [*command, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    finished = [process.communicate(timeout=240) for process in running]
    model = dense.mlp(batch=8)
    wanted = jax.jit(read, static_argnums=0)(model.loss, *model.args)
    for process, (out, err) in zip(running, finished, strict=True):
        assert process.returncode == 0, err[-2000:]
        line = next(line for line in out.splitlines() if line.startswith("RESULT"))
        for found, want in zip(json.loads(line[6:]), wanted, strict=True):
            bound = 1e-5 * float(np.max(np.abs(want)))
            np.testing.assert_allclose(np.asarray(found), want, rtol=0, atol=bound)
