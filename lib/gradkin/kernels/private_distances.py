"""Sums of distances to private points: one release, any number of queries."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.kernels import distance_trees, private_rows
from gradkin.kernels.private_budget import PrivacyBudget, Sensitivity, add_noise, check_budget
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, ArrayLike, PRNGKey, Scalar

Function = Callable[[Array], Array]


@functools.partial(
    register_dataclass,
    data_fields=["nodes", "lower", "upper", "projection"],
    meta_fields=["budget", "noise_scale", "grouped"],
)
@dataclasses.dataclass(frozen=True)
class PrivateDistances:
    """Noisy trees of counts, one per coordinate: what `private_l1_distances` released.

    Everything here is public. Queries cost no privacy, however many there are, and answers may be
    negative: cutting them at zero is free post-processing.

    Attributes:
      nodes: noisy counts, per level ``[C, d, 2^l]``, root first.
      lower: public lower ends of the coordinates ``[d]``.
      upper: public upper ends ``[d]``.
      projection: Gaussian matrix ``[d, D]`` of an embedding of l2 into l1, or None.
      budget: what the release cost.
      noise_scale: scale of the noise on every node.
      grouped: whether there are classes: answers are ``[q, C]``, else ``[q]``.
    """

    nodes: Any
    lower: Any
    upper: Any
    projection: Any
    budget: PrivacyBudget
    noise_scale: float
    grouped: bool

    def sum(
        self, y: ArrayLike, *, alpha: Scalar | None = None, function: Function | None = None
    ) -> Array:
        """Estimate the sum over private points of the distance to each query.

        Args:
          y: queries ``[q, d]`` (``[q, D]`` before a projection), of any range.
          alpha: None fits the counts of cells to all nodes by least squares and sums distances to
            the cells' centres: unbiased but for the rounding to cells. A number > 0 is the paper's
            estimate: counts in shells whose radii grow by ``1 + alpha``, each point taken to be at
            the outer radius, so that a sum is too large by a factor of at most ``1 + alpha``.
          function: of the distances ``|x_k - y_k|`` along one coordinate, elementwise, such as
            ``lambda t: t**3`` for the cubed l3 distance; increasing, where shells are used. A
            power p raises the shells' factor to ``(1 + alpha)^p``. None is the distance itself.

        Returns:
          ``sum_x sum_k f(|x_k - y_k|)``, ``[q]`` or, for each class, ``[q, C]``. After a
          projection an estimate of ``sum_x |x - y|_2``.
        """
        alpha, y = self._checked(alpha, function), self._queries(y)
        sums = _sums(self.nodes, self.lower, self.upper, y, alpha, function) * self._factor
        return sums.T if self.grouped else sums[0]

    def noise_std(
        self, y: ArrayLike, *, alpha: Scalar | None = None, function: Function | None = None
    ) -> Array:
        """Standard deviation that the noise alone gives to each answer of `sum`, ``[q]``.

        Exact: an answer is linear in the nodes, and this is the norm of its gradient. The same for
        all classes. It leaves out the rounding to cells, the bias of shells and the embedding.
        """
        alpha, y = self._checked(alpha, function), self._queries(y)
        one_class = tuple(jnp.zeros_like(level[:1]) for level in self.nodes)
        norms = _weight_norms(one_class, self.lower, self.upper, y, alpha, function)
        return norms * self._factor * self.budget.deviation(self.noise_scale)

    def counts(self) -> Array:
        """Estimated number of private points: a number, or one per class ``[C]``."""
        leaves = distance_trees.consistent_leaves(self.nodes)
        counts = jnp.mean(jnp.sum(leaves, axis=-1), axis=-1)
        return counts if self.grouped else counts[0]

    def classify(self, y: ArrayLike, *, alpha: Scalar | None = None) -> Array:
        """The class of least mean distance to each query, int32 ``[q]``.

        A class whose estimated count is below one is never chosen.
        """
        if not self.grouped:
            raise ValueError("Expected a release with labels to classify by, got one without.")
        counts, sums = self.counts()[None], self.sum(y, alpha=alpha)
        means = jnp.where(counts < 1, jnp.inf, sums / jnp.maximum(counts, 1))
        return jnp.argmin(means, axis=1).astype(np.int32)

    def event(self) -> Any:
        """The `dp_accounting.DpEvent` of this release; see `PrivacyBudget`."""
        return self.budget.event()

    @property
    def _factor(self) -> float:
        """What turns l1 distances after the embedding into l2 distances."""
        if self.projection is None:
            return 1.0
        return math.sqrt(math.pi / 2) / self.projection.shape[0]

    def _checked(self, alpha: Any, function: Any) -> float | None:
        if function is not None and self.projection is not None:
            raise ValueError(
                "Expected no function of coordinates after an embedding of l2 distances, got one."
            )
        if alpha is None:
            return None
        if not checks.is_concrete(alpha):
            raise TypeError("Expected alpha to be a number, got a traced array.")
        checks.positive(alpha=alpha)
        return float(alpha)

    def _queries(self, y: ArrayLike) -> Array:
        width = self.lower.shape[0] if self.projection is None else self.projection.shape[1]
        y = jnp.asarray(y)
        if y.ndim != 2 or y.shape[1] != width:
            raise ValueError(f"Expected y of shape [q, {width}], got y.shape={y.shape}.")
        y = y.astype(self.lower.dtype)
        if self.projection is None:
            return y
        return jnp.matmul(y, self.projection.T, precision=jax.lax.Precision.HIGHEST)


def private_l1_distances(
    key: PRNGKey,
    x: ArrayLike,
    *,
    lower: ArrayLike,
    upper: ArrayLike,
    levels: int,
    budget: PrivacyBudget,
    outside: str = "refuse",
    mask: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    num_classes: int | None = None,
) -> PrivateDistances:
    """Release private points so that sums of l1 distances to them can be asked for ever after.

    Each coordinate is rounded to one of ``N = 2^(levels - 1)`` cells and counted in a binary tree;
    a point moves one node per level and coordinate by one, so the ``d`` trees together have L1
    sensitivity ``d levels`` and L2 sensitivity ``sqrt(d levels)``. Every node gets noise.

    Args:
      key: a key used for nothing else, and kept secret.
      x: private points ``[n, d]``.
      lower: public lower end of the coordinates, a number or ``[d]``.
      upper: public upper end, above ``lower``.
      levels: of each tree, >= 1; public: about ``log2(n) + 1`` for the public order of n.
      budget: what the release may cost.
      outside: what to do with a point outside ``[lower, upper]``: "refuse" (ValueError; inside
        `jit`, where it cannot be seen, this option is refused itself), "clip" or "drop".
      mask: which rows count ``[n]``.
      labels: class of each row ``[n]``: a tree per class. A row is in one class only, so all
        classes together cost no more than one.
      num_classes: how many classes there are; public.

    Returns:
      `PrivateDistances`; ``.sum(y)`` answers.

    Raises:
      ValueError: see ``outside``; rows that are not finite, an empty range, no levels, labels
        without ``num_classes``.
      TypeError: points that are not floating, a budget that is none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.linspace(0.0, 1.0, 1000)[:, None]
      >>> release = kernels.private_l1_distances(
      ...     jax.random.key(0), x, lower=0.0, upper=1.0, levels=11,
      ...     budget=kernels.PrivacyBudget(1.0))
      >>> y = jnp.array([[0.25]])
      >>> error = release.sum(y)[0] - jnp.sum(jnp.abs(x - y))
      >>> bool(abs(error) < 4 * release.noise_std(y)[0])
      True
      >>> release.event()
      LaplaceDpEvent(noise_multiplier=1.0)

    Note:
      The noise is that of the joint release. The paper splits the budget over coordinates, which
      for Laplace noise is the same and for Gaussian noise is worse. Its shells are ``alpha``; the
      default query is this library's own: the follow-up's idea (distances need not be rounded to
      shells) on the paper's tree, by least squares. Of noise with deviation s per node it keeps
      about ``R s / 2`` at the most, per coordinate of range R. Shells keep about ``R s``, because a
      shell's count is the difference of two prefix counts and what neighbours share cancels. With
      every shell cut into dyadic intervals by itself, as in the paper, alpha 0.1 would keep 6.8 R s
      at N = 2^17 (2.6 R s at 2^6), growing like ``sqrt(log N / alpha)``.

    References:
      Backurs et al. (2024), "Efficiently Computing Similarities to Private Datasets", ICLR,
      arXiv:2403.08917, section 4. :cite:`dp-similarities`
      Liu et al. (2024), "Differentially Private Kernel Density Estimation", arXiv:2409.01688.
      :cite:`liu:24`
      Hay et al. (2010), "Boosting the Accuracy of Differentially Private Histograms Through
      Consistency", VLDB, arXiv:0904.0942. :cite:`hay:10`
    """
    rows = private_rows.checked_rows(x, mask, labels, num_classes)
    width = rows.x.shape[1]
    if checks.is_concrete(lower) and checks.is_concrete(upper):
        length = np.asarray(upper) - np.asarray(lower)
        if not np.all(np.isfinite(length) & (length > 0)):
            raise ValueError(f"Expected finite lower < upper, got lower={lower}, upper={upper}.")
    lower, upper = (_ends(v, name, rows.x) for v, name in ((lower, "lower"), (upper, "upper")))
    check_budget(budget)
    if not checks.is_integer(levels, least=1) or levels > 26:
        raise ValueError(f"Expected levels to be an integer from 1 to 26, got levels={levels!r}.")
    levels, rows = int(levels), private_rows.within_box(rows, lower, upper, outside)
    moved = width * levels
    # A row that is replaced leaves up to one node per level and coordinate, and enters another.
    scale = budget.scale(Sensitivity(moved, math.sqrt(moved), math.sqrt(2 * moved)))
    nodes = _noisy_trees(key, rows, lower, upper, scale, levels, budget.distribution)
    return PrivateDistances(nodes, lower, upper, None, budget, scale, labels is not None)


def private_l2_distances(
    key: PRNGKey,
    x: ArrayLike,
    *,
    max_norm: Scalar,
    size: int,
    levels: int,
    budget: PrivacyBudget,
    width: Scalar = 4.0,
    outside: str = "refuse",
    mask: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    num_classes: int | None = None,
) -> PrivateDistances:
    """Release private points so that sums of l2 distances to them can be asked for.

    With a Gaussian matrix ``G [size, d]``, drawn without looking at the data,
    ``sqrt(pi / 2) / size |G x - G y|_1`` is ``|x - y|_2`` on average, with relative deviation
    ``sqrt((pi / 2 - 1) / size)``. The projected points go into `private_l1_distances`.

    Args:
      key: a key used for nothing else, and kept secret.
      x: private points ``[n, d]``.
      max_norm: public bound on their norms.
      size: coordinates after the embedding, >= 1.
      levels: see `private_l1_distances`.
      budget: what the release may cost.
      width: projected coordinates, each normal with deviation at most ``max_norm``, are clipped to
        ``[-width max_norm, width max_norm]``. At 4 this touches fewer than one in 10,000.
      outside: what to do with a point of larger norm: "refuse", "clip" or "drop".
      mask: which rows count ``[n]``.
      labels: class of each row ``[n]``.
      num_classes: how many classes there are; public.

    Returns:
      `PrivateDistances`; ``.sum(y)`` answers, for queries ``[q, d]``.

    Raises:
      ValueError: see `private_l1_distances`; a bound, size or width that is not positive.
      TypeError: points that are not floating, a budget that is none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.ones((100, 3))
      >>> release = kernels.private_l2_distances(
      ...     jax.random.key(0), x, max_norm=2.0, size=500, levels=8,
      ...     budget=kernels.PrivacyBudget(float("inf")))
      >>> exact = 100 * 3**0.5
      >>> bool(abs(release.sum(jnp.zeros((1, 3)))[0] / exact - 1) < 0.1)
      True

    References:
      Backurs et al. (2024), "Efficiently Computing Similarities to Private Datasets", ICLR,
      arXiv:2403.08917, section 6. :cite:`dp-similarities`
    """
    checks.positive(max_norm=max_norm, width=width, size=size)
    rows = private_rows.checked_rows(x, mask, labels, num_classes)
    rows = private_rows.within_ball(rows, float(max_norm), outside)
    projection_key, noise_key = jax.random.split(key)
    projection = jax.random.normal(projection_key, (size, rows.x.shape[1]), rows.x.dtype)
    release = private_l1_distances(
        noise_key,
        jnp.matmul(rows.x, projection.T, precision=jax.lax.Precision.HIGHEST),
        lower=-float(width * max_norm),
        upper=float(width * max_norm),
        levels=levels,
        budget=budget,
        outside="clip",
        mask=rows.keep,
        labels=None if labels is None else rows.labels,
        num_classes=num_classes,
    )
    return dataclasses.replace(release, projection=projection)


def _ends(value: Any, name: str, x: Array) -> Array:
    value = jnp.asarray(value).astype(x.dtype)
    if value.shape not in ((), (x.shape[1],)):
        raise ValueError(
            f"Expected {name} to be a number or of shape ({x.shape[1]},), got {name}.shape="
            f"{value.shape}."
        )
    return jnp.broadcast_to(value, (x.shape[1],))


@functools.partial(jax.jit, static_argnames=("levels", "distribution", "classes"))
def _trees(key, x, row_labels, keep, lower, upper, scale, levels, distribution, classes):
    leaves = distance_trees.leaf_counts(
        x, row_labels, keep, lower, upper, 2 ** (levels - 1), classes
    )
    nodes = distance_trees.levels_above(leaves)
    # All levels at once: one random draw is compiled, not one per level.
    flat = jnp.concatenate(nodes, axis=-1).astype(x.dtype)
    noisy = add_noise(key, flat, scale, distribution)
    return tuple(jnp.split(noisy, [2**level - 1 for level in range(1, levels)], axis=-1))


def _noisy_trees(key, rows, lower, upper, scale, levels, distribution):
    return _trees(
        key,
        rows.x,
        rows.labels,
        rows.keep,
        lower,
        upper,
        scale,
        levels=levels,
        distribution=distribution,
        classes=rows.num_classes,
    )


@functools.partial(jax.jit, static_argnums=(4, 5))
def _sums(nodes, lower, upper, y, alpha, function):
    """Answers ``[C, q]``."""
    columns = (lower, upper, y.T)
    if alpha is not None:
        sums = functools.partial(distance_trees.shell_distances, function, alpha)
        return distance_trees.over_coordinates(sums, distance_trees.prefix_counts(nodes), *columns)
    leaves = distance_trees.consistent_leaves(nodes)
    if function is None:
        sums = distance_trees.absolute_distances
    else:
        sums = functools.partial(distance_trees.distances_through, function)
    return distance_trees.over_coordinates(sums, leaves, *columns)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _weight_norms(nodes, lower, upper, y, alpha, function):
    """Norm of the weights that an answer gives to the nodes, ``[q]``."""

    def one(query):
        gradient = jax.grad(
            lambda nodes: _sums(nodes, lower, upper, query[None], alpha, function)[0, 0]
        )(nodes)
        return jnp.sqrt(sum(jnp.sum(jnp.square(level)) for level in gradient))

    return jax.lax.map(one, y)
