"""Counts, sums and squared norms of private points: squared distances, and nearest means."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.kernels import private_rows
from gradkin.kernels.private_budget import PrivacyBudget, Sensitivity, add_noise, check_budget
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, ArrayLike, PRNGKey, Scalar


@functools.partial(
    register_dataclass,
    data_fields=["count", "total", "squares"],
    meta_fields=["budget", "noise_scales", "grouped"],
)
@dataclasses.dataclass(frozen=True)
class PrivateMoments:
    """Noisy moments per class: what `private_moments` released; everything here is public.

    Attributes:
      count: number of rows ``[C]``; None at a share of 0.
      total: their sum ``[C, d]``.
      squares: the sum of their squared norms ``[C]``; None at a share of 0.
      budget: what the release cost.
      noise_scales: scales of the noise on the three.
      grouped: whether there are classes: answers are ``[q, C]``, else ``[q]``.
    """

    count: Any
    total: Any
    squares: Any
    budget: PrivacyBudget
    noise_scales: tuple[float, float, float]
    grouped: bool

    def squared_l2(self, y: ArrayLike) -> Array:
        """Estimate the sum of squared distances from private points to each query.

        Args:
          y: queries ``[q, d]``.

        Returns:
          ``sum_x |x - y|^2 = n |y|^2 - 2 y . sum x + sum |x|^2``, ``[q]`` or, for each class,
          ``[q, C]``; unbiased.
        """
        self._need("count", "squares")
        y = self._queries(y)
        norms = jnp.sum(jnp.square(y), axis=1)
        sums = norms[:, None] * self.count[None] - 2 * self._products(y) + self.squares[None]
        return sums if self.grouped else sums[:, 0]

    def noise_std(self, y: ArrayLike) -> Array:
        """Standard deviation of each answer of `squared_l2`, ``[q]``: exact, for all classes."""
        self._need("count", "squares")
        norms = jnp.sum(jnp.square(self._queries(y)), axis=1)
        count, total, squares = (self.budget.deviation(scale) for scale in self.noise_scales)
        return jnp.sqrt(jnp.square(norms * count) + 4 * norms * total**2 + squares**2)

    def means(self) -> Array:
        """Mean of the rows of each class ``[C, d]``; counts below one are taken as one."""
        self._need("count")
        return self.total / jnp.maximum(self.count, 1)[:, None]

    def classify(self, y: ArrayLike) -> Array:
        """The class of nearest mean, int32 ``[q]``."""
        if not self.grouped:
            raise ValueError("Expected a release with labels to classify by, got one without.")
        means, y = self.means(), self._queries(y)
        products = jnp.matmul(y, means.T, precision=jax.lax.Precision.HIGHEST)
        nearness = 2 * products - jnp.sum(jnp.square(means), axis=1)[None]
        return jnp.argmax(nearness, axis=1).astype(np.int32)

    def event(self) -> Any:
        """The `dp_accounting.DpEvent` of this release; see `PrivacyBudget`."""
        return self.budget.event()

    def _products(self, y: Array) -> Array:
        return jnp.matmul(y, self.total.T, precision=jax.lax.Precision.HIGHEST)

    def _need(self, *names: str) -> None:
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ValueError(f"Expected a release with {names}, got none of {missing}: share 0.")

    def _queries(self, y: ArrayLike) -> Array:
        y, width = jnp.asarray(y), self.total.shape[1]
        if y.ndim != 2 or y.shape[1] != width:
            raise ValueError(f"Expected y of shape [q, {width}], got y.shape={y.shape}.")
        return y.astype(self.total.dtype)


def private_moments(
    key: PRNGKey,
    x: ArrayLike,
    *,
    max_norm: Scalar,
    budget: PrivacyBudget,
    shares: Sequence[float] = (0.1, 0.6, 0.3),
    outside: str = "refuse",
    mask: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    num_classes: int | None = None,
) -> PrivateMoments:
    """Release the moments of private points that squared distances and nearest means need.

    Rows of norm at most B: the count has sensitivity 1, the sum L1 sensitivity ``B sqrt(d)`` and L2
    sensitivity B, the sum of squared norms ``B^2``. Each gets noise for its share of the budget.

    Args:
      key: a key used for nothing else, and kept secret.
      x: private points ``[n, d]``.
      max_norm: ``B > 0``, public.
      budget: what the release may cost.
      shares: of the budget for count, sum and squared norms; they add up to 1. A share of 0 does
        not release that moment: ``(0.1, 0.9, 0.0)`` is enough for nearest means.
      outside: what to do with a row of larger norm: "refuse" (ValueError; inside `jit`, where it
        cannot be seen, this option is refused itself), "clip" to the norm, or "drop".
      mask: which rows count ``[n]``.
      labels: class of each row ``[n]``: moments per class. A row is in one class only, so all
        classes together cost no more than one.
      num_classes: how many classes there are; public.

    Returns:
      `PrivateMoments`.

    Raises:
      ValueError: see ``outside``; a bound that is not positive, shares that are negative or do not
        add up to 1, none for the sum, rows that are not finite, labels without ``num_classes``.
      TypeError: points that are not floating.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import kernels
      >>> release = kernels.private_moments(
      ...     jax.random.key(0), jnp.eye(2), max_norm=1.0,
      ...     budget=kernels.PrivacyBudget(float("inf")))
      >>> round(float(release.squared_l2(jnp.array([[1.0, 0.0]]))[0]), 4)
      2.0

    References:
      Backurs et al. (2024), "Efficiently Computing Similarities to Private Datasets", ICLR,
      arXiv:2403.08917, sections 6 and 11. :cite:`dp-similarities`
    """
    check_budget(budget)
    checks.positive(max_norm=max_norm)
    if len(shares) != 3 or min(shares) < 0 or not math.isclose(sum(shares), 1, rel_tol=1e-9):
        raise ValueError(f"Expected three shares >= 0 that add up to 1, got shares={shares}.")
    if shares[1] == 0:
        raise ValueError(f"Expected a positive share for the sum of rows, got shares={shares}.")
    bound = float(max_norm)
    rows = private_rows.checked_rows(x, mask, labels, num_classes)
    rows = private_rows.within_ball(rows, bound, outside)
    sensitivities = (
        Sensitivity(1.0, 1.0),
        Sensitivity(bound * math.sqrt(rows.x.shape[1]), bound),
        Sensitivity(bound**2, bound**2),
    )
    of_count, of_total, of_squares = (
        budget.scale(sensitivity, share=share) if share > 0 else math.inf
        for sensitivity, share in zip(sensitivities, shares, strict=True)
    )
    scales = (of_count, of_total, of_squares)
    moments = _noisy_moments(
        key,
        rows.x,
        rows.labels,
        rows.keep,
        scales,
        classes=rows.num_classes,
        distribution=budget.distribution,
    )
    count, total, squares = (
        part if share > 0 else None for part, share in zip(moments, shares, strict=True)
    )
    return PrivateMoments(count, total, squares, budget, scales, labels is not None)


@functools.partial(jax.jit, static_argnames=("classes", "distribution"))
def _noisy_moments(key, x, labels, keep, scales, *, classes, distribution):
    members = (labels[:, None] == jnp.arange(classes)[None]) & keep[:, None]
    members = members.astype(x.dtype)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    moments = (
        jnp.sum(members, axis=0),
        product(members.T, x),
        product(members.T, jnp.sum(jnp.square(x), axis=1)),
    )
    keys = jax.random.split(key, 3)
    return tuple(
        add_noise(part_key, moment, scale, distribution)
        for part_key, moment, scale in zip(keys, moments, scales, strict=True)
    )
