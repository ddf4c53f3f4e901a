"""Rounds of selection: the two rules of the weights, what is drawn, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import selection

LABELS = np.array([0, 0, 1, 1, 2, 2], np.int32)
CHOSEN = np.array([True, True, True, False, True, False])
SCORES = np.array([1.0, 2.0, 0.5, np.nan, 3.0, np.nan], np.float32)
MEANS = np.array([1.5, 0.5, 3.0])
update = jax.jit(selection.update_weights, static_argnames="rule")


def test_rules_by_their_formulas():
    w = np.array([0.2, 0.5, 0.3], np.float32)
    for function in (update, selection.update_weights):
        found = function(w, LABELS, SCORES, CHOSEN, temperature=2.0)
        np.testing.assert_allclose(found, np.exp(MEANS / 2) / np.exp(MEANS / 2).sum(), rtol=1e-5)
        found = function(w, LABELS, SCORES, CHOSEN, rule="multiplicative")
        np.testing.assert_allclose(found, w * MEANS / np.sum(w * MEANS), rtol=1e-5)


def test_invariances_and_limits():
    w = np.array([0.2, 0.5, 0.3], np.float32)
    base = update(w, LABELS, SCORES, CHOSEN)
    np.testing.assert_allclose(update(w, LABELS, SCORES + 7, CHOSEN), base, rtol=1e-5)
    same = np.ones(6, np.float32)
    np.testing.assert_allclose(update(w, LABELS, same, CHOSEN), 1 / 3, rtol=1e-6)
    kept = update(w, LABELS, same, CHOSEN, rule="multiplicative")
    np.testing.assert_allclose(kept, w, rtol=1e-6)
    kept = update(w, LABELS, 0 * same, CHOSEN, rule="multiplicative")
    np.testing.assert_allclose(kept, w, rtol=1e-6)
    hopeless = np.where(LABELS == 1, -np.inf, 0).astype(np.float32)
    np.testing.assert_allclose(update(w, LABELS, hopeless, CHOSEN), [0.5, 0, 0.5], rtol=1e-6)


@pytest.mark.parametrize("rule", ["softmax", "multiplicative"])
def test_clusters_of_which_nothing_is_chosen_keep_their_weight(rule):
    w = np.array([0.2, 0.5, 0.1, 0.2], np.float32)  # the last has no examples at all
    found = update(w, LABELS, SCORES, CHOSEN & (LABELS != 1), rule=rule)
    np.testing.assert_allclose(found[np.array([1, 3])], w[[1, 3]], rtol=1e-6)
    np.testing.assert_allclose(np.sum(found), 1, rtol=1e-6)
    assert float(found[2]) > float(found[0]) or rule == "multiplicative"


def test_rounds_add_up_and_follow_the_weights(key):
    labels = np.arange(200, dtype=np.int32) % 4
    seen = []

    def fit(key, chosen):
        seen.append(np.asarray(chosen))
        return len(seen)

    def score(model, chosen):
        assert model == len(seen)
        return jnp.where(labels == 2, 40.0, -40.0)

    found = selection.iterative_refinement(
        key, labels, 40, fit, score, num_clusters=4, rounds=4, temperature=0.1
    )
    assert [int(s.sum()) for s in seen] == [10, 20, 30, 40]
    for before, after in zip(seen, seen[1:]):
        assert np.all(after[before])
    np.testing.assert_allclose(found.weights[0], 0.25)
    assert set(labels[seen[-1] & ~seen[1]]) == {2}
    np.testing.assert_allclose(np.sum(found.weights, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.chosen, seen[-1])
    assert found.model == 4

    def traced(key):
        fit = lambda key, chosen: jnp.sum(chosen)
        return selection.iterative_refinement(
            key, labels, 20, fit, lambda m, c: 1.0 * labels, num_clusters=4, rounds=2
        )

    jitted = jax.jit(traced)(key)
    np.testing.assert_array_equal(jitted.chosen, traced(key).chosen)
    assert int(jitted.model) == 20


def test_bad_input(key):
    w = np.full(3, 1 / 3, np.float32)
    with pytest.raises(ValueError, match="rule"):
        selection.update_weights(w, LABELS, SCORES, CHOSEN, rule="sum")
    with pytest.raises(ValueError, match="temperature"):
        selection.update_weights(w, LABELS, SCORES, CHOSEN, temperature=-1.0)
    with pytest.raises(ValueError, match="weights"):
        selection.update_weights(-w, LABELS, SCORES, CHOSEN)
    with pytest.raises(ValueError, match="one length"):
        selection.update_weights(w, LABELS, SCORES[:2], CHOSEN)
    with pytest.raises(ValueError, match="without NaN"):
        selection.update_weights(w, LABELS, SCORES, ~CHOSEN)
    with pytest.raises(ValueError, match="positive scores"):
        selection.update_weights(w, LABELS, -SCORES, CHOSEN, rule="multiplicative")
    nothing = lambda *_: None
    run = selection.iterative_refinement
    with pytest.raises(ValueError, match="multiple of rounds"):
        run(key, LABELS, 5, nothing, nothing, num_clusters=3, rounds=2)
    with pytest.raises(ValueError, match="the 6 examples, got budget=8"):
        run(key, LABELS, 8, nothing, nothing, num_clusters=3)
