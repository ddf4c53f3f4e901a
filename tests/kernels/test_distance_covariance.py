"""Distance covariance: definitions, other libraries' numbers, sorting, large n, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from gradkin import kernel_matrix, kernels
from tests.kernels import dependence as oracle

MEASURES = (kernels.squared_distance_covariance, kernels.squared_distance_correlation)


def f32(x):
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize(
    ("x", "y", "method", "expected"),
    [
        # dcor 0.7: distance_covariance_sqr, u_distance_covariance_sqr, distance_correlation_sqr,
        # u_distance_correlation_sqr of (X1, Y1) and of (X, Y).
        *(
            (
                oracle.X1,
                oracle.Y1,
                method,
                (0.10748869049, 0.05313284204, 0.33215070522, 0.16064589),
            )
            for method in ("tiles", "sort")
        ),
        (
            oracle.X,
            oracle.Y,
            "tiles",
            (0.19310438717, 0.06267295391, 0.46004860958, 0.17689695128),
        ),
    ],
)
def test_other_libraries(x, y, method, expected):
    found = [
        measure(f32(x), f32(y), unbiased=unbiased, method=method)
        for measure in MEASURES
        for unbiased in (False, True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found[:2], [oracle.dcov(x, y, u) for u in (False, True)], rtol=1e-5)


def test_distances_are_minus_the_energy_kernel():
    K, L = (kernel_matrix(kernels.Energy(), f32(z)) for z in (oracle.X, oracle.Y))
    found = kernels.hsic(K, L, unbiased=True)
    np.testing.assert_allclose(found, oracle.dcov(oracle.X, oracle.Y, True), rtol=1e-5)


@pytest.mark.parametrize("kind", ["numbers", "ties"])
@pytest.mark.parametrize("size", [5, 64])
def test_sorting_finds_the_same(size, kind):
    rng = np.random.default_rng(size)
    x, y = rng.normal(size=(2, size))
    if kind == "ties":
        x, y = np.round(x), np.round(x + y)
    for unbiased in (False, True):
        sorted_, tiles = (
            kernels.squared_distance_covariance(f32(x), f32(y), unbiased=unbiased, method=method)
            for method in ("sort", "tiles")
        )
        exact = oracle.dcov(x, y, unbiased)
        np.testing.assert_allclose([sorted_, tiles], [exact, exact], rtol=1e-4, atol=1e-6)


def test_many_points_with_ties():
    """hyppo#353: beyond 70,000 points n (n - 3) overflowed 32 bits.

    Of two binary variables all sums follow from the four counts.
    """
    n = 80_000
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, n)
    y = np.where(rng.random(n) < 0.3, x, rng.integers(0, 2, n))
    table = np.array([[np.sum((x == i) & (y == j)) for j in (0, 1)] for i in (0, 1)], np.float64)
    a, b = n - table.sum(1), n - table.sum(0)
    products = 2 * (table[0, 0] * table[1, 1] + table[0, 1] * table[1, 0])
    whole = np.sum((n - a) * a) * np.sum((n - b) * b) / ((n - 1) * (n - 2))
    exact = (products - 2 / (n - 2) * a @ table @ b + whole) / (n * (n - 3))
    found = kernels.squared_distance_covariance(f32(x), f32(y), unbiased=True)
    np.testing.assert_allclose(found, exact, rtol=2e-5)


def test_far_from_the_origin():
    """In float32 the plain sums would have no digit left."""
    x, y = (np.float32(z) for z in (oracle.X1 + 1000, oracle.Y1 - 3000))
    exact = oracle.dcov(x, y, True)
    for method in ("tiles", "sort"):
        found = kernels.squared_distance_covariance(x, y, unbiased=True, method=method)
        np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_unbiased_under_independence(key):
    @jax.jit
    @jax.vmap
    def of(k):
        x, y = jax.random.normal(k, (2, 8, 5))
        return [kernels.squared_distance_covariance(x, y, unbiased=u) for u in (True, False)]

    unbiased, biased = of(jax.random.split(key, 1000))
    assert abs(float(unbiased.mean())) < 4 * float(unbiased.std()) / np.sqrt(1000)
    assert float(biased.min()) > 0


def correlation(x, y, *, unbiased):
    return kernels.squared_distance_correlation(f32(x), f32(y), unbiased=unbiased)


def test_invariances(key):
    rotation, _ = np.linalg.qr(np.asarray(jax.random.normal(key, (3, 3))))
    for unbiased in (False, True):
        of = functools.partial(correlation, unbiased=unbiased)
        value = of(oracle.X, oracle.Y)
        np.testing.assert_allclose(of(oracle.X, 5 * oracle.Y @ rotation + 2), value, rtol=1e-4)
        np.testing.assert_allclose(of(oracle.Y, oracle.X), value, rtol=1e-5)
        np.testing.assert_allclose(of(oracle.X, oracle.X), 1, rtol=1e-5)


def test_weights_and_mask():
    counts = np.arange(12) % 3
    x, y = (np.repeat(z, counts, axis=0) for z in (oracle.X, oracle.Y))
    found = kernels.squared_distance_covariance(f32(oracle.X), f32(oracle.Y), weights=counts)
    np.testing.assert_allclose(found, oracle.dcov(x, y), rtol=1e-5)
    keep = counts > 0
    hidden = np.where(keep[:, None], oracle.X, np.nan)
    for unbiased in (False, True):
        found = kernels.squared_distance_covariance(
            f32(hidden), f32(oracle.Y), unbiased=unbiased, mask=keep
        )
        exact = oracle.dcov(oracle.X[keep], oracle.Y[keep], unbiased)
        np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.mark.parametrize("method", ["tiles", "sort"])
def test_gradients(method):
    x, y = f32(oracle.X1[:7]), f32(oracle.Y1[:7])
    for unbiased in (False, True):
        of = jax.jit(
            functools.partial(kernels.squared_distance_covariance, unbiased=unbiased, method=method)
        )
        check_grads(of, (x, y), order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-3)
        ties = jax.grad(of)(jnp.zeros(7).at[0].set(1.0), y)
        assert bool(jnp.all(jnp.isfinite(ties)))


@pytest.mark.parametrize("unbiased", [False, True])
def test_gradients_of_ties(unbiased):
    """Of zero distances zero, whatever the order; numbers that tie in one variable, or in both."""
    x, y = np.random.default_rng(2).integers(0, 4, (2, 20))
    assert len(set(zip(x, y))) < 20
    gradients = []
    for method in ("sort", "tiles"):
        of = functools.partial(MEASURES[0], unbiased=unbiased, method=method)
        gradients.append(jax.grad(of, argnums=(0, 1))(f32(x), f32(x + y)))
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-5)


def test_constants_depend_on_nothing():
    for method in ("tiles", "sort"):
        for unbiased in (False, True):
            found = kernels.squared_distance_correlation(
                jnp.full(8, 3.0), jnp.arange(8.0), unbiased=unbiased, method=method
            )
            assert float(found) == 0


def test_sharded(key, mesh):
    x, y = jax.random.normal(key, (16, 2)), jax.random.normal(key, (16,)) ** 2
    split = [jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in (x, y)]
    np.testing.assert_allclose(
        kernels.squared_distance_covariance(*split),
        kernels.squared_distance_covariance(x, y),
        rtol=1e-4,
    )
    with pytest.raises(ValueError, match="on one device, for method='sort'"):
        kernels.squared_distance_covariance(split[1], split[1], method="sort")


def test_chi_squared_p_value(key):
    """hyppo 0.5.2 ``chi2_approx`` of (X, Y) gives 0.07720574976; the level is kept."""
    found = kernels.independence_p_value(0.17689695128436028, num_points=12)
    np.testing.assert_allclose(found, 0.07720574976397, rtol=1e-5)
    np.testing.assert_allclose(found, scipy.stats.chi2(1).sf(12 * 0.17689695128 + 1), rtol=1e-5)
    assert float(kernels.independence_p_value(-0.9, num_points=50)) == 1

    @jax.jit
    @jax.vmap
    def of(k):
        x, y = jax.random.normal(k, (2, 30, 3))
        r = kernels.squared_distance_correlation(x, y, unbiased=True)
        return kernels.independence_p_value(r, num_points=30)

    p_values = of(jax.random.split(key, 1000))
    assert 0.01 < float(jnp.mean((p_values < 0.05).astype(jnp.float32))) < 0.07


SIX = jnp.arange(6.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f: f(SIX[:3], SIX[:3], unbiased=True),
            "at least 4 points for unbiased=True, got 3",
        ),
        (lambda f: f(SIX[:3], SIX[:3], unbiased=True, method="sort"), "at least 4 points"),
        (lambda f: f(SIX, SIX[:4]), "paired points"),
        (lambda f: f(SIX, SIX, method="fft"), "Expected method to be one of"),
        (lambda f: f(SIX[:, None] * jnp.ones(2)[None], SIX, method="sort"), "one number each"),
        (lambda f: f(SIX, SIX, method="sort", mask=SIX > 1), "without weights and mask"),
        (lambda f: f(SIX, SIX.at[2].set(jnp.nan)), "finite"),
        (lambda f: f(SIX, SIX.at[2].set(jnp.inf), method="sort"), "Expected y to be finite"),
        (lambda f: f(SIX, SIX, weights=jnp.zeros(6)), "sum of weights > 0"),
        (lambda f: f(jnp.float32(1), SIX), "got a scalar"),
    ],
)
def test_bad_input(call, message):
    for measure in MEASURES:
        with pytest.raises(ValueError, match=message):
            call(measure)


def test_p_value_of_too_few():
    with pytest.raises(ValueError, match="num_points >= 4"):
        kernels.independence_p_value(0.5, num_points=3)
