"""Exclusive or: how often a layer learns it, from how many initial weights."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkin import optim, similarity

DIFFERENCES = ("ignorematch", "subtractmatch")
CORNERS = np.asarray([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
XOR = np.asarray([0, 1, 1, 0], np.int32)
MARGIN = 1e-3  # of logits; the best linear layer has equal ones, but for rounding


def solves_xor(config, key, sizes, init, apply):
    """Share of runs, for each size of the bank, in which Adam finds exclusive or."""

    def trained(key, size):
        params = init(key, size)
        loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(
            apply(params, jnp.asarray(CORNERS)), jnp.asarray(XOR)
        ).mean()
        adam = optax.adam(config.xor_rate)

        def step(carry, _):
            params, state = carry
            return optim.update(adam, jax.grad(loss)(params), state, params), None

        carry, _ = jax.lax.scan(step, (params, adam.init(params)), length=config.xor_steps)
        logits = apply(carry[0], jnp.asarray(CORNERS))
        margins = (logits[:, 1] - logits[:, 0]) * np.asarray(2 * XOR - 1, np.float32)
        return jnp.all(margins > MARGIN).astype(jnp.float32)

    keys = jax.random.split(key, config.xor_runs)
    over_runs = jax.vmap(trained, in_axes=(0, None))
    return jax.vmap(over_runs, in_axes=(None, 0))(keys, jnp.asarray(sizes)).mean(1)


def exclusive_or(config, key):
    """Success of Tversky projections and of a linear layer, over the initial weights of a seed."""

    def init(largest, key, size):
        sizes = {"features_in": 2, "features_out": 2, "bank_size": largest}
        params = similarity.init_tversky(key, **sizes)
        # A feature that is zero is nobody's: it changes nothing and never moves.
        kept = (jnp.arange(largest) < size)[:, None]
        return params._replace(bank=jnp.where(kept, params.bank, 0))

    def linear(params, x):
        return x @ params["w"] + params["b"][None, :]

    linear_init = lambda key, size: {"w": jax.random.normal(key, (2, 2)), "b": jnp.zeros(2)}
    banks, one = config.xor_banks, config.xor_bank
    reductions = [
        solves_xor(
            config,
            key,
            (one,),
            functools.partial(init, one),
            functools.partial(
                similarity.tversky_projection, intersection=intersection, difference=difference
            ),
        )[0]
        for intersection, difference in itertools.product(config.xor_intersections, DIFFERENCES)
    ]
    start = functools.partial(init, max(banks))
    return {
        "xor_banks": solves_xor(config, key, banks, start, similarity.tversky_projection),
        "xor_linear": solves_xor(config, key, (0,), linear_init, linear)[0],
        "xor_reductions": jnp.stack(reductions).reshape(-1, len(DIFFERENCES)),
    }
