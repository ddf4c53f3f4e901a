"""SGD whose largest entries take steps of fixed size: what of Adam meets opposing signals."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkin import checks
from gradkin.typing import Array, PyTree, Scalar


class SplitSGDState(NamedTuple):
    """State of `split_sgd`.

    Attributes:
      count: int32, updates so far.
      thresholds: above which an entry of a leaf counts as large; scalars, like the parameters.
      momentum: pytree like the parameters.
    """

    count: Array
    thresholds: PyTree
    momentum: PyTree


def split_sgd(
    learning_rate: Scalar,
    *,
    quantile: Scalar = 0.9,
    sign_step: Scalar | None = None,
    momentum: Scalar = 0.9,
) -> optax.GradientTransformation:
    """SGD, but steps of fixed size for a leaf's largest entries (Rosenfeld & Risteski 2024).

    .. math:: u_j = \\begin{cases} \\eta\\, g_j & |g_j| \\le \\tau \\\\
        s\\, \\mathrm{sign}(g_j) & \\text{else} \\end{cases}, \\qquad
        m \\leftarrow \\mu m + (1 - \\mu) u, \\qquad \\theta \\leftarrow \\theta - m

    with ``tau`` a quantile of ``|g|`` in the leaf at the first step. Bounds what a sudden large
    gradient of few examples can do, as Adam does, and dampens momentum like Adam.

    Args:
      learning_rate: ``eta``, > 0.
      quantile: of the absolute entries of a leaf's first gradient, in [0, 1].
      sign_step: ``s``, > 0; None takes ``eta tau``, for which the step is the clipped gradient.
      momentum: ``mu``, in [0, 1).

    Returns:
      An `optax.GradientTransformation`.

    Raises:
      ValueError: a number that is not as above.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> optimizer = curvature.split_sgd(1.0, quantile=0.5, momentum=0.0)
      >>> w = jnp.zeros(3)
      >>> _, state = optimizer.update(jnp.array([1.0, -2.0, 4.0]), optimizer.init(w))  # tau: 2
      >>> optimizer.update(jnp.array([-9.0, 1.0, 2.0]), state)[0].tolist()
      [2.0, -1.0, -2.0]

    References:
      Rosenfeld & Risteski (2024), "Outliers with Opposing Signals Have an Outsized Effect on
      Neural Network Optimization", arXiv:2311.04163. :cite:`opposing-signals`

    Note:
      Where most of a leaf's first gradient is zero (rows that are not looked up, an adapter whose
      other factor starts at zero) a threshold of zero would stop it for good: it descends plainly,
      and the threshold is taken from the first gradient whose quantile is not zero.

      The paper's quantiles and step sizes are not known to us; these defaults are our own.
    """
    checks.positive(learning_rate=learning_rate)
    checks.non_negative(quantile=quantile, momentum=momentum)
    if checks.is_concrete(quantile) and float(quantile) > 1:
        raise ValueError(f"Expected quantile in [0, 1], got quantile={quantile}.")
    if checks.is_concrete(momentum) and float(momentum) >= 1:
        raise ValueError(f"Expected momentum in [0, 1), got momentum={momentum}.")
    if sign_step is not None:
        checks.positive(sign_step=sign_step)

    def init(params: PyTree) -> SplitSGDState:
        thresholds = jax.tree.map(lambda p: jnp.zeros((), jnp.result_type(p)), params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return SplitSGDState(jnp.zeros((), jnp.int32), thresholds, zeros)

    def update(updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, SplitSGDState]:
        del params
        first = state.count == 0

        def threshold(g: Array, old: Array) -> Array:
            # Half precision holds neither the quantile nor the number of entries.
            wide = jnp.abs(g).ravel().astype(np.promote_types(g.dtype, np.float32))
            new = jnp.quantile(wide, jnp.asarray(quantile, wide.dtype)).astype(g.dtype)
            return jnp.where(first | (old == 0), new, old)

        def step(g: Array, tau: Array) -> Array:
            eta = jnp.asarray(learning_rate, g.dtype)
            fixed = eta * tau if sign_step is None else jnp.asarray(sign_step, g.dtype)
            small = jnp.abs(g) <= tau
            if sign_step is None:
                small = small | (tau == 0)
            return jnp.where(small, eta * g, fixed * jnp.sign(g))

        def moving(old: Array, new: Array) -> Array:
            mu = jnp.asarray(momentum, new.dtype)
            return mu * old + (1 - mu) * new

        thresholds = jax.tree.map(threshold, updates, state.thresholds)
        steps = jax.tree.map(step, updates, thresholds)
        average = jax.tree.map(moving, state.momentum, steps)
        down = jax.tree.map(jnp.negative, average)
        return down, SplitSGDState(state.count + 1, thresholds, average)

    return optax.GradientTransformation(init, update)
