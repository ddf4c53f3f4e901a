"""Random chains of rearrangements between a parameter and its uses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.matrices import oracle
from tests.matrices.models.model import Model, normal

STEPS = (
    "transpose", "reshape", "slice", "stride", "reverse", "roll", "pad", "double", "stack", "take",
    "scale", "mask", "columns", "negate", "repeat", "sum", "cast", "half", "scan", "index",
)  # fmt: skip


def apply(step: str, w: Any, other: Any, x: Any) -> Any:
    """One step on an array of any rank >= 1; ``other`` is a second parameter, ``x`` data."""
    n = w.shape[0]
    match step:
        case "transpose":
            return jnp.moveaxis(w, 0, -1)
        case "reshape":
            return w.reshape(-1, 2) if w.size % 2 == 0 else w.reshape(-1)
        case "slice":
            return w[1:] if n > 1 else w
        case "stride":
            return w[::2]
        case "reverse":
            return w[::-1]
        case "roll":
            return jnp.roll(w, 1, axis=-1)
        case "pad":
            return jnp.pad(w, [(1, 0)] + [(0, 0)] * (w.ndim - 1))
        case "double":
            return jnp.concatenate([w, w * 2], axis=0)
        case "stack":
            return jnp.stack([w, jnp.tanh(w)], axis=-1)
        case "take":
            return jnp.take(w, jnp.asarray([0, n - 1, 0]), axis=0)
        case "scale":
            return w * other
        case "mask":
            keep = np.arange(w.size).reshape(w.shape) % 3 > 0
            return jnp.where(keep, w, 0.0)
        case "columns":
            return w * jnp.broadcast_to(jnp.cos(jnp.arange(w.shape[-1], dtype=w.dtype)), w.shape)
        case "negate":
            return 0.5 - w
        case "repeat":
            return jnp.repeat(w, 2, axis=0)
        case "sum":
            return jnp.sum(w, axis=-1) if w.ndim > 1 else w
        case "cast":
            return w.astype(jnp.complex64).real
        case "half":
            return w / (1 + jnp.abs(x[0]))
        case "scan":
            return jax.lax.scan(lambda c, row: (c, row + 0.1 * jnp.tanh(row)), 0.0, w)[1]
        case "index":
            return jnp.stack([w[i] for i in range(n)]) if w.ndim > 1 else w
    raise AssertionError(step)


def use(kind: str, w: Any, x: Any) -> Any:
    """A number that depends on the array and the example."""
    flat = w.reshape(w.shape[0], -1)
    rows = jnp.resize(x, (2, flat.shape[0]))
    columns = jnp.resize(x[::-1], (3, flat.shape[1]))
    match kind:
        case "left":
            return jnp.sum(jnp.tanh(rows @ flat))
        case "right":
            return jnp.sum(jnp.tanh(flat @ columns.T) ** 2)
        case "both":
            return jnp.sum(jnp.sin(rows @ flat @ columns.T))
        case "lookup":
            ids = (jnp.abs(x[:3]) * 7).astype(jnp.int32) % flat.shape[0]
            return jnp.sum(jnp.sin(flat[ids]) * jnp.resize(x, (3, flat.shape[1])))
        case "elementwise":
            return jnp.sum(jnp.tanh(flat * jnp.resize(x, flat.shape)))
    raise AssertionError(kind)


@st.composite
def programs(draw):
    kinds = st.sampled_from(["left", "right", "both", "lookup", "elementwise"])
    chains = st.tuples(st.lists(st.sampled_from(STEPS), max_size=3), kinds)
    shape = draw(st.sampled_from([(4, 6), (6, 4), (2, 3, 4), (5,), (3, 1, 4), (1, 6)]))
    return shape, draw(st.lists(chains, min_size=1, max_size=3))


def check(shape, uses):
    """Compare every core verb of a program with ``vmap(grad)``."""

    def loss(params, x):
        total = 0.0
        for steps, kind in uses:
            w = params["w"]
            for step in steps:
                w = apply(step, w, params["other"], x)
            total = total + use(kind, w, x)
        return total

    params = {"w": normal(0, *shape), "other": jnp.float32(0.7)}
    oracle.assert_exact(Model(loss, (params, normal(1, 3, 5))), route="factors", tolerance=3e-5)


@settings(max_examples=12)
@given(programs())
def test_random_programs(program):
    check(*program)
