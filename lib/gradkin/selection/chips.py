"""CHIPS: which pairs to adapt a dual encoder with, by their influence on a few of the target."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gradkin import checks
from gradkin.gradients import project_rows
from gradkin.matrices import products, sketching, verbs
from gradkin.matrices.kernel_arguments import as_points, finite
from gradkin.selection.info_nce import (
    Contrast,
    EndpointHeads,
    SplitGradients,
    contrast,
    info_nce_gradients,
    similarity_gradients,
)
from gradkin.typing import Array, ArrayLike, Scalar

_verb = functools.partial(jax.jit, inline=True)
NEGATIVE_MOMENTS = ("aggregate", "pairs")


class PairFeatures(NamedTuple):
    """What `chips` needs to know of pairs.

    Attributes:
      gradients: sketched gradients of the pairs' losses, ``[n, k]``.
      positive_moment: mean of ``g^+ g^+T`` over pairs, ``[k, k]``.
      negative_moment: that of the negatives' part, ``[k, k]``.
      mismatch: probability that a pair is matched wrongly in its batch, mean of both directions,
        ``[n]``.
      margin: cosine of the pair less the highest with a negative, ``[n]``; infinite where a pair
        has no negative.
      images: embeddings, of norm 1, ``[n, m]``.
      texts: embeddings, of norm 1, ``[n, m]``.
    """

    gradients: Array
    positive_moment: Array
    negative_moment: Array
    mismatch: Array
    margin: Array
    images: Array
    texts: Array


class ChipsScores(NamedTuple):
    """Scores of pairs, each ``[n]``.

    Attributes:
      utility: the product of the others; the greatest are selected.
      alignment: to first order, how much a Newton step on the pair lowers the loss of the target;
        of either sign.
      learnability: from 0, of a pair that is matched for certain, to below 2.
      relevance: similarity to the target, from ``sigmoid(-1)`` to ``sigmoid(1)``.
    """

    utility: Array
    alignment: Array
    learnability: Array
    relevance: Array


def pair_features(
    heads: EndpointHeads,
    images: Float[ArrayLike, "n dv"],
    texts: Float[ArrayLike, "n dt"],
    *,
    batch_size: int,
    sketch: Any = None,
    groups: Int[ArrayLike, " n"] | None = None,
    negative_moment: str = "aggregate",
    parallel: int = 1,
) -> PairFeatures:
    """Gradients, curvature and similarities of pairs, batch by batch, for `chips`.

    .. math:: \\Phi^\\pm = \\frac{1}{n} \\sum_i R g_i^\\pm (R g_i^\\pm)^T

    with the parts ``g+`` and ``g-`` of `info_nce_gradients` and the sketch ``R``. Pairs are each
    other's negatives in the order they come in, ``batch_size`` at a time: shuffle them first. The
    gradients of ``parallel * batch_size`` pairs exist at a time.

    Args:
      heads: at which gradients are taken.
      images: features of images, ``[n, dv]``, from what lies below the heads.
      texts: features of their texts, ``[n, dt]``.
      batch_size: pairs that are contrasted, at least 2, a divisor of ``n``.
      sketch: such as ``gradkin.gradients.RademacherSketch(key, k)``, the same for pool and target;
        None keeps gradients whole.
      groups: ``[n]``, pairs of the same number are not negatives of each other: duplicates, for
        instance. None: all are.
      negative_moment: "aggregate" as above, or "pairs" for the mean over pairs of
        ``sum_j (p_ij + q_ij) / 2 R grad s_ij (R grad s_ij)^T``, at ``batch_size`` times the cost.
      parallel: batches at a time, a divisor of their number. With pairs sharded over devices, a
        multiple of their number: then each device has batches of its own, and no device needs
        another's pairs.

    Returns:
      `PairFeatures`, the same for all of ``parallel`` and any layout.

    Raises:
      ValueError: no pairs, shapes that do not fit, numbers that do not divide, another
        ``negative_moment``, or features that are not finite, where they are few enough to look.
      TypeError: ``sketch`` is no sketch.

    Note:
      Cosines are of what the heads project: features need not be normalized. The margin is to the
      hardest negative of both directions, in cosines.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import gradients, selection
      >>> heads = selection.EndpointHeads(jnp.eye(3), jnp.eye(3), jnp.zeros(()))
      >>> x = jax.random.normal(jax.random.key(0), (8, 3))
      >>> sketch = gradients.RademacherSketch(jax.random.key(1), 5)
      >>> selection.pair_features(heads, x, x, batch_size=4, sketch=sketch).gradients.shape
      (8, 5)

    References:
      Zhuang et al. (2026), "CHIPS: Efficient CLIP Adaptation via Curvature-aware Hybrid
      Influence-based Data Selection", arXiv:2511.18519. :cite:`chips-data-selection`
    """
    checks.one_of(NEGATIVE_MOMENTS, negative_moment=negative_moment)
    images, texts = as_points(images, "images"), as_points(texts, "texts")
    checks.rank(2, images=images, texts=texts)
    finite(images, "images")
    finite(texts, "texts")
    n = len(images)
    if len(texts) != n:
        raise ValueError(f"Expected as many texts as images, got {len(texts)} and {n}.")
    if batch_size < 2 or n % batch_size:
        raise ValueError(
            f"Expected batch_size to be at least 2 and to divide the {n} pairs, got "
            f"batch_size={batch_size}."
        )
    if parallel < 1 or (n // batch_size) % parallel:
        raise ValueError(
            f"Expected parallel to divide the {n // batch_size} batches, got parallel={parallel}."
        )
    if groups is not None:
        groups = jnp.asarray(groups)
        if groups.shape != (n,) or not jnp.issubdtype(groups.dtype, jnp.integer):
            raise ValueError(
                f"Expected groups to be integers of shape ({n},), got {groups.dtype} of shape "
                f"{groups.shape}."
            )
    if sketch is not None:
        sketching.check_sketch(sketch)
    return _pair_features(
        heads,
        (images, texts, groups),
        sketch,
        batch_size=batch_size,
        pairs=negative_moment == "pairs",
        parallel=parallel,
    )


@functools.partial(_verb, static_argnames=("batch_size", "pairs", "parallel"))
def _pair_features(
    heads: EndpointHeads, pool: Any, sketch: Any, *, batch_size: int, pairs: bool, parallel: int
) -> PairFeatures:
    n = len(pool[0])
    rounds = n // (batch_size * parallel)
    # Batches next to each other go to one slot: of a sharded axis every device keeps its part.
    split = lambda x: x.reshape((parallel, rounds, batch_size, *x.shape[1:]))
    pool = jax.tree.map(split, pool)
    every = jax.vmap(lambda batch: _of_batch(heads, batch, sketch, pairs))

    def turn(r: Any) -> tuple[Any, Any]:
        take = lambda x: jax.lax.dynamic_index_in_dim(x, r, axis=1, keepdims=False)
        return every(jax.tree.map(take, pool))

    def step(sums: Any, r: Any) -> tuple[Any, Any]:
        rows, moments = turn(r)
        return jax.tree.map(jnp.add, sums, moments), rows

    shapes = jax.eval_shape(turn, 0)[1]
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    sums, rows = jax.lax.scan(step, start, jnp.arange(rounds))
    positive, negative = (jnp.sum(x, axis=0) / n for x in sums)
    join = lambda x: jnp.swapaxes(x, 0, 1).reshape((n, *x.shape[3:]))
    gradients, mismatch, margin, images, texts = (join(x) for x in rows)
    return PairFeatures(gradients, positive, negative, mismatch, margin, images, texts)


def _of_batch(
    heads: EndpointHeads, batch: Any, sketch: Any, pairs: bool
) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
    """Rows of a batch, and the sums over it of which moments are means."""
    images, texts, groups = batch
    negatives = None if groups is None else groups[:, None] != groups[None, :]
    c = contrast(heads, images, texts, negatives=negatives)
    split: SplitGradients = info_nce_gradients(heads, images, texts, negatives=negatives)
    positive, negative = _project(sketch, split.positive), _project(sketch, split.negative)
    own, size = jnp.diagonal(c.cosines), len(c.x)
    others = ~np.eye(size, dtype=bool)
    others = others if negatives is None else negatives & others
    others = jnp.where(others, c.cosines, -jnp.inf)
    hardest = jnp.maximum(jnp.max(others, axis=0), jnp.max(others, axis=1))
    mismatch = (jnp.sum(c.p, axis=1) + jnp.sum(c.q, axis=0)) / 2
    of_negatives = _of_pairs(c, sketch) if pairs else _gram(negative, negative)
    rows = positive + negative, mismatch, own - hardest, c.x, c.y
    return rows, (_gram(positive, positive), of_negatives)


def _of_pairs(c: Contrast, sketch: Any) -> Array:
    """Sum of ``(p_ij + q_ij) / 2`` times the squares of the gradients of ``s_ij``."""
    weights = (c.p + c.q) / 2

    def of_image(i: Array) -> Array:
        rows = _project(sketch, similarity_gradients(c, i))
        return _gram(rows, weights[i][:, None] * rows)

    shape = jax.eval_shape(of_image, jnp.asarray(0))
    add = lambda total, i: (total + of_image(i), None)
    total, _ = jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), jnp.arange(len(c.x)))
    return total


def newton_alignment(
    gradients: Float[ArrayLike, "n k"],
    target: Float[ArrayLike, " k"],
    curvature: Float[ArrayLike, "k k"],
    *,
    damping: Scalar,
) -> Float[Array, " n"]:
    """How much a Newton step on an example lowers a target's loss (Zhuang et al. 2026).

    .. math:: A_i = g_i^T (M + \\lambda I)^{-1} u, \\qquad
        \\lambda = \\textrm{damping} \\cdot \\textrm{tr}(M) / k

    Args:
      gradients: of examples' losses, ``[n, k]``, whole or sketched.
      target: gradient of the target's loss, ``[k]``, sketched alike.
      curvature: ``M``, symmetric and positive semidefinite, ``[k, k]``.
      damping: ``lambda`` over the mean of the diagonal, > 0. The ranking depends on it where few
        eigenvalues are large; without bound it becomes that of inner products.

    Returns:
      ``[n]``, float32 at least; with a curvature of zero, the inner products.

    Raises:
      ValueError: damping that is not positive, or shapes that do not fit.

    Note:
      By eigenvalues, of which those that rounding made negative count as zero: a Cholesky factor
      of a matrix of low rank can fail in float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> M = jnp.diag(jnp.array([3.0, 1.0]))
      >>> found = selection.newton_alignment(jnp.eye(2), jnp.ones(2), M, damping=0.5)
      >>> [round(float(value), 4) for value in found]  # 1 / (3 + 1) and 1 / (1 + 1)
      [0.25, 0.5]

    References:
      Zhuang et al. (2026), "CHIPS: Efficient CLIP Adaptation via Curvature-aware Hybrid
      Influence-based Data Selection", arXiv:2511.18519. :cite:`chips-data-selection`
    """
    checks.positive(damping=damping)
    arrays = [jnp.asarray(x) for x in (gradients, target, curvature)]
    dtype = functools.reduce(np.promote_types, [x.dtype for x in arrays], np.dtype(np.float32))
    gradients, target, curvature = (x.astype(dtype) for x in arrays)
    k = target.shape[0] if target.ndim == 1 else None
    if k is None or gradients.shape[1:] != (k,) or curvature.shape != (k, k):
        raise ValueError(
            "Expected gradients [n, k], target [k] and curvature [k, k], got "
            f"{gradients.shape}, {target.shape} and {curvature.shape}."
        )
    mean = jnp.trace(curvature) / k
    shift = jnp.where(mean > 0, jnp.asarray(damping).astype(mean.dtype) * mean, 1)
    values, vectors = jnp.linalg.eigh(curvature)
    along = jnp.matmul(target, vectors, precision=products.HIGHEST)
    solved = along / (jnp.maximum(values, 0) + shift)
    solved = jnp.matmul(vectors, solved, precision=products.HIGHEST)
    return jnp.matmul(gradients, solved, precision=products.HIGHEST)


def chips(
    pool: PairFeatures,
    target: PairFeatures,
    *,
    alpha: Scalar = 0.7,
    damping: Scalar = 1e-3,
    beta: Scalar = 0.5,
) -> ChipsScores:
    """CHIPS: utility of pairs for adapting a dual encoder to a domain (Zhuang et al. 2026).

    .. math::
        I(z) &= A(z)\\, w_L(z)\\, w_R(z) \\\\
        A(z) &= g(z)^T M^{-1} u \\\\
        M &= (1 - \\alpha) \\Phi^+ + \\alpha \\Phi^- + \\lambda I \\\\
        w_L(z) &= (1 - p(z)) (1 + \\sigma(-m(z))) \\\\
        w_R(z) &= \\sigma((1 - \\beta) \\cos(x, \\mu_x) + \\beta \\cos(y, \\mu_y))

    with gradients ``g`` and moments ``Phi`` of the pool, the mean gradient ``u`` and the mean
    embeddings ``mu`` of the target, the probability ``1 - p`` of a wrong match and the margin
    ``m``. Select with ``jax.lax.top_k(utility, n)``; the sign counts: a pair of negative alignment
    works against the target.

    Args:
      pool: of the candidates, as from `pair_features`.
      target: of pairs of the target domain, by the same heads and sketch.
      alpha: share of the negatives' part in the curvature, in [0, 1]; the paper finds 0.6 to 0.8
        best.
      damping: ``lambda`` over the mean of the diagonal of the rest, > 0; see `newton_alignment`.
      beta: weight of texts in relevance, in [0, 1].

    Returns:
      `ChipsScores`.

    Raises:
      ValueError: ``alpha`` or ``beta`` outside [0, 1], damping that is not positive, or features
        of different sketches.

    Note:
      From a published summary of the paper: there the two parts of the gradient, the default of
      ``damping`` and the margin in cosines are not spelled out. With a large scale of logits
      mismatch, and with it utility, goes to zero for all pairs that are learned; it is summed over
      negatives, so that it does not round to zero before float32 ends.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import selection
      >>> heads = selection.EndpointHeads(jnp.eye(3), jnp.eye(3), jnp.zeros(()))
      >>> x, y = jax.random.normal(jax.random.key(0), (2, 8, 3))
      >>> pool = selection.pair_features(heads, x, y, batch_size=4)
      >>> target = selection.pair_features(heads, x[:2], y[:2], batch_size=2)
      >>> scores = selection.chips(pool, target)
      >>> scores.utility.shape, bool(jnp.all(scores.learnability < 2))
      ((8,), True)

    References:
      Zhuang et al. (2026), "CHIPS: Efficient CLIP Adaptation via Curvature-aware Hybrid
      Influence-based Data Selection", arXiv:2511.18519. :cite:`chips-data-selection`
    """
    for name, value in {"alpha": alpha, "beta": beta}.items():
        if checks.is_concrete(value) and not 0 <= float(value) <= 1:
            raise ValueError(f"Expected {name} in [0, 1], got {name}={value}.")
    checks.positive(damping=damping)
    if pool.gradients.shape[1] != target.gradients.shape[1]:
        raise ValueError(
            "Expected pool and target to have gradients sketched alike, got "
            f"{pool.gradients.shape} and {target.gradients.shape}."
        )
    return _chips(pool, target, alpha, damping, beta)


@_verb
def _chips(
    pool: PairFeatures, target: PairFeatures, alpha: Scalar, damping: Scalar, beta: Scalar
) -> ChipsScores:
    dtype = pool.gradients.dtype
    alpha, beta = (jnp.asarray(value).astype(dtype) for value in (alpha, beta))
    curvature = (1 - alpha) * pool.positive_moment + alpha * pool.negative_moment
    wanted = jnp.mean(target.gradients, axis=0)
    alignment = newton_alignment(pool.gradients, wanted, curvature, damping=damping)
    learnability = pool.mismatch * (1 + jax.nn.sigmoid(-pool.margin))
    near = [_cosines(pool.images, target.images), _cosines(pool.texts, target.texts)]
    relevance = jax.nn.sigmoid((1 - beta) * near[0] + beta * near[1])
    return ChipsScores(alignment * learnability * relevance, alignment, learnability, relevance)


def _cosines(embeddings: Array, target: Array) -> Array:
    """Cosines of embeddings of norm 1 with the mean of the target; zero with a mean of zero."""
    mean = jnp.mean(target, axis=0)
    mean = mean * verbs.inverse(verbs.safe_sqrt(jnp.sum(jnp.square(mean))))
    return jnp.clip(jnp.matmul(embeddings, mean, precision=products.HIGHEST), -1, 1)


def _project(sketch: Any, rows: EndpointHeads) -> Array:
    """Gradients of ``[B, ...]`` at each leaf as ``[B, k]``."""
    if sketch is not None:
        return project_rows(sketch, rows)
    return jnp.concatenate([x.reshape((len(x), -1)) for x in rows], axis=1)


def _gram(a: Array, b: Array) -> Array:
    """``a^T b``."""
    return jnp.matmul(a.T, b, precision=products.HIGHEST)
