"""Trees of noisy counts: against exact sums, against dense algebra, and the mechanism itself."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from gradkin import kernels
from gradkin.kernels import PrivacyBudget, distance_trees

EXACT = PrivacyBudget(math.inf)
LEVELS = 7
N = 2 ** (LEVELS - 1)


def fit(key, x, budget=EXACT, *, levels=LEVELS, **options):
    return kernels.private_l1_distances(
        key, x, lower=0.0, upper=2.0, levels=levels, budget=budget, **options
    )


def draw(seed=0, n=60, d=2):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 2, (n, d)).astype(np.float32)


def sums(x, y, function=lambda t: t):
    distances = np.abs(x[None].astype(np.float64) - y[:, None].astype(np.float64))
    return function(distances).sum((1, 2))


QUERIES = draw(1, 5)


def test_without_noise_only_the_rounding_to_cells_is_left(key):
    x, y = draw(), np.concatenate([QUERIES, [[-3.0, 5.0]]]).astype(np.float32)
    got = fit(key, x).sum(y)
    # Half a cell per point and coordinate at the most.
    np.testing.assert_allclose(got, sums(x, y), atol=len(x) * 2 * (2 / N) / 2)
    snapped = ((np.floor(x / 2 * N) + 0.5) / N * 2).astype(np.float32)
    np.testing.assert_allclose(got, sums(snapped, y), rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_shells_are_too_large_by_at_most_their_factor(key, alpha):
    x, y = draw(), np.concatenate([QUERIES, [[-3.0, 5.0]]]).astype(np.float32)
    snapped = ((np.floor(x / 2 * N) + 0.5) / N * 2).astype(np.float32)
    exact, got = sums(snapped, y), np.asarray(fit(key, x).sum(y, alpha=alpha))
    # Points nearer than the innermost shell, thinner than a cell, count nothing.
    assert np.all(got >= exact - len(x) * 2 * (2 / N))
    assert np.all(got <= (1 + alpha) * exact * (1 + 1e-5))
    assert np.all(got > exact * (1 + alpha / 20))


@pytest.mark.parametrize("power", [0.5, 3.0])
def test_functions_of_distances(key, power):
    x, function = draw(), lambda t: t**power
    snapped = ((np.floor(x / 2 * N) + 0.5) / N * 2).astype(np.float32)
    exact, release = sums(snapped, QUERIES, function), fit(key, x)
    np.testing.assert_allclose(release.sum(QUERIES, function=function), exact, rtol=1e-5)
    shells = np.asarray(release.sum(QUERIES, alpha=0.1, function=function))
    assert np.all(shells <= 1.1**power * exact * (1 + 1e-5))
    assert np.all(shells > 0.97 * exact)
    same = release.sum(QUERIES, function=lambda t: t)
    np.testing.assert_allclose(same, release.sum(QUERIES), rtol=1e-5)


def ancestors(levels):
    """The matrix from leaves to all nodes, by level."""
    leaves = 2 ** (levels - 1)
    return [np.kron(np.eye(2**l), np.ones((1, leaves // 2**l))) for l in range(levels)]


def test_consistent_leaves_are_least_squares():
    matrices = ancestors(4)
    rng = np.random.default_rng(0)
    noisy = [rng.normal(size=(1, len(m))).astype(np.float32) for m in matrices]
    got = distance_trees.consistent_leaves(tuple(jnp.asarray(v) for v in noisy))
    wanted = np.linalg.lstsq(np.concatenate(matrices), np.concatenate(noisy, 1)[0], rcond=None)[0]
    np.testing.assert_allclose(got[0], wanted, rtol=1e-4, atol=1e-5)


def test_prefix_counts_use_one_node_per_level():
    levels = distance_trees.levels_above(jnp.arange(8, dtype=jnp.float32)[None])
    wanted = np.concatenate([[0], np.cumsum(np.arange(8))])
    np.testing.assert_array_equal(distance_trees.prefix_counts(levels)[0], wanted)
    # Ones in the tree instead of counts: how many nodes a border takes.
    ones = tuple(jnp.ones_like(level) for level in levels)
    got = distance_trees.prefix_counts(ones)[0]
    np.testing.assert_array_equal(got, [bin(i).count("1") for i in range(9)])


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("budget", [PrivacyBudget(1.0), PrivacyBudget(1.0, 1e-5)])
def test_noise_deviation_is_exact(key, alpha, budget):
    if budget.delta:
        pytest.importorskip("dp_accounting")
    x = draw(n=40, d=1)
    clean = fit(key, x, levels=5).sum(QUERIES[:, :1], alpha=alpha)
    releases = jax.vmap(lambda k: fit(k, x, budget, levels=5))(jax.random.split(key, 2000))
    noisy = jax.vmap(lambda release: release.sum(QUERIES[:, :1], alpha=alpha))(releases)
    said = fit(key, x, budget, levels=5).noise_std(QUERIES[:, :1], alpha=alpha)
    np.testing.assert_allclose(np.std(noisy, axis=0), said, rtol=0.08)
    np.testing.assert_allclose(np.mean(noisy, axis=0), clean, atol=5 * np.max(said) / 2000**0.5)


def test_least_squares_keep_less_noise_than_shells(key):
    release = fit(key, draw(d=1), PrivacyBudget(1.0))
    queries = jnp.linspace(0.0, 2.0, 9)[:, None]
    exact, shells = release.noise_std(queries), release.noise_std(queries, alpha=0.1)
    # Measured .37 against .88 to .99 of the range times the noise of a node, on average.
    assert 2 * np.mean(exact) < np.mean(shells)
    # In closed form: the inverse of least squares over a tree is diagonal in Haar's wavelets.
    sizes = 2.0 ** np.arange(1, LEVELS)
    variance = np.sum(sizes**2 / (sizes - 1)) / (16 * N) + N / (4 * (2 * N - 1))
    deviation = 2.0 * math.sqrt(2 * variance) * release.noise_scale
    np.testing.assert_allclose(exact[jnp.array([0, -1])], deviation, rtol=1e-4)
    assert np.all(exact <= deviation * (1 + 1e-5))


@pytest.mark.parametrize("relation", ["add_or_remove_one", "replace_special", "replace_one"])
def test_sensitivity_is_what_the_noise_is_scaled_to(key, relation):
    rng = np.random.default_rng(3)
    x, d = draw(n=20, d=3), 3
    moved = d * LEVELS
    for _ in range(5):
        other = x.copy()
        other[0] = rng.uniform(0, 2, d)
        mask = np.arange(20) > 0
        neighbour = fit(key, other) if relation == "replace_one" else fit(key, x, mask=mask)
        change = [np.asarray(a - b) for a, b in zip(fit(key, x).nodes, neighbour.nodes)]
        l1 = sum(np.abs(c).sum() for c in change)
        l2 = math.sqrt(sum((c**2).sum() for c in change))
        if relation == "replace_one":
            assert l1 <= 2 * moved
            assert l2 <= math.sqrt(2 * moved) * (1 + 1e-6)
        else:
            assert all(np.abs(c).sum() == d for c in change), "one unit per level and coordinate"
            assert l1 == moved
    factor = 2 if relation == "replace_one" else 1
    laplace = fit(key, x, PrivacyBudget(0.5, relation=relation))
    assert laplace.noise_scale == pytest.approx(factor * moved / 0.5)
    pytest.importorskip("dp_accounting")
    budget = PrivacyBudget(0.5, 1e-5, relation)
    wanted = math.sqrt(factor * moved) * budget.noise_multiplier
    assert fit(key, x, budget).noise_scale == pytest.approx(wanted)


def test_noise_audit(key):
    empty = np.zeros(4, bool)
    keys = jax.random.split(key, 2000)
    budget, x = PrivacyBudget(2.0), draw(n=4)
    nodes = jax.vmap(lambda k: fit(k, x, budget, mask=empty, levels=4).nodes)(keys)
    flat = np.concatenate([np.asarray(v).reshape(2000, -1) for v in nodes], axis=1)
    wanted = 2 * (2 * 4 / 2.0) ** 2
    np.testing.assert_allclose(flat.var(0), wanted, rtol=0.2)
    assert flat.var() == pytest.approx(wanted, rel=0.03)
    correlations = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlations).max() < 0.12, "nodes share noise"


def test_likelihood_ratios_stay_below_epsilon(key):
    # One coordinate, one level: the release is a noisy count, of 3 rows or of 2.
    epsilon, x, runs = 1.0, draw(n=3, d=1), 40_000
    keys = jax.random.split(key, 2 * runs)

    def counts(keys, mask):
        one = lambda k: fit(k, x, PrivacyBudget(epsilon), levels=1, mask=mask).nodes[0]
        return np.asarray(jax.vmap(one)(keys)).ravel()

    with_row = counts(keys[:runs], np.array([True, True, True]))
    without = counts(keys[runs:], np.array([True, True, False]))
    ratios = []
    for threshold in np.linspace(0, 5, 21):
        for one, other in ((with_row, without), (without, with_row)):
            for sign in (1, -1):
                hits = [np.sum(sign * v > sign * threshold) for v in (one, other)]
                low = binom.ppf(0.001, runs, hits[0] / runs) / runs
                high = binom.ppf(0.999, runs, hits[1] / runs) / runs
                assert low <= math.exp(epsilon) * high
                ratios.append(hits[0] / hits[1])
    # The bound is nearly met: the noise is not needlessly large.
    assert max(ratios) > 0.9 * math.exp(epsilon)


def test_l2_distances_by_embedding(key):
    x = np.random.default_rng(0).normal(size=(200, 10)).astype(np.float32)
    y = np.random.default_rng(1).normal(size=(4, 10)).astype(np.float32)
    release = kernels.private_l2_distances(key, x, max_norm=8.0, size=400, levels=10, budget=EXACT)
    exact = np.linalg.norm(x[None] - y[:, None], axis=2).sum(1)
    # Relative deviation sqrt((pi / 2 - 1) / 400) = .038 for one pair.
    np.testing.assert_allclose(release.sum(y), exact, rtol=0.1)
    assert release.noise_std(y).shape == (4,)
    private = kernels.private_l2_distances(
        key, x, max_norm=8.0, size=400, levels=10, budget=PrivacyBudget(5.0)
    )
    assert private.noise_scale == pytest.approx(400 * 10 / 5.0)


def test_classes(key):
    x = np.concatenate([draw(0, 40) / 4, draw(1, 20) / 4 + 1.5]).astype(np.float32)
    labels = np.repeat([0, 2], [40, 20])
    release = fit(key, x, labels=labels, num_classes=3)
    for label in (0, 2):
        part = fit(key, x, mask=labels == label).sum(QUERIES)
        np.testing.assert_allclose(release.sum(QUERIES)[:, label], part, rtol=1e-5)
    np.testing.assert_allclose(release.sum(QUERIES)[:, 1], 0, atol=1e-4)
    np.testing.assert_allclose(release.counts(), [40, 0, 20], atol=1e-3)
    assert float(fit(key, x).counts()) == pytest.approx(60)
    # Classes do not add to the noise: a row is in one of them.
    private = fit(key, x, PrivacyBudget(1.0), labels=labels, num_classes=3)
    assert private.noise_scale == fit(key, x, PrivacyBudget(1.0)).noise_scale
    # A class without rows is never the nearest.
    np.testing.assert_array_equal(release.classify(QUERIES), 2 * (QUERIES.sum(1) > 2))


def test_jit_vmap_and_shards(key, mesh):
    x, budget = draw(n=64), PrivacyBudget(1.0)
    wanted = fit(key, x, budget)
    jitted = jax.jit(lambda k, x: fit(k, x, budget, outside="clip"))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for got in (jitted(key, x), jitted(key, jax.device_put(x, rows))):
        jax.tree.map(np.testing.assert_array_equal, got.nodes, wanted.nodes)
    mapped = jax.vmap(lambda q: wanted.sum(q[None])[0])(jnp.asarray(QUERIES))
    np.testing.assert_allclose(mapped, wanted.sum(QUERIES), rtol=1e-5)


def test_rows_outside(key):
    x = np.concatenate([draw(n=10), [[2.5, 1.0]]]).astype(np.float32)
    clipped = fit(key, x, outside="clip")
    np.testing.assert_allclose(clipped.sum(QUERIES), fit(key, np.clip(x, 0, 2)).sum(QUERIES))
    dropped = fit(key, x, outside="drop")
    np.testing.assert_allclose(dropped.sum(QUERIES), fit(key, x[:10]).sum(QUERIES))
    # What jit cannot refuse it leaves out, by select.
    bad = jnp.asarray(x).at[10].set(jnp.nan)
    hidden = jax.jit(lambda x: fit(key, x, outside="clip").sum(QUERIES))(bad)
    np.testing.assert_allclose(hidden, fit(key, x[:10]).sum(QUERIES), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": np.full((2, 2), 3, np.float32)}, r"within \[lower, upper\], got 2 rows outside"),
        ({"x": np.full((2, 2), np.nan, np.float32)}, "finite, got 2 rows with NaN"),
        ({"x": np.zeros(3, np.float32)}, r"rows \[n, d\]"),
        ({"x": np.zeros((0, 2), np.float32)}, "at least one"),
        ({"lower": 2.0}, "lower < upper"),
        ({"upper": math.inf}, "finite lower < upper"),
        ({"upper": np.ones(3)}, r"upper to be a number or of shape \(2,\)"),
        ({"levels": 0}, "levels to be an integer from 1 to 26"),
        ({"outside": "ignore"}, "outside to be one of"),
        ({"labels": np.zeros(60, int)}, "num_classes >= 1 with labels"),
        ({"num_classes": 2}, "labels with num_classes=2"),
        ({"labels": np.full(60, 2), "num_classes": 2}, "below num_classes=2, got 60 rows"),
        ({"labels": np.zeros(3, int), "num_classes": 2}, "labels to be integers of shape"),
        ({"mask": np.zeros(60)}, "mask to be boolean"),
    ],
)
def test_bad_data(key, options, message):
    arguments = {"x": draw(), "lower": 0.0, "upper": 2.0, "levels": 4, "budget": EXACT} | options
    with pytest.raises(ValueError, match=message):
        kernels.private_l1_distances(key, arguments.pop("x"), **arguments)


def test_refusals(key):
    release = fit(key, draw())
    with pytest.raises(TypeError, match="x to be floating"):
        fit(key, np.ones((2, 2), int))
    with pytest.raises(ValueError, match="outside='clip' or 'drop' inside jit"):
        jax.jit(lambda x: fit(key, x).nodes)(draw())
    with pytest.raises(ValueError, match="alpha > 0"):
        release.sum(QUERIES, alpha=0.0)
    with pytest.raises(TypeError, match="alpha to be a number"):
        jax.jit(lambda a: release.sum(QUERIES, alpha=a))(0.1)
    with pytest.raises(ValueError, match=r"y of shape \[q, 2\]"):
        release.sum(QUERIES[0])
    with pytest.raises(ValueError, match="a release with labels"):
        release.classify(QUERIES)
    embedded = kernels.private_l2_distances(
        key, draw(), max_norm=3.0, size=2, levels=3, budget=EXACT
    )
    with pytest.raises(ValueError, match="no function of coordinates"):
        embedded.sum(QUERIES, function=jnp.sqrt)
    for option in ({"max_norm": 0.0}, {"size": 0}, {"width": -1.0}):
        options: Any = {"max_norm": 3.0, "size": 2, "levels": 3, "budget": EXACT} | option
        with pytest.raises(ValueError, match=f"{next(iter(option))} > 0"):
            kernels.private_l2_distances(key, draw(), **options)
    with pytest.raises(ValueError, match="max_norm=0.1, got 60 rows outside"):
        kernels.private_l2_distances(key, draw() + 1, max_norm=0.1, size=2, levels=3, budget=EXACT)
