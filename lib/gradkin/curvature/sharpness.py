"""Sharpness: how much the loss rises around the parameters, on average and at worst."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.curvature import apgd
from gradkin.curvature.perturbations import check_ball, draw, filled, sam_perturbation, times
from gradkin.matrices.estimates import Estimate
from gradkin.typing import Array, PRNGKey, PyTree, Scalar

LossFn = Callable[[Any, Any], Any]


class WorstCaseSharpness(NamedTuple):
    """How far the loss can rise.

    Attributes:
      value: mean over groups of the largest rise that was found; never negative.
      per_group: that rise in each group, ``[groups]``.
      error_rise: mean over groups of the rise of ``error_fn`` at the points of the largest losses;
        None without it.
    """

    value: Array
    per_group: Array
    error_rise: Array | None


def average_sharpness(
    key: PRNGKey,
    loss_fn: LossFn,
    params: PyTree,
    batch: PyTree,
    *,
    rho: Scalar,
    scale: PyTree | None = None,
    noise: str = "gaussian",
    num_samples: int = 100,
    samples_at_once: int = 1,
) -> Estimate:
    """Average-case sharpness: the mean rise of the loss under random perturbations.

    .. math:: S = E_d \\left[ L(w + d) - L(w) \\right], \\qquad
        d_i \\sim N(0, \\rho^2 c_i^2) \\;\\text{or}\\; \\rho\\, c_i\\, U[-1, 1]

    (Andriushchenko et al. 2023, sec. 2). For small ``rho`` it is ``rho^2 / 2`` times the trace of
    the Hessian in the variables ``w / c``, see `second_order_sharpness`.

    Args:
      key: PRNG key.
      loss_fn: ``fun(params, example)`` -> scalar loss of one example, as for `gradkin.hessian`; it
        need not be differentiable, so it may be the 0-1 error.
      params: ``w``.
      batch: pytree of examples along the leading axes, ``[B, ...]``.
      rho: standard deviation of an entry (half-width, if uniform) at scale 1, > 0. It is not
        divided by the root of the number of parameters.
      scale: ``c >= 0``, a pytree like ``params``; None takes ones, `adaptive_scale` is the other
        common choice.
      noise: "gaussian" or "uniform".
      num_samples: draws of ``d``, at least 2.
      samples_at_once: draws that are evaluated together; more need more memory.

    Returns:
      `Estimate` of the mean over draws.

    Raises:
      ValueError: an argument not as above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> loss = lambda w, x: 0.5 * jnp.sum((w - x) ** 2)
      >>> found = curvature.average_sharpness(
      ...     jax.random.key(0), loss, jnp.zeros(50), jnp.zeros((1, 50)), rho=0.2, num_samples=400
      ... )
      >>> bool(abs(found.value - 0.5 * 0.2**2 * 50) < 5 * found.standard_error)
      True

    References:
      Andriushchenko, Croce, Mueller, Hein & Flammarion (2023), "A Modern Look at the Relationship
      between Sharpness and Generalization", arXiv:2302.07011. :cite:`modern-sharpness`
    """
    check_ball(rho, 2)
    checks.one_of(("gaussian", "uniform"), noise=noise)
    if not checks.is_integer(num_samples, least=2):
        raise ValueError(f"Expected num_samples >= 2, got {num_samples!r}.")
    checks.positive_integer(samples_at_once=samples_at_once)
    leading(batch)
    params = jax.tree.map(jnp.asarray, params)
    scale = filled(scale, params)
    mean_loss = mean_over(loss_fn, batch)
    clean = mean_loss(params)

    def one(key: PRNGKey) -> Array:
        law = jax.random.normal if noise == "gaussian" else _symmetric_uniform
        d = jax.tree.map(lambda c, e: times(rho, c * e), scale, draw(key, law, params))
        return mean_loss(jax.tree.map(jnp.add, params, d)) - clean

    rises = jax.lax.map(one, jax.random.split(key, num_samples), batch_size=samples_at_once)
    error = jnp.std(rises, ddof=1) / np.sqrt(num_samples).astype(rises.dtype)
    return Estimate(jnp.mean(rises), error)


def worst_case_sharpness(
    key: PRNGKey,
    loss_fn: LossFn,
    params: PyTree,
    batch: PyTree,
    *,
    rho: Scalar,
    p: int | float = 2,
    scale: PyTree | None = None,
    group_size: int | None = None,
    groups_at_once: int = 1,
    error_fn: LossFn | None = None,
    num_steps: int = 20,
    num_restarts: int = 1,
    start: str = "random",
    step: str = "scaled",
) -> WorstCaseSharpness:
    """Worst-case sharpness: the largest rise of the loss in a ball, by Auto-PGD.

    .. math:: S = E_{\\mathcal{S}} \\max_{\\|d / c\\|_p \\le \\rho}
        \\left[ L_{\\mathcal{S}}(w + d) - L_{\\mathcal{S}}(w) \\right]

    with a maximum for each group ``S`` of examples by itself (m-sharpness; Andriushchenko et al.
    2023, sec. 2). For small ``rho`` it is ``rho |c g|`` in the dual norm, and where the gradient
    ``g`` vanishes ``rho^2 / 2`` times the largest eigenvalue of the Hessian in ``w / c``
    (``p = 2``).

    Args:
      key: PRNG key of the random starts.
      loss_fn: ``fun(params, example)`` -> scalar loss of one example, as for `gradkin.hessian`.
      params: ``w``.
      batch: pytree of examples along the leading axes, ``[B, ...]``.
      rho: radius, > 0.
      p: 2 or infinity (`math.inf`).
      scale: ``c >= 0``, a pytree like ``params``; None takes ones, `adaptive_scale` is the other
        common choice. Always of the unperturbed parameters.
      group_size: examples per group ``S``, a divisor of ``B``, consecutive ones; None takes all.
      groups_at_once: groups that are searched together; more need more memory. With as many as
        there are, groups whose examples lie on different devices are searched there.
      error_fn: ``fun(params, example)`` -> scalar, such as the 0-1 error; its rise is reported too.
      num_steps: see `auto_pgd`.
      num_restarts: see `auto_pgd`.
      start: see `auto_pgd`.
      step: see `auto_pgd`.

    Returns:
      `WorstCaseSharpness`: a lower bound of the true maxima, as every search gives.

    Raises:
      ValueError: an argument not as above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> found = curvature.worst_case_sharpness(
      ...     jax.random.key(0), jnp.vdot, jnp.zeros(2), jnp.array([[3.0, 4.0]]), rho=0.1
      ... )
      >>> round(float(found.value), 3)  # linear: rho |g|
      0.5

    References:
      Andriushchenko, Croce, Mueller, Hein & Flammarion (2023), "A Modern Look at the Relationship
      between Sharpness and Generalization", arXiv:2302.07011. :cite:`modern-sharpness`

    Note:
      Statistics of normalisation layers belong to ``loss_fn`` and must be frozen: a layer that
      follows its batch would hide the perturbation.
    """
    check_ball(rho, p)
    checks.positive_integer(groups_at_once=groups_at_once)
    number = leading(batch)
    size = number if group_size is None else group_size
    if not checks.is_integer(size, least=1) or number % size:
        raise ValueError(
            f"Expected group_size to divide the batch, got group_size={size} and B={number}."
        )
    groups = number // size
    params = jax.tree.map(jnp.asarray, params)
    split = jax.tree.map(lambda x: x.reshape(groups, size, *x.shape[1:]), batch)

    def one(keyed: tuple[PRNGKey, PyTree]) -> tuple[Array, Array | None]:
        key, group = keyed
        found = apgd.auto_pgd(
            key,
            mean_over(loss_fn, group),
            params,
            rho=rho,
            p=p,
            scale=scale,
            num_steps=num_steps,
            num_restarts=num_restarts,
            start=start,
            step=step,
        )
        if error_fn is None:
            return found.value - found.clean, None
        error = mean_over(error_fn, group)
        there = error(jax.tree.map(jnp.add, params, found.perturbation))
        return found.value - found.clean, there - error(params)

    keyed = (jax.random.split(key, groups), split)
    rises, errors = jax.lax.map(one, keyed, batch_size=groups_at_once)
    return WorstCaseSharpness(jnp.mean(rises), rises, None if errors is None else jnp.mean(errors))


def sam_sharpness(
    loss_fn: LossFn,
    params: PyTree,
    batch: PyTree,
    *,
    rho: Scalar,
    p: int | float = 2,
    scale: PyTree | None = None,
) -> Array:
    """The rise of the loss after one ascent step: what sharpness-aware minimization penalises.

    .. math:: L(w + d) - L(w), \\qquad
        d = \\arg\\max_{\\|d / c\\|_p \\le \\rho} \\langle g, d \\rangle

    (Foret et al. 2021, sec. 2): a lower bound of the worst case that costs one gradient. It may be
    negative.

    Args:
      loss_fn: ``fun(params, example)`` -> scalar loss of one example, as for `gradkin.hessian`.
      params: ``w``.
      batch: pytree of examples along the leading axes, ``[B, ...]``.
      rho: radius, > 0.
      p: 2 or infinity (`math.inf`).
      scale: ``c >= 0``, a pytree like ``params``; None takes ones.

    Returns:
      A scalar.

    Raises:
      ValueError: an argument not as above.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> x = jnp.array([[3.0, 4.0]])
      >>> round(float(curvature.sam_sharpness(jnp.vdot, jnp.zeros(2), x, rho=0.1)), 3)
      0.5

    References:
      Foret, Kleiner, Mobahi & Neyshabur (2021), "Sharpness-Aware Minimization for Efficiently
      Improving Generalization", arXiv:2010.01412. :cite:`foret:21`
    """
    leading(batch)
    params = jax.tree.map(jnp.asarray, params)
    mean_loss = mean_over(loss_fn, batch)
    clean, grads = jax.value_and_grad(mean_loss)(params)
    d = sam_perturbation(grads, rho=rho, p=p, scale=scale)
    return mean_loss(jax.tree.map(jnp.add, params, d)) - clean


def mean_over(loss_fn: LossFn, batch: PyTree) -> Callable[[PyTree], Array]:
    """``params -> mean loss`` over the examples of a batch, at least in float32."""

    def mean_loss(params: PyTree) -> Array:
        losses = jax.vmap(loss_fn, in_axes=(None, 0))(params, batch)
        if losses.ndim != 1:
            raise ValueError(
                "Expected loss_fn(params, example) to return a scalar, got shape "
                f"{losses.shape[1:]}."
            )
        dtype = losses.dtype if jnp.issubdtype(losses.dtype, jnp.floating) else np.float32
        return jnp.mean(losses.astype(np.promote_types(dtype, np.float32)))

    return mean_loss


def leading(batch: PyTree) -> int:
    """The number of examples.

    Raises:
      ValueError: leading axes that disagree, or no examples.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    firsts = {shape[:1] for shape in shapes}
    if len(firsts) != 1 or firsts & {(), (0,)}:
        raise ValueError(
            f"Expected batch to have one leading axis of examples, got shapes {shapes}."
        )
    return shapes[0][0]


def _symmetric_uniform(key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.uniform(key, shape, dtype, -1, 1)
