"""Measures against human judgments: scipy, scikit-learn and plain designs as references."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gradkin import similarity


@pytest.fixture(scope="module")
def matrices():
    z = np.random.default_rng(0).normal(size=(2, 12, 12))
    return tuple(jnp.asarray(m + m.T, jnp.float32) for m in z)


def upper(matrix, n=None):
    return np.asarray(matrix, np.float64)[np.triu_indices(n or len(matrix), 1)]


def pearson(x, y) -> float:
    found: Any = stats.pearsonr(x, y)
    return float(found.statistic)


def test_correlation_against_scipy(matrices):
    s, t = matrices
    found = jax.jit(similarity.similarity_correlation)(s, t)
    np.testing.assert_allclose(found, pearson(upper(s), upper(t)), rtol=1e-5)
    some = jnp.arange(12) < 8
    found = similarity.similarity_correlation(s, t, stimuli=some)
    expected = pearson(upper(s[:8, :8]), upper(t[:8, :8]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_correlation_ignores_scale_and_diagonal(matrices):
    s, _ = matrices
    r = similarity.similarity_correlation
    np.testing.assert_allclose(r(s, 3 * s + 100 * jnp.eye(12) - 2), 1, rtol=1e-5)
    np.testing.assert_allclose(r(s, 1 - s), -1, rtol=1e-5)
    assert np.isnan(r(s, jnp.ones((12, 12))))
    np.testing.assert_allclose(
        r(s, s.at[jnp.arange(12), jnp.arange(12)].set(jnp.nan)), 1, rtol=1e-5
    )
    assert np.isnan(r(s, s.at[0, 1].set(jnp.nan).at[1, 0].set(jnp.nan)))
    np.testing.assert_allclose(jax.vmap(r)(s[None], s[None]), [1], rtol=1e-5)


def test_mantel(matrices, key):
    s, t = matrices
    test = jax.jit(similarity.mantel_test, static_argnames="num_permutations")
    same = test(key, s, s, num_permutations=99)
    np.testing.assert_allclose(same.p_value, 0.01, rtol=1e-5)
    other = test(key, s, t, num_permutations=99)
    np.testing.assert_allclose(other.correlation, pearson(upper(s), upper(t)), rtol=1e-5)
    assert 0.05 < other.p_value < 0.999
    opposed = test(key, s, -s, num_permutations=99)
    np.testing.assert_allclose(opposed.p_value, 1, rtol=1e-5)
    assert np.isnan(test(key, jnp.ones((12, 12)), s, num_permutations=99).p_value)


def test_mantel_counts_ties(key):
    """Of four stimuli one permutation in 24 is the identity, and reaches what it does."""
    z = np.random.default_rng(4).normal(size=(4, 2)).astype(np.float32)
    judged = jnp.asarray(z @ z.T)
    predicted = judged + 0.1 * jnp.asarray(np.abs(z[:, None] - z[None]).sum(-1))
    found = similarity.mantel_test(key, predicted, judged)
    np.testing.assert_allclose(found.p_value, 1 / 24, atol=0.02)
    for shift in (0, 10):
        found = similarity.mantel_test(key, predicted + shift, judged - shift)
        np.testing.assert_allclose(found.p_value, 1 / 24, atol=0.02)


def test_reliability_of_a_known_model(key):
    """Truth of variance 1, noise of variance 4, 12 raters: reliability 1 / (1 + 4 / 12)."""
    keys = jax.random.split(key, 3)
    truth = jax.random.normal(keys[0], (1, 4000))
    ratings = truth + 2 * jax.random.normal(keys[1], (12, 4000))
    found = jax.jit(similarity.split_half_reliability)(keys[2], ratings)
    np.testing.assert_allclose(found, 0.75, atol=0.02)
    reached = np.corrcoef(truth[0], ratings.mean(0))[0, 1]
    np.testing.assert_allclose(similarity.noise_ceiling(found), reached, atol=0.02)
    np.testing.assert_allclose(similarity.noise_ceiling(0.909), 0.953, atol=5e-4)
    assert similarity.noise_ceiling(-0.1) == 0


def test_reliability_of_splits_that_oppose(key):
    """Of the three ways to split four raters one correlates by -1; alone it has no bound."""
    x, y, z = jax.random.normal(key, (3, 6))
    ratings = jnp.stack([x, y, z, -1.5 * (x + y) - z])
    found = similarity.split_half_reliability(key, ratings)
    assert -100 < found < 1
    opposed = similarity.split_half_reliability(key, jnp.stack([x, -x]))
    assert opposed < -1e6
    assert similarity.noise_ceiling(opposed) == 0


def test_tags_as_sets():
    tags = np.random.default_rng(1).integers(0, 2, (6, 10)).astype(bool)
    tags[:, 0] = True
    both = (tags[:, None] & tags[None]).sum(-1)
    either = (tags[:, None] | tags[None]).sum(-1)
    found = similarity.tag_similarity(jnp.asarray(tags, jnp.float32))
    np.testing.assert_allclose(found, both / either, rtol=1e-6)
    apart = similarity.tag_similarity(jnp.eye(3))
    np.testing.assert_array_equal(apart, np.eye(3))


def test_tags_by_frequency_against_scikit_learn():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    counts = np.random.default_rng(2).poisson(1.0, (7, 9)) + np.eye(7, 9, dtype=int)
    vectors = text.TfidfTransformer().fit_transform(counts).toarray()
    found = similarity.tag_similarity(jnp.asarray(counts, jnp.float32), mode="tfidf")
    np.testing.assert_allclose(found, vectors @ vectors.T, rtol=1e-5)


def test_tags_by_embeddings(key):
    embeddings = jax.random.normal(key, (9, 4))
    tags = jnp.asarray(np.random.default_rng(2).poisson(1.0, (7, 9)) + np.eye(7, 9), jnp.float32)
    found = similarity.tag_similarity(tags, mode="embedding", embeddings=embeddings)
    means = np.asarray(tags / tags.sum(1, keepdims=True)) @ np.asarray(embeddings)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(found, means @ means.T, rtol=1e-4, atol=1e-6)
    scaled = similarity.tag_similarity(3 * tags, mode="embedding", embeddings=embeddings)
    np.testing.assert_allclose(scaled, found, rtol=1e-5, atol=1e-6)


def test_a_stimulus_without_tags_under_jit_is_like_none():
    tags = jnp.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    for mode in ("jaccard", "tfidf"):
        found = jax.jit(lambda t, mode=mode: similarity.tag_similarity(t, mode=mode))(tags)
        np.testing.assert_array_equal(found[1], 0)
        np.testing.assert_allclose(found[0, 0], 1, rtol=1e-6)


def test_stacked_features():
    x = np.random.default_rng(3).normal(5, 2, (20, 3)).astype(np.float32)
    stacked = similarity.stack_features(jnp.asarray(x), jnp.full((20, 2), 7.3))
    np.testing.assert_allclose(stacked[:, :3], np.asarray(stats.zscore(x)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stacked[:, 3:], 0)
    units = similarity.stack_features(jnp.array([[1e-4], [3e-4]]), jnp.array([[1e3], [2e3]]))
    np.testing.assert_allclose(units, [[-1, -1], [1, 1]], rtol=1e-5)


fit = jax.jit(similarity.fit_reweighting)


def test_reweighting_equals_the_plain_design(matrices, key):
    judged, _ = matrices
    z = jax.random.normal(key, (12, 4)) + 0.5
    fitted = fit(z, judged, ridge=2.0)
    i, j = np.triu_indices(12, 1)
    design = np.asarray(z, np.float64)[i] * np.asarray(z, np.float64)[j]
    target, mean = upper(judged), design.mean(0)
    centered = design - mean
    expected = np.linalg.solve(
        centered.T @ centered + 2 * np.eye(4), centered.T @ (target - target.mean())
    )
    np.testing.assert_allclose(fitted.weights, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        fitted.intercept, target.mean() - mean @ expected, rtol=1e-3, atol=1e-5
    )
    predicted = upper(similarity.reweighted_similarity(fitted, z))
    np.testing.assert_allclose(
        predicted, design @ expected + fitted.intercept, rtol=1e-3, atol=1e-4
    )


def test_reweighting_of_some_stimuli_is_that_of_a_smaller_matrix(matrices, key):
    judged, _ = matrices
    z = jax.random.normal(key, (12, 4))
    some = similarity.fit_reweighting(z, judged, ridge=1.0, stimuli=jnp.arange(12) < 9)
    small = similarity.fit_reweighting(z[:9], judged[:9, :9], ridge=1.0)
    missing = similarity.fit_reweighting(
        z.at[9:].set(jnp.nan),
        judged.at[9:].set(jnp.nan).at[:, 9:].set(jnp.nan),
        ridge=1.0,
        stimuli=jnp.arange(12) < 9,
    )
    jax.tree.map(np.testing.assert_array_equal, missing, some)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), some, small)


def test_reweighting_limits(matrices, key):
    judged, _ = matrices
    z = jax.random.normal(key, (12, 4))
    fitted = fit(z, judged + 10 * jnp.eye(12), ridge=1e9)
    np.testing.assert_allclose(fitted.weights, 0, atol=1e-6)
    np.testing.assert_allclose(fitted.intercept, upper(judged).mean(), atol=1e-4)


def test_cross_validation_leaks_no_stimulus(key):
    """Judgments of pure noise cannot be predicted on stimuli that were held out."""
    keys = jax.random.split(key, 3)
    noise = jax.random.normal(keys[0], (60, 60))
    z = jax.random.normal(keys[1], (60, 20))
    found = jax.jit(similarity.cross_validate_reweighting, static_argnames="num_folds")(
        keys[2], z, noise + noise.T, ridge=1.0, num_folds=3
    )
    assert found.reweighted.shape == found.unweighted.shape == (3,)
    assert abs(found.reweighted.mean()) < 0.12
    inside = similarity.similarity_correlation(
        similarity.reweighted_similarity(fit(z, noise + noise.T, ridge=1.0), z), noise + noise.T
    )
    assert inside > 0.05  # the same weights look good on the pairs they were fitted to


def test_two_alternatives():
    a, b = jnp.array([1.0, 1.0, 1.0, 1.0]), jnp.array([0.0, 2.0, 1.0, 0.5])
    found = similarity.two_alternative_agreement(a, b, jnp.array([1.0, 0.25, 0.9, 0.4]))
    np.testing.assert_allclose(found.score, (1 + 0.75 + 0.5 + 0.4) / 4, rtol=1e-6)
    np.testing.assert_allclose(found.ceiling, (1 + 0.75 + 0.9 + 0.6) / 4, rtol=1e-6)
    swapped = similarity.two_alternative_agreement(b, a, 1 - jnp.array([1.0, 0.25, 0.9, 0.4]))
    np.testing.assert_allclose(swapped.score, found.score, rtol=1e-6)
    for distances in ((a.at[0].set(jnp.nan), b), (a, b.at[0].set(jnp.nan))):
        assert np.isnan(similarity.two_alternative_agreement(*distances, a).score)


def test_bad_input(matrices, key):
    s, t = matrices
    r = similarity.similarity_correlation
    with pytest.raises(ValueError, match="n >= 3"):
        r(s[:2, :2], t[:2, :2])
    with pytest.raises(ValueError, match="n >= 3 stimuli, got shapes"):
        r(s[:4, :4], t)
    with pytest.raises(ValueError, match="judged to be symmetric"):
        r(s, t.at[0, 1].add(1.0))
    with pytest.raises(ValueError, match="at least 3 stimuli, got 2"):
        r(s, t, stimuli=jnp.arange(12) < 2)
    with pytest.raises(ValueError, match="stimuli of shape"):
        r(s, t, stimuli=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="num_permutations"):
        similarity.mantel_test(key, s, t, num_permutations=0)
    with pytest.raises(ValueError, match="at least 2 raters"):
        similarity.split_half_reliability(key, s[:1])
    with pytest.raises(ValueError, match="reliability <= 1"):
        similarity.noise_ceiling(1.2)
    with pytest.raises(ValueError, match="mode"):
        similarity.tag_similarity(jnp.eye(3), mode="cosine")
    with pytest.raises(ValueError, match=r"none at rows \[1\]"):
        similarity.tag_similarity(jnp.array([[1.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="tags >= 0"):
        similarity.tag_similarity(-jnp.eye(3))
    with pytest.raises(ValueError, match="embeddings with mode"):
        similarity.tag_similarity(jnp.eye(3), mode="embedding")
    with pytest.raises(ValueError, match="same stimuli"):
        similarity.stack_features(jnp.ones((3, 1)), jnp.ones((4, 1)))
    with pytest.raises(ValueError, match="ridge > 0"):
        similarity.fit_reweighting(s[:, :2], t, ridge=0.0)
    with pytest.raises(ValueError, match="same stimuli"):
        similarity.fit_reweighting(s[:5, :2], t, ridge=1.0)
    with pytest.raises(ValueError, match="at least 2 folds"):
        similarity.cross_validate_reweighting(key, s, t, ridge=1.0, num_folds=6)
    with pytest.raises(ValueError, match="one shape"):
        similarity.two_alternative_agreement(jnp.ones(2), jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match="preference_b"):
        similarity.two_alternative_agreement(jnp.ones(2), jnp.ones(2), jnp.array([0.5, 1.5]))
