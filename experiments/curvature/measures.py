"""The measures of sharpness that are correlated with generalization."""

import functools
import math

import jax
import jax.numpy as jnp

from experiments.curvature import two_layer
from gradkin import curvature

NAMES = (
    "average",
    "average, adaptive",
    "worst l2",
    "worst linf",
    "worst linf, adaptive",
    "worst linf, adaptive, logits",
    "one SAM step",
)
STANDARD = (0, 2, 3)  # not adaptive
GROUPS = 4  # batches of the worst case
MOST = 2048  # examples on which sharpness is measured


def of_network(config, predict, key, params, data):
    """All measures of sharpness of one network, and its errors."""

    def loss(params, example):
        return curvature.cross_entropy(predict(params, example[0]), example[1])

    def normalized(params, example):
        outputs = predict(params, example[0])
        return curvature.cross_entropy(outputs / jnp.linalg.norm(outputs), example[1])

    def error(x, y):
        outputs = jax.lax.map(functools.partial(predict, params), x, batch_size=1000)
        return jnp.mean((outputs.argmax(-1) != y).astype(jnp.float32))

    number = min(MOST, len(data["y"]))
    batch = (data["x"][:number], data["y"][:number])
    adaptive = curvature.adaptive_scale(params)
    keys = jax.random.split(key, len(NAMES))
    average = lambda i, scale: (
        curvature.average_sharpness(
            keys[i], loss, params, batch, rho=config.radii[i], scale=scale, num_samples=config.draws
        ).value
    )
    worst = lambda i, loss, **options: (
        curvature.worst_case_sharpness(
            keys[i],
            loss,
            params,
            batch,
            rho=config.radii[i],
            group_size=number // GROUPS,
            num_steps=config.ascent,
            **options,
        ).value
    )
    grads = jax.grad(functools.partial(two_layer.mean_loss, predict))(params, *batch)
    values = (
        average(0, None),
        average(1, adaptive),
        worst(2, loss, p=2),
        worst(3, loss, p=math.inf),
        worst(4, loss, p=math.inf, scale=adaptive),
        worst(5, normalized, p=math.inf, scale=adaptive),
        curvature.sam_sharpness(loss, params, batch, rho=config.radii[6]),
    )
    return {
        "sharpness": jnp.stack(values),
        "first_order": curvature.first_order_sharpness(grads, rho=config.radii[6]),
        "train": error(data["x"], data["y"]),
        **{name: error(data[name], data["y_test"]) for name in ("test", "noise", "rotation")},
    }
