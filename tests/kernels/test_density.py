"""Exact density: scipy, scikit-learn, closed forms, integrals, invariances, derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec
from sklearn.neighbors import KernelDensity

from gradkin import kernels

SKLEARN = {"gaussian": kernels.Gaussian, "exponential": kernels.Exponential}


@pytest.fixture
def data(key):
    points, queries = jax.random.split(key)
    return jax.random.normal(points, (60, 3)), 1.5 * jax.random.normal(queries, (16, 3))


@jax.jit
def gaussian(points, queries, bandwidth, weights=None):
    return kernels.log_density(kernels.Gaussian(bandwidth), points, queries, weights=weights)


@pytest.mark.parametrize("name", SKLEARN)
def test_scikit_learn(data, name):
    points, queries = map(np.asarray, data)
    peer = KernelDensity(kernel=name, bandwidth=0.6).fit(points)
    found = kernels.log_density(SKLEARN[name](0.6), points, queries)
    np.testing.assert_allclose(found, peer.score_samples(queries), rtol=2e-5)


@pytest.mark.parametrize("rule", ["scott", "silverman"])
def test_scipy_in_one_dimension_with_weights(key, rule):
    points, weights = jax.random.normal(key, (40, 1)), jax.random.uniform(key, (40,))
    queries = jnp.linspace(-4, 4, 9)[:, None]
    peer = scipy.stats.gaussian_kde(points[:, 0], bw_method=rule, weights=weights)
    bandwidth = getattr(kernels, f"{rule}_bandwidth")(points, weights=weights)
    np.testing.assert_allclose(bandwidth**2, peer.covariance[0], rtol=1e-5)
    found = gaussian(points, queries, bandwidth, weights)
    np.testing.assert_allclose(found, peer.logpdf(queries[:, 0]), rtol=2e-5)


@pytest.mark.parametrize("rule", ["scott", "silverman"])
def test_rules_against_scipy_factor(data, rule):
    points = data[0] * jnp.array([[1.0, 10.0, 0.1]])
    peer = scipy.stats.gaussian_kde(np.asarray(points).T, bw_method=rule)
    expected = np.std(np.asarray(points), axis=0, ddof=1) * peer.factor
    np.testing.assert_allclose(getattr(kernels, f"{rule}_bandwidth")(points), expected, rtol=1e-5)


def test_one_point_is_the_normal_density(key):
    query, h = jax.random.normal(key, (5, 4)), jnp.array([0.5, 1.0, 2.0, 3.0])
    peer = np.sum(scipy.stats.norm.logpdf(query, scale=h), axis=1)
    np.testing.assert_allclose(gaussian(jnp.zeros((1, 4)), query, h), peer, rtol=1e-5)


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.Gaussian(0.3),
        kernels.Laplacian(0.3),
        kernels.Exponential(0.3),
        kernels.Gaussian(jnp.array([0.2, 0.4])),
        kernels.Laplacian(jnp.array([0.2, 0.4])),
        kernels.Exponential(jnp.array([0.2, 0.4])),
    ],
)
def test_integrates_to_one_in_two_dimensions(key, kernel):
    points = jax.random.uniform(key, (5, 2))
    # The midpoint rule; kinks cost it some digits.
    axis = (np.arange(200, dtype=np.float32) + 0.5) / 200 * 9 - 4
    queries = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    total = jnp.sum(jnp.exp(kernels.log_density(kernel, points, queries))) * (9 / 200) ** 2
    np.testing.assert_allclose(total, 1, rtol=2e-3)


def test_cauchy_is_the_cauchy_density():
    queries = jnp.linspace(-50, 50, 11)[:, None]
    found = kernels.log_density(kernels.Cauchy(2.0), jnp.ones((1, 1)), queries)
    np.testing.assert_allclose(found, scipy.stats.cauchy.logpdf(queries[:, 0], 1, 2), rtol=1e-5)


def test_far_away_nothing_underflows():
    points = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    found = gaussian(points, jnp.array([[1000.0, 0.0]]), 1.0)
    expected = -0.5 * 999.0**2 - np.log(2) - np.log(2 * np.pi)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_invariances(data, key):
    points, queries = data
    value = gaussian(points, queries, 0.7)
    order = jax.random.permutation(key, len(points))
    np.testing.assert_allclose(gaussian(points[order], queries, 0.7), value, rtol=1e-5, atol=1e-5)
    moved = gaussian(points + 100, queries + 100, 0.7)
    np.testing.assert_allclose(moved, value, rtol=1e-3, atol=1e-3)
    doubled = jnp.concatenate([points, points[:20]])
    weights = jnp.where(jnp.arange(60) < 20, 2.0, 1.0)
    np.testing.assert_allclose(
        gaussian(points, queries, 0.7, weights), gaussian(doubled, queries, 0.7), rtol=1e-5
    )
    np.testing.assert_allclose(
        gaussian(points, queries, 0.7, 5 * weights), gaussian(points, queries, 0.7, weights), 1e-5
    )
    # Scaling space scales the density.
    np.testing.assert_allclose(
        gaussian(3 * points, 3 * queries, 2.1), value - 3 * np.log(3), rtol=1e-5
    )


def test_score_is_the_mean_shift(data):
    points, queries = data
    score = jax.jit(jax.grad(lambda q: jnp.sum(gaussian(points, q, 0.7))))(queries)
    x, q = np.asarray(points, np.float64), np.asarray(queries, np.float64)
    k = np.exp(-np.sum((q[:, None] - x) ** 2, axis=-1) / (2 * 0.7**2))
    shift = k @ x / k.sum(1, keepdims=True) - q
    np.testing.assert_allclose(score, shift / 0.7**2, rtol=1e-3, atol=1e-4)


def test_derivatives(data):
    """One direction through everything, against a difference quotient in float64."""
    with jax.enable_x64(True):
        start = (data[0][:6], data[1][:3], jnp.linspace(0.5, 1.5, 6), 0.8)
        start = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), start)
        along = jax.tree.map(lambda a: np.cos(np.arange(a.size) + 1.0).reshape(a.shape), start)

        @jax.jit
        def value(t):
            points, queries, weights, h = jax.tree.map(lambda a, b: a + t * b, start, along)
            kernel = kernels.Gaussian(h)
            return jnp.sum(kernels.log_density(kernel, points, queries, weights=weights))

        quotient = (value(1e-5) - value(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(value)(0.0), quotient, rtol=1e-8)


def test_short_floats(data):
    points = data[0].astype(jnp.bfloat16)
    weights = jnp.arange(1.0, 61.0)
    for value in (
        lambda p: kernels.log_density(kernels.Gaussian(0.6), p, p[:9], weights=weights),
        lambda p: kernels.scott_bandwidth(p, weights=weights),
        lambda p: kernels.leave_one_out_log_likelihood(kernels.Gaussian(0.6), p, weights=weights),
    ):
        np.testing.assert_allclose(value(points), value(points.astype(jnp.float32)), rtol=1e-5)


def test_float64(data):
    points, queries = (np.asarray(a, np.float64) for a in data)
    with jax.enable_x64(True):
        found = kernels.log_density(kernels.Gaussian(0.6), points, queries)
        assert found.dtype == jnp.float64
    peer = KernelDensity(bandwidth=0.6).fit(points)
    np.testing.assert_allclose(found, peer.score_samples(queries), rtol=1e-12)


def test_vmap_over_bandwidths_and_queries(data):
    points, queries = data
    bandwidths = jnp.array([0.3, 0.6, 1.2])
    found = jax.vmap(gaussian, (None, None, 0))(points, queries, bandwidths)
    for h, row in zip(bandwidths, found):
        np.testing.assert_allclose(row, gaussian(points, queries, h), rtol=1e-5)
    groups = jax.vmap(gaussian, (None, 0, None))(points, queries.reshape(4, 4, 3), 0.6)
    np.testing.assert_allclose(groups.reshape(-1), found[1], rtol=1e-5)


def test_sharded(data, mesh):
    points, queries = data[0][:56], data[1]
    value = gaussian(points, queries, 0.7)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    split = jax.device_put((points, queries), rows)
    np.testing.assert_allclose(gaussian(*split, 0.7), value, rtol=1e-5)
    # Queries where they are: no device sees all of them.
    kernel = kernels.Gaussian(0.7)
    placed = jax.jit(lambda p, q: kernels.log_density(kernel, p, q, mesh=mesh))(points, split[1])
    np.testing.assert_allclose(placed, value, rtol=1e-5)
    assert placed.sharding.spec == PartitionSpec("data")


def leave_one_out(points, h, weights=None):
    """By its definition, in float64."""
    x = np.asarray(points, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    w = w / w.sum()
    k = np.exp(-np.sum((x[:, None] - x) ** 2, axis=-1) / (2 * h**2))
    np.fill_diagonal(k, 0)
    density = k @ w / (1 - w) / (2 * np.pi * h**2) ** (x.shape[1] / 2)
    return np.sum(w * np.log(density))


@pytest.mark.parametrize("weighted", [False, True])
def test_leave_one_out(data, weighted):
    points, weights = data[0], jnp.linspace(0.0, 1.0, 60) if weighted else None
    value = jax.jit(kernels.leave_one_out_log_likelihood)(
        kernels.Gaussian(0.5), points, weights=weights
    )
    np.testing.assert_allclose(value, leave_one_out(points, 0.5, weights), rtol=1e-5)


def test_leave_one_out_of_a_lonely_point():
    """Subtracting the point's own kernel from the sum would leave nothing."""
    points = jnp.array([[0.0], [1.0], [40.0]])
    value = kernels.leave_one_out_log_likelihood(kernels.Gaussian(1.0), points)
    each = scipy.stats.norm.logpdf([1.0, 1.0, 39.0]) - np.log(2)
    np.testing.assert_allclose(value, np.mean(each), rtol=1e-6)


