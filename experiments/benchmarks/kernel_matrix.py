"""A Gaussian kernel matrix of 32 features, read off lazily and otherwise.

``product`` is ``K @ v``, ``sum`` the sum of each row, ``logsumexp`` its logarithm, ``gradient`` the
derivative of ``v @ K @ v`` by the points. Against jitted jax.numpy that writes the matrix down
(where it fits: 10 GB at 50,000 points), scikit-learn by chunks, and PyKeOps. Ratios are to the
fastest of the others.

    python -m experiments.benchmarks.kernel_matrix --patience 600      # about ten minutes
    python -m experiments.benchmarks.kernel_matrix --only "product, n = 2000"
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Variant
from experiments.benchmarks.peers.kernel_matrix import BANDWIDTH, points
from experiments.benchmarks.worker import serve

PEERS = harness.ROOT / ".venv-peers" / "bin" / "python"
PEER = "experiments.benchmarks.peers.kernel_matrix"
# Points above which the matrix is not written down.
DENSE = 20_000


class Case(NamedTuple):
    """What is computed, of how many points."""

    job: str
    num_points: int


CASES = {
    f"{job}, n = {n}": Case(job, n)
    for n in (2000, 10_000, 50_000)
    for job in ("product", "sum", "logsumexp", "gradient")
}
# What the peers can do.
KNOWN = {
    "scikit-learn": ("product", "sum"),
    "PyKeOps": ("product", "sum", "logsumexp", "gradient"),
}


def build(case: Case, variant: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Trace and compile a variant; return its step and what there is to say about it."""
    import jax
    import jax.numpy as jnp

    import gradkin
    from experiments.benchmarks import compiled
    from gradkin import kernels

    def lazy(x: jax.Array) -> Any:
        return gradkin.kernel_matrix(kernels.Gaussian(BANDWIDTH), x)

    def logs(x: jax.Array) -> jax.Array:
        norms = jnp.sum(x * x, axis=1)
        squares = norms[:, None] + norms[None] - 2 * x @ x.T
        return -jnp.maximum(squares, 0) / (2 * BANDWIDTH**2)

    dense = lambda x: jnp.exp(logs(x))
    functions = {
        ("gradkin", "product"): lambda x, v: lazy(x) @ v,
        ("gradkin", "sum"): lambda x, v: lazy(x).sum(axis=1),
        ("gradkin", "logsumexp"): lambda x, v: lazy(x).logsumexp(axis=1),
        ("gradkin", "gradient"): jax.grad(lambda x, v: v @ (lazy(x) @ v)),
        ("jax.numpy", "product"): lambda x, v: dense(x) @ v,
        ("jax.numpy", "sum"): lambda x, v: dense(x).sum(axis=1),
        ("jax.numpy", "logsumexp"): lambda x, v: jax.nn.logsumexp(logs(x), axis=1),
        ("jax.numpy", "gradient"): jax.grad(lambda x, v: v @ (dense(x) @ v)),
    }
    arguments = tuple(map(jnp.asarray, points(case.num_points)))
    return compiled.build(functions[variant, case.job], arguments, case.job, ("jax", "jaxlib"))


def variants(name: str, *, tiny: bool, python: Path) -> list[Variant]:
    """Ours, the matrix written down, and the peers that know the job."""
    case = CASES[name]
    size = str(200 if tiny else case.num_points)
    worker = (sys.executable, "-m", __spec__.name, "--worker", case.job, size)
    others: dict[str, tuple[str, ...]] = {}
    if case.num_points <= DENSE:
        others["jax.numpy"] = (*worker, "jax.numpy")
    for peer, jobs in KNOWN.items():
        if case.job in jobs:
            others[peer] = (str(python), "-m", PEER, case.job, size, peer)
    found = [Variant("gradkin", (*worker, "gradkin"), tuple(others))]
    return found + [
        Variant(other, command, (), f"{other}: make peers") for other, command in others.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["--worker"]:
        _, job, size, variant = given_arguments
        serve(lambda: build(Case(job, int(size)), variant))
        return 0
    parser = harness.options(__doc__)
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python of the peers")
    given = parser.parse_args(given_arguments)
    cases = {name: variants(name, tiny=given.tiny, python=given.peers) for name in CASES}
    return harness.run("kernel_matrix", cases, given)


if __name__ == "__main__":
    sys.exit(main())
