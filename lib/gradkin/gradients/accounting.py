"""What private training costs: dp-accounting asked about the mechanism that really ran."""

import dataclasses
import math
from typing import Any

from gradkin import checks
from gradkin.gradients.sampling import FixedSizeSampling, FullBatch, PoissonSampling, Sampling

RELATIONS = ("add_or_remove_one", "replace_special", "replace_one")
ACCOUNTANTS = ("pld", "rdp")
# Grids of the privacy loss: both round upwards; searches take the faster one.
FINE, COARSE = 1e-4, 5e-4
# A noise multiplier is found to this relative accuracy.
SEARCH = 1e-3


@dataclasses.dataclass(frozen=True)
class GaussianMechanism:
    """What an accountant has to know about one step.

    =====================  ================================  =========  =========
    sampling               relation                          "rdp"      "pld"
    =====================  ================================  =========  =========
    Poisson                add_or_remove_one,                yes        yes
                           replace_special
    Poisson                replace_one                       refused    yes
    Poisson that overflows add_or_remove_one,                through    exactly
                           replace_special                   delta
    Poisson that overflows replace_one                       refused    refused
    fixed size             replace_one                       yes        refused
    fixed size             the others                        refused    refused
    full batch             any                               yes        yes
    =====================  ================================  =========  =========

    Args:
      noise_multiplier: standard deviation of the noise over the L2 sensitivity *under the
        relation* (``2 C`` for replace_one), >= 0.
      sampling: how batches are drawn.
      relation: which data sets are neighbours: "add_or_remove_one" example; "replace_special", one
        becomes a null example; "replace_one" becomes another.

    Raises:
      ValueError: a negative noise multiplier, or an unknown relation.

    Example:
      >>> from gradkin import gradients
      >>> sampling = gradients.PoissonSampling(60_000, 256 / 60_000)
      >>> mechanism = gradients.GaussianMechanism(1.1, sampling)
      >>> round(gradients.epsilon(mechanism, steps=1000, delta=1e-5), 2)
      0.6
    """

    noise_multiplier: float
    sampling: Sampling
    relation: str = "add_or_remove_one"

    def __post_init__(self):
        checks.non_negative(noise_multiplier=self.noise_multiplier)
        checks.one_of(RELATIONS, relation=self.relation)
        if not isinstance(self.sampling, Sampling):
            raise TypeError(
                "Expected sampling to be PoissonSampling, FixedSizeSampling or FullBatch, got "
                f"{type(self.sampling).__name__}: no accountant knows other ways to draw."
            )

    def event(self, accountant: str = "pld") -> Any:
        """The `dp_accounting.DpEvent` of one step, in the units that the accountant reads.

        Note:
          Under replace_one, dp-accounting's PLD of a Poisson-sampled Gaussian counts noise per
          contribution of one example, its RDP of fixed-size samples per sensitivity. A full
          batch is passed as a Gaussian at its sensitivity, whatever the relation.
        """
        dp = dp_accounting()
        checks.one_of(ACCOUNTANTS, accountant=accountant)
        sampling, z = self.sampling, self.noise_multiplier
        if z == 0:
            return dp.NonPrivateDpEvent()
        if isinstance(sampling, FullBatch):
            return dp.GaussianDpEvent(z)
        if isinstance(sampling, FixedSizeSampling):
            if self.relation != "replace_one" or accountant != "rdp":
                raise ValueError(
                    "Expected relation='replace_one' and accountant='rdp' for FixedSizeSampling, "
                    f"got relation={self.relation!r} and accountant={accountant!r}: no other "
                    "analysis of sampling without replacement is available."
                )
            return dp.SampledWithoutReplacementDpEvent(
                sampling.num_examples, sampling.batch_size, dp.GaussianDpEvent(z)
            )
        if self.relation == "replace_one":
            if accountant != "pld" or sampling.overflow_probability > 0:
                raise ValueError(
                    "Expected accountant='pld' and a Poisson batch that cannot overflow for "
                    f"relation='replace_one', got accountant={accountant!r} and "
                    f"padded_size={sampling.size} of {sampling.num_examples} examples."
                )
            z = 2 * z
        if accountant == "pld" and sampling.overflow_probability > 0:
            return dp.TruncatedSubsampledGaussianDpEvent(
                sampling.num_examples, sampling.probability, sampling.size, z
            )
        return dp.PoissonSampledDpEvent(sampling.probability, dp.GaussianDpEvent(z))


