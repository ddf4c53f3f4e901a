"""Clipped gradients by jax_privacy: `vmap(grad)`, scaled and added, over the batch or microbatches.

python -m experiments.benchmarks.peers.jax_privacy CASE JOB [--tiny]
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import models
from experiments.benchmarks.worker import serve

MICROBATCHES = {"default": None, "microbatch of 1": 1, "microbatch of 4": 4}


def build(case: models.Case, job: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Trace and compile a job; return its step and what there is to say about it."""
    import importlib.metadata

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax_privacy.clipping import clipped_grad

    size = jax.tree.leaves(case.batch)[0].shape[0]
    if job == "plain":
        fun = jax.grad(lambda p, b: jnp.mean(jax.vmap(case.loss, (None, 0))(p, b)))
        quantity = "mean"
    else:
        fun = clipped_grad(
            case.loss,
            l2_clip_norm=1.0,
            normalize_by=float(size),
            keep_batch_dim=False,
            microbatch_size=MICROBATCHES[job],
        )
        quantity = "clipped mean"
    start = time.perf_counter()
    lowered = jax.jit(fun).lower(case.params, case.batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()

    def step() -> Any:
        return jax.block_until_ready(compiled(case.params, case.batch))

    squares = [np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(step())]
    memory: Any = compiled.memory_analysis()
    return step, {
        "value": float(np.sqrt(np.sum(squares))),
        "quantity": quantity,
        "trace_seconds": round(traced - start, 4),
        "compile_seconds": round(done - traced, 4),
        "temporary_mb": round(memory.temp_size_in_bytes / 1e6, 4),
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "jax-privacy")
        },
    }


if __name__ == "__main__":
    _, name, job, *rest = sys.argv
    serve(lambda: build(models.tiny(name) if rest else models.CASES[name](), job))
