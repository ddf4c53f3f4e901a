"""Criteria of generalization against their formulas on matrices whose spectrum is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import curvature
from tests.matrices.models.model import normal, weight

VALUES = np.array([-2.0, -0.5, 0.1, 0.7, 3.0, 10.0], np.float32)
KEY = jax.random.key(0)
BASIS, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))


def with_values(values):
    return jnp.asarray(BASIS * np.asarray(values) @ BASIS.T, jnp.float32)


@jax.jit
def found(matrix):
    density = curvature.spectral_density(KEY, matrix, num_probes=4)
    return density, curvature.hessian_criteria(density)


def by_hand(nodes, weights):
    """A density of given nodes and weights ``[probes, nodes]``."""
    nodes, weights = (jnp.asarray(x, jnp.float32) for x in (nodes, weights))
    grid = jnp.zeros(2)
    return curvature.SpectralDensity(nodes, weights, grid, grid, grid, jnp.asarray(6.0))


def formula(nodes, weights, n):
    """Both criteria by their definitions, a probe at a time."""
    ratios = []
    for t, w in zip(np.asarray(nodes, np.float64), np.asarray(weights, np.float64)):
        parts = [np.sum(np.abs(t * w)[sign] ** n) for sign in (t < 0, t > 0)]
        ratios.append((abs(t.min() / t.max()), parts[0] / parts[1]))
    return np.transpose(ratios)


def test_against_the_definition():
    density, criteria = found(with_values(VALUES))
    extreme, weighted = formula(density.nodes, density.weights, 0.5)
    # All products there can be: the nodes of each probe are the eigenvalues, its weights are the
    # squares of the start's coordinates.
    np.testing.assert_allclose(density.nodes, np.stack([VALUES] * 4), atol=1e-5)
    starts = jax.vmap(lambda k: jax.random.normal(k, (6,)))(jax.random.split(KEY, 4))
    squares = np.square(np.asarray(starts) @ BASIS)
    squares /= squares.sum(1, keepdims=True)
    np.testing.assert_allclose(density.weights, squares, atol=1e-5)
    for estimate, wanted in zip(criteria, (extreme, weighted)):
        np.testing.assert_allclose(estimate.value, wanted.mean(), rtol=1e-5)
        error = wanted.std(ddof=1) / 2
        np.testing.assert_allclose(estimate.standard_error, error, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(criteria.extreme_ratio.value, 0.2, rtol=1e-5)
    assert criteria.num_infinite == 0
    sharper = curvature.hessian_criteria(density, power=2.0)
    wanted = formula(density.nodes, density.weights, 2.0)[1].mean()
    np.testing.assert_allclose(sharper.weighted_ratio.value, wanted, rtol=1e-5)


def test_quadrature_keeps_the_first_two_moments_of_each_start():
    """Two products: ``v . H v`` and ``|H v|^2``."""
    H = with_values(VALUES)
    density = curvature.spectral_density(KEY, H, num_probes=5, num_matvecs=2)
    starts = jax.vmap(lambda k: jax.random.normal(k, (6,)))(jax.random.split(KEY, 5))
    starts = starts / jnp.linalg.norm(starts, axis=1, keepdims=True)
    images = starts @ H
    first, second = (jnp.sum(density.weights * density.nodes**n, axis=1) for n in (1, 2))
    np.testing.assert_allclose(first, jnp.sum(starts * images, axis=1), rtol=1e-4)
    np.testing.assert_allclose(second, jnp.sum(images**2, axis=1), rtol=1e-4)


def test_signs_and_scales():
    plus, scaled = (found(with_values(c * VALUES))[1] for c in (1.0, 30.0))
    for a, b in zip(plus[:2], scaled[:2]):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-4)
    one = by_hand([VALUES], [np.full(6, 1 / 6)])
    turned = by_hand([-VALUES[::-1]], [np.full(6, 1 / 6)])
    for a, b in zip(*(curvature.hessian_criteria(d)[:2] for d in (one, turned))):
        np.testing.assert_allclose(a.value, 1 / b.value, rtol=1e-5)


def test_one_sided_spectra():
    definite = found(with_values(np.abs(VALUES)))[1]
    np.testing.assert_allclose(definite.extreme_ratio.value, 0.01, rtol=1e-3)
    assert definite.weighted_ratio.value == 0
    assert definite.num_infinite == 0
    # A null space seen through rounding is not negative.
    singular = found(with_values([0, 0, 1, 2, 3, 4]))[1]
    assert singular.weighted_ratio.value == 0
    assert singular.extreme_ratio.value < 1e-5
    negative = found(with_values(-np.abs(VALUES)))[1]
    np.testing.assert_allclose(negative.extreme_ratio.value, 100, rtol=1e-3)
    assert negative.weighted_ratio.value == np.inf
    assert negative.weighted_ratio.standard_error == np.inf
    assert negative.num_infinite == 4
    nothing = found(jnp.zeros((6, 6)))[1]
    assert nothing.extreme_ratio.value == nothing.weighted_ratio.value == 0
    assert nothing.num_infinite == 0


def test_what_has_no_weight_or_no_size_is_left_out():
    bare = curvature.hessian_criteria(by_hand([[-1.0, 4.0]], [[0.5, 0.5]]))
    padded = curvature.hessian_criteria(by_hand([[-1.0, 4.0, -9.0]], [[0.5, 0.5, 0.0]]))
    for a, b in zip(bare[:2], padded[:2]):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-6)
    density = by_hand([[-1e-6, 1.0, 2.0]], [[0.9, 0.05, 0.05]])
    assert curvature.hessian_criteria(density, tolerance=1e-5).weighted_ratio.value == 0
    assert curvature.hessian_criteria(density, tolerance=0.0).weighted_ratio.value > 0
    for nodes, weights in (([[np.nan, 1.0]], [[0.5, 0.5]]), ([[-1.0, 1.0]], [[np.nan, 0.5]])):
        unknown = curvature.hessian_criteria(by_hand(nodes, weights))
        assert np.isnan(unknown.weighted_ratio.value)


def test_of_a_network_under_vmap_and_sharded(mesh):
    x, y = normal(0, 16, 3), normal(1, 16, 2)
    params = {"a": weight(2, 3, 4), "b": weight(3, 4, 2)}

    def loss(params, example):
        x, y = example
        return jnp.sum(jnp.square(jnp.tanh(x @ params["a"]) @ params["b"] - y))

    def read(params, batch):
        density = gradkin.hessian(loss)(params, batch).spectral_density(
            KEY, num_matvecs=8, num_probes=3, grid=2
        )
        return curvature.hessian_criteria(density)

    read = jax.jit(jax.vmap(read, (0, None)))
    params = jax.tree.map(lambda w: jnp.stack([w, w / 2]), params)
    one = read(params, (x, y))
    assert np.all((one.extreme_ratio.value > 0) & (one.extreme_ratio.value < 1))
    sharded = read(params, jax.device_put((x, y), NamedSharding(mesh, PartitionSpec("data"))))
    for a, b in zip(sharded[:2], one[:2]):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-3)


def test_bad_input_is_named():
    density = by_hand([[-1.0, 4.0]], [[0.5, 0.5]])
    with pytest.raises(ValueError, match="power > 0"):
        curvature.hessian_criteria(density, power=0.0)
    with pytest.raises(ValueError, match="tolerance >= 0"):
        curvature.hessian_criteria(density, tolerance=-1.0)
