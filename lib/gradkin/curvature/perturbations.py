"""Sets of perturbations of the parameters: balls of a norm whose axes have lengths of their own."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices.floating import floating
from gradkin.typing import Array, PRNGKey, PyTree, Scalar


def adaptive_scale(params: PyTree, *, select: Callable[[str], bool] | None = None) -> PyTree:
    """The scale of adaptive sharpness: each parameter's own magnitude (Kwon et al. 2021).

    Perturbations in proportion to the parameters see a network and its rescaled twin, which
    computes the same function, as equally sharp.

    Args:
      params: the parameters ``w`` around which sharpness is measured.
      select: ``path -> bool`` on paths such as ``"layers/0/kernel"``: leaves where it is False get
        the scale 1 instead, as some do with biases and norms. None takes ``|w|`` everywhere.

    Returns:
      ``c = |w|``, a pytree like ``params``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> params = {"kernel": jnp.array([-2.0, 0.5]), "bias": jnp.array([3.0])}
      >>> scale = curvature.adaptive_scale(params, select=lambda path: path != "bias")
      >>> scale["kernel"].tolist(), scale["bias"].tolist()
      ([2.0, 0.5], [1.0])

    References:
      Kwon, Kim, Park & Choi (2021), "ASAM: Adaptive Sharpness-Aware Minimization for
      Scale-Invariant Learning of Deep Neural Networks", arXiv:2102.11600. :cite:`kwon:21`
    """

    def one(path: Any, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.abs(leaf) if select is None or select(name) else jnp.ones_like(leaf)

    return jax.tree_util.tree_map_with_path(one, params)


def sam_perturbation(
    grads: PyTree, *, rho: Scalar, p: int | float = 2, scale: PyTree | None = None
) -> PyTree:
    """Where a linear loss is largest in the ball ``|d / c|_p <= rho`` (Foret et al. 2021, eq. 2).

    .. math:: d = \\rho \\, \\frac{c^2 g}{\\|c\\, g\\|_2} \\;\\; (p = 2), \\qquad
        d = \\rho \\, c \\, \\mathrm{sign}(g) \\;\\; (p = \\infty)

    The ascent step of sharpness-aware minimization; with `adaptive_scale`, that of ASAM.

    Args:
      grads: gradient ``g`` of the loss, a pytree like the parameters.
      rho: radius, > 0.
      p: 2 or infinity (`math.inf`).
      scale: ``c >= 0``, a pytree like ``grads``; None takes ones.

    Returns:
      ``d``, a pytree like ``grads``; zero where all ``c g`` are zero.

    Raises:
      ValueError: ``rho``, ``p`` or ``scale`` not as above.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> curvature.sam_perturbation(jnp.array([3.0, -4.0]), rho=1.0).tolist()
      [0.6000000238418579, -0.800000011920929]

    References:
      Foret, Kleiner, Mobahi & Neyshabur (2021), "Sharpness-Aware Minimization for Efficiently
      Improving Generalization", arXiv:2010.01412. :cite:`foret:21`
    """
    check_ball(rho, p)
    grads = jax.tree.map(floating, grads)
    scale = filled(scale, grads)
    if p == 2:
        along = unit(jax.tree.map(jnp.multiply, scale, grads))
    else:
        along = jax.tree.map(jnp.sign, grads)
    return jax.tree.map(lambda c, e: times(rho, c * e), scale, along)


def project_ball(
    d: PyTree, *, rho: Scalar, p: int | float = 2, scale: PyTree | None = None
) -> PyTree:
    """Bring ``d`` into the ball ``|d / c|_p <= rho``: entries clipped, or all shrunk alike.

    For ``p`` infinite, and for equal scales, this is the nearest point of the ball. With ``p = 2``
    and scales ``c`` it is the nearest one in the norm ``|d / c|``, not in the Euclidean one: see
    `project_ellipsoid`.

    Args:
      d: a pytree like the parameters.
      rho: radius, > 0.
      p: 2 or infinity (`math.inf`).
      scale: ``c >= 0``, a pytree like ``d``; None takes ones.

    Returns:
      A pytree like ``d``; zero where the scale is zero.

    Raises:
      ValueError: ``rho``, ``p`` or ``scale`` not as above.

    Example:
      >>> import math
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> curvature.project_ball(jnp.array([3.0, 0.5]), rho=1.0, p=math.inf).tolist()
      [1.0, 0.5]
    """
    check_ball(rho, p)
    d = jax.tree.map(floating, d)
    scale = filled(scale, d)
    inner = jax.tree.map(ratio, d, scale)
    if p == 2:
        size = norm(inner)
        radius = jnp.asarray(rho, size.dtype)
        shrink = jnp.where(size > radius, ratio(radius, size), 1)
        inner = jax.tree.map(lambda e: times(shrink, e), inner)
    else:
        inner = jax.tree.map(lambda e: jnp.clip(e, *limits(rho, e)), inner)
    return jax.tree.map(jnp.multiply, scale, inner)


def project_ellipsoid(d: PyTree, *, rho: Scalar, scale: PyTree, num_iterations: int = 60) -> PyTree:
    """The Euclidean projection onto the ellipsoid ``|d / c|_2 <= rho``.

    .. math:: d_i \\leftarrow \\frac{d_i}{1 + \\mu / c_i^2}

    with ``mu >= 0`` by bisection, such that the result lies on the boundary; a point inside stays.

    Args:
      d: a pytree like the parameters.
      rho: radius, > 0.
      scale: half-axes over ``rho``, ``c >= 0``; a pytree like ``d``.
      num_iterations: halvings of the interval of ``mu``.

    Returns:
      A pytree like ``d``, inside the ellipsoid up to rounding; zero where the scale is zero.

    Raises:
      ValueError: ``rho`` or ``scale`` not as above.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> c = jnp.array([1.0, 2.0])
      >>> d = curvature.project_ellipsoid(jnp.array([3.0, 3.0]), rho=1.0, scale=c)
      >>> round(float(jnp.linalg.norm(d / c)), 4)
      1.0

    References:
      Andriushchenko et al. (2023), "A Modern Look at the Relationship between Sharpness and
      Generalization", arXiv:2302.07011, sec. 3. :cite:`modern-sharpness`
    """
    check_ball(rho, 2)
    d = jax.tree.map(floating, d)
    scale = filled(scale, d)
    inner = jax.tree.map(ratio, d, scale)
    size = norm(inner)
    radius = jnp.asarray(rho, size.dtype)

    def shrunk(mu: Array) -> PyTree:
        """Of ``d / c``."""

        def one(e: Array, c: Array) -> Array:
            square = jnp.square(c)
            return e * ratio(square, square + mu.astype(c.dtype))

        return jax.tree.map(one, inner, scale)

    def halve(ends: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = ends
        middle = 0.5 * (low + high)
        outside = norm(shrunk(middle)) > radius
        return (jnp.where(outside, middle, low), jnp.where(outside, high, middle)), None

    # (c^2 + mu)^2 >= mu^2 bounds mu; the upper end stays on the feasible side.
    high = norm(jax.tree.map(jnp.multiply, scale, d)) / radius
    (_, mu), _ = jax.lax.scan(halve, (jnp.zeros_like(high), high), length=num_iterations)
    mu = jnp.where(size > radius, mu, 0)
    return jax.tree.map(jnp.multiply, scale, shrunk(mu))


def check_ball(rho: Scalar, p: int | float) -> None:
    """Raise ValueError unless the radius is positive and the norm is the second or the last."""
    checks.positive(rho=rho)
    checks.one_of((2, math.inf), p=p)


def filled(scale: PyTree | None, params: PyTree) -> PyTree:
    """The scale in the parameters' dtypes, checked; None is ones."""
    if scale is None:
        return jax.tree.map(jnp.ones_like, params)
    checks.same_structure(scale, params, name="scale", like_name="the parameters")
    for path, leaf in jax.tree_util.tree_flatten_with_path(scale)[0]:
        if checks.is_concrete(leaf) and not np.all(np.asarray(leaf) >= 0):
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "the root"
            raise ValueError(f"Expected scale >= 0, got a negative number or NaN at {name!r}.")
    return jax.tree.map(lambda c, w: jnp.asarray(c, w.dtype), scale, params)


