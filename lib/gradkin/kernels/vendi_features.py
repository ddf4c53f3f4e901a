"""Vendi scores from features: the spectrum of a Gram matrix is that of a second moment."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.kernels.vendi import probabilities, score_of, wide
from gradkin.typing import Array, ArrayLike, Scalar

# Numbers of one block: 4 MiB in float32.
BLOCK = 1 << 20


class SecondMoment(NamedTuple):
    """Sum over points of ``w_i x_i x_i^T``: all that the score of a cosine kernel depends on.

    Moments of disjoint sets are added with `merge`, so points may come in any number of batches,
    from any number of processes, and are never kept.

    Attributes:
      matrix: ``[d, d]``, the sum.
      weight: sum of the weights; the number of points without them.
    """

    matrix: Array
    weight: Array

    def merge(self, other: "SecondMoment") -> "SecondMoment":
        """The moment of both sets together."""
        return SecondMoment(self.matrix + other.matrix, self.weight + other.weight)

    def vendi_score(self, *, order: Scalar = 1.0) -> Array:
        """Score of all points seen, of any order; as `gradkin.kernels.vendi_score`.

        Raises:
          ValueError: a negative order; a moment that is not finite or without trace.
        """
        checks.non_negative(order=order)
        return score_of(self.matrix, order, name="the second moment")


def second_moment(
    x: Float[ArrayLike, "n d"],
    *,
    weights: ArrayLike | None = None,
    normalize: bool = True,
    block: int | None = None,
) -> SecondMoment:
    """Second moment of features, in blocks of rows: O(n d^2) time, O(d^2) memory beside them.

    Args:
      x: ``[n, d]`` features.
      weights: ``[n]`` weights, >= 0, of any sum; ones by default.
      normalize: whether to divide each row by its length, which makes the kernel the cosine.
      block: rows at a time; by default about a million numbers. Rows sharded over devices stay
        where they are if ``n`` has a suitable divisor, as it has in a power of ten.

    Returns:
      `SecondMoment`: ``.merge`` it with those of other batches, read off ``.vendi_score()``. A row
      of zeros gives NaN with ``normalize``.

    Raises:
      ValueError: features that are not a matrix or (where not traced) not finite, a row of zeros,
        negative weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> moment = kernels.second_moment(jnp.array([[2.0, 0.0], [3.0, 0.0]]))
      >>> moment = moment.merge(kernels.second_moment(jnp.array([[0.0, 1.0], [0.0, 5.0]])))
      >>> float(moment.weight), round(float(moment.vendi_score()), 4)
      (4.0, 2.0)

    References:
      Friedman & Dieng (2023), arXiv:2210.02410. :cite:`vendi-score`
    """
    x = checked(x, normalize)
    w = jnp.ones(len(x), x.dtype) if weights is None else weights
    if np.shape(w) != (len(x),):
        raise ValueError(f"Expected weights of shape ({len(x)},), got {np.shape(w)}.")
    checks.non_negative(weights=w)
    w = jnp.asarray(w, x.dtype)
    return SecondMoment(moment(x, w, normalize, block), jnp.sum(w))


def vendi_score_features(
    x: Float[ArrayLike, "n d"],
    *,
    order: Scalar = 1.0,
    weights: ArrayLike | None = None,
    normalize: bool = True,
    method: str = "auto",
    block: int | None = None,
) -> Float[Array, ""]:
    """Vendi score of features under the linear kernel (Friedman & Dieng 2023).

    .. math:: K = X X^T, \\qquad \\operatorname{eig}(K / n) \\setminus 0 =
        \\operatorname{eig}(X^T X / n) \\setminus 0

    With unit rows, as ``normalize`` makes them, the kernel is the cosine. Square roots of class
    probabilities as rows, without ``normalize``, give the probability product kernel. Maps of
    random or Nystrom features give any kernel approximately (`vendi_score_nystrom`).

    Args:
      x: ``[n, d]`` features.
      order: as in `vendi_score`.
      weights: ``[n]`` probabilities of the points; uniform by default.
      normalize: whether to divide each row by its length.
      method: "covariance" takes O(n d^2 + d^3) and any ``n``, "gram" O(n^2 d + n^3); "auto" the
        smaller of the two matrices.
      block: rows of the covariance at a time, as in `second_moment`.

    Returns:
      The score, differentiable as `vendi_score` is.

    Raises:
      ValueError: an unknown method, or what `second_moment` and `vendi_score` refuse; rows whose
        length is not 1 (within 1e-3 of the square) without ``normalize``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 7.0], [0.0, 1.0]])
      >>> round(float(kernels.vendi_score_features(x, order=2)), 4)
      2.0

    References:
      Friedman & Dieng (2023), arXiv:2210.02410. :cite:`vendi-score`

    Note:
      In the reference package ``score_X`` leaves its order out (it is always 1) and ``score_dual``
      has no weights.
    """
    checks.non_negative(order=order)
    checks.one_of(("auto", "covariance", "gram"), method=method)
    x = checked(x, normalize)
    n, d = x.shape
    p = probabilities(weights, n, x.dtype)
    if not normalize and checks.is_concrete(x):
        off_one = float(jnp.max(jnp.abs(squares(x) - 1)))
        if off_one > 1e-3:
            raise ValueError(
                f"Expected the rows of x to have length 1, got a square {off_one:.3g} away; "
                "normalize=True divides by it."
            )
    if method == "gram" or (method == "auto" and n < d):
        matrix = gram(x, p, normalize)
    else:
        matrix = moment(x, p, normalize, block)
    return score_of(matrix, order, name="x")


def checked(x: Any, normalize: bool) -> Array:
    """Features as a float matrix; raise where they are not, or where a row has no direction."""
    checks.rank(2, x=x)
    x = wide(x)
    if 0 in x.shape:
        raise ValueError(f"Expected x not to be empty, got x.shape={x.shape}.")
    if checks.is_concrete(x):
        finite, least = facts(x)
        if not finite:
            raise ValueError("Expected x to be finite, got NaN or infinity.")
        if normalize and least == 0:
            raise ValueError("Expected no row of x to be zero, got one; it has no direction.")
    return x


@jax.jit
def facts(x: Array) -> tuple[Array, Array]:
    """Whether finite; the smallest of the rows' largest entries."""
    return jnp.all(jnp.isfinite(x)), jnp.min(jnp.max(jnp.abs(x), axis=1))


