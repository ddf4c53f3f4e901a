"""How far the linear model of a gradient can be trusted, measured along random directions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.curvature import damped_steps
from gradkin.matrices.operators import operator
from gradkin.typing import Array, ArrayLike, PRNGKey, PyTree


def smoothness_radius(
    key: PRNGKey,
    fun: Callable[[PyTree], Any],
    params: PyTree,
    H: Any,
    *,
    radii: Float[ArrayLike, " radii"],
    num_directions: int = 100,
    region: str = "halfspace",
) -> Float[Array, ""]:
    """Gradient-normalized smoothness at a point, from above (Semenov et al. 2026).

    The largest ``gamma`` such that for all steps ``h`` with ``|h| <= gamma``

    .. math:: \\|g(x + h) - g(x) - H h\\| \\le \\frac{\\|g(x)\\|}{\\gamma} \\|h\\|

    Only the directions that are drawn are looked at, and lengths on a grid, so the true value is
    no greater.

    Args:
      key: PRNG key of the directions, uniform on the sphere.
      fun: ``params -> `` scalar.
      params: the point ``x``, a pytree.
      H: an approximate Hessian there: an array ``[P, P]``, a `gradkin.CurvatureMatrix`, a
        `RankOne`, or None for zero.
      radii: lengths ``|h|``, ascending, > 0.
      num_directions: how many directions; each with both signs.
      region: "halfspace" asks only for steps that the model does not increase along,
        ``<g + H h, h> <= 0``, which includes the method's own; "ball" for all.

    Returns:
      ``gamma``; infinite where no error was seen (a quadratic with its own Hessian). Below the
      least radius the grid tells nothing: then that radius is returned.

    Raises:
      ValueError: radii that are not positive and ascending, another region, curvature of another
        shape, or no direction.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> quartic = lambda x: x**4 / 4  # g = x^3, H = 3 x^2
      >>> radius = curvature.smoothness_radius(
      ...     jax.random.key(0), quartic, jnp.ones(()), 3 * jnp.ones((1, 1)),
      ...     radii=jnp.linspace(0.01, 3, 300), region="ball")
      >>> bool(abs(radius - 0.532) < 0.01)  # 3 h^2 + h^3 = h / h
      True

    References:
      Semenov, Jaggi & Doikov (2026), arXiv:2506.13710. :cite:`gradient-normalized-smoothness`

    Note:
      The half-space cannot be dropped for functions like ``cosh``, whose radius would vanish with
      the gradient. The definition is as remembered; the half-space is our reading of it.
    """
    checks.one_of(("halfspace", "ball"), region=region)
    checks.rank(1, radii=radii)
    checks.positive(radii=radii, num_directions=num_directions)
    if checks.is_concrete(radii) and not np.all(np.diff(np.asarray(radii)) > 0):
        raise ValueError(f"Expected radii to be ascending, got {np.asarray(radii)}.")
    x, unravel = damped_steps.raveled(params)
    damped_steps.check_matrix(H, x.size, None)
    radii = jnp.asarray(radii, x.dtype)
    product = _product(H)

    def gradient(flat: Array) -> Array:
        return damped_steps.raveled(jax.grad(fun)(unravel(flat)))[0]

    g = gradient(x)
    size = jnp.sqrt(jnp.sum(jnp.square(g)))

    def along(direction: Array) -> Array:
        """The bound on gamma that each radius gives: ``[radii]``."""
        turned = product(direction)

        def at(radius: Array) -> Array:
            h = radius * direction
            error = gradient(x + h) - g - radius * turned
            length = jnp.sqrt(jnp.sum(jnp.square(error)))
            bound = jnp.where(
                length == 0, jnp.inf, size * radius / jnp.where(length == 0, 1, length)
            )
            bound = jnp.where(jnp.isnan(length), 0, bound)  # no gradient there
            rises = jnp.sum(g * h) + radius * jnp.sum(turned * h) > 0
            return jnp.where(rises & (region == "halfspace"), jnp.inf, bound)

        return jax.vmap(at)(radii)

    directions = jax.random.normal(key, (num_directions, x.size), x.dtype)
    norms = jnp.sqrt(jnp.sum(jnp.square(directions), axis=1, keepdims=True))
    directions = jnp.concatenate([directions / norms, -directions / norms])
    bounds = jax.lax.cummin(jnp.min(jax.lax.map(along, directions), axis=0))
    # Between two radii the bound of the lower one holds; above it, that of the next.
    upper = jnp.concatenate([radii[1:], jnp.full((1,), jnp.inf, x.dtype)])
    feasible = jnp.where(bounds >= radii, jnp.minimum(bounds, upper), radii[0])
    return jnp.max(feasible)


def _product(H: Any) -> Callable[[Array], Array]:
    """``v -> H v`` on flat vectors."""
    if H is None:
        return jnp.zeros_like
    if isinstance(H, damped_steps.RankOne):
        vector, _ = damped_steps.raveled(H.vector)

        def rank_one(v: Array) -> Array:
            u = vector.astype(v.dtype)
            return jnp.asarray(H.scale, v.dtype) * u * jnp.sum(u * v)

        return rank_one
    return operator(H).product
