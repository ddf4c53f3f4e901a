"""What the linear head of a network sees of a domain, in closed form."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices.contraction import at_least_float32
from gradkin.matrices.operators import dot
from gradkin.matrices.output_losses import OutputLoss, cross_entropy
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, ArrayLike, PyTree


@functools.partial(
    register_dataclass,
    data_fields=["features", "logits", "targets"],
    meta_fields=["output_loss"],
)
@dataclasses.dataclass(frozen=True)
class HeadHessian:
    """Hessian of the mean loss in the weights of a linear head: ``E[S kron z z^T]``.

    ``z`` are the features of an example and ``S`` is the Hessian of its loss in the logits:
    ``diag(p) - p p^T`` for cross-entropy. Vectors are arrays ``[k, d]``, like the gradient. All
    that is read off it is a function of features and logits without a second derivative of the
    network, so a penalty on it trains the features at the cost of a first one.

    Attributes:
      features: ``z``, ``[n, d]``, with a last column of ones where the head has a bias.
      logits: ``[n, k]``.
      targets: ``[n, ...]``.
      output_loss: the loss of one example's logits.
    """

    features: Any  # a tree map may put anything here
    logits: Any
    targets: Any
    output_loss: OutputLoss

    __array_ufunc__ = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"

    @property
    def shape(self) -> tuple[int, int]:
        """``(k d, k d)``."""
        size = self.logits.shape[1] * self.features.shape[1]
        return size, size

    @property
    def dtype(self) -> np.dtype:
        """The dtype of what is read off."""
        return at_least_float32(np.promote_types(self.features.dtype, self.logits.dtype))

    @property
    def like(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the head's weights."""
        return jax.ShapeDtypeStruct((self.logits.shape[1], self.features.shape[1]), self.dtype)

    @property
    def T(self) -> "HeadHessian":
        """The transpose: the matrix itself."""
        return self

    def linear_map(self) -> Callable[[Array], Array]:
        """The function ``V -> H @ V``."""
        z, num = self.features.astype(self.dtype), len(self.features)

        def product(v: Array) -> Array:
            return dot(self._along(dot(z, v.T)).T, z) / num

        return product

    def __matmul__(self, vector: ArrayLike) -> Array:
        """``H @ V``, ``[k, d]``."""
        checks.same_structure(vector, self.like, name="the vector", like_name="the head")
        return self.linear_map()(jnp.asarray(vector, self.dtype))

    def __rmatmul__(self, vector: ArrayLike) -> Array:
        """``V @ H``, which is ``H @ V``."""
        return self @ vector

    def diagonal(self) -> Array:
        """The exact diagonal, ``[k, d]``: ``E[S_cc z_j^2]``."""
        z = self.features.astype(self.dtype)
        own = jnp.diagonal(self._output_hessians(), axis1=1, axis2=2)
        return dot(own.T, jnp.square(z)) / len(z)

    def materialize(self) -> Array:
        """The matrix, ``[k d, k d]``; rows and columns as the flat head has them."""
        z = self.features.astype(self.dtype)
        hessians = self._output_hessians()
        n, k, _ = hessians.shape
        weighted = (hessians[..., None] * z[:, None, None, :]).reshape(n, -1)
        blocks = dot(weighted.T, z).reshape(k, k, z.shape[1], z.shape[1]) / n
        return jnp.swapaxes(blocks, 1, 2).reshape(self.shape)

    def _along(self, u: Array) -> Array:
        """The Hessian in the logits times a vector for each example, ``[n, k]``."""
        logits = self.logits.astype(self.dtype)
        return jax.vmap(self.output_loss.hessian_product)(logits, self.targets, u)

    def _output_hessians(self) -> Array:
        n, k = self.logits.shape
        units = jnp.broadcast_to(jnp.eye(k, dtype=self.dtype)[:, None, :], (k, n, k))
        return jnp.moveaxis(jax.vmap(self._along)(units), 0, 2)


class HeadMoments(NamedTuple):
    """What penalties between domains read off one domain.

    `head_moments` makes one for a linear head. For any other head build it from a gradient, a
    pytree, and a Hessian that multiplies such a pytree: ``HeadMoments(loss, grad,
    gradkin.hessian(loss_fn)(head, batch))``; penalties that need one of the rest then refuse.

    Attributes:
      loss: mean loss, a scalar.
      grad: gradient of the mean loss in the head; ``[k, d]`` for a linear head.
      hessian: Hessian of the mean loss in the head.
      grad_variance: variance over examples of their gradients, like ``grad``.
      scale_grad: derivative of the mean loss in a factor on the logits, at 1; a scalar.
      features: ``[n, d]``, without a column for the bias.
    """

    loss: Array
    grad: PyTree
    hessian: Any
    grad_variance: PyTree = None
    scale_grad: Any = None
    features: Any = None


