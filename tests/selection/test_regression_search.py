"""Search by regression: known optima, any regressor, inside jit, rank correlations, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import selection


class Quadratic:
    """Least squares on products of features: exact for the function below."""

    def features(self, x):
        x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
        return (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)

    def fit(self, x, y):
        self.weights = np.linalg.lstsq(self.features(x), y, rcond=None)[0]

    def predict(self, x):
        return self.features(x) @ self.weights


CENTRE = {"a": np.array([0.3, 0.8], np.float32), "b": np.float32(0.55)}


def loss(params):
    gaps = jax.tree.map(lambda leaf, centre: jnp.sum((leaf - centre) ** 2), params, CENTRE)
    return gaps["a"] + 2 * gaps["b"]


def drawn(seed, size):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.uniform(size=(size, 2)).astype(np.float32),
        "b": rng.uniform(size=size).astype(np.float32),
    }


measure = jax.jit(jax.vmap(loss))


def test_finds_the_optimum_of_a_known_function():
    tried, many, unseen = drawn(0, 60), drawn(1, 20_000), drawn(2, 30)
    found = selection.regression_search(
        tried, measure(tried), many, regressor=Quadratic(), held_out=(unseen, measure(unseen))
    )
    for leaf, centre in zip(jax.tree.leaves(found.params), jax.tree.leaves(CENTRE)):
        np.testing.assert_allclose(leaf, centre, atol=0.02)
    np.testing.assert_allclose(found.predicted, measure(many), atol=1e-5)
    expected = np.argsort(np.asarray(found.predicted), kind="stable")[:10]
    np.testing.assert_array_equal(found.best, expected)
    np.testing.assert_allclose(found.params["a"], many["a"][expected].mean(0), rtol=1e-5)
    assert float(found.correlation) > 0.999


def test_trees_of_scikit_learn():
    stats = pytest.importorskip("scipy.stats")
    pytest.importorskip("sklearn")
    tried, many, unseen = drawn(0, 400), drawn(1, 2000), drawn(2, 200)
    noise = np.random.default_rng(3).normal(0, 0.05, 400).astype(np.float32)
    losses, outcomes = measure(tried) + noise, measure(unseen)
    found = selection.regression_search(tried, losses, many, held_out=(unseen, outcomes))
    assert float(loss(found.params)) < 0.03  # 0.02 of a hundred drawn at random
    again = selection.regression_search(tried, losses, unseen)
    expected = stats.spearmanr(again.predicted, outcomes)[0]
    np.testing.assert_allclose(found.correlation, expected, rtol=1e-5)
    assert expected > 0.8
    assert np.isnan(again.correlation)


def test_inside_jit():
    tried, many, unseen = drawn(0, 60), drawn(1, 50), drawn(2, 30)
    run = lambda tried, losses, many, unseen, outcomes: selection.regression_search(
        tried, losses, many, top=3, regressor=Quadratic(), held_out=(unseen, outcomes)
    )
    arguments = tried, measure(tried), many, unseen, measure(unseen)
    for a, b in zip(jax.tree.leaves(jax.jit(run)(*arguments)), jax.tree.leaves(run(*arguments))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_bad_input():
    tried, many = drawn(0, 60), drawn(1, 50)
    losses = measure(tried)
    search = selection.regression_search
    for top in (0, 51):
        with pytest.raises(ValueError, match=rf"top in 1, ..., 50, got top={top}"):
            search(tried, losses, many, top=top)
    with pytest.raises(ValueError, match=r"losses of shape \(60,\)"):
        search(tried, losses[1:], many)
    with pytest.raises(ValueError, match="losses to be finite"):
        search(tried, losses.at[3].set(jnp.nan), many)
    with pytest.raises(ValueError, match="candidates to have the leaves of params"):
        search(tried, losses, {"a": many["a"]})
    with pytest.raises(ValueError, match="candidates to have the shapes of params"):
        search(tried, losses, {"a": many["a"][:, :1], "b": many["b"]})
    with pytest.raises(ValueError, match="params with leaves of one leading axis"):
        search({"a": tried["a"], "b": tried["b"][1:]}, losses, many)
    with pytest.raises(ValueError, match=r"held_out\[1\] of shape"):
        search(tried, losses, many, held_out=(many, losses))


def test_few_runs_still_tell_candidates_apart():
    tried = jnp.linspace(0, 1, 30)
    many = jnp.linspace(0, 1, 200)
    found = selection.regression_search(tried, (tried - 0.7) ** 2, many)
    assert abs(float(found.params) - 0.7) < 0.15
    assert len(np.unique(found.predicted)) > 3


def test_a_prediction_for_each_candidate():
    class Column:
        def fit(self, x, y):
            pass

        def predict(self, x):
            return x

    with pytest.raises(ValueError, match=r"regressor.predict to give shape \(4,\), got \(4, 1\)"):
        selection.regression_search(
            jnp.arange(3.0), jnp.zeros(3), jnp.arange(4.0), top=1, regressor=Column()
        )
