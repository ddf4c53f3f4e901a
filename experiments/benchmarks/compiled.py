"""A function compiled ahead of time as the step of a `worker`."""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def build(
    fun: Callable[..., Any], arguments: tuple[Any, ...], quantity: str, packages: Sequence[str]
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Trace and compile ``fun``.

    Args:
      fun: what to measure.
      arguments: its arguments.
      quantity: name of what it computes; every variant of the same name must agree.
      packages: whose versions to report.

    Returns:
      A step that blocks until the result is there; and a report: seconds of tracing and compiling,
      bytes that the compiler plans, the root of the sum of squares of the result.
    """
    # The compiler's own first-time costs belong to no variant.
    warm = jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.tanh(w @ x))), (None, 0))
    jax.jit(warm)(jnp.ones((2, 3)), jnp.ones((4, 3)))
    start = time.perf_counter()
    lowered = jax.jit(fun).lower(*arguments)
    traced = time.perf_counter()
    program = lowered.compile()
    done = time.perf_counter()

    def step() -> Any:
        return jax.block_until_ready(program(*arguments))

    squares = [np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(step())]
    memory: Any = program.memory_analysis()
    device = jax.devices()[0]
    return step, {
        "value": float(np.sqrt(np.sum(squares))),
        "quantity": quantity,
        "trace_seconds": round(traced - start, 3),
        "compile_seconds": round(done - traced, 3),
        "temporary_mb": round(memory.temp_size_in_bytes / 1e6, 3),
        "output_mb": round(memory.output_size_in_bytes / 1e6, 3),
        "device": f"{device.platform} {device.device_kind}",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }
