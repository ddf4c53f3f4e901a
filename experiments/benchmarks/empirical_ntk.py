"""The empirical neural tangent kernel against neural-tangents' published techniques.

The whole kernel ``[64, 10, 64, 10]`` of a multilayer perceptron 784-512-512-10. Ratios are to the
plain gradient of the sum of the outputs in the same version of JAX.

    python -m experiments.benchmarks.empirical_ntk
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import harness, models
from experiments.benchmarks.harness import Variant
from experiments.benchmarks.worker import serve

CASES = ("perceptron-64",)
# neural-tangents 0.6.5 runs with jax 0.4.25 and nothing much newer.
PEERS = harness.ROOT / ".venv-peers-old-jax" / "bin" / "python"
TECHNIQUES = ("plain", "structured derivatives", "NTK-vector products", "Jacobian contraction")


def jobs() -> dict[str, tuple[str, Callable[[Any, Any], Any]]]:
    """Every variant of today's JAX: what it computes, and how."""
    import jax
    import jax.numpy as jnp

    import gradkin

    def contracted(params: Any, x: jax.Array) -> jax.Array:
        jacobians = jax.vmap(jax.jacrev(models.perceptron), (None, 0))(params, x)
        flat = [j.reshape(*j.shape[:2], -1) for j in jax.tree.leaves(jacobians)]
        return sum(jnp.einsum("bop,cqp->bocq", j, j) for j in flat)  # type: ignore

    found: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
        "plain": ("gradient of the sum", models.gradient_of_sum),
        "vmap(jacrev), contracted": ("kernel", contracted),
    }
    if hasattr(gradkin, "per_example_jacobians"):
        jacobians = gradkin.per_example_jacobians
        found["gram"] = ("kernel", lambda p, x: jacobians(models.perceptron)(p, x).gram())
    return found


def build(batch: int, sizes: tuple[int, ...], job: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Trace and compile a job; return its step and what there is to say about it."""
    from experiments.benchmarks import compiled

    quantity, fun = jobs()[job]
    arguments = models.perceptron_params(sizes), models.classified((batch, sizes[0]), 2)[0]
    return compiled.build(fun, arguments, quantity, ("jax", "jaxlib"))


def variants(name: str, *, tiny: bool, python: Path) -> list[Variant]:
    """Ours and the peer's."""
    suffix = ("--tiny",) if tiny else ()
    module = "experiments.benchmarks.peers.neural_tangents_kernel"
    ours = [
        Variant(
            job, (sys.executable, "-m", __spec__.name, "--worker", name, job, *suffix), ("plain",)
        )
        for job in ("plain", "gram", "vmap(jacrev), contracted")
    ]
    theirs = [
        Variant(
            f"neural-tangents {job}",
            (str(python), "-m", module, name, job, *suffix),
            ("neural-tangents plain",),
            "neural-tangents: make peers-old-jax",
        )
        for job in TECHNIQUES
    ]
    return ours + theirs


def main(arguments: Sequence[str] | None = None) -> int:
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["--worker"]:
        _, name, job, *rest = given_arguments
        serve(lambda: build(*models.kernel_case(name, tiny=bool(rest)), job))
        return 0
    parser = harness.options(__doc__)
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python of the peer")
    given = parser.parse_args(given_arguments)
    cases = {name: variants(name, tiny=given.tiny, python=given.peers) for name in CASES}
    return harness.run("empirical_ntk", cases, given)


if __name__ == "__main__":
    sys.exit(main())
