"""Budgets: the noise they ask for, their shares, and what several releases cost."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from gradkin import kernels
from gradkin.kernels import PrivacyBudget
from gradkin.kernels.private_budget import Sensitivity, add_noise

dp = pytest.importorskip(
    "dp_accounting", reason="the extra 'private' (dp-accounting) is not installed"
)
DELTA = 1e-5


def gaussian_delta(z, epsilon):
    """Exact delta of the Gaussian mechanism (Balle & Wang 2018, theorem 8)."""
    return norm.cdf(1 / (2 * z) - epsilon * z) - math.exp(epsilon) * norm.cdf(
        -1 / (2 * z) - epsilon * z
    )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
def test_gaussian_noise_meets_delta_exactly(epsilon):
    z = PrivacyBudget(epsilon, DELTA).noise_multiplier
    assert gaussian_delta(z, epsilon) == pytest.approx(DELTA, rel=1e-6)
    assert gaussian_delta(z, epsilon) <= DELTA


def test_events_are_of_the_noise():
    assert PrivacyBudget(0.5).event() == dp.LaplaceDpEvent(2.0)
    budget = PrivacyBudget(0.5, DELTA)
    assert budget.event() == dp.GaussianDpEvent(budget.noise_multiplier)
    assert PrivacyBudget(math.inf).event() == dp.NonPrivateDpEvent()
    # The same event under each relation: its noise is over the relation's own sensitivity.
    assert PrivacyBudget(0.5, relation="replace_one").event() == dp.LaplaceDpEvent(2.0)


@pytest.mark.parametrize("delta", [0.0, DELTA])
def test_shares_use_up_the_budget(delta):
    shares = (0.2, 0.5, 0.3)
    sensitivities = (Sensitivity(1.0, 1.0), Sensitivity(6.0, 2.0), Sensitivity(3.0, 3.0))
    budget = PrivacyBudget(2.0, delta)
    scales = [budget.scale(s, share=share) for s, share in zip(sensitivities, shares)]
    if delta:
        used = sum((s.l2 / scale) ** 2 for s, scale in zip(sensitivities, scales))
        assert used == pytest.approx(budget.noise_multiplier**-2)
    else:
        used = sum(s.l1 / scale for s, scale in zip(sensitivities, scales))
        assert used == pytest.approx(2.0)


def test_replaced_rows_cost_twice_unless_said_otherwise():
    for delta, part in ((0.0, "l1"), (DELTA, "l2")):
        added, replaced = (
            PrivacyBudget(1.0, delta, relation) for relation in ("add_or_remove_one", "replace_one")
        )
        sensitivity = Sensitivity(5.0, 3.0)
        assert replaced.scale(sensitivity) == pytest.approx(2 * added.scale(sensitivity))
        assert added.scale(sensitivity) == pytest.approx(
            getattr(sensitivity, part) * added.noise_multiplier
        )
    sensitivity = Sensitivity(5.0, 3.0, replaced_l2=4.0)
    assert replaced.scale(sensitivity) == pytest.approx(4 * replaced.noise_multiplier)
    special = PrivacyBudget(1.0, DELTA, "replace_special")
    assert special.scale(sensitivity) == pytest.approx(3 * special.noise_multiplier)


@pytest.mark.parametrize("distribution", ["laplace", "gaussian"])
def test_noise_has_its_scale(key, distribution):
    value = jnp.full((40_000,), 7.0)
    noise = np.asarray(add_noise(key, value, 3.0, distribution)) - 7.0
    budget = PrivacyBudget(1.0, 0.0 if distribution == "laplace" else DELTA)
    assert noise.std() == pytest.approx(budget.deviation(3.0), rel=0.03)
    assert abs(noise.mean()) < 0.1
    np.testing.assert_array_equal(add_noise(key, value, 0.0, distribution), value)


def test_spending_composes():
    half, quarter = PrivacyBudget(0.5), PrivacyBudget(0.25)
    assert kernels.privacy_spent([half, half, quarter]) == pytest.approx(1.25)
    # With a delta many small releases cost less than their sum, by the accountant.
    many = [PrivacyBudget(0.1)] * 100
    spent = kernels.privacy_spent(many, delta=DELTA)
    accountant = dp.pld.PLDAccountant()
    accountant.compose(dp.SelfComposedDpEvent(dp.LaplaceDpEvent(10.0), 100))
    assert spent == pytest.approx(accountant.get_epsilon(DELTA), rel=2e-2)
    assert spent < 6
    gaussian = PrivacyBudget(1.0, DELTA)
    assert kernels.privacy_spent([gaussian], delta=DELTA) == pytest.approx(1.0, rel=1e-3)
    assert kernels.privacy_spent([gaussian, half]) == math.inf
    assert kernels.privacy_spent([PrivacyBudget(math.inf)], delta=DELTA) == math.inf


def test_parts_of_a_release_cost_at_most_its_event():
    # Two Laplace releases at half the budget each are no worse than one at all of it, at any delta:
    # which is why one event stands for a release of several parts.
    whole = dp.pld.PLDAccountant().compose(dp.LaplaceDpEvent(1.0))
    parts = dp.pld.PLDAccountant().compose(dp.SelfComposedDpEvent(dp.LaplaceDpEvent(2.0), 2))
    for epsilon in (0.0, 0.3, 0.7, 0.95):
        assert parts.get_delta(epsilon) <= whole.get_delta(epsilon) + 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "epsilon > 0"),
        ((-1.0,), "epsilon > 0"),
        ((math.nan,), "epsilon > 0"),
        ((1.0, 1.0), "0 <= delta < 1"),
        ((1.0, -0.1), "0 <= delta < 1"),
        ((1.0, 0.0, "remove"), "relation to be one of"),
    ],
)
def test_bad_budgets(arguments, message):
    with pytest.raises(ValueError, match=message):
        PrivacyBudget(*arguments)


def test_refusals():
    with pytest.raises(TypeError, match="epsilon to be a number, got a traced"):
        jax.jit(lambda e: PrivacyBudget(e).noise_multiplier)(1.0)
    with pytest.raises(ValueError, match="at least one release"):
        kernels.privacy_spent([])
    with pytest.raises(ValueError, match="0 <= delta < 1"):
        kernels.privacy_spent([PrivacyBudget(1.0)], delta=1.0)
    with pytest.raises(ValueError, match="one relation"):
        kernels.privacy_spent([PrivacyBudget(1.0), PrivacyBudget(1.0, relation="replace_one")])


def test_what_is_no_budget():
    x = jnp.ones((4, 2))
    number: Any = 1.0
    alone: Any = kernels.PrivacyBudget(1.0)
    with pytest.raises(TypeError, match="Expected budget to be a PrivacyBudget, got 1.0"):
        kernels.private_kernel_sums(
            jax.random.key(0), kernels.Gaussian(1.0), x, size=4, budget=number
        )
    with pytest.raises(TypeError, match="Expected budget to be a PrivacyBudget, got 1.0"):
        kernels.privacy_spent([1.0])
    with pytest.raises(TypeError, match="Expected a list of releases, got PrivacyBudget"):
        kernels.privacy_spent(alone)
