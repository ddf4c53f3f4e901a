"""Correlations of units, their matchings, sparse maps between them, and their clusters."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import curvature
from tests.matrices.models.model import normal

N, S = 64, 6
MIX = normal(9, S, S)
X = normal(0, N, S)
Y = X @ MIX + normal(1, N, S, scale=0.5)
correlate = jax.jit(lambda x, y: curvature.activation_moments(x, y).correlations())
information = jax.jit(functools.partial(curvature.mutual_information, num_bins=4))


def test_correlations_are_numpys():
    found = correlate(X, Y)
    wanted = np.corrcoef(np.asarray(X, np.float64).T, np.asarray(Y, np.float64).T)
    np.testing.assert_allclose(found.within_a, wanted[:S, :S], atol=3e-6)
    np.testing.assert_allclose(found.within_b, wanted[S:, S:], atol=3e-6)
    np.testing.assert_allclose(found.between, wanted[:S, S:], atol=3e-6)
    assert np.linalg.eigvalsh(found.within_a)[0] > -1e-5
    np.testing.assert_allclose(jnp.diagonal(found.within_a), 1, rtol=1e-6)


def test_invariant_to_scale_and_shift_and_odd_in_signs():
    scale = jnp.array([1.0, 3.0, 0.01, -1.0, 7.0, -2.0])
    shifted = X * scale[None] + 100 * jnp.abs(scale)[None]
    found = correlate(shifted, Y).between
    np.testing.assert_allclose(found, jnp.sign(scale)[:, None] * correlate(X, Y).between, atol=1e-4)


def test_streamed_in_any_order_equals_one_shot(mesh):
    parts = [curvature.activation_moments(X[i:j], Y[i:j]) for i, j in ((0, 8), (8, 40), (40, N))]
    whole = correlate(X, Y)
    left = parts[0].merge(parts[1]).merge(parts[2])
    right = parts[0].merge(parts[1].merge(parts[2]))
    assert left.num_samples == N
    for merged in (left, right):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged.correlations(), whole
        )
    split = jax.device_put((X, Y), NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(correlate(*split).between, whole.between, atol=1e-6)


def test_more_samples_than_an_int32_counts():
    part = curvature.activation_moments(X, Y)
    many = part._replace(num_samples=3 * 2**30)
    whole = many.merge(many)
    assert whole.num_samples == 3 * 2**31
    np.testing.assert_allclose(whole.mean_a, part.mean_a, rtol=1e-6)
    np.testing.assert_allclose(whole.correlations().between, correlate(X, Y).between, atol=1e-6)
    count = lambda n: part._replace(num_samples=jnp.asarray(n, np.int32))
    merge = jax.jit(lambda a, b: a.merge(b))
    at_limit = merge(count(2**30), count(2**30 - 1))
    np.testing.assert_allclose(at_limit.mean_a, part.mean_a, rtol=1e-6)
    beyond = merge(count(2**30), count(2**30))
    assert np.isnan([np.asarray(x).sum() for x in beyond[1:]]).all()


def test_large_means_do_not_cancel():
    far = X + 1000
    np.testing.assert_allclose(correlate(far, Y).between, correlate(X, Y).between, atol=1e-3)


def test_constant_units_are_dead():
    x = X.at[:, 2].set(0.1)
    found = correlate(x, Y)
    assert found.live_a.tolist() == [True, True, False, True, True, True]
    assert not np.any(found.between[2])
    assert not np.any(found.within_a[2])
    live = {"live_a": found.live_a, "live_b": found.live_b}
    for match in (curvature.semi_match, curvature.bipartite_match):
        result = match(found.between, **live)
        assert result.matched.tolist() == found.live_a.tolist()
        assert result.value[2] == 0
        np.testing.assert_allclose(result.mean(), result.value.sum() / 5, rtol=1e-6)
    both = curvature.bipartite_match(-jnp.ones((3, 3)), live_a=jnp.array([True, False, True]),
                                     live_b=jnp.array([True, True, False]))  # fmt: skip
    assert both.matched.tolist() == [True, False, True], "live pairs first, bad as they are"
    assert both.index[1] == 2


@pytest.mark.parametrize("solver", ["scipy", "optax"])
def test_matchings_against_brute_force(solver, key):
    c = jax.random.uniform(key, (5, 5), minval=-1)
    total = lambda p: sum(float(c[i, j]) for i, j in enumerate(p))
    best = max(itertools.permutations(range(5)), key=total)
    match = curvature.bipartite_match(c, solver=solver)
    assert match.index.tolist() == list(best)
    semi = curvature.semi_match(c)
    np.testing.assert_array_equal(semi.index, np.argmax(c, axis=1))
    assert np.all(semi.value >= match.value)
    distinct = jnp.eye(5)[jnp.array([3, 1, 4, 0, 2])] + 0.1 * c
    one_to_one = curvature.bipartite_match(distinct, solver=solver).value
    np.testing.assert_array_equal(one_to_one, curvature.semi_match(distinct).value)


def test_a_network_with_permuted_units_is_recovered():
    order = jnp.array([4, 2, 0, 5, 1, 3])
    found = curvature.bipartite_match(correlate(X, X[:, order]).between)
    np.testing.assert_array_equal(order[found.index], np.arange(S))
    np.testing.assert_allclose(found.mean(), 1, rtol=1e-5)


def test_mutual_information_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    found = information(X, Y)

    def bins(v):
        edges = np.linspace(v.min(), v.max(), 5)[1:-1]
        return np.digitize(v, edges)

    x, y = np.asarray(X), np.asarray(Y)
    wanted = [[metrics.mutual_info_score(bins(u), bins(v)) for v in y.T] for u in x.T]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(information(X, -X), information(X, X), atol=0.15)
    np.testing.assert_allclose(information(X, jnp.ones((N, S))), 0, atol=1e-6)


fit = jax.jit(functools.partial(curvature.sparse_mapping, num_steps=300))


@pytest.mark.parametrize("l1", [0.0, 0.02, 0.3])
def test_sparse_mapping_is_the_lasso(l1):
    linear = pytest.importorskip("sklearn.linear_model")
    standard = lambda v: (np.asarray(v, np.float64) - v.mean(0)) / v.std(0)
    x, y = standard(np.asarray(X)), standard(np.asarray(Y))
    found = fit(X, Y, l1=l1)
    model = linear.Lasso(alpha=l1, tol=1e-10) if l1 else linear.LinearRegression()
    wanted = model.fit(x, y).coef_
    np.testing.assert_allclose(found.weights, wanted, atol=2e-4)
    if l1:
        np.testing.assert_array_equal(np.asarray(found.weights) == 0, wanted == 0)
    residual = np.mean((y - x @ wanted.T) ** 2, axis=0) / 2
    np.testing.assert_allclose(found.losses(X, Y), residual, rtol=1e-3)


def test_sparse_mapping_of_permuted_units_is_the_permutation():
    order = jnp.array([4, 2, 0, 5, 1, 3])
    found = fit(X, X[:, order], l1=0.01).weights
    np.testing.assert_allclose(found, 0.99 * jax.nn.one_hot(order, S), atol=0.03)


def test_sparse_mapping_vanishes_at_the_largest_correlation():
    largest = jnp.abs(correlate(X, Y).between).max()
    assert not np.any(fit(X, Y, l1=1.001 * largest).weights)
    assert np.any(fit(X, Y, l1=0.98 * largest).weights)
    dead = fit(X.at[:, 0].set(1.0), Y.at[:, 1].set(2.0), l1=0.0)
    assert not np.any(dead.weights[:, 0])
    assert not np.any(dead.weights[1])
    assert np.all(np.isfinite(dead.losses(X, Y)))


BLOCKS = np.repeat([0, 1, 2], [2, 4, 3])
AFFINITY = jnp.asarray((BLOCKS[:, None] == BLOCKS) * 0.9 + 0.1 * np.eye(9), jnp.float32)
spectral = jax.jit(functools.partial(curvature.spectral_clusters, num_clusters=3))


def same_partition(labels, wanted):
    labels, wanted = np.asarray(labels), np.asarray(wanted)
    return np.array_equal(labels[:, None] == labels, wanted[:, None] == wanted)


@pytest.mark.parametrize("kind", ["spectral", "linkage"])
def test_clusters_find_blocks(kind, key):
    order = np.random.default_rng(0).permutation(9)
    shuffled = AFFINITY[order][:, order] + 0.02 * jnp.ones((9, 9))
    if kind == "spectral":
        labels = spectral(key, shuffled)
    else:
        labels = jax.jit(curvature.linkage_clusters, static_argnums=1)(shuffled, 3)
    assert same_partition(labels, BLOCKS[order])


def test_clusters_leave_out_dead_units(key):
    dead = jnp.pad(AFFINITY, ((0, 1), (0, 1)))
    for labels in (spectral(key, dead), curvature.linkage_clusters(dead, 3)):
        assert labels[-1] == -1
        assert same_partition(labels[:-1], BLOCKS)
    counts = curvature.cluster_composition(labels, 5, 3)
    assert sorted(map(tuple, counts.tolist())) == [(0, 3), (2, 0), (3, 1)]


def test_clusters_of_both_networks_are_scikit_learns(key):
    cluster = pytest.importorskip("sklearn.cluster")
    factors = normal(5, N, 3)
    noisy = lambda seed, which: factors[:, which] + normal(seed, N, len(which), scale=0.6)
    of_a, of_b = np.array([0, 0, 1, 2, 2]), np.array([1, 1, 0, 2])
    affinity = curvature.joint_affinity(correlate(noisy(6, of_a), noisy(7, of_b)))
    np.testing.assert_allclose(affinity, affinity.T, atol=1e-6)
    ours = spectral(key, affinity)
    model = cluster.SpectralClustering(3, affinity="precomputed", random_state=0)
    assert same_partition(ours, model.fit_predict(np.asarray(affinity, np.float64)))
    assert same_partition(ours, np.concatenate([of_a, of_b]))
    counts = curvature.cluster_composition(ours, 5, 3)
    assert sorted(map(tuple, counts.tolist())) == [(1, 2), (2, 1), (2, 1)]
    positive = curvature.joint_affinity(correlate(X, -X), kind="positive")
    assert not np.any(jnp.diagonal(positive[:S, S:]))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_activations_and_affinities_that_are_not_finite(bad, key):
    found = np.asarray(information(X.at[3, 1].set(bad), Y))
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(np.delete(found, 1, 0), np.delete(information(X, Y), 1, 0))
    broken = AFFINITY.at[2, 3].set(bad)
    with pytest.raises(ValueError, match="finite affinities"):
        curvature.linkage_clusters(broken, 3)
    with pytest.raises(ValueError, match="finite affinities"):
        curvature.spectral_clusters(key, broken, 3)
    linkage = jax.jit(curvature.linkage_clusters, static_argnums=1)
    for labels in (linkage(broken, 3), spectral(key, broken)):
        assert set(labels.tolist()) == {-1}


def test_bad_input(key):
    with pytest.raises(ValueError, match="same samples"):
        curvature.activation_moments(X, Y[1:])
    with pytest.raises(ValueError, match="Expected samples"):
        curvature.activation_moments(X[:0], Y[:0])
    with pytest.raises(ValueError, match="same samples"):
        curvature.mutual_information(X, Y[1:])
    with pytest.raises(ValueError, match="num_bins"):
        curvature.mutual_information(X, Y, num_bins=1)
    with pytest.raises(ValueError, match="square"):
        curvature.bipartite_match(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="l1"):
        curvature.sparse_mapping(X, Y, l1=-1.0)
    with pytest.raises(ValueError, match="num_steps"):
        curvature.sparse_mapping(X, Y, l1=0.1, num_steps=0)
    with pytest.raises(ValueError, match="kind"):
        curvature.joint_affinity(correlate(X, Y), kind="signed")
    with pytest.raises(ValueError, match="square affinity"):
        curvature.spectral_clusters(key, X, 2)
    with pytest.raises(ValueError, match="num_clusters"):
        curvature.linkage_clusters(AFFINITY, 10)
    with pytest.raises(ValueError, match="num_a"):
        curvature.cluster_composition(jnp.zeros(3, int), 4, 2)
