"""Run a program as two processes of one `jax.distributed` job, and take what both print."""

import json
import socket
import subprocess
import sys
import textwrap

# Each process brings two devices; `result` prints what the test compares.
START = """
    import json, sys
    import jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    address, rank = sys.argv[1], int(sys.argv[2])
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def result(tree):
        leaves = [np.asarray(x).tolist() for x in jax.tree.leaves(tree)]
        print("RESULT", json.dumps(leaves), flush=True)
        jax.distributed.shutdown()
"""
# The perceptron's examples, half of them on either process, read by a test's own `read`.
READ = """
    from tests.matrices.models import dense

    model = dense.mlp(batch=8)
    params, batch = jax.tree.map(np.asarray, model.args)
    rows = slice(4 * rank, 4 * rank + 4)
    batch = jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), x[rows]),
        batch,
    )
    everywhere = NamedSharding(mesh, P())
    params = jax.tree.map(lambda x: jax.make_array_from_process_local_data(everywhere, x), params)
    result(jax.jit(read, static_argnums=0, out_shardings=everywhere)(model.loss, params, batch))
"""


def results(program: str) -> list[list]:
    """What each process passed to ``result``; the program's own lines follow `START`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", textwrap.dedent(START) + textwrap.dedent(program), address]
    running = [
        subprocess.Popen(
            [*command, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    finished = [process.communicate(timeout=240) for process in running]
    found = []
    for process, (out, err) in zip(running, finished, strict=True):
        assert process.returncode == 0, err[-2000:]
        line = next(line for line in out.splitlines() if line.startswith("RESULT"))
        found.append(json.loads(line[6:]))
    return found
