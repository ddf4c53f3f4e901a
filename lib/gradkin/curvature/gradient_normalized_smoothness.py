"""Newton steps with approximate Hessians, damped in proportion to the norm of the gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from gradkin import checks
from gradkin.curvature import damped_steps
from gradkin.curvature.damped_steps import RankOne as RankOne
from gradkin.typing import Array, ArrayLike, PyTree, Scalar


class GNSState(NamedTuple):
    """State of `gns`.

    Attributes:
      gamma: the radius that the next step tries first.
      damping: ``lambda`` of the last accepted step; 0 before there is one.
      num_solves: linear systems solved so far.
      accepted: False where the last search ended without a step; the parameters stayed.
      value: the loss at the parameters; infinite before the first step.
      grad: the gradient there. `optax.value_and_grad_from_state` reads both, so that a step costs
        no more evaluations than its trials.
    """

    gamma: Array
    damping: Array
    num_solves: Array
    accepted: Array
    value: Array
    grad: PyTree


class Search(NamedTuple):
    """The search for a radius: what was tried last."""

    gamma: Array
    damping: Array
    step: Array
    value: Array
    grad: Array
    accepted: Array
    num_trials: Array


class GNSResult(NamedTuple):
    """What `minimize_gns` ended with.

    Attributes:
      params: the last parameters.
      value: the loss there.
      grad_norm: the dual norm of the gradient there.
      num_steps: accepted steps.
      num_solves: linear systems solved, rejected trials included.
      converged: whether the norm of the gradient is within the tolerance. Where neither this nor
        ``num_steps == max_steps``, no radius was accepted: the loss cannot be told to fall.
    """

    params: PyTree
    value: Array
    grad_norm: Array
    num_steps: Array
    num_solves: Array
    converged: Array


def gns(
    curvature_fn: Callable[[PyTree], Any] | None,
    *,
    gamma: Scalar = 1.0,
    metric: ArrayLike | None = None,
    max_halvings: int = 40,
    rtol: Scalar = 1e-5,
    max_solve_steps: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """Newton's method damped by gradient-normalized smoothness (Semenov et al. 2026, alg. 1).

    .. math:: x_{k+1} = x_k - (H_k + \\lambda_k B)^{-1} g_k, \\qquad
        \\lambda_k = \\|g_k\\|_* / \\gamma_k

    ``gamma`` is a radius in which the linear model ``g + H h`` of the gradient is accurate,
    relative to the gradient's norm; it mixes how wrong ``H`` is and how nonlinear the gradient. It
    is found by trial: accepted where

    .. math:: f(x_k) - f(x_{k+1}) \\ge \\|g_{k+1}\\|_*^2 / (8 \\lambda_k)

    and doubled for the next step, halved otherwise. Where ``curvature_fn`` is None the method is
    gradient descent with the step length ``gamma / |g|``.

    Args:
      curvature_fn: ``params -> H``: an array ``[P, P]`` over the parameters in the order of their
        leaves (solved by Cholesky), a `gradkin.CurvatureMatrix` (conjugate gradients), a `RankOne`
        (Sherman & Morrison), or None for zero. It need not be positive: a trial whose matrix is
        indefinite, as far as the factorization or the direction tells, is rejected.
      gamma: the first radius, > 0.
      metric: ``B`` of the norm ``|h| = sqrt(h^T B h)``, ``[P, P]``, symmetric positive definite;
        None takes the identity, which lazy curvature needs.
      max_halvings: halvings of ``gamma`` within a step; rejected after them, it is given up.
      rtol: tolerance of conjugate gradients.
      max_solve_steps: products per solve at most; the last iterate is tried all the same.

    Returns:
      An optax transformation. Its ``update`` needs ``value=``, the loss at ``params``, and
      ``value_fn=``, a function of the parameters alone whose gradient it takes at each trial.

    Raises:
      ValueError: ``gamma``, ``metric`` or numbers not as above; curvature of another shape;
        ``update`` without parameters.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import optax
      >>> from gradkin import curvature
      >>> loss = lambda x: jnp.sum(jnp.cosh(x))
      >>> optimizer = curvature.gns(jax.hessian(loss))
      >>> x = jnp.array([2.0, -1.0])
      >>> state = optimizer.init(x)
      >>> evaluate = optax.value_and_grad_from_state(loss)
      >>> for _ in range(8):
      ...     value, grads = evaluate(x, state=state)
      ...     updates, state = optimizer.update(grads, state, x, value=value, value_fn=loss)
      ...     x = optax.apply_updates(x, updates)
      >>> bool(jnp.linalg.norm(x) < 1e-3)
      True

    References:
      Semenov, Jaggi & Doikov (2026), "Gradient-Normalized Smoothness for Optimization with
      Approximate Hessians", arXiv:2506.13710. :cite:`gradient-normalized-smoothness`

    Note:
      Where every trial is rejected (the authors' code takes the last one) the parameters stay and
      ``state.accepted`` is False. Near a minimum that is rounding: in float32 a loss is known to
      1e-7 of its size, so subtract its minimum analytically where that is known, or use float64.
      A zero gradient is accepted as it is, without a solve. Trials where loss or gradient are not
      finite are rejected. ``gamma`` stays between 1e-9 and a quarter of the greatest float.
    """
    checks.positive(gamma=gamma, max_halvings=max_halvings, rtol=rtol)
    checks.positive(max_solve_steps=max_solve_steps)
    B = damped_steps.metric_of(metric)

    def init(params: PyTree) -> GNSState:
        flat, unravel = damped_steps.raveled(params)
        zero = jnp.zeros((), flat.dtype)
        return GNSState(
            gamma=jnp.asarray(gamma, flat.dtype),
            damping=zero,
            num_solves=jnp.zeros((), jnp.int32),
            accepted=jnp.ones((), bool),
            value=jnp.full((), jnp.inf, flat.dtype),
            grad=unravel(jnp.zeros_like(flat)),
        )

    def update(
        updates: PyTree,
        state: GNSState,
        params: PyTree | None = None,
        *,
        value: Any,
        value_fn: Callable[[PyTree], Any],
        **extra: Any,
    ) -> tuple[PyTree, GNSState]:
        del extra  # what other transformations of a chain take
        if params is None:
            raise ValueError("Expected params in update: gns evaluates the loss around them.")
        checks.same_structure(updates, params, name="the gradient", like_name="the parameters")
        g, unravel = damped_steps.raveled(updates)
        x, _ = damped_steps.raveled(params)
        value = jnp.asarray(value, g.dtype)
        norm = damped_steps.dual_norm(g, B)
        H = None if curvature_fn is None else curvature_fn(params)
        damped_steps.check_matrix(H, g.size, B)

        def attempt(search: Search) -> Search:
            damping = norm / (search.gamma + jnp.asarray(1e-8, g.dtype))
            step = damped_steps.damped_step(
                H, g, damping, metric=B, unravel=unravel, rtol=rtol, max_steps=max_solve_steps
            )
            new_value, new_grad = jax.value_and_grad(value_fn)(unravel(x - step))
            new_value, new_g = new_value.astype(g.dtype), damped_steps.raveled(new_grad)[0]
            # A comparison with NaN is False.
            square = jnp.square(damped_steps.dual_norm(new_g, B))
            falls = value - new_value >= square / (8 * damping)
            accepted = falls & jnp.isfinite(new_value) & (jnp.sum(g * step) > 0)
            tried = jnp.where(accepted, search.gamma, search.gamma / 2)
            return Search(tried, damping, step, new_value, new_g, accepted, search.num_trials + 1)

        def goes_on(search: Search) -> Array:
            return ~search.accepted & (search.num_trials <= max_halvings)

        zeros = jnp.zeros_like(g)
        start = Search(
            state.gamma, state.damping, zeros, value, g, norm == 0, jnp.zeros((), jnp.int32)
        )
        found = jax.lax.while_loop(goes_on, attempt, start)
        moved = found.accepted & (norm > 0)
        limit = jnp.finfo(g.dtype).max / 4
        doubled = jnp.clip(2 * found.gamma, jnp.asarray(1e-9, g.dtype), limit)
        new_state = GNSState(
            gamma=jnp.where(moved, doubled, found.gamma),
            damping=jnp.where(moved, found.damping, state.damping),
            num_solves=state.num_solves + found.num_trials,
            accepted=found.accepted,
            value=jnp.where(moved, found.value, value),
            grad=unravel(jnp.where(moved, found.grad, g)),
        )
        return unravel(jnp.where(moved, -found.step, zeros)), new_state

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def minimize_gns(
    fun: Callable[[PyTree], Any],
    params: PyTree,
    *,
    curvature_fn: Callable[[PyTree], Any] | None = None,
    max_steps: int = 100,
    tolerance: Scalar = 1e-5,
    gamma: Scalar = 1.0,
    metric: ArrayLike | None = None,
    max_halvings: int = 40,
    rtol: Scalar = 1e-5,
    max_solve_steps: int = 100,
) -> GNSResult:
    """Minimize a function by `gns`, until its gradient is small or no step lowers it.

    Args:
      fun: ``params -> `` scalar.
      params: where to start, a pytree of arrays.
      curvature_fn: see `gns`; None is gradient descent.
      max_steps: accepted steps at most.
      tolerance: stop where the dual norm of the gradient is no greater, >= 0.
      gamma: see `gns`.
      metric: see `gns`.
      max_halvings: see `gns`.
      rtol: see `gns`.
      max_solve_steps: see `gns`.

    Returns:
      `GNSResult`. One compiled loop; no derivative goes through it in reverse mode.

    Raises:
      ValueError: a negative tolerance, or what `gns` raises.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> rosenbrock = lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
      >>> start = jnp.array([-1.2, 1.0])
      >>> found = curvature.minimize_gns(rosenbrock, start, curvature_fn=jax.hessian(rosenbrock))
      >>> bool(jnp.max(jnp.abs(found.params - 1)) < 1e-3)
      True

    References:
      Semenov, Jaggi & Doikov (2026), arXiv:2506.13710. :cite:`gradient-normalized-smoothness`
    """
    checks.positive(max_steps=max_steps)
    checks.non_negative(tolerance=tolerance)
    optimizer = gns(
        curvature_fn,
        gamma=gamma,
        metric=metric,
        max_halvings=max_halvings,
        rtol=rtol,
        max_solve_steps=max_solve_steps,
    )
    B = damped_steps.metric_of(metric)
    params = jax.tree.map(jnp.asarray, params)
    damped_steps.check_matrix(None, damped_steps.raveled(params)[0].size, B)

    def grad_norm(state: GNSState) -> Array:
        return damped_steps.dual_norm(damped_steps.raveled(state.grad)[0], B)

    def step(carry: tuple[PyTree, GNSState, Array]) -> tuple[PyTree, GNSState, Array]:
        params, state, count = carry
        updates, moved = optimizer.update(
            state.grad, cast(Any, state), params, value=state.value, value_fn=fun
        )
        state = cast(GNSState, moved)
        params = jax.tree.map(jnp.add, params, updates)
        return params, state, count + state.accepted.astype(count.dtype)

    def goes_on(carry: tuple[PyTree, GNSState, Array]) -> Array:
        _, state, count = carry
        unfinished = grad_norm(state) > jnp.asarray(tolerance, state.gamma.dtype)
        return unfinished & state.accepted & (count < max_steps)

    value, grad = jax.value_and_grad(fun)(params)
    start = cast(GNSState, optimizer.init(params))
    start = start._replace(value=value.astype(start.value.dtype), grad=grad)
    params, state, count = jax.lax.while_loop(
        goes_on, step, (params, start, jnp.zeros((), jnp.int32))
    )
    norm = grad_norm(state)
    converged = norm <= jnp.asarray(tolerance, norm.dtype)
    return GNSResult(params, state.value, norm, count, state.num_solves, converged)
