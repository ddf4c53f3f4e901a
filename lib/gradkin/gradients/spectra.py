"""Singular values of the gradient of each matrix of parameters, example by example."""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin.gradients.kronecker_sketch import most_square
from gradkin.matrices import contraction, products, verbs
from gradkin.matrices.leaves import Leaf
from gradkin.matrices.products import Labelled
from gradkin.matrices.recorded import PerExampleGrads
from gradkin.matrices.sketching import LeafGradients
from gradkin.typing import Array

_verb = functools.partial(jax.jit, inline=True)


class SpectralStats(NamedTuple):
    """What singular values say of a matrix; each without the last axis of the values.

    Attributes:
      nuclear_norm: their sum.
      effective_rank: the exponential of the entropy of their shares of the sum, from 1 to the
        rank; 0 for a zero matrix.
      stable_rank: the sum of their squares over the largest square, from 1 to the rank; 0 for a
        zero matrix.
      spectral_norm: the largest.
      frobenius_norm: the root of the sum of squares.
    """

    nuclear_norm: Array
    effective_rank: Array
    stable_rank: Array
    spectral_norm: Array
    frobenius_norm: Array


def spectral_stats(values: Float[Array, "*batch rank"]) -> SpectralStats:
    """Norms and ranks of matrices from their singular values (Li et al. 2025, sec. 3).

    .. math:: R = \\exp\\Big(-\\sum_i p_i \\ln p_i\\Big), \\qquad p_i = s_i / \\sum_j s_j

    Args:
      values: singular values ``[..., r]``, in any order.

    Returns:
      `SpectralStats`, each of shape ``[...]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> stats = gradients.spectral_stats(jnp.array([2.0, 2.0, 0.0]))
      >>> float(stats.nuclear_norm), round(float(stats.effective_rank), 4)
      (4.0, 2.0)

    References:
      Li et al. (2025), "How Instruction and Reasoning Data shape Post-Training: Data Quality
      through the Lens of Layer-wise Gradients", arXiv:2504.10766.
      :cite:`layerwise-gradient-spectra`

      Roy & Vetterli (2007), "The effective rank: a measure of effective dimensionality".
      :cite:`roy:07`

    Note:
      Values below 1e-7 of the largest are rounding errors and left out of the entropy.
    """
    largest = jnp.max(values, axis=-1)
    total = jnp.sum(values, axis=-1)
    zero = largest == 0
    safe = lambda x: jnp.where(zero, jnp.ones_like(x), x)
    shares = values / jnp.broadcast_to(safe(total)[..., None], values.shape)
    known = values > 1e-7 * jnp.broadcast_to(largest[..., None], values.shape)
    known = known | jnp.isnan(values)
    entropy = -jnp.sum(jnp.where(known, shares * jnp.log(jnp.where(known, shares, 1)), 0), axis=-1)
    # Squares of the values themselves would under- or overflow.
    relative = values / jnp.broadcast_to(safe(largest)[..., None], values.shape)
    squares = jnp.sum(jnp.square(relative), axis=-1)
    where_any = lambda x: jnp.where(zero, jnp.zeros_like(x), x)
    return SpectralStats(
        total,
        where_any(jnp.exp(entropy)),
        where_any(squares),
        largest,
        largest * verbs.safe_sqrt(squares),
    )


