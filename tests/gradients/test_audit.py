"""An attack on the mechanism as it runs: it must not win more than the accountant allows.

One-run auditing (Steinke, Nasr & Jagielski 2023, arXiv:2305.08846): many canaries join the data by
coin flips, an attacker who sees the releases guesses which, and the number of right guesses bounds
epsilon from below. The canaries are as visible as can be: each has a parameter of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from gradkin import gradients
from gradkin.gradients import clipping

pytest.importorskip("dp_accounting", reason="the extra 'private' (dp-accounting) is not installed")
CANARIES, STEPS, DELTA = 1000, 2, 1e-6
FULL = gradients.FullBatch(CANARIES)


def lower_bound(right, guesses, *, delta=DELTA, confidence=0.99):
    """The largest epsilon that the attack's success refutes (theorem 5.2 there)."""

    def probability(epsilon):
        p = 1 / (1 + np.exp(-epsilon))
        # At least `right` right guesses, were epsilon the truth; delta pays for some of them.
        at_least = binom.sf(right - 1, guesses, p)
        i = np.arange(1, right + 1)
        just_below = binom.cdf(right - 1, guesses, p) - binom.cdf(right - i - 1, guesses, p)
        return at_least + np.max(2 * just_below / i) * CANARIES * delta

    grid = np.linspace(0, 20, 2001)
    refuted = [e for e in grid if probability(e) <= 1 - confidence]
    return max(refuted, default=0.0)


def attack(key, noise_multiplier, *, share=0.2):
    """Guess the most and the least visible canaries; return right guesses and guesses."""
    private = gradients.private_gradient(
        lambda w, i: 10.0 * w[i],  # clipped from 10 to 1
        clip_norm=1.0,
        noise_multiplier=noise_multiplier,
        sampling=FULL,
        reduction="sum",
    )
    coins, *noise = jax.random.split(key, STEPS + 1)
    joined = jax.random.bernoulli(coins, 0.5, (CANARIES,))
    params, seen = jnp.zeros(CANARIES), jnp.zeros(CANARIES)
    for noise_key in noise:
        released = private(noise_key, params, jnp.arange(CANARIES), mask=joined).value
        params, seen = params - 0.1 * released, seen + released
    order = np.argsort(np.asarray(seen))
    k = int(share * CANARIES / 2)
    joined = np.asarray(joined)
    return int(np.sum(joined[order[-k:]]) + np.sum(~joined[order[:k]])), 2 * k


@pytest.fixture(scope="module")
def multiplier():
    return gradients.noise_multiplier(FULL, steps=STEPS, epsilon=1.5, delta=DELTA)


def test_attack_stays_below_the_accountant(key, multiplier):
    mechanism = gradients.GaussianMechanism(multiplier, FULL)
    allowed = gradients.epsilon(mechanism, steps=STEPS, delta=DELTA)
    found = lower_bound(*attack(key, multiplier))
    assert found <= allowed
    # The attack is not blind: with less noise it finds more, still below what is allowed.
    mechanism = gradients.GaussianMechanism(multiplier / 3, FULL)
    allowed = gradients.epsilon(mechanism, steps=STEPS, delta=DELTA)
    assert found < lower_bound(*attack(key, multiplier / 3)) <= allowed


def test_a_clip_that_does_not_clip_is_caught(monkeypatch, key, multiplier):
    monkeypatch.setattr(clipping, "row_factors", lambda norms, *options: jnp.ones_like(norms))
    assert lower_bound(*attack(key, multiplier)) > 1.5


def test_bound_without_delta_is_the_binomial_tail():
    # 100 of 100 right guesses refute every p with p^100 <= 1%.
    expected = np.log(0.01 ** (1 / 100) / (1 - 0.01 ** (1 / 100)))
    assert lower_bound(100, 100, delta=0.0) == pytest.approx(expected, abs=0.01)