def epsilon(
    mechanism: GaussianMechanism,
    *,
    steps: int,
    delta: float,
    accountant: str = "pld",
) -> float:
    """Privacy loss of ``steps`` steps at ``delta``, by dp-accounting.

    Args:
      mechanism: noise, sampling and relation; `private_gradient` has one as ``.mechanism``.
      steps: number of releases, >= 0.
      delta: in (0, 1); well below one over the number of examples.
      accountant: "pld" (privacy loss distributions, tight) or "rdp" (Renyi; an upper bound).

    Returns:
      The epsilon of (epsilon, delta)-differential privacy; infinity without noise.

    Raises:
      ValueError: a delta outside (0, 1), negative steps, or a combination that the accountant
        cannot handle (see `GaussianMechanism`).
      ImportError: dp-accounting is missing.

    Example:
      >>> from gradkin import gradients
      >>> mechanism = gradients.GaussianMechanism(4.0, gradients.FullBatch(100))
      >>> round(gradients.epsilon(mechanism, steps=1, delta=1e-5), 2)
      0.93

    Note:
      With "rdp", batches that overflow (probability tau each) are paid for by half of delta: it
      must cover ``(1 + e^epsilon) steps tau``, else this raises.

    References:
      Abadi et al. (2016), "Deep Learning with Differential Privacy", CCS, arXiv:1607.00133.
      :cite:`abadi:16`
      Mironov (2017), "Renyi Differential Privacy", CSF, arXiv:1702.07476. :cite:`mironov:17`
    """
    if not checks.is_integer(steps, least=0):
        raise ValueError(f"Expected steps to be an integer >= 0, got steps={steps!r}.")
    value = _spent(mechanism, int(steps), delta, accountant, FINE)
    if math.isinf(value) and mechanism.noise_multiplier > 0:
        raise ValueError(
            f"Expected batches that overflow with probability far below delta={delta}, got "
            f"padded_size={mechanism.sampling.size} over {steps} steps; use accountant='pld', or "
            "a larger padded_size."
        )
    return value


def noise_multiplier(
    sampling: Sampling,
    *,
    steps: int,
    epsilon: float,
    delta: float,
    relation: str = "add_or_remove_one",
    accountant: str = "pld",
) -> float:
    """Least noise multiplier whose ``steps`` steps cost at most ``epsilon``.

    Args:
      sampling: how batches are drawn.
      steps: number of releases, >= 1.
      epsilon: the budget, > 0.
      delta: in (0, 1).
      relation: see `GaussianMechanism`.
      accountant: "pld" or "rdp".

    Returns:
      A noise multiplier within 1e-3 (relative) above the least one.

    Raises:
      ValueError: see `epsilon`; or a budget that no noise up to 1e6 meets.

    Example:
      >>> from gradkin import gradients
      >>> z = gradients.noise_multiplier(gradients.FullBatch(100), steps=1, epsilon=1.0, delta=1e-5)
      >>> round(z, 2)
      3.73
    """
    checks.positive(epsilon=epsilon, steps=steps)

    def cost(z: float) -> float:
        return _spent(GaussianMechanism(z, sampling, relation), steps, delta, accountant, COARSE)

    high, at_high = 1.0, cost(1.0)
    while at_high > epsilon:
        high *= 2
        at_high = cost(high)
        if high > 1e6:
            raise ValueError(f"Expected a budget that some noise meets, got epsilon={epsilon}.")
    low, at_low = high / 2, cost(high / 2)
    while low > 1e-3 and at_low <= epsilon:
        high, at_high = low, at_low
        low, at_low = low / 2, cost(low / 2)
    while high > low * (1 + SEARCH):
        # Nearly a straight line in logarithms; each side of its crossing is tried.
        share = math.log(at_low / epsilon) / math.log(at_low / at_high)
        guess = low * (high / low) ** (share if math.isfinite(share) else 0.5)
        for z in (guess * (1 + SEARCH / 3), guess / (1 + SEARCH / 3)):
            if low < z < high and (spent := cost(z)) <= epsilon:
                high, at_high = z, spent
            elif low < z < high:
                low, at_low = z, spent
    return high


