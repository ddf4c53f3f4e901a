"""K-FAC and EKFAC where they are exact, and the order in which they approximate elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkin
from gradkin import curvature
from tests.matrices import oracle
from tests.matrices.models import attention
from tests.matrices.models.model import normal


def close(actual, wanted, tolerance=2e-5):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def every_output(predict, params, x, num_outputs):
    """Inputs repeated once per output, with targets such that the residuals average to identity.

    In place of random labels: the expectation over them, written out.
    """
    x = jnp.repeat(x, num_outputs, axis=0)
    residuals = jnp.tile(np.sqrt(num_outputs) * jnp.eye(num_outputs), (len(x) // num_outputs, 1))
    return x, jax.vmap(predict, (None, 0))(params, x) - residuals


def gradients(predict, params, batch):
    loss = lambda p, example: curvature.squared_error(predict(p, example[0]), example[1])
    return gradkin.per_example_grads(loss, route="factors")(params, batch)


def test_a_linear_layer_is_exact():
    predict = lambda w, x: x @ w
    w, x = normal(0, 4, 3), normal(1, 6, 4)
    G = gradients(predict, w, every_output(predict, w, x, 3))
    wanted = np.kron(x.T @ x / 6, np.eye(3))
    GN = gradkin.gauss_newton(predict, curvature.squared_error)(w, x, jnp.zeros((6, 3)))
    close(GN.materialize(), wanted)
    b = normal(2, 4, 3)
    for make in (curvature.kfac, curvature.ekfac):
        K = make(G)
        close(K.materialize(), wanted)
        close((K @ b).reshape(-1), wanted @ b.reshape(-1))
        solution = np.linalg.solve(wanted + 0.1 * np.eye(12), b.reshape(-1))
        close(K.solve(b, damping=0.1).value.reshape(-1), solution)


def test_a_deep_linear_network_is_exact_block_by_block():
    predict = lambda params, x: x @ params["a"] @ params["b"] @ params["c"]
    params = {"a": normal(0, 3, 4), "b": normal(1, 4, 5), "c": normal(2, 5, 2)}
    x = normal(3, 6, 3)
    K = curvature.kfac(gradients(predict, params, every_output(predict, params, x, 2)))
    GN = gradkin.gauss_newton(predict, curvature.squared_error)(params, x, jnp.zeros((6, 2)))
    whole, blocks, start = np.asarray(GN.materialize()), np.zeros((42, 42)), 0
    for leaf in jax.tree.leaves(params):
        own = slice(start, start + leaf.size)
        blocks[own, own] = whole[own, own]
        start += leaf.size
    close(K.materialize(), blocks)
    b = ravel_pytree(jax.tree.map(jnp.ones_like, params))[0]
    found = K.solve(jax.tree.map(jnp.ones_like, params), damping=0.5).value
    close(ravel_pytree(found)[0], np.linalg.solve(blocks + 0.5 * np.eye(42), b))


def two_layers(params, x):
    hidden = jnp.tanh(x @ params["w"] + params["bias"])
    return hidden @ params["v"]


TWO = {"w": normal(0, 4, 6), "bias": normal(1, 6), "v": normal(2, 6, 3)}


def fisher(num_samples=1, batch_size=None):
    make = gradkin.fisher(
        two_layers, curvature.cross_entropy, num_samples=num_samples, batch_size=batch_size
    )
    return make(jax.random.key(0), TWO, normal(3, 10, 4))


def test_corrected_eigenvalues_are_nearer_and_keep_the_trace():
    F = fisher(num_samples=3)
    wanted = np.asarray(F.materialize())  # bias, v, w
    lazy = jax.jit(curvature.kfac)(F)
    assert lazy.T is lazy
    assert lazy.dtype == np.float32
    K, E = (np.asarray(M.materialize()) for M in (lazy, curvature.ekfac(F)))
    close(K[:6, :6], wanted[:6, :6])  # a small leaf that is no product: its full block
    for own in (slice(6, 24), slice(24, 48)):
        near, far = (np.linalg.norm(M[own, own] - wanted[own, own]) for M in (E, K))
        assert near < far < np.linalg.norm(wanted[own, own])
    close(np.trace(E), np.trace(wanted))
    assert not np.any(K[:6, 6:])


def test_micro_batches_give_the_same_matrix():
    b = jax.tree.map(jnp.ones_like, TWO)
    results = [
        ravel_pytree(curvature.ekfac(fisher(batch_size=size)).solve(b, damping=0.1).value)[0]
        for size in (None, 4)
    ]
    close(results[0], results[1], 1e-4)


def test_any_model():
    """Scanned layers, several positions, look-ups, tied weights: no layer is registered."""
    G = oracle.matrix(attention.transformer(scan=True, tied=True), route="factors")
    E = curvature.ekfac(G)
    assert repr(E) == "KroneckerMatrix(6 kronecker, 9 full, 1 diagonal, shape=(4800, 4800))"
    moments = jax.tree.leaves(G.second_moment())
    for block, values, squares in zip(E.blocks, E.eigenvalues, moments, strict=True):
        close(jnp.sum(values), jnp.sum(squares) / len(G), 1e-4)
        if block.kind == "diagonal":  # too large for a full block: the embedding
            close(values.reshape(squares.shape), squares / len(G))
    b = jax.tree.map(lambda s: normal(0, *s.shape), E.like)
    x = E.solve(b, damping=0.1).value
    back = jax.tree.map(lambda ex, x: ex + 0.1 * x, E @ x, x)
    close(ravel_pytree(back)[0], ravel_pytree(b)[0], 1e-3)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="per-example gradients, got dict"):
        curvature.kfac(TWO)
    streamed = gradkin.per_example_grads(lambda w, x: jnp.sum(x @ w), batch_size=2)
    with pytest.raises(ValueError, match="streamed gradients as they were made"):
        curvature.ekfac(streamed(jnp.ones((2, 2)), jnp.ones((4, 2))).clip(1.0))
    K = curvature.kfac(fisher())
    with pytest.raises(ValueError, match="damping >= 0, got damping=-1"):
        K.solve(TWO, damping=-1)
    with pytest.raises(ValueError, match="b to have the leaves of the parameters"):
        K.solve({"w": TWO["w"]}, damping=1.0)
    with pytest.raises(ValueError, match="the vector to have the leaves"):
        K @ {"w": TWO["w"]}