def gradient_spectra(
    G: Any, *, stacked: Callable[[str], int] | None = None
) -> dict[str, Float[Array, "examples *layers rank"]]:
    """Singular values of each parameter's gradient, for each example.

    A gradient kept as ``sum_t a_t d_t^T`` over ``T`` positions, fewer than rows or columns, is not
    formed: with thin QR factorisations ``A^T = Q R`` and ``D^T = P S`` its singular values are
    those of ``R S^T``, ``T x T``.

    Args:
      G: recorded per-example gradients; row weights and selection count.
      stacked: takes a path and tells how many leading axes of that parameter are layers (by
        `scan`, say) that are no part of a matrix; None for none anywhere.

    Returns:
      Path -> ``[B, r]``, largest first, or ``[B, *layers, r]``, with ``r`` the shorter side. A
      parameter is cut into rows and columns between the axes that make it most nearly square;
      vectors and numbers are left out.

    Raises:
      TypeError: a matrix that is not recorded.
      ValueError: no matrix among the selected parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import gradients
      >>> G = gradkin.per_example_grads(lambda w, x: jnp.sum(x @ w))(jnp.ones((2, 2)), jnp.eye(2))
      >>> [round(float(s), 4) for s in gradients.gradient_spectra(G)["."][0]]  # sqrt(2), rank one
      [1.4142, 0.0]

    References:
      Li et al. (2025), arXiv:2504.10766. :cite:`layerwise-gradient-spectra`
    """
    if not isinstance(G, PerExampleGrads):
        raise TypeError(f"Expected recorded per-example gradients, got {type(G).__name__}.")
    cuts = []
    for leaf in G.leaves:
        layers = 0 if stacked is None else stacked(leaf.path)
        cut = most_square(leaf.shape[layers:]) if leaf.selected else 0
        cuts.append((layers, layers + cut) if cut else None)
    if not any(cuts):
        raise ValueError("Expected a parameter that is a matrix among those selected.")
    return _spectra(G, tuple(cuts))


@functools.partial(_verb, static_argnums=1)
def _spectra(G: Any, cuts: tuple[tuple[int, int] | None, ...]) -> dict[str, Array]:
    found, values = {}, None
    for leaf, cut in zip(G.leaves, cuts, strict=True):
        if cut is None:
            continue
        layers, sides = leaf.shape[: cut[0]], (leaf.shape[cut[0] : cut[1]], leaf.shape[cut[1] :])
        rank = min(math.prod(side) for side in sides)
        view = LeafGradients(leaf, G.table, G.num_examples)
        matrices = _small(view, *cut, after=values)
        if matrices is None:
            matrices = view.rows().reshape((G.num_examples, *layers, *map(math.prod, sides)))
        values = jnp.linalg.svd(_after(matrices, values), compute_uv=False)
        missing = rank - values.shape[-1]
        values = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])
        values = values.reshape((G.num_examples, *layers, rank))
        if G.weights is not None:
            weights = jnp.abs(G.weights).reshape((-1,) + (1,) * (values.ndim - 1))
            values = values * jnp.broadcast_to(weights, values.shape).astype(values.dtype)
        found[leaf.path] = values
    return found


def _after(x: Array, previous: Array | None) -> Array:
    """``x``, once ``previous`` is there.

    Factorisations of batches that run at once wait for each other for ever on CPUs with few cores
    (jaxlib 0.10.1).
    """
    if previous is None or not previous.size:
        return x
    return jnp.where(jnp.ravel(previous)[0] > jnp.inf, jnp.zeros_like(x), x)


def _small(view: LeafGradients, layers: int, cut: int, *, after: Array | None) -> Array | None:
    """``R S^T`` of every example and layer; None where the gradient itself is smaller."""
    stack, _ = view.split(layers)
    rows, columns = view.split(cut)
    rows = [x for x in rows if x not in stack]
    sizes, own = view.leaf.sizes, {*rows, *columns, *stack}
    sides: list[list[Array]] = [[], []]
    for part in products.parts(view.leaf, view.table):
        if part.a is None or part.row is not None:
            return None
        factors = [part.a, part.d]
        if not set(rows) <= set(part.a[1]):
            factors.reverse()
        if any(set(x[1]) & own != {*axes, *stack} for x, axes in zip(factors, (rows, columns))):
            return None
        summed = dict.fromkeys(x for f in factors for x in f[1] if x not in own)
        summed.pop(products.batch(), None)
        lengths = dict(pair for x, labels in factors for pair in zip(labels, x.shape))
        shape = (
            view.num_examples,
            *(sizes[x] for x in stack),
            math.prod(lengths[x] for x in summed),
        )
        for side, factor, axes in zip(sides, factors, (rows, columns)):
            side.append(
                _laid_out(factor, stack, list(summed), axes, lengths, shape).astype(view.dtype)
            )
    if not sides[0]:
        return None
    left, right = (jnp.concatenate(side, axis=-2) for side in sides)
    if left.shape[-2] >= min(left.shape[-1], right.shape[-1]):
        return None
    r = jnp.linalg.qr(_after(jnp.swapaxes(left, -1, -2), after), mode="r")
    s = jnp.linalg.qr(_after(jnp.swapaxes(right, -1, -2), r), mode="r")
    return jnp.matmul(r, jnp.swapaxes(s, -1, -2), precision=products.HIGHEST)


