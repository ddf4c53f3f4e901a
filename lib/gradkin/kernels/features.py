"""Random Fourier features: a kernel matrix as a product of cosines and sines."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin.kernels.functions import scaled
from gradkin.matrices import distances
from gradkin.matrices.kernel import kernel_matrix
from gradkin.matrices.low_rank import LowRankMatrix, low_rank
from gradkin.typing import Array, ArrayLike, PRNGKey


def random_features(
    key: PRNGKey,
    kernel: Any,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    size: int,
    orthogonal: bool = False,
    weights: ArrayLike | None = None,
    mask: Any = None,
) -> LowRankMatrix:
    """An unbiased estimate of a kernel matrix, of rank ``size`` (Rahimi & Recht 2007).

    .. math:: k(x, y) \\approx \\frac{2}{D} \\sum_{r=1}^{D/2} \\cos \\langle w_r, x - y \\rangle

    with frequencies drawn from the kernel's Fourier transform. An entry's standard error is at most
    ``1 / sqrt(D)``; the diagonal is exact.

    Args:
      key: random key; the same key gives the same features of any points.
      kernel: with a ``spectral_scale``: `Gaussian`, `Laplacian`, `Exponential` or `Cauchy`.
      x: points of the rows, ``[n, ...]``.
      y: points of the columns, ``[m, ...]``; None compares ``x`` with itself.
      size: number of features ``D``, even: a cosine and a sine per frequency.
      orthogonal: draw frequencies orthogonal to one another in groups of as many as there are
        features of a point (Yu et al. 2016); each is distributed as before, the error is smaller.
        For kernels that depend on the Euclidean distance.
      weights: ``[m]`` factors of the columns.
      mask: points left out, as in `gradkin.kernel_matrix`.

    Returns:
      A `LowRankMatrix` with the verbs of `gradkin.kernel_matrix`, in memory ``(n + m) D``.

    Raises:
      ValueError: an odd or non-positive ``size``, a kernel without frequencies, ``orthogonal`` for
        one that is not a function of the Euclidean distance; and as `gradkin.kernel_matrix`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.array([[0.0, 0.0], [1.0, 0.5]])
      >>> K = kernels.random_features(jax.random.key(0), kernels.Gaussian(), x, size=4096)
      >>> bool(abs(K.materialize()[0, 1] - kernels.Gaussian()(x[0], x[1])) < 0.05)
      True

    References:
      Rahimi & Recht (2007), "Random Features for Large-Scale Kernel Machines". :cite:`rahimi:07`
      Yu et al. (2016), "Orthogonal Random Features", arXiv:1610.09072. :cite:`yu:16`

    Note:
      Orthogonal groups larger than one are also unbiased for kernels other than the Gaussian
      because only directions are made orthogonal; lengths stay independent.
    """
    if size < 2 or size % 2:
        raise ValueError(f"Expected size to be even and >= 2, got size={size}.")
    K = kernel_matrix(kernel, x, y, mask=mask)  # its checks, its masked points
    flat = distances.points(K.x)
    frequencies = draw_frequencies(
        key, kernel, size // 2, flat.shape[1], orthogonal=orthogonal
    ).astype(flat.dtype)

    def features(points: Array) -> Array:
        points, _, h = scaled(kernel.bandwidth, points, points)
        angles = distances.product(points, frequencies) / h
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1) * (2 / size) ** 0.5

    return low_rank(
        features(K.x), None if K.y is None else features(K.y), weights=weights, mask=mask
    )


def draw_frequencies(
    key: PRNGKey, kernel: Any, size: int, num_features: int, *, orthogonal: bool
) -> Float[Array, "size features"]:
    """Frequencies of a kernel of bandwidth one: normal vectors times the kernel's scale."""
    if not hasattr(kernel, "spectral_scale"):
        raise ValueError(
            f"Expected a kernel with known frequencies (spectral_scale), got {kernel!r}."
        )
    for_normal, for_scale = jax.random.split(key)
    scale = kernel.spectral_scale(for_scale, (size, num_features))
    if not orthogonal:
        return scale * jax.random.normal(for_normal, (size, num_features))
    if scale.shape[1] != 1:
        raise ValueError(
            f"Expected a kernel of the Euclidean distance with orthogonal=True, got {kernel!r}."
        )
    for_rotation, for_length = jax.random.split(for_normal)
    groups = -(-size // num_features)
    rotations, upper = jnp.linalg.qr(
        jax.random.normal(for_rotation, (groups, num_features, num_features))
    )
    # With the signs that the decomposition leaves open, every direction is as likely as another.
    signs = jnp.sign(jnp.diagonal(upper, axis1=-2, axis2=-1))
    rotations = rotations * signs[:, None, :]
    directions = rotations.reshape((groups * num_features, num_features))[:size]
    lengths = jnp.linalg.norm(
        jax.random.normal(for_length, (size, num_features)), axis=1, keepdims=True
    )
    return scale * lengths * directions
