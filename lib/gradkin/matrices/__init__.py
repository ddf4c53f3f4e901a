"""The lazy matrices; knows no paper."""

from gradkin.matrices.explain import Explanation as Explanation
from gradkin.matrices.per_example import per_example_grads as per_example_grads
from gradkin.matrices.per_example import value_and_per_example_grads as value_and_per_example_grads
from gradkin.matrices.recorded import PerExampleGrads as PerExampleGrads

__all__ = [
    "Explanation",
    "PerExampleGrads",
    "per_example_grads",
    "value_and_per_example_grads",
]
