"""Selection along several axes: its definition in NumPy, budgets, overlaps, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import selection

select = jax.jit(selection.select_by_axes, static_argnames=("budget", "both_ends", "fill"))


def draw(n=60, q=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, q)).astype(np.float32), rng.integers(1, 9, n).astype(np.int32)


def by_definition(scores, budget, lengths, fill):
    """One token deeper on all axes, again and again; then whole documents until one is too long."""
    short = np.flatnonzero(lengths <= (budget if fill else budget // scores.shape[1]))
    if len(short) < len(lengths):
        return set(short[list(by_definition(scores[short], budget, lengths[short], fill))])
    orders = np.argsort(-scores.T, axis=1, kind="stable")
    best = lambda c: [order[np.cumsum(lengths[order]) <= c] for order in orders]
    union = lambda c: np.unique(np.concatenate(best(c)))
    if not fill:
        return set(union(budget // len(orders)))
    depth = 0
    while depth < lengths.sum() and lengths[union(depth + 1)].sum() <= budget:
        depth += 1
    chosen = list(union(depth))
    if depth < lengths.sum():
        for axis in best(depth + 1):
            for document in sorted(set(axis) - set(chosen)):
                if lengths[chosen].sum() + lengths[document] > budget:
                    return set(chosen)
                chosen.append(document)
    return set(chosen)


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("counted", [True, False])
def test_follows_the_definition(fill, counted):
    for seed in range(6):
        scores, lengths = draw(seed=seed)
        given = lengths if counted else None
        counts = lengths if counted else np.ones_like(lengths)
        # Less than some documents, or than their part of it.
        for budget in (4, 25) if counted else (25,):
            found = select(scores, budget=budget, lengths=given, fill=fill)
            chosen = np.asarray(found.chosen)
            assert set(np.flatnonzero(chosen)) == by_definition(scores, budget, counts, fill)
            used = counts[chosen].sum()
            assert used <= budget
            if fill:
                # Nothing is left that would have fitted in any case.
                assert used > budget - counts[counts <= budget].max()
            np.testing.assert_array_equal(np.any(found.sets, axis=0), chosen)
            axis = np.asarray(found.axis)
            np.testing.assert_array_equal(axis >= 0, chosen)
            assert np.all(np.asarray(found.sets)[axis[chosen], np.flatnonzero(chosen)])


def test_documents_longer_than_the_budget_are_left_out():
    scores, lengths = np.array([[9.0], [1.0], [5.0]]), np.array([5, 2, 7])
    for fill in (True, False):
        found = select(scores, budget=4, lengths=lengths, fill=fill)
        assert found.chosen.tolist() == [False, True, False]
        assert found.axis.tolist() == [-1, 0, -1]
        assert found.sets.tolist() == [[False, True, False]]
    assert not np.any(select(scores, budget=4, lengths=lengths + 5, fill=True).chosen)


def test_without_lengths_the_budget_is_met():
    run = functools.partial(select, budget=25, lengths=None, fill=True)
    for seed in range(5):
        scores, _ = draw(seed=seed)
        assert int(run(scores).chosen.sum()) == 25
    assert int(select(scores, budget=60).chosen.sum()) == 60
    # Copies of one axis: its top.
    best = np.sort(np.argsort(-scores[:, 0])[:25])
    found = run(np.tile(scores[:, :1], 3))
    np.testing.assert_array_equal(np.flatnonzero(found.chosen), best)
    np.testing.assert_array_equal(found.axis[best], 0)
    np.testing.assert_array_equal(selection.overlap_matrix(found.sets), 1)


def test_no_axis_pays_for_the_duplicates_of_another():
    """The axes' order matters only to the last documents, of which not all fit."""
    for seed in range(4):
        scores, _ = draw(seed=seed)
        run = functools.partial(select, budget=25, lengths=None, fill=True)
        found, turned = run(scores), run(scores[:, ::-1])
        differ = np.asarray(found.chosen) != np.asarray(turned.chosen)
        assert np.sum(differ) <= 2 * (scores.shape[1] - 1)
        assert np.ptp(np.sum(found.sets, axis=1)) <= 1


