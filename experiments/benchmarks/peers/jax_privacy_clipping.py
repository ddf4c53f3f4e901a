"""Clipped gradients by jax_privacy: `vmap(grad)`, scaled and added, over the batch or microbatches.

python -m experiments.benchmarks.peers.jax_privacy_clipping CASE JOB [--tiny]
"""

import sys
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import compiled, models
from experiments.benchmarks.worker import serve

MICROBATCHES = {"default": None, "microbatch of 1": 1, "microbatch of 4": 4}


def build(case: models.Case, job: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Trace and compile a job; return its step and what there is to say about it."""
    import jax
    import jax.numpy as jnp
    from jax_privacy.clipping import clipped_grad

    size = jax.tree.leaves(case.batch)[0].shape[0]
    if job == "plain":
        fun = jax.grad(lambda p, b: jnp.mean(jax.vmap(case.loss, (None, 0))(p, b)))
    else:
        fun = clipped_grad(
            case.loss,
            l2_clip_norm=1.0,
            normalize_by=float(size),
            keep_batch_dim=False,
            microbatch_size=MICROBATCHES[job],
        )
    quantity = "mean" if job == "plain" else "clipped mean"
    packages = ("jax", "jaxlib", "jax-privacy")
    return compiled.build(fun, (case.params, case.batch), quantity, packages)


if __name__ == "__main__":
    _, name, job, *rest = sys.argv
    serve(lambda: build(models.tiny(name) if rest else models.CASES[name](), job))
