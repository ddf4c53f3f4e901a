"""Curves between models: closed forms of points and of mode connectivity."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkin import curvature
from tests.matrices.models.model import normal

TIMES = jnp.linspace(0, 1, 11)


def trees():
    return [{"w": normal(i, 3, 2), "b": normal(10 + i, 2)} for i in range(3)]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_points_of_the_curve():
    start, middle, end = trees()
    point = jax.jit(curvature.bezier_point)
    for t, wanted in ((0.0, start), (1.0, end)):
        np.testing.assert_array_equal(flat(point(start, middle, end, t)), flat(wanted))
    found = flat(point(start, middle, end, 0.3))
    wanted = 0.49 * flat(start) + 0.42 * flat(middle) + 0.09 * flat(end)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    # De Casteljau: twice linear interpolation.
    line = lambda a, b: 0.7 * a + 0.3 * b
    a, b, c = map(flat, (start, middle, end))
    np.testing.assert_allclose(found, line(line(a, b), line(b, c)), rtol=1e-5, atol=1e-6)
    same = flat(point(start, start, start, 0.7))
    np.testing.assert_allclose(same, flat(start), rtol=1e-6)


def test_connectivity_of_one_model_with_itself_is_zero():
    start, *_ = trees()
    found = curvature.bezier_connectivity(
        lambda w: jnp.sum(w["w"] ** 2), start, start, start, times=TIMES
    )
    assert abs(found.value) < 1e-5
    assert found.floor == 0


@jax.jit
def line_on_a_bowl(a, b):
    A = jnp.array([[2.0, 0.5], [0.5, 1.0]])
    bowl = lambda w: 0.5 * jnp.sum(w * (A @ w))
    return curvature.bezier_connectivity(bowl, a, 0.5 * (a + b), b, times=TIMES)


def test_connectivity_on_a_convex_quadratic_is_positive():
    """With equal ends ``mc = d^T A d / 8``; with unequal ones it is at least the floor."""
    a, b = jnp.array([1.0, 2.0]), jnp.array([-1.0, -2.0])
    d = np.array([-2.0, -4.0])
    wanted = d @ np.array([[2.0, 0.5], [0.5, 1.0]]) @ d / 8
    found = line_on_a_bowl(a, b)
    np.testing.assert_allclose(found.value, wanted, rtol=1e-5)
    assert found.time == 0.5
    unequal = line_on_a_bowl(a, jnp.array([3.0, 1.0]))
    errors = np.asarray(unequal.errors)
    np.testing.assert_allclose(unequal.floor, abs(errors[0] - errors[-1]) / 2, rtol=1e-5)
    assert abs(unequal.value) >= unequal.floor - 1e-6
    gaps = (errors[0] + errors[-1]) / 2 - errors
    np.testing.assert_allclose(unequal.value, gaps[np.argmax(np.abs(gaps))], rtol=1e-5)


def test_a_barrier_is_negative_and_a_trained_curve_goes_around_it():
    ring = lambda w: (jnp.sum(w**2) - 1) ** 2
    ends = jnp.array([-1.0, 0.0]), jnp.array([1.0, 0.0])
    line = curvature.bezier_connectivity(ring, ends[0], jnp.zeros(2), ends[1], times=TIMES)
    np.testing.assert_allclose(line.value, -1, rtol=1e-6)

    @jax.jit
    @jax.vmap
    def trained(key):
        fit = curvature.fit_bezier(
            key,
            lambda key, w: ring(w + 0.01 * jax.random.normal(key, (2,))),
            ends[0],
            ends[1],
            optimizer=optax.adam(0.05),
            num_steps=300,
        )
        found = curvature.bezier_connectivity(ring, ends[0], fit.middle, ends[1], times=TIMES)
        return fit, found

    fit, found = trained(jax.random.split(jax.random.key(0), 3))
    assert fit.losses.shape == (3, 300)
    assert np.all(found.value > -0.25)
    assert np.all(np.abs(fit.middle[:, 1]) > 1)
    assert np.all(fit.losses[:, -100:].mean(1) < 0.5 * fit.losses[:, :20].mean(1))


def test_bad_input():
    start, middle, end = trees()
    fun = lambda w: jnp.sum(w["w"])
    with pytest.raises(ValueError, match=r"t in \[0, 1\]"):
        curvature.bezier_point(start, middle, end, 1.5)
    with pytest.raises(ValueError, match="middle to have the leaves of start"):
        curvature.bezier_point(start, {"w": middle["w"]}, end, 0.5)
    with pytest.raises(ValueError, match="end to have the shapes of start"):
        curvature.bezier_point(start, middle, {**end, "b": jnp.ones(3)}, 0.5)
    with pytest.raises(ValueError, match=r"times in \[0, 1\]"):
        curvature.bezier_connectivity(fun, start, middle, end, times=jnp.array([0.0, -0.1]))
    with pytest.raises(ValueError, match="at least one time"):
        curvature.bezier_connectivity(fun, start, middle, end, times=jnp.zeros(0))
    with pytest.raises(ValueError, match="times to have 1 axes"):
        curvature.bezier_connectivity(fun, start, middle, end, times=jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="num_steps"):
        curvature.fit_bezier(
            jax.random.key(0),
            lambda key, w: fun(w),
            start,
            end,
            optimizer=optax.sgd(0.1),
            num_steps=0,
        )
