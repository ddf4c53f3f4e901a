"""k-means-quality: scikit-learn's k-means, exact allocations, probabilities of draws, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import selection

allocate = jax.jit(selection.allocate, static_argnames=("budget", "allocation"))
draw = jax.jit(selection.sample_clusters)
cluster = jax.jit(selection.k_means, static_argnames=("k", "num_steps", "num_restarts"))
select = jax.jit(selection.k_means_quality, static_argnames=("budget", "num_clusters"))


def test_k_means_is_as_tight_as_scikit_learn(key):
    sklearn_cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(np.float32) + 100
    x += 4 * rng.normal(size=(6, 4)).astype(np.float32)[rng.integers(6, size=200)]
    found = cluster(key, x, 6)
    reference = sklearn_cluster.KMeans(6, n_init=5, random_state=0).fit(x)
    assert float(found.inertia) <= 1.05 * reference.inertia_
    labels = np.asarray(found.labels)
    np.testing.assert_array_equal(found.sizes, np.bincount(labels, minlength=6))
    for j, centroid in enumerate(found.centroids):
        np.testing.assert_allclose(centroid, x[labels == j].mean(0), rtol=1e-5)
    inertia = np.sum((x - np.asarray(found.centroids)[labels]) ** 2)
    np.testing.assert_allclose(found.inertia, inertia, rtol=1e-4)
    # One more step never loosens the clusters of the same start.
    loose, tight = (cluster(key, x, 6, num_steps=s, num_restarts=1).inertia for s in (1, 20))
    assert float(tight) <= float(loose)


def test_k_means_of_as_many_clusters_as_points(key):
    x = np.arange(5, dtype=np.float32)[:, None] * 10
    found = cluster(key, x, 5)
    assert float(found.inertia) == 0
    np.testing.assert_array_equal(found.sizes, 1)


@pytest.mark.parametrize("budget", [1, 7, 20, 50])
def test_allocations_sum_to_the_budget_within_the_sizes(budget):
    rng = np.random.default_rng(budget)
    for _ in range(30):
        sizes = rng.multinomial(50, rng.dirichlet(np.full(8, 0.7))).astype(np.int32)
        shares = np.asarray(allocate(sizes, budget))
        assert shares.sum() == budget
        assert np.all(shares <= sizes)
        assert np.all(np.abs(shares - budget * sizes / 50) < 1)
        equal = np.asarray(allocate(sizes, budget, allocation="equal"))
        assert equal.sum() == budget
        assert np.all(equal <= sizes)
        # No cluster that has more to give is more than one behind another.
        assert equal.max() - np.min(equal[equal < sizes], initial=equal.max()) <= 1


def test_equal_sizes_give_equal_shares():
    sizes = np.full(6, 9, np.int32)
    for allocation in ("proportional", "equal"):
        assert selection.allocate(sizes, 24, allocation=allocation).tolist() == [4] * 6
    huge = np.array([2**20, 2**20], np.int32)
    with pytest.raises(ValueError, match="enable x64"):
        selection.allocate(huge, 2**20)


def test_draws_follow_the_softmax_within_clusters(key):
    labels = jnp.array([0, 0, 0, 1, 1])
    logits = jnp.array([0.0, 1.0, 2.0, 0.5, 0.5])
    counts = jnp.array([1, 1])
    trials = 20_000
    run = jax.jit(jax.vmap(lambda k: selection.sample_clusters(k, labels, counts, logits=logits)))
    share = np.mean(run(jax.random.split(key, trials)), axis=0)
    expected = np.concatenate([np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum(), [0.5, 0.5]])
    deviation = np.sqrt(expected * (1 - expected) / trials)
    assert np.all(np.abs(share - expected) < 4 * deviation)


def test_draws_are_available_and_as_many_as_asked_or_there(key):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 40).astype(np.int32)
    available = rng.uniform(size=40) < 0.6
    counts = np.array([0, 3, 40, 1], np.int32)
    drawn = np.asarray(draw(key, labels, counts, available=available))
    assert not np.any(drawn & ~available)
    there = np.bincount(labels[available], minlength=4)
    expected = np.minimum(counts, there)
    np.testing.assert_array_equal(np.bincount(labels[drawn], minlength=4), expected)


def test_quality_beats_and_infinite_temperature_ignores_it(key):
    labels = np.arange(30, dtype=np.int32) % 3
    quality = np.where(np.arange(30) < 12, 50.0, 0.0).astype(np.float32)
    run = functools.partial(select, num_clusters=3)
    chosen = np.asarray(run(key, labels, quality, 12))
    np.testing.assert_array_equal(np.flatnonzero(chosen), np.arange(12))
    flat = run(key, labels, quality, 12, temperature=np.inf)
    np.testing.assert_array_equal(flat, run(key, labels, np.zeros(30, np.float32), 12))
    # One cluster: quality alone; as many as examples: each is a cluster.
    one = np.asarray(run(key, 0 * labels, quality, 9, num_clusters=1))
    assert one.sum() == 9
    assert np.all(np.flatnonzero(one) < 12)
    each = run(key, np.arange(30, dtype=np.int32), quality, 9, num_clusters=30)
    assert int(np.sum(each)) == 9


def test_jitted_and_sharded(key, mesh):
    labels = np.arange(64, dtype=np.int32) % 5
    quality = np.sin(np.arange(64)).astype(np.float32)
    run = functools.partial(select, num_clusters=5, budget=17)
    alone = selection.k_means_quality(key, labels, quality, 17, num_clusters=5)
    split = jax.device_put((labels, quality), NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_array_equal(run(key, labels, quality), alone)
    np.testing.assert_array_equal(run(key, *split), alone)


def test_bad_input(key):
    x = np.zeros((4, 2), np.float32)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k from 1 to the 4 points, got k={k}"):
            selection.k_means(key, x, k)
    with pytest.raises(ValueError, match="at least one point"):
        selection.k_means(key, np.zeros((0, 2)), 1)
    with pytest.raises(ValueError, match="finite"):
        selection.k_means(key, x * np.nan, 2)
    with pytest.raises(ValueError, match="num_steps"):
        selection.k_means(key, x, 2, num_steps=0)
    sizes = np.array([3, 2], np.int32)
    with pytest.raises(ValueError, match="budget <= the 5 examples, got budget=6"):
        selection.allocate(sizes, 6)
    with pytest.raises(ValueError, match="budget >= 1"):
        selection.allocate(sizes, 0)
    with pytest.raises(ValueError, match="allocation"):
        selection.allocate(sizes, 2, allocation="all")
    with pytest.raises(ValueError, match="sizes"):
        selection.allocate(-sizes, 2)
    labels = np.array([0, 1, 2], np.int32)
    with pytest.raises(ValueError, match=r"labels in 0, ..., 1, got 0 to 2"):
        selection.sample_clusters(key, labels, sizes)
    with pytest.raises(ValueError, match="logits without NaN"):
        selection.sample_clusters(key, labels % 2, sizes, logits=np.full(3, np.nan, np.float32))
    with pytest.raises(ValueError, match="logits of shape"):
        selection.sample_clusters(key, labels % 2, sizes, logits=np.zeros(2, np.float32))
    quality = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="temperature"):
        selection.k_means_quality(key, labels, quality, 2, num_clusters=3, temperature=0.0)
