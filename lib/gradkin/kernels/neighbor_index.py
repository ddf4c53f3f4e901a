"""Approximate nearest neighbours: points in lists around centroids, a query reads a few lists."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin import checks
from gradkin.kernels.density import as_points
from gradkin.kernels.density_sampling import by_query
from gradkin.typing import Array, ArrayLike, PRNGKey

# Points for each centroid that k-means looks at.
TRAINING = 64


class InvertedFile(NamedTuple):
    """Points in ``c`` lists of one length, each around its centroid.

    Attributes:
      centroids: ``[c, d]``.
      rows: ``[c, capacity]``, which points; -1 fills a list up.
      lists: ``[c, capacity, d]``, these points.
      num_left_out: points of full lists that no search will find.
    """

    centroids: Array
    rows: Array
    lists: Array
    num_left_out: Array

    def nearest(self, queries: ArrayLike, *, k: int, probes: int) -> Array:
        """Indices of near points: the ``k`` nearest within the ``probes`` nearest lists.

        Computes ``c + probes * capacity`` distances for a query instead of n.

        Args:
          queries: ``[m, d]``.
          k: how many, at most ``probes * capacity``.
          probes: lists to read, at most c; all of them give the exact neighbours, but for points
            left out.

        Returns:
          ``[m, k]`` int32, nearest first; -1 where the lists hold fewer.

        Raises:
          ValueError: a number out of range.
        """
        num_lists, capacity, dim = self.lists.shape
        if not 1 <= probes <= num_lists:
            raise ValueError(f"Expected 1 <= probes <= {num_lists} lists, got {probes=}.")
        if not 1 <= k <= probes * capacity:
            raise ValueError(f"Expected 1 <= k <= {probes * capacity} points read, got {k=}.")
        return search(self, as_points(queries=queries), k=k, probes=probes)


def inverted_file(
    key: PRNGKey,
    points: Float[ArrayLike, "points features"],
    *,
    num_lists: int,
    slack: float = 2.0,
    num_steps: int = 10,
) -> InvertedFile:
    """Build an inverted file by k-means (Jegou, Douze & Schmid 2011, sec. IV, without codes).

    Args:
      key: a PRNG key, for the first centroids.
      points: ``[n, d]``.
      num_lists: ``c``, at most n; about ``sqrt(n)`` balances both stages of a search.
      slack: length of every list, in units of ``n / c``, >= 1. Points that find their list full are
        left out of the index.
      num_steps: iterations of k-means, on at most 64 points for each centroid.

    Returns:
      An `InvertedFile`; ``.nearest(queries, k=..., probes=...)`` searches it.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> import jax
      >>> from gradkin import kernels
      >>> points = jax.random.normal(jax.random.key(0), (500, 3))
      >>> index = kernels.inverted_file(jax.random.key(1), points, num_lists=20)
      >>> index.nearest(points[:4], k=1, probes=3)[:, 0].tolist()
      [0, 1, 2, 3]

    References:
      Jegou, Douze & Schmid (2011), "Product Quantization for Nearest Neighbor Search", IEEE TPAMI
      33(1). :cite:`jegou:11`
    """
    points = as_points(points=points)
    n = len(points)
    if not 1 <= num_lists <= n:
        raise ValueError(f"Expected 1 <= num_lists <= {n} points, got {num_lists=}.")
    if slack < 1:
        raise ValueError(f"Expected slack >= 1, got {slack=}.")
    checks.non_negative(num_steps=num_steps)
    capacity = min(n, math.ceil(slack * n / num_lists))
    return build(key, points, num_lists=num_lists, capacity=capacity, num_steps=num_steps)


@functools.partial(jax.jit, inline=True, static_argnames=("num_lists", "capacity", "num_steps"))
def build(
    key: Any, points: Array, *, num_lists: int, capacity: int, num_steps: int
) -> InvertedFile:
    """What `inverted_file` computes."""
    n = len(points)
    sample = points[jax.random.permutation(key, n)[: TRAINING * num_lists]]

    def step(centroids: Array, _: None) -> tuple[Array, None]:
        member = jax.nn.one_hot(assign(sample, centroids), num_lists, dtype=points.dtype)
        size = jnp.sum(member, axis=0)
        mean = (member.T @ sample) / jnp.maximum(size, 1)[:, None]
        # An empty list keeps its centroid.
        return jnp.where(size[:, None] > 0, mean, centroids), None

    centroids, _ = jax.lax.scan(step, sample[:num_lists], length=num_steps)
    owner = assign(points, centroids)
    order = jnp.argsort(owner, stable=True).astype(jnp.int32)
    size = jnp.zeros(num_lists, jnp.int32).at[owner].add(1)
    start = jnp.cumsum(size) - size
    place = jnp.arange(capacity, dtype=jnp.int32)[None]
    inside = place < size[:, None]
    rows = order[jnp.minimum(start[:, None] + place, n - 1)]
    rows = jnp.where(inside, rows, jnp.full_like(rows, -1))
    lists = points[jnp.maximum(rows, 0)]
    return InvertedFile(centroids, rows, lists, n - jnp.sum(inside.astype(jnp.int32)))


@functools.partial(jax.jit, inline=True, static_argnames=("k", "probes"))
def search(index: InvertedFile, queries: Array, *, k: int, probes: int) -> Array:
    """What `InvertedFile.nearest` computes."""
    num_lists, capacity, dim = index.lists.shape

    def nearest(query: Array) -> Array:
        _, which = jax.lax.top_k(-centroid_distances(query, index.centroids), probes)
        rows = index.rows[which].reshape(-1)
        read = index.lists[which].reshape(-1, dim)
        far = jnp.sum(jnp.square(read - query[None]), axis=1)
        far = jnp.where(rows < 0, jnp.full_like(far, jnp.inf), far)
        return rows[jax.lax.top_k(-far, k)[1]]

    return by_query(nearest, queries, num_lists + probes * capacity * dim)


def assign(points: Array, centroids: Array) -> Array:
    """``[n]``, the nearest centroid of each point."""
    nearest = lambda x: jnp.argmin(centroid_distances(x, centroids))
    return by_query(nearest, points, len(centroids))


def centroid_distances(query: Array, centroids: Array) -> Array:
    """``[c]``, squared distances up to a constant, by one product for many queries."""
    center = jnp.mean(centroids, axis=0)
    centered = centroids - center[None]
    return jnp.sum(jnp.square(centered), axis=1) - 2 * (centered @ (query - center))
