"""MMD and energy distance: definitions, other libraries' numbers, unbiasedness, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from gradkin import kernels
from tests.kernels import dependence as oracle

GAUSSIAN = kernels.Gaussian(1.0)


def f32(x):
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(
    ("kernel", "dense"),
    [
        (GAUSSIAN, oracle.gaussian),
        (kernels.Energy(), lambda x, y=None: -oracle.distances(x, y)),
        (lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2) / 2), oracle.gaussian),
    ],
    ids=["gaussian", "energy", "function"],
)
def test_definition(kernel, dense, unbiased):
    x, y = oracle.X[:5], oracle.X[5:]
    value = kernels.squared_mmd(kernel, f32(x), f32(y), unbiased=unbiased)
    np.testing.assert_allclose(value, oracle.mmd(dense, x, y, unbiased), rtol=1e-5)
    # Streamed in blocks of three rows.
    value = kernels.squared_mmd(kernel, f32(x), f32(y), unbiased=unbiased, block=3)
    np.testing.assert_allclose(value, oracle.mmd(dense, x, y, unbiased), rtol=1e-5)


def test_energy_distance_of_other_libraries():
    """dcor 0.7 ``energy_distance(x[:5], x[5:])``, and the square of scipy 1.17's."""
    x, X = oracle.X1, oracle.X
    of = lambda a: kernels.energy_distance(f32(a[:5]), f32(a[5:]))
    np.testing.assert_allclose(of(x), 0.18578793015426143, rtol=1e-5)
    np.testing.assert_allclose(of(X), 0.34777566914924885, rtol=1e-5)


def test_linear_kernel_is_the_distance_of_means(key):
    x, y = jax.random.normal(key, (7, 3)), jax.random.normal(key, (9, 3)) + 1
    value = kernels.squared_mmd(kernels.Linear(), x, y)
    np.testing.assert_allclose(value, jnp.sum((x.mean(0) - y.mean(0)) ** 2), rtol=1e-4)


def test_the_v_statistic_is_not_called_unbiased(key):
    """google-research#1926: of equal distributions the U-statistic has mean 0, the V-statistic not.

    The latter's is ``2 (1 - E k) / n``.
    """

    def both(k):
        x, y = jax.random.normal(k, (2, 5, 1))
        return [kernels.squared_mmd(GAUSSIAN, x, y, unbiased=u) for u in (True, False)]

    unbiased, biased = jax.jit(jax.vmap(both))(jax.random.split(key, 4000))
    mean_kernel = 1 / np.sqrt(3)
    np.testing.assert_allclose(unbiased.mean(), 0, atol=0.012)
    np.testing.assert_allclose(biased.mean(), 2 * (1 - mean_kernel) / 5, atol=0.012)
    assert unbiased.min() < 0 <= biased.min() + 1e-6


