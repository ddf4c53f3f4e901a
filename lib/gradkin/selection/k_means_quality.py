"""K-means-quality: as many examples from each cluster as it deserves, good ones more often."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from gradkin import checks
from gradkin.curvature import unit_clusters
from gradkin.matrices import arguments, distances
from gradkin.matrices.kernel_arguments import as_points, finite
from gradkin.typing import Array, ArrayLike, PRNGKey, Scalar

ALLOCATIONS = ("proportional", "equal")


class Clusters(NamedTuple):
    """What k-means found.

    Attributes:
      labels: cluster of each point, ``[n]``.
      centroids: mean of each cluster, ``[k, d]``.
      sizes: points of each cluster, ``[k]``; zero is possible.
      inertia: sum of squared distances to the centroids.
    """

    labels: Array
    centroids: Array
    sizes: Array
    inertia: Array


def k_means(
    key: PRNGKey, points: ArrayLike, k: int, *, num_steps: int = 100, num_restarts: int = 5
) -> Clusters:
    """Cluster points by Lloyd's k-means from k-means++ starts (Arthur & Vassilvitskii 2007).

    .. math:: \\min_{c, a} \\sum_i \\| x_i - c_{a_i} \\|^2

    Args:
      key: PRNG key.
      points: ``[n, ...]``; to cluster directions, scale them to unit length first.
      k: number of clusters, from 1 to ``n``.
      num_steps: of Lloyd's algorithm.
      num_restarts: starts, of which the tightest result is taken.

    Returns:
      `Clusters`.

    Raises:
      ValueError: ``k`` outside 1, ..., n, fewer than one step or start, or points that are not
        finite, where they can be read.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import selection
      >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
      >>> found = selection.k_means(jax.random.key(0), x, 2)
      >>> sorted(found.centroids[:, 0].tolist()), float(found.inertia)
      ([0.5, 9.5], 1.0)

    References:
      Arthur & Vassilvitskii (2007), "k-means++: The Advantages of Careful Seeding", SODA.
      :cite:`arthur:07`
    """
    points = as_points(points, "points")
    finite(points, "points")
    points = distances.points(points)
    n = len(points)
    if not 1 <= k <= n:
        raise ValueError(f"Expected k from 1 to the {n} points, got k={k}.")
    checks.positive(num_steps=num_steps, num_restarts=num_restarts)
    counted = jnp.ones(n, bool)
    # Products of points far from the origin cancel.
    mean = jnp.mean(points, axis=0, keepdims=True)
    one = lambda key: unit_clusters.k_means(key, points - mean, counted, k, num_steps)
    labels, inertia = jax.lax.map(one, jax.random.split(key, num_restarts))
    labels = labels[jnp.argmin(inertia)]
    sizes = jnp.bincount(labels, length=k)
    centroids = jax.ops.segment_sum(points, labels, k)
    centroids = centroids / jnp.maximum(sizes, 1).astype(points.dtype)[:, None]
    inertia = jnp.sum(jnp.square(points - centroids[labels]))
    return Clusters(labels, centroids, sizes, inertia)


def allocate(
    sizes: Int[ArrayLike, " k"], budget: int, *, allocation: str = "proportional"
) -> Int[Array, " k"]:
    """How many examples each cluster gives, so that they are ``budget`` together.

    "proportional" is ``budget * size / n`` (Yu et al. 2024, sec. 3), rounded by largest remainders;
    "equal" is ``budget / k``, where clusters that are too small give all they have and the others
    share what is missing.

    Args:
      sizes: of the clusters, ``[k]``.
      budget: examples altogether, from 1 to the sum of sizes.
      allocation: "proportional" or "equal".

    Returns:
      ``[k]`` numbers that sum to ``budget``, none above its size.

    Raises:
      ValueError: another allocation, ``budget`` < 1, or, where the sizes can be read, above their
        sum, a negative size, or a product ``budget * size`` that their dtype cannot hold.

    Note:
      The released code drops fractions and so selects up to ``k`` too few.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> selection.allocate(jnp.array([6, 3, 1]), 5).tolist()
      [3, 2, 0]
      >>> selection.allocate(jnp.array([6, 3, 1]), 5, allocation="equal").tolist()
      [2, 2, 1]

    References:
      Yu, Chen, Ahmadian & Fadaee (2024), "Diversify and Conquer: Diversity-Centric Data Selection
      with Iterative Refinement", arXiv:2409.11378, sec. 3. :cite:`diversify-and-conquer`
    """
    checks.one_of(ALLOCATIONS, allocation=allocation)
    sizes = jnp.asarray(sizes)
    checks.rank(1, sizes=sizes)
    checks.non_negative(sizes=sizes)
    if budget < 1:
        raise ValueError(f"Expected budget >= 1, got budget={budget}.")
    if checks.is_concrete(sizes):
        numbers = np.asarray(sizes)
        if budget > numbers.sum():
            raise ValueError(
                f"Expected budget <= the {numbers.sum()} examples, got budget={budget}."
            )
        if budget * int(numbers.max()) > np.iinfo(numbers.dtype).max:
            raise ValueError(
                f"Expected budget * sizes to fit {sizes.dtype}, got budget={budget} and sizes up "
                f"to {numbers.max()}: enable x64."
            )
    total = jnp.sum(sizes)
    if allocation == "proportional":
        given = budget * sizes // total
        merit = budget * sizes % total
    else:
        # The highest level to which all clusters can be filled lies between two sizes.
        ordered = jnp.sort(sizes)
        below = jnp.concatenate([jnp.zeros(1, sizes.dtype), jnp.cumsum(ordered)[:-1]])
        higher = len(sizes) - jnp.arange(len(sizes), dtype=sizes.dtype)
        level = jnp.max(
            jnp.where(below <= budget, jnp.minimum((budget - below) // higher, ordered), 0)
        )
        given = jnp.minimum(sizes, level)
        merit = (sizes > level).astype(sizes.dtype)
    missing = budget - jnp.sum(given)
    rank = jnp.argsort(jnp.argsort(-merit, stable=True))
    return given + (rank.astype(sizes.dtype) < missing).astype(sizes.dtype)


def sample_clusters(
    key: PRNGKey,
    labels: Int[ArrayLike, " n"],
    counts: Int[ArrayLike, " k"],
    *,
    logits: Float[ArrayLike, " n"] | None = None,
    available: Bool[ArrayLike, " n"] | None = None,
) -> Bool[Array, " n"]:
    """Draw from each cluster without replacement, with probabilities ``softmax(logits)`` in it.

    The ``counts[j]`` greatest sums of logit and Gumbel noise are drawn from cluster ``j``, which
    is the same as drawing one by one and renormalizing (Kool et al. 2019, sec. 2).

    Args:
      key: PRNG key.
      labels: cluster of each example, ``[n]``, in 0, ..., k - 1.
      counts: how many to draw from each cluster, ``[k]``; all there are where there are fewer.
      logits: ``[n]``; None for equal probabilities. ``-inf`` is drawn last.
      available: ``[n]``, False for examples that cannot be drawn.

    Returns:
      ``[n]``, True for what is drawn.

    Raises:
      ValueError: arguments of different lengths; concrete labels outside their range or logits of
        NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import selection
      >>> labels, counts = jnp.array([0, 0, 1, 1]), jnp.array([2, 1])
      >>> int(selection.sample_clusters(jax.random.key(0), labels, counts).sum())
      3

    References:
      Kool, van Hoof & Welling (2019), "Stochastic Beams and Where to Find Them", arXiv:1903.06059,
      sec. 2. :cite:`kool:19`
    """
    labels, counts = jnp.asarray(labels), jnp.asarray(counts)
    _check_labels(labels, len(counts))
    n = len(labels)
    available = jnp.ones(n, bool) if available is None else arguments.row_mask(available, n)
    logits = jnp.zeros(n) if logits is None else jnp.asarray(logits)
    _check_scores(logits, n, "logits")
    noisy = logits + jax.random.gumbel(key, (n,), logits.dtype)
    order = jnp.lexsort((-noisy, ~available, labels))
    ordered = labels[order]
    first = jnp.searchsorted(ordered, ordered)
    rank = jnp.arange(n, dtype=first.dtype) - first
    drawn = rank.astype(counts.dtype) < counts[ordered]
    return jnp.zeros(n, bool).at[order].set(drawn) & available


def k_means_quality(
    key: PRNGKey,
    labels: Int[ArrayLike, " n"],
    quality: Float[ArrayLike, " n"],
    budget: int,
    *,
    num_clusters: int,
    allocation: str = "proportional",
    temperature: Scalar = 1.0,
) -> Bool[Array, " n"]:
    """kMQ: diverse by clusters, good within them (Yu et al. 2024, sec. 3).

    .. math::
        b_j = b \\frac{|C_j|}{n}, \\qquad
        p_i = \\frac{\\exp(q_i / \\tau)}{\\sum_{l \\in C_j} \\exp(q_l / \\tau)}

    Args:
      key: PRNG key.
      labels: cluster of each example, ``[n]``, as from `k_means`.
      quality: ``q``, ``[n]``: any score, higher is better. Zeros draw uniformly in clusters.
      budget: how many to select.
      num_clusters: ``k``.
      allocation: of the budget to clusters: "proportional" or "equal", see `allocate`.
      temperature: ``tau > 0``; infinity draws uniformly.

    Returns:
      ``[n]``, True for the ``budget`` selected examples.

    Raises:
      ValueError: as `allocate` and `sample_clusters` do, or a temperature that is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import selection
      >>> labels, quality = jnp.array([0, 0, 1, 1]), jnp.array([0.0, 99.0, 99.0, 0.0])
      >>> key = jax.random.key(0)
      >>> selection.k_means_quality(key, labels, quality, 2, num_clusters=2).tolist()
      [False, True, True, False]

    References:
      Yu, Chen, Ahmadian & Fadaee (2024), arXiv:2409.11378, sec. 3. :cite:`diversify-and-conquer`
    """
    checks.positive(temperature=temperature)
    labels, quality = jnp.asarray(labels), jnp.asarray(quality)
    _check_labels(labels, num_clusters)
    sizes = jnp.bincount(labels, length=num_clusters)
    counts = allocate(sizes, budget, allocation=allocation)
    return sample_clusters(key, labels, counts, logits=quality / temperature)


def _check_labels(labels: Array, num_clusters: int) -> None:
    """Raise ValueError unless labels are a vector of clusters."""
    checks.rank(1, labels=labels)
    if checks.is_concrete(labels) and len(labels):
        numbers = np.asarray(labels)
        low, high = numbers.min(), numbers.max()
        if low < 0 or high >= num_clusters:
            raise ValueError(f"Expected labels in 0, ..., {num_clusters - 1}, got {low} to {high}.")


def _check_scores(scores: Array, size: int, name: str) -> None:
    """Raise ValueError unless there is one number per example."""
    if scores.shape != (size,):
        raise ValueError(f"Expected {name} of shape ({size},), got {name}.shape={scores.shape}.")
    if checks.is_concrete(scores) and np.any(np.isnan(np.asarray(scores))):
        raise ValueError(f"Expected {name} without NaN.")
