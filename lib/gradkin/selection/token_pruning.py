"""Pruning visual tokens in front of a language model: the shorter sequence, and what it saves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from gradkin import checks
from gradkin.typing import ArrayLike, PyTree


def prune_sequence(
    sequence: PyTree, kept: Int[ArrayLike, " k"], *, visual: tuple[int, int]
) -> PyTree:
    """The sequence with only some of its visual tokens (DivPrune, Alvar et al. 2025, sec. 3).

    Kept tokens stand in their original order; all tokens outside the visual span stay. Position
    numbers and attention masks are leaves like any other: passed in, they are pruned alike, and
    tokens keep the positions they had.

    Args:
      sequence: pytree of arrays ``[L, ...]``: embeddings, position numbers, masks.
      kept: which visual tokens to keep, ``[k]``, counted from the beginning of their span, all
        different, in any order (from `farthest_first`, say).
      visual: first token of the visual span and the one after its last.

    Returns:
      The pytree with leaves ``[L - (stop - start) + k, ...]``.

    Raises:
      ValueError: leaves of different lengths, a span outside the sequence, more kept tokens than
        there are, or concrete ones outside the span or twice the same.

    Note:
      The reference indexes ``[B, L]`` position numbers along the batch; it works because they are
      None there and numbered anew. To number anew, leave them out here.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> selection.prune_sequence(jnp.arange(6), jnp.array([2, 0]), visual=(1, 5)).tolist()
      [0, 1, 3, 5]

    References:
      Alvar, Singh, Akbari & Zhang (2025), arXiv:2503.02175, sec. 3. :cite:`divprune-tokens`
    """
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(sequence)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"Expected leaves of one length, got {sorted(lengths)}.")
    ((length,),) = lengths
    start, stop = visual
    if not 0 <= start < stop <= length:
        raise ValueError(f"Expected visual to be a span of {length} tokens, got visual={visual}.")
    kept = jnp.asarray(kept)
    checks.rank(1, kept=kept)
    if not 1 <= len(kept) <= stop - start:
        raise ValueError(f"Expected kept to have 1 to {stop - start} tokens, got {len(kept)}.")
    if checks.is_concrete(kept):
        _check_kept(np.asarray(kept), stop - start)
    index = jnp.concatenate(
        [jnp.arange(start), start + jnp.sort(kept).astype(int), jnp.arange(stop, length)]
    )
    take: Any = lambda leaf: jnp.asarray(leaf)[index]
    return jax.tree.map(take, sequence)


def _check_kept(kept: np.ndarray, size: int) -> None:
    """Raise ValueError unless all are different tokens of the span."""
    if kept.min() < 0 or kept.max() >= size:
        raise ValueError(f"Expected kept in 0, ..., {size - 1}, got {kept.min()} to {kept.max()}.")
    if len(np.unique(kept)) < len(kept):
        raise ValueError("Expected kept to name no token twice.")


def prefill_flops(tokens: int, *, layers: int, width: int, hidden: int) -> float:
    """Cost of a transformer's pass over a prompt, as papers on token pruning count it.

    .. math:: T (4 n d^2 + 2 n^2 d + 2 n d m)

    Args:
      tokens: length ``n`` of the prompt.
      layers: ``T``.
      width: ``d``, of the residual stream.
      hidden: ``m``, of the feed-forward networks.

    Returns:
      Multiply-adds, as a number.

    Raises:
      ValueError: a number below 0.

    Note:
      A convention for comparing papers: a gated feed-forward network (LLaMA's) has ``3 n d m``.

    Example:
      >>> from gradkin import selection
      >>> round(selection.prefill_flops(591, layers=32, width=4096, hidden=11008) / 1e12, 4)
      3.0662

    References:
      Alvar, Singh, Akbari & Zhang (2025), arXiv:2503.02175, sec. 4. :cite:`divprune-tokens`
    """
    checks.non_negative(tokens=tokens, layers=layers, width=width, hidden=hidden)
    n, d = float(tokens), float(width)
    return layers * (4 * n * d**2 + 2 * n**2 * d + 2 * n * d * hidden)
