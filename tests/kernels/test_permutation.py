"""Permutation tests: their statistics, all permutations of small samples, level and power."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import kernel_matrix, kernels
from tests.kernels import dependence as oracle

GAUSSIAN, ENERGY = kernels.Gaussian(1.0), kernels.Energy()


def f32(x):
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("unbiased", [False, True])
def test_statistic_of_two_samples(key, unbiased):
    x, y = f32(oracle.X[:5]), f32(oracle.X[5:])
    test = kernels.two_sample_test(key, GAUSSIAN, x, y, unbiased=unbiased, num_permutations=20)
    exact = oracle.mmd(oracle.gaussian, x, y, unbiased)
    np.testing.assert_allclose(test.statistic, exact, rtol=1e-4, atol=1e-6)
    assert test.permuted.shape == (20,)
    count = np.sum(np.asarray(test.permuted) >= float(test.statistic) - 1e-6)
    np.testing.assert_allclose(test.p_value, (1 + count) / 21, rtol=1e-6)


def test_permuted_statistics_of_two_samples(key):
    """Every one is the statistic of a split of the pooled points, and all splits come up."""
    x, y = oracle.X1[:2], oracle.X1[2:5]
    pooled = np.concatenate([x, y])
    possible = sorted(
        oracle.mmd(oracle.gaussian, pooled[list(c)], np.delete(pooled, c), True)
        for c in itertools.combinations(range(5), 2)
    )
    test = kernels.two_sample_test(key, GAUSSIAN, f32(x), f32(y), num_permutations=300)
    nearest = np.abs(np.asarray(test.permuted)[:, None] - np.array(possible)[None])
    assert nearest.min(1).max() < 1e-5
    assert set(nearest.argmin(1)) == set(range(10))
    # Whatever is drawn, one split in ten is as large as the largest.
    exact = np.mean(np.array(possible) >= float(test.statistic) - 1e-6)
    np.testing.assert_allclose(test.p_value, exact, atol=0.1)


@pytest.mark.parametrize("unbiased", [False, True])
def test_statistic_of_independence(key, unbiased):
    variables = (oracle.X, oracle.Y, oracle.X1)
    matrices = [kernel_matrix(ENERGY, f32(v)) for v in variables]
    two = kernels.independence_test(key, matrices[:2], unbiased=unbiased, num_permutations=9)
    exact = oracle.dcov(oracle.X, oracle.Y, unbiased)
    np.testing.assert_allclose(two.statistic, exact, rtol=1e-4)
    three = kernels.independence_test(
        key, matrices, offset=0.5, unbiased=unbiased, num_permutations=9
    )
    np.testing.assert_allclose(three.statistic, oracle.joint(variables, 0.5, unbiased), rtol=1e-4)


def test_permuted_statistics_of_independence(key):
    x, y = oracle.X1[:4], oracle.Y1[:4]
    possible = np.array([oracle.dcov(x, y[list(p)]) for p in itertools.permutations(range(4))])
    matrices = [kernel_matrix(ENERGY, f32(v)) for v in (x, y)]
    test = kernels.independence_test(key, matrices, unbiased=False, num_permutations=400)
    nearest = np.abs(np.asarray(test.permuted)[:, None] - possible[None])
    assert nearest.min(1).max() < 1e-5
    exact = np.mean(possible >= float(test.statistic) - 1e-6)
    np.testing.assert_allclose(test.p_value, exact, atol=0.1)


def test_level_is_kept(key):
    """Under the hypothesis p <= a has probability at most a."""

    def two_samples(k):
        data, draw = jax.random.split(k)
        x, y = jax.random.normal(data, (2, 10))
        return kernels.two_sample_test(draw, GAUSSIAN, x, y, num_permutations=19).p_value

    def independence(k):
        data, draw = jax.random.split(k)
        x, y = jax.random.normal(data, (2, 10))
        matrices = [kernel_matrix(GAUSSIAN, v) for v in (x, y)]
        return kernels.independence_test(draw, matrices, num_permutations=19).p_value

    for of in (two_samples, independence):
        p = jax.jit(jax.vmap(of))(jax.random.split(key, 600))
        for level in (0.1, 0.5):
            error = np.sqrt(level * (1 - level) / 600)
            share = float(jnp.mean((p <= level + 1e-6).astype(jnp.float32)))
            assert abs(share - level) < 4 * error


def test_ties_count_as_large(key):
    """Of constant data every permutation gives the same, to rounding: p is 1."""
    matrices = [kernel_matrix(GAUSSIAN, v) for v in (jnp.arange(8.0), jnp.full(8, 0.1))]
    assert float(kernels.independence_test(key, matrices, num_permutations=99).p_value) == 1
    binary = jnp.tile(jnp.array([0.0, 1.0]), 8)
    test = kernels.two_sample_test(key, ENERGY, binary, binary, num_permutations=99)
    assert float(test.p_value) == 1


def test_power(key):
    x = jax.random.normal(key, (40,))
    y = x**2 + 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (40,))
    matrices = [kernel_matrix(ENERGY, v) for v in (x, y)]
    test = kernels.independence_test(key, matrices, num_permutations=199)
    np.testing.assert_allclose(test.p_value, 1 / 200)
    assert (
        float(kernels.two_sample_test(key, ENERGY, x, x + 2, num_permutations=199).p_value) < 0.01
    )


def test_the_joint_test_sees_an_exclusive_or(key):
    s, t = jax.random.bernoulli(key, shape=(2, 60)).astype(jnp.float32)
    matrices = [kernel_matrix(ENERGY, v) for v in (jnp.abs(s - t), s, t)]
    test = kernels.independence_test(key, matrices, num_permutations=99)
    np.testing.assert_allclose(test.p_value, 0.01, rtol=1e-6)


SIX = jnp.arange(6.0)
K = kernel_matrix(GAUSSIAN, SIX)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: kernels.two_sample_test(k, GAUSSIAN, SIX, SIX[:1]), "2 points on either side"),
        (lambda k: kernels.two_sample_test(k, GAUSSIAN, SIX, SIX[:, None]), "one shape and dtype"),
        (
            lambda k: kernels.two_sample_test(k, GAUSSIAN, SIX, SIX, num_permutations=0),
            "num_permutations >= 1",
        ),
        (lambda k: kernels.independence_test(k, [K]), "at least 2 matrices"),
        (lambda k: kernels.independence_test(k, [K, K], num_permutations=0), "permutations >= 1"),
        (
            lambda k: kernels.independence_test(k, [K, kernel_matrix(GAUSSIAN, SIX, mask=SIX > 0)]),
            "without masks",
        ),
        (
            lambda k: kernels.independence_test(k, [kernel_matrix(GAUSSIAN, SIX[:3])] * 2),
            "at least 4 points",
        ),
    ],
)
def test_bad_input(key, call, message):
    with pytest.raises(ValueError, match=message):
        call(key)
