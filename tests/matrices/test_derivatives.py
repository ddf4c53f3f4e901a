"""Differentiating what is read off a matrix: by hand, numerically, and twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import gradkin
from tests.matrices import oracle
from tests.matrices.models import dense, lookup, recurrent


def flat(rows):
    leaves = jax.tree.leaves(rows)
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)


def summaries(G, gram):
    """Smooth numbers read off a matrix, given by its verbs or by its Gram matrix."""
    if G is not None:
        return jnp.sum(jnp.log1p(G.norms())) + jnp.sum(jnp.sin(G.gram())) + G.frobenius_norm()
    norms = jnp.sqrt(jnp.diagonal(gram))
    return jnp.sum(jnp.log1p(norms)) + jnp.sum(jnp.sin(gram)) + jnp.sqrt(jnp.trace(gram))


@pytest.mark.parametrize(
    "build",
    [
        dense.mlp,
        dense.shared_weight,
        lookup.tied_embedding,
        recurrent.rnn,
    ],
    ids=["mlp", "shared_weight", "tied_embedding", "rnn"],
)
def test_gradient_of_norms_and_gram(build):
    model = build()

    def ours(params):
        called = model._replace(args=(params, *model.args[1:]))
        return summaries(oracle.matrix(called, route="factors"), None)

    def theirs(params):
        rows = flat(oracle.rows(model._replace(args=(params, *model.args[1:]))))
        return summaries(None, rows @ rows.T)

    grads = jax.jit(
        lambda p: (jax.grad(ours)(p), jax.grad(theirs)(p)), compiler_options=oracle.FAST
    )
    found, wanted = grads(model.args[0])
    oracle.assert_close(found, wanted, tolerance=1e-3)


@pytest.mark.parametrize("route", ["factors", "dense"])
def test_verbs_against_finite_differences(route):
    def loss(params, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ params["w"]) @ params["v"]))

    with jax.enable_x64(True):
        numbers = np.random.default_rng(0)
        params = {
            "w": jnp.asarray(numbers.normal(size=(3, 4))),
            "v": jnp.asarray(numbers.normal(size=(4, 3))),
        }
        x = jnp.asarray(numbers.normal(size=(3, 2, 3)))
        transform = gradkin.per_example_grads(loss, route=route)
        bound = 0.9 * float(jnp.median(transform(params, x).norms()))  # off the kinks

        @jax.jit
        def read(params):
            G = transform(params, x)
            return (
                G.norms(),
                G.clip(bound).mean(),
                G.gram(),
                G.normalize().sum(),
                G.centered().norms(),
            )

        check_grads(read, (params,), order=1, modes=["rev"], rtol=1e-5)
        check_grads(lambda x: transform(params, x).norms(), (x,), order=2, modes=["fwd"], rtol=1e-5)


def test_zero_row_has_zero_derivative():
    def loss(w, x):
        return jnp.vdot(w, x) ** 2

    def total(w, x):
        return jnp.sum(gradkin.per_example_grads(loss)(w, x).norms())

    x = jnp.asarray([[1.0, 0.0], [0.0, 0.0]])
    gradient = jax.grad(total)(jnp.asarray([2.0, 1.0]), x)
    np.testing.assert_allclose(gradient, [2.0, 0.0], rtol=1e-6)
    clipped = jax.grad(lambda w: jnp.sum(gradkin.per_example_grads(loss)(w, x).clip(1.0).sum()))
    assert np.isfinite(clipped(jnp.asarray([2.0, 1.0]))).all()
    unit = jax.grad(lambda w: jnp.sum(gradkin.per_example_grads(loss)(w, x).normalize().sum()))
    assert np.isfinite(unit(jnp.asarray([2.0, 1.0]))).all()


def test_gradient_norm_penalty_closed_form():
    """Loss w.x: the norm of each gradient is |x|, whose derivative in x is x / |x|."""
    x = jnp.asarray([[3.0, 4.0], [0.0, 2.0]])

    def total(x):
        return jnp.sum(
            gradkin.per_example_grads(lambda w, x: jnp.vdot(w, x))(jnp.ones(2), x).norms()
        )

    np.testing.assert_allclose(jax.grad(total)(x), [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)


def test_weights_are_differentiable():
    """Example weights learned through a weighted gradient: the derivative is a tangent product."""
    model = dense.mlp(batch=4)
    G = oracle.matrix(model)
    tangent = jax.tree.map(jnp.cos, model.args[0])

    def along(weights):
        products = jax.tree.map(jnp.vdot, weights @ G, tangent)
        return sum(jax.tree.leaves(products))

    found = jax.grad(along)(jnp.ones(4))
    np.testing.assert_allclose(found, G @ tangent, rtol=1e-4, atol=1e-5)
    scaled = jax.grad(
        lambda w: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, G.scale(w).sum(), tangent)))
    )
    np.testing.assert_allclose(scaled(jnp.ones(4)), G @ tangent, rtol=1e-4, atol=1e-5)
