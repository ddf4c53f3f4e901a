"""Two processes that hold half of the examples each find the numbers of one."""

import jax
import numpy as np
import pytest

import gradkin
from tests import two_processes
from tests.matrices.models import dense

PROGRAM = f"""
    from tests.matrices.test_processes import read
{two_processes.READ}"""


def read(loss, params, batch):
    """Row results, a parameter result and inner products, recorded and streamed."""
    results = []
    for batch_size in (None, 4):
        G = gradkin.per_example_grads(loss, batch_size=batch_size)(params, batch)
        results += [G.norms(), G.clip(0.5).mean()[1]["kernel"], G.gram()]
    return results


@pytest.mark.slow
def test_two_processes():
    model = dense.mlp(batch=8)
    wanted = jax.jit(read, static_argnums=0)(model.loss, *model.args)
    for results in two_processes.results(PROGRAM):
        for found, want in zip(results, wanted, strict=True):
            bound = 1e-5 * float(np.max(np.abs(want)))
            np.testing.assert_allclose(np.asarray(found), want, rtol=0, atol=bound)