def test_cross_validation(key):
    points = jax.random.normal(key, (150, 1))
    grid = jnp.geomspace(0.05, 2, 9)
    found = kernels.cross_validated_bandwidth(kernels.Gaussian, points, grid)
    expected = [leave_one_out(points, float(h)) for h in grid]
    np.testing.assert_allclose(found.log_likelihoods, expected, rtol=1e-5)
    assert found.bandwidth == grid[np.argmax(expected)]
    assert 0.1 < found.bandwidth < 1
    # One bandwidth per coordinate; in pieces; the derivative vanishes near the optimum.
    columns = kernels.cross_validated_bandwidth(kernels.Gaussian, points, grid[:, None], block=7)
    np.testing.assert_allclose(columns.log_likelihoods, expected, rtol=1e-5)
    slope = jax.jit(jax.grad(lambda h: kernels.leave_one_out_log_likelihood(
        kernels.Gaussian(h), points)))  # fmt: skip
    best = int(np.argmax(expected))
    assert slope(grid[best - 1]) > 0 > slope(grid[best + 1])


def test_leave_one_out_sharded(data, mesh):
    points = data[0][:56]
    split = jax.device_put(points, NamedSharding(mesh, PartitionSpec("data")))
    value = kernels.leave_one_out_log_likelihood(kernels.Gaussian(0.5), split)
    np.testing.assert_allclose(value, leave_one_out(points, 0.5), rtol=1e-5)


