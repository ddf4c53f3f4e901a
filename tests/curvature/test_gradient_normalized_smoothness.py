"""Damped Newton steps: closed forms, the decrease test, and matrices written in four ways."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import curvature
from gradkin.curvature import damped_steps
from tests.matrices.models.model import normal

CURVES = np.array([0.5, 1.0, 3.0, 8.0])


def quadratic(x):
    return 0.5 * jnp.sum(jnp.asarray(CURVES, x.dtype) * x**2)


def rosenbrock(x):
    return 0.5 * (1 - x[0]) ** 2 + 50 * (x[1] - x[0] ** 2) ** 2


def trajectory(optimizer, fun, x, steps, gamma=None):
    """States and parameters after each step, one compiled scan."""

    @jax.jit
    def run(x):
        state: Any = optimizer.init(x)
        value, grad = jax.value_and_grad(fun)(x)
        state = state._replace(value=value, grad=grad)
        if gamma is not None:
            state = state._replace(gamma=gamma(grad))

        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(state.grad, state, x, value=state.value, value_fn=fun)
            x = x + updates
            return (x, state), (x, state)

        return jax.lax.scan(step, (x, state), length=steps)[1]

    return run(x)


def test_quadratic_with_its_hessian_becomes_newton():
    """The radius doubles at every step, the damping vanishes, convergence is superlinear."""
    with jax.enable_x64(True):
        x, state = trajectory(curvature.gns(jax.hessian(quadratic)), quadratic, jnp.ones(4), 8)
        np.testing.assert_allclose(state.gamma, 2.0 ** np.arange(1, 9), rtol=1e-12)
        np.testing.assert_array_equal(state.num_solves, np.arange(1, 9))
        norms = np.linalg.norm(CURVES * np.asarray(x), axis=1)
        ratios = norms[1:] / norms[:-1]
        assert np.all(ratios[1:] < 0.7 * ratios[:-1])
        assert np.all(np.diff(state.damping) < 0)
        assert state.accepted.all()


def test_without_curvature_a_fixed_radius_is_gradient_descent():
    """``gamma = |g| / L`` makes a step of length 1 / L."""
    with jax.enable_x64(True):
        lipschitz = CURVES.max()
        radius = lambda grad: jnp.linalg.norm(grad) / lipschitz - 1e-8
        x, state = trajectory(curvature.gns(None), quadratic, jnp.ones(4), 1, gamma=radius)
        np.testing.assert_allclose(x[0], 1 - CURVES / lipschitz, rtol=1e-12)
        np.testing.assert_allclose(state.damping[0], lipschitz, rtol=1e-12)
        assert state.num_solves[0] == 1


def test_accepted_steps_decrease_enough_and_stay_inside_the_radius():
    """On a function that is not convex, with a positive approximate Hessian."""
    residual = lambda x: jnp.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])

    def gauss_newton(x):
        J = jax.jacobian(residual)(x)
        return J.T @ J

    with jax.enable_x64(True):
        start = jnp.array([-1.2, 1.0])
        x, state = trajectory(curvature.gns(gauss_newton), rosenbrock, start, 50)
        points = np.concatenate([start[None], x])
        values = np.concatenate([rosenbrock(start)[None], state.value])
        before = np.concatenate([jax.grad(rosenbrock)(start)[None], state.grad])
        norms = np.linalg.norm(before, axis=1)
        moved = np.asarray(state.accepted) & (norms[:-1] > 0)
        decrease, needed = (
            values[:-1] - values[1:],
            norms[1:] ** 2 / (8 * np.asarray(state.damping)),
        )
        assert moved.sum() > 40
        assert np.all(decrease[moved] >= needed[moved])
        radius = norms[:-1] / np.asarray(state.damping)
        assert np.all(np.linalg.norm(np.diff(points, axis=0), axis=1) <= radius * (1 + 1e-9))
        # Forty-two steps and twice as many solves, as found in two other implementations.
        assert np.argmax(values < 1e-8) == 42
        assert state.num_solves[41] == 86


@pytest.fixture(scope="module")
def log_sum_exp():
    """The test problem of the paper, with its minimum at zero: ``A``, logits, and both Hessians."""
    rng = np.random.default_rng(0)
    A, b = rng.uniform(-1, 1, (200, 50)), rng.uniform(-1, 1, 200)
    p = np.exp(-b) / np.sum(np.exp(-b))
    return A - (A.T @ p)[None], -b


def test_iterations_on_log_sum_exp(log_sum_exp):
    """With the Hessian 7 steps and 7 solves to 1e-9, with its first term 13 or 14."""
    A, logits = log_sum_exp
    with jax.enable_x64(True):
        A, logits = jnp.asarray(A), jnp.asarray(logits)
        fun = lambda x: jax.nn.logsumexp(A @ x + logits) - jax.nn.logsumexp(logits)

        def hessian(x, share):
            w = jax.nn.softmax(A @ x + logits)
            mean = w @ A
            return (A * w[:, None]).T @ A - share * jnp.outer(mean, mean)

        steps = {}
        for name, share in (("exact", 1.0), ("first term", 0.0)):
            method = curvature.gns(functools.partial(hessian, share=share))
            x, state = trajectory(method, fun, jnp.ones(50), 16)
            reached = int(np.argmax(state.value < 1e-9))
            assert state.value[reached] < 1e-9
            steps[name] = (reached + 1, int(state.num_solves[reached]))
        assert steps["exact"] == (7, 7)
        assert steps["first term"][0] in (13, 14)
        assert 17 <= steps["first term"][1] <= 19


MATRIX = np.asarray(normal(0, 5, 5), np.float64) @ np.asarray(normal(0, 5, 5), np.float64).T
GRADIENT = np.asarray(normal(1, 5), np.float64)


def solve(H, metric=None, damping=0.3, rtol=1e-12):
    g = jnp.asarray(GRADIENT)
    return damped_steps.damped_step(
        H,
        g,
        jnp.asarray(damping, g.dtype),
        metric=damped_steps.metric_of(metric),
        unravel=lambda flat: flat,
        rtol=rtol,
        max_steps=50,
    )


def test_rank_one_equals_cholesky():
    with jax.enable_x64(True):
        v = np.linspace(-1, 2, 5)
        metric = MATRIX + np.eye(5)
        for B in (None, metric):
            dense = solve(2.5 * np.outer(v, v), B)
            np.testing.assert_allclose(
                solve(curvature.RankOne(2.5, jnp.asarray(v)), B), dense, rtol=1e-10
            )
            wanted = np.linalg.solve(
                2.5 * np.outer(v, v) + 0.3 * (np.eye(5) if B is None else B), GRADIENT
            )
            np.testing.assert_allclose(dense, wanted, rtol=1e-6)
        assert np.isnan(solve(curvature.RankOne(-2.5, jnp.asarray(v)))).all(), "indefinite"


def test_lazy_equals_dense():
    loss = lambda w, x: 0.5 * jnp.vdot(w, x) ** 2
    rows = normal(0, 5, 5)
    H = gradkin.hessian(loss)(jnp.zeros(5), rows)
    dense = np.asarray(rows).T @ np.asarray(rows) / 5
    np.testing.assert_allclose(solve(H, rtol=1e-6), solve(dense), rtol=1e-4, atol=1e-5)


def test_a_metric_is_a_change_of_variables():
    """``B`` for x is the identity for y = B^(1/2) x."""
    with jax.enable_x64(True):
        B = np.diag(np.array([4.0, 0.25])) + 0.3
        values, vectors = np.linalg.eigh(B)
        root = jnp.asarray(vectors * values**-0.5 @ vectors.T)
        turned = lambda y: rosenbrock(root @ y)
        start = jnp.array([-1.2, 1.0])
        for second in (jax.hessian, lambda fun: None):
            x, left = trajectory(
                curvature.gns(second(rosenbrock), metric=jnp.asarray(B)), rosenbrock, start, 10
            )
            y, right = trajectory(
                curvature.gns(second(turned)), turned, jnp.linalg.solve(root, start), 10
            )
            np.testing.assert_allclose(x, y @ root, rtol=1e-6, atol=1e-9)
            np.testing.assert_array_equal(left.num_solves, right.num_solves)


def test_trials_that_are_not_finite_are_rejected():
    """The first steps leave the domain of the logarithm."""
    fun = lambda x: x[0] - jnp.log(x[0])
    found = curvature.minimize_gns(fun, jnp.array([3.0]), gamma=100.0, tolerance=3e-3)
    assert found.converged
    np.testing.assert_allclose(found.params, 1, atol=0.01)
    barrier = lambda x: jnp.where(x[0] < 3, jnp.inf, x[0])  # rises everywhere it can be seen
    held = curvature.minimize_gns(barrier, jnp.array([3.0]), max_halvings=5, gamma=1e3)
    assert held.params[0] == 3
    assert not held.converged
    assert (held.num_steps, held.num_solves) == (0, 6)


def test_indefinite_curvature_is_damped_until_it_is_not():
    fun = lambda x: 0.25 * jnp.sum(x**4) - 0.5 * jnp.sum(x**2)
    found = curvature.minimize_gns(
        fun, jnp.array([0.1, -0.2]), curvature_fn=jax.hessian(fun), tolerance=1e-4
    )
    np.testing.assert_allclose(np.abs(found.params), 1, atol=1e-3)
    assert found.num_solves > found.num_steps


def test_stays_at_a_minimum():
    found = curvature.minimize_gns(quadratic, jnp.zeros(4), curvature_fn=jax.hessian(quadratic))
    assert found.converged
    assert found.num_solves == 0
    optimizer = curvature.gns(None)
    state: Any = optimizer.init(jnp.zeros(4))
    updates: Any
    updates, state = optimizer.update(
        jnp.zeros(4), state, jnp.zeros(4), value=jnp.zeros(()), value_fn=quadratic
    )
    assert not np.any(updates)
    assert state.accepted
    assert state.gamma == 1


def model_loss(params, example):
    x, y = example
    hidden = jnp.tanh(x @ params["in"]["w"] + params["in"]["b"])
    return 0.5 * (hidden @ params["out"] - y) ** 2


def problem():
    params = {"in": {"w": normal(2, 3, 4), "b": normal(3, 4)}, "out": normal(4, 4)}
    return params, (normal(5, 16, 3), normal(6, 16))


@jax.jit
def fit(params, batch):
    mean = lambda params: jnp.mean(jax.vmap(model_loss, (None, 0))(params, batch))
    lazy = lambda params: gradkin.hessian(model_loss)(params, batch)
    return curvature.minimize_gns(mean, params, curvature_fn=lazy, max_steps=5, tolerance=0)


def test_pytrees_of_a_model_with_a_lazy_hessian(mesh):
    params, batch = problem()
    found = fit(params, batch)
    before = np.mean(jax.vmap(model_loss, (None, 0))(params, batch))
    assert found.value < 0.8 * before
    assert found.num_steps == 5
    assert jax.tree.structure(found.params) == jax.tree.structure(params)
    split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    sharded = fit(params, split)
    np.testing.assert_allclose(sharded.value, found.value, rtol=1e-2)


def test_vmap_is_each_alone():
    starts = jnp.array([[-1.2, 1.0], [0.5, 2.0], [2.0, -1.0]])

    @jax.jit
    def minimize(x):
        return curvature.minimize_gns(
            rosenbrock, x, curvature_fn=jax.hessian(rosenbrock), max_steps=8, tolerance=0
        )

    together = jax.vmap(minimize)(starts)
    alone = [minimize(x) for x in starts]
    np.testing.assert_array_equal(together.num_solves, [one.num_solves for one in alone])
    np.testing.assert_allclose(together.params, [one.params for one in alone], rtol=1e-3)


def test_in_a_chain_of_optax():
    optimizer = optax.chain(optax.identity(), curvature.gns(jax.hessian(quadratic)))
    x = jnp.ones(4)
    state: Any = optimizer.init(x)
    evaluate = optax.value_and_grad_from_state(quadratic)
    for _ in range(3):
        value, grads = evaluate(x, state=state)
        updates, state = optimizer.update(grads, state, x, value=value, value_fn=quadratic)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(state[1].value, quadratic(x), rtol=1e-6)
    assert quadratic(x) < 0.05 * quadratic(jnp.ones(4))


def test_bad_input():
    with pytest.raises(ValueError, match="gamma"):
        curvature.gns(None, gamma=0.0)
    with pytest.raises(ValueError, match="metric to be symmetric and positive"):
        curvature.gns(None, metric=jnp.diag(jnp.array([1.0, -1.0])))
    with pytest.raises(ValueError, match="metric to be symmetric and positive"):
        curvature.gns(None, metric=jnp.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="metric to be a square matrix"):
        curvature.gns(None, metric=jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="tolerance"):
        curvature.minimize_gns(quadratic, jnp.ones(4), tolerance=-1.0)
    minimize = functools.partial(curvature.minimize_gns, quadratic, jnp.ones(4))
    with pytest.raises(ValueError, match=r"curvature to have shape \(4, 4\), got \(3, 3\)"):
        minimize(curvature_fn=lambda x: jnp.eye(3))
    with pytest.raises(ValueError, match="rank-one vector to have 4 entries, got 3"):
        minimize(curvature_fn=lambda x: curvature.RankOne(1.0, jnp.ones(3)))
    with pytest.raises(ValueError, match=r"metric to have shape \(4, 4\)"):
        minimize(metric=jnp.eye(3))
    lazy = lambda x: gradkin.hessian(lambda w, x: jnp.vdot(w, x) ** 2)(x, jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="metric=None"):
        minimize(curvature_fn=lazy, metric=jnp.eye(4))
    optimizer = curvature.gns(None)
    with pytest.raises(ValueError, match="params in update"):
        optimizer.update(
            jnp.ones(4), optimizer.init(jnp.ones(4)), value=jnp.ones(()), value_fn=quadratic
        )