@jax.jit
def squares(x: Array) -> Array:
    return jnp.sum(x * x, axis=1)


def scaled(x: Array, w: Array, normalize: bool) -> Array:
    """Rows times the root of their weight, over their length if asked for."""
    scale = jnp.sqrt(w)
    if normalize:
        # Large and small rows: the square of an entry may not be a number of the dtype.
        x = x / jnp.max(jnp.abs(x), axis=1, keepdims=True)
        scale = scale / jnp.sqrt(squares(x))
    return x * scale[:, None]


@functools.partial(jax.jit, static_argnums=2)
def gram(x: Array, w: Array, normalize: bool) -> Array:
    rows = scaled(x, w, normalize)
    return jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnums=(2, 3))
def moment(x: Array, w: Array, normalize: bool, block: int | None) -> Array:
    """``sum_i w_i x_i x_i^T``; in blocks where there are many rows."""
    features = functools.partial(scaled, normalize=normalize)
    steps = num_steps(len(x), x.shape[1], block)
    if steps == 1:
        return outer(features(x, w))
    # Through the loop the derivative would write all of x once per step.
    streamed = jax.custom_vjp(lambda x, w: streamed_moment(features, x, w, steps))
    plain = lambda x, w: outer(features(x, w))
    streamed.defvjp(
        lambda x, w: (streamed(x, w), (x, w)),
        lambda saved, given: jax.vjp(plain, *saved)[1](given),
    )
    return streamed(x, w)


def outer(rows: Array) -> Array:
    return jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)


def num_steps(n: int, width: int, block: int | None) -> int:
    """How many blocks; one where two would do."""
    if block is None:
        block = max(BLOCK // width, 1)
        return 1 if n <= 2 * block else math.ceil(n / block)
    checks.positive(block=block)
    return math.ceil(n / block)


def streamed_moment(
    features: Callable[[Array, Array], Array], x: Array, w: Array, steps: int
) -> Array:
    """Add the moments of ``features(rows, weights)`` over blocks of rows, one block in memory.

    A step takes every ``steps``-th row, so that each device has an equal share of it and sharded
    rows stay where they are. Where the number of rows has no divisor nearby, it takes rows that
    lie together, and the last block leaves out those it shares with the one before.
    """
    n = len(x)
    divisors = [s for s in range(steps, min(4 * steps, n) + 1) if n % s == 0]
    if divisors:
        steps = max(divisors, key=lambda s: (math.gcd(n // s, 1024), -s))
        columns = x.reshape(n // steps, steps, *x.shape[1:]), w.reshape(n // steps, steps)

        def block(j: Array) -> Array:
            return features(*(jax.lax.dynamic_index_in_dim(c, j, 1, False) for c in columns))
    else:
        size = math.ceil(n / steps)

        def block(j: Array) -> Array:
            start = jnp.minimum(j * size, n - size)
            rows, part = (jax.lax.dynamic_slice_in_dim(a, start, size) for a in (x, w))
            new = start + jnp.arange(size) >= j * size
            return features(rows, jnp.where(new, part, jnp.zeros_like(part)))

    shape = jax.eval_shape(block, jax.ShapeDtypeStruct((), jnp.int32))
    zero = jnp.zeros((shape.shape[1],) * 2, shape.dtype)
    return jax.lax.fori_loop(0, steps, lambda j, total: total + outer(block(j)), zero)
