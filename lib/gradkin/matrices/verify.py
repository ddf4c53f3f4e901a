"""Compare a few recorded rows with `jax.grad`: a wrong factor would be a silent error."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin.matrices import recording
from gradkin.matrices.recorded import PerExampleGrads


def compare_rows(spec: recording.Transformation, args: tuple[Any, ...], G: PerExampleGrads) -> None:
    """Raise where the first, middle or last row differs from `jax.grad`.

    Works inside `jit`, where the comparison runs with the program and a difference stops it.

    Args:
      spec: what was differentiated.
      args: its batched arguments.
      G: the recorded matrix, without row weights.

    Raises:
      ValueError: (from the running program under `jit`) a row differs by more than 1e-3 of its
        norm; the message has the difference.
    """
    rows = np.unique([0, G.num_examples // 2, G.num_examples - 1])
    grads = jax.grad(spec.fun, argnums=spec.argnums, has_aux=spec.has_aux)
    axes = recording.mapped_axes(spec)
    worst = jnp.zeros(())
    for row in rows:
        one = tuple(
            recording.map_axes(
                lambda a, x, row=row: x if a is None else jnp.take(x, row, axis=a), axis, arg
            )
            for axis, arg in zip(axes, args, strict=True)
        )
        expected = grads(*one)
        expected = expected[0] if spec.has_aux else expected
        found = G[int(row)]
        difference, size = (
            sum(jnp.sum(jnp.square(jnp.abs(x)).astype(jnp.float32)) for x in jax.tree.leaves(tree))
            for tree in (jax.tree.map(jnp.subtract, found, expected), expected)
        )
        ratio = jnp.sqrt(difference / jnp.maximum(size, jnp.float32(1e-30)))
        # Both NaN is agreement: the loss itself is not finite there.
        ratio = jnp.where(jnp.isnan(size), jnp.zeros_like(ratio), ratio)
        worst = jnp.maximum(worst, ratio)
    jax.debug.callback(_raise_if_different, worst)


def _raise_if_different(worst: Any) -> None:
    if not float(worst) <= 1e-3:
        raise ValueError(
            f"Expected recorded rows to equal jax.grad, got a relative difference of {worst:.1e}. "
            "Please report this; route='dense' avoids the factors."
        )
