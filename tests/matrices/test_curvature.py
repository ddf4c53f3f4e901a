"""The lazy Hessian against the one that `jax.hessian` writes down."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import gradkin
from gradkin import curvature
from tests.matrices import oracle
from tests.matrices.models import equinox_models, exotic, nnx_models, recurrent
from tests.matrices.models.model import normal


def predict(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]


def loss(params, example):
    x, y = example
    return jnp.sum((predict(params, x) - y) ** 2) + 0.1 * jnp.sum(params["b1"] ** 3)


PARAMS = {"w1": normal(0, 3, 4), "b1": normal(1, 4), "w2": normal(2, 4, 2)}
BATCH = (normal(3, 16, 3), normal(4, 16, 2))
VECTOR = {"w1": normal(5, 3, 4), "b1": normal(6, 4), "w2": normal(7, 4, 2)}


def mean_loss(params, batch):
    return jnp.mean(jax.vmap(loss, (None, 0))(params, batch))


@functools.cache
def dense():
    """The Hessian written down, ``[24, 24]``."""
    flat, unravel = ravel_pytree(PARAMS)
    return np.asarray(jax.jit(jax.hessian(lambda x: mean_loss(unravel(x), BATCH)))(flat))


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def close(actual, wanted, tolerance=1e-5):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_the_matrix_is_the_hessian_of_the_mean():
    H = gradkin.hessian(loss)(PARAMS, BATCH)
    assert H.shape == (24, 24)
    assert H.dtype == np.float32
    assert H.T is H
    close(H.materialize(), dense())
    product = H @ VECTOR
    assert jax.tree.structure(product) == jax.tree.structure(PARAMS)
    close(flat(product), dense() @ flat(VECTOR))
    close(flat(VECTOR @ H), flat(product))
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), VECTOR)
    close(flat(H @ double), flat(product))  # cast to the dtype of the parameters


@pytest.mark.parametrize("batch_size", [5, 16, 100])
def test_micro_batches_give_the_same_matrix(batch_size):
    H = gradkin.hessian(loss, batch_size=batch_size)(PARAMS, BATCH)
    close(flat(H @ VECTOR), dense() @ flat(VECTOR))


def test_closed_form_in_float64():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(7, 5))
        H = gradkin.hessian(lambda w, x: 0.5 * jnp.vdot(w, x) ** 2, batch_size=3)(jnp.ones(5), x)
        assert H.dtype == np.float64
        np.testing.assert_allclose(H.materialize(), x.T @ x / 7, atol=1e-14)


def test_invariances():
    """Repeating the batch changes nothing; the matrix is linear in the loss."""
    H = gradkin.hessian(loss)(PARAMS, jax.tree.map(lambda x: jnp.concatenate([x, x]), BATCH))
    close(flat(H @ VECTOR), dense() @ flat(VECTOR))
    tripled = gradkin.hessian(lambda params, example: 3 * loss(params, example))(PARAMS, BATCH)
    close(flat(tripled @ VECTOR), 3 * dense() @ flat(VECTOR))


def test_block_of_one_layer_with_auxiliary_output():
    """Only the differentiated argument counts: rows and columns of one parameter."""

    def split(w2, rest, example):
        return loss({**rest, "w2": w2}, example), jnp.ones(2)

    rest = {k: v for k, v in PARAMS.items() if k != "w2"}
    H = gradkin.hessian(split, has_aux=True, in_axes=(None, None, 0))(PARAMS["w2"], rest, BATCH)
    close(H.materialize(), dense()[-8:, -8:])


def test_two_arguments():
    def two(a, b, x):
        return jnp.vdot(a, x) ** 2 * b

    H = gradkin.hessian(two, (0, 1))(jnp.ones(2), jnp.asarray(2.0), jnp.ones((3, 2)))
    assert H.materialize().tolist() == [[4, 4, 4], [4, 4, 4], [4, 4, 0]]


def test_passes_through_jit_and_vmap():
    @jax.jit
    def quadratic_forms(many):
        H = jax.vmap(lambda params: gradkin.hessian(loss)(params, BATCH))(many)
        return jax.vmap(lambda H: flat_jnp(VECTOR) @ flat_jnp(H @ VECTOR))(H)

    flat_jnp = lambda tree: ravel_pytree(tree)[0]
    many = jax.tree.map(lambda x: jnp.stack([x, 0 * x]), PARAMS)
    found = quadratic_forms(many)
    close(found[0], flat(VECTOR) @ dense() @ flat(VECTOR))
    assert abs(found[1] - found[0]) > 1e-3


def test_is_differentiable():
    with jax.enable_x64(True):
        params, batch, vector = jax.tree.map(
            lambda x: jnp.asarray(x, np.float64), (PARAMS, BATCH, VECTOR)
        )

        def form(params):
            H = gradkin.hessian(loss)(params, batch)
            return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (vector, H @ vector))))

        check_grads(form, (params,), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_sharded_batch_stays_sharded(mesh, batch_size):
    @jax.jit
    def product(params, batch):
        return gradkin.hessian(loss, batch_size=batch_size)(params, batch) @ VECTOR

    params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    batch = jax.device_put(BATCH, NamedSharding(mesh, P("data")))
    compiled = product.lower(params, batch).compile()
    assert "all-gather" not in str(compiled.as_text())
    close(flat(compiled(params, batch)), dense() @ flat(VECTOR))


@pytest.mark.parametrize(
    "model", [nnx_models.adapter, equinox_models.mixer, recurrent.lstm, exotic.custom_rules]
)
def test_any_model(model):
    """Modules of other libraries, scans and custom derivatives: as a derivative of the gradient."""
    model = model()
    axes = model.in_axes if model.in_axes != 0 else (None, *(0 for _ in model.args[1:]))
    vector, _ = oracle.probes(model, 1)

    @functools.partial(jax.jit, compiler_options=oracle.FAST)
    def both(params, *rest):
        losses = jax.vmap(model.loss, axes)
        grad = jax.grad(lambda params: jnp.mean(losses(params, *rest)))
        H = gradkin.hessian(model.loss, in_axes=model.in_axes)(params, *rest)
        return H @ vector, jax.jvp(grad, (params,), (vector,))[1]

    found, wanted = both(*model.args)
    close(flat(found), flat(wanted))


def test_reads_off_what_the_dense_matrix_has(key):
    """Each estimate within five of its standard errors, each eigenpair within its residual."""
    H = gradkin.hessian(loss)(PARAMS, BATCH)
    values = np.linalg.eigvalsh(dense())

    @jax.jit
    def read(H):
        return (
            H.top_eigenpairs(key, 3, num_matvecs=20),
            H.top_eigenpairs(key, which="smallest"),
            H.trace(key),
            H.diagonal(key),
            H.frobenius_norm(key),
            H.spectral_density(key, num_probes=20).trace_of(jnp.square),
            H.log_determinant(key, damping=damping),
        )

    damping = 1.0 - values[0]
    top, bottom, trace, diagonal, norm, squares, determinant = read(H)
    np.testing.assert_allclose(top.values, values[::-1][:3], rtol=1e-4)
    np.testing.assert_allclose(bottom.values[0], values[0], rtol=1e-4)
    vectors = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(top.vectors))
    close(vectors @ vectors.T, np.eye(3))
    residuals = np.linalg.norm(
        vectors @ dense() - np.asarray(top.values)[:, None] * vectors, axis=1
    )
    assert np.all(residuals <= 1.01 * np.asarray(top.residuals) + 1e-5 * np.abs(values).max())
    assert abs(trace.value - values.sum()) < 5 * trace.standard_error
    gap = np.abs(flat(diagonal.value) - np.diag(dense()))
    assert np.all(gap < 5 * flat(diagonal.standard_error))
    assert abs(norm.value - np.linalg.norm(dense())) < 5 * norm.standard_error
    assert abs(squares.value - np.sum(values**2)) < 5 * squares.standard_error
    wanted = np.sum(np.log(values + damping))
    assert abs(determinant.value - wanted) < 5 * determinant.standard_error


def test_solves_with_zeros_on_the_right():
    """And goes on improving down to rounding, whatever tolerance is asked for."""
    found = curvature.solve(
        jnp.diag(jnp.array([1.0, 2.0, 0.0])), jnp.array([1.0, 1, 0]), damping=0.1
    )
    np.testing.assert_allclose(found.value, [1 / 1.1, 1 / 2.1, 0], rtol=1e-5)
    draw = np.random.default_rng(0)
    factor = draw.normal(size=(200, 60)).astype(np.float32)
    found = curvature.solve(
        factor @ factor.T / 60, draw.normal(size=200).astype(np.float32), damping=0.1, rtol=1e-8
    )
    assert found.residual_norm < 1e-5


def test_solves_where_damping_makes_it_positive():
    H = gradkin.hessian(loss)(PARAMS, BATCH)
    damping = 1.0 - np.linalg.eigvalsh(dense())[0]
    found = H.solve(VECTOR, damping=damping, rtol=1e-6)
    close(flat(found.value), np.linalg.solve(dense() + damping * np.eye(24), flat(VECTOR)), 1e-4)
    assert found.residual_norm < 1e-5
    assert 0 < found.num_steps <= 60
    stopped = H.solve(VECTOR, damping=damping, max_steps=2)
    assert stopped.num_steps == 2
    assert stopped.residual_norm > 1e-3


def test_explains_itself():
    whole = gradkin.hessian(loss)(PARAMS, BATCH)
    assert repr(whole) == "CurvatureMatrix(Hessian, shape=(24, 24), dtype=float32)"
    assert "linearised once per verb over the whole batch" in str(whole.explain())
    streamed = gradkin.hessian(loss, batch_size=4)(PARAMS, BATCH).explain()
    assert "4 examples at a time" in str(streamed)
    flops = whole.explain().flops
    assert flops is not None
    assert flops > 0


def test_bad_input_is_named():
    hessian = gradkin.hessian(loss)
    with pytest.raises(TypeError, match="floating-point parameters, got int32"):
        hessian({**PARAMS, "b1": jnp.ones(4, int)}, BATCH)
    with pytest.raises(TypeError, match="real parameters, got complex64 at 'b1'"):
        gradkin.hessian(lambda p, x: jnp.real(p["b1"])[0] * x)(
            {"b1": jnp.ones(4, complex)}, BATCH[0][:, 0]
        )
    with pytest.raises(TypeError, match="one real number per example"):
        gradkin.hessian(lambda p, e: predict(p, e[0]))(PARAMS, BATCH)
    with pytest.raises(ValueError, match="same number of examples"):
        hessian(PARAMS, (BATCH[0], BATCH[1][:3]))
    with pytest.raises(ValueError, match="batch_size to be a positive integer, got 0"):
        gradkin.hessian(loss, batch_size=0)(PARAMS, BATCH)
    with pytest.raises(ValueError, match="the vector to have the leaves of the parameters"):
        hessian(PARAMS, BATCH) @ {"w1": PARAMS["w1"]}
    with pytest.raises(ValueError, match=r"at \['w1'\] got \(2,\)"):
        hessian(PARAMS, BATCH) @ {**VECTOR, "w1": jnp.ones(2)}
    with pytest.raises(ValueError, match="b to have the leaves of the parameters"):
        hessian(PARAMS, BATCH).solve({"w1": PARAMS["w1"]})
