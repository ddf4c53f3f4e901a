"""Two processes with half of the pool each warm up together and select what one device selects."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkin import curvature, gradients, selection
from tests import two_processes

PROGRAM = """
    from tests.selection.test_less_processes import made, select

    params, pool, validation = made()
    half = slice(16 * rank, 16 * rank + 16)
    spread, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    pool = jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(spread, np.asarray(x)[half]), pool
    )
    found = select(params, pool, validation, sharding=spread)
    kept = found.scores, found.indices, found.checkpoints.params
    result(jax.jit(lambda tree: tree, out_shardings=everywhere)(kept))
"""


def loss(params, example):
    return curvature.cross_entropy(jnp.tanh(example[0] @ params["in"]) @ params["out"], example[1])


def made():
    """Parameters, a pool of 32 and 6 validation examples."""
    k = jax.random.split(jax.random.key(1), 4)
    params = {"in": jax.random.normal(k[0], (6, 5)) / 2, "out": jax.random.normal(k[1], (5, 3)) / 2}
    examples = lambda key, n: (jax.random.normal(key, (n, 6)), jax.random.randint(key, (n,), 0, 3))
    return params, examples(k[2], 32), examples(k[3], 6)


def select(params, pool, validation, **options):
    schedule = optax.linear_schedule(0.05, 0.01, 8)
    return selection.less(
        jax.random.key(4),
        loss,
        params,
        pool,
        validation,
        optimizer=optax.adam(schedule),
        learning_rate=schedule,
        sketch=gradients.RademacherSketch(jax.random.key(5), 16),
        subtasks=np.array([0, 1, 2, 0, 1, 2]),
        fraction=0.25,
        warm_up_fraction=0.5,
        epochs=2,
        batch_size=4,
        feature_batch_size=8,
        **options,
    )


@pytest.mark.slow
def test_two_processes():
    one = select(*made())
    for scores, indices, *params in two_processes.results(PROGRAM):
        np.testing.assert_allclose(scores, one.scores, atol=1e-5)
        assert indices == one.indices.tolist()
        for found, wanted in zip(params, jax.tree.leaves(one.checkpoints.params), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
