"""Kernel density by scikit-learn, SciPy, KDEpy and PyKeOps, and the data of both sides.

python -m experiments.benchmarks.peers.kernel_density_peers CASE JOB CORES [--tiny]
"""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.benchmarks.worker import serve

TREES = ("kd_tree", "ball_tree")
# Ends of the grid, beyond every point of a standard normal sample.
END = 7.0


class Case(NamedTuple):
    """Points and queries are standard normal; the bandwidth is Scott's.

    Attributes:
      kind: "exact" to a relative error of 1e-4, "percent" to 1e-2, or "grid".
      n: points.
      d: dimensions.
      size: queries; nodes in each dimension of a grid.
    """

    kind: str
    n: int
    d: int
    size: int

    @property
    def bandwidth(self) -> float:
        return self.n ** (-1 / (self.d + 4))


CASES = {
    "exact, n 50000, d 32": Case("exact", 50_000, 32, 2000),
    "1%, n 10000, d 2": Case("percent", 10_000, 2, 2000),
    "1%, n 100000, d 2": Case("percent", 100_000, 2, 2000),
    "1%, n 100000, d 8": Case("percent", 100_000, 8, 2000),
    "1%, n 100000, d 32": Case("percent", 100_000, 32, 2000),
    "grid, n 100000, d 1": Case("grid", 100_000, 1, 1024),
    "grid, n 1000000, d 1": Case("grid", 1_000_000, 1, 1024),
    "grid, n 100000, d 2": Case("grid", 100_000, 2, 256),
}


def case_of(name: str, tiny: bool) -> Case:
    """The case, or a toy of it."""
    case = CASES[name]
    return case._replace(n=300, size=20) if tiny else case


def make(case: Case) -> tuple[Any, Any]:
    """Points ``[n, d]`` and queries ``[m, d]`` (nodes of a grid), float64."""
    import numpy as np

    rng = np.random.default_rng(0)
    points = np.clip(rng.normal(size=(case.n, case.d)), -END + 1, END - 1)
    if case.kind != "grid":
        return points, rng.normal(size=(case.size, case.d))
    axes = np.meshgrid(*[np.linspace(-END, END, case.size)] * case.d, indexing="ij")
    return points, np.stack([axis.ravel() for axis in axes], axis=1)


def reference(case: Case, points: Any, queries: Any) -> Any:
    """Log-densities at the first hundred queries by their definition, in float64."""
    import numpy as np
    from scipy.special import logsumexp

    h = case.bandwidth
    logs = [logsumexp(-np.sum(np.square(points - q), axis=1) / (2 * h**2)) for q in queries[:100]]
    return np.array(logs) - np.log(case.n) - case.d / 2 * np.log(2 * np.pi * h**2)


def report(case: Case, logs: Any, packages: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """What both sides say of their result: log-densities at the queries."""
    import numpy as np

    points, queries = make(case)
    logs = np.asarray(logs, np.float64)
    off = np.abs(np.expm1(logs[:100] - reference(case, points, queries)))
    agreement = {"quantity": "log-densities", "value": float(np.sqrt(np.sum(np.square(logs))))}
    return {
        **(agreement if case.kind == "exact" else {}),
        "mean_relative_error": float(f"{np.mean(off):.2g}"),
        "greatest_relative_error": float(f"{np.max(off):.2g}"),
        **more,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def trees(case: Case, tree: str, cores: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    """`KernelDensity.score_samples`; on several cores a process has its share of the queries."""
    import multiprocessing

    import numpy as np
    from sklearn.neighbors import KernelDensity

    points, queries = make(case)
    tolerance: Any = 1e-4 if case.kind == "exact" else 1e-2
    model = KernelDensity(bandwidth=case.bandwidth, algorithm=tree, rtol=tolerance).fit(points)
    if cores == 1:
        score = lambda: model.score_samples(queries)
    else:
        parts = np.array_split(queries, cores)
        pool = multiprocessing.get_context("fork").Pool(cores)
        score = lambda: np.concatenate(pool.map(model.score_samples, parts))
    found = report(case, score(), ("scikit-learn",))
    # The trees do not keep to rtol for points far from all others: not the same numbers.
    return score, {k: v for k, v in found.items() if k not in ("quantity", "value")}


def scipy_kde(case: Case) -> tuple[Callable[[], Any], dict[str, Any]]:
    """`gaussian_kde`, whose kernel has the covariance of the data, here nearly the identity."""
    from scipy.stats import gaussian_kde

    points, queries = make(case)
    model = gaussian_kde(points.T, bw_method="scott")
    score = lambda: model.logpdf(queries.T)
    found = report(case, score(), ("scipy",))
    return score, {k: v for k, v in found.items() if k not in ("quantity", "value")}


def keops(case: Case) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A symbolic matrix, in float32."""
    import math

    import torch
    from pykeops.torch import LazyTensor

    points, queries = (torch.tensor(x, dtype=torch.float32) for x in make(case))
    h = case.bandwidth
    constant = math.log(case.n) + case.d / 2 * math.log(2 * math.pi * h**2)
    x, y = LazyTensor(queries[:, None, :]), LazyTensor(points[None])

    def score() -> Any:
        return (-((x - y) ** 2).sum(-1) / (2 * h**2)).logsumexp(1)[:, 0] - constant

    return score, report(case, score().numpy(), ("pykeops", "torch"))


def kdepy(case: Case) -> tuple[Callable[[], Any], dict[str, Any]]:
    """`FFTKDE` at the nodes."""
    import numpy as np
    from KDEpy import FFTKDE

    points, nodes = make(case)
    data, grid = (points[:, 0], nodes[:, 0]) if case.d == 1 else (points, nodes)

    def score() -> Any:
        return FFTKDE(kernel="gaussian", bw=case.bandwidth).fit(data).evaluate(grid)

    return score, {
        "quantity": "density at the nodes",
        "value": float(np.sqrt(np.sum(np.square(score())))),
        "versions": {"KDEpy": importlib.metadata.version("KDEpy")},
    }


def build(name: str, job: str, cores: int, tiny: bool) -> tuple[Any, dict[str, Any]]:
    """The call of one peer, and what there is to say about it."""
    case = case_of(name, tiny)
    if job in TREES:
        return trees(case, job, cores)
    return {"scipy": scipy_kde, "PyKeOps": keops, "KDEpy": kdepy}[job](case)


def keep_to(cores: int) -> None:
    """Use no more than so many processors; to be called before libraries start their threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


if __name__ == "__main__":
    _, chosen, what, number, *rest = sys.argv
    keep_to(int(number))
    serve(lambda: build(chosen, what, int(number), bool(rest)))