def head_moments(
    features: Float[ArrayLike, "n d"],
    logits: Float[ArrayLike, "n k"],
    targets: ArrayLike,
    *,
    output_loss: OutputLoss = cross_entropy,
    bias: bool = True,
) -> HeadMoments:
    """Gradient and Hessian of a domain's loss in a linear head (Hemati et al. 2023).

    .. math:: g = E[r \\otimes z], \\qquad H = E[S \\otimes z z^T]

    with features ``z``, the gradient ``r`` and the Hessian ``S`` of the loss in the logits: for
    cross-entropy ``p - y`` and ``diag(p) - p p^T``. Differentiable in features and logits, which
    is how a penalty reaches the layers below the head.

    Args:
      features: inputs of the head, ``[n, d]``.
      logits: its outputs, ``[n, k]``; ``[n, 1]`` for logistic regression.
      targets: ``[n]`` integer labels or ``[n, k]``: what ``output_loss`` takes, by example.
      output_loss: loss of one example's logits, with its Hessian, such as
        `gradkin.curvature.cross_entropy` or `gradkin.curvature.binary_cross_entropy`.
      bias: whether the head adds a bias: a last column of the gradient, as of a feature 1.

    Returns:
      `HeadMoments`, in at least float32. What is not used costs nothing inside `jit`.

    Raises:
      ValueError: no examples, or arrays that disagree in their number.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> z, logits = jnp.array([[2.0], [4.0]]), jnp.zeros((2, 2))  # both classes at 1/2
      >>> domain = curvature.head_moments(z, logits, jnp.array([0, 0]), bias=False)
      >>> domain.grad.tolist(), domain.hessian.materialize().tolist()
      ([[-1.5], [1.5]], [[2.5, -2.5], [-2.5, 2.5]])

    References:
      Hemati, Zhang, Estiri & Chen (2023), "Understanding Hessian Alignment for Domain
      Generalization", arXiv:2308.11778. :cite:`hessian-alignment-dg`
    """
    features, logits, targets = (jnp.asarray(x) for x in (features, logits, targets))
    checks.rank(2, features=features, logits=logits)
    sizes = {x.shape[0] if x.ndim else None for x in (features, logits, targets)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "Expected features, logits and targets of the same examples, at least one, got shapes "
            f"{features.shape}, {logits.shape} and {targets.shape}."
        )
    n = len(features)
    dtype = at_least_float32(np.promote_types(features.dtype, logits.dtype))
    z, outputs = features.astype(dtype), logits.astype(dtype)
    if bias:
        z = jnp.concatenate([z, jnp.ones((n, 1), dtype)], axis=1)
    losses, residuals = jax.vmap(jax.value_and_grad(output_loss.value))(outputs, targets)
    grad = dot(residuals.T, z) / n
    return HeadMoments(
        loss=jnp.mean(losses),
        grad=grad,
        hessian=HeadHessian(z, outputs, targets, output_loss),
        grad_variance=_product_variance(residuals, z),
        scale_grad=jnp.mean(jnp.sum(residuals * outputs, axis=1)),
        features=features,
    )


def _product_variance(r: Array, z: Array) -> Array:
    """Variance over examples of ``r_c z_j``, ``[k, d]``, from products of small matrices.

    ``E[r^2 z^2] - E[r z]^2`` cancels where features or residuals are far from zero. With
    ``r = b + s`` and ``z = m + t``, whatever the constants ``b`` and ``m``, it is the variance of
    ``m s + b t + s t``, whose terms are small.
    """
    b, m = (jax.lax.stop_gradient(jnp.mean(x, axis=0)) for x in (r, z))
    s, t = r - b[None], z - m[None]
    squares, n = (jnp.square(s), jnp.square(t)), len(z)
    along_s = lambda x: jnp.mean(x, axis=0)[:, None] * m[None]
    along_t = lambda x: b[:, None] * jnp.mean(x, axis=0)[None]
    st = dot(s.T, t) / n
    mean = along_s(s) + along_t(t) + st
    second = along_s(squares[0]) * m[None] + along_t(squares[1]) * b[:, None]
    second = second + dot(squares[0].T, squares[1]) / n
    second = second + 2 * b[:, None] * m[None] * st
    second = second + 2 * m[None] * dot(squares[0].T, t) / n
    second = second + 2 * b[:, None] * dot(s.T, squares[1]) / n
    return second - jnp.square(mean)
