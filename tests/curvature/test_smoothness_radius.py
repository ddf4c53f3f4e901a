"""The radius in which a linear model of the gradient holds, where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin import curvature

KEY = jax.random.key(0)
RADII = jnp.geomspace(1e-2, 10, 1000)


def cubic(x):
    """``L / 6 |x|^3`` with L = 3."""
    return 0.5 * jnp.sum(jnp.abs(x) ** 3)


@pytest.mark.parametrize(("region", "factor"), [("ball", 1), ("halfspace", 2)])
def test_cubic(region, factor):
    """The error of the linear model is ``L h^2 / 2``: the radius is x, or 2 x downhill."""
    at = jnp.array([0.7])
    radius = curvature.smoothness_radius(
        KEY, cubic, at, jax.hessian(cubic)(at), radii=RADII, num_directions=2, region=region
    )
    np.testing.assert_allclose(radius, factor * 0.7, rtol=0.02)


def test_cosh_needs_the_half_space():
    """Quasi-self-concordant: in the whole ball the radius vanishes with the gradient."""

    def radius(x, region):
        fun = lambda x: jnp.cosh(x) - 1
        return curvature.smoothness_radius(
            KEY,
            fun,
            x,
            jnp.cosh(x)[None, None],
            radii=jnp.geomspace(1e-2, 20, 600),
            num_directions=2,
            region=region,
        )

    with jax.enable_x64(True):
        points = jnp.array([0.1, 0.01])
        ball = jax.vmap(lambda x: radius(x, "ball"))(points)
        # sinh(x + h) - sinh(x) - h cosh(x) = sinh(x) at h = radius.
        np.testing.assert_allclose(ball, [0.744, 0.3815], rtol=0.015)
        half = jax.vmap(lambda x: radius(x, "halfspace"))(jnp.array([0.1, 0.01, 1.0]))
        assert np.all(half >= 2.6)


def test_gradient_of_bounded_change():
    """Without curvature ``L`` and the gradient tell the radius: ``|g| / L``, at least."""
    quadratic = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * x**2)
    at = jnp.array([1.0, 0.5])
    ball = curvature.smoothness_radius(
        KEY, quadratic, at, None, radii=RADII, num_directions=300, region="ball"
    )
    norm = np.linalg.norm([1.0, 2.0])
    assert norm / 4 - 1e-4 <= ball <= 1.01 * norm / 4
    exact = jax.hessian(quadratic)(at)
    lazy = gradkin.hessian(lambda w, s: s * quadratic(w))(at, jnp.ones(1))
    with jax.enable_x64(True):
        first = curvature.RankOne(1.0, jnp.array([1.0, 0.0]))
        partly = curvature.smoothness_radius(
            KEY, quadratic, jnp.asarray(at, jnp.float64), first, radii=RADII, num_directions=20
        )
        assert norm / 4 - 1e-4 <= partly < np.inf
    for H in (exact, lazy):
        large = curvature.smoothness_radius(KEY, quadratic, at, H, radii=RADII, num_directions=20)
        assert large > 1e4, "a quadratic with its own Hessian: rounding only"


def test_bad_input():
    with pytest.raises(ValueError, match="region"):
        curvature.smoothness_radius(KEY, cubic, jnp.ones(1), None, radii=RADII, region="cone")
    with pytest.raises(ValueError, match="ascending"):
        curvature.smoothness_radius(KEY, cubic, jnp.ones(1), None, radii=RADII[::-1])
    with pytest.raises(ValueError, match="radii > 0"):
        curvature.smoothness_radius(KEY, cubic, jnp.ones(1), None, radii=jnp.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="num_directions"):
        curvature.smoothness_radius(KEY, cubic, jnp.ones(1), None, radii=RADII, num_directions=0)
    with pytest.raises(ValueError, match="curvature to have shape"):
        curvature.smoothness_radius(KEY, cubic, jnp.ones(1), jnp.eye(2), radii=RADII)
