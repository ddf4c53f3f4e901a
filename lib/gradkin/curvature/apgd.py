"""Auto-PGD: the largest value of a function in a ball around the parameters."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.curvature.perturbations import (
    check_ball,
    draw,
    filled,
    project_ball,
    project_ellipsoid,
    times,
    unit,
)
from gradkin.typing import Array, PRNGKey, PyTree, Scalar

STEPS = ("scaled", "euclidean", "reference")


class Maximum(NamedTuple):
    """The best point that an ascent found.

    Attributes:
      perturbation: ``d``, a pytree like the parameters; zeros where nothing beats the start.
      value: ``fun(params + d)``.
      clean: ``fun(params)``; never above ``value``.
    """

    perturbation: PyTree
    value: Array
    clean: Array


class Ascent(NamedTuple):
    """One restart on its way."""

    d: PyTree
    before: PyTree
    size: Array
    last: Array
    improved: Array
    best: PyTree
    best_grad: PyTree
    best_value: Array
    checked_value: Array
    halved: Array


def auto_pgd(
    key: PRNGKey,
    fun: Callable[[PyTree], Array],
    params: PyTree,
    *,
    rho: Scalar,
    p: int | float = 2,
    scale: PyTree | None = None,
    num_steps: int = 20,
    num_restarts: int = 1,
    start: str = "random",
    step: str = "scaled",
) -> Maximum:
    """Maximize ``fun(params + d)`` over ``|d / c|_p <= rho`` (Croce & Hein 2020, alg. 1).

    Projected ascent with momentum. The step begins at the ball's diameter and is halved, and the
    search taken back to its best point, where fewer than three in four steps since the last check
    improved, or where neither step nor best value changed. Checks become more frequent.

    Args:
      key: PRNG key of the starts.
      fun: ``params -> scalar``, differentiable; the loss of one fixed batch.
      params: centre of the ball, a pytree of floating-point arrays.
      rho: radius, > 0.
      p: 2 or infinity (`math.inf`).
      scale: ``c >= 0``, a pytree like ``params``; None takes ones. Parameters of scale zero stay.
      num_steps: gradients per restart, at least 1.
      num_restarts: starts, at least 1; the best is kept.
      start: "random" is a random point of the sphere (``p = 2``) or of the cube; "center" takes the
        parameters themselves, where a stationary point cannot be left.
      step: what ascends for ``p = 2`` where scales differ. "scaled" works on ``d / c`` and
        "euclidean" on ``d`` with `project_ellipsoid`; both find the maximum of a linear function.
        "reference" is the published code's pair, see the Note.

    Returns:
      `Maximum`. A value that is NaN is never the best; NaN where ``fun(params)`` is.

    Raises:
      ValueError: an argument not as above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> found = curvature.auto_pgd(jax.random.key(0), jnp.sum, jnp.zeros(4), rho=1.0)
      >>> round(float(found.value), 3)  # the sum of four entries on the unit sphere
      2.0

    References:
      Croce & Hein (2020), "Reliable Evaluation of Adversarial Robustness with an Ensemble of
      Diverse Parameter-Free Attacks", arXiv:2003.01690. :cite:`croce:20`

      Andriushchenko et al. (2023), "A Modern Look at the Relationship between Sharpness and
      Generalization", arXiv:2302.07011. :cite:`modern-sharpness`

    Note:
      The published code of the second paper steps along ``c g`` and projects onto the ellipsoid in
      the Euclidean norm, whose fixed point on a linear function is not its maximum (it stops a few
      per cent short); its momentum mixes in the point before the current one; after a halving only
      the model, not ``d``, returns to the best point. ``step="reference"`` keeps the first two, to
      compare; the random start is projected and ``d`` returns in every case.
    """
    check_ball(rho, p)
    checks.one_of(STEPS, step=step)
    checks.one_of(("random", "center"), start=start)
    checks.positive_integer(num_steps=num_steps, num_restarts=num_restarts)
    params = jax.tree.map(jnp.asarray, params)
    scale = filled(scale, params)
    move = functools.partial(ascend, rho=rho, p=p, scale=scale, step=step)
    clean = wide(fun(params))
    value_and_grad = jax.value_and_grad(lambda d: wide(fun(jax.tree.map(jnp.add, params, d))))
    zeros = jax.tree.map(jnp.zeros_like, params)

    def begin(key: PRNGKey) -> PyTree:
        if start == "center":
            return zeros
        if p == 2:
            along = unit(jax.tree.map(masked, draw(key, jax.random.normal, params), scale))
            return jax.tree.map(lambda c, e: times(rho, c * e), scale, along)
        cube = draw(key, functools.partial(jax.random.uniform, minval=-1, maxval=1), params)
        return jax.tree.map(lambda c, e: times(rho, c * e), scale, cube)

    def one_step(state: Ascent, scheduled: tuple[Array, Array, Array]) -> tuple[Ascent, None]:
        number, due, least = scheduled
        value, grad = value_and_grad(state.d)
        improved = state.improved + (value > state.last).astype(np.int32)
        better = value > state.best_value
        best, best_grad = choose(better, (state.d, grad), (state.best, state.best_grad))
        best_value = jnp.where(better, value, state.best_value)

        stuck = ~state.halved & (best_value == state.checked_value)
        halve = due & ((improved < least) | stuck)
        size = jnp.where(halve, state.size / 2, state.size)
        d, before, grad = choose(halve, (best, best, best_grad), (state.d, state.before, grad))
        state = Ascent(
            d=move(d, before, grad, size, number > 0),
            before=d,
            size=size,
            last=jnp.where(halve, best_value, value),
            improved=jnp.where(due, 0, improved),
            best=best,
            best_grad=best_grad,
            best_value=best_value,
            checked_value=jnp.where(due, best_value, state.checked_value),
            halved=jnp.where(due, halve, state.halved),
        )
        return state, None

    numbers, due, least = (jnp.asarray(x) for x in schedule(num_steps))

    def restart(found: tuple[PyTree, Array], key: PRNGKey) -> tuple[tuple[PyTree, Array], None]:
        lowest = jnp.full_like(clean, -jnp.inf)
        first = begin(key)
        state = Ascent(
            d=first,
            before=first,
            size=jnp.asarray(2 * rho, clean.dtype),
            last=-lowest,  # the start improves on nothing
            improved=jnp.zeros((), np.int32),
            best=first,
            best_grad=zeros,
            best_value=lowest,
            checked_value=lowest,
            halved=jnp.zeros((), bool),
        )
        state, _ = jax.lax.scan(one_step, state, (numbers, due, least))
        last = wide(fun(jax.tree.map(jnp.add, params, state.d)))
        candidates = ((state.best, state.best_value), (state.d, last))
        for candidate in candidates:
            found = choose(candidate[1] > found[1], candidate, found)
        return found, None

    (d, value), _ = jax.lax.scan(restart, (zeros, clean), jax.random.split(key, num_restarts))
    return Maximum(d, value, clean)


def ascend(
    d: PyTree,
    before: PyTree,
    grad: PyTree,
    size: Array,
    moving: Array,
    *,
    rho: Scalar,
    p: int | float,
    scale: PyTree,
    step: str,
) -> PyTree:
    """One step of ``size`` from ``d``, which came from ``before``, with momentum if ``moving``."""
    if p == math.inf:
        along = jax.tree.map(lambda c, g: c * jnp.sign(g), scale, grad)
        project = functools.partial(project_ball, rho=rho, p=p, scale=scale)
    elif step == "scaled":
        # A step in d / c, whose gradient is c g, seen from d.
        inner = unit(jax.tree.map(jnp.multiply, scale, grad))
        along = jax.tree.map(jnp.multiply, scale, inner)
        project = functools.partial(project_ball, rho=rho, p=2, scale=scale)
    else:
        along = unit(jax.tree.map(masked, grad, scale))
        if step == "reference":
            along = jax.tree.map(jnp.multiply, scale, unit(grad))
        project = functools.partial(project_ellipsoid, rho=rho, scale=scale)
    z = project(jax.tree.map(lambda d, e: d + times(size, e), d, along))
    if step == "reference":
        mixed = jax.tree.map(lambda z, b: times(0.75, z) + times(0.25, b), z, before)
    else:
        mixed = project(
            jax.tree.map(lambda z, d, b: d + times(0.75, z - d) + times(0.25, d - b), z, d, before)
        )
    return choose(moving, mixed, z)


def schedule(num_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per step: its number, whether it is checked, and how many improvements are enough there."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    due, least = np.zeros(num_steps, bool), np.zeros(num_steps, np.int32)
    checks_at = sorted({math.ceil(share * num_steps - 1e-9) for share in shares if share < 1})
    for before, now in zip(checks_at, checks_at[1:]):
        if now < num_steps:
            due[now] = True
            least[now] = math.ceil(0.75 * (now - before))
    return np.arange(num_steps, dtype=np.int32), due, least


def choose(condition: Array, yes: Any, no: Any) -> Any:
    """One of two pytrees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def masked(x: Array, scale: Array) -> Array:
    """``x`` where the scale is not zero."""
    return jnp.where(scale > 0, x, jnp.zeros_like(x))


def wide(x: Array) -> Array:
    """At least float32: the differences that count are small."""
    x = jnp.asarray(x)
    return x.astype(np.promote_types(x.dtype, np.float32))
