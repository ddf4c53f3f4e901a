"""Sketches: random projections of gradients to ``k`` numbers that keep inner products."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices import products, sketching
from gradkin.matrices.sketching import LeafGradients
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, PRNGKey, PyTree

# Entries of the projection that exist at a time.
ENTRIES = 2**21


@functools.partial(register_dataclass, data_fields=["key"], meta_fields=["size", "combine"])
@dataclasses.dataclass(frozen=True)
class RademacherSketch:
    """``P^T g`` with independent entries ``+-1 / sqrt(k)``: what TRAK and LESS project with.

    ``<P^T g, P^T h>`` has mean ``<g, h>`` and variance below ``(|g|^2 |h|^2 + <g, h>^2) / k``. The
    signs are made from the key as they are needed, a block at a time, 32 from each random word;
    the gradients are multiplied out, one parameter at a time. Cost ``B P k``.

    Every sketch here draws anew for each parameter, from the key and a hash of its path: columns
    that are selected, batch sizes and device layouts never change it, and inner products stay
    unbiased when the projections of parameters are added.

    Attributes:
      key: PRNG key; features that are compared must have the same.
      size: ``k``.
      combine: "sum" adds the projections of all parameters (``k`` numbers per example); "concat"
        joins them (``k`` for each parameter).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import gradients
      >>> G = gradkin.per_example_grads(lambda w, x: w @ x)(jnp.ones(3), jnp.ones((2, 3)))
      >>> features = G.sketch(gradients.RademacherSketch(jax.random.key(0), 512))
      >>> features.shape
      (2, 512)
      >>> bool(abs(features[0] @ features[1] - 3.0) < 0.5)  # <g_0, g_1> = 3
      True

    References:
      Achlioptas (2003), "Database-friendly random projections". :cite:`achlioptas:03`

    Note:
      TRAK's projectors leave out the ``1 / sqrt(k)``.
    """

    key: Any
    size: int
    combine: str = dataclasses.field(default="sum", kw_only=True)

    def __post_init__(self) -> None:
        check(self)

    def of_leaf(self, leaf: LeafGradients) -> Array:
        """One parameter's projection, ``[B, size]``."""
        return blockwise(leaf.rows(), leaf_key(self.key, leaf.path), self.size, signs)


@functools.partial(register_dataclass, data_fields=["key"], meta_fields=["size", "combine"])
@dataclasses.dataclass(frozen=True)
class GaussianSketch:
    """``P^T g`` with independent normal entries of variance ``1 / k``.

    As `RademacherSketch`, with variance ``(|g|^2 |h|^2 + <g, h>^2) / k`` exactly and invariant
    under rotations; drawing the entries costs far more.

    Attributes:
      key: PRNG key.
      size: ``k``.
      combine: "sum" or "concat"; see `RademacherSketch`.
    """

    key: Any
    size: int
    combine: str = dataclasses.field(default="sum", kw_only=True)

    def __post_init__(self) -> None:
        check(self)

    def of_leaf(self, leaf: LeafGradients) -> Array:
        """One parameter's projection, ``[B, size]``."""
        return blockwise(leaf.rows(), leaf_key(self.key, leaf.path), self.size, jax.random.normal)


