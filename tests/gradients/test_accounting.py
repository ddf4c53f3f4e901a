"""The accountant: against closed forms, against dp-accounting itself, and what is refused."""

import math
from typing import Any

import pytest

from gradkin import gradients
from gradkin.gradients import FixedSizeSampling, FullBatch, GaussianMechanism, PoissonSampling

dp = pytest.importorskip(
    "dp_accounting", reason="the extra 'private' (dp-accounting) is not installed"
)
DELTA = 1e-5


def make(wrong) -> Any:
    """A value of the wrong type."""
    return wrong


def normal_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def gaussian_delta(z, epsilon):
    """Exact delta of the Gaussian mechanism (Balle & Wang 2018, theorem 8)."""
    return normal_cdf(1 / (2 * z) - epsilon * z) - math.exp(epsilon) * normal_cdf(
        -1 / (2 * z) - epsilon * z
    )


@pytest.mark.parametrize("relation", ["add_or_remove_one", "replace_special", "replace_one"])
def test_full_batch_is_the_gaussian_mechanism(relation):
    mechanism = GaussianMechanism(4.0, FullBatch(100), relation)
    epsilon = gradients.epsilon(mechanism, steps=4, delta=DELTA)
    # Four releases with noise 4 are one with noise 2.
    assert gaussian_delta(2.0, epsilon) == pytest.approx(DELTA, rel=1e-2)
    assert gradients.epsilon(mechanism, steps=4, delta=DELTA, accountant="rdp") > epsilon


def test_poisson_agrees_with_dp_accounting_called_by_hand():
    q, z, steps = 0.05, 1.5, 50
    event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(z)), steps)
    mechanism = GaussianMechanism(z, PoissonSampling(100, q, padded_size=100))
    for name, accountant in (("pld", dp.pld.PLDAccountant()), ("rdp", dp.rdp.RdpAccountant())):
        ours = gradients.epsilon(mechanism, steps=steps, delta=DELTA, accountant=name)
        assert ours == pytest.approx(accountant.compose(event).get_epsilon(DELTA), rel=1e-9)


def test_replace_one_has_one_meaning_of_noise():
    # With q = 1 sampling changes nothing, so all ways to say it cost the same.
    full = GaussianMechanism(3.0, FullBatch(20), "replace_one")
    poisson = GaussianMechanism(3.0, PoissonSampling(20, 1.0), "replace_one")
    fixed = GaussianMechanism(3.0, FixedSizeSampling(20, 20), "replace_one")
    pld = [gradients.epsilon(m, steps=2, delta=DELTA) for m in (full, poisson)]
    rdp = [gradients.epsilon(m, steps=2, delta=DELTA, accountant="rdp") for m in (full, fixed)]
    assert pld[0] == pytest.approx(pld[1], rel=1e-3)
    assert rdp[0] == pytest.approx(rdp[1], rel=1e-6)


def test_a_cut_batch_costs_more():
    whole = GaussianMechanism(2.0, PoissonSampling(200, 0.1, padded_size=200))
    cut = GaussianMechanism(2.0, PoissonSampling(200, 0.1, padded_size=24))
    roomy = GaussianMechanism(2.0, PoissonSampling(200, 0.1))
    costs = [gradients.epsilon(m, steps=20, delta=DELTA) for m in (whole, roomy, cut)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-3)
    assert costs[2] > 1.05 * costs[0]
    assert isinstance(cut.event(), dp.TruncatedSubsampledGaussianDpEvent)
    with pytest.raises(ValueError, match="use accountant='pld', or a larger padded_size"):
        gradients.epsilon(cut, steps=20, delta=DELTA, accountant="rdp")
    rdp = gradients.epsilon(roomy, steps=20, delta=DELTA, accountant="rdp")
    assert rdp >= gradients.epsilon(whole, steps=20, delta=DELTA, accountant="rdp")


def test_noise_multiplier_and_steps_invert_epsilon():
    sampling = PoissonSampling(500, 0.1)
    z = gradients.noise_multiplier(sampling, steps=40, epsilon=2.0, delta=DELTA)
    epsilon = gradients.epsilon(GaussianMechanism(z, sampling), steps=40, delta=DELTA)
    assert 1.98 < epsilon <= 2.0
    mechanism = GaussianMechanism(z, sampling)
    count = gradients.steps(mechanism, epsilon=2.0, delta=DELTA, accountant="rdp")
    spent = [
        gradients.epsilon(mechanism, steps=n, delta=DELTA, accountant="rdp")
        for n in (count, count + 1)
    ]
    assert spent[0] <= 2.0 < spent[1]
    assert gradients.steps(GaussianMechanism(0.1, sampling), epsilon=0.1, delta=DELTA) == 0


def test_limits():
    sampling = PoissonSampling(100, 0.1)
    assert gradients.epsilon(GaussianMechanism(0.0, sampling), steps=1, delta=DELTA) == math.inf
    assert gradients.epsilon(GaussianMechanism(1.0, sampling), steps=0, delta=DELTA) == 0


@pytest.mark.parametrize(
    ("mechanism", "accountant"),
    [
        (GaussianMechanism(1.0, FixedSizeSampling(100, 10)), "rdp"),
        (GaussianMechanism(1.0, FixedSizeSampling(100, 10), "replace_one"), "pld"),
        (GaussianMechanism(1.0, PoissonSampling(100, 0.1, 100), "replace_one"), "rdp"),
        (GaussianMechanism(1.0, PoissonSampling(100, 0.1, 12), "replace_one"), "pld"),
    ],
)
def test_what_cannot_be_accounted_for_is_refused(mechanism, accountant):
    with pytest.raises(ValueError, match="replace_one"):
        gradients.epsilon(mechanism, steps=1, delta=DELTA, accountant=accountant)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GaussianMechanism(-1.0, FullBatch(1)), ValueError, "noise_multiplier >= 0"),
        (lambda: GaussianMechanism(1.0, FullBatch(1), "other"), ValueError, "relation to be one"),
        (
            lambda: GaussianMechanism(1.0, make("shuffle")),
            TypeError,
            "no accountant knows other ways",
        ),
        (
            lambda: gradients.epsilon(GaussianMechanism(1.0, FullBatch(1)), steps=1, delta=1.0),
            ValueError,
            "Expected 0 < delta < 1",
        ),
        (
            lambda: gradients.epsilon(GaussianMechanism(1.0, FullBatch(1)), steps=-1, delta=0.1),
            ValueError,
            "Expected steps to be an integer",
        ),
        (lambda: gradients.epsilon(make(1.0), steps=1, delta=0.1), TypeError, "GaussianMechanism"),
        (
            lambda: gradients.epsilon(
                GaussianMechanism(1.0, FullBatch(1)), steps=1, delta=0.1, accountant="prv"
            ),
            ValueError,
            "Expected accountant to be one of",
        ),
        (
            lambda: gradients.noise_multiplier(FullBatch(1), steps=1, epsilon=0.0, delta=0.1),
            ValueError,
            "Expected epsilon > 0",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
