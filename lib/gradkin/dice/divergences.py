"""f-divergences with the conjugate restricted to non-negative density ratios."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from gradkin.checks import one_of

Real = Float[Array, "*S"]


class FDivergence(NamedTuple):
    """One f-divergence D_f(p || q) = E_q[f(p / q)], f convex with f(1) = 0.

    Attributes:
      name: its name.
      value: f(x), x >= 0.
      derivative: f'(x).
      inverse_derivative: (f')^{-1}(y); for a y above the range of f' it is infinite.
      conjugate: f*_p(y) = max_{x >= 0} (x y - f(x)); infinite where inverse_derivative is.
    """

    name: str
    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    inverse_derivative: Callable[[Array], Array]
    conjugate: Callable[[Array], Array]

    def density_ratio(self, y: Real) -> Real:
        """omega*(y) = max(0, (f')^{-1}(y)), the maximiser, which is also the conjugate's slope."""
        return jnp.maximum(self.inverse_derivative(y), 0.0)


def xlogx(x: Real) -> Real:
    """x log x, 0 at 0."""
    return jnp.where(x > 0, x * jnp.log(jnp.where(x > 0, x, 1.0)), 0.0)


def bounded(y: Real, limit: float, fn: Callable[[Real], Real]) -> Real:
    """fn below ``limit`` and +inf from there on; the untaken branch sees a harmless number."""
    inside = y < limit
    return jnp.where(inside, fn(jnp.where(inside, y, limit - 1.0)), jnp.inf)


def pearson_conjugate(y: Real) -> Real:
    ratio = jnp.maximum(y / 2 + 1, 0.0)
    return y * ratio - jnp.square(ratio - 1)


PEARSON = FDivergence(
    "pearson",
    lambda x: jnp.square(x - 1),
    lambda x: 2 * (x - 1),
    lambda y: y / 2 + 1,
    pearson_conjugate,
)

KL = FDivergence(
    "kl",
    xlogx,
    lambda x: jnp.log(x) + 1,
    lambda y: jnp.exp(y - 1),
    lambda y: jnp.exp(y - 1),
)

REVERSE_KL = FDivergence(
    "reverse_kl",
    lambda x: -jnp.log(x),
    lambda x: -1 / x,
    lambda y: bounded(y, 0.0, lambda z: -1 / z),
    lambda y: bounded(y, 0.0, lambda z: -1 - jnp.log(-z)),
)

SOFT_CHI2 = FDivergence(
    "soft_chi2",
    lambda x: jnp.where(x < 1, xlogx(x) - x + 1, 0.5 * jnp.square(x - 1)),
    lambda x: jnp.where(x < 1, jnp.log(jnp.where(x < 1, x, 1.0)), x - 1),
    lambda y: jnp.where(y < 0, jnp.exp(jnp.minimum(y, 0.0)), y + 1),
    lambda y: jnp.where(y < 0, jnp.expm1(jnp.minimum(y, 0.0)), 0.5 * jnp.square(y) + y),
)

JENSEN_SHANNON = FDivergence(
    "jensen_shannon",
    lambda x: xlogx(x) - (x + 1) * jnp.log((x + 1) / 2),
    lambda x: jnp.log(2 * x / (x + 1)),
    lambda y: bounded(y, math.log(2), lambda z: jnp.exp(z) / (2 - jnp.exp(z))),
    lambda y: bounded(y, math.log(2), lambda z: -jnp.log(2 - jnp.exp(z))),
)

HELLINGER = FDivergence(
    "hellinger",
    lambda x: jnp.square(jnp.sqrt(x) - 1),
    lambda x: 1 - 1 / jnp.sqrt(x),
    lambda y: bounded(y, 1.0, lambda z: 1 / jnp.square(1 - z)),
    lambda y: bounded(y, 1.0, lambda z: z / (1 - z)),
)

DIVERGENCES = {f.name: f for f in (PEARSON, KL, REVERSE_KL, SOFT_CHI2, JENSEN_SHANNON, HELLINGER)}


def f_divergence(name: str) -> FDivergence:
    """Look up an f-divergence.

    ==============  ========================================  =======================
    name            f(x)                                      f*_p(y)
    ==============  ========================================  =======================
    pearson         (x - 1)^2                                 y^2/4 + y, -1 if y < -2
    kl              x log x                                   exp(y - 1)
    reverse_kl      - log x                                   -1 - log(-y), y < 0
    soft_chi2       x log x - x + 1 if x < 1, (x - 1)^2/2     exp(y) - 1, y^2/2 + y
    jensen_shannon  x log x - (x + 1) log((x + 1)/2)          - log(2 - exp(y)), y < log 2
    hellinger       (sqrt(x) - 1)^2                           y / (1 - y), y < 1
    ==============  ========================================  =======================

    Args:
      name: one of the names above.

    Returns:
      The divergence. Where f' is bounded above, conjugate and ratio are +inf beyond the bound.

    Raises:
      ValueError: on another name.

    Note:
      What the reference code calls ``Reverse_KL`` has the conjugate exp(y - 1): it is ``kl`` here,
      by f. Pearson's conjugate is flat below y = -2, where a residual has no gradient.
      ``xlogx``-type values at x = 0 are limits, ``reverse_kl`` is infinite there.

    Example:
      >>> import jax.numpy as jnp
      >>> f_divergence("pearson").conjugate(jnp.array([-3., -1., 0., 2.])).tolist()
      [-1.0, -0.75, 0.0, 3.0]

    References:
        Mao et al. (2024), "ODICE", arXiv:2402.00348, section 2; soft chi-square from Lee et al.
        (2021), "OptiDICE", arXiv:2106.10783. :cite:`odice` :cite:`lee:21`
    """
    one_of(DIVERGENCES, divergence=name)
    return DIVERGENCES[name]
