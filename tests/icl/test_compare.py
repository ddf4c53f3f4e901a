"""Comparing learners: metrics, normal form, interpolation, projection on the construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import icl

SIZES = {"num_inputs": 3, "num_outputs": 1, "num_context": 5}


def built(rate):
    return icl.gd_attention(num_inputs=3, num_outputs=1, num_context=5, rate=rate)


def descent(rate):
    return lambda x, y, query: icl.gradient_descent(x, y, rate=rate)[-1] @ query


def test_metrics_against_the_weights_of_linear_learners():
    tasks = icl.linear_tasks(jax.random.key(0), 6, num_context=5, num_inputs=3, num_outputs=2)
    flip = lambda x, y, query: -3 * descent(1.0)(x, y, query)
    found = icl.compare(descent(1.0), flip, tasks)
    weights = np.einsum("bni,bno->boi", tasks.x, tasks.y) / 5
    predictions = np.einsum("boi,bi->bo", weights, tasks.query)
    assert float(found.cosine) == pytest.approx(-1, abs=1e-5)
    assert float(found.sensitivity_difference) == pytest.approx(
        4 * np.linalg.norm(weights, axis=(1, 2)).mean(), rel=1e-4
    )
    assert float(found.prediction_difference) == pytest.approx(
        4 * np.linalg.norm(predictions, axis=1).mean(), rel=1e-4
    )
    nothing = lambda x, y, query: 0 * query[:2]
    assert float(icl.compare(nothing, flip, tasks).cosine) == 0


def trained_like(key):
    """The construction with its scale moved between the products and a perturbation."""
    weights = built(2.0)
    noise = jax.random.normal(key, weights.query.shape) * 0.01
    return weights._replace(query=-4 * (weights.query + noise), output=weights.output / -4)


def test_balance_keeps_the_function():
    weights = trained_like(jax.random.key(1))
    tokens = jax.random.normal(jax.random.key(2), (6, 4))
    balanced = icl.balance(weights, num_inputs=3)
    np.testing.assert_allclose(
        icl.predict(balanced, tokens, num_layers=3), icl.predict(weights, tokens, num_layers=3),
        rtol=1e-3,
    )  # fmt: skip
    assert float(jnp.diagonal(balanced.query[0, 0])[:3].mean()) == pytest.approx(1)
    with pytest.raises(ValueError, match="one layer and one head"):
        icl.balance(jax.tree.map(lambda w: jnp.repeat(w, 2, 0), weights), num_inputs=3)


def test_interpolation_ends_at_the_two_layers():
    first, second = trained_like(jax.random.key(1)), built(1.0)
    tokens = jax.random.normal(jax.random.key(2), (6, 4))
    for fraction, end in ((0.0, first), (1.0, second)):
        between = icl.interpolate(first, second, num_inputs=3, fraction=fraction)
        np.testing.assert_allclose(
            icl.predict(between, tokens), icl.predict(end, tokens), rtol=1e-4
        )


def test_projection_recovers_the_rate_and_a_known_residual():
    exact = icl.project_on_construction(trained_like(jax.random.key(0)), **SIZES)
    assert float(exact.rate) == pytest.approx(2, rel=0.02)
    weights = built(2.0)
    # One off-diagonal entry e on top of I in 3 dimensions leaves e / sqrt(3 + e^2).
    bent = weights._replace(query=weights.query.at[0, 0, 0, 1].add(0.5))
    found = icl.project_on_construction(bent, **SIZES)
    assert float(found.rate) == pytest.approx(2, rel=1e-5)
    assert float(found.residual) == pytest.approx(0.5 / (3 + 0.25) ** 0.5, rel=1e-4)
    assert float(found.off_diagonal) == pytest.approx(0.5 * 2 / 5, rel=1e-4)
    stretched = weights._replace(key=weights.key.at[0, 0, 0, 0].mul(1.3))
    assert float(icl.project_on_construction(stretched, **SIZES).diagonal_error) == pytest.approx(
        1.3 / 1.1 - 1, rel=1e-4
    )
    # Two heads that share the work are one construction.
    halves = jax.tree.map(lambda w: jnp.concatenate([w, w], axis=1), weights)
    halves = halves._replace(output=halves.output / 2)
    assert float(icl.project_on_construction(halves, **SIZES).residual) < 1e-3
    with pytest.raises(ValueError, match="one layer and width"):
        icl.project_on_construction(weights, num_inputs=2, num_outputs=1, num_context=5)
