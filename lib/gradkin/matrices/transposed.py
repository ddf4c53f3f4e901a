"""The transpose of a matrix of gradients: parameters times examples."""

from typing import Any, NamedTuple

from gradkin.typing import Array, PyTree


class Transposed(NamedTuple):
    """``G.T``; only products with it are defined, it is never formed."""

    matrix: Any

    @property
    def T(self) -> Any:
        """The matrix itself."""
        return self.matrix

    @property
    def shape(self) -> tuple[int, int]:
        """``(parameters, examples)``."""
        rows, columns = self.matrix.shape
        return columns, rows

    @property
    def dtype(self) -> Any:
        return self.matrix.dtype

    def __matmul__(self, weights: Any) -> PyTree:
        """``G.T @ w`` is ``w @ G``: a pytree like the parameters."""
        if hasattr(weights, "squared_norms"):
            raise TypeError(
                "Expected row weights on the right of G.T, got a matrix of gradients: G.T @ G has "
                "a row for every pair of parameters; use G @ G.T for pairs of examples."
            )
        return weights @ self.matrix

    def __rmatmul__(self, tangent: PyTree) -> Array:
        """``tangent @ G.T`` is ``G @ tangent``: one number per example."""
        return self.matrix @ tangent
