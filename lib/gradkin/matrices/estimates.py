"""Traces, diagonals and norms of a symmetric matrix from products with random vectors."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices.operators import numerics, operator, symmetric
from gradkin.typing import Array, PRNGKey

_verb = functools.partial(jax.jit, inline=True)


class Estimate(NamedTuple):
    """A random estimate.

    Attributes:
      value: the estimate.
      standard_error: its standard deviation over keys, estimated from the spread of the probes;
        the same structure.
    """

    value: Any
    standard_error: Any


def trace(key: PRNGKey, A: Any, *, num_matvecs: int = 64, method: str = "hutchinson") -> Estimate:
    """Unbiased estimate of the trace (Hutchinson 1989; Epperly, Tropp & Webber 2024).

    "hutchinson" averages ``v . A v`` over random signs ``v``; its error falls as
    ``1 / sqrt(num_matvecs)``. "xtrace" spends half of the products on finding the range of ``A``,
    which pays where few eigenvalues carry the trace; it is exact from ``num_matvecs >= P`` on, or
    where the rank is below ``num_matvecs / 2``.

    Args:
      key: PRNG key.
      A: symmetric matrix: curvature, kernel or array.
      num_matvecs: products with ``A``; at least 2, for "xtrace" even and at least 4.
      method: "hutchinson", one probe at a time, or "xtrace", all at once.

    Returns:
      `Estimate` of two scalars.

    Raises:
      ValueError: a method or a number of products that is not as above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> estimate = curvature.trace(jax.random.key(0), jnp.diag(jnp.array([1.0, 2.0, 3.0])))
      >>> float(estimate.value), float(estimate.standard_error)  # exact where A is diagonal
      (6.0, 0.0)

    References:
      Hutchinson (1989), "A stochastic estimator of the trace of the influence matrix for Laplacian
      smoothing splines". :cite:`hutchinson:89`

      Epperly, Tropp & Webber (2024), "XTrace: Making the most of every sample in stochastic trace
      estimation", arXiv:2301.07825, sec. 2. :cite:`epperly:24`
    """
    checks.one_of(("hutchinson", "xtrace"), method=method)
    symmetric(A)
    num_matvecs = _at_least(2, num_matvecs)
    if method == "xtrace" and (num_matvecs % 2 or num_matvecs < 4):
        raise ValueError(
            f"Expected num_matvecs to be even and at least 4 for xtrace, got {num_matvecs}."
        )
    return _trace(key, A, num_matvecs=num_matvecs, method=method)


@functools.partial(_verb, static_argnames=("num_matvecs", "method"))
def _trace(key: PRNGKey, A: Any, *, num_matvecs: int, method: str) -> Estimate:
    from matfree import stochtrace

    if method == "hutchinson":
        return _monte_carlo(key, A, stochtrace.monte_carlo_trace(), num_matvecs)
    op = operator(A)
    num = min(num_matvecs // 2, op.size)
    with numerics():
        like = jnp.zeros(op.size, op.dtype)
        # The spheres' rotational invariance is what XTrace's rescaling of residuals needs.
        estimate = stochtrace.estimator_leave_one_out_mean_and_sem(
            stochtrace.leave_one_out_xtrace(), stochtrace.sampler_sphere(like, num=num)
        )
        value, error = estimate(op.product, key)
    return Estimate(value, error * np.sqrt(num / max(num - 1, 1)).astype(op.dtype))


def diagonal(key: PRNGKey, A: Any, *, num_matvecs: int = 64) -> Estimate:
    """Unbiased estimate of the diagonal (Bekas, Kokiopoulou & Saad 2007).

    The mean of ``v * (A v)`` over random signs ``v``. Exact for diagonal matrices; the error of an
    entry is the norm of the rest of its row over ``sqrt(num_matvecs)``.

    Args:
      key: PRNG key.
      A: symmetric matrix: curvature, kernel or array.
      num_matvecs: products with ``A``, at least 2.

    Returns:
      `Estimate` of two vectors in the form that ``A`` multiplies: pytrees like the parameters for
      curvature.

    Raises:
      ValueError: fewer than two products.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> A = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
      >>> curvature.diagonal(jax.random.key(0), A).value.tolist()
      [1.0, 2.0, 3.0]

    References:
      Bekas, Kokiopoulou & Saad (2007), "An estimator for the diagonal of a matrix".
      :cite:`bekas:07`
    """
    symmetric(A)
    num_matvecs = _at_least(2, num_matvecs)
    return _diagonal(key, A, num_matvecs=num_matvecs)


@functools.partial(_verb, static_argnames="num_matvecs")
def _diagonal(key: PRNGKey, A: Any, *, num_matvecs: int) -> Estimate:
    from matfree import stochtrace

    unflatten = operator(A).unflatten
    flat = _monte_carlo(key, A, stochtrace.monte_carlo_diagonal(), num_matvecs)
    return Estimate(unflatten(flat.value), unflatten(flat.standard_error))


def frobenius_norm(key: PRNGKey, A: Any, *, num_matvecs: int = 64) -> Estimate:
    """Root of the sum of all squared entries: the root of the mean of ``|A v|^2`` over signs.

    The square is estimated without bias, its root with a bias of the order of the standard error
    squared over the value.

    Args:
      key: PRNG key.
      A: symmetric matrix: curvature, kernel or array.
      num_matvecs: products with ``A``, at least 2.

    Returns:
      `Estimate` of two scalars; zero for a zero matrix.

    Raises:
      ValueError: fewer than two products.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> A = jnp.diag(jnp.array([3.0, 4.0]))
      >>> float(curvature.frobenius_norm(jax.random.key(0), A).value)
      5.0
    """
    symmetric(A)
    num_matvecs = _at_least(2, num_matvecs)
    return _frobenius_norm(key, A, num_matvecs=num_matvecs)


@functools.partial(_verb, static_argnames="num_matvecs")
def _frobenius_norm(key: PRNGKey, A: Any, *, num_matvecs: int) -> Estimate:
    from matfree import stochtrace

    integrand = stochtrace.monte_carlo_frobeniusnorm_squared()
    square, error = _monte_carlo(key, A, integrand, num_matvecs)
    zero = square == 0
    root = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square))).astype(square.dtype)
    return Estimate(root, jnp.where(zero, 0.0, error / (2 * jnp.where(zero, 1.0, root))))


def _monte_carlo(key: PRNGKey, A: Any, integrand: Callable[..., Any], num: int) -> Estimate:
    """Mean over random signs and its standard error, one probe at a time.

    matfree's own average holds all probes at once, which for large models is too much.
    """
    from matfree import stochtrace

    op = operator(A)
    with numerics():
        sample = stochtrace.sampler_signs(jnp.zeros(op.size, op.dtype), num=1)

        def one(key: PRNGKey) -> Array:
            return integrand(op.product, sample(key)[0])

        def step(state: Any, numbered: Any) -> Any:
            mean, squares = state
            number, key = numbered
            x = one(key)
            gap = x - mean
            mean = mean + gap / number
            return (mean, squares + gap * (x - mean)), None

        keys = jax.random.split(key, num)
        zero = jnp.zeros_like(jax.eval_shape(one, keys[0]))
        numbers = jnp.arange(1, num + 1, dtype=op.dtype)
        (mean, squares), _ = jax.lax.scan(step, (zero, zero), (numbers, keys))
        return Estimate(mean, jnp.sqrt(squares / (num * (num - 1))))


def _at_least(least: int, num_matvecs: int) -> int:
    if not checks.is_integer(num_matvecs, least=least):
        raise ValueError(f"Expected num_matvecs >= {least}, got {num_matvecs!r}.")
    return int(num_matvecs)
