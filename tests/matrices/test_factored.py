"""Kronecker factors, preconditioning, maps and singular values against gradients written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from tests.matrices import oracle
from tests.matrices.models import attention, dense, lookup
from tests.matrices.models.model import normal


def flat(tree):
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)


def close(actual, wanted, tolerance=2e-5):
    wanted = np.asarray(wanted)
    bound = tolerance * np.max(np.abs(wanted))
    np.testing.assert_allclose(np.asarray(actual, np.float64), wanted, rtol=0, atol=bound)


def linear_regression(num_examples=6):
    """Gradients x r^T with residuals r: both Kronecker factors are known."""

    def loss(w, example):
        x, y = example
        return 0.5 * jnp.sum((x @ w - y) ** 2)

    w, x, y = normal(0, 4, 3), normal(1, num_examples, 4), normal(2, num_examples, 3)
    return loss, w, (x, y), x @ w - y


def test_kronecker_factors_of_a_linear_layer():
    loss, w, batch, residuals = linear_regression()
    left, right = gradkin.per_example_grads(loss)(w, batch).kfac_factors()
    close(left, batch[0].T @ batch[0] / 6)
    close(right, residuals.T @ residuals / 6)


def test_kronecker_factors_with_weights_and_positions():
    """Several positions per example (expand), row weights on the cotangents."""

    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w))

    w, x = normal(0, 5, 4), normal(1, 3, 2, 5)
    weights = np.array([1.0, 0.0, 2.0], np.float32)
    G = gradkin.per_example_grads(loss, route="factors")(w, x).scale(weights)
    left, right = G.kfac_factors()
    cotangents = (1 - jnp.tanh(x @ w) ** 2) * weights[:, None, None]
    close(left, jnp.einsum("bti,btj->ij", x, x) / 6)
    close(right, jnp.einsum("bti,btj->ij", cotangents, cotangents) / 3)


def test_kronecker_product_is_the_second_moment_where_inputs_are_constant():
    loss, w, (_, y), _ = linear_regression()
    x = jnp.broadcast_to(normal(1, 4), (6, 4))
    G = gradkin.per_example_grads(loss)(w, (x, y))
    rows = flat(G.materialize())
    close(np.kron(*map(np.asarray, G.kfac_factors())), rows.T @ rows / 6)


def test_kronecker_factors_of_stacked_layers():
    G = oracle.matrix(attention.transformer(scan=True, tied=True))
    factors = G.kfac_factors()
    left, right = factors["blocks"]["up"]
    assert left.shape == (2, 16, 16)
    assert right.shape == (2, 32, 32)
    assert np.all(np.linalg.eigvalsh(left) > -1e-5)
    assert factors["blocks"]["up_bias"] is None
    assert factors["embedding"] is None  # two products are added
    chosen = G.select(lambda path: path == "blocks/up").kfac_factors()
    close(chosen["blocks"]["up"][0], left)
    assert chosen["blocks"]["down"] is None


class Words:
    """A table of words, a matrix, a bias: every kind of leaf."""

    def __init__(self):
        def loss(params, tokens):
            x = jnp.tanh(params["table"][tokens] @ params["w"])
            return jnp.sum(jnp.tanh(x + jnp.broadcast_to(params["bias"], x.shape)) ** 2)

        params = {"table": normal(0, 9, 6), "w": normal(1, 6, 5), "bias": normal(2, 5)}
        batch = jnp.asarray([[0, 1], [1, 1], [8, 3]], jnp.int32)
        self.params = params
        self.G = gradkin.per_example_grads(loss, route="factors")(params, batch)
        self.rows = jax.tree.map(np.asarray, self.G.materialize())


@pytest.fixture(scope="module")
def words():
    return Words()


def test_precondition(words):
    left = {"table": normal(3, 9, 9), "w": normal(4, 6, 6), "bias": None}
    right = {"table": normal(5, 6, 6), "w": normal(6, 5, 5), "bias": normal(7, 5, 5)}
    P = words.G.precondition(left, right)
    wanted = {
        name: np.einsum("ij,bjk,kl->bil", left[name], words.rows[name], right[name])
        for name in ("table", "w")
    }
    wanted["bias"] = words.rows["bias"] @ np.asarray(right["bias"])
    close(flat(P.materialize()), flat(wanted))
    close(P.gram(), flat(wanted) @ flat(wanted).T)
    close(P.norms(), np.linalg.norm(flat(wanted), axis=1))
    kinds = {leaf.path: leaf.terms[0].kind for leaf in P.leaves}
    assert kinds["w"] == "outer"


def test_precondition_one_side_and_undo(words):
    inverse = np.linalg.inv(np.eye(6) + 0.1 * np.ones((6, 6))).astype(np.float32)
    nothing = {"table": None, "w": None, "bias": None}
    there = words.G.precondition(left=nothing | {"w": np.eye(6, dtype=np.float32) + 0.1})
    close(flat(there.precondition(left=nothing | {"w": inverse}).materialize()), flat(words.rows))
    same = words.G.precondition(right=nothing | {"table": jnp.eye(6)})
    close(flat(same.materialize()), flat(words.rows))
    scaled = words.G.scale(np.array([1.0, 2.0, 3.0])).precondition(left=nothing)
    close(scaled.norms(), np.linalg.norm(flat(words.rows), axis=1) * [1, 2, 3])


def test_precondition_stacked_layers():
    """One matrix for all layers or one per layer."""
    model = attention.transformer(scan=True)
    G = oracle.matrix(model).select(lambda path: path == "blocks/up")
    rows = np.asarray(G.materialize()["blocks"]["up"])
    nothing = jax.tree.map(lambda _: None, model.args[0])
    for matrix in (normal(0, 16, 16), normal(1, 2, 16, 16)):
        left = nothing | {"blocks": nothing["blocks"] | {"up": matrix}}
        wanted = np.broadcast_to(np.asarray(matrix), (2, 16, 16)) @ rows
        close(G.precondition(left).materialize()["blocks"]["up"], wanted)


def test_precondition_shapes(words):
    nothing = {"table": None, "w": None, "bias": None}
    with pytest.raises(ValueError, match=r"left to hold square matrices, got \(6, 5\) at 'w'"):
        words.G.precondition(left=nothing | {"w": jnp.ones((6, 5))})
    with pytest.raises(ValueError, match=r"right at 'w' to be a 5 x 5 matrix, got \(6, 6\)"):
        words.G.precondition(right=nothing | {"w": jnp.ones((6, 6))})


def test_map_is_the_adam_direction(words):
    def direction(g, m, v):
        return (0.9 * m + 0.1 * g) / (jnp.sqrt(0.99 * v + 0.01 * g**2) + 1e-6)

    m = jax.tree.map(jnp.cos, words.params)
    v = jax.tree.map(lambda p: p**2, words.params)
    weights = np.array([1.0, -2.0, 0.5], np.float32)
    mapped = words.G.scale(weights).map(direction, m, v)
    wanted = {}
    for name, p in words.params.items():
        scaled = weights.reshape([3] + [1] * p.ndim) * words.rows[name]
        wanted[name] = jax.vmap(direction, (0, None, None))(scaled, m[name], v[name])
    close(flat(mapped.materialize()), flat(wanted))
    close(mapped.mean()["w"], np.mean(wanted["w"], 0))
    assert mapped.select(lambda path: path == "w").map(jnp.sign).shape == (3, 30)


def test_map_keeps_shapes(words):
    with pytest.raises(ValueError, match=r"fun to keep the shape \(5,\) at 'bias', got \(\)"):
        words.G.map(jnp.sum)
    with pytest.raises(ValueError, match=r"trees\[0\] to have the structure .* 'w' is missing"):
        words.G.map(lambda g, t: g, {k: v for k, v in words.params.items() if k != "w"})


@pytest.mark.parametrize("build", [dense.mlp, lookup.tied_embedding])
def test_singular_values(build):
    G = oracle.matrix(build())
    wanted = np.linalg.svd(flat(G.materialize()), compute_uv=False)
    found = np.asarray(G.singular_values())
    assert np.all(np.diff(found) <= 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3 * wanted[0])
