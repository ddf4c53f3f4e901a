"""`check=True` compares rows with `jax.grad` and stops on a difference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin.matrices import recording, verify
from tests.matrices import oracle
from tests.matrices.models import dense


@pytest.mark.parametrize("build", [dense.mlp, dense.two_arguments, dense.adapter])
def test_correct_rows_pass(build):
    model = build()
    norms = oracle.matrix(model, check=True).norms()
    jax.effects_barrier()
    np.testing.assert_allclose(norms, oracle.matrix(model).norms(), rtol=1e-6)


def test_losses_and_auxiliary_values():
    def loss(params, x):
        return jnp.sum(jnp.tanh(x @ params)), x

    (losses, aux), G = gradkin.value_and_per_example_grads(loss, has_aux=True, check=True)(
        jnp.ones((3, 2)), jnp.ones((4, 3))
    )
    jax.effects_barrier()
    assert losses.shape == (4,)
    assert aux.shape == (4, 3)
    assert len(G) == 4


def test_a_loss_that_is_not_finite_is_no_difference():
    model = dense.mlp(batch=4)
    params, (x, y) = model.args
    broken = model._replace(args=(params, (x.at[0].set(jnp.nan), y)))
    assert np.isnan(oracle.matrix(broken, check=True).norms()[0])
    jax.effects_barrier()


def test_a_wrong_row_is_found():
    model = dense.mlp(batch=4)
    spec = recording.Transformation(model.loss, 0, False, (None, 0), "auto")
    wrong = oracle.matrix(model).scale(np.array([1.0, 1.0, 1.0, 1.01]))

    def run():
        verify.compare_rows(spec, model.args, wrong)
        jax.effects_barrier()

    with pytest.raises(Exception, match="relative difference of 1.0e-02"):
        run()


def test_streamed_matrices_cannot_be_checked():
    with pytest.raises(ValueError, match="check"):
        gradkin.per_example_grads(dense.mlp().loss, batch_size=2, check=True)
