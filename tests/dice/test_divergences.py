"""f, f', its inverse and the conjugate belong together, for every divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin.dice import DIVERGENCES, f_divergence

# Points inside the range of f', away from the kinks.
POINTS = {
    "pearson": [-1.7, -0.5, 0.3, 2.0],
    "kl": [-3.0, -0.5, 0.3, 2.0],
    "reverse_kl": [-3.0, -1.5, -0.5, -0.1],
    "soft_chi2": [-3.0, -0.5, 0.3, 2.0],
    "jensen_shannon": [-3.0, -0.5, 0.3, 0.6],
    "hellinger": [-3.0, -0.5, 0.3, 0.9],
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_conjugacy(name):
    with jax.enable_x64(True):
        f, y = f_divergence(name), jnp.array(POINTS[name])
        x = f.inverse_derivative(y)
        np.testing.assert_allclose(f.derivative(x), y, rtol=1e-10)
        np.testing.assert_allclose(jax.vmap(jax.grad(f.value))(x), y, rtol=1e-10)
        slope = jax.jit(jax.vmap(jax.grad(f.conjugate)))(y)
        np.testing.assert_allclose(slope, f.density_ratio(y), rtol=1e-10)
        np.testing.assert_allclose(f.conjugate(y), x * y - f.value(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_conjugate_is_the_maximum_over_ratios(name):
    with jax.enable_x64(True):
        f, y = f_divergence(name), jnp.array([*POINTS[name], -5.0])
        ratios = jnp.concatenate([jnp.array([1e-9]), jnp.logspace(-5, 3, 20001)])
        best = jnp.max(y[:, None] * ratios[None] - f.value(ratios)[None], 1)
        np.testing.assert_allclose(f.conjugate(y), best, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_zero_at_equality(name):
    f = f_divergence(name)
    np.testing.assert_allclose(f.value(jnp.ones(1)), 0.0, atol=1e-6)


def test_pearson_values_of_the_reference_code():
    y = jnp.array([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0])
    f = f_divergence("pearson")
    np.testing.assert_allclose(f.conjugate(y), [-1, -1, -0.75, 0, 1.25, 3])
    np.testing.assert_allclose(jax.vmap(jax.grad(f.conjugate))(y[:1]), [0.0])


@pytest.mark.parametrize(("name", "limit"), [("reverse_kl", 0.0), ("hellinger", 1.0)])
def test_beyond_the_range_is_infinite_and_never_nan(name, limit):
    f, y = f_divergence(name), jnp.array([limit, limit + 1])
    assert np.all(np.isposinf(f.conjugate(y)))
    assert np.all(np.isposinf(f.density_ratio(y)))
    assert not np.any(np.isnan(jax.vmap(jax.grad(f.conjugate))(y)))


def test_unknown_name():
    with pytest.raises(ValueError, match="divergence='chi'"):
        f_divergence("chi")
