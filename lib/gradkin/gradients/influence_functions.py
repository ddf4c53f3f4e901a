"""Influence functions: how parameters at a minimum answer to the weight of one example."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices import lanczos, products
from gradkin.matrices.kronecker import KroneckerMatrix
from gradkin.matrices.solves import Solution
from gradkin.typing import Array, PRNGKey, PyTree, Scalar

_verb = functools.partial(jax.jit, inline=True)


class Influence(NamedTuple):
    """Influence of training examples on queries.

    Attributes:
      scores: ``[n, m]``; divided by the number of training examples, the first-order rise of
        query ``j`` when example ``i`` is left out. Positive for examples that help.
      residual_norms: of each query's linear system, ``[m]``, relative to its right-hand side; zero
        where it was solved in closed form. Look at them.
    """

    scores: Array
    residual_norms: Array


def influence(
    G: Any,
    queries: Any,
    curvature: Any,
    *,
    damping: Scalar,
    rtol: Scalar = 1e-4,
    max_steps: int = 200,
) -> Influence:
    """Influence functions: ``g_i^T (C + damping I)^-1 q_j`` (Koh & Liang 2017, eq. 2).

    One linear system per query, by conjugate gradients, then inner products with the training
    gradients, which are not formed. With ``curvature.ekfac(F)`` for ``C`` the systems are solved
    in closed form from the factors of the gradients of any JAX function (Grosse et al. 2023).

    Args:
      G: per-example gradients of the training losses, ``[n, P]``.
      queries: per-example gradients of the queries' losses or outputs, ``[m, P]``.
      curvature: ``C``, of the mean training loss at its minimum: made by `gradkin.hessian`,
        `gradkin.gauss_newton`, `gradkin.fisher`, or `gradkin.curvature.kfac` and ``ekfac``.
        Include the weight decay of training, as part of the loss or of ``damping``.
      damping: added to every eigenvalue, >= 0; at least the Hessian's most negative eigenvalue
        away from a minimum.
      rtol: where conjugate gradients stop, see `gradkin.curvature.solve`.
      max_steps: and at the latest there.

    Returns:
      `Influence`.

    Raises:
      TypeError: curvature that cannot solve.
      ValueError: negative damping.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import gradients
      >>> loss = lambda w, x: 0.5 * jnp.sum((w - x) ** 2)  # the minimum is the mean, H = I
      >>> x = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> G = gradkin.per_example_grads(loss)(jnp.zeros(2), x)
      >>> H = gradkin.hessian(loss)(jnp.zeros(2), x)
      >>> gradients.influence(G, G, H, damping=0.0).scores.tolist()
      [[1.0, -1.0], [-1.0, 1.0]]

    References:
      Koh & Liang (2017), "Understanding Black-box Predictions via Influence Functions",
      arXiv:1703.04730, eq. (2). :cite:`koh:17`

      Grosse et al. (2023), "Studying Large Language Model Generalization with Influence
      Functions", arXiv:2308.03296. :cite:`grosse:23`

    Note:
      The sign is that of helping: Koh and Liang's influence of up-weighting is its negative.
    """
    checks.non_negative(damping=damping)
    if not hasattr(curvature, "solve"):
        raise TypeError(
            "Expected curvature made by gradkin.hessian, gauss_newton, fisher or "
            f"gradkin.curvature.ekfac, got {type(curvature).__name__}."
        )
    return _influence(G, queries, curvature, damping, rtol, max_steps=max_steps)


@functools.partial(_verb, static_argnames="max_steps")
def _influence(
    G: Any, queries: Any, curvature: Any, damping: Scalar, rtol: Scalar, *, max_steps: int
) -> Influence:
    closed = isinstance(curvature, KroneckerMatrix)
    options: dict[str, Any] = {} if closed else {"rtol": rtol, "max_steps": max_steps}

    def one(j: Array) -> tuple[Array, Array]:
        found = curvature.solve(queries[j], damping=damping, **options)
        return G @ found.value, found.residual_norm

    columns, residuals = jax.lax.map(one, jnp.arange(len(queries)))
    return Influence(columns.T, residuals)


def spectral_influence(
    key: PRNGKey,
    G: Any,
    queries: Any,
    curvature: Any,
    *,
    rank: int,
    num_matvecs: int | None = None,
) -> Float[Array, "train queries"]:
    """Influence within the span of the curvature's leading eigenvectors (Schioppa et al. 2022).

    .. math:: S_{ij} = \\sum_{r \\le k} \\frac{(v_r^\\top g_i)(v_r^\\top q_j)}{\\lambda_r}

    with the ``k`` eigenpairs of largest absolute value, by Lanczos. Once they are known an
    example costs ``k`` inner products, whatever the number of queries.

    Args:
      key: PRNG key of the start.
      G: per-example gradients of the training losses, ``[n, P]``.
      queries: per-example gradients of the queries, ``[m, P]``.
      curvature: symmetric matrix of the parameters; see `influence`.
      rank: ``k``.
      num_matvecs: products with the curvature; see `gradkin.curvature.top_eigenpairs`.

    Returns:
      Scores ``[n, m]``, with the sign of `influence`.

    Raises:
      ValueError: a rank or a number of products that the matrix does not allow.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import gradients
      >>> loss = lambda w, x: 0.5 * jnp.sum(jnp.array([4.0, 1.0]) * (w - x) ** 2)
      >>> x = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> G = gradkin.per_example_grads(loss)(jnp.zeros(2), x)
      >>> H = gradkin.hessian(loss)(jnp.zeros(2), x)
      >>> scores = gradients.spectral_influence(jax.random.key(0), G, G, H, rank=1)
      >>> [round(float(s), 3) for s in scores[0]]  # g = -4 and 4, eigenvalue 4
      [4.0, -4.0]

    References:
      Schioppa et al. (2022), "Scaling Up Influence Functions", arXiv:2112.03052, sec. 3.
      :cite:`schioppa:22`

    Note:
      The paper runs Arnoldi on the Hessian, which is symmetric: that is Lanczos. Directions of
      eigenvalue zero, or that the search did not find, count nothing.
    """
    pairs = lanczos.top_eigenpairs(key, curvature, rank, num_matvecs=num_matvecs, which="magnitude")
    return _spectral(G, queries, *pairs)


@_verb
def _spectral(G: Any, queries: Any, values: Array, vectors: PyTree, residuals: Array) -> Array:
    along = lambda M: jax.lax.map(lambda v: M @ v, vectors)  # [k, B]
    size = jnp.abs(values)
    # An eigenvalue within its residual, or within rounding, of zero may be zero.
    rounding = 10 * jnp.finfo(size.dtype).eps * jnp.nanmax(size)
    known = jnp.isfinite(size) & (size > residuals) & (size > rounding)
    inverse = jnp.where(known, 1 / jnp.where(known, values, 1), 0)
    left = along(G)
    left = left * jnp.broadcast_to(inverse[:, None].astype(left.dtype), left.shape)
    return jnp.matmul(left.T, along(queries), precision=products.HIGHEST)


def lissa(
    key: PRNGKey,
    transform: Callable[..., Any],
    params: PyTree,
    batch: tuple[Any, ...],
    b: PyTree,
    *,
    steps: int,
    batch_size: int,
    scale: Scalar,
    damping: Scalar = 0.0,
) -> Solution:
    """Inverse curvature times a vector by a stochastic Neumann series (Agarwal et al. 2017).

    .. math:: x_{t+1} = b + x_t - (C_t + \\lambda I)\\, x_t / s

    with ``C_t`` the curvature of a fresh random batch; ``x / s`` goes to ``(C + lambda I)^-1 b``.
    Memory and time of a step do not grow with the data. Converges where ``s`` exceeds the largest
    eigenvalue, at the rate ``1 - (smallest + lambda) / s``.

    Args:
      key: PRNG key of the batches.
      transform: ``transform(params, *batch)`` -> curvature, such as ``gradkin.hessian(loss_fn)``.
      params: parameters.
      batch: tuple of the batched arguments that follow ``params``.
      b: a pytree like the parameters.
      steps: terms of the series.
      batch_size: examples per term, drawn with replacement.
      scale: ``s``, above the largest eigenvalue plus damping of every batch.
      damping: ``lambda`` >= 0.

    Returns:
      `Solution`; its residual is measured with the curvature of the whole batch.

    Raises:
      ValueError: steps, batch size or scale that are not positive; negative damping.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import gradients
      >>> transform = gradkin.hessian(lambda w, x: 0.5 * jnp.sum((w * x) ** 2))
      >>> found = gradients.lissa(jax.random.key(0), transform, jnp.zeros(1), (jnp.ones((8, 1)),),
      ...                         jnp.ones(1), steps=100, batch_size=4, scale=4.0, damping=1.0)
      >>> round(float(found.value[0]), 3)  # H = 1
      0.5

    References:
      Agarwal, Bullins & Hazan (2017), "Second-Order Stochastic Optimization for Machine Learning
      in Linear Time", arXiv:1602.03943, eq. (7). :cite:`agarwal:17`

      Koh & Liang (2017), arXiv:1703.04730, sec. 3. :cite:`koh:17`
    """
    checks.positive(steps=steps, batch_size=batch_size, scale=scale)
    checks.non_negative(damping=damping)
    num_examples = jax.tree.leaves(batch)[0].shape[0]

    def along(x: PyTree, product: PyTree) -> PyTree:
        """``(C + damping I) x``."""
        return jax.tree.map(lambda x, c: c + jnp.asarray(damping, x.dtype) * x, x, product)

    def step(x: PyTree, key: PRNGKey) -> tuple[PyTree, None]:
        chosen = jax.random.randint(key, (batch_size,), 0, num_examples)
        part = jax.tree.map(lambda a: a[chosen], batch)
        damped = along(x, transform(params, *part) @ x)
        return jax.tree.map(
            lambda b, x, c: b + x - c / jnp.asarray(scale, x.dtype), b, x, damped
        ), None

    x, _ = jax.lax.scan(step, b, jax.random.split(key, steps))
    x = jax.tree.map(lambda x: x / jnp.asarray(scale, x.dtype), x)
    rest = jax.tree.map(jnp.subtract, b, along(x, transform(params, *batch) @ x))
    size, norm = optax.tree.norm(rest), optax.tree.norm(b)
    residual = jnp.where(norm == 0, size, size / jnp.where(norm == 0, jnp.ones_like(norm), norm))
    return Solution(x, residual, jnp.asarray(steps))
