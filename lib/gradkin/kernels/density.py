"""Kernel density: how much of the data lies near a point."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.kernels.functions import Cauchy, Exponential, Gaussian, Laplacian
from gradkin.matrices.contraction import at_least_float32
from gradkin.matrices.kernel import kernel_matrix
from gradkin.matrices.kernel_arguments import finite, probabilities
from gradkin.typing import Array, ArrayLike, Scalar


class DensityEstimate(NamedTuple):
    """Estimates of a kernel density at ``m`` queries, with their standard errors.

    In units of the kernel: the weighted mean of ``k(q, x_j)`` over the points, which is 1 where all
    points lie on the query. In float32 values below 1e-38 are 0; `log_density` has no such floor.

    Attributes:
      mean_kernel: ``[m]``, unbiased.
      standard_error: ``[m]``, of `mean_kernel`; infinite where there is no telling.
      log_normalizer: log of the kernel's integral; None for a kernel that has none.
    """

    mean_kernel: Array
    standard_error: Array
    log_normalizer: Array | None

    def interval(self, *, level: Scalar = 0.95) -> tuple[Array, Array]:
        """Ends of the confidence interval of `mean_kernel`, by the normal distribution.

        Args:
          level: the probability with which the interval holds the exact value, in (0, 1).

        Returns:
          Two arrays ``[m]``. The lower end may be negative.

        Raises:
          ValueError: a level outside (0, 1).
        """
        if checks.is_concrete(level) and not 0 < level < 1:
            raise ValueError(f"Expected level in (0, 1), got level={level}.")
        dtype = self.mean_kernel.dtype
        half = jax.scipy.special.ndtri(0.5 + jnp.asarray(level, dtype) / 2) * self.standard_error
        return self.mean_kernel - half, self.mean_kernel + half

    def density(self) -> Array:
        """``[m]``, the density: `mean_kernel` over the integral of the kernel."""
        return self.mean_kernel * jnp.exp(-self._normalizer())

    def log_density(self) -> Array:
        """``[m]``, the logarithm of `density`; its standard error is `relative_error`."""
        return jnp.log(self.mean_kernel) - self._normalizer()

    def relative_error(self) -> Array:
        """``[m]``, the standard error over the estimate; infinite where the estimate is 0."""
        zero = self.mean_kernel == 0
        safe = jnp.where(zero, jnp.ones_like(self.mean_kernel), self.mean_kernel)
        return jnp.where(zero, jnp.full_like(safe, jnp.inf), self.standard_error / safe)

    def _normalizer(self) -> Array:
        if self.log_normalizer is None:
            raise ValueError("Expected a kernel with a known integral; this one has none.")
        return self.log_normalizer


def log_density(
    kernel: Any,
    points: Float[ArrayLike, "points features"],
    queries: Float[ArrayLike, "queries features"],
    *,
    weights: Float[ArrayLike, " points"] | None = None,
    block: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, " queries"]:
    """Logarithm of the kernel density estimate, exact and streamed (Silverman 1986, sec. 4.2).

    .. math:: \\log \\hat f(q) = \\log \\sum_j w_j\\, k(q, x_j) - \\log \\sum_j w_j - \\log \\int k

    No ``[m, n]`` array is formed and nothing underflows: far from all points the value is that of
    the kernel's exponent. Differentiable in everything but ``block``: the gradient with respect to
    the queries is the score, proportional to the mean shift.

    Args:
      kernel: `Gaussian`, `Laplacian`, `Exponential`, or in one dimension `Cauchy`; its bandwidth
        one number, or one for each coordinate.
      points: ``[n, d]``, n >= 1, the data.
      queries: ``[m, d]``, where to evaluate.
      weights: ``[n]``, non-negative, not all zero, divided by their sum: a point of weight 2
        counts as two points.
      block: queries at a time; chosen automatically.
      mesh: devices over which the queries are split, as in `kernel_matrix`: for use inside `jit`.

    Returns:
      ``[m]``. ``jnp.exp`` of it integrates to 1 over the queries.

    Raises:
      ValueError: a kernel without an integral, shapes that do not fit, bad weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> points = jnp.array([[-1.0], [1.0]])
      >>> far = jnp.array([[0.0], [1000.0]])
      >>> [round(float(x), 1) for x in kernels.log_density(kernels.Gaussian(1.0), points, far)]
      [-1.4, -499002.1]

    References:
      Silverman (1986), "Density Estimation for Statistics and Data Analysis", Chapman and Hall.
      :cite:`silverman:86`

    Note:
      For many bandwidths at once use `jax.vmap` over the kernel: distances are computed once.
    """
    points, queries = same_space(points, queries)
    constant = log_normalizer(kernel, points.shape[1])
    weights = normalized_weights(weights, points)
    K = kernel_matrix(kernel, queries, points, weights=weights, block=block, mesh=mesh)
    total = K.logsumexp(axis=1)
    if weights is None:
        total = total - math.log(len(points))
    return total - constant.astype(total.dtype)


def log_normalizer(kernel: Any, dim: int) -> Float[Array, ""]:
    """Logarithm of the integral of ``k(x, .)`` over the d-dimensional space.

    ===========  ==============================  =================================================
    kernel       ``k(x, y)``                     integral
    ===========  ==============================  =================================================
    Gaussian     ``exp(-|x - y|^2 / (2 h^2))``   ``(2 pi h^2)^(d/2)``
    Laplacian    ``exp(-|x - y|_1 / h)``         ``(2 h)^d``
    Exponential  ``exp(-|x - y| / h)``           ``2 pi^(d/2) h^d Gamma(d) / Gamma(d/2)``
    Cauchy       ``1 / (1 + |x - y|^2 / h^2)``   ``pi h`` for d = 1; infinite for d > 1
    ===========  ==============================  =================================================

    Of a bandwidth for each coordinate, ``h^d`` is the product.

    Args:
      kernel: one of these.
      dim: ``d >= 1``.

    Returns:
      A scalar; a traced bandwidth stays traced.

    Raises:
      ValueError: any other kernel, or a Cauchy kernel in more than one dimension.

    Example:
      >>> import math
      >>> from gradkin import kernels
      >>> volume = math.exp(kernels.log_normalizer(kernels.Laplacian(0.5), 3))
      >>> round(volume, 4)
      1.0

    References:
      Silverman (1986), sec. 4.2. :cite:`silverman:86`
    """
    checks.positive(dim=dim)
    if isinstance(kernel, Gaussian):
        unit = dim / 2 * math.log(2 * math.pi)
    elif isinstance(kernel, Laplacian):
        unit = dim * math.log(2)
    elif isinstance(kernel, Exponential):
        surface = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
        unit = surface + math.lgamma(dim)
    elif isinstance(kernel, Cauchy) and dim == 1:
        unit = math.log(math.pi)
    else:
        raise ValueError(
            "Expected a kernel with a known integral (Gaussian, Laplacian, Exponential, or Cauchy "
            f"in one dimension), got kernel={type(kernel).__name__} in {dim} dimensions. Its mean "
            "over the points is kernel_matrix(kernel, queries, points).mean(axis=1)."
        )
    bandwidth = jnp.asarray(kernel.bandwidth)
    if bandwidth.size not in (1, dim):
        raise ValueError(
            f"Expected one bandwidth, or one for each of {dim} coordinates, got "
            f"bandwidth.shape={bandwidth.shape}."
        )
    bandwidth = bandwidth.astype(np.promote_types(bandwidth.dtype, np.float32))
    return unit + dim * jnp.mean(jnp.log(bandwidth))


def as_points(**named: Any) -> Array:
    """The one array given by its name, as floating ``[n, d]`` with n, d >= 1, checked."""
    checks.rank(2, **named)
    ((name, array),) = named.items()
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"Expected {name} to be floating, got {name}.dtype={array.dtype}.")
    if array.size == 0:
        raise ValueError(f"Expected {name} not to be empty, got {name}.shape={array.shape}.")
    finite(array, name)
    return array


def same_space(points: Any, queries: Any) -> tuple[Array, Array]:
    """Points and queries, checked."""
    points, queries = as_points(points=points), as_points(queries=queries)
    if queries.shape[1] != points.shape[1] or queries.dtype != points.dtype:
        raise ValueError(
            "Expected points and queries with the same features and dtype, got points "
            f"{points.dtype}{list(points.shape)} and queries {queries.dtype}{list(queries.shape)}."
        )
    return points, queries


def normalized_weights(weights: Any, points: Array) -> Array | None:
    """Weights over their sum, at least float32, checked where they can be read; None stays None."""
    if weights is None:
        return None
    dtype = at_least_float32(points.dtype)
    return probabilities(jnp.asarray(weights, dtype), len(points))
