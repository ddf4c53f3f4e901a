"""How far the singular directions of two networks' weights agree."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from gradkin import checks
from gradkin.curvature.permutations import leaves_with_paths
from gradkin.typing import Array, ArrayLike, PyTree


class SingularAlignment(NamedTuple):
    """Agreement of singular directions.

    Attributes:
      total: over all layers, of gamma's shape.
      layers: path of a weight -> the same for it alone.
    """

    total: Array
    layers: dict[str, Array]


class Directions(NamedTuple):
    """What one layer adds: the sum over pairs of directions, and how many were kept."""

    agreement: Array
    kept: Array


def singular_alignment(a: PyTree, b: PyTree, *, gamma: ArrayLike = 0.0) -> SingularAlignment:
    """How far the singular directions of two networks agree (Ito et al. 2025).

    .. math:: R = \\frac{\\sum_l \\sum_{ij} (u^a_{l,i} \\cdot u^b_{l,j})
        (v^a_{l,i} \\cdot v^b_{l,j})}{\\sum_l n_l}

    over the directions whose singular value is at least gamma times the layer's largest; n_l is how
    many are kept, of the network that keeps fewer. Every pair counts, so that equal singular
    values, whose vectors are arbitrary, do no harm.

    Args:
      a: parameters. Leaves with fewer than two axes are left out; others are matrices with the last
        axis against all before it (convolutions: taps and channels against features). Attention
        kernels with two output axes are to be reshaped before.
      b: parameters of the same structure.
      gamma: in [0, 1], or an array of such.

    Returns:
      `SingularAlignment`: 1 where the kept directions coincide, about 0 for unrelated networks, at
      most 1 where both keep equally many. Permutations change directions, never singular values.
      With gamma 0, directions of singular value 0 count too, arbitrary as they are.

    Raises:
      ValueError: structures that differ, no matrix, gamma outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> a, b = jnp.diag(jnp.array([3.0, 1.0])), jnp.diag(jnp.array([2.0, -1.0]))
      >>> curvature.singular_alignment(a, b, gamma=jnp.array([0.0, 0.6])).total.tolist()
      [0.0, 1.0]

    References:
      Ito, Yamada & Kumagai (2025), "Analysis of Linear Mode Connectivity via Permutation-Based
      Weight Matching", arXiv:2402.04051. :cite:`lmc-weight-matching`
    """
    checks.same_structure(b, a, name="b", like_name="a")
    if checks.is_concrete(gamma) and not np.all(
        (np.asarray(gamma) >= 0) & (np.asarray(gamma) <= 1)
    ):
        raise ValueError(f"Expected gamma in [0, 1], got gamma={gamma}.")
    pairs = {
        path: (x, y)
        for (path, x), (_, y) in zip(leaves_with_paths(a), leaves_with_paths(b))
        if np.ndim(x) >= 2
    }
    if not pairs:
        raise ValueError("Expected parameters with at least one matrix, got none.")
    found = {path: directions(x, y, jnp.asarray(gamma)) for path, (x, y) in pairs.items()}
    over_layers = lambda parts: jnp.sum(jnp.stack(parts), axis=0)
    total = over_layers([layer.agreement for layer in found.values()]) / over_layers(
        [layer.kept for layer in found.values()]
    )
    return SingularAlignment(
        total, {path: layer.agreement / layer.kept for path, layer in found.items()}
    )


def directions(x: Array, y: Array, gamma: Array) -> Directions:
    """The double sum of one layer, for every gamma."""
    u, s, v = decomposed(x)
    w, t, z = decomposed(y)
    product = lambda p, q: jnp.matmul(p, q, precision=lax.Precision.HIGHEST)
    pairs = product(u.T, w) * product(v, z.T)
    level = gamma.reshape(-1, 1).astype(s.dtype)
    keep_x = (s[None] >= level * s[:1][None]).astype(s.dtype)
    keep_y = (t[None] >= level * t[:1][None]).astype(s.dtype)
    agreement = jnp.sum(product(keep_x, pairs) * keep_y, axis=1)
    kept = jnp.minimum(keep_x.sum(1), keep_y.sum(1))
    return Directions(agreement.reshape(gamma.shape), kept.reshape(gamma.shape))


def decomposed(weight: Array) -> tuple[Array, Array, Array]:
    """The thin singular value decomposition, the last axis against the rest."""
    weight = jnp.asarray(weight)
    wide = weight.astype(np.promote_types(weight.dtype, np.float32))
    u, s, v = jnp.linalg.svd(wide.reshape(-1, weight.shape[-1]), full_matrices=False)
    return u, s, v
