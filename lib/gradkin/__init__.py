"""Per-example gradients, kernels and curvature in JAX."""

from gradkin.matrices.curvature import CurvatureMatrix as CurvatureMatrix
from gradkin.matrices.fisher import empirical_fisher as empirical_fisher
from gradkin.matrices.fisher import fisher as fisher
from gradkin.matrices.gauss_newton import gauss_newton as gauss_newton
from gradkin.matrices.hessian import hessian as hessian
from gradkin.matrices.jacobians import PerExampleJacobians as PerExampleJacobians
from gradkin.matrices.jacobians import per_example_jacobians as per_example_jacobians
from gradkin.matrices.kernel import KernelMatrix as KernelMatrix
from gradkin.matrices.kernel import kernel_matrix as kernel_matrix
from gradkin.matrices.per_example import per_example_grads as per_example_grads
from gradkin.matrices.per_example import value_and_per_example_grads as value_and_per_example_grads
from gradkin.matrices.recorded import PerExampleGrads as PerExampleGrads

__all__ = [
    "CurvatureMatrix",
    "KernelMatrix",
    "PerExampleGrads",
    "PerExampleJacobians",
    "empirical_fisher",
    "fisher",
    "gauss_newton",
    "hessian",
    "kernel_matrix",
    "per_example_grads",
    "per_example_jacobians",
    "value_and_per_example_grads",
]
