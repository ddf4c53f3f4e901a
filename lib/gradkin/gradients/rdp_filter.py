"""A privacy budget for noise that is chosen as training goes."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array, Scalar

ORDERS = range(2, 65)


def sampled_gaussian_rdp(
    noise_multiplier: Scalar | Float[Array, "..."], *, probability: float, order: int
) -> Float[Array, "..."]:
    """Renyi divergence of one Poisson-sampled Gaussian step (Mironov et al. 2019, sec. 3.3).

    .. math:: \\frac{1}{\\alpha - 1} \\log \\sum_{k=0}^{\\alpha} \\binom{\\alpha}{k}
        (1-q)^{\\alpha-k} q^k \\exp\\frac{k^2 - k}{2 z^2}

    Unlike dp-accounting it can be traced, so that the noise may be a result of the run.

    Args:
      noise_multiplier: ``z > 0``, noise over sensitivity; any shape.
      probability: ``q`` in (0, 1].
      order: ``alpha``, an integer >= 2.

    Returns:
      The divergence at that order, for one added or removed example.

    Raises:
      ValueError: values out of range.

    Example:
      >>> from gradkin import gradients
      >>> float(gradients.sampled_gaussian_rdp(2.0, probability=1.0, order=8))  # order / (2 z^2)
      1.0

    References:
      Mironov, Talwar & Zhang (2019), "Renyi Differential Privacy of the Sampled Gaussian
      Mechanism", arXiv:1908.10530. :cite:`mironov:19`
    """
    checks.positive(noise_multiplier=noise_multiplier)
    if not 0 < probability <= 1:
        raise ValueError(f"Expected 0 < probability <= 1, got probability={probability}.")
    if not checks.is_integer(order, least=2):
        raise ValueError(f"Expected order to be an integer >= 2, got order={order!r}.")
    z = jnp.asarray(noise_multiplier, np.float32)
    if probability == 1:
        return np.float32(order / 2) / jnp.square(z)
    fixed, growing = (jnp.asarray(x, np.float32) for x in log_terms(probability, order))
    exponent = growing / jnp.square(z)[..., None]
    terms = jnp.broadcast_to(fixed, exponent.shape) + exponent
    return logsumexp(terms, axis=-1) / np.float32(order - 1)


def log_terms(probability: float, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the sum's terms without noise, and what is divided by ``z^2`` in each."""
    k = np.arange(order + 1, dtype=np.float64)
    log_factorial = np.array([math.lgamma(i + 1) for i in k])
    binomial = log_factorial[-1] - log_factorial - log_factorial[::-1]
    fixed = binomial + (order - k) * np.log1p(-probability) + k * np.log(probability)
    return fixed, (k * k - k) / 2


@dataclasses.dataclass(frozen=True)
class RdpFilter:
    """Stop before a budget is passed, although each step's noise depends on what was seen.

    Ordinary composition assumes noise that was fixed beforehand. At one Renyi order that is fixed
    beforehand, a run that stops before the sum of its steps passes the order's budget is private
    whatever chose the noise (Feldman & Zrnic 2021; Lecuyer 2021).

    Args:
      epsilon: the budget, > 0.
      delta: in (0, 1).
      probability: of an example to join a batch, in (0, 1].
      order: integer >= 2; `RdpFilter.for_steps` picks the best one for a planned run.

    Raises:
      ValueError: values out of range, or an order at which delta leaves no budget.

    Example:
      >>> from gradkin import gradients
      >>> budget = gradients.RdpFilter(3.0, 1e-5, 0.1, order=8)
      >>> spent, steps = 0.0, 0
      >>> while budget.allows(spent, 2.0):
      ...     spent, steps = spent + budget.cost(2.0), steps + 1
      >>> steps, round(float(budget.spent_epsilon(spent)), 2)
      (130, 3.0)

    References:
      Feldman & Zrnic (2021), "Individual Privacy Accounting via a Renyi Filter", NeurIPS,
      arXiv:2008.11193. :cite:`feldman:21`
    """

    epsilon: float
    delta: float
    probability: float
    order: int

    def __post_init__(self):
        checks.positive(epsilon=self.epsilon)
        if not 0 < self.delta < 1:
            raise ValueError(f"Expected 0 < delta < 1, got delta={self.delta}.")
        sampled_gaussian_rdp(1.0, probability=self.probability, order=self.order)
        if self.budget <= 0:
            raise ValueError(
                f"Expected an order at which delta={self.delta} leaves some of "
                f"epsilon={self.epsilon}, got order={self.order}."
            )

    @classmethod
    def for_steps(
        cls, epsilon: float, delta: float, probability: float, steps: int
    ) -> "tuple[RdpFilter, float]":
        """The filter, and the least noise at which it allows ``steps`` equal steps."""
        low, high = 1e-2, 1e4
        while high > low * (1 + 1e-4):
            middle = math.sqrt(low * high)
            enough = max(_steps(epsilon, delta, probability, middle, n) for n in ORDERS) > steps
            low, high = (low, middle) if enough else (middle, high)
        order = max(ORDERS, key=lambda n: _steps(epsilon, delta, probability, high, n))
        return cls(epsilon, delta, probability, order), high * (1 + 1e-4)

    @property
    def budget(self) -> float:
        """What the steps' divergences may sum to."""
        return self.epsilon - conversion(self.delta, self.order)

    def cost(self, noise_multiplier: Scalar) -> Array:
        """Divergence of one step."""
        return sampled_gaussian_rdp(
            noise_multiplier, probability=self.probability, order=self.order
        )

    def allows(self, spent: Scalar, noise_multiplier: Scalar) -> Array:
        """Whether one more step stays within the budget."""
        return jnp.less_equal(spent + self.cost(noise_multiplier), self.budget)

    def spent_epsilon(self, spent: Scalar) -> Array:
        """Epsilon of what was spent; zero before the first step."""
        spent = jnp.asarray(spent, np.float32)
        return jnp.where(spent > 0, spent + np.float32(conversion(self.delta, self.order)), 0.0)


def _steps(
    epsilon: float, delta: float, probability: float, noise_multiplier: float, order: int
) -> float:
    """How many equal steps an order allows."""
    left = epsilon - conversion(delta, order)
    if probability == 1:
        return left * 2 * noise_multiplier**2 / order
    fixed, growing = log_terms(probability, order)
    total = float(np.logaddexp.reduce(fixed + growing / noise_multiplier**2))
    return left * (order - 1) / max(total, 1e-300)


def conversion(delta: float, order: int) -> float:
    """What Renyi privacy at an order pays for becoming (epsilon, delta) (Canonne et al. 2020)."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
