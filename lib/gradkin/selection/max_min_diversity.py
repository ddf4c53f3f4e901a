"""Max-min diversity: the subset whose two nearest members are as far apart as can be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from gradkin import checks
from gradkin.kernels import Cosine, Euclidean
from gradkin.matrices import arguments, distances
from gradkin.matrices.kernel import KernelMatrix, kernel_matrix
from gradkin.matrices.kernel_arguments import as_points
from gradkin.typing import Array, ArrayLike

METRICS = ("cosine", "euclidean")


def farthest_first(
    points: ArrayLike,
    k: int,
    *,
    metric: str = "cosine",
    mask: Bool[ArrayLike, " n"] | None = None,
) -> Int[Array, " k"]:
    """Farthest-first traversal, greedy max-min diversity (DivPrune, Alvar et al. 2025, sec. 3).

    .. math::
        S^* = \\arg\\max_{|S| = k} \\min_{i \\ne j \\in S} d(x_i, x_j), \\qquad
        s_{t+1} = \\arg\\max_i \\min_{j \\le t} d(x_i, x_{s_j})

    The first point is the one whose nearest neighbor is farthest. The smallest distance between
    chosen points is at least half the greatest possible where ``d`` is a metric (Gonzalez 1985),
    which Euclidean distance is; ``1 - cos`` is half a squared metric, hence at least a quarter.
    Takes ``O((n + k) n d)`` time, of which the first point is ``n^2 d``, and ``O(n d)`` memory.

    Args:
      points: ``[n, ...]``, in float32 or wider inside.
      k: how many, from 1 to ``n``.
      metric: "cosine" for ``1 - cos``, "euclidean".
      mask: ``[n]``, False for points that cannot be chosen and are not compared.

    Returns:
      ``[k]`` numbers of points in the order of choice, so that its beginnings are the choices of
      smaller ``k``; of equally far points the first one. Where, inside `jit`, the mask leaves
      fewer than ``k`` points, the rest is -1.

    Raises:
      ValueError: ``k`` < 1 or above the number of points, a concrete mask that leaves fewer than
        ``k``, another metric, or, where they can be read, points that are not finite or, with
        "cosine", zero. Inside `jit` the cosine of a zero point and any other is taken as 0.

    Note:
      The reference divides by zero at a zero token, and re-chooses a token where all others
      are copies of chosen ones and rounding favours it; here what is chosen is never chosen again.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> x = jnp.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, -0.2]])
      >>> selection.farthest_first(x, 3).tolist()
      [3, 1, 2]

    References:
      Alvar, Singh, Akbari & Zhang (2025), "DivPrune: Diversity-based Visual Token Pruning for
      Large Multimodal Models", arXiv:2503.02175, sec. 3. :cite:`divprune-tokens`
      Gonzalez (1985), "Clustering to Minimize the Maximum Intercluster Distance", Theoretical
      Computer Science 38. :cite:`gonzalez:85`
    """
    checks.one_of(METRICS, metric=metric)
    points = distances.points(as_points(points, "points"))
    valid = None if mask is None else arguments.row_mask(mask, len(points))
    _check_number(k, valid, len(points))
    K = _distances(points, metric, valid)
    norms = jnp.sqrt(jnp.sum(jnp.square(K.x), axis=1))
    if metric == "cosine" and checks.is_concrete(norms) and np.any(np.asarray(norms) == 0):
        raise ValueError(
            f"Expected points other than zero, whose cosine is undefined, got "
            f"{np.flatnonzero(np.asarray(norms) == 0)[0]} for one."
        )
    return _traverse(K, k)


def max_min_distance(
    points: ArrayLike, chosen: Int[ArrayLike, " k"], *, metric: str = "cosine"
) -> Float[Array, ""]:
    """Smallest distance between two chosen points: what `farthest_first` makes large.

    .. math:: \\min_{i \\ne j \\in S} d(x_i, x_j)

    Args:
      points: ``[n, ...]``.
      chosen: numbers of the points, ``[k]``, all different.
      metric: "cosine" for ``1 - cos``, "euclidean".

    Returns:
      A scalar; infinity of a single point.

    Raises:
      ValueError: another metric, no points.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
      >>> float(selection.max_min_distance(x, jnp.array([0, 2])))
      1.0

    References:
      Alvar, Singh, Akbari & Zhang (2025), arXiv:2503.02175, sec. 3. :cite:`divprune-tokens`
    """
    checks.one_of(METRICS, metric=metric)
    points = distances.points(as_points(points, "points"))
    return jnp.min(_nearest(_distances(points[jnp.asarray(chosen)], metric, None)))


def _check_number(k: int, valid: Array | None, size: int) -> None:
    """Raise ValueError unless k points can be chosen."""
    if valid is not None and checks.is_concrete(valid):
        size = int(np.sum(np.asarray(valid)))
    if not 1 <= k <= size:
        raise ValueError(f"Expected k from 1 to the {size} points, got k={k}.")


def _distances(points: Array, metric: str, valid: Array | None) -> KernelMatrix:
    """Distances, or cosines, of points with the others."""
    kernel = Cosine() if metric == "cosine" else Euclidean()
    return kernel_matrix(kernel, points, mask=valid).off_diagonal()


def _nearest(K: KernelMatrix) -> Array:
    """Distance of each point to the nearest other: ``[n]``, infinity of a single one."""
    if isinstance(K.kernel, Cosine):
        return 1 - K.max(axis=1)
    return K.top_k(1, largest=False)[0][:, 0]


@functools.partial(jax.jit, static_argnames="k")
def _traverse(K: KernelMatrix, k: int) -> Array:
    """The traversal, with one distance to the chosen points kept for every point."""
    points = K.x
    if isinstance(K.kernel, Cosine):
        norms = jnp.sqrt(jnp.sum(jnp.square(points), axis=1, keepdims=True))
        points = points / jnp.where(norms > 0, norms, 1)
    valid = jnp.ones(len(points), bool) if K.row_mask is None else K.row_mask

    def distances_to(chosen: Array) -> Array:
        if isinstance(K.kernel, Cosine):
            return 1 - distances.product(points, points[chosen][None])[:, 0]
        return jnp.sum(jnp.square(points - points[chosen][None]), axis=1)  # the same order

    def choose(scores: Array, least: Array) -> tuple[Array, Array]:
        chosen = jnp.argmax(scores).astype(np.int32)
        least = jnp.minimum(least, distances_to(chosen)).at[chosen].set(-jnp.inf)
        return least, jnp.where(scores[chosen] > -jnp.inf, chosen, -1)

    unseen = jnp.where(valid, jnp.inf, -jnp.inf).astype(points.dtype)
    least, first = choose(jnp.where(valid, _nearest(K), -jnp.inf), unseen)
    _, rest = jax.lax.scan(lambda least, _: choose(least, least), least, length=k - 1)
    return jnp.concatenate([first[None], rest])
