"""Adam's next step read off its state: against optax, its formula, and what it does to a loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkin import gradients, optim

RATE = 1e-3


def drawn(seed, shapes=None):
    rng = np.random.default_rng(seed)
    shapes = shapes or {"w": (3, 2), "b": (2,)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def after(optimizer, params, steps):
    """The optimizer's state after some steps."""
    state = optimizer.init(params)
    for seed in range(1, steps + 1):
        _, state = optim.update(optimizer, drawn(seed), state, params)
    return state


def by_hand(g, moments, *, b1=0.9, b2=0.999, eps=1e-8, corrected=True, inside=False):
    t = int(moments.count) + 1
    g, mu, nu = (np.asarray(x, np.float64) for x in (g, moments.mu, moments.nu))
    m, v = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
    if corrected:
        m, v = m / (1 - b1**t), v / (1 - b2**t)
    return m / np.sqrt(v + eps) if inside else m / (np.sqrt(v) + eps)


@pytest.mark.parametrize("steps", [0, 4])
def test_is_the_step_of_optax(steps):
    with jax.enable_x64(True):
        params, g = drawn(0), drawn(99)
        optimizer = optax.chain(optax.clip_by_global_norm(1e3), optax.adam(RATE))
        state = after(optimizer, params, steps)
        with jax.numpy_dtype_promotion("standard"):
            updates: Any = optimizer.update(g, state, params)[0]
        moments = gradients.adam_moments(state, params)
        assert int(moments.count) == steps
        found = gradients.adam_direction(g, moments)
        for name in g:
            assert found[name].dtype == np.float64
            np.testing.assert_allclose(found[name], -updates[name] / RATE, rtol=1e-10)


def test_is_the_released_codes_formula():
    moments = gradients.AdamMoments(jnp.linspace(-1, 1, 5), jnp.linspace(0, 1e-6, 5), 3)
    g = jnp.array([0.1, -0.2, 0.0, 1e-5, 3.0])
    options = {"bias_correction": False, "eps_inside_sqrt": True}
    found = gradients.adam_direction(g, moments, **options)
    np.testing.assert_allclose(found, by_hand(g, moments, corrected=False, inside=True), rtol=1e-5)
    wanted = by_hand(g, moments, b1=0.0, b2=0.5, eps=1e-3)
    plain = gradients.adam_direction(g, moments, b1=0, b2=0.5, eps=1e-3)
    np.testing.assert_allclose(plain, wanted, rtol=1e-5)
    # Options may be traced, and moments and gradients come in batches.
    rule = lambda g, moments, b2: gradients.adam_direction(g, moments, b1=0.0, b2=b2, eps=1e-3)
    several = jax.jit(jax.vmap(rule, (0, None, None)))(jnp.stack([g, -g]), moments, 0.5)
    np.testing.assert_allclose(several[0], wanted, rtol=1e-5)
    np.testing.assert_allclose(
        several[1], by_hand(-g, moments, b1=0.0, b2=0.5, eps=1e-3), rtol=1e-5
    )


def test_many_and_few_steps_keep_their_digits():
    g, tiny = jnp.array([0.3, -2.0]), jnp.zeros(2)
    first = gradients.adam_direction(g, gradients.AdamMoments(tiny, tiny, 0))
    np.testing.assert_allclose(first, np.sign(g), rtol=1e-6)
    late = gradients.AdamMoments(jnp.ones(2), jnp.ones(2), 10**8)
    np.testing.assert_allclose(gradients.adam_direction(g, late), by_hand(g, late), rtol=1e-6)


def test_half_precision_is_summed_in_float32():
    half = lambda x: jnp.asarray(x, jnp.bfloat16)
    moments = gradients.AdamMoments(half([0.5]), jnp.array([0.25]), 2)
    found = gradients.adam_direction(half([1.0]), moments)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(half([1.0]), moments), rtol=1e-6)


def test_a_small_step_lowers_the_loss_as_foretold():
    """``L(p) - L(p - r d) = r <grad L, d> + O(r^2)``: half the rate, a quarter of the rest."""
    with jax.enable_x64(True):
        params, x = drawn(0), jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)))
        loss = lambda p: jnp.mean(jnp.tanh(x @ p["w"] + jnp.broadcast_to(p["b"], (5, 2))) ** 2)
        moments = gradients.adam_moments(after(optax.adam(RATE), params, 3), params)
        direction = gradients.adam_direction(drawn(50), moments)
        grads = jax.grad(loss)(params)
        slope = sum(jnp.vdot(grads[name], direction[name]) for name in grads)

        def rest(rate):
            moved = jax.tree.map(lambda p, d: p - rate * d, params, direction)
            return float(loss(params) - loss(moved) - rate * slope)

        np.testing.assert_allclose(rest(1e-4) / rest(5e-5), 4, rtol=0.01)


def test_moments_are_found_in_wrapped_states():
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    for optimizer in (
        optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
        optax.MultiSteps(optax.adam(1e-3), 2),
        optax.scale_by_adam(),
    ):
        moments = gradients.adam_moments(optimizer.init(params), params)
        assert jax.tree.map(np.shape, moments.nu) == {"w": (3, 2), "b": (2,)}


def test_bad_input():
    params = {"w": jnp.ones(2), "b": jnp.ones(())}
    with pytest.raises(ValueError, match=r"one optax.ScaleByAdamState, got 0 in a tuple of"):
        gradients.adam_moments(optax.sgd(0.1, momentum=0.9).init(params), params)
    twice = optax.chain(optax.adam(0.1), optax.adam(0.1))
    with pytest.raises(ValueError, match="got 2"):
        gradients.adam_moments(twice.init(params), params)
    part = optax.masked(optax.adam(0.1), {"w": True, "b": False})
    with pytest.raises(ValueError, match=r"the moments to have the leaves of params: \['b'\]"):
        gradients.adam_moments(part.init(params), params)
    moments = gradients.AdamMoments(params, params, 0)
    with pytest.raises(ValueError, match=r"moments.mu to have the shapes of gradient: at \['w'\]"):
        gradients.adam_direction({"w": jnp.ones(3), "b": jnp.ones(())}, moments)
    bad: list[tuple[Any, str]] = [
        ({"b1": 1.0}, r"Expected b1 in \[0, 1\), got b1=1.0"),
        ({"b2": -0.1}, r"Expected b2 in \[0, 1\)"),
        ({"eps": 0.0}, "Expected eps > 0"),
    ]
    for options, words in bad:
        with pytest.raises(ValueError, match=words):
            gradients.adam_direction(params, moments, **options)
