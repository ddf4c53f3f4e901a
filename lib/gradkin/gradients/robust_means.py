"""Averages of per-example gradients that suppress the directions of few examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkin import checks
from gradkin.gradients import order_statistics
from gradkin.typing import Array, PyTree


def winsorized_mean(grads: Any, *, level: int) -> PyTree:
    """Winsorized mean of per-example gradients (Chatterjee 2020, sec. 3).

    In every coordinate, values beyond the ``(level + 1)``-th smallest and largest of the batch are
    moved to these, then averaged:

    .. math:: \\frac1m \\sum_i \\mathrm{clip}(g_{ij},\\, x_{(c+1)},\\, x_{(m-c)})

    so no ``level`` examples can move a coordinate alone. Level 0 is the mean, the largest level
    of an odd batch the median.

    Args:
      grads: per-example gradients ``G`` (one leaf at a time is multiplied out: memory for B times
        the largest leaf), or a pytree whose leaves have a leading axis of examples.
      level: ``c >= 0``, values moved at each end; ``2 c < m``.

    Returns:
      A pytree like the parameters, averaged in float32 or wider. A coordinate that is NaN in one
      example is NaN.

    Raises:
      ValueError: a level out of range, or leading axes that disagree.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> grads = {"w": jnp.array([0.0, 1.0, 2.0, 3.0, 100.0])}
      >>> float(gradients.winsorized_mean(grads, level=1)["w"])
      2.0

    References:
      Chatterjee (2020), "Coherent Gradients: An Approach to Understanding Generalization in
      Gradient Descent-based Optimization", ICLR, arXiv:2002.10657. :cite:`chatterjee:20`
    """
    count = _num_examples(grads)
    if not 0 <= 2 * level < count:
        raise ValueError(
            f"Expected 0 <= 2 level < number of examples, got level={level} and m={count}."
        )

    def reduce(values: Array) -> Array:
        wide = values.astype(np.promote_types(values.dtype, np.float32))
        if level:
            wide = jnp.clip(wide, *(x[None] for x in order_statistics.bounds(wide, level)))
        return jnp.mean(wide, axis=0).astype(values.dtype)

    return _leafwise(lambda leaf: order_statistics.by_columns(reduce, leaf), grads)


def median_of_means(grads: Any, *, num_groups: int) -> PyTree:
    """Coordinate-wise median of the means of consecutive groups (Zielinski et al. 2020, "M3").

    Args:
      grads: per-example gradients ``G`` (only the group means are formed, no gradient of an
        example), or a pytree whose leaves have a leading axis of examples.
      num_groups: ``k >= 1``, divides the number of examples; M3 has 3. 1 is the mean, one group
        per example the median.

    Returns:
      A pytree like the parameters. A coordinate that is NaN in one example is NaN.

    Raises:
      ValueError: groups that do not divide the batch, or leading axes that disagree.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> grads = {"w": jnp.array([0.0, 1.0, 2.0, 3.0, 100.0, 100.0])}
      >>> float(gradients.median_of_means(grads, num_groups=3)["w"])
      2.5

    References:
      Zielinski, Krishnan & Chatterjee (2020), "Weak and Strong Gradient Directions: Explaining
      Memorization, Generalization, and Hardness of Examples at Scale", arXiv:2003.07422.
      :cite:`zielinski:20`
    """
    count = _num_examples(grads)
    if num_groups < 1 or count % num_groups:
        raise ValueError(
            f"Expected num_groups to divide the batch, got num_groups={num_groups} and B={count}."
        )
    size = count // num_groups
    if hasattr(grads, "materialize"):
        means = np.repeat(np.eye(num_groups, dtype=np.float32), size, axis=1) / size @ grads
    else:
        means = jax.tree.map(
            lambda g: jnp.mean(
                g.reshape((num_groups, size, *g.shape[1:])), axis=1, dtype=_wide(g)
            ).astype(g.dtype),
            grads,
        )
    return jax.tree.map(lambda g: order_statistics.by_columns(order_statistics.median, g), means)


def winsorized_aggregate(level: int) -> optax.GradientTransformation:
    """`winsorized_mean` as an optax transformation of stacked per-example gradients.

    Like `optax.contrib.differentially_private_aggregate` it takes updates with a leading axis of
    examples and returns them without, so it is the first of a chain.

    Args:
      level: ``c >= 0``, values moved at each end; ``2 c`` below the batch size.

    Returns:
      A stateless `optax.GradientTransformation`.

    Raises:
      ValueError: at the update, a level out of range for the batch.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from gradkin import gradients
      >>> optimizer = optax.chain(gradients.winsorized_aggregate(1), optax.sgd(1.0))
      >>> state = optimizer.init(jnp.zeros(1))
      >>> optimizer.update(jnp.array([[0.0], [1.0], [100.0]]), state)[0].tolist()
      [-1.0]

    References:
      Chatterjee (2020), ICLR, arXiv:2002.10657. :cite:`chatterjee:20`
    """
    checks.non_negative(level=level)
    return _aggregate(lambda updates: winsorized_mean(updates, level=level))


def median_of_means_aggregate(num_groups: int) -> optax.GradientTransformation:
    """`median_of_means` as an optax transformation of stacked per-example gradients.

    The first of a chain, as `winsorized_aggregate`.

    Args:
      num_groups: ``k >= 1``, divides the batch size.

    Returns:
      A stateless `optax.GradientTransformation`.

    Raises:
      ValueError: at the update, groups that do not divide the batch.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from gradkin import gradients
      >>> optimizer = optax.chain(gradients.median_of_means_aggregate(3), optax.sgd(1.0))
      >>> state = optimizer.init(jnp.zeros(1))
      >>> optimizer.update(jnp.array([[0.0], [1.0], [100.0]]), state)[0].tolist()
      [-1.0]

    References:
      Zielinski, Krishnan & Chatterjee (2020), arXiv:2003.07422. :cite:`zielinski:20`
    """
    checks.positive(num_groups=num_groups)
    return _aggregate(lambda updates: median_of_means(updates, num_groups=num_groups))


def _aggregate(reduce: Callable[[PyTree], PyTree]) -> optax.GradientTransformation:
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None: (reduce(updates), state),
    )


def _leafwise(reduce: Callable[[Array], Array], grads: Any) -> PyTree:
    """Map over leaves ``[B, ...]``, of which a matrix multiplies out one at a time."""
    if not hasattr(grads, "materialize"):
        return jax.tree.map(reduce, grads)
    parts = [jax.tree.map(reduce, G.materialize()) for G in grads.by_leaf().values()]
    # Each part is None wherever another one has its leaf.
    return jax.tree.map(
        lambda *leaves: next((leaf for leaf in leaves if leaf is not None), None),
        *parts,
        is_leaf=lambda leaf: leaf is None,
    )


def _num_examples(grads: Any) -> int:
    if hasattr(grads, "materialize"):
        return len(grads)
    shapes = [np.shape(leaf)[:1] for leaf in jax.tree.leaves(grads)]
    if len(set(shapes)) != 1 or not shapes[0]:
        raise ValueError(
            f"Expected grads with one leading axis of examples, got leading axes {shapes}."
        )
    return shapes[0][0]


def _wide(x: Array) -> np.dtype:
    return np.promote_types(x.dtype, np.float32)