POINTS = np.zeros((4, 2), np.float32)
DENSITY = functools.partial(kernels.log_density, kernels.Gaussian(1.0))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: DENSITY(POINTS[0], POINTS), "points to have 2 axes"),
        (lambda: DENSITY(POINTS, POINTS[:, :1]), "same features and dtype"),
        (lambda: DENSITY(POINTS.astype(int), POINTS), "points to be floating"),
        (lambda: DENSITY(POINTS[:0], POINTS), "points not to be empty"),
        (lambda: DENSITY(POINTS, POINTS + np.nan), "queries to be finite"),
        (lambda: DENSITY(POINTS, POINTS, weights=np.ones(3, "f")), r"weights to have shape \(4,\)"),
        (lambda: DENSITY(POINTS, POINTS, weights=np.zeros(4, "f")), "sum of weights > 0"),
        (lambda: DENSITY(POINTS, POINTS, weights=-np.ones(4, "f")), ">= 0"),
        (lambda: kernels.log_density(kernels.Gaussian(0.0), POINTS, POINTS), "bandwidth > 0"),
        (lambda: kernels.log_density(kernels.Cosine(), POINTS, POINTS), "known integral"),
        (lambda: kernels.log_normalizer(kernels.Cauchy(1.0), 2), "Cauchy in 2 dimensions"),
        (lambda: kernels.log_normalizer(kernels.Gaussian(1.0), 0), "dim > 0"),
        (lambda: kernels.log_normalizer(kernels.Gaussian(np.ones(3)), 2), "each of 2"),
        (lambda: kernels.scott_bandwidth(POINTS[:1]), "at least 2 points"),
        (
            lambda: kernels.leave_one_out_log_likelihood(kernels.Gaussian(1.0), POINTS[:1]),
            "at least 2 points",
        ),
        (
            lambda: kernels.leave_one_out_log_likelihood(
                kernels.Gaussian(1.0), POINTS, weights=np.eye(4, dtype="f")[0]
            ),
            "2 positive weights",
        ),
        (
            lambda: kernels.cross_validated_bandwidth(kernels.Gaussian, POINTS, np.zeros(2, "f")),
            "bandwidths > 0",
        ),
        (
            lambda: kernels.cross_validated_bandwidth(kernels.Gaussian, POINTS, 1.0),
            r"bandwidths \[b\] or \[b, d\]",
        ),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
