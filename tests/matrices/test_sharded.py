"""A batch that lives on eight devices gives the numbers of one device, and stays there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkin
from tests.matrices import oracle
from tests.matrices.models import attention, dense, recurrent

MODELS = {
    "mlp": lambda: dense.mlp(batch=16),
    "transformer": lambda: attention.transformer(batch=16, layers=1, tied=True, scan=True),
    "rnn": recurrent.rnn,
}


def repeated(model, num_examples=16):
    """The same model with a batch of sixteen."""
    batch = jax.tree.map(
        lambda x: jnp.concatenate([x] * -(-num_examples // x.shape[0]))[:num_examples],
        model.args[1],
    )
    return model._replace(args=(model.args[0], batch))


def placed(model, mesh):
    batch = jax.device_put(model.args[1], NamedSharding(mesh, P("data")))
    params = jax.device_put(model.args[0], NamedSharding(mesh, P()))
    return model._replace(args=(params, batch))


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [("mlp", None), ("mlp", 8), ("transformer", None), ("rnn", None), ("rnn", 8)],
)
def test_equals_one_device(mesh, name, batch_size):
    model = repeated(MODELS[name]())
    tangent, weights = oracle.probes(model, 16)

    @functools.partial(jax.jit, compiler_options=oracle.FAST)
    def read(args):
        G = oracle.matrix(model._replace(args=args), route="factors", batch_size=batch_size)
        return {
            "norms": G.norms(),
            "clipped": G.clip(0.5).mean(),
            "gram": G.gram(),
            "tangent": G @ tangent,
            "weighted": weights @ G,
        }

    many, one = read(placed(model, mesh).args), read(model.args)
    assert len(many["norms"].devices()) == 8
    oracle.assert_close(
        jax.tree.map(np.asarray, many), jax.tree.map(np.asarray, one), tolerance=1e-5
    )


def test_rows_stay_on_their_devices(mesh):
    model = placed(MODELS["mlp"](), mesh)
    G = gradkin.per_example_grads(model.loss, route="factors")(*model.args)
    sharding = NamedSharding(mesh, P("data"))
    assert G.norms().sharding.is_equivalent_to(sharding, 1)
    for factor in G.table:
        assert factor.shape[0] == 16
        assert factor.sharding.is_equivalent_to(sharding, factor.ndim)


@pytest.mark.parametrize("batch_size", [None, 8], ids=["recorded", "streamed"])
def test_nothing_is_gathered(mesh, batch_size):
    """Clipping and averaging a sharded batch adds up gradients; it never collects examples."""
    model = placed(MODELS["mlp"](), mesh)

    @jax.jit
    def step(*args):
        return gradkin.per_example_grads(model.loss, batch_size=batch_size)(*args).clip(1.0).mean()

    text = step.lower(*model.args).compile().as_text() or ""
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text
