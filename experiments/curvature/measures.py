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
    scales = jax.tree.map(lambda c: jnp.stack([jnp.ones_like(c), c]), adaptive)
    keys, radii = jax.random.split(key, len(NAMES)), jnp.array(config.radii)

    def average(given):
        key, rho, scale = given
        return curvature.average_sharpness(
            key, loss, params, batch, rho=rho, scale=scale, num_samples=config.draws
        ).value

    def worst(loss, p, given):
        key, rho, scale = given
        return curvature.worst_case_sharpness(
            key,
            loss,
            params,
            batch,
            rho=rho,
            p=p,
            scale=scale,
            group_size=number // GROUPS,
            num_steps=config.ascent,
        ).value

    # Standard and adaptive by one program.
    both = lambda fun, places: jax.lax.map(fun, (keys[places], radii[places], scales))
    grads = jax.grad(functools.partial(two_layer.mean_loss, predict))(params, *batch)
    values = jnp.concatenate(
        [
            both(average, slice(0, 2)),
            worst(loss, 2, (keys[2], radii[2], None))[None],
            both(functools.partial(worst, loss, math.inf), slice(3, 5)),
            worst(normalized, math.inf, (keys[5], radii[5], adaptive))[None],
            curvature.sam_sharpness(loss, params, batch, rho=config.radii[6])[None],
        ]
    )
    return {
        "sharpness": values,
        "first_order": curvature.first_order_sharpness(grads, rho=config.radii[6]),
        "train": error(data["x"], data["y"]),
        **{name: error(data[name], data["y_test"]) for name in ("test", "noise", "rotation")},
    }
