"""Small classifiers: multi-layer perceptrons, with or without a normed first layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def init(key, widths, *, normed=False):
    """He's initialization; ``normed`` adds a scale to the first layer's units."""
    keys = jax.random.split(key, len(widths) - 1)
    params = {
        f"layer{i}": {
            "kernel": jax.random.normal(k, widths[i : i + 2]) * np.float32(np.sqrt(2 / widths[i])),
            "bias": jnp.zeros(widths[i + 1]),
        }
        for i, k in enumerate(keys)
    }
    if normed:
        params["layer0"]["scale"] = jnp.ones(widths[1])
    return params


def predict(params, x, statistics=None):
    """Logits of one example; ``statistics``: mean and variance that norm the first layer."""
    *hidden, last = params.values()
    for number, layer in enumerate(hidden):
        x = x @ layer["kernel"]
        if statistics is not None and number == 0:
            mean, variance = statistics
            x = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * layer["scale"]
        x = jax.nn.relu(x + layer["bias"])
    return x @ last["kernel"] + last["bias"]


def statistics_of(params, x):
    """Mean and variance over a batch of what enters the units of the first layer."""
    z = x @ params["layer0"]["kernel"]
    return jnp.mean(z, axis=0), jnp.var(z, axis=0)


def loss(params, example, statistics=None):
    """Cross-entropy of one example."""
    x, label = example
    logits = predict(params, x, statistics)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def mean_loss(params, batch, statistics=None):
    """Cross-entropy of a batch ``(x, labels)``."""
    return jnp.mean(jax.vmap(loss, (None, 0, None))(params, batch, statistics))


def accuracy(params, batch):
    """Share of a batch ``(x, labels)`` that is classified right."""
    x, labels = batch
    right = jax.vmap(predict, (None, 0))(params, x).argmax(-1) == labels
    return jnp.mean(right.astype(jnp.float32))
