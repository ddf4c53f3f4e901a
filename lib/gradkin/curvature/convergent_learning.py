"""Convergent learning: which units of two networks respond alike."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float

from gradkin import checks
from gradkin.curvature.assignment import linear_assignment
from gradkin.typing import Array, IntScalar


class Correlations(NamedTuple):
    """Correlations of units; those of a unit that is constant are 0, with itself too.

    Attributes:
      within_a: ``[s_a, s_a]``.
      within_b: ``[s_b, s_b]``.
      between: ``[s_a, s_b]``.
      live_a: ``[s_a]``, whether a unit of a varies.
      live_b: ``[s_b]``.
    """

    within_a: Array
    within_b: Array
    between: Array
    live_a: Array
    live_b: Array


class ActivationMoments(NamedTuple):
    """Counts, means and co-moments of two networks' units, from which correlations are read.

    Moments of disjoint samples are added with `merge`. Deviations are from the mean of their own
    sample, so that nothing cancels over 10^7 positions of images in float32.

    Attributes:
      num_samples: an int, or an int32 scalar under a transformation. That counts to 2^31 - 1: of
        more samples than these, all that is merged is NaN. Python's ints, outside of
        transformations, count on.
      mean_a: ``[s_a]``.
      mean_b: ``[s_b]``.
      within_a: ``[s_a, s_a]``, sums of products of deviations.
      within_b: ``[s_b, s_b]``.
      between: ``[s_a, s_b]``.
    """

    num_samples: IntScalar
    mean_a: Array
    mean_b: Array
    within_a: Array
    within_b: Array
    between: Array

    def merge(self, other: "ActivationMoments") -> "ActivationMoments":
        """Moments of both samples together."""
        m, n = self._count(), other._count()
        total = self.num_samples + other.num_samples
        if not isinstance(total, int):
            # The sum of two positive numbers wraps around to a negative one.
            m = jnp.where(jnp.asarray(total) < 0, jnp.nan, m)
        share, weight = n / (m + n), m * n / (m + n)
        gap_a, gap_b = other.mean_a - self.mean_a, other.mean_b - self.mean_b
        shifted = lambda x, y, u, v: x + y + weight * u[:, None] * v[None, :]
        return ActivationMoments(
            total,
            self.mean_a + share * gap_a,
            self.mean_b + share * gap_b,
            shifted(self.within_a, other.within_a, gap_a, gap_a),
            shifted(self.within_b, other.within_b, gap_b, gap_b),
            shifted(self.between, other.between, gap_a, gap_b),
        )

    def correlations(self) -> Correlations:
        """Pearson correlations within the networks and between them."""
        inverse_a, live_a = self._inverse(self.mean_a, self.within_a)
        inverse_b, live_b = self._inverse(self.mean_b, self.within_b)
        scaled = lambda c, u, v: jnp.clip(u[:, None] * c * v[None, :], -1, 1)
        return Correlations(
            scaled(self.within_a, inverse_a, inverse_a),
            scaled(self.within_b, inverse_b, inverse_b),
            scaled(self.between, inverse_a, inverse_b),
            live_a,
            live_b,
        )

    def _count(self) -> Array:
        """How many samples, in floating point."""
        count = float(self.num_samples) if isinstance(self.num_samples, int) else self.num_samples
        return jnp.asarray(count).astype(self.between.dtype)

    def _inverse(self, mean: Array, within: Array) -> tuple[Array, Array]:
        """``1 / sqrt(sum of squared deviations)``, 0 for units that do not vary, and which do."""
        squares = jnp.diagonal(within)
        # A constant's deviations are the rounding of its mean.
        rounding = 64 * jnp.finfo(mean.dtype).eps * jnp.abs(mean)
        live = squares > self._count() * jnp.square(rounding)
        safe = jnp.where(live, squares, jnp.ones_like(squares))
        return jnp.where(live, lax.rsqrt(safe), jnp.zeros_like(safe)), live


class UnitMatch(NamedTuple):
    """A partner for each unit of a.

    Attributes:
      index: ``[s_a]`` int32, a unit of b.
      value: ``[s_a]``, their similarity; 0 where it is not matched.
      matched: ``[s_a]``, whether both are live.
    """

    index: Array
    value: Array
    matched: Array

    def mean(self) -> Array:
        """Mean similarity of the matched units; 0 where there are none."""
        count = jnp.sum(self.matched.astype(self.value.dtype))
        return jnp.sum(self.value) / jnp.maximum(count, jnp.ones_like(count))


def activation_moments(
    acts_a: Float[Array, "*samples s_a"], acts_b: Float[Array, "*samples s_b"]
) -> ActivationMoments:
    """Moments of two networks' activations on the same samples (Li et al. 2016).

    Args:
      acts_a: ``[..., s_a]``; all leading axes are samples. For convolutions these are images and
        positions: a channel is a unit.
      acts_b: ``[..., s_b]``, on the same samples.

    Returns:
      `ActivationMoments`, at least float32: streamed with ``.merge()``, read off with
      ``.correlations()``.

    Raises:
      ValueError: different samples, or none.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> x = jnp.array([[1.0, 2.0], [2.0, 2.0], [3.0, 2.0]])
      >>> found = curvature.activation_moments(x, -2 * x).correlations()
      >>> found.between.round(3).tolist(), found.live_a.tolist()
      ([[-1.0, 0.0], [0.0, 0.0]], [True, False])

    References:
      Li, Yosinski, Clune, Lipson & Hopcroft (2016), "Convergent Learning: Do different neural
      networks learn the same representations?", arXiv:1511.07543. :cite:`convergent-learning`
    """
    acts_a, acts_b = samples_of(acts_a, acts_b)

    def centered(acts):
        mean = jnp.mean(acts, axis=0, keepdims=True)
        return mean[0], acts - mean

    product = lambda x, y: jnp.matmul(x.T, y, precision=lax.Precision.HIGHEST)
    (mean_a, from_a), (mean_b, from_b) = centered(acts_a), centered(acts_b)
    return ActivationMoments(
        len(acts_a),
        mean_a,
        mean_b,
        product(from_a, from_a),
        product(from_b, from_b),
        product(from_a, from_b),
    )


def semi_match(
    similarity: Float[Array, "s_a s_b"],
    *,
    live_a: Bool[Array, " s_a"] | None = None,
    live_b: Bool[Array, " s_b"] | None = None,
) -> UnitMatch:
    """The most similar unit of b for each unit of a, with repetition (Li et al. 2016, sec. 3).

    Args:
      similarity: ``[s_a, s_b]``, correlations or mutual information. Signed: take the absolute
        value where a unit and its negative are to count as alike.
      live_a: which units of a may be matched; default all.
      live_b: which units of b may be.

    Returns:
      `UnitMatch`.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> curvature.semi_match(jnp.array([[0.9, 0.1], [0.8, 0.2]])).index.tolist()
      [0, 0]

    References:
      Li, Yosinski, Clune, Lipson & Hopcroft (2016), arXiv:1511.07543.
      :cite:`convergent-learning`
    """
    allowed = pairs_of_live(similarity, live_a, live_b)
    index = jnp.argmax(jnp.where(allowed, similarity, -jnp.inf), axis=1).astype(np.int32)
    return match_of(similarity, index, allowed)


def bipartite_match(
    similarity: Float[Array, "s s"],
    *,
    live_a: Bool[Array, " s"] | None = None,
    live_b: Bool[Array, " s"] | None = None,
    solver: str = "scipy",
) -> UnitMatch:
    """The one-to-one matching of greatest total similarity (Li et al. 2016, sec. 3).

    Args:
      similarity: ``[s, s]``.
      live_a: which units of a may be matched; default all. As many live units as can be are
        matched to live ones; the rest are assigned to one another, so that ``index`` is a
        permutation.
      live_b: which units of b may be.
      solver: of the linear assignment, see `linear_assignment`.

    Returns:
      `UnitMatch`; its total is at most that of `semi_match`.

    Raises:
      ValueError: similarities that are not square, an unknown solver.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> curvature.bipartite_match(jnp.array([[0.9, 0.1], [0.8, 0.2]])).index.tolist()
      [0, 1]

    References:
      Li, Yosinski, Clune, Lipson & Hopcroft (2016), arXiv:1511.07543.
      :cite:`convergent-learning`
    """
    checks.rank(2, similarity=similarity)
    allowed = pairs_of_live(similarity, live_a, live_b)
    # Below every live pair: exchanging partners then always pays for one live pair more.
    lowest = jnp.min(jnp.where(allowed, similarity, jnp.zeros_like(similarity))) - 1
    index = linear_assignment(jnp.where(allowed, similarity, lowest), solver=solver)
    return match_of(similarity, index, allowed)


def mutual_information(
    acts_a: Float[Array, "*samples s_a"],
    acts_b: Float[Array, "*samples s_b"],
    *,
    num_bins: int = 10,
) -> Float[Array, "s_a s_b"]:
    """Mutual information of units, from binned activations (Li et al. 2016, sec. 3).

    .. math:: I = H(a) + H(b) - H(a, b)

    Args:
      acts_a: ``[..., s_a]``; all leading axes are samples.
      acts_b: ``[..., s_b]``, on the same samples.
      num_bins: equally wide bins from the least to the greatest activation of each unit, >= 2.

    Returns:
      ``[s_a, s_b]`` in nats; 0 for constant units, NaN for those with an activation that is not
      finite. Biased upwards by about ``(num_bins - 1)^2 / (2 N)`` for N samples.

    Raises:
      ValueError: different samples, none, or fewer than two bins.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> x = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
      >>> (curvature.mutual_information(x, x, num_bins=2) / jnp.log(2.0)).round(3).tolist()
      [[1.0, 0.0], [0.0, 1.0]]

    References:
      Li, Yosinski, Clune, Lipson & Hopcroft (2016), arXiv:1511.07543.
      :cite:`convergent-learning`

    Note:
      How the paper binned was not to be had; the bins here are equally wide.
    """
    if num_bins < 2:
        raise ValueError(f"Expected num_bins >= 2, got num_bins={num_bins}.")
    acts_a, acts_b = samples_of(acts_a, acts_b)
    bins_a, bins_b = binned(acts_a, num_bins), binned(acts_b, num_bins)
    count = len(acts_a)
    dtype = acts_a.dtype

    def plogp(counts):
        share = counts / count
        return jnp.where(counts > 0, share * jnp.log(jnp.where(counts > 0, share, 1)), 0)

    def of_row(i):
        inside = (bins_a == i).astype(dtype)

        def of_pair(total, j):
            both = jnp.matmul(inside.T, (bins_b == j).astype(dtype))
            return total + plogp(both), None

        return of_pair, plogp(jnp.sum(inside, axis=0))

    def over_rows(state, i):
        joint, marginal = state
        of_pair, own = of_row(i)
        joint, _ = lax.scan(of_pair, joint, jnp.arange(num_bins))
        return (joint, marginal + own), None

    size_a, size_b = acts_a.shape[1], acts_b.shape[1]
    start = jnp.zeros((size_a, size_b), dtype), jnp.zeros(size_a, dtype)
    (joint, of_a), _ = lax.scan(over_rows, start, jnp.arange(num_bins))
    of_b = jnp.sum(
        jax.vmap(lambda j: plogp(jnp.sum((bins_b == j).astype(dtype), axis=0)))(
            jnp.arange(num_bins)
        ),
        axis=0,
    )
    # Every activation is in some bin, NaN too.
    known_a, known_b = (jnp.isfinite(acts).all(axis=0) for acts in (acts_a, acts_b))
    information = joint - of_a[:, None] - of_b[None, :]
    return jnp.where(known_a[:, None] & known_b[None, :], information, jnp.nan)


def binned(acts: Array, num_bins: int) -> Array:
    """The bin of every activation, ``[N, s]``."""
    low, high = acts.min(0, keepdims=True), acts.max(0, keepdims=True)
    width = jnp.where(high > low, high - low, jnp.ones_like(low))
    return jnp.clip(jnp.floor((acts - low) / width * num_bins), 0, num_bins - 1).astype(np.int32)


def samples_of(acts_a: Array, acts_b: Array) -> tuple[Array, Array]:
    """Both as ``[N, s]``, at least float32; ValueError unless they are of the same samples."""
    if acts_a.ndim < 2 or acts_a.shape[:-1] != acts_b.shape[:-1]:
        raise ValueError(
            "Expected acts_a and acts_b of the same samples, got shapes "
            f"{acts_a.shape} and {acts_b.shape}."
        )
    if 0 in (*acts_a.shape, *acts_b.shape):
        raise ValueError(
            f"Expected samples and units, got shapes {acts_a.shape} and {acts_b.shape}."
        )
    dtype = np.result_type(np.float32, acts_a.dtype, acts_b.dtype)
    flat = lambda acts: acts.reshape(-1, acts.shape[-1]).astype(dtype)
    return flat(acts_a), flat(acts_b)


def pairs_of_live(similarity: Array, live_a: Array | None, live_b: Array | None) -> Array:
    """``[s_a, s_b]``: whether both units are live."""
    rows, columns = similarity.shape
    live_a = jnp.ones(rows, bool) if live_a is None else live_a
    live_b = jnp.ones(columns, bool) if live_b is None else live_b
    return live_a[:, None] & live_b[None, :]


def match_of(similarity: Array, index: Array, allowed: Array) -> UnitMatch:
    """The match to these units of b."""
    at = lambda table: jnp.take_along_axis(table, index[:, None], axis=1)[:, 0]
    matched = at(allowed)
    return UnitMatch(index, jnp.where(matched, at(similarity), 0), matched)
