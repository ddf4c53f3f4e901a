"""Curves of low loss between two models, and whether they are connected by one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices.floating import floating
from gradkin.optim import update
from gradkin.typing import Array, ArrayLike, PRNGKey, PyTree, Scalar


class BezierFit(NamedTuple):
    """A trained curve.

    Attributes:
      middle: the control point between the two models, a pytree like them.
      losses: ``[num_steps]``, the loss at each step's random point of the curve. Look at it: a
        curve that is still falling makes barriers that are none.
    """

    middle: PyTree
    losses: Array


class Connectivity(NamedTuple):
    """How well a curve connects its ends.

    Attributes:
      value: ``mc``; below zero there is a barrier, about zero the ends are well connected, above
        zero the curve is better than its ends.
      time: where on the curve that was seen.
      errors: ``[times]``, the error along the curve.
      floor: ``|E_1 - E_2| / 2``: unequal ends alone make ``|mc|`` that large.
    """

    value: Array
    time: Array
    errors: Array
    floor: Array


def bezier_point(start: PyTree, middle: PyTree, end: PyTree, t: Scalar) -> PyTree:
    """The quadratic Bezier curve ``(1 - t)^2 start + 2 t (1 - t) middle + t^2 end``.

    Args:
      start: a model, pytree of arrays.
      middle: the control point, a pytree like ``start``; the midpoint of the ends gives a line.
      end: another model, a pytree like ``start``.
      t: where, in [0, 1].

    Returns:
      A pytree like ``start``; exactly the ends at 0 and 1, where all are finite.

    Raises:
      ValueError: trees that differ, or ``t`` outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> curvature.bezier_point(jnp.zeros(2), jnp.ones(2), jnp.array([0.0, 2.0]), 0.5).tolist()
      [0.5, 1.0]

    References:
      Garipov et al. (2018), "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs",
      arXiv:1802.10026. :cite:`garipov:18`
    """
    checks.same_structure(middle, start, name="middle", like_name="start")
    checks.same_structure(end, start, name="end", like_name="start")
    _check_times(t=t)

    def mix(a: Any, b: Any, c: Any) -> Array:
        a = floating(a)
        s = jnp.asarray(t, a.dtype)
        b, c = jnp.asarray(b, a.dtype), jnp.asarray(c, a.dtype)
        return jnp.square(1 - s) * a + 2 * s * (1 - s) * b + jnp.square(s) * c

    return jax.tree.map(mix, start, middle, end)


def fit_bezier(
    key: PRNGKey,
    fun: Callable[[PRNGKey, PyTree], Any],
    start: PyTree,
    end: PyTree,
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> BezierFit:
    """Train the middle of a Bezier curve for low loss all along it (Garipov et al. 2018, sec. 3).

    .. math:: \\min_m\\; E_{t \\sim U[0, 1]}\\, L(\\gamma_m(t))

    One random point of the curve per step, from the midpoint of the ends on.

    Args:
      key: PRNG key of the points, and of what ``fun`` draws.
      fun: ``fun(key, params)`` -> scalar loss, such as that of a batch drawn with the key.
      start: a model, a pytree of arrays; stays.
      end: another model, a pytree like ``start``; stays.
      optimizer: an optax gradient transformation, for the middle.
      num_steps: how many steps.

    Returns:
      `BezierFit`. One compiled loop; map over pairs of models with `jax.vmap`.

    Raises:
      ValueError: trees that differ, or no steps.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import optax
      >>> from gradkin import curvature
      >>> ring = lambda key, w: (jnp.sum(w**2) - 1) ** 2  # models on a circle are perfect
      >>> ends = jnp.array([-1.0, 0.1]), jnp.array([1.0, 0.1])
      >>> fit = curvature.fit_bezier(
      ...     jax.random.key(0), ring, *ends, optimizer=optax.adam(0.05), num_steps=200)
      >>> top = curvature.bezier_point(ends[0], fit.middle, ends[1], 0.5)
      >>> bool(ring(None, top) < 0.2), ring(None, (ends[0] + ends[1]) / 2).item() > 0.9
      (True, True)

    References:
      Garipov et al. (2018), arXiv:1802.10026. :cite:`garipov:18`

    Note:
      Statistics of normalization layers are no weights: compute them anew on the curve.
    """
    checks.same_structure(end, start, name="end", like_name="start")
    checks.positive(num_steps=num_steps)
    start, end = (jax.tree.map(jnp.asarray, tree) for tree in (start, end))
    middle = jax.tree.map(lambda a, b: 0.5 * (a + b.astype(a.dtype)), start, end)

    def step(carry: tuple[PyTree, Any], key: PRNGKey) -> tuple[tuple[PyTree, Any], Array]:
        middle, state = carry
        at, draw = jax.random.split(key)
        t = jax.random.uniform(at)

        def loss(middle: PyTree) -> Any:
            return fun(draw, bezier_point(start, middle, end, t))

        value, grads = jax.value_and_grad(loss)(middle)
        return update(optimizer, grads, state, middle), value

    keys = jax.random.split(key, num_steps)
    (middle, _), losses = jax.lax.scan(step, (middle, optimizer.init(middle)), keys)
    return BezierFit(middle, losses)


def bezier_connectivity(
    fun: Callable[[PyTree], Any],
    start: PyTree,
    middle: PyTree,
    end: PyTree,
    *,
    times: Float[ArrayLike, " times"],
) -> Connectivity:
    """Mode connectivity along a curve (Yang et al. 2021).

    .. math:: mc = \\tfrac12 (E(\\gamma(0)) + E(\\gamma(1))) - E(\\gamma(t^*)), \\qquad
        t^* = \\arg\\max_t\\, |\\tfrac12 (E(\\gamma(0)) + E(\\gamma(1))) - E(\\gamma(t))|

    Args:
      fun: ``params -> `` scalar error or loss; the same for all that is compared.
      start: a model, a pytree of arrays.
      middle: control point of the curve, from `fit_bezier`; the midpoint of the ends for a line.
      end: another model, a pytree like ``start``.
      times: ``[times]`` in [0, 1], where to look.

    Returns:
      `Connectivity`.

    Raises:
      ValueError: trees that differ, times that are no vector or outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> double_well = lambda w: (w**2 - 1) ** 2
      >>> found = curvature.bezier_connectivity(
      ...     double_well, -1.0, 0.0, 1.0, times=jnp.linspace(0, 1, 11))
      >>> float(found.value), float(found.time)
      (-1.0, 0.5)

    References:
      Yang et al. (2021), "Taxonomizing local versus global structure in neural network loss
      landscapes", arXiv:2107.11228. :cite:`yang:21b`

      Schuerholt et al. (2025), "A Model Zoo on Phase Transitions in Neural Networks",
      arXiv:2504.18072. :cite:`phase-model-zoo`

    Note:
      Zero only for ends of equal error: where ``times`` hold an end, ``|mc|`` is at least
      ``floor``. On a convex loss it need not be zero either, but then it is positive.
    """
    checks.rank(1, times=times)
    if np.shape(times)[0] < 1:
        raise ValueError("Expected at least one time.")
    _check_times(times=times)
    ends = [jnp.asarray(fun(bezier_point(start, middle, end, t))) for t in (0.0, 1.0)]
    times = jnp.asarray(times)
    errors = jax.lax.map(lambda t: jnp.asarray(fun(bezier_point(start, middle, end, t))), times)
    gaps = 0.5 * (ends[0] + ends[1]) - errors
    worst = jnp.argmax(jnp.abs(gaps))
    return Connectivity(gaps[worst], times[worst], errors, 0.5 * jnp.abs(ends[0] - ends[1]))


def _check_times(**times: Any) -> None:
    for name, value in times.items():
        if checks.is_concrete(value):
            host = np.asarray(value)
            if not np.all((host >= 0) & (host <= 1)):
                raise ValueError(f"Expected {name} in [0, 1], got {name}={value}.")
