"""The models that the benchmarks measure, in plain functions, so that a peer can use them too.

Each `Case` has one loss of one example and the same loss of a whole batch, written directly: the
code of a person who needs no per-example gradients.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Case(NamedTuple):
    """A loss, its parameters and a batch; ``batch_loss`` is the mean over the batch."""

    loss: Callable[[Any, Any], jax.Array]
    batch_loss: Callable[[Any, Any], jax.Array]
    params: Any
    batch: Any


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Minus the log-probability of each label."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
    return -chosen[..., 0]


def random(shape: tuple[int, ...], fan_in: int, seed: int) -> jax.Array:
    """Gaussian weights of variance ``1 / fan_in``, the same under every version of JAX."""
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return jnp.asarray(values / np.float32(np.sqrt(fan_in)))


def integers(shape: tuple[int, ...], stop: int) -> jax.Array:
    """Labels or ids below ``stop``."""
    return jnp.asarray(np.random.default_rng(98).integers(stop, size=shape), jnp.int32)


def classified(shape: tuple[int, ...], classes: int) -> tuple[jax.Array, jax.Array]:
    """Gaussian inputs with labels."""
    return random(shape, 1, 99), integers(shape[:1], classes)


def both(predict: Callable[[Any, Any], jax.Array]) -> tuple[Any, Any]:
    """The two losses of a classifier that takes any leading axes."""

    def loss(params: Any, example: Any) -> jax.Array:
        return cross_entropy(predict(params, example[0]), example[1])

    def batch_loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(cross_entropy(predict(params, batch[0]), batch[1]))

    return loss, batch_loss


def perceptron_params(sizes: tuple[int, ...]) -> list[dict[str, jax.Array]]:
    """Weights of dense layers, biases zero."""
    return [
        {"kernel": random((m, n), m, i), "bias": jnp.zeros(n)}
        for i, (m, n) in enumerate(zip(sizes, sizes[1:], strict=False))
    ]


def perceptron(params: Any, x: jax.Array) -> jax.Array:
    """Dense layers with ReLU between them."""
    for layer in params[:-1]:
        x = jax.nn.relu(affine(layer, x))
    return affine(params[-1], x)


def mlp(*, batch: int, sizes: tuple[int, ...] = (784, 1024, 1024, 10)) -> Case:
    """A multilayer perceptron with biases."""
    params = perceptron_params(sizes)
    return Case(*both(perceptron), params, classified((batch, sizes[0]), sizes[-1]))


def affine(layer: Any, x: jax.Array) -> jax.Array:
    y = x @ layer["kernel"]
    return y + jnp.broadcast_to(layer["bias"], y.shape)


def transformer(
    *,
    batch: int,
    length: int,
    width: int = 256,
    layers: int = 4,
    heads: int = 4,
    vocabulary: int = 1000,
    tied: bool = True,
    remat: bool = False,
) -> Case:
    """A causal language model: RMS norms, layers stacked by `scan`, attention kernels of rank 4."""
    head_width = width // heads
    blocks = {
        "norm_1": jnp.ones((layers, width)),
        "qkv": random((layers, width, 3, heads, head_width), width, 1),
        "out": random((layers, heads, head_width, width), width, 2),
        "norm_2": jnp.ones((layers, width)),
        "up": random((layers, width, 4 * width), width, 3),
        "down": random((layers, 4 * width, width), 4 * width, 4),
    }
    params = {
        "embedding": random((vocabulary, width), width, 5),
        "positions": random((length, width), width, 6),
        "blocks": blocks,
        "norm": jnp.ones(width),
    }
    if not tied:
        params["head"] = random((width, vocabulary), width, 7)
    visible = np.tril(np.ones((length, length), bool))

    def block(h: jax.Array, w: Any) -> tuple[jax.Array, None]:
        q, k, v = jnp.moveaxis(
            jnp.einsum("...td,dchk->...tchk", rms(h, w["norm_1"]), w["qkv"]), -3, 0
        )
        scores = jnp.einsum("...thk,...shk->...hts", q, k) / np.float32(np.sqrt(head_width))
        scores = jnp.where(visible, scores, -1e9)
        mixed = jnp.einsum("...hts,...shk->...thk", jax.nn.softmax(scores), v)
        h = h + jnp.einsum("...thk,hkd->...td", mixed, w["out"])
        return h + jax.nn.gelu(rms(h, w["norm_2"]) @ w["up"]) @ w["down"], None

    def mean_over_tokens(params: Any, ids: jax.Array) -> jax.Array:
        h = params["embedding"][ids[..., :-1]] + params["positions"]
        h, _ = lax.scan(jax.checkpoint(block) if remat else block, h, params["blocks"])
        head = params["embedding"].T if tied else params["head"]
        return jnp.mean(cross_entropy(rms(h, params["norm"]) @ head, ids[..., 1:]))

    ids = integers((batch, length + 1), vocabulary)
    return Case(mean_over_tokens, mean_over_tokens, params, ids)


def rms(h: jax.Array, scale: jax.Array) -> jax.Array:
    return h * lax.rsqrt(jnp.mean(jnp.square(h), -1, keepdims=True) + 1e-6) * scale


def cnn(
    *, batch: int, size: int = 28, channels: tuple[int, int] = (32, 64), hidden: int = 128
) -> Case:
    """Two convolutions with average pooling and two dense layers."""
    first, second = channels
    flat = (size // 4) ** 2 * second
    params = {
        "conv_1": {"kernel": random((3, 3, 1, first), 9, 1), "bias": jnp.zeros(first)},
        "conv_2": {
            "kernel": random((3, 3, first, second), 9 * first, 2),
            "bias": jnp.zeros(second),
        },
        "dense_1": {"kernel": random((flat, hidden), flat, 3), "bias": jnp.zeros(hidden)},
        "dense_2": {"kernel": random((hidden, 10), hidden, 4), "bias": jnp.zeros(10)},
    }

    def convolved(layer: Any, x: jax.Array) -> jax.Array:
        y = lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y = jax.nn.relu(y + layer["bias"])
        window = (1, 2, 2, 1)
        return lax.reduce_window(y, 0.0, lax.add, window, window, "VALID") / 4

    def predict(params: Any, x: jax.Array) -> jax.Array:
        images = x if x.ndim == 4 else x[None]
        h = convolved(params["conv_2"], convolved(params["conv_1"], images))
        h = jnp.reshape(h, (h.shape[0], -1))
        logits = affine(params["dense_2"], jax.nn.relu(affine(params["dense_1"], h)))
        return logits if x.ndim == 4 else logits[0]

    return Case(*both(predict), params, classified((batch, size, size, 1), 10))


def resnet(
    *,
    batch: int,
    size: int = 224,
    width: int = 64,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    groups: int = 32,
    classes: int = 1000,
) -> Case:
    """ResNet-50's bottlenecks with group norm: batch norm has no per-example gradient."""
    seeds = iter(range(10_000))

    def conv_params(kernel: int, inputs: int, outputs: int) -> Any:
        fan_in = kernel * kernel * inputs
        shape = (kernel, kernel, inputs, outputs)
        norm = {"scale": jnp.ones(outputs), "bias": jnp.zeros(outputs)}
        return {"kernel": random(shape, fan_in, next(seeds)), **norm}

    stages, inputs = [], width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        stages.append([])
        for block in range(count):
            shapes = ((1, inputs, inner), (3, inner, inner), (1, inner, 4 * inner))
            layer = {f"conv_{i}": conv_params(*shape) for i, shape in enumerate(shapes)}
            if block == 0:
                layer["short"] = conv_params(1, inputs, 4 * inner)
            stages[-1].append(layer)
            inputs = 4 * inner
    head = {"kernel": random((inputs, classes), inputs, next(seeds)), "bias": jnp.zeros(classes)}
    params = {"stem": conv_params(7, 3, width), "stages": stages, "head": head}

    def convolved(layer: Any, x: jax.Array, stride: int = 1) -> jax.Array:
        y = lax.conv_general_dilated(
            x, layer["kernel"], (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        grouped = y.reshape(*y.shape[:3], groups, -1)
        mean = jnp.mean(grouped, (1, 2, 4), keepdims=True)
        spread = lax.rsqrt(jnp.var(grouped, (1, 2, 4), keepdims=True) + 1e-5)
        return ((grouped - mean) * spread).reshape(y.shape) * layer["scale"] + layer["bias"]

    def predict(params: Any, x: jax.Array) -> jax.Array:
        images = x if x.ndim == 4 else x[None]
        h = jax.nn.relu(convolved(params["stem"], images, 2))
        h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        for stage, layers in enumerate(params["stages"]):
            for block, layer in enumerate(layers):
                stride = 2 if stage > 0 and block == 0 else 1
                short = convolved(layer["short"], h, stride) if block == 0 else h
                y = jax.nn.relu(convolved(layer["conv_0"], h))
                y = jax.nn.relu(convolved(layer["conv_1"], y, stride))
                h = jax.nn.relu(short + convolved(layer["conv_2"], y))
        logits = affine(params["head"], jnp.mean(h, (1, 2)))
        return logits if x.ndim == 4 else logits[0]

    return Case(*both(predict), params, classified((batch, size, size, 3), classes))


def vit(
    *,
    batch: int,
    size: int = 32,
    patch: int = 4,
    width: int = 192,
    layers: int = 12,
    heads: int = 3,
    classes: int = 10,
) -> Case:
    """A vision transformer: layers in a list, layer norms, biases, mean of the tokens."""
    tokens, inputs, head_width = (size // patch) ** 2, 3 * patch**2, width // heads
    numbers = iter(range(1000))

    def dense(*shape: int, inputs: int) -> dict[str, jax.Array]:
        return {"kernel": random(shape, inputs, next(numbers)), "bias": jnp.zeros(shape[-1])}

    def norm() -> dict[str, jax.Array]:
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    params = {
        "patches": dense(inputs, width, inputs=inputs),
        "positions": random((tokens, width), width, next(numbers)),
        "blocks": [
            {
                "norm_1": norm(),
                "qkv": dense(width, 3 * width, inputs=width),
                "out": dense(width, width, inputs=width),
                "norm_2": norm(),
                "up": dense(width, 4 * width, inputs=width),
                "down": dense(4 * width, width, inputs=4 * width),
            }
            for _ in range(layers)
        ],
        "norm": norm(),
        "head": dense(width, classes, inputs=width),
    }

    def predict(params: Any, x: jax.Array) -> jax.Array:
        side = size // patch
        x = jnp.reshape(x, (*x.shape[:-3], side, patch, side, patch, 3))
        x = jnp.reshape(jnp.swapaxes(x, -4, -3), (*x.shape[:-5], tokens, inputs))
        h = affine(params["patches"], x) + params["positions"]
        for w in params["blocks"]:
            qkv = affine(w["qkv"], layer_norm(w["norm_1"], h))
            q, k, v = jnp.moveaxis(jnp.reshape(qkv, (*h.shape[:-1], 3, heads, head_width)), -3, 0)
            scores = jnp.einsum("...thk,...shk->...hts", q, k) / np.float32(np.sqrt(head_width))
            mixed = jnp.einsum("...hts,...shk->...thk", jax.nn.softmax(scores), v)
            h = h + affine(w["out"], jnp.reshape(mixed, h.shape))
            h = h + affine(w["down"], jax.nn.gelu(affine(w["up"], layer_norm(w["norm_2"], h))))
        return affine(params["head"], jnp.mean(layer_norm(params["norm"], h), -2))

    return Case(*both(predict), params, classified((batch, size, size, 3), classes))


def layer_norm(layer: Any, h: jax.Array) -> jax.Array:
    centered = h - jnp.mean(h, -1, keepdims=True)
    unit = centered * lax.rsqrt(jnp.mean(jnp.square(centered), -1, keepdims=True) + 1e-6)
    return unit * layer["scale"] + layer["bias"]


def lstm(*, batch: int, length: int = 50, inputs: int = 64, hidden: int = 256) -> Case:
    """One recurrent layer by `scan`, a classifier on its last state."""
    params = {
        "input": random((inputs, 4 * hidden), inputs, 1),
        "state": random((hidden, 4 * hidden), hidden, 2),
        "bias": jnp.zeros(4 * hidden),
        "head": {"kernel": random((hidden, 10), hidden, 3), "bias": jnp.zeros(10)},
    }

    def predict(params: Any, x: jax.Array) -> jax.Array:
        def step(carry: Any, x_t: jax.Array) -> tuple[Any, None]:
            h, c = carry
            gates = x_t @ params["input"] + h @ params["state"] + params["bias"]
            i, f, g, o = jnp.split(gates, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        start = jnp.zeros((*x.shape[:-2], hidden))
        (h, _), _ = lax.scan(step, (start, start), jnp.moveaxis(x, -2, 0))
        return affine(params["head"], h)

    return Case(*both(predict), params, classified((batch, length, inputs), 10))


# What each row of the tables is; the second dictionary is the same at a size for tests.
CASES: dict[str, Callable[[], Case]] = {
    "mlp-8": functools.partial(mlp, batch=8),
    "mlp-64": functools.partial(mlp, batch=64),
    "mlp-256": functools.partial(mlp, batch=256),
    "transformer-64": functools.partial(transformer, batch=16, length=64),
    "transformer-256": functools.partial(transformer, batch=16, length=256),
    "transformer-64-untied": functools.partial(transformer, batch=16, length=64, tied=False),
    "transformer-256-untied": functools.partial(transformer, batch=16, length=256, tied=False),
    "transformer-64-remat": functools.partial(transformer, batch=16, length=64, remat=True),
    "transformer-256-remat": functools.partial(transformer, batch=16, length=256, remat=True),
    "cnn": functools.partial(cnn, batch=64),
    "vit-tiny": functools.partial(vit, batch=16),
    "lstm": functools.partial(lstm, batch=32),
    "resnet-50": functools.partial(resnet, batch=32),
    "gpt2-small": functools.partial(
        transformer, batch=32, length=512, width=768, layers=12, heads=12, vocabulary=50257
    ),
}


def tiny(name: str) -> Case:
    """The architecture of a case with a handful of parameters."""
    family = name.split("-")[0]
    if family == "mlp":
        return mlp(batch=4, sizes=(6, 8, 8, 3))
    if family == "cnn":
        return cnn(batch=4, size=8, channels=(2, 3), hidden=5)
    if family == "resnet":
        return resnet(batch=4, size=16, width=4, blocks=(1, 2), groups=2, classes=3)
    if family == "vit":
        return vit(batch=4, size=8, width=12, layers=2)
    if family == "lstm":
        return lstm(batch=4, length=5, inputs=3, hidden=6)
    options = {"tied": "untied" not in name, "remat": "remat" in name}
    return transformer(batch=4, length=6, width=8, layers=2, heads=2, vocabulary=11, **options)


def gradient_of_sum(params: Any, x: jax.Array) -> Any:
    """The plain gradient that a neural tangent kernel is measured against."""
    return jax.grad(lambda p: jnp.sum(perceptron(p, x)))(params)


def kernel_case(name: str, *, tiny: bool) -> tuple[int, tuple[int, ...]]:
    """Batch and layer sizes of the multilayer perceptron whose kernel is measured."""
    return (4, (6, 8, 8, 3)) if tiny else (int(name.split("-")[1]), (784, 512, 512, 10))
