"""Two processes with half of the training examples each find the features and scores of one."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin import gradients
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
    from tests.gradients.test_attribution_processes import read
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
    """Features of each kind, and scores of all examples for all."""
    G = gradkin.per_example_grads(loss)(params, batch)
    key = jax.random.key(0)
    sketches = [
        make(key, 16)
        for make in (gradients.RademacherSketch, gradients.KroneckerSketch, gradients.TensorSketch)
    ]
    one = jax.tree.map(lambda x: x[None], params)
    scores = gradients.tracin(loss, one, 1.0, batch, batch, sketch=sketches[0], normalize=True)
    features = jnp.stack([G.sketch(sketches[0])])
    trak = gradients.trak_scores(features, features, jnp.ones((1, 8)), regularization=0.1)
    return [*(G.sketch(s) for s in sketches), scores, trak]


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
            bound = 1e-4 * float(np.max(np.abs(want)))
            np.testing.assert_allclose(np.asarray(found), want, rtol=0, atol=bound)
