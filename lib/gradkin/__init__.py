"""Per-example gradients, kernels and curvature in JAX."""

from gradkin.matrices.jacobians import PerExampleJacobians as PerExampleJacobians
from gradkin.matrices.jacobians import per_example_jacobians as per_example_jacobians
from gradkin.matrices.kernel import KernelMatrix as KernelMatrix
from gradkin.matrices.kernel import kernel_matrix as kernel_matrix
from gradkin.matrices.per_example import per_example_grads as per_example_grads
from gradkin.matrices.per_example import value_and_per_example_grads as value_and_per_example_grads
from gradkin.matrices.recorded import PerExampleGrads as PerExampleGrads

__all__ = [
    "KernelMatrix",
    "PerExampleGrads",
    "PerExampleJacobians",
    "kernel_matrix",
    "per_example_grads",
    "per_example_jacobians",
    "value_and_per_example_grads",
]
