"""The step that Adam would take with one more gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkin import checks
from gradkin.typing import Array, ArrayLike, PyTree, Scalar


class AdamMoments(NamedTuple):
    """What Adam remembers of the gradients that it has seen.

    Attributes:
      mu: running mean of gradients, a pytree like the parameters.
      nu: running mean of their squares, a pytree like the parameters.
      count: steps done.
    """

    mu: PyTree
    nu: PyTree
    count: Any


class AdamOptions(NamedTuple):
    """What a direction depends on besides gradient and moments; see `adam_direction`."""

    b1: Scalar
    b2: Scalar
    eps: Scalar
    bias_correction: bool
    eps_inside_sqrt: bool


def adam_moments(opt_state: PyTree, params: PyTree) -> AdamMoments:
    """Adam's moments, wherever they lie in the state of an optax optimizer.

    Args:
      opt_state: state of `optax.adam`, `optax.adamw`, or of a chain or wrapper around them.
      params: the parameters that are trained.

    Returns:
      `AdamMoments` like ``params``.

    Raises:
      ValueError: no `optax.ScaleByAdamState` in the state, several of them, or moments that are
        not like ``params`` (of some parameters only, say).

    Note:
      `optax.nadam` and `optax.adamax` keep states of the same type; `adam_direction` is not the
      step that they take.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from gradkin import gradients
      >>> params = {"w": jnp.ones(3)}
      >>> state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
      >>> moments = gradients.adam_moments(state, params)
      >>> int(moments.count), moments.nu["w"].tolist()
      (0, [0.0, 0.0, 0.0])
    """
    found = adam_states(opt_state)
    if len(found) != 1:
        nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: _is_named(x) and x is not opt_state)
        names = sorted({type(x).__name__ for x in nodes})
        raise ValueError(
            f"Expected opt_state with one optax.ScaleByAdamState, got {len(found)} in a "
            f"{type(opt_state).__name__} of {names}."
        )
    state = found[0]
    checks.same_structure(state.mu, params, name="the moments", like_name="params")
    return AdamMoments(state.mu, state.nu, state.count)


def adam_direction(
    gradient: PyTree,
    moments: AdamMoments,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    bias_correction: bool = True,
    eps_inside_sqrt: bool = False,
) -> PyTree:
    """The direction of Adam's next step, were this its gradient (Xia et al. 2024, sec. 3.1).

    .. math:: \\Gamma = \\frac{m}{\\sqrt v + \\epsilon}, \\quad
        m = \\frac{\\beta_1 \\mu + (1 - \\beta_1) g}{1 - \\beta_1^t}, \\quad
        v = \\frac{\\beta_2 \\nu + (1 - \\beta_2) g^2}{1 - \\beta_2^t}, \\quad t = \\text{count} + 1

    ``-rate * Gamma`` is the update that `optax.adam` makes.

    Args:
      gradient: pytree of arrays.
      moments: before the step, as from `adam_moments`.
      b1: decay of the mean, in [0, 1).
      b2: decay of the mean of squares, in [0, 1).
      eps: > 0.
      bias_correction: divide by ``1 - b^t``.
      eps_inside_sqrt: ``sqrt(v + eps)`` instead of ``sqrt(v) + eps``.

    Returns:
      A pytree like ``gradient``, in float32 or wider.

    Raises:
      TypeError: ``moments`` are none, such as the whole state of an optimizer.
      ValueError: options outside their range, or moments that are not like ``gradient``.

    Note:
      The released code of LESS has ``bias_correction=False, eps_inside_sqrt=True``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> moments = gradients.AdamMoments(jnp.zeros(2), jnp.zeros(2), 0)
      >>> gradients.adam_direction(jnp.array([0.5, -2.0]), moments).round(4).tolist()
      [1.0, -1.0]

    References:
      Kingma & Ba (2015), "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, alg. 1.
      :cite:`kingma:15`

      Xia et al. (2024), "LESS: Selecting Influential Data for Targeted Instruction Tuning",
      arXiv:2402.04333, sec. 3.1. :cite:`less-data-selection`
    """
    options = adam_options(b1, b2, eps, bias_correction, eps_inside_sqrt)
    check_moments(moments)
    for name in ("mu", "nu"):
        tree = getattr(moments, name)
        checks.same_structure(tree, gradient, name=f"moments.{name}", like_name="gradient")
    return jax.tree.map(leaf_rule(moments.count, options), gradient, moments.mu, moments.nu)


def check_moments(moments: Any) -> None:
    """Raise TypeError unless these are moments of Adam."""
    if not all(hasattr(moments, name) for name in AdamMoments._fields):
        raise TypeError(
            "Expected moments as from adam_moments(opt_state, params), got "
            f"{type(moments).__name__}."
        )


def adam_states(opt_state: PyTree) -> list[optax.ScaleByAdamState]:
    """All states of Adam in the state of an optimizer."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    return [x for x in nodes if isinstance(x, optax.ScaleByAdamState)]


def adam_options(
    b1: Scalar, b2: Scalar, eps: Scalar, bias_correction: bool, eps_inside_sqrt: bool
) -> AdamOptions:
    """The options, checked; numbers that are known as Python floats, which keep all digits."""
    b1, b2, eps = (float(x) if checks.is_concrete(x) else x for x in (b1, b2, eps))
    for name, value in (("b1", b1), ("b2", b2)):
        if checks.is_concrete(value) and not 0 <= value < 1:
            raise ValueError(f"Expected {name} in [0, 1), got {name}={value}.")
    checks.positive(eps=eps)
    return AdamOptions(b1, b2, eps, bool(bias_correction), bool(eps_inside_sqrt))


def leaf_rule(count: ArrayLike, options: AdamOptions) -> Callable[[Array, Array, Array], Array]:
    """``(g, mu, nu) -> Gamma`` of one parameter."""
    steps = jnp.asarray(count, float) + 1

    def correction(decay: Scalar) -> Array:
        """``1 - decay^t``; near 1 its digits survive only so."""
        if isinstance(decay, float):
            return -jnp.expm1(steps * (float(np.log(decay)) if decay else -np.inf))
        return -jnp.expm1(steps * jnp.log(jnp.asarray(decay).astype(steps.dtype)))

    def rule(g: Array, mu: Array, nu: Array) -> Array:
        g, mu, nu = jnp.asarray(g), jnp.asarray(mu), jnp.asarray(nu)
        dtype = np.dtype(np.float32)
        for x in (g, mu, nu):
            dtype = np.promote_types(dtype, x.dtype)
        g, mu, nu = g.astype(dtype), mu.astype(dtype), nu.astype(dtype)
        b1, b2, eps = (
            x if isinstance(x, float) else jnp.asarray(x).astype(dtype) for x in options[:3]
        )
        first = b1 * mu + (1 - b1) * g
        second = b2 * nu + (1 - b2) * jnp.square(g)
        if options.bias_correction:
            first = first / correction(b1).astype(dtype)
            second = second / correction(b2).astype(dtype)
        if options.eps_inside_sqrt:
            return first / jnp.sqrt(second + eps)
        return first / (jnp.sqrt(second) + eps)

    return rule


def _is_named(node: object) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")
