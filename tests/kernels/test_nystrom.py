"""Nystrom: exact on landmarks, never above the kernel, better with rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin import kernels

RNG = np.random.default_rng(2)
X = RNG.normal(size=(24, 5)).astype(np.float32)
Y = RNG.normal(size=(6, 5)).astype(np.float32)


def test_full_rank_is_exact(key):
    K = kernels.nystrom(key, kernels.Laplacian(4.0), X, rank=24)
    exact = gradkin.kernel_matrix(kernels.Laplacian(4.0), X)
    np.testing.assert_allclose(K.materialize(), exact.materialize(), atol=2e-4)
    wide = kernels.nystrom(key, kernels.Laplacian(4.0), X, Y, rank=24)
    exact = gradkin.kernel_matrix(kernels.Laplacian(4.0), X, Y)
    np.testing.assert_allclose(wide.materialize(), exact.materialize(), atol=2e-3)


def test_linear_kernel_of_its_own_rank(key):
    """Five features: five landmarks say everything, more of them add nothing and break nothing."""
    exact = X @ X.T
    for rank in (5, 12):
        K = kernels.nystrom(key, kernels.Linear(), X, rank=rank)
        np.testing.assert_allclose(K.materialize(), exact, atol=2e-3 * np.abs(exact).max())


def test_error_is_positive_and_shrinks_with_rank(key):
    exact = np.asarray(gradkin.kernel_matrix(kernels.Gaussian(2.0), X).materialize())
    traces = []
    for rank in (4, 12, 20):
        K = kernels.nystrom(key, kernels.Gaussian(2.0), X, rank=rank)
        error = exact - np.asarray(K.materialize())
        assert np.linalg.eigvalsh(error).min() > -1e-4
        traces.append(np.trace(error))
    assert traces[0] > traces[1] > traces[2] > 0


def test_masked_points_are_no_landmarks(key):
    mask = np.arange(24) % 3 != 0
    broken = np.where(mask[:, None], X, np.nan)
    K = kernels.nystrom(key, kernels.Laplacian(4.0), broken, rank=20, mask=mask)
    small = gradkin.kernel_matrix(kernels.Laplacian(4.0), X[mask])
    found = np.asarray(K.materialize())
    # All 16 that are left are landmarks; four more are copies of one of them.
    np.testing.assert_allclose(found[np.ix_(mask, mask)], small.materialize(), atol=1e-3)
    assert not np.any(found[~mask])


def test_gradient_is_finite_with_repeated_points(key):
    x = jnp.asarray(np.repeat(X[:4], 3, axis=0))
    gradient = jax.jit(
        jax.grad(lambda x: kernels.nystrom(key, kernels.Gaussian(), x, rank=6).frobenius_norm())
    )(x)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("rank", [0, 25])
def test_bad_rank(key, rank):
    with pytest.raises(ValueError, match="rank from 1 to the 24 points"):
        kernels.nystrom(key, kernels.Gaussian(), X, rank=rank)
