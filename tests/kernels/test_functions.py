"""Kernels: two points, tiles, logarithms, derivatives, and their distances in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import gradkin
from gradkin import kernels
from gradkin.matrices import distances

RNG = np.random.default_rng(0)
X = RNG.normal(size=(9, 11)).astype(np.float32)
Y = RNG.normal(size=(6, 11)).astype(np.float32)
DIFFERENCES = X[:, None].astype(np.float64) - Y[None]
L2 = np.sqrt(np.sum(DIFFERENCES**2, axis=-1))
L1 = np.sum(np.abs(DIFFERENCES), axis=-1)
DOT = X.astype(np.float64) @ Y.T
NORMS = np.sum(X.astype(float) ** 2, 1)[:, None], np.sum(Y.astype(float) ** 2, 1)[None]

CASES = {
    "gaussian": (kernels.Gaussian(1.5), np.exp(-(L2**2) / 4.5)),
    "laplacian": (kernels.Laplacian(3.0), np.exp(-L1 / 3)),
    "exponential": (kernels.Exponential(2.0), np.exp(-L2 / 2)),
    "cauchy": (kernels.Cauchy(2.0), 1 / (1 + L2**2 / 4)),
    "linear": (kernels.Linear(), DOT),
    "polynomial": (kernels.Polynomial(3, scale=0.5, offset=1.0), (DOT / 2 + 1) ** 3),
    "cosine": (kernels.Cosine(), DOT / np.sqrt(NORMS[0] * NORMS[1])),
    "tanimoto": (kernels.Tanimoto(), DOT / (NORMS[0] + NORMS[1] - DOT)),
    "tversky": (
        kernels.Tversky(0.2, 0.7),
        DOT / (DOT + 0.2 * (NORMS[0] - DOT) + 0.7 * (NORMS[1] - DOT)),
    ),
    "squared": (kernels.SquaredEuclidean(), L2**2),
    "euclidean": (kernels.Euclidean(), L2),
    "manhattan": (kernels.Manhattan(), L1),
}
BANDWIDTH = [kernels.Gaussian, kernels.Laplacian, kernels.Exponential, kernels.Cauchy]


@jax.jit
def every_tile(X, Y):
    return {
        name: (
            kernel.tile(X, Y),
            jnp.stack([jnp.stack([kernel(x, y) for y in Y[:2]]) for x in X[:2]]),
            kernel.log_tile(X, Y) if hasattr(kernel, "log_tile") else None,
        )
        for name, (kernel, _) in CASES.items()
    }


@pytest.fixture(scope="module")
def tiles():
    return jax.tree.map(np.asarray, every_tile(X, Y))


@pytest.mark.parametrize("name", CASES)
def test_closed_forms(tiles, name):
    """The formula in float64; two points and a tile; the logarithm."""
    tile, pairs, logs = tiles[name]
    wanted = CASES[name][1]
    # The denominator of Tversky's ratio may be near zero for points that are not sets.
    tolerance = 1e-3 if name in ("tversky", "tanimoto") else 2e-5
    np.testing.assert_allclose(tile, wanted, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(pairs, wanted[:2, :2], rtol=tolerance, atol=tolerance)
    if logs is not None:
        np.testing.assert_allclose(logs, np.log(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_symmetry_is_as_declared(name):
    kernel, _ = CASES[name]
    tile = np.asarray(kernel.tile(X, X))
    assert np.allclose(tile, tile.T, rtol=1e-4, atol=1e-4) == getattr(kernel, "symmetric", False)


def test_sets():
    """On zeros and ones the ratios count common and distinct elements."""
    sets = RNG.integers(0, 2, size=(8, 20))
    sets[0] = 0
    common = sets @ sets.T
    only = sets.sum(1)[:, None] - common
    union = common + only + only.T
    with np.errstate(invalid="ignore"):
        jaccard = np.where(union > 0, common / union, 0)
    points = sets.astype(np.float32)
    np.testing.assert_allclose(kernels.Tanimoto().tile(points, points), jaccard, rtol=1e-6)
    alpha, beta = 0.3, 0.8
    with np.errstate(invalid="ignore"):
        wanted = np.where(union > 0, common / (common + alpha * only + beta * only.T), 0)
    np.testing.assert_allclose(kernels.Tversky(alpha, beta).tile(points, points), wanted, rtol=1e-5)


def test_zero_vectors():
    """The cosine with a zero vector is zero, and so is its derivative."""
    x = jnp.zeros((1, 3)).at[0, 0].set(0.0)
    y = jnp.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    for kernel in (kernels.Cosine(), kernels.Tanimoto()):
        value, gradient = jax.value_and_grad(lambda x, k=kernel: jnp.sum(k.tile(x, y)))(x)
        assert value == 0
        assert np.all(np.isfinite(gradient))
    assert float(kernels.Cosine()(y[0], 3 * y[0])) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["laplacian", "exponential", "tversky"])
def test_gradients(name):
    with jax.enable_x64(True):
        kernel = jax.tree.map(jnp.asarray, CASES[name][0])
        fun = jax.jit(lambda kernel, x, y: jnp.sum(jnp.sin(kernel.tile(x, y))))
        points = X[:3].astype(float), Y[:2].astype(float)
        check_grads(fun, (kernel, *points), order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize("num_features", [3, 11], ids=["subtracted", "multiplied"])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_distances_far_from_the_origin(num_features, offset):
    """An offset costs no more than rounding the points themselves does."""
    x = (X[:, :num_features] + np.float32(offset)).astype(np.float32)
    y = (Y[:, :num_features] + np.float32(offset)).astype(np.float32)
    wanted = np.sum((x[:, None].astype(float) - y[None]) ** 2, axis=-1)
    np.testing.assert_allclose(distances.squared_euclidean(x, y), wanted, rtol=1e-5)
    np.testing.assert_allclose(distances.euclidean(x, y), np.sqrt(wanted), rtol=1e-5)
    l1 = np.sum(np.abs(x[:, None].astype(float) - y[None]), axis=-1)
    np.testing.assert_allclose(distances.manhattan(x, y), l1, rtol=1e-5)


def test_derivative_where_points_meet_is_zero():
    x = np.ones((1, 7), np.float32)
    for distance in (distances.euclidean, distances.squared_euclidean):
        value, gradient = jax.value_and_grad(lambda x, d=distance: d(x, jnp.asarray(x))[0, 0])(x)
        assert value == 0
        np.testing.assert_array_equal(gradient, np.zeros_like(x))


def test_many_features_do_not_make_a_cube():
    """The l1 distance and its derivative never hold ``[n, m, d]``."""
    n, d = 64, 200
    shape = jax.ShapeDtypeStruct((n, d), np.float32)
    step = jax.jit(jax.grad(lambda x, y: jnp.sum(jnp.sin(distances.manhattan(x, y)))))
    analysis: Any = step.lower(shape, shape).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 4 * n * n * d / 4


@pytest.mark.parametrize("kind", BANDWIDTH)
def test_one_bandwidth_per_feature(kind):
    """Dividing the points is the same as one bandwidth per feature."""
    h = RNG.uniform(0.5, 2, size=11).astype(np.float32)
    np.testing.assert_allclose(kind(h).tile(X, Y), kind(1.0).tile(X / h, Y / h), rtol=1e-5)


def test_parameters_are_children():
    """Another bandwidth compiles nothing, is mapped by vmap, and is differentiated."""
    traces = []

    @jax.jit
    def read(kernel):
        traces.append(kernel)
        return kernel.tile(X, Y)

    read(kernels.Gaussian(1.0))
    read(kernels.Gaussian(2.0))
    assert len(traces) == 1
    widths = jnp.array([1.0, 2.0])
    mapped = jax.vmap(lambda h: kernels.Gaussian(h).tile(X, Y))(widths)
    np.testing.assert_allclose(mapped[1], read(kernels.Gaussian(2.0)), rtol=1e-6)
    gradient = jax.grad(lambda kernel: jnp.sum(kernel.tile(X, Y)))(kernels.Gaussian(1.5))
    wanted = np.sum(np.exp(-(L2**2) / 4.5) * L2**2 / 1.5**3)
    assert float(gradient.bandwidth) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "bool"])
def test_narrow_points_are_widened(dtype):
    x = jnp.asarray(np.abs(3 * X)).astype(dtype)
    tile = kernels.Gaussian(5.0).tile(x, x)
    assert tile.dtype == np.float32
    wide = np.asarray(x.astype(np.float32), float)
    wanted = np.exp(-np.sum((wide[:, None] - wide[None]) ** 2, -1) / 50)
    np.testing.assert_allclose(tile, wanted, rtol=1e-4, atol=1e-6)


def test_points_of_any_shape():
    images = X[:, :8].reshape(9, 2, 2, 2)
    np.testing.assert_array_equal(
        kernels.Laplacian().tile(images, images), kernels.Laplacian().tile(X[:, :8], X[:, :8])
    )
    numbers = X[:, 0]
    wanted = np.abs(numbers[:, None] - numbers[None])
    np.testing.assert_allclose(kernels.Manhattan().tile(numbers, numbers), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (kernels.Gaussian(0.0), "bandwidth > 0"),
        (kernels.Laplacian(-1.0), "bandwidth > 0"),
        (kernels.Exponential(np.nan), "bandwidth > 0"),
        (kernels.Cauchy(np.ones(3)), "bandwidth to be a scalar or to have the shape"),
        (kernels.Tversky(-0.1, 0.5), "alpha >= 0"),
        (kernels.Tversky(0.1, -0.5), "beta >= 0"),
        (kernels.Polynomial(0), "degree to be an integer >= 1"),
    ],
)
def test_bad_parameters(kernel, message):
    with pytest.raises(ValueError, match=message):
        gradkin.kernel_matrix(kernel, X)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda x: gradkin.kernel_matrix(kernel, x))(X)
