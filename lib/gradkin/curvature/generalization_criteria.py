"""Criteria of generalization that are read off the signs of a Hessian's spectrum."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices.estimates import Estimate
from gradkin.matrices.lanczos import SpectralDensity
from gradkin.typing import Array, Scalar


class HessianCriteria(NamedTuple):
    """How negative a spectrum is, twice; both small at a minimum.

    Attributes:
      extreme_ratio: ``|lambda_min / lambda_max|``.
      weighted_ratio: contents of the negative part over those of the positive one.
      num_infinite: number of probes that saw no positive eigenvalue but a negative one; where it is
        not 0, ``weighted_ratio`` is infinite, and ``extreme_ratio`` may be large.
    """

    extreme_ratio: Estimate
    weighted_ratio: Estimate
    num_infinite: Array


def hessian_criteria(
    density: SpectralDensity, *, power: Scalar = 0.5, tolerance: Scalar | None = None
) -> HessianCriteria:
    """The ratios ``r_e`` and ``K_H^n`` of a spectrum (Gabdullin 2024).

    .. math:: r_e = \\left|\\frac{\\lambda_{min}}{\\lambda_{max}}\\right|, \\qquad
        K_H^n = \\frac{\\sum_{\\lambda_j < 0} |\\lambda_j w_j|^n}
        {\\sum_{\\lambda_j > 0} (\\lambda_j w_j)^n}

    over the nodes and weights that stochastic Lanczos quadrature gives each probe; means over
    probes. Neither changes where the loss is multiplied by a positive number; ``-H`` inverts both.

    Args:
      density: from `spectral_density`; three probes or more. State ``num_matvecs`` with ``K``: for
        powers below one many small terms count, and there are as many as products.
      power: ``n`` > 0; the paper recommends 0 < n < 1.
      tolerance: nodes up to this part of a probe's largest absolute one count as zero; None takes
        ``num_matvecs`` times the rounding unit. 0 leaves none out.

    Returns:
      `HessianCriteria`. No negative node gives 0 for ``K``, a zero matrix 0 for both. No positive
      node, but a negative one, gives infinity, with an infinite standard error. NaN only where a
      node or a weight is.

    Raises:
      ValueError: ``power`` not positive, or a negative tolerance.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> A = jnp.diag(jnp.array([-1.0, 2.0, 4.0]))
      >>> density = curvature.spectral_density(jax.random.key(0), A)
      >>> found = curvature.hessian_criteria(density)
      >>> round(float(found.extreme_ratio.value), 3)
      0.25

    References:
      Gabdullin (2024), "Investigating generalization capabilities of neural networks by means of
      loss landscapes and Hessian analysis", arXiv:2412.10146. :cite:`loss-landscape-hessian`

    Note:
      The paper's code re-orthogonalizes Lanczos against the last ten vectors, which repeats extreme
      eigenvalues and so biases ``K``; here it is against all. Its starts are random signs, here
      they are Gaussian. Nodes of the size of rounding have random signs, and a power below one
      makes them count: they are left out.
    """
    checks.positive(power=power)
    if tolerance is not None:
        checks.non_negative(tolerance=tolerance)
    nodes, weights = density.nodes, density.weights
    if tolerance is None:
        tolerance = nodes.shape[1] * float(np.finfo(nodes.dtype).eps)
    # Where the search was exhausted, the nodes that are left over have no weight.
    known = ~(weights <= 0)
    size = jnp.where(known, jnp.abs(nodes), jnp.zeros_like(nodes))
    largest = jnp.max(size, axis=1)
    counts = size > jnp.asarray(tolerance, nodes.dtype) * largest[:, None]
    term = jnp.where(counts, size * weights, jnp.ones_like(nodes))
    term = jnp.power(term, jnp.asarray(power, nodes.dtype))
    negative, positive = (
        jnp.sum(jnp.where(counts & sign, term, jnp.zeros_like(term)), axis=1)
        for sign in (nodes < 0, nodes > 0)
    )
    low = jnp.min(jnp.where(known, nodes, jnp.full_like(nodes, np.inf)), axis=1)
    high = jnp.max(jnp.where(known, nodes, jnp.full_like(nodes, -np.inf)), axis=1)
    weighted = jnp.where(jnp.isnan(largest), largest, _ratio(negative, positive))
    return HessianCriteria(
        _over_probes(_ratio(jnp.abs(low), jnp.abs(high))),
        _over_probes(weighted),
        jnp.sum(jnp.isinf(weighted)),
    )


def _ratio(a: Array, b: Array) -> Array:
    """``a / b`` of numbers >= 0: 0 where both are 0, infinity where only ``b`` is."""
    zero = b == 0
    undefined = jnp.where(a > 0, jnp.full_like(a, np.inf), a)  # NaN stays NaN
    return jnp.where(zero, undefined, a / jnp.where(zero, jnp.ones_like(b), b))


def _over_probes(values: Array) -> Estimate:
    mean = jnp.mean(values)
    finite = jnp.isfinite(mean)
    spread = jnp.std(jnp.where(finite, values, jnp.zeros_like(values)), ddof=1)
    error = spread / math.sqrt(len(values))
    return Estimate(mean, jnp.where(finite, error, mean))
