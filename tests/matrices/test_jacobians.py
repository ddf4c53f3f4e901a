"""Per-example Jacobians and the empirical neural tangent kernel against `jax.jacobian`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from tests.matrices import oracle
from tests.matrices.models.model import normal, weight


def perceptron(params, x):
    h = jnp.tanh(x @ params["a"] + params["bias"])
    return jnp.tanh(h @ params["b"]) @ params["c"]


def convolutional(params, x):
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x[None], params["k"], (1, 1), "SAME", dimension_numbers=layout)
    return jnp.tanh(y[0]).mean((0, 1)) @ params["head"]


def words(params, tokens):
    x = jnp.tanh(params["table"][tokens] @ params["w"])
    return jnp.mean(x, axis=0) @ params["table"].T[:, :4]


CASES = {
    "perceptron": (
        perceptron,
        {"a": weight(0, 7, 9), "bias": normal(1, 9), "b": weight(2, 9, 9), "c": weight(3, 9, 3)},
        normal(4, 5, 7),
    ),
    "one_output": (
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"],
        {"w": weight(0, 6, 8), "v": weight(1, 8, 1)},
        normal(2, 4, 6),
    ),
    "convolutional": (
        convolutional,
        {"k": normal(0, 3, 3, 2, 4), "head": weight(1, 4, 3)},
        normal(2, 3, 4, 4, 2),
    ),
    "words": (
        words,
        {"table": normal(0, 6, 5), "w": weight(1, 5, 5)},
        jnp.asarray([[0, 1, 1], [5, 2, 0]], jnp.int32),
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    fun, params, x = CASES[request.param]
    J = gradkin.per_example_jacobians(fun)(params, x)
    rows = jax.jit(jax.vmap(jax.jacobian(fun), in_axes=(None, 0)), compiler_options=oracle.FAST)
    return J, jax.tree.map(np.asarray, rows(params, x)), params


def flat(tree):
    """``[B, O, P]``."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(*x.shape[:2], -1) for x in leaves], axis=2)


def close(actual, wanted, tolerance=2e-5):
    wanted = np.asarray(wanted)
    assert np.shape(actual) == wanted.shape
    bound = tolerance * np.max(np.abs(wanted))
    np.testing.assert_allclose(np.asarray(actual, np.float64), wanted, rtol=0, atol=bound)


def test_rows(case):
    J, rows, params = case
    close(flat(J.materialize()), flat(rows))
    assert J.shape == flat(rows).shape
    assert len(J) == len(flat(rows))
    assert J.dtype == np.float32
    assert [row.path for row in J.explain().rows] == sorted(params)
    assert jax.tree.structure(J.materialize()) == jax.tree.structure(params)


def test_neural_tangent_kernel(case):
    J, rows, _ = case
    dense = flat(rows)
    close(J.gram(), np.einsum("bop,cqp->bocq", dense, dense))
    close(J.squared_norms(), np.sum(dense**2, axis=2))


def test_tangents_and_weights(case):
    J, rows, params = case
    tangent = jax.tree.map(jnp.cos, params)
    vector = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tangent)])
    close(J @ tangent, flat(rows) @ vector)
    weights = np.random.default_rng(0).normal(size=J.shape[:2]).astype(np.float32)
    found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(weights @ J)])
    close(found, np.einsum("bo,bop->p", weights, flat(rows)))
    close(np.concatenate([np.ravel(x) for x in jax.tree.leaves(J.T @ weights)]), found)


def test_kernel_regression():
    """Gradient flow on a linear model ends where kernel regression with its kernel ends."""
    fun = lambda w, x: x @ w
    x, new = normal(0, 6, 9), normal(1, 2, 9)
    y = normal(2, 6, 2)
    make = gradkin.per_example_jacobians(fun)
    w = jnp.zeros((9, 2))
    J, K = make(w, x), make(w, new)
    kernel = J.gram().reshape(12, 12)
    predicted = (K @ J.T).reshape(4, 12) @ jnp.linalg.solve(kernel, y.ravel())
    close(predicted.reshape(2, 2), new @ (np.linalg.pinv(x) @ y), 1e-3)


def test_passes_through_jit():
    fun, params, x = CASES["perceptron"]
    J = gradkin.per_example_jacobians(fun)(params, x)
    inside = jax.jit(lambda p, x: gradkin.per_example_jacobians(fun)(p, x).gram())(params, x)
    close(jax.jit(lambda J: J.gram())(J), inside)
    assert jax.tree.structure(J) == jax.tree.structure(
        gradkin.per_example_jacobians(fun)(params, x)
    )


def test_errors():
    fun, params, x = CASES["perceptron"]
    make = gradkin.per_example_jacobians
    with pytest.raises(TypeError, match=r"one axis of real numbers per example, got \(\)"):
        make(lambda p, x: jnp.sum(x @ p["a"]))(params, x)
    J = make(fun)(params, x)
    with pytest.raises(ValueError, match="tangent to have the leaves of the parameters"):
        J @ {"a": params["a"]}
    with pytest.raises(ValueError, match="tangent to have the shapes of the parameters"):
        J @ jax.tree.map(lambda x: x.T[:, None], params)
    with pytest.raises(ValueError, match=r"weights of shape \(5, 3\), got \(5,\)"):
        np.ones(5) @ J
    with pytest.raises(TypeError, match="transpose of Jacobians, got PerExampleGrads"):
        J @ gradkin.per_example_grads(lambda p, x: jnp.sum(fun(p, x)))(params, x).T
