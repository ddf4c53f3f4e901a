"""The optax helper works where strict promotion stops plain optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkin import optim


def adam_by_hand(grads, *, rate, b1=0.9, b2=0.999, eps=1e-8):
    """Adam's parameters after each gradient, from zero, in float64."""
    w = m = v = np.zeros_like(grads[0])
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return w


@pytest.mark.parametrize("jit", [False, True])
def test_adam_agrees_with_its_formula(jit):
    opt = optax.adam(0.1)
    step = (
        jax.jit(lambda g, s, w: optim.update(opt, g, s, w))
        if jit
        else (lambda g, s, w: optim.update(opt, g, s, w))
    )
    grads = np.random.default_rng(0).normal(size=(3, 4))
    w = jnp.zeros(4)
    state = opt.init(w)
    for g in grads:
        w, state = step(jnp.asarray(g, jnp.float32), state, w)
    np.testing.assert_allclose(w, adam_by_hand(grads, rate=0.1), rtol=1e-4)


def test_strict_promotion_is_back_afterwards():
    opt = optax.sgd(0.1)
    w = jnp.zeros(2)
    optim.update(opt, w, opt.init(w), w)
    with pytest.raises(ValueError, match="promotion"):
        jnp.add(jnp.ones(2, jnp.float32), jnp.ones(2, jnp.int32))


def test_a_schedule_is_accepted():
    opt = optax.sgd(optax.cosine_decay_schedule(1.0, 10))
    w, _ = optim.update(opt, jnp.ones(1), opt.init(jnp.zeros(1)), jnp.zeros(1))
    assert float(w[0]) == pytest.approx(-1.0)
