"""Per-example gradients, kernels and curvature in JAX."""

from gradkin.matrices.per_example import per_example_grads as per_example_grads
from gradkin.matrices.per_example import value_and_per_example_grads as value_and_per_example_grads
from gradkin.matrices.recorded import PerExampleGrads as PerExampleGrads

__all__ = ["PerExampleGrads", "per_example_grads", "value_and_per_example_grads"]
