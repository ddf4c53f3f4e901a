"""Median over the last few gradients: no per-example gradients needed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkin import checks
from gradkin.gradients import order_statistics
from gradkin.typing import Array, PyTree


class RollingMedianState(NamedTuple):
    """The gradients before the current one.

    Attributes:
      count: int32, how many of them have been seen, at most ``window - 1``.
      previous: a pytree like the parameters with a leading axis ``window - 1``, newest first.
    """

    count: Array
    previous: PyTree


def rolling_median(*, window: int = 3) -> optax.GradientTransformation:
    """Coordinate-wise median of the current and the previous gradients (Zielinski et al. 2020).

    "RM3" for a window of 3. While fewer gradients have been seen the median is over these; for an
    even number it is the mean of the two middle values. Goes first in a chain: medians of raw
    gradients, before momentum or Adam's scaling.

    Args:
      window: number of gradients, the current one included, >= 1.

    Returns:
      An `optax.GradientTransformation` that keeps ``window - 1`` copies of the gradient.

    Raises:
      ValueError: a window below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> transform = gradients.rolling_median(window=3)
      >>> state, seen = transform.init(jnp.zeros(())), []
      >>> for g in (1.0, 5.0, 2.0, 9.0):
      ...     update, state = transform.update(jnp.asarray(g), state)
      ...     seen.append(float(update))
      >>> seen
      [1.0, 3.0, 2.0, 5.0]

    References:
      Zielinski, Krishnan & Chatterjee (2020), arXiv:2003.07422. :cite:`zielinski:20`

    Note:
      The paper does not say what the first two steps do; here they use what has been seen.
    """
    checks.positive(window=window)

    def init(params: PyTree) -> RollingMedianState:
        previous = jax.tree.map(
            lambda p: jnp.zeros((window - 1, *jnp.shape(p)), jnp.result_type(p)), params
        )
        return RollingMedianState(jnp.zeros((), jnp.int32), previous)

    def update(
        updates: PyTree, state: Any, params: Any = None
    ) -> tuple[PyTree, RollingMedianState]:
        del params
        seen = state.count + 1
        unseen = jnp.arange(window) >= seen
        recent = jax.tree.map(
            lambda g, old: jnp.concatenate([g[None], old]), updates, state.previous
        )

        def median(values: Array) -> Array:
            # Behind all others in the order, what has not been seen never reaches the middle.
            in_order = order_statistics.smallest(
                jnp.where(unseen[:, None], jnp.full_like(values, jnp.inf), values), window
            )
            return 0.5 * (in_order[(seen - 1) // 2] + in_order[seen // 2])

        medians = jax.tree.map(lambda g: order_statistics.by_columns(median, g), recent)
        previous = jax.tree.map(lambda g: g[:-1], recent)
        return medians, RollingMedianState(jnp.minimum(seen, window - 1), previous)

    return optax.GradientTransformation(init, update)
