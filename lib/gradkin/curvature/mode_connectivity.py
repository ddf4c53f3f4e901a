"""Linear mode connectivity: the loss between two networks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.curvature.interpolation import interpolate
from gradkin.matrices.floating import floating
from gradkin.typing import Array, PyTree


class LossPath(NamedTuple):
    """Losses on the segment from b (0) to a (1).

    Attributes:
      at: ``[n]``, the share of a.
      losses: ``[n, ...]``.
    """

    at: Array
    losses: Array

    def excess(self) -> Array:
        """``[n, ...]``: the losses minus the chord between the ends."""
        losses = floating(self.losses)
        share = self.at.astype(losses.dtype).reshape(-1, *(1,) * (losses.ndim - 1))
        return losses - share * losses[-1:] - (1 - share) * losses[:1]

    def barrier(self) -> Array:
        """``[...]``: the greatest excess; at least 0, for the ends have none."""
        return jnp.max(self.excess(), axis=0)

    def midpoint(self) -> Array:
        """``[...]``: the loss half-way."""
        return self.losses[len(self.losses) // 2]


def loss_path(
    loss_fn: Callable[[PyTree], Array], a: PyTree, b: PyTree, *, num_points: int = 11
) -> LossPath:
    """The loss between two networks, and its barrier (Ito et al. 2025).

    .. math:: B(a, b) = \\max_{\\lambda \\in [0, 1]} L(\\lambda a + (1 - \\lambda) b)
        - \\lambda L(a) - (1 - \\lambda) L(b)

    They are linearly mode connected (Frankle et al. 2020) where the barrier is about 0.

    Args:
      loss_fn: ``params -> scalar``, or an array of losses; for the barrier in accuracy, the error.
      a: parameters.
      b: parameters of the same structure.
      num_points: equally spaced, the ends included; odd, so that the middle is one.

    Returns:
      `LossPath`, with ``.barrier()``, ``.excess()`` and ``.midpoint()``.

    Raises:
      ValueError: structures that differ, an even number of points.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> loss = lambda w: (w**2 - 1) ** 2  # two minima, -1 and 1
      >>> path = curvature.loss_path(loss, jnp.ones(()), -jnp.ones(()), num_points=5)
      >>> path.losses.tolist(), float(path.barrier())
      ([0.0, 0.5625, 1.0, 0.5625, 0.0], 1.0)

    References:
      Ito, Yamada & Kumagai (2025), "Analysis of Linear Mode Connectivity via Permutation-Based
      Weight Matching", arXiv:2402.04051; Frankle, Dziugaite, Roy & Carbin (2020), "Linear Mode
      Connectivity and the Lottery Ticket Hypothesis", arXiv:1912.05671.
      :cite:`lmc-weight-matching` :cite:`frankle:20`

    Note:
      Statistics of batch normalization are no weights: where there are some, `loss_fn` is to
      compute them anew from the parameters it is given.
    """
    if num_points < 3 or num_points % 2 == 0:
        raise ValueError(f"Expected num_points to be odd and >= 3, got {num_points}.")
    checks.same_structure(b, a, name="b", like_name="a")
    at = jnp.linspace(0, 1, num_points)
    losses = jax.lax.map(lambda share: jnp.asarray(loss_fn(interpolate(b, a, share))), at)
    return LossPath(at, losses)


def taylor_barrier(loss_fn: Callable[[PyTree], Array], a: PyTree, b: PyTree) -> Float[Array, ""]:
    """The barrier half-way that second-order expansions around both ends predict.

    .. math:: \\tfrac14 \\langle d, g_a - g_b \\rangle + \\tfrac1{16} d^\\top (H_a + H_b) d,
        \\quad d = b - a

    Args:
      loss_fn: ``params -> scalar``.
      a: parameters.
      b: parameters of the same structure.

    Returns:
      A scalar, possibly negative: exact where the loss is quadratic. At minima only the Hessians
      remain, and a difference shorter by a factor r is predicted to lower the barrier by r^2.

    Raises:
      ValueError: structures that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> float(curvature.taylor_barrier(lambda w: w**2, jnp.array(3.0), jnp.array(1.0)))
      -1.0

    References:
      Ito, Yamada & Kumagai (2025), arXiv:2402.04051. :cite:`lmc-weight-matching`

    Note:
      The mean of the two expansions, derived here; the paper's own form was not to be had.
    """
    checks.same_structure(b, a, name="b", like_name="a")
    along = jax.tree.map(lambda x, y: y - x, a, b)
    grads_a, curved_a = jax.jvp(jax.grad(loss_fn), (a,), (along,))
    grads_b, curved_b = jax.jvp(jax.grad(loss_fn), (b,), (along,))
    first = inner(along, jax.tree.map(jnp.subtract, grads_a, grads_b))
    second = inner(along, jax.tree.map(jnp.add, curved_a, curved_b))
    return first / 4 + second / 16


def distance_reduction(a: PyTree, b: PyTree, permuted_b: PyTree) -> Float[Array, ""]:
    """By how much a permutation shortens the distance (Ito et al. 2025).

    .. math:: \\frac{\\|a - b\\| - \\|a - \\pi(b)\\|}{\\|a - b\\|}

    Args:
      a: parameters.
      b: parameters of the same structure.
      permuted_b: b, permuted.

    Returns:
      At most 1, negative where the distance grew; 0 where a and b are the same.

    Raises:
      ValueError: structures that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> a, b = jnp.array([4.0, 0.0]), jnp.array([0.0, 3.0])
      >>> round(float(curvature.distance_reduction(a, b, b[::-1])), 3)
      0.8

    References:
      Ito, Yamada & Kumagai (2025), arXiv:2402.04051. :cite:`lmc-weight-matching`
    """
    checks.same_structure(b, a, name="b", like_name="a")
    checks.same_structure(permuted_b, a, name="permuted_b", like_name="a")

    def distance(other):
        gap = jax.tree.map(jnp.subtract, a, other)
        return jnp.sqrt(inner(gap, gap))

    before, after = distance(b), distance(permuted_b)
    same = before == 0
    ratio = (before - after) / jnp.where(same, jnp.ones_like(before), before)
    return jnp.where(same, jnp.zeros_like(ratio), ratio)


def inner(x: PyTree, y: PyTree) -> Array:
    """Inner product of two pytrees, at least in float32."""
    dtype = np.result_type(np.float32, *(leaf.dtype for leaf in jax.tree.leaves(x)))
    wide = lambda leaf: leaf.astype(dtype)
    products = jax.tree.map(lambda u, v: jnp.sum(wide(u) * wide(v)), x, y)
    return jnp.sum(jnp.stack(jax.tree.leaves(products)))
