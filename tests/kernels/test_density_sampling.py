"""Densities from samples: unbiased, intervals that cover, neighbours from anywhere."""

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
    return jax.random.normal(points, (2000, 3)), jax.random.normal(queries, (12, 3))


def exact(kernel, points, queries, weights=None):
    """Mean kernel values by their definition, in float64."""
    x, q = np.asarray(points, np.float64), np.asarray(queries, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    values = np.exp(-np.sum((q[:, None] - x) ** 2, axis=-1) / (2 * float(kernel.bandwidth) ** 2))
    return values @ w / w.sum()


def check_unbiased_and_covered(found, value, excess=1.2):
    """Estimates ``[runs, queries]``: their mean is exact, 95% intervals cover in 90 to 99%."""
    mean, error = (np.asarray(part, np.float64) for part in found[:2])
    z = (mean.mean(0) - value) / (mean.std(0, ddof=1) / np.sqrt(len(mean)))
    assert np.abs(z).max() < 4, z
    low, high = map(np.asarray, found.interval())
    covered = np.mean((low < value) & (value < high))
    assert 0.90 <= covered <= 0.99, covered
    # The standard error is the spread over samples, or somewhat more.
    ratio = np.sqrt(np.mean(error**2, axis=0)) / mean.std(0, ddof=1)
    assert np.all((ratio > 0.8) & (ratio < excess)), ratio


@pytest.mark.parametrize("option", ["replace", "distinct", "weighted"])
def test_sampling_is_unbiased_and_covers(data, key, option):
    points, queries = data
    kernel, weights = kernels.Gaussian(1.0), jnp.linspace(0.0, 2.0, len(points))
    options = {
        "replace": {"size": 300},
        "distinct": {"size": 900, "replace": False},
        "weighted": {"size": 300, "weights": weights},
    }[option]
    once = lambda k: kernels.sampled_density(k, kernel, points, queries, **options)
    found = jax.jit(jax.vmap(once))(jax.random.split(key, RUNS))
    value = exact(kernel, points, queries, options.get("weights"))
    check_unbiased_and_covered(found, value)


@pytest.mark.parametrize("option", ["exact", "index", "weighted", "none"])
def test_neighbors_and_sample_are_unbiased_and_cover(data, key, option):
    points, queries = data
    kernel = kernels.Gaussian(0.5)
    weights = jnp.linspace(0.5, 1.5, len(points)) if option == "weighted" else None
    if option == "index":
        index = kernels.inverted_file(key, points, num_lists=40)
        neighbors = index.nearest(queries, k=20, probes=2)
    elif option == "none":  # an index that finds nothing: plain sampling
        neighbors = jnp.full((len(queries), 3), -1)
    else:
        neighbors = gradkin.kernel_matrix(kernel, queries, points).top_k(20)[1]

    @jax.jit
    @jax.vmap
    def once(k):
        return kernels.neighbor_density(
            k, kernel, points, queries, neighbors=neighbors, size=600, weights=weights
        )

    found = once(jax.random.split(key, RUNS))
    value = exact(kernel, points, queries, weights)
    check_unbiased_and_covered(found, value, excess=1.5)
    if option == "exact":
        alone = kernels.sampled_density(key, kernel, points, queries, size=620)
        assert np.mean(found.standard_error[0]) < 0.8 * np.mean(alone.standard_error)


def test_limits_are_exact(data, key):
    points, queries = data[0][:40], data[1]
    kernel = kernels.Gaussian(0.7)
    value = exact(kernel, points, queries)
    everything = kernels.sampled_density(key, kernel, points, queries, size=40, replace=False)
    neighbors = kernels.neighbor_density(key, kernel, points, queries, neighbors=40, size=2)
    for found in (everything, neighbors):
        np.testing.assert_allclose(found.mean_kernel, value, rtol=1e-5)
        np.testing.assert_array_equal(found.standard_error, 0)
    reference = kernels.log_density(kernel, points, queries)
    np.testing.assert_allclose(neighbors.log_density(), reference, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(neighbors.density(), np.exp(reference), rtol=1e-4)
    np.testing.assert_array_equal(neighbors.relative_error(), 0)


def test_a_sample_of_neighbours_only_does_not_pretend(key):
    """All but one point are neighbours: nothing is known of the last."""
    points = jnp.linspace(0, 1, 10)[:, None]
    found = kernels.neighbor_density(
        key, kernels.Gaussian(1.0), points, points[:1], neighbors=jnp.arange(9)[None], size=2
    )
    assert np.isnan(found.mean_kernel) == np.isinf(found.standard_error)
    assert np.isinf(found.standard_error)


def test_a_sample_that_misses_what_matters_says_so(key):
    """Eleven points near the query among 10 000 far ones: ten are found, the sample has none."""
    points = jnp.concatenate([jnp.zeros((11, 2)), jnp.full((10_000, 2), 50.0)])
    found = kernels.neighbor_density(
        key, kernels.Gaussian(1.0), points, points[:1], neighbors=jnp.arange(10)[None], size=20
    )
    low, high = found.interval()
    assert low < 11 / 10_011 < high
    np.testing.assert_allclose(found.standard_error, 1 / 20, rtol=0.1)


@pytest.mark.parametrize("weighted", [False, True])
def test_short_floats(data, key, weighted):
    """Shares, weights and the kernel's integral are kept in float32."""
    weights = jnp.arange(1.0, 31.0) if weighted else None
    for estimate in (
        functools.partial(kernels.sampled_density, size=8),
        functools.partial(kernels.neighbor_density, neighbors=4, size=8),
    ):
        found, expected = (
            estimate(
                key,
                kernels.Gaussian(0.7),
                *(part.astype(jnp.bfloat16).astype(dtype) for part in (data[0][:30], data[1])),
                weights=weights,
            )
            for dtype in (jnp.bfloat16, jnp.float32)
        )
        np.testing.assert_allclose(found.density(), expected.density(), rtol=1e-5)


def test_equal_points_count_each(key):
    """Ties at the border between neighbours and the rest are counted once."""
    points = jnp.concatenate([jnp.zeros((30, 2)), jnp.ones((30, 2))])
    found = kernels.neighbor_density(
        key, kernels.Gaussian(0.5), points, points[:1], neighbors=jnp.arange(10)[None], size=4000
    )
    low, high = found.interval(level=0.999)
    assert low < (1 + np.exp(-4)) / 2 < high


def test_queries_in_pieces(data, key):
    points, queries = data
    near = jnp.arange(60).reshape(12, 5)
    whole, pieces = (
        kernels.neighbor_density(
            key, kernels.Gaussian(1.0), points, queries, neighbors=near, size=50, block=block
        )
        for block in (None, 5)
    )
    np.testing.assert_allclose(pieces[:2], whole[:2], rtol=1e-5)


def test_any_function_is_a_kernel(data, key):
    points, queries = data
    plain = lambda x, y: jnp.exp(-jnp.sum(jnp.square(x - y)) / 2)
    found = kernels.sampled_density(key, plain, points, queries, size=50)
    known = kernels.sampled_density(key, kernels.Gaussian(1.0), points, queries, size=50)
    np.testing.assert_allclose(found.mean_kernel, known.mean_kernel, rtol=1e-4)
    assert found.log_normalizer is None
    with pytest.raises(ValueError, match="known integral"):
        found.density()


def test_derivatives_are_finite_where_the_error_is_zero(key):
    points = jnp.zeros((5, 2))

    def value(q):
        found = kernels.sampled_density(key, kernels.Gaussian(1.0), points, q, size=4)
        return jnp.sum(found.mean_kernel + found.standard_error)

    slope = jax.grad(value)(jnp.ones((1, 2)))
    np.testing.assert_allclose(slope, -np.exp(-1.0) * np.ones((1, 2)), rtol=1e-5)


def test_sharded(data, key, mesh):
    points, queries = data[0][:160], jnp.concatenate([data[1], data[1]])
    near = jnp.arange(24 * 6).reshape(24, 6)

    @jax.jit
    def both(points, queries):
        kernel = kernels.Gaussian(0.8)
        sampled = kernels.sampled_density(key, kernel, points, queries, size=50)
        found = kernels.neighbor_density(key, kernel, points, queries, neighbors=near, size=50)
        return sampled[:2], found[:2]

    value = both(points, queries)
    split = jax.device_put((points, queries), NamedSharding(mesh, PartitionSpec("data")))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), both(*split), value)


