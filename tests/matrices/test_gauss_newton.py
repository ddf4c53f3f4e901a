"""Gauss-Newton and Fisher matrices against Jacobians written down."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkin
from gradkin import curvature
from gradkin.matrices.fisher import sampled_grads
from tests.matrices.models.model import normal

PARAMS = {"w1": normal(0, 3, 4), "b1": normal(1, 4), "w2": normal(2, 4, 3)}
X, LABELS = normal(3, 8, 3), jnp.arange(8) % 3
VECTOR = {"w1": normal(5, 3, 4), "b1": normal(6, 4), "w2": normal(7, 4, 3)}


def predict(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]


@functools.cache
def jacobian():
    """``[8, 3, 28]``."""
    x, unravel = ravel_pytree(PARAMS)
    model = lambda x: jax.vmap(predict, (None, 0))(unravel(x), X)
    return np.asarray(jax.jit(jax.jacrev(model))(x))


def dense(blocks):
    return np.einsum("bop,boq,bqr->pr", jacobian(), blocks, jacobian()) / len(X)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def close(actual, wanted, tolerance=1e-5):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def softmax_blocks():
    p = np.asarray(jax.nn.softmax(jax.vmap(predict, (None, 0))(PARAMS, X)))
    return np.stack([np.diag(q) - np.outer(q, q) for q in p])


@pytest.mark.parametrize("batch_size", [None, 3])
def test_cross_entropy(batch_size):
    make = gradkin.gauss_newton(predict, curvature.cross_entropy, batch_size=batch_size)
    close(make(PARAMS, X, LABELS).materialize(), dense(softmax_blocks()))


def test_squared_error_and_any_other_loss():
    target = normal(8, 8, 3)
    make = gradkin.gauss_newton(predict, curvature.squared_error)
    close(flat(make(PARAMS, X, target) @ VECTOR), dense(np.stack([np.eye(3)] * 8)) @ flat(VECTOR))

    def quartic(outputs, target):
        return jnp.sum((outputs - target) ** 4)

    outputs = np.asarray(jax.vmap(predict, (None, 0))(PARAMS, X))
    blocks = np.stack([np.diag(12 * r**2) for r in outputs - np.asarray(target)])
    close(
        flat(gradkin.gauss_newton(predict, quartic)(PARAMS, X, target) @ VECTOR),
        dense(blocks) @ flat(VECTOR),
    )


def test_is_the_hessian_of_a_linear_model():
    """Where the outputs are linear in the parameters nothing else is curved."""
    linear = lambda w, x: x @ w
    loss = lambda w, example: curvature.cross_entropy(linear(w, example[0]), example[1])
    w = normal(9, 3, 3)
    GN = gradkin.gauss_newton(linear, curvature.cross_entropy)(w, X, LABELS)
    H = gradkin.hessian(loss)(w, (X, LABELS))
    close(GN.materialize(), H.materialize())


def test_sequences_and_pytrees_of_outputs():
    """Tokens add up, padding is left out; a frozen argument and a dict of outputs are fine."""

    def tokens(w, inputs):
        x, scale = inputs
        return {"logits": scale * x @ w}

    loss = curvature.cross_entropy

    def output_loss(outputs, target):
        return loss(outputs["logits"], target)

    w, x = normal(0, 3, 4), normal(1, 2, 5, 3)
    labels = jnp.array([[0, 1, 2, 3, -1], [3, 3, -1, -1, -1]])
    axes = (None, (0, None), 0)
    GN = gradkin.gauss_newton(tokens, output_loss, in_axes=axes)(w, (x, jnp.asarray(2.0)), labels)
    each = gradkin.gauss_newton(lambda w, x: 2 * x @ w, loss)
    kept = (labels >= 0).reshape(-1)
    split = each(w, x.reshape(10, 3)[kept], labels.reshape(-1)[kept])
    close(GN.materialize(), split.materialize() * 6 / 2)


def test_sharded_and_streamed(mesh):
    make = gradkin.gauss_newton(predict, curvature.cross_entropy, batch_size=8)
    x, labels = jax.device_put((X, LABELS), NamedSharding(mesh, P("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    product = jax.jit(lambda *args: make(*args) @ VECTOR)(params, x, labels)
    close(flat(product), dense(softmax_blocks()) @ flat(VECTOR))


def test_fisher_is_the_second_moment_of_sampled_gradients(key):
    """The same matrix by Jacobians, by per-example gradients, and by micro-batches."""

    @jax.jit
    def read(key):
        results = []
        for size in (None, 3):
            make = gradkin.fisher(predict, curvature.cross_entropy, num_samples=2, batch_size=size)
            F = make(key, PARAMS, X)
            G = sampled_grads(F)
            results += [F @ VECTOR, gradkin.empirical_fisher(G) @ VECTOR]
        return results, sampled_grads(F).materialize()

    products, gradients = read(key)
    rows = np.asarray(jax.vmap(lambda g: ravel_pytree(g)[0])(gradients))
    assert rows.shape == (16, 28)
    for product in products:
        close(flat(product), rows.T @ (rows @ flat(VECTOR)) / 16)
    other, _ = read(jax.random.fold_in(key, 1))
    assert np.abs(flat(other[0]) - flat(products[0])).max() > 1e-3


def test_fisher_is_gauss_newton_in_expectation(key):
    samples = 4000
    F = gradkin.fisher(predict, curvature.cross_entropy, num_samples=samples)(key, PARAMS, X)
    wanted = dense(softmax_blocks())
    spread = np.linalg.norm(wanted) * np.sqrt(28 / samples)
    assert np.linalg.norm(F.materialize() - wanted) < 3 * spread


def test_raw_keys_work():
    raw = jax.random.PRNGKey(0)
    F = gradkin.fisher(predict, curvature.squared_error)(raw, PARAMS, X)
    assert np.all(np.isfinite(flat(F @ VECTOR)))


def test_empirical_fisher_follows_selection_and_centering():
    loss = lambda params, example: curvature.cross_entropy(predict(params, example[0]), example[1])

    @jax.jit
    def read():
        G = gradkin.per_example_grads(loss)(PARAMS, (X, LABELS))
        part = gradkin.empirical_fisher(G.select(lambda path: path == "w2"))
        return (
            G.materialize(),
            gradkin.empirical_fisher(G.centered()) @ VECTOR,
            part @ {**dict.fromkeys(VECTOR), "w2": VECTOR["w2"]},
        )

    gradients, centered, part = read()
    rows = np.asarray(jax.vmap(lambda g: ravel_pytree(g)[0])(gradients))
    close(flat(centered), np.cov(rows.T, bias=True) @ flat(VECTOR), 1e-4)
    own = rows[:, -12:]
    close(flat(part), own.T @ (own @ flat(VECTOR)[-12:]) / 8)


def test_bad_input_is_named(key):
    make = gradkin.gauss_newton(predict, curvature.cross_entropy)
    with pytest.raises(ValueError, match="same number of examples"):
        make(PARAMS, X, LABELS[:3])
    with pytest.raises(ValueError, match="label for each of"):
        make(PARAMS, X, X[:, 0].astype(int)[:, None])
    with pytest.raises(TypeError, match="one real number per example"):
        gradkin.gauss_newton(predict, lambda f, y: f)(PARAMS, X, LABELS)
    with pytest.raises(ValueError, match="batch_size to be a positive integer, got -1"):
        gradkin.gauss_newton(predict, curvature.cross_entropy, batch_size=-1)(PARAMS, X, LABELS)
    not_a_distribution: Any = lambda f, y: f
    with pytest.raises(TypeError, match="OutputLoss with a sample"):
        gradkin.fisher(predict, not_a_distribution)(key, PARAMS, X)
    with pytest.raises(ValueError, match="num_samples >= 1, got 0"):
        gradkin.fisher(predict, curvature.cross_entropy, num_samples=0)(key, PARAMS, X)
    with pytest.raises(TypeError, match="per-example gradients, as .* makes them, got dict"):
        gradkin.empirical_fisher(PARAMS)
    with pytest.raises(TypeError, match="made by gradkin.fisher"):
        sampled_grads(make(PARAMS, X, LABELS))
