"""Permutation tests: exact p-values for two samples, and for the independence of variables."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkin.kernels.centered import centered, check_matrices
from gradkin.matrices.kernel import kernel_matrix
from gradkin.matrices.kernel_arguments import as_points, finite
from gradkin.matrices.kernel_tiles import pairwise_sum
from gradkin.typing import Array, ArrayLike, PRNGKey, Scalar

# Numbers of permuted matrices that are in memory at a time.
PERMUTED_NUMBERS = 2**23


class PermutationTest(NamedTuple):
    """What a permutation test finds.

    Attributes:
      statistic: of the data.
      p_value: ``(1 + #{permuted >= statistic}) / (1 + num_permutations)``: under the hypothesis at
        most ``a`` with probability at most ``a``, for every sample size. What agrees with the
        statistic to rounding counts.
      permuted: ``[num_permutations]``, the statistic of permuted data.
    """

    statistic: Array
    p_value: Array
    permuted: Array


def two_sample_test(
    key: PRNGKey,
    kernel: Any,
    x: ArrayLike,
    y: ArrayLike,
    *,
    unbiased: bool = True,
    num_permutations: int = 999,
    block: int | None = None,
) -> PermutationTest:
    """Test whether two samples come from one distribution (Gretton et al. 2012, sec. 5).

    The statistic is `squared_mmd`, with the kernel `Energy` the energy distance. It is a quadratic
    form of the labels, so all permutations are one streamed product with the kernel matrix of the
    pooled points: ``(n + m) (num_permutations + 1)`` numbers of memory, no matrix.

    Args:
      key: for the permutations.
      kernel: of `gradkin.kernels`, or any symmetric function of two points.
      x: ``[n]`` or ``[n, ...]`` points.
      y: ``[m]`` or ``[m, ...]`` points of the same shape and dtype.
      unbiased: which statistic; needs two points on either side.
      num_permutations: how many; the p-value is at least ``1 / (1 + num_permutations)``.
      block: rows of a tile; chosen automatically.

    Returns:
      `PermutationTest`.

    Raises:
      ValueError: too few points or permutations, points that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x, y = jnp.arange(12.0), jnp.arange(12.0) + 10
      >>> test = kernels.two_sample_test(jax.random.key(0), kernels.Gaussian(5.0), x, y)
      >>> round(float(test.p_value), 3)
      0.001

    References:
      Gretton, Borgwardt, Rasch, Schoelkopf & Smola (2012), "A Kernel Two-Sample Test", JMLR 13.
      :cite:`gretton:12`

      Phipson & Smyth (2010), "Permutation P-values Should Never Be Zero", Statistical Applications
      in Genetics and Molecular Biology 9. :cite:`phipson:10`
    """
    check_permutations(num_permutations)
    x, y = as_points(x, "x"), as_points(y, "y")
    finite(x, "x")
    finite(y, "y")
    n, m = len(x), len(y)
    if (x.shape[1:], x.dtype) != (y.shape[1:], y.dtype):
        raise ValueError(
            f"Expected x and y to hold points of one shape and dtype, got {x.shape[1:]} of "
            f"{x.dtype} and {y.shape[1:]} of {y.dtype}."
        )
    if unbiased and min(n, m) < 2:
        raise ValueError(f"Expected at least 2 points on either side, got {n} and {m}.")
    K = kernel_matrix(kernel, jnp.concatenate([x, y]), block=block)
    first = permuted_labels(key, n, n + m, num_permutations).astype(K.dtype)
    # Centering changes no statistic, but the size of what is added up.
    rows = K.mean(axis=1)
    mean = pairwise_sum(rows) / (n + m)
    diagonal = K.diagonal() - 2 * rows + mean
    second = 1 - first

    sums, along = pairwise_sum(first), pairwise_sum(rows[:, None] * first)
    # Rows of the centered matrix sum to zero, so those of the second sample are known.
    half = K @ first - rows[:, None] * sums[None, :] + (mean * sums - along)[None, :]
    within_first = pairwise_sum(first * half)
    across = -within_first
    within_second = within_first
    if unbiased:
        within_first = within_first - pairwise_sum(first * diagonal[:, None])
        within_second = within_second - pairwise_sum(second * diagonal[:, None])
    pairs_first = float(n) * (n - 1 if unbiased else n)
    pairs_second = float(m) * (m - 1 if unbiased else m)
    values = within_first / pairs_first + within_second / pairs_second - 2 * across / (float(n) * m)
    scale = jnp.max(jnp.abs(values)) + jnp.max(jnp.abs(diagonal)) / min(n, m)
    return compare(values, scale)


def permuted_labels(key: PRNGKey, size: int, total: int, num_permutations: int) -> Array:
    """``[total, 1 + num_permutations]`` booleans, ``size`` True in each column, first as they are.

    The first sample of the data first.
    """
    keys = jax.random.split(key, num_permutations)
    plain = jnp.arange(total) < size
    mixed = jax.vmap(lambda k: jax.random.permutation(k, plain))(keys)
    return jnp.concatenate([plain[None], mixed]).T


def independence_test(
    key: PRNGKey,
    matrices: Sequence[Any],
    *,
    offset: Scalar = 1.0,
    unbiased: bool = True,
    num_permutations: int = 999,
) -> PermutationTest:
    """Test whether paired variables are mutually independent, by permuting all but the first.

    With two Gaussian kernels this is the test of HSIC, with the kernel `Energy` that of distance
    covariance, with more than two matrices that of `joint_distance_covariance`. Every matrix is
    formed and centered once, and permuted by indexing: ``n^2`` numbers of memory for each, so for
    up to some 10,000 points.

    Args:
      key: for the permutations.
      matrices: two or more `gradkin.kernel_matrix` of paired points, one for each variable.
      offset: see `joint_distance_covariance`; without effect on two variables.
      unbiased: which statistic; needs 4 points, else 2.
      num_permutations: how many; the p-value is at least ``1 / (1 + num_permutations)``.

    Returns:
      `PermutationTest`. The statistic is the mean over pairs that `squared_distance_covariance`
      and `joint_distance_covariance` are.

    Raises:
      TypeError: not kernel matrices.
      ValueError: fewer than two variables, masked points, too few points or permutations.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import kernel_matrix, kernels
      >>> x = jnp.arange(20.0)
      >>> matrices = [kernel_matrix(kernels.Energy(), v) for v in (x, jnp.square(x))]
      >>> test = kernels.independence_test(jax.random.key(0), matrices)
      >>> round(float(test.p_value), 3)
      0.001

    References:
      Gretton, Fukumizu, Teo, Song, Schoelkopf & Smola (2007), "A Kernel Statistical Test of
      Independence", NeurIPS. :cite:`gretton:07`

      Phipson & Smyth (2010), "Permutation P-values Should Never Be Zero", Statistical Applications
      in Genetics and Molecular Biology 9. :cite:`phipson:10`
    """
    check_permutations(num_permutations)
    if len(matrices) < 2:
        raise ValueError(f"Expected at least 2 matrices, got {len(matrices)}.")
    check_matrices(matrices, unbiased=unbiased)
    if any(matrix.row_mask is not None for matrix in matrices):
        raise ValueError(
            "Expected matrices without masks: a permutation would move what they hide."
        )
    dtype = functools.reduce(np.promote_types, [matrix.dtype for matrix in matrices])
    tables = tuple(centered(matrix, unbiased=unbiased).astype(dtype) for matrix in matrices)
    offset = jnp.asarray(offset if len(matrices) > 2 else 0.0, dtype)
    values, scale = permuted_products(key, tables, offset, num_permutations)
    n = float(len(matrices[0]))
    pairs = n * (n - 3) if unbiased else n * n
    return compare(values / pairs, scale / pairs)


@functools.partial(jax.jit, static_argnames="num_permutations")
def permuted_products(
    key: PRNGKey, tables: tuple[Array, ...], offset: Array, num_permutations: int
) -> tuple[Array, Array]:
    """Sums of products of the tables, as they are and permuted, and the size of what is summed."""
    n, others = tables[0].shape[0], len(tables) - 1
    order = jnp.arange(n)
    keys = jax.random.split(key, (num_permutations, others))
    mixed = jax.vmap(jax.vmap(lambda k: jax.random.permutation(k, order)))(keys)
    same = jnp.broadcast_to(order, (1, others, n))
    unit = offset ** len(tables)

    def total(orders: Array) -> Array:
        product = tables[0] + offset
        for table, places in zip(tables[1:], orders):
            product = product * (table[places][:, places] + offset)
        return pairwise_sum(jnp.sum(product - unit, axis=1))

    batch = max(1, PERMUTED_NUMBERS // (n * n))
    values = jax.lax.map(total, jnp.concatenate([same, mixed]), batch_size=batch)
    # Cauchy and Schwarz: what the sum for two tables could be at most.
    norms = [jnp.sqrt(jnp.sum(jnp.square(table))) for table in tables]
    return values, functools.reduce(jnp.multiply, norms[:2])


def compare(values: Array, scale: Array) -> PermutationTest:
    """The test of the first value against the others; ``scale`` says what rounding is."""
    statistic, permuted = values[0], values[1:]
    rounding = 8 * jnp.finfo(values.dtype).eps * scale
    count = jnp.sum((permuted >= statistic - rounding).astype(values.dtype))
    # NaN compares false, which would look significant.
    p_value = jnp.where(jnp.isnan(statistic), jnp.nan, (1 + count) / len(values))
    return PermutationTest(statistic, p_value.astype(values.dtype), permuted)


def check_permutations(num_permutations: int) -> None:
    """Raise ValueError unless there is at least one."""
    if num_permutations < 1:
        raise ValueError(
            f"Expected num_permutations >= 1, got num_permutations={num_permutations}."
        )
