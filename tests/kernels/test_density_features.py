"""Densities by random features: unbiased, intervals that cover, errors as theory says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import kernels

RUNS = 200


@pytest.fixture
def data(key):
    points, queries = jax.random.split(key)
    return jax.random.normal(points, (300, 4)) + 20, jax.random.normal(queries, (8, 4)) + 20


def exact(kernel, points, queries, weights=None):
    K = gradkin.kernel_matrix(kernel, queries, points, weights=weights)
    return np.asarray(K.sum(axis=1) / (len(points) if weights is None else jnp.sum(weights)))


@pytest.mark.parametrize(
    ("kernel", "orthogonal", "weighted"),
    [
        (kernels.Gaussian(1.5), False, False),
        (kernels.Gaussian(1.5), True, True),
        (kernels.Laplacian(jnp.array([2.0, 2.0, 3.0, 5.0])), False, True),
        (kernels.Exponential(2.0), True, False),
    ],
)
def test_unbiased_and_covered(data, key, kernel, orthogonal, weighted):
    points, queries = data
    weights = jnp.linspace(0.0, 1.0, len(points)) if weighted else None

    @jax.jit
    @jax.vmap
    def once(k):
        return kernels.feature_density(
            k, kernel, points, queries, size=256, orthogonal=orthogonal, weights=weights
        )

    found = once(jax.random.split(key, RUNS))
    value = exact(kernel, points, queries, weights)
    mean, error = np.asarray(found.mean_kernel), np.asarray(found.standard_error)
    spread = mean.std(0, ddof=1)
    assert np.abs((mean.mean(0) - value) / (spread / np.sqrt(RUNS))).max() < 4
    np.testing.assert_allclose(np.sqrt(np.mean(error**2, axis=0)), spread, rtol=0.2)
    low, high = map(np.asarray, found.interval())
    assert 0.90 <= np.mean((low < value) & (value < high)) <= 0.99


def test_one_point_has_the_error_of_a_cosine(data, key):
    """Variance of cos<w, z> under a Gaussian: (1 - k^2)^2 / 2 (Yu et al. 2016)."""
    query = jnp.array([[0.7, 0.0, 0.0, 0.0]])
    found = kernels.feature_density(key, kernels.Gaussian(1.0), jnp.zeros((1, 4)), query, size=8192)
    k = np.exp(-(0.7**2) / 2)
    expected = (1 - k**2) / np.sqrt(2) / np.sqrt(4096)
    np.testing.assert_allclose(found.standard_error, expected, rtol=0.1)
    assert abs(found.mean_kernel[0] - k) < 4 * expected


def test_orthogonal_frequencies_err_less(key):
    """By sqrt(3 / (d + 2)) for one near point: the lengths of the frequencies stay random."""
    estimate = functools.partial(
        kernels.feature_density, key, kernels.Gaussian(1.0), jnp.zeros((1, 8)), size=16_384
    )
    query = jnp.full((1, 8), 0.05)
    plain, orthogonal = (estimate(query, orthogonal=o).standard_error[0] for o in (False, True))
    np.testing.assert_allclose(orthogonal / plain, np.sqrt(3 / 10), rtol=0.1)


def test_pieces_and_shards(data, key, mesh):
    points, queries = data[0][:64], data[1]
    estimate = functools.partial(kernels.feature_density, key, kernels.Gaussian(1.0), size=32)
    value = estimate(points, queries)
    np.testing.assert_allclose(estimate(points, queries, block=3)[:2], value[:2], atol=1e-5)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    split = jax.jit(estimate)(jax.device_put(points, rows), jax.device_put(queries, rows))
    np.testing.assert_allclose(split[:2], value[:2], atol=1e-5)


P = np.zeros((3, 2), np.float32)
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("kernel", "options", "match"),
    [
        (kernels.Gaussian(1.0), {"size": 7}, "multiple of 2"),
        (kernels.Gaussian(1.0), {"size": 2}, ">= 4"),
        (kernels.Gaussian(1.0), {"size": 10, "orthogonal": True}, "multiple of 4"),
        (kernels.Laplacian(1.0), {"size": 8, "orthogonal": True}, "Euclidean distance"),
        (kernels.Cosine(), {"size": 8}, "known frequencies"),
        (kernels.Gaussian(-1.0), {"size": 8}, "bandwidth > 0"),
    ],
)
def test_bad_input(kernel, options, match):
    with pytest.raises(ValueError, match=match):
        kernels.feature_density(KEY, kernel, P, P, **options)