def _laid_out(
    factor: Labelled,
    stack: list[int],
    summed: list[Hashable],
    axes: list[int],
    lengths: dict[Hashable, int],
    shape: tuple[int, ...],
) -> Array:
    """A factor as ``[B, *layers, positions, side]``."""
    order = [products.batch(), *stack, *summed, *axes]
    x = contraction.align(*factor, order)
    lengths = {products.batch(): shape[0], **lengths}
    x = jnp.broadcast_to(x, [lengths[label] for label in order])
    return x.reshape((*shape, -1))


def gradient_cosines(G: Any, pairs: Sequence[tuple[str, str]]) -> Float[Array, "examples pairs"]:
    """Cosines between the gradients of two parameters of one shape, for each example.

    Whether projections of a layer, or a projection of adjacent layers, are pulled the same way.

    Args:
      G: recorded per-example gradients.
      pairs: paths of two parameters each.

    Returns:
      ``[B, pairs]``; zero where a gradient is zero.

    Raises:
      TypeError: a matrix that is not recorded.
      ValueError: a path that is not selected, or shapes that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import gradients
      >>> loss = lambda p, x: x @ p["a"] + 2 * x[0] * p["b"][0]
      >>> params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
      >>> G = gradkin.per_example_grads(loss)(params, jnp.array([[3.0, 4.0]]))
      >>> [round(float(c), 4) for c in gradients.gradient_cosines(G, [("a", "b")])[0]]
      [0.6]

    References:
      Li et al. (2025), arXiv:2504.10766. :cite:`layerwise-gradient-spectra`
    """
    if not isinstance(G, PerExampleGrads):
        raise TypeError(f"Expected recorded per-example gradients, got {type(G).__name__}.")
    leaves = {leaf.path: (number, leaf) for number, leaf in enumerate(G.leaves) if leaf.selected}
    numbers = []
    for pair in pairs:
        for path in pair:
            if path not in leaves:
                raise ValueError(f"Expected paths among {', '.join(leaves)}, got {path!r}.")
        (i, a), (j, b) = (leaves[path] for path in pair)
        if a.shape != b.shape:
            raise ValueError(f"Expected equal shapes, got {a.shape} and {b.shape} for {pair}.")
        numbers.append((i, j))
    return _cosines(G, tuple(numbers))


@functools.partial(_verb, static_argnums=1)
def _cosines(G: Any, numbers: tuple[tuple[int, int], ...]) -> Array:
    squares = {
        i: products.squared_norms(G.leaves[i], G.table, G.num_examples)
        for i in sorted({i for pair in numbers for i in pair})
    }
    found = []
    for i, j in numbers:
        dots = _dots(G, G.leaves[i], G.leaves[j])
        a, b = (verbs.inverse(verbs.safe_sqrt(squares[n])) for n in (i, j))
        scale = a * b.astype(a.dtype)
        found.append(dots * scale.astype(dots.dtype))
    cosines = jnp.stack(found, axis=1)
    if G.weights is None:
        return cosines
    return jnp.where(jnp.broadcast_to((G.weights == 0)[:, None], cosines.shape), 0, cosines)


def _dots(G: Any, a: Leaf, b: Leaf) -> Array:
    """Inner products of two parameters' gradients, ``[B]``."""
    if a.sizes != b.sizes:
        left, right = (LeafGradients(leaf, G.table, G.num_examples).rows() for leaf in (a, b))
        return jnp.sum(left * right, axis=1)
    total = jnp.zeros((G.num_examples,), products.dtype(a, G.table))
    for p in products.parts(a, G.table):
        for q in products.parts(b, G.table, "right"):
            q = products.renamed(q, products.batch("right"), products.batch())
            total = total + products.pair(p, q, [products.batch()], a).astype(total.dtype)
    return total
