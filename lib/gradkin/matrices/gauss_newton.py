"""The generalised Gauss-Newton matrix: the curvature that the outputs' loss alone makes."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from gradkin.matrices import recording
from gradkin.matrices.curvature import CurvatureMatrix
from gradkin.matrices.hessian import check_batch_size, check_real, shapes
from gradkin.matrices.output_losses import as_output_loss
from gradkin.matrices.per_example import bind, hashable
from gradkin.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Composed:
    """The loss of one example: ``loss(predict(params, inputs), target)``."""

    predict: Callable[..., Any]
    loss: Callable[..., Any]

    def __call__(self, params: PyTree, inputs: Any, target: Any) -> Any:
        return self.loss(self.predict(params, inputs), target)


class GaussNewton(NamedTuple):
    """``mean_i J_i^T B_i J_i`` for Jacobians ``J`` of outputs and any symmetric ``B``.

    ``args`` are ``(params, inputs, targets)``; ``inner(outputs, target, u)`` is ``B u``.
    """

    name: str
    predict: Callable[..., Any]
    inner: Callable[..., Any]
    axes: Any

    @property
    def in_axes(self) -> tuple[Any, ...]:
        return self.axes.value if isinstance(self.axes, recording.ByIdentity) else self.axes

    def like(self, args: tuple[Any, ...]) -> PyTree:
        return shapes(args[0])

    def linear_map(self, args: tuple[Any, ...], total: int) -> Callable[[PyTree], PyTree]:
        """``v -> J^T B J v``; the Jacobian is linearised once, then used both ways."""
        params, inputs, targets = args
        _, inputs_axes, targets_axes = self.in_axes
        predict = jax.vmap(self.predict, in_axes=(None, inputs_axes))
        outputs, forward = jax.linearize(lambda params: predict(params, inputs), params)
        backward = jax.linear_transpose(forward, params)
        inner = jax.vmap(self.inner, in_axes=(0, targets_axes, 0))

        def product(v: PyTree) -> PyTree:
            u = inner(outputs, targets, forward(v))
            (result,) = backward(jax.tree.map(lambda x: x / total, u))
            return result

        return product


def gauss_newton(
    predict_fn: Callable[..., Any],
    output_loss: Callable[..., Any],
    *,
    in_axes: Any = 0,
    batch_size: int | None = None,
) -> Callable[..., CurvatureMatrix]:
    """Transform a model and a loss of its outputs into the Gauss-Newton matrix of the mean loss.

    .. math:: \\frac{1}{B} \\sum_i J_i^\\top \\, \\nabla^2 \\ell(f_i) \\, J_i

    with ``J_i`` the Jacobian of the outputs ``f_i`` of example ``i`` in the parameters. The Hessian
    without the curvature of the model; positive semi-definite where the loss is convex in the
    outputs, and the Fisher information where it is the negative log-likelihood of an exponential
    family in natural parameters (`curvature.cross_entropy`, `curvature.squared_error`,
    `curvature.binary_cross_entropy`).

    Args:
      predict_fn: ``predict_fn(params, inputs)`` -> outputs of one example, an array or pytree.
      output_loss: ``output_loss(outputs, target)`` -> scalar. The three losses named above know
        their Hessians in closed form; any other function is differentiated.
      in_axes: as in `jax.vmap`, for ``(params, inputs, targets)``; that of params must be None (an
        int applies to the other two).
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
      >>> GN = gradkin.gauss_newton(lambda w, x: (x @ w) ** 2, curvature.squared_error)
      >>> matrix = GN(jnp.ones((1, 1)), jnp.array([[3.0]]), jnp.array([[0.0]]))  # J = 2 * 9
      >>> matrix.materialize().tolist()
      [[324.0]]

    References:
      Schraudolph (2002), "Fast Curvature Matrix-Vector Products for Second-Order Gradient
      Descent". :cite:`schraudolph:02`

      Martens (2020), "New Insights and Perspectives on the Natural Gradient Method",
      arXiv:1412.1193, sec. 8-9. :cite:`martens:20`

    Note:
      The three losses sum over positions and outputs: cross-entropy over all axes but the last,
      where the classes are, so for a sequence it is the sum over its tokens. A label that is no
      class, such as -1 or -100, is left out of loss and curvature.
    """

    def transformed(params: PyTree, inputs: PyTree, targets: PyTree) -> CurvatureMatrix:
        check_batch_size(batch_size)
        loss = as_output_loss(hashable(output_loss))
        predict, args = hashable(predict_fn), (params, inputs, targets)
        spec, num_examples = bind(Composed(predict, loss), 0, False, in_axes, "auto", args)
        check_real(params)
        source = GaussNewton(
            "generalised Gauss-Newton", predict, loss.hessian_product, spec.in_axes
        )
        return CurvatureMatrix(args, source, num_examples, batch_size)

    return transformed
