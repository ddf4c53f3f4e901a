"""The matrix of curvature: parameters times parameters, multiplied but never written down."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.matrices import estimates, lanczos, micro_batches, solves
from gradkin.matrices.estimates import Estimate
from gradkin.matrices.lanczos import Eigenpairs, SpectralDensity
from gradkin.matrices.operators import operator
from gradkin.matrices.solves import Solution
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, ArrayLike, PRNGKey, PyTree, Scalar

_verb = functools.partial(jax.jit, inline=True)


@functools.partial(
    register_dataclass,
    data_fields=["args"],
    meta_fields=["source", "num_examples", "batch_size"],
)
@dataclasses.dataclass(frozen=True)
class CurvatureMatrix:
    """A symmetric matrix ``H``, one row and one column per parameter: a mean over examples.

    Vectors are pytrees like the parameters. Made by `gradkin.hessian`, `gradkin.gauss_newton`,
    `gradkin.fisher` and `gradkin.empirical_fisher`; an immutable pytree that passes through `jit`
    and `vmap`.

    Without ``batch_size`` the model is linearised once per verb and all of its products share that,
    at the price of keeping what the backward pass of the whole batch needs. With it each product
    is a pass over micro-batches, in memory that does not grow with the number of examples.

    Attributes:
      args: arguments, batched.
      source: what the curvature is of; hashable.
      num_examples: ``B``.
      batch_size: examples per micro-batch, or None.
    """

    args: tuple[Any, ...]
    source: Any
    num_examples: int
    batch_size: int | None

    __array_ufunc__ = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source.name}, shape={self.shape}, dtype={self.dtype})"

    @property
    def like(self) -> PyTree:
        """Shapes and dtypes of the parameters."""
        return self.source.like(self.args)

    @property
    def shape(self) -> tuple[int, int]:
        """``(parameters, parameters)``."""
        size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.like))
        return size, size

    @property
    def dtype(self) -> np.dtype:
        """The dtype that all parameters promote to."""
        kinds = [np.dtype(leaf.dtype) for leaf in jax.tree.leaves(self.like)]
        return functools.reduce(np.promote_types, kinds)

    @property
    def T(self) -> "CurvatureMatrix":
        """The transpose: the matrix itself."""
        return self

    def linear_map(self) -> Callable[[PyTree], PyTree]:
        """The function ``v -> H @ v``, for many products inside one `jit`.

        Linearises now, so that products do not; what it returns holds arrays and is no pytree.
        """
        source, args, num, size = self.source, self.args, self.num_examples, self.batch_size
        if size is None or size >= num:
            return source.linear_map(args, num)

        def streamed(v: PyTree) -> PyTree:
            return micro_batches.total(
                lambda part, _: source.linear_map(part, num)(v),
                args,
                in_axes=source.in_axes,
                num_examples=num,
                batch_size=size,
            )

        return streamed

    def __matmul__(self, vector: PyTree) -> PyTree:
        """``H @ v``: a pytree like the parameters."""
        like = self.like
        checks.same_structure(vector, like, name="the vector", like_name="the parameters")
        vector = jax.tree.map(lambda x, shape: jnp.asarray(x, shape.dtype), vector, like)
        return _product(self, vector)

    def __rmatmul__(self, vector: PyTree) -> PyTree:
        """``v @ H``, which is ``H @ v``."""
        return self @ vector

    def materialize(self) -> Array:
        """The matrix as an array ``[P, P]``, columns one at a time, in the order of the leaves."""
        return _materialize(self)

    def diagonal(self, key: PRNGKey, *, num_matvecs: int = 64) -> Estimate:
        """Estimated diagonal, pytrees like the parameters: see `gradkin.curvature.diagonal`."""
        return estimates.diagonal(key, self, num_matvecs=num_matvecs)

    def trace(self, key: PRNGKey, *, num_matvecs: int = 64, method: str = "hutchinson") -> Estimate:
        """Estimated trace, by "hutchinson" or "xtrace": see `gradkin.curvature.trace`."""
        return estimates.trace(key, self, num_matvecs=num_matvecs, method=method)

    def frobenius_norm(self, key: PRNGKey, *, num_matvecs: int = 64) -> Estimate:
        """Estimated root of the sum of squares: see `gradkin.curvature.frobenius_norm`."""
        return estimates.frobenius_norm(key, self, num_matvecs=num_matvecs)

    def top_eigenpairs(
        self,
        key: PRNGKey,
        k: int = 1,
        *,
        num_matvecs: int | None = None,
        which: str = "largest",
    ) -> Eigenpairs:
        """Extreme eigenpairs with residuals: see `gradkin.curvature.top_eigenpairs`."""
        return lanczos.top_eigenpairs(key, self, k, num_matvecs=num_matvecs, which=which)

    def spectral_density(
        self,
        key: PRNGKey,
        *,
        num_matvecs: int | None = None,
        num_probes: int = 8,
        grid: ArrayLike | int = 1024,
        width: Scalar | None = None,
    ) -> SpectralDensity:
        """Density of eigenvalues: see `gradkin.curvature.spectral_density`."""
        return lanczos.spectral_density(
            key, self, num_matvecs=num_matvecs, num_probes=num_probes, grid=grid, width=width
        )

    def log_determinant(
        self,
        key: PRNGKey,
        *,
        damping: Scalar = 0.0,
        num_matvecs: int | None = None,
        num_probes: int = 8,
    ) -> Estimate:
        """``log det(H + damping I)``: see `gradkin.curvature.log_determinant`."""
        return lanczos.log_determinant(
            key, self, damping=damping, num_matvecs=num_matvecs, num_probes=num_probes
        )

    def solve(
        self, b: PyTree, *, damping: Scalar = 0.0, rtol: Scalar = 1e-5, max_steps: int = 500
    ) -> Solution:
        """Solve ``(H + damping I) x = b``: see `gradkin.curvature.solve`."""
        return solves.solve(self, b, damping=damping, rtol=rtol, max_steps=max_steps)

    def explain(self) -> "Explanation":
        """What a product costs. Print it."""
        return Explanation(
            self.source.name, self.shape[0], self.num_examples, self.batch_size, _flops(self)
        )


class Explanation(NamedTuple):
    """What one product with a curvature matrix costs.

    Attributes:
      name: which curvature.
      size: ``P``.
      num_examples: ``B``.
      batch_size: examples per micro-batch, or None.
      flops: of one product on its own, as the compiler counts it; None where it does not say. A
        streamed product's loop is counted once.
    """

    name: str
    size: int
    num_examples: int
    batch_size: int | None
    flops: float | None

    def __str__(self) -> str:
        size = self.batch_size
        if size is None or size >= self.num_examples:
            how = "linearised once per verb over the whole batch"
        else:
            how = f"made anew for each product, {size} examples at a time"
        flops = "unknown" if self.flops is None else f"{self.flops:.3g}"
        return (
            f"{self.name} of {self.size} parameters, mean over {self.num_examples} examples, "
            f"{how}; {flops} FLOPs for a product on its own"
        )


@_verb
def _product(H: CurvatureMatrix, vector: PyTree) -> PyTree:
    return H.linear_map()(vector)


@_verb
def _materialize(H: CurvatureMatrix) -> Array:
    op = operator(H)
    return jax.lax.map(op.product, jnp.eye(op.size, dtype=op.dtype)).T


def _flops(H: CurvatureMatrix) -> float | None:
    lowered = _product.lower(H, H.like)
    analysis = lowered.cost_analysis()
    value = analysis.get("flops") if isinstance(analysis, dict) else None
    return None if value is None else float(value)
