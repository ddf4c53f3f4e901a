"""Vendi scores by the reference package, and the points of both sides.

python -m experiments.benchmarks.peers.vendi_package CASE JOB [--tiny]
"""

import sys
from collections.abc import Callable
from typing import Any

from experiments.benchmarks.worker import serve

# Points and features.
CASES = {"features": (2000, 64), "a million": (1_000_000, 64), "RBF": (2000, 4)}


def points(name: str, tiny: bool) -> Any:
    """Normal points as NumPy float32, the same everywhere."""
    import numpy as np

    n, d = CASES[name]
    n = 200 if tiny else n
    return np.random.default_rng(0).standard_normal((n, d), np.float32)


def build(name: str, job: str, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The call of one variant and what there is to say about it."""
    import importlib.metadata
    import platform

    import numpy as np
    from vendi_score import vendi

    x = points(name, tiny)

    def score_of_kernel() -> float:
        squares = np.sum(x**2, axis=1)
        distances = squares[:, None] + squares[None] - 2 * x @ x.T
        return float(vendi.score_K(np.exp(-np.maximum(distances, 0) / 2)))

    call = {
        "score_X": lambda: float(vendi.score_X(x)),
        "score_dual": lambda: float(vendi.score_dual(x)),
        "score_K": score_of_kernel,
    }[job]
    packages = ("vendi-score", "numpy", "scipy")
    return call, {
        "value": call(),
        "quantity": "score",
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }


if __name__ == "__main__":
    _, name, job, *rest = sys.argv
    serve(lambda: build(name, job, bool(rest)))
