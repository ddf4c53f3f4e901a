"""The constructed attention layer is gradient descent, exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkin
from gradkin import icl


def regression_loss(weights, x, y):
    return ((x @ weights.T - y) ** 2).sum() / (2 * x.shape[0])


def draw(seed, num_context, num_outputs, dtype):
    rng = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return make(num_context, 4), make(num_context, num_outputs), make(4), make(num_outputs, 4)


@pytest.mark.parametrize(("num_context", "num_outputs"), [(1, 3), (5, 1), (45, 3)])
def test_one_layer_is_one_step_of_autodiff(num_context, num_outputs):
    with jax.enable_x64(True):
        x, y, query, initial = draw(num_context, num_context, num_outputs, jnp.float64)
        weights = icl.gd_attention(
            num_inputs=4, num_outputs=num_outputs, num_context=num_context, rate=0.37,
            initial=initial,
        )  # fmt: skip
        tokens = icl.constructed_tokens(x, y, query, initial=initial)
        moved = icl.transformer(weights, tokens)[-1]
        dw = -0.37 * jax.grad(regression_loss)(initial, x, y)
        np.testing.assert_allclose(-moved[-1, 4:], (initial + dw) @ query, atol=1e-12)
        np.testing.assert_allclose(moved[:-1, 4:], y - x @ dw.T, atol=1e-12)
        np.testing.assert_array_equal(moved[:, :4], tokens[:, :4])
    x, y, query, initial = draw(num_context, num_context, num_outputs, jnp.float32)
    weights = jax.tree.map(lambda w: w.astype(jnp.float32), weights)
    tokens = icl.constructed_tokens(x, y, query, initial=initial)
    predicted = jax.jit(functools.partial(icl.predict, num_outputs=num_outputs))(weights, tokens)
    np.testing.assert_allclose(predicted, -moved[-1, 4:], atol=1e-5)


@pytest.mark.parametrize("initial", [True, False])
def test_stacked_layers_are_steps(initial):
    with jax.enable_x64(True):
        x, y, query, start = draw(0, 6, 2, jnp.float64)
        start = start if initial else None
        weights = icl.gd_attention(
            num_inputs=4, num_outputs=2, num_context=6, rate=0.2, initial=start
        )
        tokens = icl.constructed_tokens(x, y, query, initial=start)
        states = icl.transformer(weights, tokens, num_layers=7)
        iterates = icl.gradient_descent(x, y, rate=0.2, num_steps=7, initial=start)
        np.testing.assert_allclose(-states[:, -1, 4:], iterates @ query, atol=1e-12)
        repeated = jax.tree.map(lambda w: jnp.repeat(w, 7, axis=0), weights)
        np.testing.assert_allclose(icl.transformer(repeated, tokens), states, atol=1e-12)


def test_dropping_w0_in_later_layers_is_wrong():
    x, y, query, start = draw(0, 6, 1, jnp.float32)
    make = functools.partial(icl.gd_attention, num_inputs=4, num_outputs=1, num_context=6, rate=0.2)
    with_w0, without = make(initial=start), make()
    mixed = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), with_w0, without)
    tokens = icl.constructed_tokens(x, y, query, initial=start)
    exact = icl.gradient_descent(x, y, rate=0.2, num_steps=2, initial=start)[-1] @ query
    assert jnp.abs(icl.predict(mixed, tokens) - exact).max() > 0.01


def test_damping_scales_the_rate():
    x, y, query, _ = draw(1, 6, 1, jnp.float32)
    make = functools.partial(icl.gd_attention, num_inputs=4, num_outputs=1, num_context=6)
    tokens = icl.constructed_tokens(x, y, query)
    damped = icl.predict(make(rate=0.4), tokens, num_layers=5, damping=0.75)
    np.testing.assert_allclose(damped, icl.predict(make(rate=0.3), tokens, num_layers=5), rtol=1e-5)


def test_gd_plus_plus_is_its_construction():
    with jax.enable_x64(True):
        x, y, query, _ = draw(2, 6, 2, jnp.float64)
        make = functools.partial(icl.gd_attention, num_inputs=4, num_outputs=2, num_context=6)
        layers = [make(rate=r, decay=d) for r, d in ((0.3, 0.02), (0.2, 0.05), (0.1, 0.01))]
        weights = jax.tree.map(lambda *w: jnp.concatenate(w), *layers)
        states = icl.transformer(weights, icl.constructed_tokens(x, y, query))
        predictions = icl.gd_plus_plus(
            x, y, query, rates=jnp.array([0.3, 0.2, 0.1]), decays=jnp.array([0.02, 0.05, 0.01])
        )
        np.testing.assert_allclose(-states[:, -1, 4:], predictions, atol=1e-12)
        # The inputs after a layer are those that the text of the paper writes.
        transformed = (jnp.eye(4) - 0.02 * x.T @ x) @ x.T
        np.testing.assert_allclose(states[1, :-1, :4], transformed.T, atol=1e-12)


def test_gd_plus_plus_without_decay_is_gd():
    x, y, query, _ = draw(3, 6, 2, jnp.float32)
    found = icl.gd_plus_plus(x, y, query, rates=jnp.full(4, 0.1), decays=jnp.zeros(4))
    exact = icl.gradient_descent(x, y, rate=0.1, num_steps=4) @ query
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


def test_classification_step_is_exact():
    tasks = icl.classification_tasks(jax.random.key(0), 3, num_context=12, num_classes=4)
    weights = icl.gd_attention(num_inputs=10, num_outputs=4, num_context=12, rate=2.0)

    def attention(x, y, query):
        tokens = icl.constructed_tokens(x, icl.centered_labels(y), query)
        return icl.predict(weights, tokens, num_outputs=4)

    def step(x, y, query):
        loss = lambda w: optax.softmax_cross_entropy(x @ w.T, y).mean()
        return -2.0 * jax.grad(loss)(jnp.zeros((4, 10))) @ query

    found = jax.vmap(attention)(tasks.x, tasks.y, tasks.query)
    np.testing.assert_allclose(
        found, jax.vmap(step)(tasks.x, tasks.y, tasks.query), rtol=1e-4, atol=1e-6
    )


def test_two_softmax_heads_approach_the_centred_step():
    with jax.enable_x64(True):
        x, y, query, _ = draw(4, 8, 1, jnp.float64)
        exact = icl.gradient_descent(x - x.mean(0, keepdims=True), y, rate=0.5)[-1] @ query
        tokens = icl.constructed_tokens(x, y, query)
        errors = []
        for sharpness in (0.2, 0.02):
            weights = icl.softmax_gd_attention(
                num_inputs=4, num_outputs=1, num_context=8, rate=0.5, sharpness=sharpness
            )
            found = icl.predict(weights, tokens, softmax="all")
            errors.append(float(jnp.abs(found - exact).max()))
        # Second order in the sharpness.
        assert errors[1] < errors[0] / 80 < 0.01


def test_the_mean_gradient_is_the_attention_step():
    """One step of G.mean() and the constructed layer give the same prediction."""
    x, y, query, start = draw(5, 9, 2, jnp.float32)
    loss = lambda w, example: ((w @ example[0] - example[1]) ** 2).sum() / 2
    gradients = gradkin.per_example_grads(loss)(start, (x, y))
    weights = icl.gd_attention(num_inputs=4, num_outputs=2, num_context=9, rate=0.3, initial=start)
    tokens = icl.constructed_tokens(x, y, query, initial=start)
    predicted = icl.predict(weights, tokens, num_outputs=2)
    np.testing.assert_allclose((start - 0.3 * gradients.mean()) @ query, predicted, rtol=1e-5)


def test_attention_over_examples_is_the_gradient_matrix_at_the_query():
    """Row i of G applied to the query is example i's value times its attention score."""
    x, y, query, start = draw(6, 9, 2, jnp.float32)
    loss = lambda w, example: ((w @ example[0] - example[1]) ** 2).sum() / 2
    gradients = gradkin.per_example_grads(loss)(start, (x, y))
    weights = icl.gd_attention(num_inputs=4, num_outputs=2, num_context=9, rate=9.0, initial=start)
    layer = jax.tree.map(lambda w: w[0], weights)
    tokens = icl.constructed_tokens(x, y, query, initial=start)
    scores = icl.attention_scores(layer, tokens[-1:], tokens[:-1])[0, 0]
    values = (tokens[:-1] @ layer.value[0])[:, 4:]
    for output in range(2):
        at_query = gradients @ jnp.zeros((2, 4)).at[output].set(query)
        np.testing.assert_allclose(scores * values[:, output], at_query, rtol=1e-4, atol=1e-5)
    attended = icl.attend(layer, tokens[-1:], tokens[:-1])[0, 4:]
    np.testing.assert_allclose(attended, gradients.sum() @ query, rtol=1e-4, atol=1e-5)


def test_bad_sizes():
    with pytest.raises(ValueError, match="num_context > 0"):
        icl.gd_attention(num_inputs=2, num_outputs=1, num_context=0, rate=1.0)
    with pytest.raises(ValueError, match="initial.shape"):
        icl.gd_attention(
            num_inputs=2, num_outputs=1, num_context=3, rate=1.0, initial=jnp.zeros((2, 1))
        )
    with pytest.raises(ValueError, match="sharpness > 0"):
        icl.softmax_gd_attention(
            num_inputs=2, num_outputs=1, num_context=3, rate=1.0, sharpness=0.0
        )
    with pytest.raises(ValueError, match="one rate and one decay"):
        icl.gd_plus_plus(
            jnp.eye(2), jnp.ones((2, 1)), jnp.ones(2), rates=jnp.ones(2), decays=jnp.ones(3)
        )
