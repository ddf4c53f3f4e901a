"""Layers without time: multilayer perceptrons, adapters, gates, shared and structured weights."""

import jax
import jax.numpy as jnp

from tests.matrices.models.model import (
    Model,
    cross_entropy,
    integers,
    normal,
    times,
    weight,
)


def mlp(batch: int = 5) -> Model:
    def loss(params, example):
        x, label = example
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return cross_entropy(x @ params[-1]["kernel"] + params[-1]["bias"], label)

    sizes = (12, 16, 16, 5)
    params = [
        {"kernel": weight(i, m, n), "bias": normal(i, n)}
        for i, (m, n) in enumerate(zip(sizes, sizes[1:], strict=False))
    ]
    return Model(loss, (params, (normal(9, batch, 12), integers(9, 5, batch))))


def adapter() -> Model:
    """Low-rank adaptation: the full weight is an argument of its own and frozen."""

    def loss(params, frozen, x, y):
        for (a, b), w in zip(params, frozen, strict=True):
            x = jax.nn.gelu(x @ w + (x @ a) @ b * 0.5)
        return jnp.sum((x - y) ** 2)

    params = [(weight(i, 16, 2), weight(i, 2, 16)) for i in range(2)]
    frozen = [weight(i, 16, 16) for i in range(2)]
    return Model(
        loss, (params, frozen, normal(3, 4, 3, 16), normal(4, 4, 3, 16)), (None, None, 0, 0)
    )


def gated_residual() -> Model:
    """Residual blocks of gated units with a root-mean-square scale."""

    def loss(params, x):
        for p in params["blocks"]:
            h = times(x / jnp.sqrt(jnp.mean(x**2) + 1e-6), p["scale"])
            x = x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]
        return x @ params["head"]

    blocks = [
        {"scale": 1 + normal(i, 12), "gate": weight(i, 12, 20), "up": weight(i + 9, 12, 20),
         "down": weight(i, 20, 12)}
        for i in range(2)
    ]  # fmt: skip
    return Model(loss, ({"blocks": blocks, "head": weight(5, 12)}, normal(7, 6, 12)))


def shared_weight() -> Model:
    """One matrix applied twice and once transposed, one autoencoder with tied weights."""

    def loss(params, x):
        h = jnp.tanh(x @ params["square"])
        h = jnp.tanh(h @ params["square"])
        h = jnp.tanh(params["square"] @ h)
        code = jnp.tanh(h @ params["tied"])
        return jnp.sum((params["tied"] @ code - x) ** 2)

    params = {"square": weight(0, 12, 12), "tied": weight(1, 12, 10)}
    return Model(loss, (params, normal(2, 5, 12)))


def shared_input() -> Model:
    """An operand that is the same for all examples: the loss sees examples in the cotangent."""

    def loss(params, anchors, y):
        h = jnp.tanh(anchors @ params["w"])
        return jnp.sum((h - y) ** 2)

    return Model(
        loss, ({"w": weight(0, 9, 8)}, normal(1, 3, 9), normal(2, 5, 3, 8)), (None, None, 0)
    )


def penalized() -> Model:
    """A penalty: a part of every gradient is the same for all examples."""

    def loss(params, x):
        fit = jnp.sum(jnp.tanh(x @ params["w"] + params["b"]) ** 2)
        return fit + 0.1 * jnp.sum(params["w"] ** 2) + 0.1 * jnp.sum(jnp.abs(params["b"]))

    return Model(loss, ({"w": weight(0, 9, 7), "b": normal(0, 7)}, normal(1, 4, 9)))


def bilinear() -> Model:
    """Tensors of three and four axes: bilinear forms, chained and repeated contractions."""

    def loss(params, example):
        x, y = example
        h = jnp.einsum("i,ijk,j->k", x, params["form"], y)
        z = jnp.einsum("k,kabc,a->bc", h, params["four"], x)
        return jnp.sum(jnp.tanh(z)) + jnp.einsum("i,ij,j->", x, params["matrix"], y)

    params = {
        "form": weight(0, 5, 6, 7),
        "four": weight(1, 7, 5, 3, 4),
        "matrix": weight(2, 5, 6),
    }
    return Model(loss, (params, (normal(3, 4, 5), normal(4, 4, 6))))


def reshaped() -> Model:
    """Parameters stored in another shape than they are used in."""

    def loss(params, x):
        h = jnp.tanh(x @ params["split"].reshape(12, 10))
        h = jnp.tanh(h.reshape(2, 5) @ params["merged"].reshape(2, 5, 8)[0])
        h = jnp.tanh(jnp.einsum("ab,bca->c", h, params["turned"].transpose(2, 0, 1)))
        return jnp.sum(h @ params["unit"].squeeze(1)) + jnp.sum(params["empty"])

    params = {
        "split": weight(0, 3, 4, 10),
        "merged": weight(1, 10, 8),
        "turned": weight(2, 6, 2, 8),
        "unit": weight(3, 6, 1, 7),
        "empty": normal(4, 0, 3),
    }
    return Model(loss, (params, normal(5, 4, 12)))


