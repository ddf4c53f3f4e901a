"""Estimates of Vendi scores: exact cases, bounds that hold, standard errors that are right."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import kernels


@pytest.fixture(scope="module")
def clusters():
    """Points of three unequal groups, and their similarities."""
    noise = jax.random.normal(jax.random.key(0), (60, 2))
    x = noise + jnp.repeat(jnp.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]), 20, axis=0)
    return x, kernels.Gaussian(1.0)


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, math.inf])
def test_nystrom_bounds_hold_and_close(clusters, order):
    x, kernel = clusters
    exact = float(kernels.vendi_score(gradkin.kernel_matrix(kernel, x), order=order))
    widths = []
    for rank in (5, 20, 60):
        found = kernels.vendi_score_nystrom(jax.random.key(1), kernel, x, rank=rank, order=order)
        slack = 2e-3 * exact if order < 1 else 1e-4 * exact
        assert found.lower - slack <= exact <= found.upper + slack
        assert found.lower <= found.score <= found.upper
        widths.append(float(found.upper - found.lower))
    assert widths[0] > widths[1] > widths[2]
    assert widths[2] < 1e-2 * exact or order < 1
    np.testing.assert_allclose(found.score, exact, rtol=1e-3 if order >= 1 else 2e-2)
    np.testing.assert_allclose(found.captured, 1, atol=1e-4)


def test_nystrom_bounds_are_attained():
    """Nothing found of n = 4 points without similarity but one: the two ends by hand."""
    x = jnp.arange(4.0)[:, None] * 100
    found = kernels.vendi_score_nystrom(jax.random.key(0), kernels.Gaussian(1.0), x, rank=1)
    np.testing.assert_allclose(found.captured, 0.25, rtol=1e-5)
    np.testing.assert_allclose([found.score, found.lower, found.upper], [1, 1, 4], rtol=1e-5)


def test_nystrom_weights_and_blocks(clusters):
    x, kernel = clusters
    p = jnp.linspace(1, 2, 60) / jnp.linspace(1, 2, 60).sum()
    exact = kernels.vendi_score(gradkin.kernel_matrix(kernel, x), weights=p)
    options = {"rank": 50, "weights": p}
    whole = kernels.vendi_score_nystrom(jax.random.key(1), kernel, x, **options)
    blocked = kernels.vendi_score_nystrom(jax.random.key(1), kernel, x, **options, block=7)
    assert whole.lower < exact < whole.upper
    np.testing.assert_allclose(whole.score, exact, rtol=5e-2)
    np.testing.assert_allclose(blocked.score, whole.score, rtol=1e-4)


def test_nystrom_sharded(clusters, mesh):
    x, kernel = clusters
    x = x[:56]
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    found = [
        kernels.vendi_score_nystrom(jax.random.key(1), kernel, points, rank=20).score
        for points in (x, split)
    ]
    np.testing.assert_allclose(*found, rtol=1e-4)


@pytest.mark.parametrize("order", [1.0, 3.0])
def test_slq_covers_the_exact_score(clusters, order):
    x, kernel = clusters
    K = gradkin.kernel_matrix(kernel, x)
    exact = float(kernels.vendi_score(K, order=order))
    found = jax.vmap(
        lambda key: kernels.vendi_score_slq(key, K, order=order, num_probes=8, num_matvecs=20)
    )(jax.random.split(jax.random.key(2), 60))
    z = (found.score - exact) / found.standard_error
    assert np.mean(np.abs(z) < 2.5) >= 0.9
    np.testing.assert_allclose(found.score.mean(), exact, rtol=0.02)
    np.testing.assert_allclose(
        np.sqrt(np.mean(found.standard_error**2)), found.score.std(), rtol=0.35
    )


def test_slq_of_order_two_leaves_nothing_to_chance(clusters):
    x, kernel = clusters
    K = gradkin.kernel_matrix(kernel, x)
    found = kernels.vendi_score_slq(jax.random.key(0), K, order=2.0, num_matvecs=20)
    np.testing.assert_allclose(found.score, kernels.vendi_score(K, order=2), rtol=1e-4)
    assert found.standard_error < 1e-3


@pytest.mark.parametrize("weighted", [False, True])
def test_slq_leaves_masked_points_out(clusters, weighted):
    x, kernel = clusters
    K = gradkin.kernel_matrix(kernel, x, mask=jnp.arange(60) % 3 > 0)
    options = {"order": 2.0, "weights": jnp.arange(60.0) / 1770 if weighted else None}
    found = kernels.vendi_score_slq(jax.random.key(0), K, num_matvecs=20, **options)
    np.testing.assert_allclose(found.score, kernels.vendi_score(K, **options), rtol=1e-4)


def test_slq_where_krylov_ends_early():
    """All points alike, or all apart: one product says everything."""
    for K, expected in ((jnp.ones((16, 16)), 1), (jnp.eye(16), 16)):
        found = kernels.vendi_score_slq(jax.random.key(0), K, num_matvecs=8, num_probes=64)
        assert np.isfinite(found.standard_error)
        assert abs(found.score - expected) <= 3 * found.standard_error + 1e-4 * expected


def test_slq_of_an_array_with_weights(clusters):
    x, kernel = clusters
    K = gradkin.kernel_matrix(kernel, x)
    p = jnp.linspace(1, 2, 60) / jnp.linspace(1, 2, 60).sum()
    options = {"weights": p, "num_probes": 8, "num_matvecs": 20}
    found = kernels.vendi_score_slq(jax.random.key(3), K.materialize(), **options)
    lazy = kernels.vendi_score_slq(jax.random.key(3), K, **options)
    np.testing.assert_allclose(found.score, lazy.score, rtol=1e-3)
    assert abs(found.score - kernels.vendi_score(K, weights=p)) < 4 * found.standard_error


def test_standard_error_of_subsamples_is_that_of_samples():
    """Against the spread over fresh samples, which a user does not have."""
    draw = lambda key: jax.random.normal(key, (300, 3)) * jnp.array([[1.0, 0.6, 0.3]])
    keys = jax.random.split(jax.random.key(4), 200)
    scores = jax.vmap(lambda key: kernels.vendi_score_features(draw(key)))(keys)
    found = jax.vmap(
        lambda key: kernels.subsampled_score(
            key, kernels.vendi_score_features, draw(key), size=100, num_subsamples=50
        )
    )(keys[:20])
    np.testing.assert_allclose(found.standard_error.mean(), scores.std(), rtol=0.2)
    assert np.all(found.rarefied_error < found.standard_error)


def test_rarefied_score_of_equal_points_and_of_a_matrix():
    K = jnp.ones((10, 10))
    found = kernels.subsampled_score(
        jax.random.key(0),
        lambda i: kernels.vendi_score(K[i][:, i]),
        jnp.arange(10),
        size=4,
        num_subsamples=3,
    )
    np.testing.assert_allclose(found.rarefied, 1, rtol=1e-6)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rank": 0}, "rank in"),
        ({"rank": 7}, "rank in"),
        ({"rank": 2, "order": -1.0}, "order >= 0"),
        ({"rank": 2, "weights": np.ones(6)}, "sum to 1"),
        ({"rank": 2, "block": 0}, "block > 0"),
    ],
)
def test_bad_nystrom(options, match):
    with pytest.raises(ValueError, match=match):
        kernels.vendi_score_nystrom(
            jax.random.key(0), kernels.Gaussian(1.0), jnp.ones((6, 2)), **options
        )


def test_nystrom_refuses_kernels_that_are_not_similarities():
    with pytest.raises(ValueError, match=r"kernel\(x, x\) = 1"):
        kernels.vendi_score_nystrom(
            jax.random.key(0), kernels.Linear(), 2 * jnp.ones((6, 2)), rank=2
        )


@pytest.mark.parametrize(
    ("K", "options", "match"),
    [
        (np.ones((2, 3)), {}, "square"),
        (np.eye(4), {"order": 0.0}, "order > 0"),
        (np.eye(4), {"order": math.inf}, "finite order"),
        (np.eye(4), {"num_matvecs": 5}, "num_matvecs"),
        (np.eye(4), {"num_matvecs": 2, "num_probes": 1}, "num_probes"),
        (np.eye(4), {"num_matvecs": 2, "weights": np.ones(4)}, "sum to 1"),
    ],
)
def test_bad_slq(K, options, match):
    with pytest.raises(ValueError, match=match):
        kernels.vendi_score_slq(jax.random.key(0), K, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"size": 1}, "size in"), ({"size": 6}, "size in"), ({"size": 3, "num_subsamples": 1}, "2")],
)
def test_bad_subsamples(options, match):
    with pytest.raises(ValueError, match=match):
        kernels.subsampled_score(jax.random.key(0), jnp.sum, jnp.ones((6, 2)), **options)
