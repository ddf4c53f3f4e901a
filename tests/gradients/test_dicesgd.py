"""Clipped error feedback: closed forms, the telescoping sum, and what is refused."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin import gradients

# f_i(x) = (x - a_i)^2 / 2: the optimum is 2, the zero of the clipped mean 0.25.
A = jnp.asarray([0.0, 0.0, 0.0, 0.0, 10.0])


def dicesgd(*args, **options) -> Any:
    """Untyped: optax's types of updates and states are too wide for arithmetic."""
    return gradients.dicesgd(*args, **options)


def settle(clip_norm, feedback, *, steps=20_000, eta=0.01, start=5.0):
    transform = dicesgd(jax.random.key(0), clip_norm=clip_norm, feedback_clip_norm=feedback)

    def step(carry, _):
        x, state = carry
        G = gradkin.per_example_grads(lambda x, a: 0.5 * (x - a) ** 2)(x, A)
        update, state = transform.update(G, state)
        return (x - eta * update, state), None

    x = jnp.float32(start)
    run = jax.jit(lambda: jax.lax.scan(step, (x, transform.init(x)), length=steps)[0])
    x, state = run()
    return float(x), float(state.error)


@pytest.mark.parametrize(
    ("clip_norm", "feedback", "rest"),
    # At rest 0.8 min(x, C1) - 0.2 C1 = min(C2, bias).
    [(1.0, 0.0, 0.25), (1.0, 1.0, 2.0), (0.5, 0.25, 0.4375), (1.0, 0.5, 0.875), (0.3, 0.3, 2.0)],
)
def test_where_the_toy_comes_to_rest(clip_norm, feedback, rest):
    x, error = settle(clip_norm, feedback)
    assert x == pytest.approx(rest, abs=2e-4)
    if rest == 2.0 and clip_norm == 1.0:
        assert error == pytest.approx(-0.6, abs=1e-3)


@pytest.mark.parametrize("feedback", [0.0, 0.05, 2.0])
def test_released_and_held_back_sum_to_all_gradients(key, feedback):
    grads = jax.random.normal(key, (30, 8, 3)) * 2
    transform = dicesgd(key, clip_norm=0.5, feedback_clip_norm=feedback)
    state, released = transform.init(jnp.zeros(3)), jnp.zeros(3)
    for g in grads:
        update, state = transform.update(g, state)
        released += update
    expected = jnp.sum(jnp.mean(grads, axis=1), axis=0)
    np.testing.assert_allclose(released + state.error, expected, rtol=1e-4, atol=1e-4)


def test_without_bounds_it_is_the_mean(key):
    grads = {"a": jax.random.normal(key, (4, 3)), "b": jnp.ones((4, 2))}
    transform = dicesgd(key, clip_norm=math.inf, feedback_clip_norm=math.inf)
    update, state = transform.update(grads, transform.init({"a": jnp.zeros(3), "b": jnp.zeros(2)}))
    np.testing.assert_allclose(update["a"], jnp.mean(grads["a"], axis=0), rtol=1e-6)
    assert all(np.all(np.abs(e) < 1e-6) for e in state.error.values())


def test_reference_is_the_paper_with_a_weaker_feedback(key):
    grads = jax.random.normal(key, (20, 8, 3)) * 3
    reference = dicesgd(key, clip_norm=0.5, convention="reference")
    paper = dicesgd(key, clip_norm=0.5, feedback_clip_norm=0.5 / 8)
    states = [t.init(jnp.zeros(3)) for t in (reference, paper)]
    for g in grads:
        ours, states[0] = reference.update(g, states[0])
        same, states[1] = paper.update(g, states[1])
        np.testing.assert_allclose(ours, same, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(states[0].error, 8 * states[1].error, rtol=1e-3, atol=1e-4)


def test_noise_has_the_stated_size_and_is_not_fed_back(key):
    grads = jax.random.normal(key, (4, 5000))
    quiet = dicesgd(key, clip_norm=1.0)
    noisy = dicesgd(key, clip_norm=1.0, noise_std=0.3)
    first, state = quiet.update(grads, quiet.init(jnp.zeros(5000)))
    second, noisy_state = noisy.update(grads, noisy.init(jnp.zeros(5000)))
    assert float(jnp.std(second - first)) == pytest.approx(0.3, rel=0.03)
    np.testing.assert_array_equal(state.error, noisy_state.error)
    third, _ = noisy.update(grads, noisy_state)
    assert float(jnp.std(third - second)) > 0.3


def test_a_row_that_is_not_finite_is_left_out():
    grads = jnp.asarray([[0.1], [np.nan]])
    transform = dicesgd(jax.random.key(0), clip_norm=1.0)
    update, state = transform.update(grads, transform.init(jnp.zeros(1)))
    np.testing.assert_allclose(update, [0.05])
    np.testing.assert_allclose(state.error, [0.0])


def test_bias_of_clipping(key):
    x = jax.random.normal(key, (9, 4)) * 2
    G = gradkin.per_example_grads(lambda w, x: w @ x)(jnp.zeros(4), x)
    scale = np.minimum(1, 0.5 / np.linalg.norm(x, axis=1, keepdims=True))
    expected = np.mean(scale * x - x, axis=0)
    np.testing.assert_allclose(gradients.clipping_bias(G, 0.5), expected, rtol=1e-4, atol=1e-6)


def test_no_amplification_by_sampling():
    options = {"clip_norm": 1.0, "feedback_clip_norm": 0.5, "noise_std": 2.0, "batch_size": 10}
    with pytest.raises(ValueError, match="the subsampled accountant does not apply"):
        gradients.dicesgd_mechanism(**options, sampling=gradients.PoissonSampling(100, 0.1))
    full = gradients.FullBatch(100)
    replaced = gradients.dicesgd_mechanism(**options, sampling=full)
    assert replaced.noise_multiplier == pytest.approx(2 / (0.2 + 1.0))
    added = gradients.dicesgd_mechanism(**options, sampling=full, relation="add_or_remove_one")
    assert added.noise_multiplier == pytest.approx(2 / (0.1 + 1.0))


def test_conservative_noise_meets_its_budget():
    pytest.importorskip("dp_accounting", reason="the extra 'private' is not installed")
    bounds = {"clip_norm": 0.5, "feedback_clip_norm": 0.5, "batch_size": 50}
    std = gradients.dicesgd_noise_std(**bounds, num_examples=50, steps=10, epsilon=2.0, delta=1e-5)
    mechanism = gradients.dicesgd_mechanism(
        **bounds, noise_std=std, sampling=gradients.FullBatch(50)
    )
    assert 1.98 < gradients.epsilon(mechanism, steps=10, delta=1e-5) <= 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": 0.0}, "Expected clip_norm > 0"),
        ({"feedback_clip_norm": -1.0}, "Expected feedback_clip_norm >= 0"),
        ({"noise_std": -1.0}, "Expected noise_std >= 0"),
        ({"convention": "other"}, "Expected convention to be one of"),
        ({"convention": "reference", "feedback_clip_norm": 1.0}, "Expected no feedback_clip_norm"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        dicesgd(jax.random.key(0), **{"clip_norm": 1.0, **options})


def test_missing_leading_axis():
    transform = dicesgd(jax.random.key(0), clip_norm=1.0)
    with pytest.raises(ValueError, match="one leading axis of examples"):
        transform.update(jnp.zeros(()), transform.init(jnp.zeros(())))
