"""A privacy budget: the noise it asks for, and what several releases cost together."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkin import checks
from gradkin.typing import Array, PRNGKey

RELATIONS = ("add_or_remove_one", "replace_special", "replace_one")
# Grid of the privacy loss, rounded upwards, as `gradkin.gradients.epsilon` has it.
INTERVAL = 1e-4


class Sensitivity(NamedTuple):
    """How far one row moves what is released, before noise.

    Attributes:
      l1: largest change in L1 norm when a row is added or removed.
      l2: the same in L2 norm.
      replaced_l2: L2 norm of the change when a row becomes another; None: twice ``l2``.
    """

    l1: float
    l2: float
    replaced_l2: float | None = None


@dataclasses.dataclass(frozen=True)
class PrivacyBudget:
    """What one release may cost, and with it the noise it gets.

    Without delta the noise is Laplace's, ``Lap(S_1 / epsilon)`` for L1 sensitivity ``S_1``, and the
    release is epsilon-differentially private. With delta it is Gaussian, ``N(0, (z S_2)^2)`` for L2
    sensitivity ``S_2``, with the least ``z`` that is (epsilon, delta)-private (Balle & Wang 2018),
    found by dp-accounting. An infinite epsilon adds nothing and is not private.

    Args:
      epsilon: > 0, or infinity; a number, not a traced array.
      delta: in [0, 1); well below one over the number of rows.
      relation: which data sets are neighbours: "add_or_remove_one" row; "replace_special", one
        becomes a row that contributes nothing; "replace_one" becomes another, at twice the
        sensitivity. As for `gradkin.gradients.GaussianMechanism`.

    Raises:
      ValueError: an epsilon that is not positive, a delta outside [0, 1), an unknown relation.
      TypeError: a traced epsilon or delta: an accountant has to know them.
      ImportError: dp-accounting is missing and delta is positive.

    Example:
      >>> from gradkin import kernels
      >>> budget = kernels.PrivacyBudget(0.5)
      >>> budget.distribution, budget.noise_multiplier
      ('laplace', 2.0)
      >>> budget.event()
      LaplaceDpEvent(noise_multiplier=2.0)
      >>> round(kernels.PrivacyBudget(1.0, delta=1e-5).noise_multiplier, 2)
      3.73

    Note:
      The noise is a floating-point sample: values lie on a grid that depends on the sum (Mironov
      2012), and threefry is not a cryptographic generator. The stated privacy is that of
      real-number noise. Draw the key of a release from the operating system's entropy, use it for
      nothing else, and keep it secret: who knows it can subtract the noise.

    References:
      Balle & Wang (2018), "Improving the Gaussian Mechanism for Differential Privacy", ICML,
      arXiv:1805.06530. :cite:`balle:18`
      Mironov (2012), "On Significance of the Least Significant Bits for Differential Privacy",
      CCS. :cite:`mironov:12`
    """

    epsilon: float | int
    delta: float | int = 0.0
    relation: str = "add_or_remove_one"

    def __post_init__(self):
        for name in ("epsilon", "delta"):
            value = getattr(self, name)
            if not checks.is_concrete(value):
                raise TypeError(f"Expected {name} to be a number, got a traced array.")
            object.__setattr__(self, name, float(value))
        checks.positive(epsilon=self.epsilon)
        if not 0 <= self.delta < 1:
            raise ValueError(f"Expected 0 <= delta < 1, got delta={self.delta}.")
        checks.one_of(RELATIONS, relation=self.relation)

    @property
    def distribution(self) -> str:
        """Of the noise: "laplace" without delta, "gaussian" with it."""
        return "gaussian" if self.delta > 0 else "laplace"

    @property
    def noise_multiplier(self) -> float:
        """Scale of the noise (Laplace's scale, the Gaussian's deviation) over the sensitivity."""
        if math.isinf(self.epsilon):
            return 0.0
        if self.distribution == "laplace":
            return 1.0 / self.epsilon
        return gaussian_multiplier(self.epsilon, self.delta)

    def event(self) -> Any:
        """The `dp_accounting.DpEvent` of one release.

        Note:
          Its noise multiplier is over the sensitivity under this budget's own relation, so that an
          accountant of any relation must not double it: compose it under ADD_OR_REMOVE_ONE, as
          `privacy_spent` does.
        """
        dp = dp_accounting()
        z = self.noise_multiplier
        if z == 0:
            return dp.NonPrivateDpEvent()
        if self.distribution == "laplace":
            return dp.LaplaceDpEvent(z)
        return dp.GaussianDpEvent(z)

    def scale(self, sensitivity: Sensitivity, *, share: float = 1.0) -> float:
        """Scale of the noise on one part of a release, which uses a share of the budget.

        Shares that add up to one give parts that together cost the budget: L1 sensitivities over
        their scales add up to epsilon, squared L2 sensitivities over theirs to ``1 / z^2``.
        """
        replaced = self.relation == "replace_one"
        if self.distribution == "laplace":
            moved = 2 * sensitivity.l1 if replaced else sensitivity.l1
            return self.noise_multiplier * moved / share
        moved = sensitivity.l2
        if replaced:
            moved = 2 * moved if sensitivity.replaced_l2 is None else sensitivity.replaced_l2
        return self.noise_multiplier * moved / math.sqrt(share)

    def deviation(self, scale: Any) -> Any:
        """Standard deviation of noise of this scale."""
        return scale * math.sqrt(2) if self.distribution == "laplace" else scale


def check_budget(budget: Any) -> None:
    """Raise TypeError unless this is a budget."""
    if not isinstance(budget, PrivacyBudget):
        raise TypeError(f"Expected budget to be a PrivacyBudget, got {budget!r}.")


def add_noise(key: PRNGKey, value: Array, scale: Any, distribution: str) -> Array:
    """The value and independent noise on each number; exactly the value at scale zero."""
    draw = jax.random.laplace if distribution == "laplace" else jax.random.normal
    scale = jnp.asarray(scale, value.dtype)
    return value + jnp.where(scale > 0, scale * draw(key, value.shape, value.dtype), 0)


def privacy_spent(releases: Sequence[Any], *, delta: float = 0.0) -> float:
    """Epsilon at delta of several releases about the same rows, by dp-accounting.

    Args:
      releases: what the private constructors return, or budgets; all with one relation. Releases
        about disjoint sets of rows (one per class) are one release with ``labels``, not several.
      delta: in [0, 1).

    Returns:
      The epsilon of (epsilon, delta)-differential privacy of all of them together: the sum of their
      epsilons where all are pure, or less where delta allows. Infinity for a release without noise,
      and for Gaussian noise at delta 0.

    Raises:
      ValueError: releases of different relations, no release, a delta outside [0, 1).
      TypeError: not a list of releases or budgets.
      ImportError: dp-accounting is missing.

    Example:
      >>> from gradkin import kernels
      >>> kernels.privacy_spent([kernels.PrivacyBudget(0.5), kernels.PrivacyBudget(0.25)])
      0.75

    References:
      Dwork & Roth (2014), "The Algorithmic Foundations of Differential Privacy", theorem 3.16.
      :cite:`dwork:14`
    """
    if not isinstance(releases, list | tuple):
        raise TypeError(f"Expected a list of releases, got {type(releases).__name__}.")
    budgets = [getattr(release, "budget", release) for release in releases]
    for budget in budgets:
        check_budget(budget)
    if not budgets:
        raise ValueError("Expected at least one release, got none.")
    if not 0 <= delta < 1:
        raise ValueError(f"Expected 0 <= delta < 1, got delta={delta}.")
    relations = sorted({budget.relation for budget in budgets})
    if len(relations) > 1:
        raise ValueError(f"Expected releases of one relation, got {relations}.")
    if any(math.isinf(budget.epsilon) for budget in budgets):
        return math.inf
    pure = all(budget.delta == 0 for budget in budgets)
    total = math.fsum(budget.epsilon for budget in budgets)
    if delta == 0:
        return total if pure else math.inf
    dp = dp_accounting()
    accountant = dp.pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, INTERVAL)
    accountant.compose(dp.dp_event.ComposedDpEvent([budget.event() for budget in budgets]))
    spent = float(accountant.get_epsilon(delta))
    return min(total, spent) if pure else spent


@functools.cache
def gaussian_multiplier(epsilon: float, delta: float) -> float:
    """Least noise over L2 sensitivity that is (epsilon, delta)-private, rounded upwards."""
    return float(dp_accounting().get_sigma_gaussian(epsilon, delta)) * (1 + 1e-9)


def dp_accounting() -> Any:
    """The optional dependency, imported where it is needed."""
    try:
        import dp_accounting as module
    except ImportError as error:
        raise ImportError(
            "Privacy accounting needs dp-accounting: pip install 'gradkin[private]'."
        ) from error
    return module
