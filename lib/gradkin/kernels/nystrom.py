"""The Nystrom method: a kernel matrix through a few of its columns."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin.matrices.kernel import kernel_matrix
from gradkin.matrices.low_rank import LowRankMatrix, low_rank
from gradkin.typing import Array, ArrayLike, PRNGKey


def nystrom(
    key: PRNGKey,
    kernel: Any,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    rank: int,
    weights: ArrayLike | None = None,
    mask: Any = None,
) -> LowRankMatrix:
    """A kernel matrix approximated through ``rank`` landmarks (Williams & Seeger 2001).

    .. math:: K \\approx C\\, W^{-1} C^\\top

    with ``C`` the kernel between all points and the landmarks, which are drawn from ``x`` without
    replacement, and ``W`` the kernel between landmarks. For ``y=None`` never above ``K`` (their
    difference is positive semidefinite).

    Args:
      key: random key.
      kernel: positive semidefinite and symmetric.
      x: points of the rows, ``[n, ...]``.
      y: points of the columns, ``[m, ...]``; None compares ``x`` with itself.
      rank: number of landmarks, from 1 to ``n``; where fewer points are not masked, some landmarks
        repeat and add nothing.
      weights: ``[m]`` factors of the columns.
      mask: points left out, as in `gradkin.kernel_matrix`.

    Returns:
      A `LowRankMatrix` with the verbs of `gradkin.kernel_matrix`, in memory ``(n + m) rank``.

    Raises:
      ValueError: ``rank`` out of range; and as `gradkin.kernel_matrix`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.linspace(0.0, 1.0, 50)[:, None]
      >>> K = kernels.nystrom(jax.random.key(0), kernels.Gaussian(), x, rank=10)
      >>> bool(jnp.all(jnp.abs(K.diagonal() - 1) < 1e-3))
      True

    References:
      Williams & Seeger (2001), "Using the Nystrom Method to Speed Up Kernel Machines".
      :cite:`williams:00`

    Note:
      ``4 eps trace(W)`` is added to ``W``'s diagonal, what rounding may have taken from its
      eigenvalues; no entry moves by more than that.
    """
    K = kernel_matrix(kernel, x, y, weights=weights, mask=mask)
    if not 1 <= rank <= len(K):
        raise ValueError(f"Expected rank from 1 to the {len(K)} points of x, got rank={rank}.")
    # Masked points hold a copy of one that is not.
    chances = None
    if K.row_mask is not None:
        chances = K.row_mask.astype(np.float32) / jnp.sum(K.row_mask).astype(np.float32)
    chosen = jax.random.choice(key, len(K), (rank,), replace=False, p=chances)
    landmarks = jnp.take(K.x, chosen, axis=0)
    between = kernel_matrix(K.kernel, landmarks).materialize()
    noise = 4 * float(jnp.finfo(between.dtype).eps) * jnp.trace(between)
    root = jnp.linalg.cholesky(between + noise * jnp.eye(rank, dtype=between.dtype))

    def features(points: Array) -> Array:
        columns = kernel_matrix(K.kernel, points, landmarks).materialize()
        return jax.scipy.linalg.solve_triangular(root, columns.T, lower=True).T

    return low_rank(
        features(K.x), None if K.y is None else features(K.y), weights=weights, mask=mask
    )
