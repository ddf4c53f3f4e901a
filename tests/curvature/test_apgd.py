"""Auto-PGD on functions whose largest value in a ball is known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import curvature
from gradkin.curvature.apgd import schedule

RNG = np.random.default_rng(0)
SIZE = 20
SLOPE = jnp.asarray(RNG.normal(size=SIZE), np.float32)
SCALE = jnp.asarray(np.exp(RNG.normal(size=SIZE)), np.float32)
BASIS = np.linalg.qr(RNG.normal(size=(SIZE, SIZE)))[0]
VALUES = np.concatenate([[-4.0, 3.0, 2.0], np.linspace(0, 1, SIZE - 3)])
A = jnp.asarray(BASIS * VALUES @ BASIS.T, np.float32)
KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnames=("linear", "p", "step", "num_steps", "start"))
def search(key, w, scale, rho, *, linear, p=2, step="scaled", num_steps=20, start="random"):
    """A linear or a quadratic function, as one program per set of options."""
    fun = (lambda w: jnp.vdot(SLOPE, w)) if linear else (lambda w: 0.5 * jnp.vdot(w, A @ w))
    options = {"p": p, "step": step, "num_steps": num_steps, "start": start}
    return curvature.auto_pgd(key, fun, w, rho=rho, scale=scale, **options)


@pytest.mark.parametrize(
    ("p", "step"),
    [(2, "scaled"), (2, "euclidean"), (math.inf, "scaled")],
    ids=["scaled", "euclidean", "cube"],
)
def test_linear_function(p, step):
    """The maximum is rho times the dual norm of c g, for unequal scales too."""
    found = search(KEY, jnp.ones(SIZE), SCALE, 0.3, linear=True, p=p, step=step, num_steps=100)
    wanted = 0.3 * np.linalg.norm(SCALE * SLOPE, ord=2 if p == 2 else 1)
    np.testing.assert_allclose(found.value - found.clean, wanted, rtol=2e-3)
    assert np.linalg.norm(found.perturbation / SCALE, ord=p) <= 0.3 * (1 + 1e-5)
    np.testing.assert_allclose(found.value, SLOPE @ (1 + found.perturbation), rtol=1e-5)


def test_reference_step_stops_short_on_a_linear_function():
    """Its pair of step and projection has another fixed point, however long it runs."""
    exact = 0.3 * np.linalg.norm(SCALE * SLOPE)
    found = search(KEY, jnp.ones(SIZE), SCALE, 0.3, linear=True, step="reference", num_steps=400)
    assert 0.8 < (found.value - found.clean) / exact < 0.985


@pytest.mark.parametrize("scaled", [False, True])
def test_quadratic_at_its_stationary_point(scaled):
    """rho^2 / 2 times the largest eigenvalue of D_c A D_c."""
    c = np.asarray(SCALE) if scaled else np.ones(SIZE, np.float32)
    largest = np.linalg.eigvalsh(c[:, None] * np.asarray(A) * c[None, :])[-1]
    found = search(KEY, jnp.zeros(SIZE), jnp.asarray(c), 0.3, linear=False, num_steps=100)
    np.testing.assert_allclose(found.value, 0.5 * 0.3**2 * largest, rtol=0.01)


def test_center_cannot_leave_a_stationary_point():
    found = search(
        KEY, jnp.zeros(SIZE), jnp.ones(SIZE), 0.3, linear=False, num_steps=20, start="center"
    )
    assert found.value == found.clean == 0
    assert not np.any(found.perturbation)


def test_never_below_the_start_and_growing_with_the_radius():
    """At a maximum of the function nothing is found; elsewhere more in a larger ball."""
    down = jax.jit(
        lambda key: curvature.auto_pgd(key, lambda w: -jnp.vdot(w, w), jnp.zeros(4), rho=1.0)
    )(KEY)
    assert down.value == down.clean == 0
    assert not np.any(down.perturbation)
    radii = jnp.array([0.01, 0.1, 0.3, 1.0])
    w = jnp.ones(SIZE)
    many = jax.vmap(lambda rho: search(KEY, w, SCALE, rho, linear=False, num_steps=100))(radii)
    rises = np.asarray(many.value - many.clean)
    assert np.all(np.diff(rises) > 0)
    # No worse than the ends of a thousand random directions.
    directions = RNG.normal(size=(1000, SIZE))
    directions *= 1.0 / np.linalg.norm(directions, axis=1, keepdims=True)
    points = 1 + np.asarray(SCALE) * directions
    others = 0.5 * np.einsum("ni,ij,nj->n", points, np.asarray(A), points)
    assert many.value[-1] >= others.max()
    one = search(KEY, w, SCALE, 1.0, linear=False, num_steps=100)
    np.testing.assert_allclose(many.value[-1], one.value, rtol=1e-4)


def test_restarts_keep_the_best_and_fixed_parameters_stay():
    """A narrow peak on one side: more starts find it in more of the searches."""

    def bumps(w):
        return jnp.exp(-20 * jnp.sum((w["x"] - 0.8) ** 2)) + 0.1 * jnp.sum(w["x"] ** 2) + w["y"]

    w = {"x": jnp.zeros(2), "y": jnp.zeros(())}
    scale = {"x": jnp.ones(2), "y": jnp.zeros(())}

    @functools.partial(jax.jit, static_argnames="restarts")
    def found(keys, restarts):
        search = lambda key: curvature.auto_pgd(
            key, bumps, w, rho=1.2, scale=scale, num_steps=10, num_restarts=restarts
        )
        return jax.vmap(search)(keys)

    keys = jax.random.split(KEY, 50)
    once, often = found(keys, 1), found(keys, 6)
    assert np.mean(often.value > 0.9) > np.mean(once.value > 0.9)
    assert not np.any(often.perturbation["y"])


def test_schedule_of_checks():
    """Shares 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of a hundred steps."""
    number, due, least = schedule(100)
    np.testing.assert_array_equal(number, np.arange(100))
    np.testing.assert_array_equal(np.flatnonzero(due), [22, 41, 57, 70, 80, 87, 93, 99])
    np.testing.assert_array_equal(
        least[due], np.ceil(0.75 * np.diff(np.flatnonzero(due), prepend=0))
    )
    assert not schedule(1)[1].any()


def test_nan_is_never_the_best():
    """Beyond a cliff the function is not defined."""
    cliff = lambda w: jnp.where(w > 0.5, jnp.nan, w)
    found = jax.jit(lambda key: curvature.auto_pgd(key, cliff, jnp.zeros(()), rho=1.0, p=math.inf))(
        KEY
    )
    assert np.isfinite(found.value)
    assert found.value >= 0


def test_bad_input_is_named():
    fun, w = jnp.sum, jnp.zeros(2)
    with pytest.raises(ValueError, match="rho > 0"):
        curvature.auto_pgd(KEY, fun, w, rho=0.0)
    with pytest.raises(ValueError, match="p to be one of"):
        curvature.auto_pgd(KEY, fun, w, rho=1.0, p=1)
    with pytest.raises(ValueError, match="num_steps to be a positive integer, got 0"):
        curvature.auto_pgd(KEY, fun, w, rho=1.0, num_steps=0)
    with pytest.raises(ValueError, match="num_restarts to be a positive integer, got 0"):
        curvature.auto_pgd(KEY, fun, w, rho=1.0, num_restarts=0)
    with pytest.raises(ValueError, match="start to be one of"):
        curvature.auto_pgd(KEY, fun, w, rho=1.0, start="zero")
    with pytest.raises(ValueError, match="step to be one of"):
        curvature.auto_pgd(KEY, fun, w, rho=1.0, step="sign")
    with pytest.raises(ValueError, match="scale >= 0"):
        curvature.auto_pgd(KEY, fun, w, rho=1.0, scale=-jnp.ones(2))