def test_invariances(mesh):
    scores, lengths = draw(n=64, seed=2)
    run = functools.partial(select, budget=40)
    base = run(scores, lengths=lengths)
    chosen = np.asarray(base.chosen)
    np.testing.assert_array_equal(run(np.exp(scores) + 3, lengths=lengths).chosen, chosen)
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_array_equal(run(scores[order], lengths=lengths[order]).chosen, chosen[order])
    split = jax.device_put((scores, lengths), NamedSharding(mesh, PartitionSpec("data")))
    for one, other in zip(run(split[0], lengths=split[1]), base):
        np.testing.assert_array_equal(one, other)
    mapped = jax.vmap(lambda s: run(s, lengths=lengths))(jnp.stack([scores] * 2))
    np.testing.assert_array_equal(mapped.sets[1], base.sets)
    # Ties: the first documents.
    tied = run(np.zeros_like(scores), lengths=np.ones_like(lengths)).chosen
    np.testing.assert_array_equal(tied, np.arange(64) < 40)


def test_both_ends():
    scores, _ = draw(seed=3)
    found = select(scores, budget=16, both_ends=(2, 1), fill=False)
    both = np.concatenate([scores, -scores[:, [2, 1]]], axis=1)
    expected = select(both, budget=16, fill=False)
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one, other)
    assert found.sets.shape == (5, 60)
    np.testing.assert_array_equal(found.sets.sum(axis=1), 16 // 5)


def test_nan_is_lowest_at_both_ends_under_jit():
    scores, _ = draw(seed=4)
    spoiled = scores.copy()
    spoiled[7] = np.nan
    with pytest.raises(ValueError, match="without NaN"):
        selection.select_by_axes(spoiled, 5)
    assert not bool(select(spoiled, budget=59, both_ends=(0,)).chosen[7])


def test_independent_sets_overlap_by_chance():
    """Uncorrelated normal scores are independent: the overlap is f / (2 - f)."""
    n, q, share = 20_000, 5, 0.1
    scores = np.random.default_rng(0).normal(size=(n, q)).astype(np.float32)
    sets = select(scores, budget=int(q * share * n), fill=False).sets
    np.testing.assert_array_equal(sets.sum(axis=1), share * n)
    found = np.asarray(selection.overlap_matrix(sets))
    a, b = np.asarray(sets)[:2]
    np.testing.assert_allclose(found[0, 1], np.sum(a & b) / np.sum(a | b), rtol=1e-6)
    np.testing.assert_array_equal(np.diag(found), 1)
    pairs = found[np.triu_indices(q, 1)]
    # One pair's intersection is hypergeometric, the Jaccard index nearly linear in it.
    deviation = np.sqrt(n * share**2 * (1 - share) ** 2) / (share * n) / 2
    assert abs(pairs.mean() - share / (2 - share)) < 4 * deviation / np.sqrt(len(pairs))


def test_bad_input():
    scores, lengths = draw(n=6)
    run = selection.select_by_axes
    with pytest.raises(ValueError, match="scores to have 2 axes"):
        run(scores[:, 0], 2)
    with pytest.raises(ValueError, match="budget >= 1, got budget=0"):
        run(scores, 0)
    with pytest.raises(ValueError, match="budget <= the 6 of all documents, got budget=7"):
        run(scores, 7)
    with pytest.raises(ValueError, match=f"budget <= the {lengths.sum()} of all"):
        run(scores, 100, lengths=lengths)
    with pytest.raises(ValueError, match="budget >= the 3 rankings, got budget=2"):
        run(scores, 2, fill=False)
    with pytest.raises(ValueError, match=r"lengths to be integers of shape \(6,\)"):
        run(scores, 2, lengths=lengths[:5])
    with pytest.raises(ValueError, match="lengths > 0"):
        run(scores, 2, lengths=lengths - lengths)
    with pytest.raises(ValueError, match="enable x64"):
        run(scores, 2, lengths=np.full(6, 2**30, np.int32))
    for ends in ((3,), (-1,), (1, 1)):
        with pytest.raises(ValueError, match="both_ends to be different axes of 0, ..., 2"):
            run(scores, 2, both_ends=ends)
    with pytest.raises(ValueError, match="sets to have 2 axes"):
        selection.overlap_matrix(np.ones(3, bool))
