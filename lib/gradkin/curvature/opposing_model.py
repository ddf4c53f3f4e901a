"""The smallest model with opposing signals: two linear layers and one feature to be ignored."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from gradkin import checks
from gradkin.typing import Array, ArrayLike, PRNGKey, Scalar


class OpposingModel(NamedTuple):
    """``f(x) = c (b_s . x_s + b_o x_o)``: weights of the two-layer linear model.

    Inputs have a signal, ``x_s ~ N(0, I)``, which the target is a linear function of, and one large
    feature ``x_o`` whose sign says nothing about it. The best fit ignores ``x_o``; the curvature
    along its weight is ``alpha c^2``, with ``alpha`` the second moment of ``x_o``, and grows as
    ``c`` does while the signal is learned.

    Attributes:
      c: weight of the second layer, a scalar.
      signal: first layer's weights of the signal ``b_s``, ``[d]``.
      opposing: first layer's weight of the opposing feature ``b_o``, a scalar.
    """

    c: Array
    signal: Array
    opposing: Array

    def predict(self, x: Float[Array, "*batch dims"]) -> Float[Array, "*batch"]:
        """``f(x)``; the opposing feature is the last."""
        return self.c * (x[..., :-1] @ self.signal + x[..., -1] * self.opposing)

    def risk(self, coefficients: Float[ArrayLike, " d"], moment: Scalar) -> Float[Array, ""]:
        """Expected loss over all inputs, ``(|c b_s - beta|^2 + alpha c^2 b_o^2) / 2``.

        Args:
          coefficients: of the target in the signal, ``beta``.
          moment: second moment ``alpha`` of the opposing feature.
        """
        gap = self.c * self.signal - jnp.asarray(coefficients)
        outliers = jnp.multiply(moment, jnp.square(self.c * self.opposing))
        return (jnp.sum(jnp.square(gap)) + outliers) / 2

    def opposing_curvature(self, moment: Scalar) -> Array:
        """Second derivative of `risk` in ``b_o``, ``alpha c^2``; of each of stacked models."""
        return jnp.multiply(moment, jnp.square(self.c))


class OpposingSample(NamedTuple):
    """Examples for an `OpposingModel`.

    Attributes:
      inputs: ``[n, d + 1]``, the opposing feature last.
      targets: ``[n]``.
      outliers: ``[n]``, whose opposing feature is not zero.
    """

    inputs: Float[Array, "n dims"]
    targets: Float[Array, " n"]
    outliers: Bool[Array, " n"]


def opposing_sample(
    key: PRNGKey,
    coefficients: Float[ArrayLike, " d"],
    *,
    num_examples: int,
    moment: Scalar,
    probability: Scalar,
) -> OpposingSample:
    """Draw examples of which few have a large feature of either sign (Rosenfeld & Risteski 2024).

    .. math:: x_s \\sim N(0, I), \\quad x_o = \\pm\\sqrt{\\alpha / p}\\ \\text{with
        probability}\\ p,\\ \\text{else}\\ 0, \\quad y = \\beta \\cdot x_s

    Args:
      key: PRNG key.
      coefficients: of the target in the signal, ``beta``, ``[d]``.
      num_examples: how many.
      moment: second moment ``alpha`` of the opposing feature, > 0.
      probability: of an outlier, ``p``, in (0, 1].

    Returns:
      `OpposingSample`.

    Raises:
      ValueError: a number that is not as above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> sample = curvature.opposing_sample(
      ...     jax.random.key(0), jnp.ones(3), num_examples=100, moment=2.0, probability=0.5
      ... )
      >>> sample.inputs.shape, sorted(set(jnp.abs(sample.inputs[:, -1]).tolist()))
      ((100, 4), [0.0, 2.0])

    References:
      Rosenfeld & Risteski (2024), "Outliers with Opposing Signals Have an Outsized Effect on
      Neural Network Optimization", arXiv:2311.04163. :cite:`opposing-signals`

    Note:
      The paper's analysis has an opposing feature of several dimensions; one is enough for what it
      says.
    """
    checks.rank(1, coefficients=coefficients)
    checks.positive(num_examples=num_examples, moment=moment, probability=probability)
    if checks.is_concrete(probability) and float(probability) > 1:
        raise ValueError(f"Expected probability in (0, 1], got probability={probability}.")
    coefficients = jnp.asarray(coefficients)
    dtype = coefficients.dtype
    draw, which, sign = jax.random.split(key, 3)
    signal = jax.random.normal(draw, (num_examples, len(coefficients)), dtype)
    outliers = jax.random.uniform(which, (num_examples,)) < probability
    size = jnp.sqrt(jnp.asarray(moment, dtype) / jnp.asarray(probability, dtype))
    opposing = size * jax.random.rademacher(sign, (num_examples,), dtype) * outliers.astype(dtype)
    inputs = jnp.concatenate([signal, opposing[:, None]], axis=1)
    return OpposingSample(inputs, signal @ coefficients, outliers)
