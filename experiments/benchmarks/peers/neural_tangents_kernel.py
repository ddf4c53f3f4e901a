"""The empirical neural tangent kernel by neural-tangents, which needs an old JAX.

python -m experiments.benchmarks.peers.neural_tangents_kernel CASE JOB [--tiny]
"""

import sys
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import compiled, models
from experiments.benchmarks.worker import serve

TECHNIQUES = {
    "structured derivatives": "STRUCTURED_DERIVATIVES",
    "NTK-vector products": "NTK_VECTOR_PRODUCTS",
    "Jacobian contraction": "JACOBIAN_CONTRACTION",
}


def build(batch: int, sizes: tuple[int, ...], job: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Trace and compile a job; return its step and what there is to say about it."""
    import neural_tangents as nt

    params, (x, _) = models.perceptron_params(sizes), models.classified((batch, sizes[0]), 2)
    packages = ("jax", "jaxlib", "neural-tangents")
    if job == "plain":
        return compiled.build(models.gradient_of_sum, (params, x), "gradient of the sum", packages)
    kernel = nt.empirical_ntk_fn(
        models.perceptron,
        trace_axes=(),
        vmap_axes=0,
        implementation=getattr(nt.NtkImplementation, TECHNIQUES[job]),
    )
    return compiled.build(lambda p, x: kernel(x, None, p), (params, x), "kernel", packages)


if __name__ == "__main__":
    _, name, job, *rest = sys.argv
    serve(lambda: build(*models.kernel_case(name, tiny=bool(rest)), job))
