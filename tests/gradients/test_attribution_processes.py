"""Two processes with half of the training examples each find the features and scores of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin import gradients
from tests import two_processes
from tests.matrices.models import dense

PROGRAM = f"""
    from tests.gradients.test_attribution_processes import read
{two_processes.READ}"""


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
    model = dense.mlp(batch=8)
    wanted = jax.jit(read, static_argnums=0)(model.loss, *model.args)
    for results in two_processes.results(PROGRAM):
        for found, want in zip(results, wanted, strict=True):
            bound = 1e-4 * float(np.max(np.abs(want)))
            np.testing.assert_allclose(np.asarray(found), want, rtol=0, atol=bound)
