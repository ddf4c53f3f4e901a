"""HSIC and CKA: the formulas with traces, closed forms, other libraries' numbers, known bugs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from gradkin import kernel_matrix, kernels
from tests.kernels import dependence as oracle

X, Y = oracle.X, oracle.Y
GAUSSIAN, LINEAR = kernels.Gaussian(1.0), kernels.Linear()


def f32(x):
    return jnp.asarray(x, jnp.float32)


def matrices(kernel: Any = GAUSSIAN, x=oracle.X, y=oracle.Y, *, block=None):
    return tuple(kernel_matrix(kernel, f32(points), block=block) for points in (x, y))


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(
    ("kernel", "dense"),
    [
        (GAUSSIAN, oracle.gaussian),
        (LINEAR, oracle.linear),
        (lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2) / 2), oracle.gaussian),
    ],
    ids=["gaussian", "linear", "function"],
)
def test_definition(kernel, dense, unbiased):
    K, L = (dense(points) for points in (oracle.X, oracle.Y))
    expected = oracle.hsic(K, L, unbiased)
    for block in (None, 5):
        found = kernels.hsic(*matrices(kernel, block=block), unbiased=unbiased, passes=2)
        np.testing.assert_allclose(found, expected, rtol=2e-5)
    found = kernels.hsic(*matrices(kernel), unbiased=unbiased)
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    ratio = expected / np.sqrt(oracle.hsic(K, K, unbiased) * oracle.hsic(L, L, unbiased))
    found = kernels.cka(*matrices(kernel), unbiased=unbiased)
    np.testing.assert_allclose(found, ratio, rtol=2e-5)


def test_alignment_of_other_libraries():
    """hyppo 0.5.2 ``Hsic("gaussian", bias=..., gamma=0.5).statistic``; biased it takes the root."""
    np.testing.assert_allclose(kernels.cka(*matrices()), 0.638434541476078**2, rtol=1e-5)
    np.testing.assert_allclose(
        kernels.cka(*matrices(), unbiased=True), 0.18532502510375273, rtol=1e-5
    )


def test_linear_kernels_give_the_covariance():
    x, y = (points - points.mean(0) for points in (oracle.X, oracle.Y))
    expected = np.sum((x.T @ y / 11) ** 2)
    np.testing.assert_allclose(kernels.hsic(*matrices(LINEAR)), expected, rtol=1e-5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_symmetries(unbiased):
    order = np.random.default_rng(0).permutation(12)
    value = kernels.hsic(*matrices(), unbiased=unbiased)
    swapped = kernels.hsic(*matrices(x=oracle.Y, y=oracle.X), unbiased=unbiased)
    moved = kernels.hsic(*matrices(x=oracle.X[order], y=oracle.Y[order]), unbiased=unbiased)
    np.testing.assert_allclose([swapped, moved], [value, value], rtol=1e-5)
    # Scale and shift of a representation do not change the alignment of linear kernels.
    of = lambda x: kernels.cka(*matrices(LINEAR, x=x), unbiased=unbiased)
    np.testing.assert_allclose(of(3 * oracle.X - 5), of(oracle.X), rtol=1e-4)


def test_unbiased_means_unbiased(key):
    """MONAI#9129: debiased alignment of unrelated data was 0.198 instead of 0.017.

    More features than points: biased it is near 1. And cka_pytorch#2: a broadcast of the diagonal
    made HSIC of a matrix with itself negative.
    """
    keys = jax.random.split(key, 300)

    @jax.jit
    @jax.vmap
    def of(k):
        x, y = jax.random.normal(k, (2, 16, 40))
        K, L = kernel_matrix(LINEAR, x), kernel_matrix(LINEAR, y)
        return kernels.hsic_stats(K, L, unbiased=True), kernels.cka(K, L)

    stats, biased = of(keys)
    assert float(biased.mean()) > 0.6
    assert abs(float(stats.cka().mean())) < 0.01
    assert float(stats.kk.min()) > 0
    error = stats.kl.std() / np.sqrt(300)
    assert abs(float(stats.kl.mean())) < 4 * float(error)


@pytest.mark.parametrize("unbiased", [False, True])
def test_linear_alignment_in_feature_space(unbiased):
    """netrep#19: the roots in the denominator."""
    found = kernels.linear_cka(f32(oracle.X), f32(oracle.Y), unbiased=unbiased)
    expected = kernels.cka(*matrices(LINEAR), unbiased=unbiased)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    large = kernels.linear_cka(f32(1e15 * oracle.X), f32(1e-15 * oracle.Y), unbiased=unbiased)
    np.testing.assert_allclose(large, expected, rtol=1e-5)
    constant = kernels.linear_cka(jnp.ones((5, 2)), f32(oracle.Y[:5]), unbiased=unbiased)
    assert float(constant) == 0


def test_mini_batches(key):
    """Ratios of sums over small batches agree with the whole; means of biased ratios do not."""
    x = jax.random.normal(key, (1600, 6))
    y = x[:, :3] + jax.random.normal(jax.random.fold_in(key, 1), (1600, 3))
    whole = kernels.linear_cka(x, y)

    @jax.jit
    @jax.vmap
    def of(x, y):
        K, L = kernel_matrix(LINEAR, x), kernel_matrix(LINEAR, y)
        return kernels.hsic_stats(K, L, unbiased=True), kernels.cka(K, L)

    stats, biased = of(x.reshape(200, 8, 6), y.reshape(200, 8, 3))
    merged = jax.tree.map(lambda s: s[0], stats)
    for i in range(1, 200):
        merged = merged.merge(jax.tree.map(lambda s: s[i], stats))  # noqa: B023
    np.testing.assert_allclose(merged.cka(), whole, atol=0.05)
    assert float(biased.mean()) > float(whole) + 0.1


