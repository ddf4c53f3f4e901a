"""The best documents along each of several axes, and how much they are the same ones (ODiS)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Num

from gradkin import checks
from gradkin.kernels import Tanimoto
from gradkin.matrices.kernel_arguments import as_points
from gradkin.typing import Array, ArrayLike


class AxisSelection(NamedTuple):
    """What `select_by_axes` selected, by ``Q`` rankings: of ``q`` axes, then of opposite ends.

    Attributes:
      chosen: ``[N]``, True for selected documents.
      axis: the ranking in which a selected document is highest, ``[N]``; -1 for others.
      sets: selected documents that each ranking alone brings, ``[Q, N]``.
    """

    chosen: Array
    axis: Array
    sets: Array


def select_by_axes(
    scores: Num[ArrayLike, "n q"],
    budget: int,
    *,
    lengths: Int[ArrayLike, " n"] | None = None,
    both_ends: Sequence[int] = (),
    fill: bool = True,
) -> AxisSelection:
    """The best documents along each axis, together a budget of tokens (ODiS, He et al. 2025).

    With ``S_j(c)`` the best documents along axis ``j``, the last of which reaches at most ``c``
    tokens when they are counted from the best one,

    .. math:: S = \\bigcup_{j=1}^{Q} S_j(c),

    where the paper has ``c = budget / Q``; documents that are best along several axes then leave a
    part of the budget unused. To fill it, ``c`` is the largest for which the union fits: all axes
    are followed equally deep, none pays for another's duplicates. Of the documents that come next
    at the same depth, those of earlier axes are taken, up to the first one that does not fit.

    A document that alone is longer than the budget (without ``fill``, than ``budget / Q``) can not
    be selected and is left out of the rankings: the next best take its place. Where all are, none
    is selected.

    Args:
      scores: ``[N, q]``, as from `project_scores` or `predict_scores`; higher is better. Any others
        do, standardized or not.
      budget: tokens altogether, or documents without ``lengths``.
      lengths: tokens of each document, ``[N]``, all > 0; None for one each.
      both_ends: axes whose lowest documents are best, too: each is one more ranking. For axes on
        which no end is known to be better.
      fill: whether to use the whole budget, or to take ``budget / Q`` from each axis as the paper
        does.

    Returns:
      `AxisSelection`; of documents with equal scores the first is better.

    Raises:
      ValueError: a budget below 1 or, without ``fill``, below the number of rankings; axes in
        ``both_ends`` that there are not, or twice; ``lengths`` of another shape. Where they can be
        read: scores of NaN (inside `jit` they are lowest, at both ends), lengths that are not
        positive, a budget above their sum, or a sum that their dtype cannot hold.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> scores = jnp.array([[9.0, 0.0], [8.0, 1.0], [0.0, 9.0], [1.0, 8.0], [5.0, 5.0]])
      >>> selection.select_by_axes(scores, 3).axis.tolist()
      [0, 0, 1, -1, -1]

    References:
      He, Liu, Lin, Tang et al. (2025), arXiv:2510.18909. :cite:`odis`
    """
    checks.rank(2, scores=scores)
    scores = as_points(scores, "scores")
    if checks.is_concrete(scores) and np.any(np.isnan(np.asarray(scores))):
        raise ValueError("Expected scores without NaN.")
    num_documents, num_axes = scores.shape
    ends = tuple(both_ends)
    if len(set(ends)) < len(ends) or not all(0 <= axis < num_axes for axis in ends):
        raise ValueError(
            f"Expected both_ends to be different axes of 0, ..., {num_axes - 1}, got {both_ends}."
        )
    ranked = jnp.concatenate([scores, -scores[:, np.asarray(ends, int)]], axis=1).T
    lengths = _lengths(lengths, num_documents, budget)
    if not fill and budget < len(ranked):
        raise ValueError(f"Expected budget >= the {len(ranked)} rankings, got budget={budget}.")

    fits = lengths <= (budget if fill else budget // len(ranked))
    lengths = jnp.where(fits, lengths, 0)

    def reached(scores: Array) -> Array:
        order = jnp.argsort(-scores, stable=True)
        tokens = jnp.cumsum(lengths[order])
        return jnp.zeros_like(tokens).at[order].set(tokens)

    depths = jnp.where(fits[None], jax.vmap(reached)(ranked), np.iinfo(lengths.dtype).max)
    depth, axis = jnp.min(depths, axis=0), jnp.argmin(depths, axis=0).astype(np.int32)
    if fill:
        order = jnp.lexsort((axis, depth))
        used = jnp.cumsum(lengths[order])
        chosen = jnp.zeros(num_documents, bool).at[order].set(used <= budget) & fits
        deepest = jnp.max(jnp.where(chosen, depth, 0))
    else:
        deepest = budget // len(ranked)
        chosen = depth <= deepest
    return AxisSelection(chosen, jnp.where(chosen, axis, -1), (depths <= deepest) & chosen[None])


def overlap_matrix(sets: Bool[ArrayLike, "q n"]) -> Float[Array, "q q"]:
    """Jaccard overlap of sets of documents: ``|A & B| / |A | B|``.

    Two independent random sets that hold a share ``f`` of all documents each overlap by about
    ``f / (2 - f)``; sets by axes that are uncorrelated but not independent may by more.

    Args:
      sets: ``[q, N]``, True for members, as from `select_by_axes`.

    Returns:
      ``[q, q]``; zero for an empty set, with itself too.

    Raises:
      ValueError: sets without two axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> sets = jnp.array([[True, True, False], [True, False, False]])
      >>> selection.overlap_matrix(sets).tolist()
      [[1.0, 0.5], [0.5, 1.0]]

    References:
      He, Liu, Lin, Tang et al. (2025), arXiv:2510.18909. :cite:`odis`
    """
    checks.rank(2, sets=sets)
    members = jnp.asarray(sets).astype(np.float32)
    return Tanimoto().tile(members, members)


def _lengths(lengths: ArrayLike | None, num_documents: int, budget: int) -> Array:
    """Tokens of each document, checked against the budget."""
    if budget < 1:
        raise ValueError(f"Expected budget >= 1, got budget={budget}.")
    if lengths is None:
        total, lengths = num_documents, jnp.ones(num_documents, int)
    else:
        lengths = jnp.asarray(lengths)
        if lengths.shape != (num_documents,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
            raise ValueError(
                f"Expected lengths to be integers of shape ({num_documents},), got "
                f"{lengths.dtype} of shape {lengths.shape}."
            )
        checks.positive(lengths=lengths)
        lengths = lengths.astype(int)
        if not checks.is_concrete(lengths):
            return lengths
        total = int(np.sum(np.asarray(lengths, np.int64)))
        if total > np.iinfo(lengths.dtype).max:
            raise ValueError(f"Expected lengths whose sum fits {lengths.dtype}: enable x64.")
    if budget > total:
        raise ValueError(f"Expected budget <= the {total} of all documents, got budget={budget}.")
    return lengths
