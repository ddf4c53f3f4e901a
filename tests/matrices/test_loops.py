"""Random loops over time and layers: weights shared, stacked, transposed, cut and looked up."""

import jax
import jax.numpy as jnp
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.matrices import oracle
from tests.matrices.models.model import Model, normal, weight

OPERATIONS = (
    "dense", "transposed", "layers", "layers_transposed", "again", "lookup", "bias", "twice", "cut",
    "scaled", "gate", "positions", "stacked", "nested",
)  # fmt: skip
SIZE = 4


def params():
    return {
        "w": weight(0, SIZE, SIZE),
        "layers": normal(1, 2, SIZE, SIZE, scale=0.5),
        "table": normal(2, 3, SIZE),
        "bias": normal(3, SIZE),
        "scale": jnp.float32(0.8),
        "fused": weight(4, SIZE, 2 * SIZE),
    }


def operate(name, p, h, value):
    """One operation on the state ``[SIZE]`` given the input of this step."""
    match name:
        case "dense":
            return jnp.tanh(h @ p["w"] + value)
        case "transposed":
            return jnp.tanh(p["w"] @ h)
        case "layers":
            return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p["layers"])[0]
        case "layers_transposed":
            return jax.lax.scan(
                lambda h, w: (jnp.tanh(w @ h + value), None), h, p["layers"], reverse=True
            )[0]
        case "again":
            return jax.lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h @ p["w"]), h)
        case "lookup":
            return h + p["table"][(jnp.abs(value[0]) * 9).astype(jnp.int32) % 3]
        case "bias":
            return h + p["bias"]
        case "twice":
            return jnp.tanh(h @ (p["w"] @ p["w"].T))
        case "cut":
            return jnp.tanh(jnp.concatenate([h[:2] @ p["w"][:2, 2:], h[2:] @ p["w"][2:, :2]]))
        case "scaled":
            return jnp.tanh(h @ (p["w"] * p["scale"]))
        case "gate":
            a, b = jnp.split(h @ p["fused"], 2)
            return jax.nn.sigmoid(a) * jnp.tanh(b)
        case "positions":
            x = jnp.stack([h, value])
            return jnp.tanh(x @ p["w"]).sum(0)
        case "stacked":
            return h + jnp.tanh(jnp.einsum("i,lij->j", h, p["layers"]))
        case "nested":

            def inner(h, w):
                h, y = jax.lax.scan(lambda h, _: (jnp.tanh(h @ w + h @ p["w"]), h), h, length=2)
                return h + y.sum(0), None

            return jax.lax.scan(inner, h, p["layers"])[0]
    raise AssertionError(name)


@st.composite
def loops(draw):
    operations = draw(st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=3))
    options = {"reverse": draw(st.booleans()), "unroll": draw(st.sampled_from([1, 2]))}
    return operations, options, draw(st.booleans()), draw(st.booleans()), draw(st.booleans())


def check(operations, options, remat, stacked, outside):
    """Compare every core verb of a loop with ``vmap(grad)``."""

    def loss(p, x):
        def step(h, value):
            for name in operations:
                h = operate(name, p, h, value)
            return h, h @ p["w"] if stacked else None

        step = jax.checkpoint(step) if remat else step
        start = jnp.tanh(p["bias"] @ p["w"]) if outside else jnp.zeros(SIZE, jnp.float32)
        h, y = jax.lax.scan(step, start, x, **options)
        total = jnp.sum(h**2) + (jnp.sum(jnp.sin(y)) if y is not None else 0.0)
        return total + (jnp.sum(jnp.sin(h @ p["layers"][1])) if outside else 0.0)

    model = Model(loss, (params(), normal(5, 2, 3, SIZE)))
    oracle.assert_exact(model, route="factors", tolerance=3e-5)


@settings(max_examples=6)
@given(loops())
def test_random_loops(loop):
    check(*loop)