def unused_and_scalar() -> Model:
    """A parameter that is not used, a single number, a vector times an example."""

    def loss(params, x):
        return params["gain"] * jnp.sum(jnp.tanh(x * params["vector"])) + params["offset"]

    params = {
        "gain": jnp.float32(1.5),
        "offset": jnp.float32(0.5),
        "unused": normal(1, 4, 3),
        "vector": normal(0, 6),
    }
    return Model(loss, (params, normal(2, 5, 6)))


def two_arguments() -> Model:
    """Two differentiated arguments, an axis that is not the first, one that is not mapped."""

    def loss(encoder, x, decoder, scale):
        return scale * jnp.sum((jnp.tanh(x["x"] @ encoder) @ decoder - x["y"]) ** 2)

    args = (weight(0, 9, 7), {"x": normal(1, 9, 4), "y": normal(2, 4, 8)}, weight(3, 7, 8), 0.5)
    return Model(loss, args, (None, {"x": 1, "y": 0}, None, None), (0, 2))


def one_example() -> Model:
    """A batch of one."""

    def loss(params, x):
        return jnp.sum(jnp.tanh(x @ params["w"] + params["b"]))

    return Model(loss, ({"w": weight(0, 8, 9), "b": normal(1, 9)}, normal(2, 1, 8)))


def square_sizes() -> Model:
    """Batch, time, inputs and outputs of one size: nothing may be told apart by its size."""

    def loss(params, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ params["a"]).T @ params["b"]) ** 2)

    return Model(loss, ({"a": weight(0, 4, 4), "b": weight(1, 4, 4)}, normal(2, 4, 4, 4)))


def scaled_weights() -> Model:
    """Weights times a traced number, a mask, a norm: weight and spectral normalization."""

    def loss(params, example):
        x, temperature = example
        x = jnp.tanh(x @ (params["traced"] * temperature))
        x = jnp.tanh(x @ (params["learned"] * params["gain"]))
        x = jnp.tanh(x @ jnp.where(jnp.tri(10, 10, dtype=bool), params["masked"], 0.0))
        x = jnp.tanh(x @ (params["triangle"] * jnp.tri(10, 10)))
        x = jnp.tanh(x @ times(params["columns"], params["diagonal"]))
        v = params["direction"]
        x = jnp.tanh(x @ (v / jnp.linalg.norm(v, axis=0, keepdims=True).repeat(10, 0)))
        return jnp.sum(x)

    names = ("traced", "learned", "masked", "triangle", "columns", "direction")
    params = {name: weight(i, 10, 10) for i, name in enumerate(names)}
    params |= {"gain": jnp.float32(0.7), "diagonal": normal(8, 10)}
    return Model(loss, (params, (normal(6, 4, 10), jnp.abs(normal(7, 4)))))


def dropout() -> Model:
    """A key per example is part of the batch."""

    def loss(params, example):
        x, key = example
        h = jnp.tanh(x @ params["w"])
        kept = jax.random.bernoulli(key, 0.5, h.shape)
        return jnp.sum(jnp.where(kept, h / 0.5, 0.0) @ params["v"])

    keys = jax.random.split(jax.random.key(0), 4)
    return Model(loss, ({"w": weight(0, 8, 12), "v": weight(1, 12, 3)}, (normal(2, 4, 8), keys)))


def several_rows_per_example() -> Model:
    """An example that is a small set; another axis is mapped inside the loss."""

    def loss(params, x):
        def point(row):
            return jnp.sum(jnp.tanh(row @ params["w"]) @ params["v"])

        return jnp.mean(jax.vmap(point)(x)) + jnp.sum(jax.lax.map(point, x))

    return Model(loss, ({"w": weight(0, 12, 12), "v": weight(1, 12, 12)}, normal(2, 4, 2, 12)))


def physics_informed() -> Model:
    """A loss that differentiates the network with respect to its input."""

    def network(params, x):
        return jnp.vdot(params["out"], jnp.tanh(x @ params["in"] + params["bias"]))

    def loss(params, x):
        gradient = jax.grad(network, argnums=1)(params, x)
        _, along = jax.jvp(lambda z: network(params, z), (x,), (jnp.ones_like(x),))
        return (jnp.sum(gradient**2) - 1) ** 2 + along + network(params, x)

    params = {"in": weight(0, 6, 12), "bias": normal(1, 12), "out": weight(2, 12)}
    return Model(loss, (params, normal(3, 4, 6)))


MODELS = {
    f.__name__: f
    for f in (
        mlp, adapter, gated_residual, shared_weight, shared_input, penalized, bilinear, reshaped,
        unused_and_scalar, two_arguments, one_example, square_sizes, scaled_weights, dropout,
        several_rows_per_example, physics_informed,
    )
}  # fmt: skip
