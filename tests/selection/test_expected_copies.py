"""From expected copies to a corpus: budgets, caps, draws that are right on average, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import kernels, selection

scale = jax.jit(selection.scale_to_budget)
mixture_of = jax.jit(selection.expected_mixture, static_argnums=2)
effective = jax.jit(lambda p: jnp.exp(kernels.renyi_entropy(p)))


def documents(seed, size=300):
    rng = np.random.default_rng(seed)
    values = np.where(rng.uniform(size=size) < 0.2, 0, rng.exponential(size=size) ** 3)
    return values.astype(np.float32), rng.integers(1, 90, size).astype(np.int32)


@pytest.mark.parametrize("seed", range(4))
def test_expected_tokens_are_the_budget(seed):
    values, tokens = documents(seed)
    found = np.asarray(scale(values, 5000.0, tokens=tokens), np.float64)
    np.testing.assert_allclose(found @ tokens, 5000, rtol=1e-6)
    np.testing.assert_allclose(found * values.max(), values * found.max(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("cap", [0.7, 4.0])
def test_caps_keep_budget_and_order(share, cap):
    values, tokens = documents(7)
    budget = np.float32(share * cap * tokens[values > 0].sum())
    found = np.asarray(scale(values, budget, tokens=tokens, max_copies=cap), np.float64)
    np.testing.assert_allclose(found @ tokens, budget, rtol=2e-6)
    assert found.max() <= cap * (1 + 1e-6)
    assert np.all(found[values == 0] == 0)
    # All below the cap share one factor, and none at the cap would be below it by that factor.
    free = (found < cap * (1 - 1e-5)) & (values > 0)
    if free.any():
        factor = found[free] / values[free]
        np.testing.assert_allclose(factor, factor[0], rtol=1e-4)
        assert np.all(factor[0] * values[(values > 0) & ~free] >= cap * (1 - 1e-4))


def test_a_cap_that_nothing_reaches_changes_nothing():
    values, tokens = documents(1)
    free = scale(values, 800.0, tokens=tokens)
    np.testing.assert_allclose(scale(values, 800.0, tokens=tokens, max_copies=1e3), free, rtol=1e-6)
    traced = scale(values, 1e9, tokens=tokens, max_copies=2.0)
    assert np.all(np.isnan(traced))


def test_draws_are_right_on_average_and_whole_numbers_certain(key):
    values = np.array([0, 0.25, 0.9, 1, 2.5, 7], np.float32)
    trials = 8000
    run = jax.jit(jax.vmap(selection.draw_copies, (0, None)))
    keys = jax.random.split(key, trials)
    found = np.asarray(run(keys, values))
    part = values - np.floor(values)
    deviation = np.sqrt(part * (1 - part) / trials)
    assert np.all(np.abs(found.mean(0) - values) <= 4 * deviation)
    np.testing.assert_array_equal(found[:, part == 0], np.tile(values[part == 0], (trials, 1)))
    assert np.all((found == np.floor(values)) | (found == np.ceil(values)))
    # With the same key more are drawn of what is wanted more.
    more = run(keys, values + np.float32(0.3))
    assert np.all(np.asarray(more) >= found)


def test_mixture_and_its_effective_number_of_domains():
    values, tokens = documents(3)
    domain = (np.arange(300) % 5).astype(np.int32)
    found = mixture_of(values, domain, 5, tokens=tokens)
    expected = np.bincount(domain, weights=values * tokens.astype(np.float64))
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5)
    even = mixture_of(np.ones(300, np.float32), domain, 5, tokens=np.full(300, 9, np.int32))
    np.testing.assert_allclose(effective(even), 5, rtol=1e-5)


def test_bad_input(key):
    values, tokens = documents(5, size=10)
    values = values + 1
    domain = np.zeros(10, np.int32)
    with pytest.raises(ValueError, match=r"Expected budget <= \d+.*, 2.0 copies of all"):
        selection.scale_to_budget(values, 1e6, tokens=tokens, max_copies=2.0)
    with pytest.raises(ValueError, match="nothing to draw"):
        selection.scale_to_budget(0 * values, 3.0)
    with pytest.raises(ValueError, match="values >= 0"):
        selection.scale_to_budget(-values, 3.0)
    with pytest.raises(ValueError, match="budget > 0"):
        selection.scale_to_budget(values, 0.0)
    with pytest.raises(ValueError, match="max_copies > 0"):
        selection.scale_to_budget(values, 1.0, max_copies=0.0)
    with pytest.raises(ValueError, match="tokens > 0"):
        selection.scale_to_budget(values, 1.0, tokens=0 * tokens)
    with pytest.raises(ValueError, match=r"tokens of shape \(10,\)"):
        selection.scale_to_budget(values, 1.0, tokens=tokens[1:])
    with pytest.raises(ValueError, match="at least one document"):
        selection.scale_to_budget(values[:0], 1.0)
    with pytest.raises(ValueError, match="values >= 0"):
        selection.draw_copies(key, -values)
    with pytest.raises(ValueError, match=r"domain in 0, ..., 1, got 2 to 2"):
        selection.expected_mixture(values, domain + 2, 2)
    with pytest.raises(ValueError, match=r"domain of shape \(10,\)"):
        selection.expected_mixture(values, domain[1:], 2)


def test_what_cannot_be_counted_is_marked(key):
    values = jnp.array([jnp.nan, 3e9, -1.0, 2.0])
    assert jax.jit(selection.draw_copies)(key, values).tolist() == [-1, -1, -1, 2]
    with pytest.raises(ValueError, match="Expected values below 2147483647"):
        selection.draw_copies(key, jnp.array([3e9]))
    assert selection.draw_copies(key, np.array([2, 0])).tolist() == [2, 0]
    rare = jnp.full(20_000, 0.001, jnp.bfloat16)
    assert 5 <= int(selection.draw_copies(key, rare).sum()) <= 40  # of 20 on average


def test_nothing_wanted():
    with pytest.raises(ValueError, match="nothing to draw"):
        selection.expected_mixture(jnp.zeros(2), jnp.arange(2), 2)
    assert np.all(np.isnan(mixture_of(jnp.zeros(2), jnp.arange(2), 2)))
