"""Two processes that hold half of the examples each draw one process's batch and noise."""

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

from gradkin import gradients

PROGRAM = """
    import json, sys
    import jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    address, rank = sys.argv[1], int(sys.argv[2])
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from tests.gradients.test_private_processes import arguments, release

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    params, x = arguments()
    rows = NamedSharding(mesh, P("data"))
    x = jax.make_array_from_process_local_data(rows, x[8 * rank : 8 * rank + 8])
    # Parameters, and with them the noise, are split over both processes.
    params = jax.make_array_from_callback(params.shape, rows, lambda index: params[index])
    found = jax.jit(release, out_shardings=NamedSharding(mesh, P()))(params, x)
    print("RESULT", json.dumps([np.asarray(v).tolist() for v in found]))
    jax.distributed.shutdown()
"""


def arguments():
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(s).astype(np.float32) for s in ((8, 5), (16, 8)))


def release(params, x):
    """Which rows are drawn, and the noised gradient, whole and in micro-batches."""
    sampling = gradients.PoissonSampling(16, 0.5, padded_size=16)
    drawn, mask = sampling.sample(jax.random.key(1))
    inside = jnp.zeros(16, bool).at[drawn].set(mask)
    results = [inside.astype(np.int32)]
    for microbatch_size in (None, 8):
        private = gradients.private_gradient(
            lambda w, x: jnp.sum(jnp.square(x @ w)),
            clip_norm=1.0,
            noise_multiplier=1.0,
            sampling=sampling,
            microbatch_size=microbatch_size,
            check=False,
        )
        results.append(private(jax.random.key(0), params, x, mask=inside).value)
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
    wanted = jax.jit(release)(*arguments())
    for process, (out, err) in zip(running, finished, strict=True):
        assert process.returncode == 0, err[-2000:]
        line = next(line for line in out.splitlines() if line.startswith("RESULT"))
        for found, want in zip(json.loads(line[6:]), wanted, strict=True):
            np.testing.assert_allclose(np.asarray(found), want, rtol=1e-5, atol=1e-6)
