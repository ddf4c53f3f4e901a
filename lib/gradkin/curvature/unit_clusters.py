"""Clusters of the units of two networks together: subspaces that they share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from gradkin import checks
from gradkin.curvature.convergent_learning import Correlations
from gradkin.typing import Array, PRNGKey


def joint_affinity(
    correlations: Correlations, *, kind: str = "absolute"
) -> Float[Array, "units units"]:
    """Affinities of all units of both networks, a's before b's (Li et al. 2016, sec. 5).

    Args:
      correlations: within the networks and between them.
      kind: "absolute" correlations, or only the "positive" ones.

    Returns:
      ``[s_a + s_b, s_a + s_b]``, symmetric, in [0, 1]; zeros for units that do not vary.

    Raises:
      ValueError: an unknown kind.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> x = jnp.array([[0.0], [1.0], [3.0]])
      >>> found = curvature.activation_moments(x, -x).correlations()
      >>> curvature.joint_affinity(found, kind="positive").round(6).tolist()
      [[1.0, 0.0], [0.0, 1.0]]

    References:
      Li, Yosinski, Clune, Lipson & Hopcroft (2016), arXiv:1511.07543.
      :cite:`convergent-learning`
    """
    checks.one_of(("absolute", "positive"), kind=kind)
    c = correlations
    joint = jnp.block([[c.within_a, c.between], [c.between.T, c.within_b]])
    return jnp.abs(joint) if kind == "absolute" else jnp.maximum(joint, 0)


def spectral_clusters(
    key: PRNGKey,
    affinity: Float[Array, "n n"],
    num_clusters: int,
    *,
    num_restarts: int = 8,
    num_steps: int = 30,
) -> Int[Array, " n"]:
    """Clusters by the normalised Laplacian (Ng, Jordan & Weiss 2001; Li et al. 2016, sec. 5).

    The rows of the leading eigenvectors of ``D^-1/2 A D^-1/2``, at unit length, are clustered by
    k-means with k-means++ starts.

    Args:
      key: draws the starts.
      affinity: ``[n, n]``, symmetric and non-negative.
      num_clusters: in 1, ..., n.
      num_restarts: starts of k-means, of which the tightest result is taken.
      num_steps: of k-means.

    Returns:
      ``[n]`` int32 labels; -1 for units without any affinity, and for all units where, inside
      `jit`, an affinity is not finite.

    Raises:
      ValueError: an affinity that is not square or, where it can be read, not finite; more
        clusters than units, or none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> affinity = jnp.kron(jnp.eye(2), jnp.ones((3, 3)))
      >>> labels = curvature.spectral_clusters(jax.random.key(0), affinity, 2)
      >>> (labels == labels[0]).tolist()
      [True, True, True, False, False, False]

    References:
      Ng, Jordan & Weiss (2001), "On Spectral Clustering: Analysis and an algorithm"; Li, Yosinski,
      Clune, Lipson & Hopcroft (2016), arXiv:1511.07543. :cite:`ng:01`
      :cite:`convergent-learning`
    """
    check_clusters(affinity, num_clusters)
    degrees = jnp.sum(affinity, axis=1)
    live = degrees > 0
    root = jnp.where(live, lax.rsqrt(jnp.where(live, degrees, 1)), 0)
    _, vectors = jnp.linalg.eigh(affinity * root[:, None] * root[None, :])
    rows = jnp.where(live[:, None], vectors[:, -num_clusters:], 0)
    length = jnp.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / jnp.where(length > 0, length, 1)
    one = lambda key: k_means(key, rows, live, num_clusters, num_steps)
    labels, inertia = jax.vmap(one)(jax.random.split(key, num_restarts))
    known = live & jnp.isfinite(affinity).all()
    return jnp.where(known, labels[jnp.argmin(inertia)], -1)


def linkage_clusters(affinity: Float[Array, "n n"], num_clusters: int) -> Int[Array, " n"]:
    """Clusters by average linkage, the hierarchical variant (Li et al. 2016, sec. 5).

    SciPy's, on the host; distances are 1 minus affinities.

    Args:
      affinity: ``[n, n]``, symmetric, in [0, 1].
      num_clusters: at most so many, in 1, ..., n.

    Returns:
      ``[n]`` int32 labels; -1 for units without any affinity, and for all units where, inside
      `jit`, an affinity is not finite.

    Raises:
      ValueError: an affinity that is not square or, where it can be read, not finite; more
        clusters than units, or none.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> curvature.linkage_clusters(jnp.kron(jnp.eye(2), jnp.ones((2, 2))), 2).tolist()
      [0, 0, 1, 1]

    References:
      Li, Yosinski, Clune, Lipson & Hopcroft (2016), arXiv:1511.07543.
      :cite:`convergent-learning`
    """
    check_clusters(affinity, num_clusters)

    def on_host(affinity):
        from scipy.cluster import hierarchy
        from scipy.spatial.distance import squareform

        affinity = np.asarray(affinity, np.float64)
        labels = np.full(len(affinity), -1, np.int32)
        if not np.isfinite(affinity).all():
            return labels
        live = np.flatnonzero(affinity.sum(1) > 0)
        if len(live) < 2:
            labels[live] = 0
            return labels
        distances = squareform(1 - affinity[np.ix_(live, live)], checks=False)
        tree = hierarchy.linkage(distances, "average")
        labels[live] = hierarchy.fcluster(tree, num_clusters, "maxclust") - 1
        return labels

    shape = jax.ShapeDtypeStruct(affinity.shape[:1], np.int32)
    return jax.pure_callback(on_host, shape, lax.stop_gradient(affinity), vmap_method="sequential")


def cluster_composition(
    labels: Int[Array, " n"], num_a: int, num_clusters: int
) -> Int[Array, "clusters nets"]:
    """How many units of each network every cluster holds (Li et al. 2016, sec. 5).

    Args:
      labels: ``[n]``, a's units before b's; negative ones count nowhere.
      num_a: how many units are a's.
      num_clusters: how many clusters.

    Returns:
      ``[num_clusters, 2]`` int32: units of a, units of b.

    Raises:
      ValueError: ``num_a`` not between 0 and the number of labels.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> curvature.cluster_composition(jnp.array([0, 1, 0, 0]), 2, 2).tolist()
      [[1, 2], [1, 0]]

    References:
      Li, Yosinski, Clune, Lipson & Hopcroft (2016), arXiv:1511.07543.
      :cite:`convergent-learning`
    """
    if not 0 <= num_a <= len(labels):
        raise ValueError(f"Expected num_a in 0, ..., {len(labels)}, got num_a={num_a}.")
    member = labels[:, None] == jnp.arange(num_clusters, dtype=labels.dtype)[None]
    count = lambda part: jnp.sum(part.astype(np.int32), axis=0)
    return jnp.stack([count(member[:num_a]), count(member[num_a:])], axis=1)


def check_clusters(affinity: Array, num_clusters: int) -> None:
    """ValueError unless the affinity is square, finite if concrete, and has so many units."""
    if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1]:
        raise ValueError(f"Expected a square affinity, got affinity.shape={affinity.shape}.")
    if not 1 <= num_clusters <= len(affinity):
        raise ValueError(
            f"Expected num_clusters in 1, ..., {len(affinity)}, got num_clusters={num_clusters}."
        )
    if checks.is_concrete(affinity) and not np.isfinite(np.asarray(affinity)).all():
        raise ValueError("Expected finite affinities, got NaN or infinity.")


def k_means(
    key: PRNGKey, points: Array, counted: Array, num_clusters: int, num_steps: int
) -> tuple[Array, Array]:
    """Labels ``[n]`` and the sum of squared distances, from one k-means++ start."""

    def squared_distances(centers):
        cross = jnp.matmul(points, centers.T, precision=lax.Precision.HIGHEST)
        squares = lambda x: jnp.sum(jnp.square(x), axis=1)
        return jnp.maximum(squares(points)[:, None] + squares(centers)[None, :] - 2 * cross, 0)

    def draw(key, weights):
        # Where no point is away from the centres, any counted one.
        weights = jnp.where(jnp.sum(weights) > 0, weights, counted.astype(weights.dtype))
        return points[jax.random.categorical(key, jnp.log(weights))]

    weigh = lambda distances: jnp.where(counted, distances, 0)
    keys = jax.random.split(key, num_clusters)
    start = draw(keys[0], counted.astype(points.dtype))

    def add(i, centers):
        # Those not yet drawn repeat the first.
        away = weigh(jnp.min(squared_distances(centers), axis=1))
        return centers.at[i].set(draw(keys[i], away))

    centers = jnp.broadcast_to(start[None], (num_clusters, points.shape[1]))
    centers = lax.fori_loop(1, num_clusters, add, centers)

    def step(centers, _):
        labels = jnp.argmin(squared_distances(centers), axis=1)
        member = (labels[:, None] == jnp.arange(num_clusters)[None]) & counted[:, None]
        member = member.astype(points.dtype)
        size = jnp.sum(member, axis=0)[:, None]
        sums = jnp.matmul(member.T, points, precision=lax.Precision.HIGHEST)
        return jnp.where(size > 0, sums / jnp.maximum(size, 1), centers), None

    centers, _ = lax.scan(step, centers, length=num_steps)
    distances = squared_distances(centers)
    labels = jnp.argmin(distances, axis=1).astype(np.int32)
    return labels, jnp.sum(weigh(jnp.min(distances, axis=1)))
