"""Random projections by TRAK's and dattri's projectors for the CPU, and the rows of both sides.

python -m experiments.benchmarks.peers.projectors JOB SIZE [--tiny]
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.worker import serve


def rows(*, tiny: bool) -> np.ndarray:
    """Sixteen vectors of 2^18 numbers, cosines between 0 and 0.8, as a stack of matrices."""
    side = 32 if tiny else 512
    numbers = np.random.default_rng(0)
    common, own = (numbers.standard_normal((n, side, side), np.float32) for n in (1, 16))
    share = np.linspace(0, 0.9, 16, dtype=np.float32)[:, None, None]
    return share * common + np.sqrt(1 - share**2) * own


def errors(features: Any, gram: Any) -> dict[str, float]:
    """Root mean squares, over pairs of examples, of what projecting does to ``gram``.

    ``inner_product_error`` is in units of ``|g| |h|``, ``cosine_error`` that of the cosine; both
    leave out scale that all features share, which some projectors do not keep.
    """
    features, gram = np.asarray(features, np.float64), np.asarray(gram, np.float64)
    found = features @ features.T
    found *= np.trace(gram) / np.trace(found)

    def scaled(matrix: np.ndarray, by: np.ndarray) -> np.ndarray:
        norms = np.sqrt(np.diag(by))
        return matrix / norms[:, None] / norms[None]

    pairs = np.triu_indices(len(gram), 1)
    wrong = scaled(found - gram, gram)[pairs], (scaled(found, found) - scaled(gram, gram))[pairs]
    root = [float(f"{np.sqrt(np.mean(np.square(x))):.3g}") for x in wrong]
    return {"inner_product_error": root[0], "cosine_error": root[1]}


def build(job: str, size: int, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The call of one variant and what there is to say about it."""
    import importlib.metadata
    import platform

    import torch

    x = rows(tiny=tiny).reshape(16, -1)
    given = torch.tensor(x)
    package, kind = job.split()
    if package == "TRAK":
        from trak.projectors import BasicProjector, ProjectionType

        projector = BasicProjector(
            x.shape[1], size, 0, ProjectionType(kind), torch.device("cpu"), block_size=100
        )
        step = lambda: projector.project(given, model_id=0)
        distribution = "traker"
    else:
        from dattri.func.projection import random_project

        project = random_project(given, 16, size, 16, proj_type=kind, device="cpu")
        step = lambda: project(given)
        distribution = "dattri"
    features = step().numpy()
    return step, {
        **errors(features, x.astype(np.float64) @ x.T.astype(np.float64)),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in (distribution, "torch")},
        },
    }


if __name__ == "__main__":
    _, job, size, *rest = sys.argv
    serve(lambda: build(job, int(size), bool(rest)))
