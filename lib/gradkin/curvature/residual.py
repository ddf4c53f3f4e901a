"""The Hessian without its Gauss-Newton part: what the curvature of the model itself adds."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkin.matrices.curvature import CurvatureMatrix
from gradkin.matrices.hessian import hessian
from gradkin.matrices.per_example import hashable
from gradkin.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Linearized:
    """The loss of one example, linear in the outputs: its Hessian is the residual's."""

    predict: Callable[..., Any]
    loss: Callable[..., Any]

    def __call__(self, params: PyTree, inputs: Any, target: Any) -> Array:
        outputs = self.predict(params, inputs)
        slope = jax.grad(lambda f: self.loss(f, target))(outputs)
        slope = jax.lax.stop_gradient(slope)
        parts = jax.tree.map(lambda s, f: jnp.sum(s * f), slope, outputs)
        return jax.tree.reduce(jnp.add, parts)


def residual_curvature(
    predict_fn: Callable[..., Any],
    output_loss: Callable[..., Any],
    *,
    in_axes: Any = 0,
    batch_size: int | None = None,
) -> Callable[..., CurvatureMatrix]:
    """Transform a model and a loss of its outputs into ``R = H - G``, as a lazy matrix.

    .. math:: R = \\frac{1}{B} \\sum_i \\sum_c \\frac{\\partial \\ell_i}{\\partial f_{i,c}} \\,
        \\nabla^2_w f_{i,c}, \\qquad \\nabla^2 L = G + R

    with the Gauss-Newton matrix ``G`` of `gradkin.gauss_newton` (Sagun et al. 2017, sec. 2). It
    vanishes where the model interpolates, or is linear, and may have eigenvalues of both signs.

    Args:
      predict_fn: ``predict_fn(params, inputs)`` -> outputs of one example, as for
        `gradkin.gauss_newton`.
      output_loss: ``output_loss(outputs, target)`` -> scalar, such as `curvature.cross_entropy`.
      in_axes: as for `gradkin.hessian`.
      batch_size: as for `gradkin.hessian`.

    Returns:
      A function of ``(params, inputs, targets)``, batched, that returns a `CurvatureMatrix`.

    Raises:
      TypeError: parameters that are not real floating point, or a loss that is not a real scalar.
      ValueError: leading axes that disagree, or no examples.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import curvature
      >>> predict = lambda w, x: x * w**2  # second derivative 2 x
      >>> make = curvature.residual_curvature(predict, curvature.squared_error)
      >>> R = make(jnp.array([1.0]), jnp.array([[3.0]]), jnp.array([[1.0]]))
      >>> R.materialize().tolist()  # residual 2, times 6
      [[12.0]]

    References:
      Sagun, Evci, Guney, Dauphin & Bottou (2017), "Empirical Analysis of the Hessian of
      Over-Parametrized Neural Networks", arXiv:1706.04454. :cite:`hessian-overparametrized`
    """
    fun = Linearized(hashable(predict_fn), hashable(output_loss))
    return hessian(fun, in_axes=in_axes, batch_size=batch_size)
