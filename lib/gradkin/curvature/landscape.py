"""Loss landscapes: a loss on a line or a plane through the parameters, and what spans it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices import lanczos
from gradkin.matrices.arguments import path_name
from gradkin.matrices.floating import floating
from gradkin.typing import Array, ArrayLike, PRNGKey, PyTree

NORMALIZATIONS = ("model", "layer", "filter", "weight")


def random_direction(key: PRNGKey, params: PyTree) -> PyTree:
    """Independent standard normal numbers, as many as there are parameters.

    Args:
      key: PRNG key.
      params: pytree of floating-point arrays.

    Returns:
      A pytree like ``params``; not normalized, see `normalize_direction`.

    Raises:
      TypeError: parameters that are not floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> curvature.random_direction(jax.random.key(0), {"w": jnp.zeros((3, 2))})["w"].shape
      (3, 2)
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"Expected floating-point parameters, got {jnp.result_type(leaf)} at "
                f"{path_name(path)!r}."
            )
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    drawn = [jax.random.normal(k, np.shape(x), jnp.result_type(x)) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(structure, drawn)


def normalize_direction(
    direction: PyTree,
    params: PyTree,
    *,
    mode: str = "filter",
    order: int = 2,
    filter_axis: int = -1,
    select: Callable[[str], bool] | None = None,
) -> PyTree:
    """Give a direction the scale of the parameters (Li et al. 2018, sec. 4).

    Each block of the direction gets the norm of the same block of the parameters::

        d_b <- d_b |theta_b| / |d_b|

    so that a step of length one moves every block by as much as it is long. A block is everything
    ("model"), a leaf ("layer") or what makes one output of a leaf ("filter": a slice along
    ``filter_axis``; a leaf of fewer than two axes is one block). "weight" multiplies elementwise by
    the parameters instead.

    Args:
      direction: pytree like ``params``.
      params: the parameters.
      mode: "model", "layer", "filter" or "weight".
      order: 1 or 2, the norm; of no use to "weight".
      filter_axis: the axis of outputs: the last in JAX's kernels (``[in, out]``,
        ``[height, width, in, out]``), the first in PyTorch's.
      select: which leaves move, by path ("layers/0/kernel"); the others get a direction of zero and
        count in no norm. None: all.

    Returns:
      A pytree like ``params``. Zero where the direction's block, or the parameters', is zero:
      biases at zero stay there.

    Raises:
      ValueError: trees that differ, an unknown mode or order, or no such axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> w = jnp.array([[3.0, 1.0], [4.0, 0.0]])  # two filters, the columns
      >>> curvature.normalize_direction(jnp.array([[2.0, 0.0], [0.0, 5.0]]), w).tolist()
      [[5.0, 0.0], [0.0, 1.0]]

    References:
      Li, Xu, Taylor, Studer & Goldstein (2018), "Visualizing the Loss Landscape of Neural Nets",
      arXiv:1712.09913. :cite:`li:18`

      Gabdullin (2024), "Investigating generalization capabilities of neural networks by means of
      loss landscapes and Hessian analysis", arXiv:2412.10146. :cite:`loss-landscape-hessian`

    Note:
      The reference code adds 1e-10 to the norm of a filter; here it is the exact ratio, zero where
      it is 0/0.
    """
    checks.same_structure(direction, params, name="direction", like_name="params")
    checks.one_of(NORMALIZATIONS, mode=mode)
    checks.one_of((1, 2), order=order)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    moves = [select is None or bool(select(path_name(path))) for path, _ in leaves]
    old = [jnp.asarray(w) for _, w in leaves]
    new = [jnp.asarray(d, w.dtype) for d, w in zip(jax.tree.leaves(direction), old)]
    for (path, _), w in zip(leaves, old):
        if w.ndim > 1 and mode == "filter" and not -w.ndim <= filter_axis < w.ndim:
            raise ValueError(
                f"Expected filter_axis to be an axis of every leaf of two or more, got "
                f"filter_axis={filter_axis} and shape {w.shape} at {path_name(path)!r}."
            )

    def power(x: Array, axes: tuple[int, ...]) -> Array:
        """Sum over a block of the order-th powers."""
        wide = jnp.abs(x.astype(np.promote_types(x.dtype, np.float32)))
        return jnp.sum(wide if order == 1 else jnp.square(wide), axis=axes, keepdims=True)

    def root(x: Array) -> Array:
        return x if order == 1 else jnp.sqrt(x)

    def scaled(d: Array, of_params: Array, of_direction: Array) -> Array:
        zero = of_direction == 0
        ratio = root(of_params) / root(jnp.where(zero, jnp.ones_like(of_direction), of_direction))
        return d * jnp.where(zero, jnp.zeros_like(ratio), ratio).astype(d.dtype)

    if mode == "model":
        totals = [
            sum(jnp.sum(power(x, tuple(range(x.ndim)))) for x, yes in zip(tree, moves) if yes)
            for tree in (old, new)
        ]
        totals = [jnp.asarray(total) for total in totals]
        result = [scaled(d, *totals) for d in new]
    elif mode == "weight":
        result = [d * w for d, w in zip(new, old)]
    else:
        result = []
        for d, w in zip(new, old):
            axes = tuple(range(w.ndim))
            if mode == "filter" and w.ndim > 1:
                axes = tuple(axis for axis in axes if axis != filter_axis % w.ndim)
            result.append(scaled(d, power(w, axes), power(d, axes)))
    kept = [d if yes else jnp.zeros_like(d) for d, yes in zip(result, moves)]
    return jax.tree.unflatten(structure, kept)


def hessian_directions(
    key: PRNGKey, H: Any, *, num_matvecs: int | None = None, which: str = "largest"
) -> tuple[PyTree, PyTree]:
    """The first two eigenvectors of the curvature, the axes that Gabdullin (2024) proposes.

    Args:
      key: PRNG key of the random start.
      H: a curvature matrix, as of `gradkin.hessian`; at least two parameters.
      num_matvecs: products with ``H``, as in `top_eigenpairs`.
      which: "largest", "smallest" or "magnitude".

    Returns:
      Two orthonormal pytrees like the parameters. Of a matrix whose eigenvalues are all equal one
      start sees one direction: the second is then zero (see `top_eigenpairs`).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import curvature
      >>> loss = lambda w, scale: 0.5 * jnp.sum(scale * w**2)
      >>> H = gradkin.hessian(loss)(jnp.zeros(3), jnp.array([[1.0, 9.0, 4.0]]))
      >>> first, second = curvature.hessian_directions(jax.random.key(0), H)
      >>> abs(first).round(3).tolist(), abs(second).round(3).tolist()
      ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0])

    References:
      Gabdullin (2024), arXiv:2412.10146. :cite:`loss-landscape-hessian`
    """
    vectors = lanczos.top_eigenpairs(key, H, 2, num_matvecs=num_matvecs, which=which).vectors
    first, second = (jax.tree.map(lambda v, i=i: v[i], vectors) for i in range(2))
    return first, second


def adam_directions(opt_state: Any) -> tuple[PyTree, PyTree]:
    """The two moments that Adam keeps: axes for `loss_surface`, also with ``mode="adam"``.

    Args:
      opt_state: state of an optax optimizer that has Adam's moments (adam, adamw, lamb, ...).

    Returns:
      Running means of the gradient and of its square, pytrees like the parameters.

    Raises:
      ValueError: a state without such moments, or with more than one of each.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from gradkin import curvature
      >>> mean, square = curvature.adam_directions(optax.adam(0.1).init(jnp.ones(2)))
      >>> mean.tolist(), square.tolist()
      ([0.0, 0.0], [0.0, 0.0])

    References:
      Gabdullin (2024), arXiv:2412.10146. :cite:`loss-landscape-hessian`
    """
    import optax

    def is_adam(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    found = [s for s in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(s)]
    if len(found) != 1:
        raise ValueError(
            f"Expected opt_state to hold the moments of Adam once, got {len(found)} such states."
        )
    return found[0].mu, found[0].nu


def loss_curve(
    fun: Callable[[PyTree], Any],
    params: PyTree,
    direction: PyTree,
    *,
    alphas: Float[ArrayLike, " points"],
    batch_size: int | None = None,
) -> Any:
    """A function of the parameters along a line, ``fun(theta + a d)``.

    Args:
      fun: ``fun(params)`` -> array, or pytree of arrays; a loss, an accuracy, both.
      params: ``theta``, pytree of arrays.
      direction: ``d``, pytree like ``params``.
      alphas: steps ``a``.
      batch_size: points evaluated at once; None: all.

    Returns:
      What ``fun`` returns, with a leading axis of points.

    Raises:
      ValueError: trees that differ, alphas that are not one axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> w, d = jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])
      >>> curve = curvature.loss_curve(lambda w: jnp.sum(w**2), w, d, alphas=jnp.array([0.0, 1.0]))
      >>> curve.tolist()
      [1.0, 5.0]

    References:
      Li et al. (2018), arXiv:1712.09913. :cite:`li:18`
    """
    checks.same_structure(direction, params, name="direction", like_name="params")
    checks.rank(1, alphas=alphas)

    params = jax.tree.map(floating, params)

    def at(a: Array) -> Any:
        return fun(jax.tree.map(lambda w, d: w + _like(a, w) * _like(d, w), params, direction))

    alphas = jnp.asarray(alphas)
    return jax.lax.map(at, alphas, batch_size=_points(batch_size, len(alphas)))


def loss_surface(
    fun: Callable[[PyTree], Any],
    params: PyTree,
    directions: tuple[PyTree, PyTree],
    *,
    alphas: Float[ArrayLike, " rows"],
    betas: Float[ArrayLike, " columns"],
    mode: str = "add",
    batch_size: int | None = None,
) -> Any:
    """A function of the parameters on a plane, ``fun(theta + a d_1 + b d_2)`` (Li et al. 2018).

    With ``mode="adam"`` and the moments ``m, v`` of Adam for directions, not a plane but the family
    of steps ``fun(theta + (a / sqrt(b)) m / (sqrt(v) + 1e-6))`` of Gabdullin (2024).

    Args:
      fun: ``fun(params)`` -> array, or pytree of arrays.
      params: ``theta``, pytree of arrays.
      directions: two pytrees like ``params``: of `random_direction`, `hessian_directions` or
        `adam_directions`, scaled as they should be (`normalize_direction`).
      alphas: steps along the first, ``[A]``. An odd number of evenly spaced ones has its centre at
        the parameters.
      betas: steps along the second, ``[B]``; for "adam" positive.
      mode: "add" or "adam".
      batch_size: points evaluated at once; None: a row.

    Returns:
      What ``fun`` returns, with two leading axes ``[A, B]``. Each point is computed from ``theta``,
      so none depends on the order.

    Raises:
      ValueError: trees that differ, alphas or betas that are not one axis, an unknown mode, or
        betas that are not positive where they must be.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> axes = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> loss = lambda w: jnp.sum(w**2)
      >>> steps = jnp.array([-1.0, 0.0, 2.0])
      >>> curvature.loss_surface(loss, jnp.zeros(2), axes, alphas=steps, betas=steps).tolist()
      [[2.0, 1.0, 5.0], [1.0, 0.0, 4.0], [5.0, 4.0, 8.0]]

    References:
      Li et al. (2018), arXiv:1712.09913. :cite:`li:18`

      Gabdullin (2024), arXiv:2412.10146. :cite:`loss-landscape-hessian`

    Note:
      The reference code also has ``a / b`` in place of ``a / sqrt(b)``, the same family of
      parameters at other points; it is left out.
    """
    first, second = directions
    checks.same_structure(first, params, name="directions[0]", like_name="params")
    checks.same_structure(second, params, name="directions[1]", like_name="params")
    checks.rank(1, alphas=alphas, betas=betas)
    checks.one_of(("add", "adam"), mode=mode)
    if mode == "adam":
        checks.positive(betas=betas)
    alphas, betas = jnp.asarray(alphas), jnp.asarray(betas)
    params = jax.tree.map(floating, params)

    def at(point: tuple[Array, Array]) -> Any:
        a, b = point

        def move(w: Any, d: Any, e: Any) -> Array:
            if mode == "add":
                return w + _like(a, w) * _like(d, w) + _like(b, w) * _like(e, w)
            step = _like(d, w) / (jnp.sqrt(_like(e, w)) + jnp.asarray(1e-6, jnp.result_type(w)))
            return w + _like(a, w) / jnp.sqrt(_like(b, w)) * step

        return fun(jax.tree.map(move, params, first, second))

    rows, columns = len(alphas), len(betas)
    points = jnp.repeat(alphas, columns), jnp.tile(betas, rows)
    values = jax.lax.map(at, points, batch_size=_points(batch_size, columns))
    return jax.tree.map(lambda x: jnp.reshape(x, (rows, columns, *x.shape[1:])), values)


def _like(x: Any, w: Any) -> Array:
    return jnp.asarray(x).astype(jnp.result_type(w))


def _points(batch_size: int | None, default: int) -> int:
    if batch_size is None:
        return max(default, 1)
    checks.positive_integer(batch_size=batch_size)
    return int(batch_size)