def test_weights_count_points():
    x, y = oracle.X[:5], oracle.X[5:9]
    counts = np.array([1, 3, 2, 1, 1])
    repeated = kernels.squared_mmd(GAUSSIAN, f32(np.repeat(x, counts, axis=0)), f32(y))
    weighted = kernels.squared_mmd(GAUSSIAN, f32(x), f32(y), weights=(f32(counts), None))
    np.testing.assert_allclose(weighted, repeated, rtol=1e-5)
    weighted = kernels.squared_mmd(GAUSSIAN, f32(y), f32(x), weights=(None, counts))
    np.testing.assert_allclose(weighted, repeated, rtol=1e-5)
    for unbiased in (False, True):
        equal = kernels.squared_mmd(
            GAUSSIAN, f32(x), f32(y), unbiased=unbiased, weights=(jnp.full(5, 3.0), jnp.ones(4))
        )
        np.testing.assert_allclose(
            equal, oracle.mmd(oracle.gaussian, x, y, unbiased), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("unbiased", [False, True])
def test_mask_leaves_out_even_nan(unbiased):
    x, y = oracle.X[:6].copy(), oracle.X[6:]
    keep = np.array([True, True, False, True, True, False])
    expected = oracle.mmd(oracle.gaussian, x[keep], y, unbiased)
    x[~keep] = np.nan
    for weights in ((None, None), (jnp.ones(6), None)):
        value = kernels.squared_mmd(
            GAUSSIAN, f32(x), f32(y), unbiased=unbiased, mask=(keep, None), weights=weights
        )
        np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize("unbiased", [False, True])
def test_too_few_points_left_give_nan(unbiased):
    x, few = jnp.arange(3.0), np.arange(3) < int(unbiased)
    for mask in ((few, None), (None, few)):
        options = {"unbiased": unbiased, "mask": mask}
        assert np.isnan(kernels.squared_mmd(GAUSSIAN, x, x + 1, **options))
        assert np.isnan(kernels.energy_distance(x, x + 1, **options))
    enough = np.arange(3) < 1 + int(unbiased)
    assert np.isfinite(kernels.energy_distance(x, x, unbiased=unbiased, mask=(enough, enough)))


def test_gradients(key):
    x, y = jax.random.normal(key, (4, 2)), jax.random.normal(key, (5, 2)) + 0.5
    of = lambda x, h: kernels.squared_mmd(kernels.Gaussian(h), x, y, unbiased=True)
    check_grads(of, (x, jnp.float32(0.8)), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
    assert bool(jnp.all(jnp.isfinite(jax.grad(kernels.energy_distance)(jnp.ones((4, 2)), y))))


def test_sharded(key, mesh):
    x, y = jax.random.normal(key, (16, 2)), jax.random.normal(key, (8, 2)) + 1
    split = [jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in (x, y)]
    value = kernels.squared_mmd(GAUSSIAN, *split, unbiased=True)
    np.testing.assert_allclose(
        value, kernels.squared_mmd(GAUSSIAN, x, y, unbiased=True), rtol=1e-4, atol=1e-6
    )


def test_linear_time_and_blocks(key):
    x, y = np.asarray(jax.random.normal(key, (2, 12, 2)))
    K = lambda a, b: oracle.gaussian(a[None], b[None])[0, 0]
    terms = [
        K(x[i], x[i + 1]) + K(y[i], y[i + 1]) - K(x[i], y[i + 1]) - K(x[i + 1], y[i])
        for i in range(0, 12, 2)
    ]
    found = kernels.linear_squared_mmd(GAUSSIAN, x, y)
    np.testing.assert_allclose(found.value, np.mean(terms), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.standard_error, np.std(terms, ddof=1) / 6**0.5, rtol=1e-4)
    blocks = [oracle.mmd(oracle.gaussian, x[i : i + 4], y[i : i + 4], True) for i in (0, 4, 8)]
    found = kernels.block_squared_mmd(GAUSSIAN, x, y, block_size=4)
    np.testing.assert_allclose(found.value, np.mean(blocks), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.standard_error, np.std(blocks, ddof=1) / 3**0.5, rtol=1e-4)
    whole = kernels.block_squared_mmd(lambda a, b: GAUSSIAN(a, b), x, y, block_size=12)
    np.testing.assert_allclose(
        whole.value, kernels.squared_mmd(GAUSSIAN, x, y, unbiased=True), rtol=1e-4, atol=1e-6
    )
    assert np.isnan(whole.standard_error)


def test_standard_error_covers(key):
    """Of 400 samples about 95% lie within 1.96 standard errors of the truth, of a shift by 1."""
    x, y = jax.random.normal(key, (2, 400, 200, 1))
    truth = 2 / np.sqrt(3) * (1 - np.exp(-1 / 6))
    for estimate in (
        kernels.linear_squared_mmd,
        lambda *a: kernels.block_squared_mmd(*a, block_size=5),
    ):
        found = jax.vmap(functools.partial(estimate, GAUSSIAN))(x, y + 1)
        covered = np.mean(np.abs(found.value - truth) < 1.96 * found.standard_error)
        assert 0.9 < covered < 0.98


def test_median_distance():
    x = oracle.X
    d = oracle.distances(x)[np.triu_indices(12, 1)]
    np.testing.assert_allclose(kernels.median_distance(f32(x)), np.median(d), rtol=1e-5)
    some = oracle.distances(x[::3])[np.triu_indices(4, 1)]
    np.testing.assert_allclose(
        kernels.median_distance(f32(x), max_points=4), np.median(some), rtol=1e-5
    )
    with pytest.raises(ValueError, match="Expected points that differ"):
        kernels.median_distance(jnp.ones((5, 2)))
    with pytest.raises(ValueError, match="at least 2 points"):
        kernels.median_distance(jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="max_points >= 2"):
        kernels.median_distance(jnp.ones((3, 2)), max_points=1)


ONE, FIVE = jnp.zeros((1, 2)), jnp.arange(10.0).reshape(5, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.squared_mmd(GAUSSIAN, ONE, FIVE, unbiased=True), "2 points in x"),
        (lambda: kernels.energy_distance(FIVE, ONE, unbiased=True), "2 points in y"),
        (lambda: kernels.squared_mmd(GAUSSIAN, FIVE, FIVE[:, :1]), "one shape and dtype"),
        (lambda: kernels.squared_mmd(kernels.Gaussian(0.0), FIVE, FIVE), "bandwidth > 0"),
        (lambda: kernels.squared_mmd(GAUSSIAN, FIVE * jnp.nan, FIVE), "Expected x to be finite"),
        (
            lambda: kernels.squared_mmd(GAUSSIAN, FIVE, FIVE, weights=(jnp.zeros(5), None)),
            "sum of the weights of x > 0 and finite",
        ),
        (
            lambda: kernels.squared_mmd(GAUSSIAN, FIVE, FIVE, weights=(None, -jnp.ones(5))),
            "weights of y >= 0",
        ),
        (
            lambda: kernels.squared_mmd(GAUSSIAN, FIVE, FIVE, weights=(jnp.ones(4), None)),
            "Expected weights to have shape",
        ),
        (lambda: kernels.linear_squared_mmd(GAUSSIAN, FIVE, FIVE), "multiple of 2 points, got 5"),
        (
            lambda: kernels.block_squared_mmd(GAUSSIAN, FIVE, FIVE, block_size=3),
            "multiple of 3 points",
        ),
        (lambda: kernels.block_squared_mmd(GAUSSIAN, FIVE, FIVE, block_size=1), "block_size >= 2"),
        (lambda: kernels.linear_squared_mmd(GAUSSIAN, FIVE, FIVE[:4]), "one shape and dtype"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
