"""Eigenvalues, spectral densities and log-determinants from a few products (Lanczos)."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices.estimates import Estimate
from gradkin.matrices.operators import (
    Operator,
    dot,
    expose,
    hold,
    numerics,
    operator,
    symmetric,
)
from gradkin.typing import Array, ArrayLike, PRNGKey, PyTree, Scalar

_verb = functools.partial(jax.jit, inline=True)


class Eigenpairs(NamedTuple):
    """Approximate eigenvalues and eigenvectors.

    Attributes:
      values: ``[k]``, in the order asked for.
      vectors: orthonormal, stacked along a new first axis of length ``k``, in the form that the
        matrix multiplies: pytrees like the parameters for curvature.
      residuals: ``|A v - value v|`` of each pair, ``[k]``: some eigenvalue of ``A`` lies within
        this distance of the value.
    """

    values: Array
    vectors: PyTree
    residuals: Array


class SpectralDensity(NamedTuple):
    """The density of eigenvalues, as stochastic Lanczos quadrature sees it.

    Attributes:
      nodes: quadrature nodes of each probe, ``[num_probes, num_matvecs]``.
      weights: their weights; those of a probe sum to one.
      grid: where the smoothed density was evaluated.
      density: smoothed density on the grid; it integrates to one.
      standard_error: of the density, from the spread over probes.
      size: number of eigenvalues ``P``.
    """

    nodes: Array
    weights: Array
    grid: Array
    density: Array
    standard_error: Array
    size: Any

    def trace_of(self, fun: Callable[[Array], Array]) -> Estimate:
        """Estimate ``sum_i fun(lambda_i)`` over all eigenvalues, for an elementwise function."""
        values = jnp.asarray(fun(self.nodes)).astype(self.nodes.dtype)
        sums = jnp.sum(jnp.where(self.weights > 0, self.weights * values, 0), axis=1)
        return _mean(sums * jnp.asarray(self.size, sums.dtype))


def top_eigenpairs(
    key: PRNGKey,
    A: Any,
    k: int = 1,
    *,
    num_matvecs: int | None = None,
    which: str = "largest",
) -> Eigenpairs:
    """Extreme eigenpairs by Lanczos with full re-orthogonalisation.

    Args:
      key: PRNG key of the random start.
      A: symmetric matrix: curvature, kernel or array.
      k: how many pairs.
      num_matvecs: products with ``A``, from ``k`` to ``P``; more are more accurate, and need the
        memory of as many vectors. None takes the larger of 50 and ``2 k``, at most ``P``.
      which: "largest" and "smallest" count signs; "magnitude" is largest absolute value first.

    Returns:
      `Eigenpairs`. One start sees each repeated eigenvalue once (rounding may find it again). A
      matrix with fewer than ``k`` different ones therefore may end the search early: then NaN, and
      zero vectors, take the last places.

    Raises:
      ValueError: ``k``, ``num_matvecs`` or ``which`` not as above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> A = jnp.diag(jnp.array([-5.0, 1.0, 3.0]))
      >>> pairs = curvature.top_eigenpairs(jax.random.key(0), A, 2)
      >>> [round(float(x), 3) for x in pairs.values]
      [3.0, 1.0]
      >>> pairs = curvature.top_eigenpairs(jax.random.key(0), A, which="magnitude")
      >>> round(float(pairs.values[0]), 3)
      -5.0

    References:
      Golub & Van Loan (2013), "Matrix Computations", sec. 10.1-10.3. :cite:`golub:13`

    Note:
      The residuals are measured, by one more product for each pair. Eigenvalues are differentiable,
      to first order, as the perturbation of a converged and simple eigenvalue; vectors and
      residuals count as constants.
    """
    checks.one_of(("largest", "smallest", "magnitude"), which=which)
    size = _size(A)
    if not checks.is_integer(k, least=1) or k > size:
        raise ValueError(f"Expected k from 1 to {size}, the matrix's size, got {k!r}.")
    num_matvecs = _depth(num_matvecs, max(50, 2 * k), size, least=k)
    return _top_eigenpairs(key, A, k=int(k), num_matvecs=num_matvecs, which=which)


@functools.partial(_verb, static_argnames=("k", "num_matvecs", "which"))
def _top_eigenpairs(key: PRNGKey, A: Any, *, k: int, num_matvecs: int, which: str) -> Eigenpairs:
    op = operator(A)
    start = jax.random.normal(key, (op.size,), op.dtype)
    found = _ritz(hold(op), start, num_matvecs)
    values, known = found.values, jnp.arange(num_matvecs) < found.count
    rank = {"largest": -values, "smallest": values, "magnitude": -jnp.abs(values)}[which]
    chosen = jnp.argsort(jnp.where(known, rank, jnp.inf))[:k]
    vectors = dot(found.vectors[:, chosen].T, found.basis)

    def one(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        value, v = pair
        product = op.product(v)
        residual = jnp.linalg.norm(jax.lax.stop_gradient(product) - value * v)
        # First-order perturbation theory: the derivative of a value is v . dA v.
        form = jnp.sum(v * product)
        return value + form - jax.lax.stop_gradient(form), residual

    values, residuals = jax.lax.map(one, (values[chosen], vectors))
    known = known[chosen]
    return Eigenpairs(
        jnp.where(known, values, jnp.nan),
        jax.vmap(op.unflatten)(vectors),
        jnp.where(known, residuals, jnp.nan),
    )


def spectral_density(
    key: PRNGKey,
    A: Any,
    *,
    num_matvecs: int | None = None,
    num_probes: int = 8,
    grid: Float[ArrayLike, " points"] | int = 1024,
    width: Scalar | None = None,
) -> SpectralDensity:
    """Density of eigenvalues by stochastic Lanczos quadrature (Ghorbani et al. 2019, sec. 2).

    .. math:: \\phi(t) = \\frac{1}{n} \\sum_{v=1}^{n} \\sum_{j=1}^{m}
        \\omega_j^{(v)} \\, N(t;\\; \\theta_j^{(v)}, \\sigma^2)

    Each random direction ``v`` gives ``m`` nodes and weights that integrate polynomials up to
    degree ``2 m - 1`` exactly against its own spectral measure, whose mean is the density.

    Args:
      key: PRNG key.
      A: symmetric matrix: curvature, kernel or array.
      num_matvecs: products with ``A`` per probe, ``m``, at most ``P``; None takes at most 64.
      num_probes: random directions ``n``, at least 2.
      grid: points of evaluation, or how many of them between the extreme nodes, with a margin.
      width: standard deviation ``sigma`` of the smoothing; None takes that of Papyan (2018), where
        neighbouring of ``m`` evenly spread nodes just merge.

    Returns:
      `SpectralDensity`; also has ``trace_of(fun)``. Differentiable in reverse mode.

    Raises:
      ValueError: numbers not as above, or a width that is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> A = jnp.diag(jnp.array([0.0, 0.0, 0.0, 4.0]))
      >>> result = curvature.spectral_density(jax.random.key(0), A, num_probes=500, num_matvecs=2)
      >>> bool(abs(result.trace_of(lambda t: t > 2).value - 1) < 0.2)  # one of four is above 2
      True

    References:
      Ghorbani, Krishnan & Xiao (2019), "An Investigation into Neural Net Optimization via Hessian
      Eigenvalue Density", arXiv:1901.10159. :cite:`ghorbani:19`

      Papyan (2018), "The Full Spectrum of Deepnet Hessians at Scale", arXiv:1811.07062.
      :cite:`papyan:18`

      Ubaru, Chen & Saad (2017), "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature".
      :cite:`ubaru:17`
    """
    num_matvecs = _depth(num_matvecs, 64, _size(A), least=1)
    if not checks.is_integer(num_probes, least=2):
        raise ValueError(f"Expected num_probes >= 2, got {num_probes!r}.")
    if isinstance(grid, int | np.integer):
        if grid < 2:
            raise ValueError(f"Expected at least 2 grid points, got grid={grid}.")
    else:
        checks.rank(1, grid=grid)
    if width is not None:
        checks.positive(width=width)
    points, given = (int(grid), None) if isinstance(grid, int | np.integer) else (0, grid)
    return _spectral_density(
        key, A, given, width, num_matvecs=num_matvecs, num_probes=num_probes, points=points
    )


@functools.partial(_verb, static_argnames=("num_matvecs", "num_probes", "points"))
def _spectral_density(
    key: PRNGKey,
    A: Any,
    grid: ArrayLike | None,
    width: Scalar | None,
    *,
    num_matvecs: int,
    num_probes: int,
    points: int,
) -> SpectralDensity:
    nodes, weights = _quadrature(key, A, num_matvecs, num_probes)
    low, high = jnp.min(nodes), jnp.max(nodes)
    # Five per cent of margin; a single repeated eigenvalue still has a width.
    largest = jnp.maximum(jnp.abs(low), jnp.abs(high))
    half = jnp.maximum(1.05 * (high - low) / 2, 1e-3 * jnp.where(largest > 0, largest, 1))
    if width is None:
        width = half * (2 / (max(num_matvecs - 1, 1) * math.sqrt(8 * math.log(3))))
    width = jnp.asarray(width, nodes.dtype)
    if grid is None:
        middle = (low + high) / 2
        grid = jnp.linspace(middle - half - 3 * width, middle + half + 3 * width, points)
    grid = jnp.asarray(grid, nodes.dtype)

    def smoothed(nodes: Array, weights: Array) -> Array:
        z = (grid[:, None] - nodes[None, :]) / width
        return dot(jnp.exp(-0.5 * jnp.square(z)), weights) / (width * math.sqrt(2 * math.pi))

    density = _mean(jax.lax.map(lambda pair: smoothed(*pair), (nodes, weights)))
    size = jnp.asarray(A.shape[0], nodes.dtype)
    return SpectralDensity(nodes, weights, grid, density.value, density.standard_error, size)


def log_determinant(
    key: PRNGKey,
    A: Any,
    *,
    damping: Scalar = 0.0,
    num_matvecs: int | None = None,
    num_probes: int = 8,
) -> Estimate:
    """``log det(A + damping I)`` by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017).

    Args:
      key: PRNG key.
      A: symmetric matrix: curvature, kernel or array; positive definite once damped.
      damping: added to every eigenvalue.
      num_matvecs: products with ``A`` per probe, at most ``P``; None takes at most 64.
      num_probes: random directions, at least 2.

    Returns:
      `Estimate` of two scalars; NaN where a node is not positive, so ``A`` was not. Differentiable
      in reverse mode.

    Raises:
      ValueError: numbers not as above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> estimate = curvature.log_determinant(jax.random.key(0), 2 * jnp.eye(3))
      >>> bool(abs(estimate.value - 3 * jnp.log(2.0)) < 1e-5)
      True

    References:
      Ubaru, Chen & Saad (2017), "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature".
      :cite:`ubaru:17`
    """
    num_matvecs = _depth(num_matvecs, 64, _size(A), least=1)
    if not checks.is_integer(num_probes, least=2):
        raise ValueError(f"Expected num_probes >= 2, got {num_probes!r}.")
    return _log_determinant(key, A, damping, num_matvecs=num_matvecs, num_probes=num_probes)


@functools.partial(_verb, static_argnames=("num_matvecs", "num_probes"))
def _log_determinant(
    key: PRNGKey, A: Any, damping: Scalar, *, num_matvecs: int, num_probes: int
) -> Estimate:
    nodes, weights = _quadrature(key, A, num_matvecs, num_probes)
    # A node without weight is no eigenvalue.
    values = jnp.where(weights > 0, jnp.log(nodes + jnp.asarray(damping, nodes.dtype)), 0)
    sums = jnp.sum(weights * values, axis=1)
    return _mean(sums * jnp.asarray(A.shape[0], sums.dtype))


class Ritz(NamedTuple):
    """What ``m`` Lanczos steps know: ``count`` Ritz pairs, then places that hold nothing.

    ``values`` ascend; column ``j`` of ``vectors`` has the coordinates of pair ``j`` in the rows of
    ``basis``.
    """

    basis: Array
    values: Array
    vectors: Array
    count: Array


def _quadrature(key: PRNGKey, A: Any, num_matvecs: int, num_probes: int) -> tuple[Array, Array]:
    """Nodes and weights of each probe, one probe after another."""
    op = expose(operator(A))

    def one(key: PRNGKey) -> tuple[Array, Array]:
        found = _ritz(op, jax.random.normal(key, (op.size,), op.dtype), num_matvecs)
        known = jnp.arange(num_matvecs) < found.count
        nodes = jnp.where(known, found.values, found.values[0])
        return nodes, jnp.where(known, jnp.square(found.vectors[0]), 0)

    return jax.lax.map(one, jax.random.split(key, num_probes))


def _ritz(op: Operator, start: Array, num_matvecs: int) -> Ritz:
    """Lanczos with full re-orthogonalisation, cut off where the Krylov space is exhausted.

    There the next vector is rounding error divided by its norm, or NaN: neither it nor what
    follows may be used.
    """
    from matfree import decomp

    with numerics():
        factorise = decomp.tridiag_sym(num_matvecs, reortho="full", materialize=False)
        basis, (diagonal, coupling), *_ = cast(Any, factorise(op.product, start))
        # |A q| without what couples to the next vector; a NaN compares as exhausted.
        before = jnp.concatenate([jnp.zeros((1,), op.dtype), coupling])[:-1]
        # The largest so far: in a null space what is seen of A is itself rounding.
        seen = jax.lax.cummax(jnp.hypot(diagonal[:-1], before))
        goes_on = jnp.abs(coupling) > 10 * np.finfo(op.dtype).eps * seen
        known = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(goes_on).astype(bool)])
        diagonal = jnp.where(known, diagonal, 0)
        coupling = jnp.where(known[1:], coupling, 0)
        # What is unknown moves above the spectrum, apart: eigh sorts it last and never mixes it.
        bound = jnp.max(jnp.abs(diagonal)) + 2 * jnp.max(jnp.abs(coupling), initial=0)
        apart = jnp.arange(4, 4 + num_matvecs, dtype=op.dtype) * jnp.where(bound > 0, bound, 1)
        diagonal = jnp.where(known, diagonal, apart)
        small = jnp.diag(diagonal) + jnp.diag(coupling, 1) + jnp.diag(coupling, -1)
        values, vectors = jnp.linalg.eigh(small)
        return Ritz(jnp.where(known[:, None], basis, 0), values, vectors, jnp.sum(known))


def _mean(values: Array) -> Estimate:
    """Mean over the first axis and its standard error."""
    num = values.shape[0]
    error = jnp.std(values, axis=0, ddof=1) / math.sqrt(num)
    return Estimate(jnp.mean(values, axis=0), error)


def _size(A: Any) -> int:
    return symmetric(A).shape[0]


def _depth(num_matvecs: int | None, default: int, size: int, *, least: int) -> int:
    if num_matvecs is None:
        return min(default, size)
    if not checks.is_integer(num_matvecs, least=least) or num_matvecs > size:
        raise ValueError(
            f"Expected num_matvecs from {least} to {size}, the matrix's size, got {num_matvecs!r}."
        )
    return int(num_matvecs)
