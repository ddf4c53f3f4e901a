"""Losses of a model's outputs, with the Hessians and the distributions that belong to them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkin.matrices.contraction import at_least_float32
from gradkin.typing import Array, PRNGKey, PyTree


@dataclasses.dataclass(frozen=True)
class OutputLoss:
    """A loss of one example's outputs: ``loss(outputs, target)`` -> scalar.

    ``curvature.cross_entropy`` takes logits ``[..., classes]`` and integer labels, or probabilities
    of the classes, and sums over positions; a label that is no class counts nothing. A logit of
    ``-inf`` rules a class out: loss and gradient are those without it (0 log 0 = 0), and the loss
    of a target that has it is infinite; where all classes are ruled out it is NaN.
    ``curvature.binary_cross_entropy`` takes logits and probabilities of one shape,
    ``curvature.squared_error`` is half the squared distance to the target.

    Attributes:
      value: ``(outputs, target)`` -> scalar.
      hessian_product: ``(outputs, target, u)`` -> Hessian in the outputs times ``u``.
      sample: ``(key, outputs)`` -> target, drawn from the distribution whose negative
        log-likelihood the loss is (up to a constant); None where there is none.
    """

    value: Callable[[Any, Any], Array]
    hessian_product: Callable[[Any, Any, Any], Any]
    sample: Any = None

    def __call__(self, outputs: PyTree, target: PyTree) -> Array:
        """The loss."""
        return self.value(outputs, target)


@dataclasses.dataclass(frozen=True)
class Differentiated:
    """The Hessian product of any twice differentiable loss of outputs."""

    value: Callable[[Any, Any], Array]

    def __call__(self, outputs: PyTree, target: PyTree, u: PyTree) -> PyTree:
        grad = jax.grad(lambda outputs: self.value(outputs, target))
        return jax.jvp(grad, (outputs,), (u,))[1]


def as_output_loss(loss: Callable[..., Any]) -> OutputLoss:
    """The loss with its Hessian product: its own, or by differentiation."""
    return loss if isinstance(loss, OutputLoss) else OutputLoss(loss, Differentiated(loss))


def _wide(x: Array) -> Array:
    return x.astype(at_least_float32(x.dtype))


def _squared_error(outputs: Array, target: Array) -> Array:
    outputs = _wide(outputs)
    target = jnp.asarray(target)
    if target.shape != outputs.shape:
        raise ValueError(
            f"Expected target to have the shape of the outputs, {outputs.shape}, got "
            f"{target.shape}."
        )
    return 0.5 * jnp.sum(jnp.square(outputs - target.astype(outputs.dtype)))


def _normal(key: PRNGKey, outputs: Array) -> Array:
    outputs = _wide(outputs)
    return outputs + jax.random.normal(key, outputs.shape, outputs.dtype)


squared_error = OutputLoss(_squared_error, lambda outputs, target, u: u, _normal)


def _classes(outputs: Array, target: Array) -> Array:
    """Probabilities: one-hot for integer labels, zeros for a label that is no class."""
    target = jnp.asarray(target)
    if jnp.issubdtype(target.dtype, jnp.integer):
        if target.shape != outputs.shape[:-1]:
            raise ValueError(
                f"Expected a label for each of {outputs.shape[:-1]} positions, got target of shape "
                f"{target.shape}."
            )
        return jax.nn.one_hot(target, outputs.shape[-1], dtype=outputs.dtype)
    if target.shape != outputs.shape:
        raise ValueError(
            f"Expected target to be integer labels or probabilities of shape {outputs.shape}, got "
            f"{target.dtype} of shape {target.shape}."
        )
    return target.astype(outputs.dtype)


def _cross_entropy(outputs: Array, target: Array) -> Array:
    outputs = _wide(outputs)
    classes, scores = _classes(outputs, target), jax.nn.log_softmax(outputs)
    # 0 log 0 = 0, with derivatives: neither the product nor its cotangents see the infinity.
    ruled_out = (classes == 0) & (scores == -jnp.inf)
    return -jnp.sum(classes * jnp.where(ruled_out, 0, scores))


def _softmax_hessian_product(outputs: Array, target: Array, u: Array) -> Array:
    """``p * u - p (p . u)`` at each position, times the sum of its target."""
    wide = _wide(outputs)
    p, direction = jax.nn.softmax(wide), u.astype(wide.dtype)
    mass = jnp.sum(_classes(wide, target), axis=-1, keepdims=True)
    inner = jnp.sum(p * direction, axis=-1, keepdims=True)
    return (mass * p * (direction - inner)).astype(u.dtype)


def _categorical(key: PRNGKey, outputs: Array) -> Array:
    return jax.random.categorical(key, _wide(outputs), axis=-1)


cross_entropy = OutputLoss(_cross_entropy, _softmax_hessian_product, _categorical)


def _binary_cross_entropy(outputs: Array, target: Array) -> Array:
    outputs = _wide(outputs)
    target = jnp.asarray(target)
    if target.shape != outputs.shape:
        raise ValueError(
            f"Expected target to have the shape of the outputs, {outputs.shape}, got "
            f"{target.shape}."
        )
    return jnp.sum(jax.nn.softplus(outputs) - target.astype(outputs.dtype) * outputs)


def _sigmoid_hessian_product(outputs: Array, target: Array, u: Array) -> Array:
    p = jax.nn.sigmoid(_wide(outputs))
    return (p * (1 - p) * u.astype(p.dtype)).astype(u.dtype)


def _bernoulli(key: PRNGKey, outputs: Array) -> Array:
    return jax.random.bernoulli(key, jax.nn.sigmoid(_wide(outputs))).astype(jnp.int32)


binary_cross_entropy = OutputLoss(_binary_cross_entropy, _sigmoid_hessian_product, _bernoulli)
