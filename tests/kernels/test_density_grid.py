"""Densities on a grid: within their bound of the exact ones, normalized, equal to KDE by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import kernels


def exact(kernel, points, found, weights=None):
    """Mean kernel values at the nodes."""
    nodes = np.stack(np.meshgrid(*found.axes(), indexing="ij"), axis=-1)
    K = gradkin.kernel_matrix(kernel, nodes.reshape(-1, points.shape[1]), points, weights=weights)
    total = len(points) if weights is None else np.sum(weights)
    return np.asarray(K.sum(axis=1)).reshape(nodes.shape[:-1]) / total


@pytest.mark.parametrize(
    ("kernel", "dim", "size"),
    [
        (kernels.Gaussian, 1, 300),
        (kernels.Laplacian, 1, 300),
        (kernels.Gaussian, 2, (60, 41)),
        (kernels.Laplacian, 3, 24),
    ],
)
def test_within_the_bound(key, kernel, dim, size):
    points = jax.random.normal(key, (50, dim)) * jnp.arange(1.0, dim + 1)[None]
    made = kernel(jnp.arange(1.0, dim + 1))
    found = kernels.grid_density(made, points, size=size, low=-9.0, high=9.0)
    assert found.mean_kernel.shape == ((size,) * dim if isinstance(size, int) else size)
    error = np.abs(exact(made, points, found) - found.mean_kernel).max()
    assert error <= found.error_bound < 0.2


def test_bound_is_not_idle(key):
    """One point in the middle of a cell, where linear binning errs most."""
    kernel, point = kernels.Gaussian(1.0), jnp.array([[0.05]])
    found = kernels.grid_density(kernel, point, size=101, low=-5.0, high=5.0)
    error = np.abs(exact(kernel, point, found) - found.mean_kernel).max()
    assert 0.8 * found.error_bound < error <= found.error_bound


def test_error_falls_with_the_square_of_the_spacing(key):
    points, kernel = jax.random.normal(key, (40, 1)), kernels.Gaussian(0.5)
    errors = []
    for size in (33, 129):
        found = kernels.grid_density(kernel, points, size=size, low=-6.0, high=6.0)
        errors.append(np.abs(exact(kernel, points, found) - found.mean_kernel).max())
    np.testing.assert_allclose(errors[0] / errors[1], 16, rtol=0.4)


@pytest.mark.parametrize("dim", [1, 2])
def test_integrates_to_one_and_interpolates(key, dim):
    points, weights = jax.random.normal(key, (30, dim)), jax.random.uniform(key, (30,))
    kernel = kernels.Gaussian(0.6)
    found = kernels.grid_density(kernel, points, size=200, weights=weights)
    volume = np.prod(found.spacing)
    np.testing.assert_allclose(np.sum(found.density()) * volume, 1, rtol=1e-4)
    reference = np.exp(kernels.log_density(kernel, points, points, weights=weights))
    bound = 2 * found.error_bound * np.exp(-found.log_normalizer)
    between = found.interpolate(points)
    assert np.abs(between - reference).max() <= bound
    nodes = jnp.stack([axis[jnp.array([0, 7, 199])] for axis in found.axes()], axis=1)
    at_nodes = found.density()[(jnp.array([0, 7, 199]),) * dim]
    np.testing.assert_allclose(found.interpolate(nodes), at_nodes, rtol=1e-4, atol=1e-6)
    assert np.all(np.isnan(found.interpolate(nodes + 100)))


def test_short_floats(key):
    points, weights = jax.random.normal(key, (20, 1)).astype(jnp.bfloat16), jnp.arange(1.0, 21.0)
    grid = lambda p: kernels.grid_density(kernels.Gaussian(0.4), p, size=64, weights=weights)
    found, expected = grid(points), grid(points.astype(jnp.float32))
    np.testing.assert_allclose(found.density(), expected.density(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        found.interpolate(points), expected.interpolate(points.astype(jnp.float32)), rtol=1e-6
    )


def test_weight_two_is_two_points(key):
    points, kernel = jax.random.normal(key, (20, 1)), kernels.Gaussian(0.4)
    grid = lambda p, w=None: kernels.grid_density(
        kernel, p, size=128, low=-5.0, high=5.0, weights=w
    )
    weights = jnp.where(jnp.arange(20) < 5, 2.0, 1.0)
    twice = jnp.concatenate([points, points[:5]])
    np.testing.assert_allclose(
        grid(points, weights).mean_kernel, grid(twice).mean_kernel, atol=1e-6
    )


def test_points_outside_are_in_the_bound():
    points = jnp.array([[0.0], [1.0], [2.0], [10.0]])
    found = kernels.grid_density(kernels.Gaussian(1.0), points, size=2000, low=0.0, high=2.0)
    np.testing.assert_allclose(found.error_bound, 0.25, atol=1e-3)
    # Points on the first and last node are inside.
    np.testing.assert_allclose(found.mean_kernel[0], (1 + np.exp(-0.5) + np.exp(-2)) / 4, rtol=1e-4)


@jax.jit
def jitted(points, bandwidth):
    return kernels.grid_density(kernels.Gaussian(bandwidth), points, size=64)


def test_transformations(key, mesh):
    points = jax.random.normal(key, (64, 2))
    value = jitted(points, 0.5)
    many = jax.vmap(jitted, (None, 0))(points, jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(many.mean_kernel[0], value.mean_kernel, atol=1e-6)
    split = jax.device_put(points, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(jitted(split, 0.5).mean_kernel, value.mean_kernel, atol=1e-6)
    center = lambda h: jitted(points, h).mean_kernel[32, 32]
    step = (center(0.51) - center(0.49)) / 0.02
    np.testing.assert_allclose(jax.grad(center)(0.5), step, rtol=2e-2)


P = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: kernels.grid_density(kernels.Exponential(1.0), P), "Gaussian or Laplacian"),
        (lambda: kernels.grid_density(kernels.Gaussian(1.0), np.zeros((3, 4), "f")), "at most 3"),
        (lambda: kernels.grid_density(kernels.Gaussian(1.0), P, size=1), "size >= 2"),
        (lambda: kernels.grid_density(kernels.Gaussian(1.0), P, size=(9,)), "each of 2"),
        (lambda: kernels.grid_density(kernels.Gaussian(-1.0), P), "bandwidth > 0"),
        (lambda: kernels.grid_density(kernels.Gaussian(1.0), P, low=1.0, high=0.0), "high - low"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
