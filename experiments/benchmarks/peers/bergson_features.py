"""Features of a transformer's gradients by bergson: projections made in backward hooks.

Gradients of linear layers; bergson leaves embeddings and norms out. ``features`` multiplies each
layer's gradient by random signs from both sides, to ``sqrt(SIZE)`` rows and columns, and joins what
comes out: a row has ``SIZE`` numbers for each of 17 layers, more than a sketch of ours of that
size, so that only times are comparable. The loss of an example is the mean over its tokens.

    python -m experiments.benchmarks.peers.bergson_features JOB SIZE [--tiny]
"""

import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.peers.opacus_clipping import model_and_batch
from experiments.benchmarks.peers.projectors import errors
from experiments.benchmarks.worker import serve


def build(job: str, size: int, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The call of one variant and what there is to say about it."""
    import importlib.metadata

    import bergson  # noqa: F401  (a missing bergson is reported before anything is built)
    import torch
    from torch import nn

    warnings.simplefilter("ignore")
    model, x, y = model_and_batch("transformer-64", tiny)
    report = {
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("bergson", "torch")},
    }

    def loss() -> Any:
        losses = nn.functional.cross_entropy(model(x), y, reduction="none")
        # A sum over examples: row i of what is collected is the gradient of loss i.
        return losses.mean(1).sum()

    def plain() -> None:
        model.zero_grad()
        loss().backward()

    if job == "plain gradient":
        return plain, report
    collect = collector(model, loss, math.isqrt(size))
    whole = collector(model, loss, None)().numpy().astype(np.float64)
    return collect, report | errors(collect().numpy(), whole @ whole.T)


def collector(model: Any, loss: Callable[[], Any], side: int | None) -> Callable[[], Any]:
    """A call that gives one row per example: ``side**2`` numbers a layer, or all of them."""
    import torch
    from bergson.collector.gradient_collectors import StreamingGradientCollector
    from bergson.gradients import GradientProcessor

    # Its matrices are made in the first call and kept.
    processor = GradientProcessor(projection_dim=side)

    def collect() -> Any:
        model.zero_grad()
        found = StreamingGradientCollector(
            model=model, processor=processor, dtype=torch.float32, mod_grads={}
        )
        with found:
            loss().backward()
        return torch.cat([x.flatten(1) for x in found.mod_grads.values()], dim=1)

    return collect


if __name__ == "__main__":
    _, job, size, *rest = sys.argv
    serve(lambda: build(job, int(size), bool(rest)))