def test_index_finds_what_it_holds(key):
    points = jax.random.normal(key, (500, 4)) + 100  # far from the origin
    index = kernels.inverted_file(key, points, num_lists=16, slack=16.0)
    assert index.num_left_out == 0
    assert np.array_equal(np.sort(index.rows[index.rows >= 0]), np.arange(500))
    queries = points[:20] + 0.01
    truth = gradkin.kernel_matrix(kernels.Euclidean(), queries, points).top_k(5, largest=False)[1]
    found = index.nearest(queries, k=5, probes=16)
    assert np.mean(np.asarray(found) == np.asarray(truth)) > 0.98  # all lists: but for rounding
    some = index.nearest(queries, k=5, probes=3)
    recall = np.mean([np.isin(t, f).mean() for t, f in zip(np.asarray(truth), np.asarray(some))])
    assert 0.5 < recall < 1
    few = index.nearest(queries, k=500, probes=1)
    assert np.all(few[:, -1] == -1)  # fewer than asked for


def test_full_lists_leave_points_out(key):
    points = jnp.concatenate([jnp.zeros((90, 2)), 5 + jax.random.normal(key, (10, 2))])
    index = kernels.inverted_file(key, points, num_lists=4, slack=1.0)
    kept = np.asarray(index.rows)[np.asarray(index.rows) >= 0]
    assert index.num_left_out == 100 - len(kept) > 0
    assert len(np.unique(kept)) == len(kept)


P = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
KEY = jax.random.key(0)
SAMPLED = functools.partial(kernels.sampled_density, KEY, kernels.Gaussian(1.0), P, P)
NEAR = functools.partial(kernels.neighbor_density, KEY, kernels.Gaussian(1.0), P, P)
FILE = functools.partial(kernels.inverted_file, KEY, P)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: SAMPLED(size=1), "2 <= size"),
        (lambda: SAMPLED(size=7, replace=False), "size <= 6 points"),
        (lambda: SAMPLED(size=3, replace=False, weights=np.ones(6, "f")), "no weights"),
        (lambda: SAMPLED(size=3).interval(level=1.0), "level in"),
        (lambda: NEAR(neighbors=0, size=2), "1 <= neighbors <= 6"),
        (lambda: NEAR(neighbors=2, size=1), "size >= 2"),
        (lambda: NEAR(neighbors=np.zeros((5, 2), int), size=2), r"shape \(6, k\)"),
        (lambda: NEAR(neighbors=np.zeros((6, 2), "f"), size=2), "integer neighbors"),
        (lambda: NEAR(neighbors=np.zeros((6, 2), int), size=2), "distinct"),
        (lambda: NEAR(neighbors=np.full((6, 1), 6), size=2), r"neighbors in \[-1, 6\)"),
        (lambda: FILE(num_lists=7), "num_lists <= 6"),
        (lambda: FILE(num_lists=2, slack=0.5), "slack >= 1"),
        (lambda: FILE(num_lists=2).nearest(P, k=1, probes=3), "probes <= 2"),
        (lambda: FILE(num_lists=2).nearest(P, k=13, probes=2), "k <= 12"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
