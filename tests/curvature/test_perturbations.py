"""Balls and ellipsoids around parameters: projections, the ascent step of SAM, scales."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from gradkin import curvature

SCALE = {"a": jnp.array([0.1, 1.0, 3.0]), "b": jnp.array([[0.5], [0.0]])}
POINT = {"a": jnp.array([2.0, -1.0, 1.0]), "b": jnp.array([[-3.0], [5.0]])}
BALLS = {
    "ball": functools.partial(curvature.project_ball, p=2, scale=SCALE),
    "cube": functools.partial(curvature.project_ball, p=math.inf, scale=SCALE),
    "ellipsoid": functools.partial(curvature.project_ellipsoid, scale=SCALE),
}
PROJECT = {name: jax.jit(lambda d, rho, f=f: f(d, rho=rho)) for name, f in BALLS.items()}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def size(d, p):
    """``|d / c|_p`` where the scale is not zero."""
    c = flat(SCALE)
    return np.linalg.norm(flat(d)[c > 0] / c[c > 0], ord=p)


@pytest.mark.parametrize("name", BALLS)
def test_projections_are_feasible_and_idempotent(name):
    p = math.inf if name == "cube" else 2
    for rho in (1e-3, 0.7, 2.0):
        once = PROJECT[name](POINT, rho)
        assert size(once, p) <= rho * (1 + 1e-5)
        assert size(once, p) >= rho * (1 - 1e-5)  # the point lies outside
        np.testing.assert_allclose(flat(PROJECT[name](once, rho)), flat(once), rtol=2e-6)
        assert flat(once)[-1] == 0  # a scale of zero
    inside = PROJECT[name](POINT, 100.0)
    np.testing.assert_allclose(flat(inside)[:-1], flat(POINT)[:-1], rtol=1e-6)
    mapped = jax.vmap(PROJECT[name], (None, 0))(POINT, jnp.array([0.7, 2.0]))
    np.testing.assert_allclose(flat(jax.tree.map(lambda x: x[1], mapped)), flat(once), rtol=1e-6)


def test_ellipsoid_projection_is_the_nearest_point():
    c, d, rho = flat(SCALE)[:-1], flat(POINT)[:-1], 0.7
    nearest = scipy.optimize.minimize(
        lambda x: np.sum((x - d) ** 2),
        np.zeros(4),
        jac=lambda x: 2 * (x - d),
        constraints={
            "type": "ineq",
            "fun": lambda x: rho**2 - np.sum((x / c) ** 2),
            "jac": lambda x: -2 * x / c**2,
        },
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert nearest.success
    found = flat(PROJECT["ellipsoid"](POINT, rho))[:-1]
    np.testing.assert_allclose(found, nearest.x, atol=1e-5)


def test_equal_scales_make_ball_and_ellipsoid_one():
    ones = jax.tree.map(jnp.ones_like, POINT)
    wanted = flat(POINT) * 0.5 / np.linalg.norm(flat(POINT))
    np.testing.assert_allclose(flat(curvature.project_ball(POINT, rho=0.5)), wanted, rtol=1e-6)
    found = curvature.project_ellipsoid(POINT, rho=0.5, scale=ones)
    np.testing.assert_allclose(flat(found), wanted, rtol=1e-5)


@pytest.mark.parametrize(("p", "dual"), [(2, 2), (math.inf, 1)])
def test_sam_perturbation_maximizes_a_linear_loss(p, dual):
    grads = jax.tree.map(lambda x: x + 0.3, POINT)
    d = curvature.sam_perturbation(grads, rho=0.2, p=p, scale=SCALE)
    wanted = 0.2 * np.linalg.norm(flat(SCALE) * flat(grads), ord=dual)
    assert size(d, p) <= 0.2 * (1 + 1e-6)
    np.testing.assert_allclose(flat(d) @ flat(grads), wanted, rtol=1e-6)
    bound = curvature.first_order_sharpness(grads, rho=0.2, p=p, scale=SCALE)
    np.testing.assert_allclose(bound, wanted, rtol=1e-6)
    zero = jax.tree.map(jnp.zeros_like, POINT)
    assert not np.any(flat(curvature.sam_perturbation(zero, rho=0.2, p=p)))


def test_adaptive_scale():
    params = {"layer": {"kernel": jnp.array([-2.0, 0.0]), "bias": jnp.array([-1.0])}}
    np.testing.assert_array_equal(flat(curvature.adaptive_scale(params)), [1, 2, 0])
    found = curvature.adaptive_scale(params, select=lambda path: path.endswith("kernel"))
    np.testing.assert_array_equal(flat(found), [1, 2, 0])
    found = curvature.adaptive_scale(params, select=lambda path: path == "layer/bias")
    np.testing.assert_array_equal(flat(found), [1, 1, 1])


def test_bad_input_is_named():
    for rho in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="rho > 0"):
            curvature.project_ball(POINT, rho=rho)
    with pytest.raises(ValueError, match="rho > 0"):
        curvature.project_ellipsoid(POINT, rho=0.0, scale=SCALE)
    with pytest.raises(ValueError, match="p to be one of"):
        curvature.project_ball(POINT, rho=1.0, p=1)
    with pytest.raises(ValueError, match="p to be one of"):
        curvature.sam_perturbation(POINT, rho=1.0, p=3)
    negative = SCALE | {"b": jnp.array([[-0.5], [0.0]])}
    with pytest.raises(ValueError, match="scale >= 0, got a negative number or NaN at 'b'"):
        curvature.project_ball(POINT, rho=1.0, scale=negative)
    with pytest.raises(ValueError, match=r"scale to have the leaves of the parameters: \['b'\]"):
        curvature.sam_perturbation(POINT, rho=1.0, scale={"a": SCALE["a"]})
