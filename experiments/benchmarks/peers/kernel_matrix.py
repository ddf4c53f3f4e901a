"""Sums over a Gaussian kernel matrix by scikit-learn, chunk by chunk, and by PyKeOps.

python -m experiments.benchmarks.peers.kernel_matrix JOB POINTS LIBRARY
"""

import platform
import sys
import time
from collections.abc import Callable
from typing import Any

from experiments.benchmarks.worker import serve

FEATURES = 32
BANDWIDTH = FEATURES**0.5


def points(size: int) -> tuple[Any, Any]:
    """The data of all sides: normal points and a normal vector, float32."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, FEATURES)).astype(np.float32)
    return x, rng.normal(size=size).astype(np.float32)


def scikit_learn(job: str, size: int) -> tuple[Callable[[], Any], str]:
    """Chunks of squared distances, as large as its default working memory."""
    import numpy as np
    import sklearn
    from sklearn.metrics import pairwise_distances_chunked

    x, v = points(size)

    def reduce(squares: Any, start: int) -> Any:
        squares *= -1 / (2 * BANDWIDTH**2)
        entries = np.exp(squares, out=squares)
        return entries @ v if job == "product" else entries.sum(axis=1)

    def step() -> Any:
        chunks = pairwise_distances_chunked(x, metric="sqeuclidean", reduce_func=reduce)
        return np.concatenate(list(chunks))

    return step, sklearn.__version__


def pykeops(job: str, size: int) -> tuple[Callable[[], Any], str]:
    """A symbolic tensor of squared distances."""
    import pykeops
    import torch
    from pykeops.torch import LazyTensor

    x, v = map(torch.from_numpy, points(size))
    x.requires_grad_(job == "gradient")

    def logs() -> Any:
        rows, columns = LazyTensor(x[:, None, :]), LazyTensor(x[None, :, :])
        return -((rows - columns) ** 2).sum(-1) / (2 * BANDWIDTH**2)

    def gradient() -> Any:
        total = v @ (logs().exp() @ v[:, None])[:, 0]
        return torch.autograd.grad(total, x)[0]

    steps = {
        "product": lambda: (logs().exp() @ v[:, None])[:, 0],
        "sum": lambda: logs().exp().sum(1)[:, 0],
        "logsumexp": lambda: logs().logsumexp(1)[:, 0],
        "gradient": gradient,
    }
    return steps[job], pykeops.__version__


def build(job: str, size: int, library: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Compile by a first call; return the step and what there is to say about it."""
    import numpy as np

    start = time.perf_counter()
    step, version = {"scikit-learn": scikit_learn, "PyKeOps": pykeops}[library](job, size)
    value = np.asarray(step(), np.float64)
    return step, {
        "value": float(np.sqrt(np.sum(value**2))),
        "quantity": job,
        "compile_seconds": round(time.perf_counter() - start, 3),
        "versions": {"python": platform.python_version(), library: version},
    }


if __name__ == "__main__":
    _, job, size, library = sys.argv
    serve(lambda: build(job, int(size), library))
