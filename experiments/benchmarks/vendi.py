"""Vendi scores against the reference package ``vendi-score`` (NumPy).

``features``: the score of the cosine kernel of 2000 points with 64 features. Ratios are to the
package's ``score_X``, which writes the kernel matrix out; its ``score_dual`` is the best it has.
``a million``: 10^6 points, where only the second moment is left; in blocks, and from batches that
are made, used and thrown away, as a stream that fits no memory would be. ``RBF``: 2000 points, all
eigenvalues against estimates that say how far off they may be.

    python -m experiments.benchmarks.vendi            # three cases, 3 minutes; peers: make peers
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Variant
from experiments.benchmarks.peers.vendi_package import CASES, points
from experiments.benchmarks.worker import serve

PEERS = harness.ROOT / ".venv-peers" / "bin" / "python"
# What each case compares with, and the variants on both sides.
BASELINES = {
    "features": "vendi-score score_X",
    "a million": "vendi-score score_dual",
    "RBF": "vendi-score score_K",
}
THEIRS = {
    "features": ("score_X", "score_dual"),
    "a million": ("score_dual",),
    "RBF": ("score_K",),
}
OURS = {
    "features": ("features", "features, with gradient", "kernel matrix"),
    "a million": ("features in blocks", "batches made on the way"),
    "RBF": ("kernel matrix", "Nystrom, 256 landmarks", "SLQ, 8 x 24 products"),
}
GOALS = {"features": 1e-3}


def build(name: str, job: str, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Compile one of our variants; return its step and what there is to say about it."""
    import jax
    import jax.numpy as jnp

    import gradkin
    from experiments.benchmarks import compiled
    from gradkin import kernels

    x = jnp.asarray(points(name, tiny))
    n, d = x.shape
    kernel = kernels.Gaussian(1.0) if name == "RBF" else kernels.Cosine()
    key = jax.random.key(0)

    def streamed(key):
        """The score of as many points, of which no more than one batch exists at a time."""
        batches, size = 100, n // 100

        def add(i, total):
            batch = jax.random.normal(jax.random.fold_in(key, i), (size, d))
            return total.merge(kernels.second_moment(batch))

        empty = kernels.SecondMoment(jnp.zeros((d, d)), jnp.zeros(()))
        return jax.lax.fori_loop(0, batches, add, empty).vendi_score()

    jobs: dict[str, tuple[str, Callable[[Any], Any], Any]] = {
        "features": ("score", kernels.vendi_score_features, x),
        "features in blocks": ("score", kernels.vendi_score_features, x),
        "features, with gradient": (
            "score and gradient",
            jax.value_and_grad(kernels.vendi_score_features),
            x,
        ),
        "kernel matrix": (
            "score",
            lambda x: kernels.vendi_score(gradkin.kernel_matrix(kernel, x)),
            x,
        ),
        "batches made on the way": ("score of other points", streamed, key),
        "Nystrom, 256 landmarks": (
            "estimate by landmarks",
            lambda x: kernels.vendi_score_nystrom(key, kernel, x, rank=min(256, n)).score,
            x,
        ),
        "SLQ, 8 x 24 products": (
            "estimate by probes",
            lambda x: (
                kernels.vendi_score_slq(
                    key, gradkin.kernel_matrix(kernel, x), num_probes=8, num_matvecs=24
                ).score
            ),
            x,
        ),
    }
    quantity, fun, argument = jobs[job]
    return compiled.build(fun, (argument,), quantity, ("jax", "jaxlib"))


def variants(name: str, *, tiny: bool, python: Path) -> list[Variant]:
    """The package's and ours; the ratio is to the package."""
    suffix = ("--tiny",) if tiny else ()
    peer = (str(python), "-m", "experiments.benchmarks.peers.vendi_package", name)
    ours = (sys.executable, "-m", __spec__.name, "--worker", name)
    baseline = (BASELINES[name],)
    return [
        Variant(f"vendi-score {job}", (*peer, job, *suffix), baseline, "vendi-score: make peers")
        for job in THEIRS[name]
    ] + [Variant(job, (*ours, job, *suffix), baseline) for job in OURS[name]]


def main(arguments: Sequence[str] | None = None) -> int:
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["--worker"]:
        _, name, job, *rest = given_arguments
        serve(lambda: build(name, job, bool(rest)))
        return 0
    parser = harness.options(__doc__)
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python of the peer")
    given = parser.parse_args(given_arguments)
    cases = {name: variants(name, tiny=given.tiny, python=given.peers) for name in CASES}
    return harness.run("vendi", cases, given, goals=GOALS)


if __name__ == "__main__":
    sys.exit(main())
