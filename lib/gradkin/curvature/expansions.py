"""Sharpness to first and second order: what gradient and Hessian say without a search."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.curvature.perturbations import check_ball, filled, norm
from gradkin.matrices import estimates, lanczos
from gradkin.matrices.curvature import CurvatureMatrix
from gradkin.matrices.estimates import Estimate
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, PRNGKey, PyTree, Scalar


@functools.partial(register_dataclass, data_fields=["H", "scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class ScaledCurvature:
    """Curvature in the variables ``w / c``: ``D_c H D_c``, never written down.

    Attributes:
      H: curvature in ``w``.
      scale: ``c``, a pytree like the parameters.
    """

    H: CurvatureMatrix
    scale: PyTree

    @property
    def like(self) -> PyTree:
        """Shapes and dtypes of the parameters."""
        return self.H.like

    @property
    def shape(self) -> tuple[int, int]:
        """``(parameters, parameters)``."""
        return self.H.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype that all parameters promote to."""
        return self.H.dtype

    def linear_map(self) -> Callable[[PyTree], PyTree]:
        """The function ``v -> c * (H @ (c * v))``."""
        product = self.H.linear_map()
        times = functools.partial(jax.tree.map, jnp.multiply, self.scale)
        return lambda v: times(product(times(v)))


def first_order_sharpness(
    grads: PyTree, *, rho: Scalar, p: int | float = 2, scale: PyTree | None = None
) -> Array:
    """Worst-case sharpness of a linear loss: ``rho |c g|`` in the dual norm.

    Exact to first order in ``rho`` away from stationary points (Andriushchenko et al. 2023,
    sec. 2): the second norm for ``p = 2``, the first for ``p`` infinite.

    Args:
      grads: gradient ``g`` of the loss, a pytree like the parameters.
      rho: radius, > 0.
      p: 2 or infinity (`math.inf`).
      scale: ``c >= 0``, a pytree like ``grads``; None takes ones.

    Returns:
      A scalar.

    Raises:
      ValueError: an argument not as above.

    Example:
      >>> import math
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> float(curvature.first_order_sharpness(jnp.array([3.0, -4.0]), rho=1.0, p=math.inf))
      7.0

    References:
      Andriushchenko et al. (2023), arXiv:2302.07011. :cite:`modern-sharpness`
    """
    check_ball(rho, p)
    grads = jax.tree.map(jnp.asarray, grads)
    scaled = jax.tree.map(jnp.multiply, filled(scale, grads), grads)
    if p == 2:
        size = norm(scaled)
    else:
        # At least float32: sums of many small numbers.
        parts = [
            jnp.sum(jnp.abs(leaf.astype(np.promote_types(leaf.dtype, np.float32))))
            for leaf in jax.tree.leaves(scaled)
        ]
        dtype = functools.reduce(np.promote_types, [part.dtype for part in parts])
        size = functools.reduce(jnp.add, [part.astype(dtype) for part in parts])
    return jnp.asarray(rho, size.dtype) * size


def second_order_sharpness(
    key: PRNGKey,
    H: CurvatureMatrix,
    *,
    rho: Scalar,
    kind: str = "average",
    scale: PyTree | None = None,
    num_matvecs: int | None = None,
) -> Estimate:
    """Sharpness of a quadratic loss at a stationary point, from its Hessian.

    .. math:: \\frac{\\rho^2}{2} \\operatorname{tr}(D_c H D_c) \\;\\text{(average)}, \\qquad
        \\frac{\\rho^2}{2} \\max(0, \\lambda_{\\max}(D_c H D_c)) \\;\\text{(worst, } p = 2)

    The limits for small ``rho`` of `average_sharpness` (Gaussian noise) and, where the gradient
    vanishes, of `worst_case_sharpness`. Trace and largest eigenvalue of the Hessian themselves are
    ``H.trace`` and ``H.top_eigenpairs``.

    Args:
      key: PRNG key.
      H: `gradkin.hessian` of the loss, or another curvature.
      rho: radius, > 0.
      kind: "average" (Hutchinson's estimate) or "worst" (Lanczos).
      scale: ``c >= 0``, a pytree like the parameters; None takes ones.
      num_matvecs: products with ``H``; None takes 64 for a trace, at most 50 for an eigenvalue.

    Returns:
      `Estimate`. The error of an eigenvalue is its residual: some eigenvalue lies that near.

    Raises:
      ValueError: an argument not as above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import curvature
      >>> loss = lambda w, x: 0.5 * jnp.vdot(x, w**2)  # the Hessian is diag(x)
      >>> H = gradkin.hessian(loss)(jnp.zeros(2), jnp.array([[1.0, 3.0]]))
      >>> float(curvature.second_order_sharpness(jax.random.key(0), H, rho=1.0).value)
      2.0

    References:
      Andriushchenko et al. (2023), arXiv:2302.07011. :cite:`modern-sharpness`
    """
    check_ball(rho, 2)
    checks.one_of(("average", "worst"), kind=kind)
    like = H.like
    if scale is None:
        scale = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), like)
    A = ScaledCurvature(H, filled(scale, like))
    if kind == "average":
        found = estimates.trace(key, A, num_matvecs=64 if num_matvecs is None else num_matvecs)
    else:
        pairs = lanczos.top_eigenpairs(key, A, 1, num_matvecs=num_matvecs)
        found = Estimate(jnp.maximum(pairs.values[0], 0), pairs.residuals[0])
    half: Any = jnp.asarray(rho, found.value.dtype) ** 2 / 2
    return jax.tree.map(lambda x: half * x, found)
