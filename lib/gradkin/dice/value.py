"""The gradient of the dual value loss: true, semi- or orthogonal, by one flag."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gradkin.checks import is_concrete, non_negative, one_of
from gradkin.dice.divergences import f_divergence
from gradkin.dice.orthogonal import orthogonal_gradient
from gradkin.dice.transitions import Transitions, bootstrap_factor, check_transitions
from gradkin.typing import PyTree, Scalar

RULES = ("orthogonal", "semi", "true")


class ValueDiagnostics(NamedTuple):
    """How the two gradients and the features stood, at no extra pass; None: not computed.

    Attributes:
      cosine: cosine of forward and backward gradient (None under ``"semi"``).
      coefficient: the projection's coefficient (``"orthogonal"`` only).
      forward_norm: |g_f|.
      backward_norm: |g_b| (None under ``"semi"``).
      feature_product: mean of phi(s) . phi(s'), None without features.
      feature_cosine: mean cosine of phi(s) and phi(s'), None without features.
    """

    cosine: Any
    coefficient: Any
    forward_norm: Any
    backward_norm: Any
    feature_product: Any
    feature_cosine: Any


class ValueGradient(NamedTuple):
    """One gradient of the value loss, with what it was made of.

    Attributes:
      gradient: the direction to descend, a pytree like the parameters.
      residual: r + gamma (1 - done) V(s') - V(s), [H, B]; V(s') is the target's minimum over
        heads, except under ``"true"`` where it is online, head by head.
      linear_loss: (1 - lambda) mean V(s).
      forward_loss: lambda mean f*(residual).
      backward_loss: lambda mean f*(backward residual), None under ``"semi"``.
      diagnostics: a `ValueDiagnostics`.
    """

    gradient: PyTree
    residual: Any
    linear_loss: Any
    forward_loss: Any
    backward_loss: Any
    diagnostics: ValueDiagnostics


def check_lambda(lam: Any) -> None:
    """Raise ValueError unless a concrete ``lam`` lies strictly between 0 and 1."""
    if is_concrete(lam) and not np.all((np.asarray(lam) > 0) & (np.asarray(lam) < 1)):
        raise ValueError(f"Expected lam in (0, 1), got lam={lam}.")


def value_gradient(
    value_fn: Callable[..., Any],
    params: PyTree,
    target_params: PyTree,
    batch: Transitions,
    *,
    lam: Scalar,
    eta: Scalar = 1.0,
    discount: Scalar = 0.99,
    divergence: str = "pearson",
    rule: str = "orthogonal",
    scope: str = "global",
    group: Callable[[str], str] | None = None,
    only_conflicts: bool = False,
    has_features: bool = False,
) -> ValueGradient:
    """Gradient of E[(1 - lambda) V(s) + lambda f*(r + gamma (1 - done) V(s') - V(s))].

    With the forward residual y_f = r + gamma (1 - done) Vbar(s') - V(s), the backward residual
    y_b = r + gamma (1 - done) V(s') - Vbar(s), and Vbar the target network, which is constant::

        g_l = grad mean (1 - lambda) V(s)
        g_f = grad mean lambda f*(y_f),  g_b = grad mean lambda f*(y_b)
        semi        g_l + g_f
        orthogonal  g_l + g_f + eta (g_b - <g_f, g_b> / |g_f|^2 g_f)
        true        the gradient of the loss itself, no target: g_l + g_f + g_b with both
                    residuals r + gamma (1 - done) V(s') - V(s)

    (Mao et al. 2024, eq. 7-9). One vector-Jacobian product at s serves g_l and g_f, one at s'
    serves g_b.

    Args:
      value_fn: ``value_fn(params, observation)`` -> V, [H, B] for H heads or [B]; with
        ``has_features`` the pair (V, features [..., B, F]).
      params: online parameters.
      target_params: the target's, same tree; read by the rules with a target.
      batch: B transitions.
      lam: lambda in (0, 1). Larger is greedier: at the semi-gradient fixed point, with gamma near
        1, the mean density ratio is (1 - lambda) / lambda.
      eta: weight of the projected backward gradient, >= 0, for ``"orthogonal"``.
      discount: gamma in [0, 1].
      divergence: name for `f_divergence`.
      rule: ``"orthogonal"``, ``"semi"`` or ``"true"``.
      scope: as in `orthogonal_gradient`; the paper projects once over all parameters of all heads.
      group: as in `orthogonal_gradient`.
      only_conflicts: as in `orthogonal_gradient`.
      has_features: whether ``value_fn`` also returns the penultimate features.

    Returns:
      A `ValueGradient`.

    Raises:
      ValueError: on ``lam`` outside (0, 1), ``eta < 0``, an unknown rule or divergence, or a batch
        whose fields disagree.

    Note:
      The linear term is not projected. Under ``"semi"`` there is no online pass at s', so the
      feature diagnostics take phi(s') from the target network.

    Example:
      >>> import jax.numpy as jnp
      >>> table = lambda params, s: params[s]
      >>> s = jnp.array([0, 1])
      >>> batch = Transitions(s, s, jnp.array([0., 1.]), jnp.array([1, 1]), jnp.array([0., 1.]))
      >>> out = value_gradient(table, jnp.zeros(2), jnp.zeros(2), batch, lam=0.5, rule="semi")
      >>> out.gradient.tolist(), out.residual.tolist()
      ([0.0, -0.125], [[0.0, 1.0]])

    References:
        Mao et al. (2024), "ODICE: Revealing the Mystery of Distribution Correction Estimation via
        Orthogonal-gradient Update", arXiv:2402.00348. :cite:`odice`
    """
    one_of(RULES, rule=rule)
    check_lambda(lam)
    non_negative(eta=eta)
    f = f_divergence(divergence)
    size = check_transitions(batch)
    bootstrap = bootstrap_factor(batch, discount)

    def call(p: PyTree, observation: Any) -> tuple[Array, Any]:
        out = value_fn(p, observation)
        values, features = out if has_features else (out, None)
        if values.shape[-1:] != (size,) or values.ndim > 2:
            raise ValueError(
                f"Expected value_fn to return [H, B] or [B] with B={size}, got {values.shape}."
            )
        return values.reshape(-1, size), features

    here, pull_here, phi = jax.vjp(lambda p: call(p, batch.observation), params, has_aux=True)
    reward, bootstrap, count = jnp.asarray(batch.reward)[None], bootstrap[None], here.size
    backward_loss = backward = now = None

    if rule == "semi":
        after, phi_next = call(target_params, batch.next_observation)
        future = after.min(0, keepdims=True)
    else:
        online, pull_after, phi_next = jax.vjp(
            lambda p: call(p, batch.next_observation), params, has_aux=True
        )
        if rule == "true":
            future, now = online, here
        else:
            future = call(target_params, batch.next_observation)[0].min(0, keepdims=True)
            now = call(target_params, batch.observation)[0].min(0, keepdims=True)
        backward_residual = reward + bootstrap * online - now
        ratio = f.density_ratio(backward_residual)
        (backward,) = pull_after(lam * bootstrap * ratio / count)
        backward_loss = lam * f.conjugate(backward_residual).mean()

    residual = reward + bootstrap * future - here
    cotangents = jnp.stack([jnp.full_like(here, 1 - lam), -lam * f.density_ratio(residual)]) / count
    stacked = jax.vmap(lambda cotangent: pull_here(cotangent)[0])(cotangents)
    linear = jax.tree.map(lambda leaf: leaf[0], stacked)
    forward = jax.tree.map(lambda leaf: leaf[1], stacked)

    if rule == "semi":
        norm = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(forward)))
        gradient, stats = add(linear, forward), (None, None, norm, None)
    else:
        out = orthogonal_gradient(
            forward, backward, eta, scope=scope, group=group, only_conflicts=only_conflicts
        )
        true = rule == "true"
        gradient = add(linear, add(forward, backward) if true else out.gradient)
        coefficient = None if true else out.coefficient
        stats = (out.cosine, coefficient, out.forward_norm, out.backward_norm)

    return ValueGradient(
        gradient,
        residual,
        (1 - lam) * here.mean(),
        lam * f.conjugate(residual).mean(),
        backward_loss,
        ValueDiagnostics(*stats, *feature_products(phi, phi_next)),
    )


def add(left: PyTree, right: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, left, right)


def feature_products(here: Any, after: Any) -> tuple[Any, Any]:
    """Mean inner product and mean cosine of two features [..., F]; None for None."""
    if here is None:
        return None, None
    product = jnp.sum(here * after, -1)
    scale = jnp.sqrt(jnp.sum(here * here, -1) * jnp.sum(after * after, -1))
    return product.mean(), jnp.where(
        scale > 0, product / jnp.where(scale > 0, scale, 1.0), 0
    ).mean()
