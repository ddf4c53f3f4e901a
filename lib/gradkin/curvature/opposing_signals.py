"""Opposing signals: groups of examples whose losses move against each other."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gradkin import checks
from gradkin.matrices.contraction import at_least_float32
from gradkin.typing import Array, ArrayLike, PyTree


class OpposingGroups(NamedTuple):
    """Two groups of examples, by position, the largest change first.

    Attributes:
      losers: whose losses rose the most in a step, ``[size]``.
      gainers: whose losses fell the most, ``[size]``.
    """

    losers: Int[Array, " size"]
    gainers: Int[Array, " size"]


class GradientOpposition(NamedTuple):
    """Mean gradients of two groups, and how they lie.

    Attributes:
      losers: mean gradient of the losers, a pytree like the parameters.
      gainers: mean gradient of the gainers.
      cosine: of both; -1 where they are opposite, 0 where one of them is zero.
      norm_ratios: norms of both over that of the mean gradient of all examples, ``[2]``; infinite
        where that is zero, NaN where both are.
    """

    losers: PyTree
    gainers: PyTree
    cosine: Float[Array, ""]
    norm_ratios: Float[Array, " 2"]


def opposing_groups(change: Float[ArrayLike, " examples"], *, size: int) -> OpposingGroups:
    """Examples whose losses rose and fell the most in one step (Rosenfeld & Risteski 2024).

    Taken at a step where the training loss rises, both lists are candidates for a pair of opposing
    signals: outliers that share a large feature and differ in what it should mean.

    Args:
      change: loss of each example after the step minus that before it, ``[N]``.
      size: of each group, from 1 to ``N / 2``.

    Returns:
      `OpposingGroups`, which never share an example. Equal changes are ordered by position, the
      later as the larger: without any change the groups are the last and the first examples. NaN,
      which is what a loss that left the finite numbers changes by, counts as a rise.

    Raises:
      ValueError: a size that is not as above.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> groups = curvature.opposing_groups(jnp.array([0.1, -3.0, 5.0, 0.0, -1.0]), size=2)
      >>> groups.losers.tolist(), groups.gainers.tolist()
      ([2, 0], [1, 4])

    References:
      Rosenfeld & Risteski (2024), "Outliers with Opposing Signals Have an Outsized Effect on
      Neural Network Optimization", arXiv:2311.04163. :cite:`opposing-signals`
    """
    checks.rank(1, change=change)
    change = jnp.asarray(change)
    if not checks.is_integer(size, least=1) or size > len(change) // 2:
        raise ValueError(
            f"Expected size from 1 to {len(change) // 2}, half of the examples, got {size!r}."
        )
    order = jnp.argsort(change)  # stable, NaN last
    return OpposingGroups(losers=order[::-1][:size], gainers=order[:size])


def gradient_opposition(G: Any, groups: OpposingGroups) -> GradientOpposition:
    """Mean gradients of two groups and their cosine (Rosenfeld & Risteski 2024).

    No gradient of an example is formed.

    Args:
      G: per-example gradients of all examples.
      groups: from `opposing_groups`, or any other two groups, for comparison.

    Returns:
      `GradientOpposition`.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import curvature
      >>> x, y = jnp.array([[3.0], [3.0], [1.0]]), jnp.array([1.0, -1.0, 1.0])
      >>> loss = lambda w, x, y: jnp.log1p(jnp.exp(-y * (x @ w)))
      >>> G = gradkin.per_example_grads(loss)(jnp.zeros(1), x, y)
      >>> pair = curvature.OpposingGroups(losers=jnp.array([0]), gainers=jnp.array([1]))
      >>> found = curvature.gradient_opposition(G, pair)
      >>> float(found.cosine), found.norm_ratios.tolist()
      (-1.0, [9.0, 9.0])

    References:
      Rosenfeld & Risteski (2024), arXiv:2311.04163. :cite:`opposing-signals`
    """

    _check_groups(groups, len(G), "G")

    def group_mean(rows: Array) -> PyTree:
        weights = jnp.zeros(len(G), at_least_float32(G.dtype)).at[rows].add(1)
        return (weights / len(rows)) @ G

    losers, gainers = group_mean(groups.losers), group_mean(groups.gainers)
    norms = [_norm(tree) for tree in (losers, gainers, G.mean())]
    scale = norms[0] * norms[1]
    cosine = jnp.where(scale == 0, 0, _inner(losers, gainers) / jnp.where(scale == 0, 1, scale))
    return GradientOpposition(losers, gainers, cosine, jnp.stack(norms[:2]) / norms[2])


def antiphase(
    changes: Float[ArrayLike, "steps examples"], groups: OpposingGroups, *, of: str = "means"
) -> Float[Array, ""]:
    """Correlation over steps of how the losses of two groups change; -1 in antiphase.

    Args:
      changes: change of each example's loss in each of some successive steps, ``[T, N]``.
      groups: two groups of examples.
      of: "means" correlates the means over each group; "pairs" averages the correlation over all
        pairs of a loser and a gainer.

    Returns:
      A scalar in [-1, 1]; NaN where a change that is correlated is the same in all steps.

    Raises:
      ValueError: fewer than two steps, or an unknown ``of``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> changes = jnp.array([[1.0, -2.0], [-1.5, 3.0], [2.0, -4.0]])
      >>> pair = curvature.OpposingGroups(losers=jnp.array([0]), gainers=jnp.array([1]))
      >>> round(float(curvature.antiphase(changes, pair)), 4)
      -1.0

    References:
      Rosenfeld & Risteski (2024), arXiv:2311.04163. :cite:`opposing-signals`
    """
    checks.rank(2, changes=changes)
    checks.one_of(("means", "pairs"), of=of)
    changes = jnp.asarray(changes)
    if len(changes) < 2:
        raise ValueError(f"Expected changes of at least 2 steps, got {len(changes)}.")
    _check_groups(groups, changes.shape[1], "changes")
    changes = changes.astype(at_least_float32(changes.dtype))
    sides = [changes[:, rows] for rows in groups]
    if of == "means":
        sides = [jnp.mean(side, axis=1, keepdims=True) for side in sides]

    def standard(side: Array) -> Array:
        mean = jnp.mean(side, axis=0, keepdims=True)
        away = side - mean
        norm = jnp.linalg.norm(away, axis=0, keepdims=True)
        # What rounding leaves of a constant does not change.
        rounding = 64 * jnp.finfo(side.dtype).eps * len(side) ** 0.5 * jnp.abs(mean)
        return away / jnp.where(norm <= rounding, jnp.nan, norm)

    # The mean over pairs of an inner product is the inner product of the means.
    left, right = (jnp.mean(standard(side), axis=1) for side in sides)
    return jnp.sum(left * right)


def change_concentration(
    change: Float[ArrayLike, " examples"], *, share: float = 0.01
) -> Float[Array, ""]:
    """Part of all change of losses that the most changed examples have.

    Args:
      change: change of each example's loss in a step, ``[N]``.
      share: of the examples, in (0, 1]; rounded up to whole ones.

    Returns:
      ``sum of the largest |change| / sum of all``, in ``[share, 1]``; 0 without any change.

    Raises:
      ValueError: a share that is not as above.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> float(curvature.change_concentration(jnp.array([-6.0, 1.0, 0.0, 1.0]), share=0.25))
      0.75

    References:
      Rosenfeld & Risteski (2024), arXiv:2311.04163. :cite:`opposing-signals`
    """
    checks.rank(1, change=change)
    if not 0 < float(share) <= 1:
        raise ValueError(f"Expected share in (0, 1], got share={share}.")
    sizes = jnp.abs(jnp.asarray(change))
    # As many digits as a user writes: 0.07 * 100 is a little above 7.
    count = int(np.ceil(np.round(float(share) * len(sizes), 6)))
    total = jnp.sum(sizes)
    most = jnp.sum(jax.lax.top_k(sizes, max(count, 1))[0])
    return jnp.where(total == 0, 0, most / jnp.where(total == 0, 1, total))


def shared_feature(
    features: Float[ArrayLike, "examples d"], groups: OpposingGroups
) -> Float[Array, ""]:
    """Cosine of what sets two groups apart from the rest: 1 where they share one feature.

    Args:
      features: of all examples, ``[N, d]``, such as the inputs or a hidden layer.
      groups: two groups of examples.

    Returns:
      Cosine of the groups' mean features, both minus the mean over all examples; 0 where one of
      these is zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> features = jnp.array([[4.0, 0.0], [4.0, 0.0], [-4.0, 1.0], [-4.0, -1.0]])
      >>> pair = curvature.OpposingGroups(losers=jnp.array([0]), gainers=jnp.array([1]))
      >>> float(curvature.shared_feature(features, pair))
      1.0

    References:
      Rosenfeld & Risteski (2024), arXiv:2311.04163. :cite:`opposing-signals`
    """
    features = jnp.asarray(features)
    features = features.astype(at_least_float32(features.dtype))
    _check_groups(groups, len(features), "features")
    middle = jnp.mean(features, axis=0)
    a, b = (jnp.mean(features[rows], axis=0) - middle for rows in groups)
    scale = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    return jnp.where(scale == 0, 0, jnp.sum(a * b) / jnp.where(scale == 0, 1, scale))


def _check_groups(groups: OpposingGroups, size: int, what: str) -> None:
    """Raise ValueError where a concrete index is that of no example."""
    for name, rows in zip(("losers", "gainers"), groups):
        if checks.is_concrete(rows):
            found = np.asarray(rows)
            if found.size == 0 or found.min() < 0 or found.max() >= size:
                raise ValueError(
                    f"Expected groups.{name} to be indices of the {size} examples of {what}, got "
                    f"{found if found.size < 9 else (found.min(), found.max())}."
                )


def _inner(a: PyTree, b: PyTree) -> Array:
    parts = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(_wide(x) * _wide(y)), a, b))
    return jnp.sum(jnp.stack(parts))


def _norm(tree: PyTree) -> Array:
    return jnp.sqrt(_inner(tree, tree))


def _wide(x: Array) -> Array:
    return x.astype(at_least_float32(x.dtype))
