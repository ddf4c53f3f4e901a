"""Sums over features of a function of two points' features, without an array over all three."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from gradkin.typing import Array

# Numbers in the largest temporary array: 16 MB in float32.
LARGEST = 2**22


def sum_over_features(fn: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """``sum_k fn(a_ik, b_jk)`` of ``[n, K]`` and ``[m, K]``: ``[n, m]``.

    ``fn`` is elementwise, with ``fn(0, 0) = 0``. Features are taken in groups; the derivative
    computes the groups again instead of keeping them.
    """
    (n, num_features), m = a.shape, len(b)
    group = max(1, min(num_features, LARGEST // max(1, n * m)))

    @jax.checkpoint
    def part(a: Array, b: Array) -> Array:
        return jnp.sum(fn(a[:, None, :], b[None, :, :]), axis=-1)

    if group == num_features:
        return part(a, b)
    fill = -num_features % group
    # Zero features on both sides fill up the last group and add nothing.
    groups = [
        jnp.moveaxis(jnp.pad(x, ((0, 0), (0, fill))).reshape(len(x), -1, group), 1, 0)
        for x in (a, b)
    ]
    first, rest = [x[0] for x in groups], [x[1:] for x in groups]
    return lax.scan(lambda total, ab: (total + part(*ab), None), part(*first), rest)[0]
