"""A perceptron, and permutations of its hidden units."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.matrices.models.model import normal, plus, weight


def mlp(params, x):
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(plus(x @ layer["w"], layer["b"]))
    return plus(x @ last["w"], last["b"])


def mlp_params(seed, *widths):
    return [
        {"w": weight(seed + i, *widths[i : i + 2]), "b": normal(seed + i, widths[i + 1], scale=0.1)}
        for i in range(len(widths) - 1)
    ]


def shuffled(spec, seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.permutation(size)) for name, size in spec.sizes.items()}
