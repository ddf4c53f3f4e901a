"""Sharpness of diagonal linear networks in closed form."""

import jax.numpy as jnp
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices.floating import floating
from gradkin.typing import Array, ArrayLike, Scalar


def diagonal_network_average_sharpness(
    u: Float[ArrayLike, " inputs"],
    v: Float[ArrayLike, " inputs"],
    *,
    rho: Scalar,
    adaptive: bool = False,
    noise: str = "gaussian",
    second_moments: Float[ArrayLike, " inputs"] | None = None,
) -> Array:
    """Average-case sharpness of ``f(x) = <u * v, x>`` where it interpolates.

    .. math:: S = \\frac12 \\sum_i m_i \\left[ \\sigma^2 (c_{v,i}^2 u_i^2 + c_{u,i}^2 v_i^2)
        + \\sigma^4 c_{u,i}^2 c_{v,i}^2 \\right]

    for the loss ``|X (u * v) - y|^2 / (2 n)`` with zero residuals, ``m_i = (X^T X / n)_{ii}`` and
    noise of variance ``sigma^2 c^2`` (``sigma^2 = rho^2``, or ``rho^2 / 3`` if uniform). With unit
    moments ``|u|^2 + |v|^2`` counts for standard sharpness, ``2 |beta|_1`` of a balanced network
    with ``beta = u * v``; for adaptive sharpness ``2 |beta|_2^2``, whatever the balance. Sparse and
    dense interpolators are therefore ranked in opposite orders.

    Args:
      u: first layer ``[inputs]``.
      v: second layer ``[inputs]``.
      rho: as in `average_sharpness`.
      adaptive: whether the scale is ``c = (|u|, |v|)`` instead of ones.
      noise: "gaussian" or "uniform".
      second_moments: ``m``, ``[inputs]``; None takes ones.

    Returns:
      A scalar.

    Raises:
      ValueError: an argument not as above.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> sparse, dense = jnp.array([2.0, 0.0, 0.0, 0.0]), jnp.ones(4)
      >>> def sharpness(beta, adaptive):
      ...     u = jnp.sqrt(beta)
      ...     return curvature.diagonal_network_average_sharpness(
      ...         u, u, rho=0.1, adaptive=adaptive
      ...     )
      >>> bool(sharpness(sparse, False) < sharpness(dense, False))  # by |beta|_1
      True
      >>> bool(sharpness(4 * sparse, True) > sharpness(dense, True))  # by |beta|_2
      True

    References:
      Andriushchenko et al. (2023), "A Modern Look at the Relationship between Sharpness and
      Generalization", arXiv:2302.07011, sec. 5. :cite:`modern-sharpness`

    Note:
      Derived here, with the term in ``sigma^4``. The inputs need not be uncorrelated: noise of
      different inputs is, so off-diagonal moments do not count.
    """
    u, v, moments = _checked(u, v, rho, second_moments)
    checks.one_of(("gaussian", "uniform"), noise=noise)
    variance = jnp.asarray(rho, u.dtype) ** 2 / (3 if noise == "uniform" else 1)
    cu, cv = _squared_scales(u, v, adaptive)
    spread = variance * (cv * u**2 + cu * v**2) + variance**2 * cu * cv
    return 0.5 * jnp.sum(moments * spread)


def diagonal_network_worst_case_sharpness(
    u: Float[ArrayLike, " inputs"],
    v: Float[ArrayLike, " inputs"],
    *,
    rho: Scalar,
    adaptive: bool = False,
    second_moments: Float[ArrayLike, " inputs"] | None = None,
) -> Array:
    """Worst-case sharpness, ``p`` infinite, of ``f(x) = <u * v, x>`` where it interpolates.

    .. math:: S = \\frac12 \\sum_i m_i \\left[ \\rho\\, (c_{v,i} |u_i| + c_{u,i} |v_i|)
        + \\rho^2 c_{u,i} c_{v,i} \\right]^2

    for uncorrelated inputs (diagonal ``X^T X / n``, with entries ``m``), where the inputs' maxima
    are apart: each has both of its weights moved outwards as far as they may.

    Args:
      u: first layer ``[inputs]``.
      v: second layer ``[inputs]``.
      rho: as in `worst_case_sharpness`.
      adaptive: whether the scale is ``c = (|u|, |v|)`` instead of ones.
      second_moments: ``m``, ``[inputs]``; None takes ones.

    Returns:
      A scalar.

    Raises:
      ValueError: an argument not as above.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> u, v = jnp.array([2.0]), jnp.array([-1.0])
      >>> float(curvature.diagonal_network_worst_case_sharpness(u, v, rho=1.0))  # (3 * 2 - 2)^2 / 2
      8.0

    References:
      Andriushchenko et al. (2023), "A Modern Look at the Relationship between Sharpness and
      Generalization", arXiv:2302.07011, sec. 5. :cite:`modern-sharpness`

    Note:
      Derived here.
    """
    u, v, moments = _checked(u, v, rho, second_moments)
    cu, cv = (jnp.sqrt(c) for c in _squared_scales(u, v, adaptive))
    radius = jnp.asarray(rho, u.dtype)
    move = radius * (cv * jnp.abs(u) + cu * jnp.abs(v)) + radius**2 * cu * cv
    return 0.5 * jnp.sum(moments * move**2)


def _checked(
    u: ArrayLike, v: ArrayLike, rho: Scalar, second_moments: ArrayLike | None
) -> tuple[Array, Array, Array]:
    checks.positive(rho=rho)
    u, v = floating(u), floating(v)
    checks.rank(1, u=u, v=v)
    checks.same_structure(v, u, name="v", like_name="u")
    if second_moments is None:
        return u, v, jnp.ones_like(u)
    checks.same_structure(second_moments, u, name="second_moments", like_name="u")
    checks.non_negative(second_moments=second_moments)
    return u, v, jnp.asarray(second_moments, u.dtype)


def _squared_scales(u: Array, v: Array, adaptive: bool) -> tuple[Array, Array]:
    """Squared scales of the perturbations of ``u`` and of ``v``."""
    return (u**2, v**2) if adaptive else (jnp.ones_like(u), jnp.ones_like(v))