@functools.partial(register_dataclass, data_fields=["key"], meta_fields=["size", "combine"])
@dataclasses.dataclass(frozen=True)
class HadamardSketch:
    """Subsampled randomised Hadamard transform: ``sqrt(N / k) S H D g``.

    Random signs ``D``, the orthogonal Hadamard matrix ``H`` of the next power of two ``N`` and
    ``k`` of its rows ``S``, drawn without replacement (all of them before any twice). Cost
    ``B P log P`` whatever ``k``; as accurate as `RademacherSketch`, and exact where ``k = N``.

    Attributes:
      key: PRNG key.
      size: ``k``.
      combine: "sum" or "concat"; see `RademacherSketch`.

    References:
      Ailon & Chazelle (2009), "The Fast Johnson-Lindenstrauss Transform and Approximate Nearest
      Neighbors". :cite:`ailon:09`

      Tropp (2011), "Improved Analysis of the Subsampled Randomized Hadamard Transform",
      arXiv:1011.1595. :cite:`tropp:11`
    """

    key: Any
    size: int
    combine: str = dataclasses.field(default="sum", kw_only=True)

    def __post_init__(self) -> None:
        check(self)

    def of_leaf(self, leaf: LeafGradients) -> Array:
        """One parameter's projection, ``[B, size]``."""
        rows = leaf.rows()
        for_signs, for_places = jax.random.split(leaf_key(self.key, leaf.path))
        length = rows.shape[1]
        padded = 1 << (length - 1).bit_length()
        flips = signs(for_signs, (1, length), rows.dtype)
        rows = jnp.pad(rows * jnp.broadcast_to(flips, rows.shape), ((0, 0), (0, padded - length)))
        order = jax.random.permutation(for_places, padded)
        places = jnp.tile(order, -(-self.size // padded))[: self.size]
        return hadamard(rows)[:, places] / np.sqrt(self.size).astype(rows.dtype)


def project_rows(sketch: Any, rows: PyTree) -> Array:
    """Project gradients that are already written down, as ``G.sketch`` projects those of ``G``.

    Args:
      sketch: a sketch, such as `RademacherSketch`.
      rows: a pytree like the parameters with ``[B, *shape]`` at each leaf.

    Returns:
      ``[B, k]``, comparable with ``G.sketch(sketch)`` of gradients of the same parameters.

    Raises:
      TypeError: no sketch, or rows that are not real floating point.
      ValueError: leading axes that disagree, or no leaves.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import gradients
      >>> sketch = gradients.CountSketch(jax.random.key(0), 4)
      >>> features = gradients.project_rows(sketch, {"w": jnp.array([[3.0, 0.0, 0.0]])})
      >>> float(jnp.sum(jnp.abs(features)))  # one entry goes to one place
      3.0
    """
    sketching.check_sketch(sketch)
    leaves = sketching.leaves_of(rows)
    if len({leaf.num_examples for leaf in leaves}) != 1:
        raise ValueError(
            "Expected rows with the same number of examples at every leaf, got "
            f"{ {leaf.path: leaf.num_examples for leaf in leaves} }."
        )
    return sketching.combined(leaves, sketch)


def check(sketch: Any) -> None:
    """Check what all sketches have."""
    if not checks.is_integer(sketch.size, least=1):
        raise ValueError(f"Expected size to be a positive integer, got size={sketch.size!r}.")
    checks.one_of(("sum", "concat"), combine=sketch.combine)


def leaf_key(key: PRNGKey, path: str) -> PRNGKey:
    """The key of one parameter: a hash of its path that is the same in every process."""
    digest = hashlib.sha256(path.encode()).digest()
    for part in (digest[:4], digest[4:8]):
        key = jax.random.fold_in(key, np.uint32(int.from_bytes(part, "big")))
    return key


def signs(key: PRNGKey, shape: tuple[int, int], dtype: Any) -> Array:
    """Random signs, 32 from each random word."""
    rows, columns = shape
    words = jax.random.bits(key, (rows, -(-columns // 32), 1), np.uint32)
    places = jnp.broadcast_to(jnp.arange(32, dtype=np.uint32), (*words.shape[:2], 32))
    bits = (jnp.broadcast_to(words, places.shape) >> places) & np.uint32(1)
    return (1 - 2 * bits.astype(dtype)).reshape(rows, -1)[:, :columns]


def blockwise(
    rows: Array, key: PRNGKey, size: int, draw: Callable[[PRNGKey, tuple[int, int], Any], Array]
) -> Array:
    """``rows @ P / sqrt(size)``, where a block of rows of ``P`` exists at a time."""
    num, length = rows.shape
    count = max(1, -(-length // max(256, ENTRIES // size)))
    block = -(-length // count)
    rows = jnp.pad(rows, ((0, 0), (0, count * block - length)))

    def add(total: Array, i: Any) -> tuple[Array, None]:
        part = jax.lax.dynamic_slice_in_dim(rows, i * block, block, axis=1)
        drawn = draw(jax.random.fold_in(key, i), (block, size), rows.dtype)
        return total + jnp.matmul(part, drawn, precision=products.HIGHEST), None

    total, _ = jax.lax.scan(add, jnp.zeros((num, size), rows.dtype), jnp.arange(count))
    return total / np.sqrt(size).astype(rows.dtype)


def hadamard(x: Array) -> Array:
    """``x @ H`` along the last axis, a power of two, with entries ``+-1``: a few small products."""
    num, length = x.shape
    bits = length.bit_length() - 1
    groups = -(-bits // 6)
    parts = [bits // groups + (i < bits % groups) for i in range(groups)] if groups else []
    x = x.reshape((num, *(2**part for part in parts)))
    for part in parts:
        pairs = [np.array([[1, 1], [1, -1]])] * part
        matrix = functools.reduce(np.kron, pairs, np.ones((1, 1))).astype(x.dtype)
        # The axis that was multiplied goes last: after all of them the order is the old one.
        x = jnp.tensordot(x, matrix, axes=((1,), (0,)), precision=products.HIGHEST)
    return x.reshape((num, length))