def steps(
    mechanism: GaussianMechanism, *, epsilon: float, delta: float, accountant: str = "pld"
) -> int:
    """Most steps that cost at most ``epsilon``.

    Args:
      mechanism: noise, sampling and relation.
      epsilon: the budget, > 0.
      delta: in (0, 1).
      accountant: "pld" or "rdp".

    Returns:
      The number of steps, 0 where not even one is affordable; at most 2^30.

    Raises:
      ValueError: see `epsilon`.

    Example:
      >>> from gradkin import gradients
      >>> mechanism = gradients.GaussianMechanism(10.0, gradients.FullBatch(100))
      >>> gradients.steps(mechanism, epsilon=1.0, delta=1e-5)
      7
    """
    checks.positive(epsilon=epsilon)

    def affordable(count: int) -> bool:
        return _spent(mechanism, count, delta, accountant, COARSE) <= epsilon

    if not affordable(1):
        return 0
    low, high = 1, 2
    while high < 2**30 and affordable(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if affordable(middle) else (low, middle)
    return low


def _spent(
    mechanism: GaussianMechanism, steps: int, delta: float, accountant: str, interval: float
) -> float:
    _check(mechanism, delta, accountant)
    if steps == 0:
        return 0.0
    if mechanism.noise_multiplier == 0:
        return math.inf
    event = dp_accounting().SelfComposedDpEvent(mechanism.event(accountant), steps)
    tau = getattr(mechanism.sampling, "overflow_probability", 0.0) if accountant == "rdp" else 0.0
    total = fresh_accountant(mechanism, accountant, interval).compose(event)
    value = float(total.get_epsilon(delta / 2 if tau else delta))
    # Other than in an event of that probability, no batch was cut.
    if tau and (1 + math.exp(min(value, 700.0))) * steps * tau > delta / 2:
        return math.inf
    return value


def dp_accounting() -> Any:
    """The optional dependency, imported where it is needed."""
    try:
        import dp_accounting as module
    except ImportError as error:
        raise ImportError(
            "Privacy accounting needs dp-accounting: pip install 'gradkin[private]'."
        ) from error
    return module


def fresh_accountant(mechanism: GaussianMechanism, accountant: str, interval: float) -> Any:
    """A dp-accounting accountant for the mechanism's relation."""
    dp = dp_accounting()
    from dp_accounting import pld, rdp

    relation = dp.NeighboringRelation[
        "ADD_OR_REMOVE_ONE"
        if isinstance(mechanism.sampling, FullBatch)
        else mechanism.relation.upper()
    ]
    if accountant == "pld":
        return pld.PLDAccountant(relation, interval)
    return rdp.RdpAccountant(neighboring_relation=relation)


def _check(mechanism: Any, delta: float, accountant: str) -> None:
    checks.one_of(ACCOUNTANTS, accountant=accountant)
    if not isinstance(mechanism, GaussianMechanism):
        raise TypeError(
            f"Expected mechanism to be a GaussianMechanism, got {type(mechanism).__name__}."
        )
    if not 0 < delta < 1:
        raise ValueError(f"Expected 0 < delta < 1, got delta={delta}.")
    # Refuse before anything is computed.
    if isinstance(mechanism.sampling, PoissonSampling | FixedSizeSampling):
        mechanism.event(accountant)
