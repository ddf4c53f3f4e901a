"""Two processes that hold half of the examples each draw one process's batch and noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import gradients
from tests import two_processes

PROGRAM = """
    from tests.gradients.test_private_processes import arguments, release

    params, x = arguments()
    rows = NamedSharding(mesh, P("data"))
    x = jax.make_array_from_process_local_data(rows, x[8 * rank : 8 * rank + 8])
    # Parameters, and with them the noise, are split over both processes.
    params = jax.make_array_from_callback(params.shape, rows, lambda index: params[index])
    result(jax.jit(release, out_shardings=NamedSharding(mesh, P()))(params, x))
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
    wanted = jax.jit(release)(*arguments())
    for results in two_processes.results(PROGRAM):
        for found, want in zip(results, wanted, strict=True):
            np.testing.assert_allclose(np.asarray(found), want, rtol=1e-5, atol=1e-6)
