"""Whole spectra, their bulk and outliers, and overlaps of their spaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin import curvature

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(10, 3)), np.float32)
Y = jnp.asarray(RNG.normal(size=10), np.float32)
PARAMS = {"b": jnp.ones(()), "w": jnp.ones(3)}


def loss(params, x, y):
    return 0.5 * jnp.square(jnp.vdot(params["w"], x) + params["b"] - y)


def test_full_spectrum_of_a_regression():
    H = gradkin.hessian(loss)(PARAMS, X, Y)
    found = jax.jit(curvature.full_spectrum)(H)
    design = np.concatenate([np.ones((10, 1)), X], axis=1)
    wanted = np.linalg.eigvalsh(design.T @ design / 10)[::-1]
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5)
    assert np.max(found.residuals) < 1e-5
    for value, b, w in zip(found.values, found.vectors["b"], found.vectors["w"]):
        product = H @ {"b": b, "w": w}
        np.testing.assert_allclose(product["w"], value * w, atol=1e-5)
        np.testing.assert_allclose(product["b"], value * b, atol=1e-5)
    # As many Lanczos steps as parameters see the same values and spaces.
    pairs = H.top_eigenpairs(jax.random.key(0), 4)
    np.testing.assert_allclose(pairs.values, found.values, rtol=1e-4)
    first = lambda tree: jax.tree.map(lambda x: x[:2], tree)
    overlap = curvature.subspace_overlap(first(pairs.vectors), first(found.vectors))
    np.testing.assert_allclose(overlap, 1, rtol=1e-4)


def test_overlap():
    basis = np.linalg.qr(RNG.normal(size=(9, 9)))[0].T.astype(np.float32)
    turn = np.linalg.qr(RNG.normal(size=(3, 3)))[0].astype(np.float32)
    overlap = jax.jit(curvature.subspace_overlap)
    np.testing.assert_allclose(overlap(basis[:3], turn @ basis[:3]), 1, rtol=1e-5)
    np.testing.assert_allclose(overlap(basis[:3], basis[2:5]), 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(overlap(basis[:3], basis[3:6]), 0, atol=1e-6)
    # Random subspaces overlap by k / P, however the vectors are cut into leaves.
    random = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (500, 9, 3)))[0]
    random = jnp.swapaxes(random, 1, 2)
    cut = lambda rows: {"a": rows[..., :4].reshape(-1, 2, 2), "b": rows[..., 4:]}
    found = jax.vmap(lambda U: overlap(cut(U), cut(jnp.asarray(basis[:3]))))(random)
    assert abs(np.mean(found) - 3 / 9) < 5 * np.std(found) / np.sqrt(500)


VALUES = np.concatenate([[10.0, 9.0, 8.0], np.linspace(0.4, 0.01, 40), [-0.2, -1.0]])


@pytest.mark.parametrize(
    ("rule", "options", "count"),
    [("gap", {}, 3), ("quantile", {}, 3), ("marchenko-pastur", {"num_samples": 200}, 3)],
)
def test_outliers_of_a_clear_spectrum(rule, options, count):
    for values in (VALUES, RNG.permutation(VALUES)):
        values = jnp.asarray(values, np.float32)
        assert int(curvature.count_outliers(values, rule=rule, **options)) == count


def test_outliers_at_the_limits():
    assert int(curvature.count_outliers(jnp.zeros(5))) == 0
    assert int(curvature.count_outliers(-jnp.arange(1.0, 6.0))) == 0
    noise = RNG.normal(size=(400, 40)).astype(np.float32)
    values = np.linalg.eigvalsh(noise.T @ noise / 400)
    found = curvature.count_outliers(values, rule="marchenko-pastur", num_samples=400)
    assert int(found) <= 1  # pure noise; its largest eigenvalue is at the edge


def test_shares():
    values = jnp.asarray(VALUES, np.float32)
    wanted = np.mean(np.abs(VALUES) < 0.5)
    np.testing.assert_allclose(curvature.near_zero_share(values), wanted, rtol=1e-6)
    assert float(curvature.near_zero_share(values, tolerance=0.2)) == np.float32(42 / 45)
    assert float(curvature.near_zero_share(jnp.zeros(3))) == 1
    share = jax.jit(lambda v: curvature.top_share(v, 3))(values)
    np.testing.assert_allclose(share, 27 / VALUES.sum(), rtol=1e-5)
    np.testing.assert_allclose(curvature.top_share(values[::-1], len(VALUES)), 1, rtol=1e-5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="max_dim=3 rows .* got 4"):
        curvature.full_spectrum(gradkin.hessian(loss)(PARAMS, X, Y), max_dim=3)
    with pytest.raises(ValueError, match="symmetric matrix"):
        curvature.full_spectrum(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="tolerance > 0"):
        curvature.near_zero_share(jnp.ones(3), tolerance=0.0)
    with pytest.raises(ValueError, match="k from 1 to 3"):
        curvature.top_share(jnp.ones(3), 4)
    with pytest.raises(ValueError, match="rule to be one of"):
        curvature.count_outliers(jnp.ones(3), rule="eye")
    with pytest.raises(ValueError, match="at least 2 eigenvalues"):
        curvature.count_outliers(jnp.ones(1))
    with pytest.raises(ValueError, match="num_samples to be a positive integer"):
        curvature.count_outliers(jnp.ones(3), rule="marchenko-pastur")
    with pytest.raises(ValueError, match="V to have the shapes of U"):
        curvature.subspace_overlap(jnp.ones((2, 3)), jnp.ones((1, 3)))
