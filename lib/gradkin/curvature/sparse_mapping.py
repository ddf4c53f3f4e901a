"""Sparse prediction: each unit of one network from few units of another."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from gradkin import checks
from gradkin.curvature.convergent_learning import activation_moments
from gradkin.typing import Array, Scalar


class SparseMapping(NamedTuple):
    """Linear prediction of standardised units from standardised units.

    Attributes:
      weights: ``[t, s]``; rows predict.
      mean_x: ``[s]``.
      scale_x: ``[s]``, standard deviations; infinite for units that do not vary.
      mean_y: ``[t]``.
      scale_y: ``[t]``.
    """

    weights: Array
    mean_x: Array
    scale_x: Array
    mean_y: Array
    scale_y: Array

    def losses(self, x: Array, y: Array) -> Array:
        """Half the mean squared error of each standardised unit of y, ``[t]``.

        Args:
          x: ``[..., s]``; all leading axes are samples, perhaps others than it was fitted to.
          y: ``[..., t]``.
        """
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        x = (x - self.mean_x[None]) / self.scale_x[None]
        y = (y - self.mean_y[None]) / self.scale_y[None]
        return jnp.mean(jnp.square(y - x @ self.weights.T), axis=0) / 2


def sparse_mapping(
    x: Float[Array, "*samples s"],
    y: Float[Array, "*samples t"],
    *,
    l1: Scalar,
    num_steps: int = 500,
) -> SparseMapping:
    """Predict units from few others: a mapping layer with an L1 penalty (Li et al. 2016, sec. 4).

    .. math:: \\min_W \\tfrac12 E \\|y - W x\\|^2 + \\lambda \\|W\\|_1

    for standardised x and y, whose bias is 0: for each unit of y the lasso. Solved by FISTA on the
    correlation matrices, with restarts of its momentum.

    Args:
      x: ``[..., s]`` activations of one network; all leading axes are samples.
      y: ``[..., t]`` of the other, on the same samples.
      l1: the penalty's weight, >= 0; from 1 on all weights are 0.
      num_steps: of FISTA, >= 1. Without a penalty, and with units that nearly depend on one
        another, it takes many.

    Returns:
      `SparseMapping`; held-out losses by ``.losses(x, y)``. Units that do not vary have weights 0
      and are predicted exactly.

    Raises:
      ValueError: different samples, none, a negative penalty, no step.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> x = jax.random.normal(jax.random.key(0), (50, 3))
      >>> found = curvature.sparse_mapping(x, x[:, ::-1], l1=0.01)
      >>> (jnp.abs(found.weights) > 0.5).astype(int).tolist()
      [[0, 0, 1], [0, 1, 0], [1, 0, 0]]

    References:
      Li, Yosinski, Clune, Lipson & Hopcroft (2016), arXiv:1511.07543; Beck & Teboulle (2009), "A
      Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems", SIAM Journal on
      Imaging Sciences 2; O'Donoghue & Candes (2015), "Adaptive Restart for Accelerated Gradient
      Schemes". :cite:`convergent-learning` :cite:`beck:09` :cite:`odonoghue:15`

    Note:
      The paper trains a convolution of size 1 by gradient descent. The scale of its penalty is not
      known; here it is that of scikit-learn's `Lasso`.
    """
    checks.non_negative(l1=l1)
    checks.positive(num_steps=num_steps)
    moments = activation_moments(x, y)
    c = moments.correlations()
    penalty = jnp.asarray(l1).astype(c.between.dtype)
    rate = 1 / jnp.maximum(jnp.linalg.eigvalsh(c.within_a)[-1], 1e-30)
    product = lambda a, b: jnp.matmul(a, b, precision=lax.Precision.HIGHEST)

    def step(state, _):
        w, ahead, t = state
        moved = ahead - rate * (product(ahead, c.within_a) - c.between.T)
        new = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - rate * penalty, 0)
        # Momentum that points uphill is dropped, for each unit of y by itself.
        uphill = jnp.sum((ahead - new) * (new - w), axis=1, keepdims=True) > 0
        t = jnp.where(uphill, jnp.ones_like(t), t)
        following = (1 + jnp.sqrt(1 + 4 * jnp.square(t))) / 2
        return (new, new + (t - 1) / following * (new - w), following), None

    zero = jnp.zeros_like(c.between.T)
    ones = jnp.ones((len(zero), 1), zero.dtype)
    (weights, _, _), _ = jax.lax.scan(step, (zero, zero, ones), length=num_steps)

    def scale(within, live):
        variance = jnp.diagonal(within) / jnp.asarray(moments.num_samples).astype(within.dtype)
        return jnp.where(live, jnp.sqrt(jnp.where(live, variance, 1)), jnp.inf)

    scales = scale(moments.within_a, c.live_a), scale(moments.within_b, c.live_b)
    return SparseMapping(weights, moments.mean_a, scales[0], moments.mean_b, scales[1])
