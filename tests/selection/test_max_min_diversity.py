"""Farthest-first traversal: its definition in NumPy, brute force, its guarantee, bad input."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import selection

jitted = jax.jit(selection.farthest_first, static_argnames=("k", "metric"))


def distance_matrix(x, metric):
    x = np.asarray(x, np.float64)
    if metric == "euclidean":
        return np.linalg.norm(x[:, None] - x[None], axis=-1)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return 1 - x @ x.T


def by_definition(D, k):
    """The traversal on a written distance matrix."""
    D = D + np.diag(np.full(len(D), np.inf))
    chosen = [int(np.argmax(D.min(axis=1)))]
    while len(chosen) < k:
        scores = D[chosen].min(axis=0)
        scores[chosen] = -np.inf
        chosen.append(int(np.argmax(scores)))
    return chosen


def untied(rng, n, d, metric):
    """Points of which the two most isolated are not each other's nearest."""
    while True:
        x = rng.normal(size=(n, d)).astype(np.float32)
        D = distance_matrix(x, metric) + np.diag(np.full(n, np.inf))
        top = np.sort(D.min(axis=1))[-2:]
        if top[1] - top[0] > 1e-3:
            return x


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_follows_the_definition_eagerly_jitted_and_mapped(metric):
    rng = np.random.default_rng(0)
    x = np.stack([untied(rng, 12, 5, metric) for _ in range(6)])
    run = functools.partial(selection.farthest_first, k=7, metric=metric)
    found = jax.jit(jax.vmap(run))(x)
    expected = [by_definition(distance_matrix(points, metric), 7) for points in x]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(run(x[0]), expected[0])
    # The beginning of a longer choice is the shorter one.
    np.testing.assert_array_equal(jitted(x[0], k=3, metric=metric), expected[0][:3])


def test_guarantees_of_the_greedy_choice():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 9, 3)).astype(np.float32)
    subsets = np.array(list(itertools.combinations(range(9), 4)))
    for metric, share in (("euclidean", 0.5), ("cosine", 0.25)):
        run = functools.partial(selection.farthest_first, k=4, metric=metric)
        chosen = np.asarray(jax.jit(jax.vmap(run))(x))
        for points, kept in zip(x, chosen):
            D = distance_matrix(points, metric) + np.diag(np.full(9, np.inf))
            best = max(D[np.ix_(s, s)].min() for s in subsets)
            value = D[np.ix_(kept, kept)].min()
            assert value >= share * best - 1e-5
    value = selection.max_min_distance(points, kept)
    found = distance_matrix(points, "cosine") + np.diag(np.full(9, np.inf))
    np.testing.assert_allclose(value, found[np.ix_(kept, kept)].min(), rtol=1e-4)


def test_distinct_directions_come_before_copies():
    x = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
    x *= np.arange(1, 13, dtype=np.float32)[:, None]
    chosen = np.asarray(jitted(x, k=12))
    assert set(chosen[:4] // 3) == {0, 1, 2, 3}
    assert sorted(chosen) == list(range(12))  # nothing twice, though all distances are then zero
    assert float(selection.max_min_distance(x, chosen[:4])) == pytest.approx(1)


def test_invariances(key):
    x = untied(np.random.default_rng(2), 16, 6, "cosine")
    base = np.asarray(jitted(x, k=5))
    scale = jax.random.uniform(key, (16, 1), minval=0.1, maxval=9.0)
    np.testing.assert_array_equal(jitted(x * scale, k=5), base)
    order = np.random.default_rng(3).permutation(16)
    np.testing.assert_array_equal(order[np.asarray(jitted(x[order], k=5))], base)
    np.testing.assert_array_equal(jitted(x.reshape(16, 2, 3), k=5), base)
    moved = jitted(x + 3, k=5, metric="euclidean")
    np.testing.assert_array_equal(moved, jitted(x, k=5, metric="euclidean"))
    half = jnp.asarray(x, jnp.bfloat16)
    np.testing.assert_array_equal(jitted(half, k=5), jitted(half.astype(jnp.float32), k=5))


def test_masked_points_are_neither_chosen_nor_compared():
    x = untied(np.random.default_rng(4), 10, 4, "cosine")
    mask = np.ones(14, bool)
    mask[[0, 5, 6, 13]] = False
    padded = np.full((14, 4), np.nan, np.float32)
    padded[mask] = x
    chosen = selection.farthest_first(padded, 6, mask=mask)
    np.testing.assert_array_equal(np.flatnonzero(mask)[np.asarray(jitted(x, k=6))], chosen)
    short = np.asarray(jitted(padded, k=14, mask=mask))
    np.testing.assert_array_equal(short[:6], chosen)
    assert set(short[:10]) == set(np.flatnonzero(mask))
    np.testing.assert_array_equal(short[10:], -1)
    with pytest.raises(ValueError, match="the 10 points, got k=11"):
        selection.farthest_first(padded, 11, mask=mask)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_sharded(mesh, metric):
    x = untied(np.random.default_rng(5), 32, 6, metric)
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    found = selection.farthest_first(split, 9, metric=metric)
    np.testing.assert_array_equal(found, jitted(x, k=9, metric=metric))


def test_single_points_and_zeros_under_jit():
    x = np.array([[1.0, 0.0]], np.float32)
    assert jitted(x, k=1).tolist() == [0]
    assert float(selection.max_min_distance(x, np.array([0]))) == np.inf
    # A zero point has cosine 0 with all others.
    x = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.1]], np.float32)
    assert jitted(x, k=2)[0] == 1


def test_bad_input():
    x = np.eye(3, dtype=np.float32)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k from 1 to the 3 points, got k={k}"):
            selection.farthest_first(x, k)
    with pytest.raises(ValueError, match="metric"):
        selection.farthest_first(x, 2, metric="dot")
    with pytest.raises(ValueError, match="other than zero"):
        selection.farthest_first(x * np.array([[1.0], [0.0], [1.0]], np.float32), 2)
    with pytest.raises(ValueError, match="finite"):
        selection.farthest_first(np.where(x == 1, np.nan, 0), 2)
    with pytest.raises(ValueError, match="mask"):
        selection.farthest_first(x, 2, mask=np.ones(2, bool))
    with pytest.raises(ValueError, match="at least one point"):
        selection.farthest_first(np.zeros((0, 3)), 1)
    with pytest.raises(ValueError, match="metric"):
        selection.max_min_distance(x, np.array([0, 1]), metric="dot")
