"""Kernel density against scikit-learn, SciPy, KDEpy and PyKeOps.

Standard normal data, Scott's bandwidth. ``exact``: to a relative error of 1e-4, which float32 here
and scikit-learn's ``rtol`` both keep. ``1%``: whatever reaches a mean relative error of 0.01; the
smallest sample and grid that do are sought before the clock starts. ``grid``: values at all nodes.
Both sides run on one core and on two; on two, scikit-learn has two processes with half of the
queries each. Ratios are to the fastest tree, or to KDEpy, on as many cores. Every variant says how
far from float64 its first hundred values are.

    python -m experiments.benchmarks.kernel_density              # eight cases, 10 minutes
    python -m experiments.benchmarks.kernel_density --no-peers   # ours alone
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import compiled, harness
from experiments.benchmarks.harness import Variant
from experiments.benchmarks.peers import kernel_density_peers as peers
from experiments.benchmarks.worker import serve

PEERS = harness.ROOT / ".venv-peers" / "bin" / "python"
CORES = (1, 2)
JOBS = {
    "exact": ("exact",),
    "percent": ("all points", "sample", "interpolation"),
    "grid": ("grid",),
}
# Of the fastest tree to 1e-4; of KDEpy.
GOALS = {
    f"{job}, {cores}": goal for job, goal in (("exact", 1 / 20), ("grid", 1.5)) for cores in CORES
}


def build(name: str, job: str, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Compile one of ours; return the call and what there is to say about it."""
    import jax
    import jax.numpy as jnp

    from gradkin import kernels

    case = peers.case_of(name, tiny)
    points, queries = (jnp.asarray(x, jnp.float32) for x in peers.make(case))
    kernel, key = kernels.Gaussian(case.bandwidth), jax.random.key(0)
    packages = ("jax", "jaxlib")
    if case.kind == "grid":
        function = lambda x: kernels.grid_density(
            kernel, x, size=case.size, low=-peers.END, high=peers.END
        ).density()
        return compiled.build(function, (points,), "density at the nodes", packages)

    def logs(size: int) -> Callable[[Any, Any], Any]:
        if job in ("exact", "all points"):
            return lambda x, q: kernels.log_density(kernel, x, q)
        if job == "sample":
            return lambda x, q: kernels.sampled_density(key, kernel, x, q, size=size).log_density()
        return lambda x, q: jnp.log(kernels.grid_density(kernel, x, size=size).interpolate(q))

    if job == "interpolation" and case.d > 2:
        raise ImportError("a grid of so many dimensions does not fit")
    size, most = 32, (case.n if job == "sample" else 1024)
    while True:
        step, report = compiled.build(logs(size), (points, queries), "log-densities", packages)
        said = peers.report(case, step(), packages)
        if job in ("exact", "all points") or said["mean_relative_error"] <= 0.01 or tiny:
            break
        if 2 * size > most:
            raise ImportError(f"a mean relative error of 0.01 is not reached with {job} {size}")
        size *= 2
    report = {k: v for k, v in report.items() if k not in ("quantity", "value")} | said
    return step, report | ({"size": size} if job in ("sample", "interpolation") else {})


def variants(name: str, *, tiny: bool, python: Path | None) -> list[Variant]:
    """Ours and the peers, on one core and on two."""
    suffix = ("--tiny",) if tiny else ()
    case, found = peers.case_of(name, tiny), []
    module = "experiments.benchmarks.peers.kernel_density_peers"
    theirs = ("KDEpy",) if case.kind == "grid" else peers.TREES
    for cores in CORES:
        if python is not None:
            others = () if case.kind == "grid" or cores == 1 else ("scipy", "PyKeOps")
            for job in (*theirs, *others):
                command = (str(python), "-m", module, name, job, str(cores), *suffix)
                baseline = tuple(f"{job}, {cores}" for job in theirs)
                found.append(Variant(f"{job}, {cores}", command, baseline, f"{job}: make peers"))
        for job in JOBS[case.kind]:
            command = (sys.executable, "-m", __spec__.name, "--worker", name, job, str(cores))
            baseline = tuple(f"{job}, {cores}" for job in theirs)
            found.append(Variant(f"{job}, {cores}", (*command, *suffix), baseline))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["--worker"]:
        _, name, job, cores, *rest = given_arguments
        peers.keep_to(int(cores))
        serve(lambda: build(name, job, bool(rest)))
        return 0
    parser = harness.options(__doc__)
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python of the peers")
    parser.add_argument("--no-peers", action="store_true", help="measure this library only")
    given = parser.parse_args(given_arguments)
    python = None if given.no_peers else given.peers
    cases = {name: variants(name, tiny=given.tiny, python=python) for name in peers.CASES}
    return harness.run("kernel_density", cases, given, goals=GOALS)


if __name__ == "__main__":
    sys.exit(main())
