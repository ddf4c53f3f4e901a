"""Descents, closed forms, task laws and tokens against independent computations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import icl


def test_gradient_descent_converges_to_least_squares():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=(20, 2)).astype(np.float32)
    iterates = icl.gradient_descent(jnp.asarray(x), jnp.asarray(y), rate=0.5, num_steps=300)
    exact = np.linalg.lstsq(x, y, rcond=None)[0].T
    np.testing.assert_allclose(iterates[-1], exact, atol=1e-4)
    assert iterates.shape == (301, 2, 3)
    with pytest.raises(ValueError, match="num_steps > 0"):
        icl.gradient_descent(jnp.asarray(x), jnp.asarray(y), rate=0.5, num_steps=0)


def test_line_search():
    rates = jnp.linspace(0.0, 4.0, 9)
    rate, loss = icl.line_search(lambda r: 3 + 2 * (r - 1.234) ** 2, rates)
    assert float(rate) == pytest.approx(1.234, abs=1e-4)
    assert float(loss) == pytest.approx(3, abs=1e-5)
    # At the ends of the grid, and where rates diverge, the grid point is returned.
    assert float(icl.line_search(lambda r: r, rates)[0]) == 0.0
    blown = lambda r: jnp.where(r > 1.2, jnp.nan, -r)
    assert float(icl.line_search(blown, rates)[0]) == 1.0
    with pytest.raises(ValueError, match="three or more"):
        icl.line_search(lambda r: r, rates[:2])


@pytest.mark.parametrize(
    ("law", "noise", "spectrum"),
    [("uniform", None, None), ("normal", 0.3, (2.0, 1.0, 0.3)), ("laplace", None, (1.0, 0.5, 0.0))],
)
def test_closed_form_agrees_with_a_sample(law, noise, spectrum):
    scales = None if spectrum is None else jnp.array(spectrum)
    tasks = icl.linear_tasks(
        jax.random.key(1), 100_000, num_context=6, num_inputs=3, width=1.5, law=law, noise=noise,
        scales=scales,
    )  # fmt: skip
    variances = 1.5**2 / 12 * (jnp.ones(3) if scales is None else scales**2)
    best = icl.optimal_step(
        variances, num_context=6, kurtosis=icl.KURTOSIS[law], noise=noise or 0.0
    )
    cross = jnp.einsum("bni,bno->bi", tasks.x, tasks.y) / 6
    target = tasks.target[:, 0]
    for matrix, loss in (
        (jnp.full(3, best.rate), best.loss),
        (best.preconditioner, best.preconditioned_loss),
        (jnp.zeros(3), best.null_loss),
    ):
        sampled = ((cross * tasks.query) @ matrix - target) ** 2
        assert float(sampled.mean() / 2) == pytest.approx(float(loss), rel=0.03)
    base = (cross * tasks.query).sum(1)
    assert float((base * target).sum() / (base**2).sum()) == pytest.approx(
        float(best.rate), rel=0.04
    )


def test_closed_form_of_the_paper():
    best = icl.optimal_step(jnp.full(10, 1 / 12), num_context=10)
    second, fourth = 1 / 12, 1 / 80
    moment = second**2 * (10 - 1 + 10 - 1) / 10 + fourth / 10
    assert float(best.rate) == pytest.approx(second / moment, rel=1e-5)
    assert float(best.rate) == pytest.approx(6.0606, rel=1e-4)
    assert float(best.loss) == pytest.approx(0.20623, rel=1e-4)
    assert float(best.null_loss) == pytest.approx(10 / 24, rel=1e-5)
    # Equal variances: one rate is the best preconditioner.
    assert float(best.preconditioned_loss) == pytest.approx(float(best.loss), rel=1e-5)
    with pytest.raises(ValueError, match="variances >= 0"):
        icl.optimal_step(np.array([-1.0, 1.0]), num_context=3)
    with pytest.raises(ValueError, match="num_context > 0"):
        icl.optimal_step(np.ones(2), num_context=0)


def test_laws_have_their_moments():
    for law, kurtosis in icl.KURTOSIS.items():
        x = icl.linear_tasks(jax.random.key(2), 20_000, width=2.0, law=law).x
        assert float((x**2).mean()) == pytest.approx(4 / 12, rel=0.01)
        assert float((x**4).mean() / (x**2).mean() ** 2) == pytest.approx(kurtosis, rel=0.05)
    assert float(jnp.abs(icl.linear_tasks(jax.random.key(0), 999).x).max()) <= 0.5


def test_targets_come_from_one_teacher():
    tasks = icl.linear_tasks(jax.random.key(3), 5, num_context=12, num_outputs=2)
    x, y = np.asarray(tasks.x), np.asarray(tasks.y)
    for i in range(5):
        teacher = np.linalg.lstsq(x[i], y[i], rcond=None)[0]
        np.testing.assert_allclose(np.asarray(tasks.query)[i] @ teacher, tasks.target[i], atol=1e-4)
    noisy = icl.linear_tasks(jax.random.key(3), 5, num_context=12, num_outputs=2, noise=0.5)
    np.testing.assert_array_equal(noisy.target, tasks.target)
    assert 0.3 < float((noisy.y - tasks.y).std()) < 0.7


def test_sine_draws_are_independent_unless_tied():
    for tied in (False, True):
        tasks = icl.sine_tasks(jax.random.key(4), 3000, num_context=24, tied=tied)
        x, y = np.asarray(tasks.x, np.float64), np.asarray(tasks.y, np.float64)
        waves = np.concatenate([np.sin(x), np.cos(x)], axis=2)
        a, b = np.stack([np.linalg.lstsq(w, t, rcond=None)[0][:, 0] for w, t in zip(waves, y)]).T
        amplitude, phase = np.hypot(a, b), np.arctan2(b, a)
        assert 0.1 <= amplitude.min() < 0.11 < 0.49 < amplitude.max() <= 0.5001
        assert 0 <= phase.min() < 0.01 < 3.13 < phase.max() <= math.pi + 1e-3
        correlation = np.corrcoef(amplitude, phase)[0, 1]
        assert correlation > 0.999 if tied else abs(correlation) < 0.06


def test_shifted_tasks_mix_three_laws():
    tasks = icl.shifted_tasks(jax.random.key(5), 600, scale=2.5)
    np.testing.assert_allclose(jnp.linalg.norm(tasks.x, axis=(1, 2)), 2.5, rtol=1e-5)
    positive = (np.asarray(tasks.x) >= 0).all((1, 2))
    assert 0.25 < positive.mean() < 0.42  # the exponential third


def test_replaced_targets():
    tasks = icl.linear_tasks(jax.random.key(6), 400)
    noisy = icl.replace_targets(jax.random.key(7), tasks, 4)
    changed = np.asarray(noisy.y != tasks.y)[..., 0]
    np.testing.assert_array_equal(changed.sum(1), 4)
    assert changed.mean(0).min() > 0.3
    assert changed.mean(0).max() < 0.5
    assert np.asarray(noisy.y)[changed[..., None]].std() == pytest.approx(1, abs=0.1)
    np.testing.assert_array_equal(noisy.target, tasks.target)


def test_tokens():
    tasks = icl.linear_tasks(jax.random.key(8), 1, num_context=3, num_inputs=4, num_outputs=2)
    x, y, query, _ = (leaf[0] for leaf in tasks)
    tokens = icl.classic_tokens(x, y, query)
    np.testing.assert_array_equal(tokens[::2], jnp.concatenate([x, query[None]]))
    np.testing.assert_array_equal(tokens[1::2, 2:], y)
    assert not tokens[1::2, :2].any()
    positions = icl.sinusoidal_positions(5, 6)
    assert positions[3, 2] == pytest.approx(math.sin(3 / 10_000 ** (2 / 6)))
    assert positions[3, 5] == pytest.approx(math.cos(3 / 10_000 ** (4 / 6)))


def test_features_residual():
    weights = icl.init_features(jax.random.key(0), num_inputs=2, width=6, hidden=3, variance=1.0)
    tokens = jax.random.normal(jax.random.key(1), (5, 2))
    without = weights._replace(down=jnp.zeros_like(weights.down))
    np.testing.assert_allclose(icl.features(without, tokens), tokens @ weights.embed, atol=1e-6)
    hidden = jax.nn.gelu(tokens @ weights.embed @ weights.up)
    np.testing.assert_allclose(
        icl.features(weights, tokens) - tokens @ weights.embed, hidden @ weights.down, atol=1e-5
    )


def test_bad_inputs():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="num_tasks > 0"):
        icl.linear_tasks(key, 0)
    with pytest.raises(ValueError, match="law to be one of"):
        icl.linear_tasks(key, 2, law="cauchy")
    with pytest.raises(ValueError, match="one entry per input"):
        icl.linear_tasks(key, 2, scales=jnp.ones(3))
    with pytest.raises(ValueError, match="num_context > 0"):
        icl.sine_tasks(key, 2, num_context=0)
    with pytest.raises(ValueError, match="num_inputs > 0"):
        icl.shifted_tasks(key, 2, num_inputs=0)
    with pytest.raises(ValueError, match="num_classes >= 2"):
        icl.classification_tasks(key, 2, num_classes=1)
    with pytest.raises(ValueError, match="even size"):
        icl.sinusoidal_positions(4, 3)
    with pytest.raises(ValueError, match="no more outputs than inputs"):
        icl.classic_tokens(jnp.ones((2, 1)), jnp.ones((2, 2)), jnp.ones(1))
    with pytest.raises(ValueError, match="hidden > 0"):
        icl.init_features(key, num_inputs=2, width=2, hidden=0)
