"""The Hessian of the mean loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices import contraction, recording
from gradkin.matrices.arguments import path_name
from gradkin.matrices.curvature import CurvatureMatrix
from gradkin.matrices.per_example import bind
from gradkin.typing import Array, PyTree


class Hessian(NamedTuple):
    """The Hessian of the mean over examples of ``spec.fun``."""

    spec: recording.Transformation

    name = "Hessian"

    @property
    def in_axes(self) -> tuple[Any, ...]:
        return recording.mapped_axes(self.spec)

    def like(self, args: tuple[Any, ...]) -> PyTree:
        return shapes(recording.parameters(self.spec, args))

    def linear_map(self, args: tuple[Any, ...], total: int) -> Callable[[PyTree], PyTree]:
        """Forward over reverse (Pearlmutter 1994); ``args`` may hold a part of ``total``."""
        spec = self.spec

        def mean_loss(params: PyTree) -> Array:
            result = jax.vmap(spec.fun, in_axes=self.in_axes)(
                *recording.with_parameters(spec, args, params)
            )
            losses = result[0] if spec.has_aux else result
            return jnp.sum(losses.astype(contraction.at_least_float32(losses.dtype))) / total

        return jax.linearize(jax.grad(mean_loss), recording.parameters(spec, args))[1]


def hessian(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    in_axes: Any = 0,
    batch_size: int | None = None,
) -> Callable[..., CurvatureMatrix]:
    """Transform a loss of one example into the Hessian of its mean over a batch.

    ``H @ v`` is a derivative of the gradient along ``v`` (Pearlmutter 1994): about the cost of two
    gradients, and no second derivative is stored.

    Args:
      fun: ``fun(params, example, ...)`` -> scalar loss (or ``(loss, aux)``): any pure function,
        as for `gradkin.per_example_grads`.
      argnums: position of the parameters, as in `jax.grad`. Rows and columns are these only: one
        layer of a model gives its diagonal block.
      has_aux: whether ``fun`` returns ``(loss, aux)``; ``aux`` is dropped.
      in_axes: as in `jax.vmap`; None keeps an argument, such as frozen parameters, the same for
        all examples.
      batch_size: None linearises over all examples at once; a number makes every product one pass
        over micro-batches of that many examples.

    Returns:
      A function of the arguments of ``fun``, batched, that returns a `CurvatureMatrix`.

    Raises:
      TypeError: parameters that are not real floating point, or a loss that is not a real scalar.
      ValueError: leading axes that disagree, or no examples.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import gradkin
      >>> loss = lambda w, x: 0.5 * jnp.vdot(w, x) ** 2  # Hessian x x^T
      >>> x = jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> H = gradkin.hessian(loss)(jnp.ones(2), x)
      >>> (H @ jnp.array([1.0, 1.0])).tolist()
      [2.0, 8.0]
      >>> round(float(H.top_eigenpairs(jax.random.key(0)).values[0]), 3)
      8.0

    References:
      Pearlmutter (1994), "Fast Exact Multiplication by the Hessian". :cite:`pearlmutter:94`
    """

    def transformed(*args: Any) -> CurvatureMatrix:
        check_batch_size(batch_size)
        spec, num_examples = bind(fun, argnums, has_aux, in_axes, "auto", args)
        check_real(recording.parameters(spec, args))
        return CurvatureMatrix(args, Hessian(spec), num_examples, batch_size)

    return transformed


def shapes(params: PyTree) -> PyTree:
    """Shape and dtype of every leaf."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), params)


def check_batch_size(batch_size: int | None) -> None:
    """Raise ValueError unless ``batch_size`` is None or a positive integer."""
    if batch_size is not None:
        checks.positive_integer(batch_size=batch_size)


def check_real(params: PyTree) -> None:
    """Raise TypeError for complex parameters."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"Expected real parameters, got {jnp.result_type(leaf)} at {path_name(path)!r}."
            )
