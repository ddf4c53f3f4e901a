"""Batches are drawn as the accountant believes."""

import jax
import numpy as np
import pytest

from gradkin import gradients


def test_poisson_inclusion_is_binomial(key):
    sampling = gradients.PoissonSampling(50, 0.1)
    rows, mask = jax.jit(jax.vmap(sampling.sample))(jax.random.split(key, 4000))
    counts = np.asarray(mask.sum(1))
    assert abs(counts.mean() - 5) < 5 * np.sqrt(4.5 / 4000)
    assert abs(counts.var() - 4.5) < 0.5
    drawn = np.zeros((4000, 50))
    np.add.at(drawn, (np.arange(4000)[:, None], np.asarray(rows)), np.asarray(mask))
    assert drawn.max() == 1
    assert np.all(np.abs(drawn.mean(0) - 0.1) < 5 * np.sqrt(0.09 / 4000))
    together = drawn.T @ drawn / 4000
    assert abs(together[np.triu_indices(50, 1)].mean() - 0.01) < 0.001


def test_default_padding_almost_never_overflows():
    sampling = gradients.PoissonSampling(60_000, 256 / 60_000)
    assert sampling.size % 8 == 0
    assert 0 < sampling.overflow_probability < 1e-15
    assert sampling.size < 2 * sampling.expected_size
    assert gradients.PoissonSampling(10, 1.0).size == 10


def test_overflow_keeps_a_random_subset(key):
    sampling = gradients.PoissonSampling(20, 0.9, padded_size=5)
    rows, mask = jax.vmap(sampling.sample)(jax.random.split(key, 4000))
    assert np.asarray(mask).mean() > 0.999
    frequency = np.bincount(np.asarray(rows).ravel(), minlength=20) / 4000
    assert np.all(np.abs(frequency - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000))


def test_probability_one_takes_everyone(key):
    rows, mask = gradients.PoissonSampling(7, 1.0).sample(key)
    assert sorted(rows.tolist()) == list(range(7))
    assert bool(mask.all())


def test_fixed_size_is_without_replacement(key):
    rows, mask = jax.vmap(gradients.FixedSizeSampling(10, 4).sample)(jax.random.split(key, 500))
    assert all(len(set(r)) == 4 for r in np.asarray(rows).tolist())
    assert bool(mask.all())
    assert gradients.FixedSizeSampling(10, 4).expected_size == 4
    assert gradients.FullBatch(3).size == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gradients.PoissonSampling(10, 1.5), "Expected 0 < probability <= 1"),
        (lambda: gradients.PoissonSampling(10, 0.0), "Expected 0 < probability <= 1"),
        (lambda: gradients.PoissonSampling(0, 0.1), "Expected num_examples to be a positive"),
        (lambda: gradients.PoissonSampling(9, 0.1, padded_size=0), "Expected padded_size"),
        (lambda: gradients.FixedSizeSampling(3, 4), "Expected batch_size <= num_examples"),
        (lambda: gradients.FullBatch(-1), "Expected num_examples to be a positive"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
