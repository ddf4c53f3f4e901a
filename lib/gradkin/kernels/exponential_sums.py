"""Smooth functions as short sums of exponentials."""

import math
from typing import NamedTuple

import numpy as np

from gradkin import checks
from gradkin.typing import Scalar

FUNCTIONS = ("reciprocal", "logarithm")


class ExponentialSum(NamedTuple):
    """``f(z) ~ sum_i weights_i exp(-rates_i z)``.

    Attributes:
      weights: NumPy, ``[T]``.
      rates: NumPy, >= 0, ``[T]``.
    """

    weights: np.ndarray
    rates: np.ndarray


def exponential_sum(
    tolerance: Scalar, *, function: str = "reciprocal", largest: Scalar | None = None
) -> ExponentialSum:
    """Approximate ``1 / (1 + z)`` or ``log(1 + z)`` by a sum of exponentials in z >= 0.

    With ``t = e^u`` the trapezoid rule on

    .. math::
        \\frac{1}{1 + z} = \\int_0^\\infty e^{-t (1 + z)} dt, \\qquad
        \\log(1 + z) = \\int_0^\\infty \\frac{e^{-t} (1 - e^{-t z})}{t} dt

    converges exponentially: O(log^2(1 / tolerance)) terms.

    Args:
      tolerance: largest absolute error, in (0, 0.1].
      function: "reciprocal", for all z >= 0; "logarithm", up to ``largest``.
      largest: largest z of "logarithm".

    Returns:
      Weights and rates, by increasing rate. The first rate of "logarithm" is 0: a constant, whose
      weight is as large as all others together.

    Raises:
      ValueError: a tolerance outside (0, 0.1], an unknown function, "logarithm" without a positive
        ``largest``.

    Example:
      >>> import numpy as np
      >>> from gradkin import kernels
      >>> weights, rates = kernels.exponential_sum(1e-3)
      >>> z = np.linspace(0, 100, 1000)
      >>> error = np.abs(np.exp(-np.outer(z, rates)) @ weights - 1 / (1 + z))
      >>> len(rates), bool(error.max() < 1e-3)
      (11, True)

    Note:
      The error is split evenly over the two cut tails and the step. That of the step is, for the
      reciprocal, ``2 sum_k |Gamma(1 + 2 pi i k / h)| / (1 + z)``, by Poisson's summation formula,
      and ``|Gamma(1 + i y)|^2 = pi y / sinh(pi y)``.

    References:
      Backurs et al. (2024), "Efficiently Computing Similarities to Private Datasets", ICLR,
      arXiv:2403.08917, sections 8 and 9. :cite:`dp-similarities`
    """
    if not 0 < tolerance <= 0.1:
        raise ValueError(f"Expected 0 < tolerance <= 0.1, got tolerance={tolerance}.")
    checks.one_of(FUNCTIONS, function=function)
    logarithm = function == "logarithm"
    if logarithm and (largest is None or not 0 < largest < math.inf):
        raise ValueError(f"Expected 0 < largest < inf with 'logarithm', got largest={largest}.")
    if not logarithm and largest is not None:
        raise ValueError(f"Expected no largest with 'reciprocal', got largest={largest}.")
    part = float(tolerance) / 3
    step = 2.0
    while step_error(step, logarithm) > part:
        step *= 0.98
    # The left tail is below reach * sum_k step e^(u - k step); the right one falls faster still.
    reach = 1.0 if largest is None else float(largest)
    first = math.log(part * math.expm1(step) / (step * reach))
    last = 0.0
    while right_tail(last, step, logarithm) > part:
        last += 0.1
    u = np.arange(first, last + step, step)
    rates = np.exp(u)
    if not logarithm:
        return ExponentialSum(step * np.exp(u - rates), rates)
    weights = step * np.exp(-rates)
    return ExponentialSum(np.concatenate([[weights.sum()], -weights]), np.append(0.0, rates))


def step_error(step: float, logarithm: bool) -> float:
    """Error bound of the trapezoid rule with this step and no cut tails."""
    total = 0.0
    for k in range(1, 20):
        y = 2 * math.pi * k / step
        gamma = math.sqrt(2 * math.pi * y) * math.exp(-math.pi * y / 2)
        gamma /= math.sqrt(-math.expm1(-2 * math.pi * y))
        total += 4 * gamma / y if logarithm else 2 * gamma
    return total


def right_tail(last: float, step: float, logarithm: bool) -> float:
    """Bound on the terms that lie above ``last``."""
    u = last + step * np.arange(1, 50)
    with np.errstate(over="ignore"):
        return float(step * np.sum(np.exp((0 if logarithm else u) - np.exp(u))))
