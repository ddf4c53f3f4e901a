"""Regressors of scores: scikit-learn's ridge, invariances, bad input."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import selection

fit = jax.jit(selection.fit_scorers)
rng = np.random.default_rng(0)
FEATURES = (rng.normal(size=(64, 5)) + 3).astype(np.float32)
TARGETS = (FEATURES @ rng.normal(size=(5, 2)) + rng.normal(size=(64, 2))).astype(np.float32)


def test_scikit_learn_fits_the_same(mesh):
    linear_model = pytest.importorskip("sklearn.linear_model")
    found = fit(FEATURES, TARGETS, l2=3.0)
    ridge = linear_model.Ridge(alpha=3.0)
    reference = ridge.fit(FEATURES.astype(np.float64), TARGETS.astype(np.float64))
    np.testing.assert_allclose(found.weights.T, reference.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.intercept, reference.intercept_, rtol=1e-3)
    predicted = selection.predict_scores(found, FEATURES)
    np.testing.assert_allclose(predicted, reference.predict(FEATURES), rtol=1e-3, atol=1e-3)
    split = jax.device_put((FEATURES, TARGETS), NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(fit(*split, l2=3.0).weights, found.weights, rtol=1e-4, atol=1e-6)


def test_a_constant_moves_only_the_intercept():
    base, moved = fit(FEATURES, TARGETS), fit(FEATURES + 10, TARGETS - 4)
    np.testing.assert_allclose(moved.weights, base.weights, rtol=1e-3, atol=1e-5)
    predicted = selection.predict_scores(moved, FEATURES + 10)
    np.testing.assert_allclose(
        predicted, selection.predict_scores(base, FEATURES) - 4, rtol=1e-3, atol=1e-3
    )
    # What is penalized without end predicts the mean.
    flat = selection.predict_scores(fit(FEATURES, TARGETS, l2=1e12), FEATURES)
    np.testing.assert_allclose(flat, np.tile(TARGETS.mean(0), (64, 1)), rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "width", "scale", "l2"),
    [(200, 300, 300, 1.0), (50, 200, 1000, 1.0), (64, 16, 1, 1e-6), (500, 5, 5000, 1.0)],
)
def test_small_penalties_of_large_features(size, width, scale, l2):
    """Lost in ``X^T X`` of float32: more features than documents, copies, words of one class."""
    rng = np.random.default_rng(1)
    if width == 5:
        rows = np.eye(5)[rng.integers(0, 5, size + 20)]
    else:
        rows = rng.normal(size=(size + 20, width))
        rows[:, width // 2 :] = rows[:, : width // 2] if size > width else rows[:, width // 2 :]
    rows = (scale * rows).astype(np.float32)
    targets = rng.normal(size=(size, 2)).astype(np.float32)
    predicted = selection.predict_scores(fit(rows[:size], targets, l2=l2), rows)
    X, T = rows[:size].astype(np.float64), targets.astype(np.float64)
    x, t = X - X.mean(0), T - T.mean(0)
    weights = np.linalg.solve(x.T @ x + l2 * np.eye(width), x.T @ t)
    expected = (rows - X.mean(0)) @ weights + T.mean(0)
    np.testing.assert_allclose(predicted, expected, rtol=0, atol=1e-4)


def test_bad_input():
    with pytest.raises(ValueError, match="l2 > 0"):
        selection.fit_scorers(FEATURES, TARGETS, l2=0.0)
    with pytest.raises(ValueError, match="Expected features to be finite.*first in point 3"):
        selection.fit_scorers(np.where(np.arange(64)[:, None] == 3, np.nan, FEATURES), TARGETS)
    with pytest.raises(ValueError, match="of one length, got 64 and 63"):
        selection.fit_scorers(FEATURES, TARGETS[:-1])
    with pytest.raises(ValueError, match="targets to have 2 axes"):
        selection.fit_scorers(FEATURES, TARGETS[:, 0])
    with pytest.raises(ValueError, match="features with 5 columns"):
        selection.predict_scores(fit(FEATURES, TARGETS), FEATURES[:, :4])