def test_weights_count_points():
    counts = np.array([1, 2, 1, 1, 3, 1, 1, 1, 2, 1, 1, 1])
    x, y = (np.repeat(points, counts, axis=0) for points in (oracle.X, oracle.Y))
    # The sums agree; the factor is that of weights, 1 - sum p^2 in place of (n - 1) / n.
    repeated = oracle.hsic(oracle.gaussian(x), oracle.gaussian(y)) * (15 / 16) ** 2
    p = counts / 16
    found = kernels.hsic(*matrices(), weights=f32(5 * counts))
    np.testing.assert_allclose(found, repeated / (1 - np.sum(p**2)) ** 2, rtol=1e-5)
    equal = kernels.hsic(*matrices(), weights=jnp.full(12, 0.3))
    np.testing.assert_allclose(equal, kernels.hsic(*matrices()), rtol=1e-5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_mask_leaves_out_even_nan(unbiased):
    keep = np.arange(12) % 4 != 1
    expected = oracle.hsic(
        oracle.gaussian(oracle.X[keep]), oracle.gaussian(oracle.Y[keep]), unbiased
    )
    x = np.where(keep[:, None], oracle.X, np.nan)
    K = kernel_matrix(GAUSSIAN, f32(x), mask=keep)
    L = kernel_matrix(GAUSSIAN, f32(oracle.Y))
    np.testing.assert_allclose(kernels.hsic(K, L, unbiased=unbiased), expected, rtol=1e-4)
    if not unbiased:
        weighted = kernels.hsic(K, L, weights=jnp.ones(12))
        np.testing.assert_allclose(weighted, expected, rtol=1e-4)


def test_too_few_points_left_give_nan():
    for kept, unbiased in ((3, True), (1, False)):
        K, L = (kernel_matrix(GAUSSIAN, f32(z), mask=np.arange(12) < kept) for z in (X, Y))
        assert np.isnan(kernels.hsic(K, L, unbiased=unbiased))
        assert np.isnan(kernels.cka(K, L, unbiased=unbiased))


def test_constant_features_align_with_nothing():
    K, L = matrices(x=np.ones((12, 2)))
    for unbiased in (False, True):
        assert float(kernels.cka(K, L, unbiased=unbiased)) == 0
    grad = jax.grad(lambda x: kernels.cka(kernel_matrix(GAUSSIAN, x), L))(jnp.ones((12, 2)))
    assert bool(jnp.all(jnp.isfinite(grad)))


def test_gradients():
    x, L = f32(oracle.X[:6]), kernel_matrix(GAUSSIAN, f32(oracle.Y[:6]))
    of = lambda x, h: kernels.hsic(kernel_matrix(kernels.Gaussian(h), x), L, unbiased=True)
    check_grads(of, (x, jnp.float32(0.8)), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("unbiased", [False, True])
def test_sharded(mesh, key, unbiased):
    x, y = jax.random.normal(key, (16, 2)), jax.random.normal(key, (16, 3)) ** 2
    split = [jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in (x, y)]
    found, expected = (
        kernels.hsic(*(kernel_matrix(GAUSSIAN, a) for a in pair), unbiased=unbiased)
        for pair in (split, (x, y))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_float64():
    with jax.enable_x64(True):
        K, L = (kernel_matrix(GAUSSIAN, jnp.asarray(z)) for z in (oracle.X, oracle.Y))
        found = kernels.hsic(K, L, unbiased=True)
        assert found.dtype == jnp.float64
        dense = oracle.hsic(oracle.gaussian(oracle.X), oracle.gaussian(oracle.Y), True)
        np.testing.assert_allclose(found, dense, rtol=1e-12)


THREE = kernel_matrix(GAUSSIAN, jnp.arange(3.0))
SIX = kernel_matrix(GAUSSIAN, jnp.arange(6.0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kernels.hsic(THREE, THREE, unbiased=True), ValueError, "at least 4 points"),
        (lambda: kernels.cka(THREE, THREE, unbiased=True), ValueError, "at least 4 points"),
        (lambda: kernels.hsic(THREE, SIX), ValueError, r"paired points, got \[3, 6\]"),
        (lambda: kernels.hsic(SIX, jnp.eye(6)), TypeError, "Expected kernel matrices"),
        (
            lambda: kernels.hsic(SIX, kernel_matrix(GAUSSIAN, jnp.ones(6), jnp.ones(6))),
            ValueError,
            "got one with y",
        ),
        (
            lambda: kernels.hsic(SIX, kernel_matrix(GAUSSIAN, jnp.ones(6), weights=jnp.ones(6))),
            ValueError,
            "pass weights= here",
        ),
        (lambda: kernels.hsic(SIX, SIX.off_diagonal()), ValueError, "with their diagonal"),
        (lambda: kernels.hsic(SIX, SIX, weights=-jnp.ones(6)), ValueError, "weights >= 0"),
        (lambda: kernels.hsic(SIX, SIX, weights=jnp.zeros(6)), ValueError, "sum of weights > 0"),
        (
            lambda: kernels.hsic(SIX, SIX, unbiased=True, weights=jnp.ones(6)),
            ValueError,
            "unbiased=False with weights",
        ),
        (
            lambda: kernels.linear_cka(jnp.ones((3, 1)), jnp.ones((3, 1)), unbiased=True),
            ValueError,
            "at least 4 points",
        ),
        (
            lambda: kernels.linear_cka(jnp.ones((3, 1)), jnp.ones((4, 1))),
            ValueError,
            "paired points",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