def draw(key: PRNGKey, law: Callable[..., Array], params: PyTree) -> PyTree:
    """A random pytree like the parameters: ``law(key, shape, dtype)`` for every leaf."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [law(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def norm(tree: PyTree) -> Array:
    """Euclidean norm over all leaves, at least in float32."""
    leaves = [
        leaf.astype(np.promote_types(leaf.dtype, np.float32)) for leaf in jax.tree.leaves(tree)
    ]
    dtype = functools.reduce(np.promote_types, [leaf.dtype for leaf in leaves])
    squares = [jnp.sum(jnp.square(leaf)).astype(dtype) for leaf in leaves]
    square = functools.reduce(jnp.add, squares)
    # The root's derivative at zero would be infinite.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def unit(tree: PyTree) -> PyTree:
    """The tree over its norm; zeros stay zeros."""
    size = norm(tree)
    inverse = ratio(jnp.ones_like(size), size)
    return jax.tree.map(lambda x: times(inverse, x), tree)


def ratio(a: Array, b: Array) -> Array:
    """``a / b`` for ``b >= 0``; 0 where ``b`` is 0."""
    zero = b == 0
    return jnp.where(zero, jnp.zeros_like(a), a / jnp.where(zero, jnp.ones_like(b), b))


def times(factor: Scalar, x: Array) -> Array:
    """``factor * x`` in the dtype of ``x``."""
    return jnp.asarray(factor, x.dtype) * x


def limits(rho: Scalar, like: Array) -> tuple[Array, Array]:
    """``-rho`` and ``rho`` in the dtype of ``like``."""
    bound = jnp.asarray(rho, like.dtype)
    return -bound, bound
