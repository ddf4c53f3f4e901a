"""Softmax regression: gradients, the exact identity, the bounds, the equivalences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gradkin import icl


@pytest.fixture
def problem():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        a, x = jnp.asarray(rng.normal(size=(7, 3))), jnp.asarray(rng.normal(size=3))
        yield a, x, jnp.asarray(rng.dirichlet(np.ones(7)))


def test_gradients(problem):
    a, x, b = problem
    loss = lambda a, x: icl.softmax_regression_loss(jnp.asarray(a), jnp.asarray(x), b)
    check_grads(loss, (a, x), order=1, modes=["rev"])
    for wrt, argnum in (("a", 0), ("x", 1)):
        exact = jax.grad(icl.softmax_regression_loss, argnums=argnum)(a, x, b)
        found = icl.softmax_regression_grad(a, x, b, wrt=wrt)
        np.testing.assert_allclose(found, exact, atol=1e-12)
    with pytest.raises(ValueError, match="wrt"):
        icl.softmax_regression_grad(a, x, b, wrt="b")


def test_one_token_has_no_gradient():
    found = icl.softmax_regression_grad(jnp.ones((1, 3)), jnp.ones(3), jnp.ones(1))
    assert not found.any()


def test_identity_and_invariances(problem):
    a, x, b = problem
    new_x, new_a = x + 0.3, a * 1.1 + 0.2
    for moved_a, moved_x in ((a, new_x), (new_a, x)):
        shift = icl.label_shift(a, x, moved_a, moved_x)
        left = jax.nn.softmax(moved_a @ moved_x) - b
        np.testing.assert_allclose(left, jax.nn.softmax(a @ x) - (b + shift), atol=1e-15)
        assert float(shift.sum()) == pytest.approx(0, abs=1e-14)
    row = jnp.array([1.0, -2.0, 0.5])
    assert jnp.abs(icl.label_shift(a, x, a + row[None], x)).max() < 1e-14
    order = jnp.array([2, 0, 1, 6, 5, 4, 3])
    np.testing.assert_allclose(
        icl.label_shift(a[order], x, new_a[order], x), icl.label_shift(a, x, new_a, x)[order]
    )


def test_bounds(problem):
    a, x, _ = problem
    rng = np.random.default_rng(1)
    for size in (1e-3, 1.0, 100.0):
        for move in ({"new_x": x + size * rng.normal(size=3)},
                     {"new_a": a + size * rng.normal(size=(7, 3))}):  # fmt: skip
            found = icl.shift_bounds(a, x, **move)
            assert found.actual <= found.path * (1 + 1e-12) <= found.tight * (1 + 1e-9)
            assert jnp.log(found.tight) <= found.log_paper
    # Two equal scores attain the Lipschitz constant 1/2.
    pair, start = jnp.eye(2), jnp.zeros(2)
    found = icl.shift_bounds(pair, start, new_x=1e-4 * jnp.array([1.0, -1.0]))
    assert float(found.actual / found.tight) == pytest.approx(1, rel=1e-4)
    # In logarithms a radius of 100 does not overflow.
    assert np.isfinite(icl.shift_bounds(100 * a, x, new_x=x + 1).log_paper)
    with pytest.raises(ValueError, match="exactly one"):
        icl.shift_bounds(a, x)


def test_the_two_moves_imitate_each_other(problem):
    a, x, b = problem
    dx = -0.5 * icl.softmax_regression_grad(a, x, b)
    da = icl.equivalent_data_shift(a, x, dx)
    np.testing.assert_allclose((a + da) @ x, a @ (x + dx), atol=1e-12)
    assert np.linalg.matrix_rank(da) == 1
    assert float(jnp.linalg.norm(da, 2) * jnp.linalg.norm(x)) == pytest.approx(
        float(jnp.linalg.norm(a @ dx))
    )
    back, residual = icl.equivalent_weight_shift(a, x, da)
    np.testing.assert_allclose(back, dx, atol=1e-12)
    assert residual < 1e-12
    # A common move of all scores is invisible to the softmax, another is out of reach.
    _, residual = icl.equivalent_weight_shift(a, x, jnp.outer(jnp.ones(7), x))
    assert residual < 1e-12
    _, residual = icl.equivalent_weight_shift(a, x, jnp.outer(jnp.arange(7.0) ** 2, x))
    assert residual > 0.1
    with pytest.raises(ValueError, match="x != 0"):
        icl.equivalent_data_shift(a, jnp.zeros(3), dx)


def test_descent_is_monotone_below_the_safe_rate(problem):
    a, x, b = problem
    rate = 0.8 / jnp.linalg.norm(a, 2) ** 2
    iterates = icl.softmax_gd(a, b, rate=rate, num_steps=500, initial=x)
    losses = jax.vmap(lambda x: icl.softmax_regression_loss(a, x, b))(iterates)
    assert (jnp.diff(losses) <= 0).all()
    with pytest.raises(ValueError, match="num_steps > 0"):
        icl.softmax_gd(a, b, rate=rate, num_steps=0)


def test_the_first_step_is_linear_attention(problem):
    a, _, b = problem
    first = icl.softmax_gd(a, b, rate=3.0)[-1]
    centered = jnp.eye(7) - 1 / 7
    np.testing.assert_allclose(first, 3 / 7 * a.T @ centered @ b, atol=1e-12)
    # As the constructed layer: minus its target channel is z = A x, at every token as a query.
    weights = icl.gd_attention(num_inputs=3, num_outputs=1, num_context=7, rate=3.0)
    weights = jax.tree.map(lambda w: w.astype(float), weights)
    scores = [
        icl.predict(weights, icl.constructed_tokens(a, (b - 1 / 7)[:, None], query))[0]
        for query in a
    ]
    np.testing.assert_allclose(jnp.stack(scores), a @ first, atol=1e-10)
