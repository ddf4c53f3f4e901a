"""Mean shift and the outlier scores: NumPy, fixed points, limits, closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from gradkin import kernels


def reference(x, k, steps, include_self=True):
    """Neighbours by sorting all distances, in float64."""
    y = np.asarray(x, np.float64)
    for _ in range(steps):
        distances = np.sum((y[:, None] - y[None]) ** 2, axis=-1)
        if not include_self:
            np.fill_diagonal(distances, np.inf)
        y = y[np.argsort(distances, axis=1, kind="stable")[:, :k]].mean(1)
    return y


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("steps", [0, 3])
def test_against_sorting(include_self, steps, key):
    x = jax.random.normal(key, (31, 6))
    options = {"num_neighbors": 4, "num_steps": steps, "include_self": include_self}
    found = kernels.mean_shift(x, **options)
    np.testing.assert_allclose(found, reference(x, 4, steps, include_self), rtol=1e-4, atol=1e-5)
    inside = jax.jit(lambda x: kernels.mean_shift(x, **options))(x)
    np.testing.assert_allclose(inside, found, rtol=1e-5, atol=1e-6)


def test_fixed_points_and_limits(key):
    x = jax.random.normal(key, (9, 3))
    np.testing.assert_allclose(
        kernels.mean_shift(x, num_neighbors=9, num_steps=1), np.tile(x.mean(0), (9, 1)), atol=1e-6
    )
    np.testing.assert_array_equal(kernels.mean_shift(x, num_neighbors=1), x)
    alike = jnp.ones((9, 3)) * 0.3
    for include_self in (True, False):
        found = kernels.mean_shift(alike, num_neighbors=3, include_self=include_self)
        np.testing.assert_allclose(found, alike, rtol=1e-6)
    order = jax.random.permutation(key, 9)
    np.testing.assert_allclose(
        kernels.mean_shift(x[order], num_neighbors=3),
        kernels.mean_shift(x, num_neighbors=3)[order],
        rtol=1e-5,
    )


def test_repeated_points_without_themselves():
    """Five equal points and one far away: no point may count itself, nor fewer than k."""
    x = jnp.append(jnp.zeros((5, 1)), jnp.full((1, 1), 8.0), axis=0)
    found = kernels.mean_shift(x, num_neighbors=5, num_steps=1, include_self=False)
    np.testing.assert_allclose(found.ravel(), [1.6] * 5 + [0.0], rtol=1e-6)


def test_outliers_move_far(key):
    x = jnp.append(jax.random.normal(key, (60, 2)), jnp.array([[9.0, 9.0], [-9.0, 8.0]]), axis=0)
    moved = kernels.reconstruction_error(x, kernels.mean_shift(x, num_neighbors=8))
    assert np.min(moved[60:]) > 3 * np.max(moved[:60])


def test_kernel_mean_shift(key):
    x = jax.random.normal(key, (12, 3))
    kernel = kernels.Gaussian(0.8)
    squares = np.sum((np.asarray(x)[:, None] - np.asarray(x)[None]) ** 2, -1, dtype=np.float64)
    weights = np.exp(-squares / (2 * 0.8**2))
    expected = weights @ np.asarray(x) / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(kernels.kernel_mean_shift(x, kernel, num_steps=1), expected, 1e-4)
    still = kernels.kernel_mean_shift(x, kernels.Gaussian(1e-3))
    np.testing.assert_allclose(still, x, rtol=1e-5)
    # A step follows the gradient of the log density of all points, the moved one among them.
    density = lambda z: jax.nn.logsumexp(-jnp.sum((z[None] - x) ** 2, 1) / (2 * 0.8**2))
    slope = jax.vmap(jax.grad(density))(x)
    np.testing.assert_allclose(expected - x, 0.8**2 * slope, rtol=1e-3, atol=1e-5)


def test_short_floats_are_summed_in_float32(key):
    x = jax.random.uniform(key, (600, 1)).astype(jnp.bfloat16)
    exact = np.mean(np.asarray(x, np.float64))
    found = kernels.mean_shift(x, num_neighbors=600, num_steps=1)
    np.testing.assert_allclose(found, np.full((600, 1), exact), rtol=1e-5)
    moved = kernels.kernel_mean_shift(x, kernels.Gaussian(1e3), num_steps=1)
    np.testing.assert_allclose(moved, found, rtol=1e-4)
    scores = kernels.mean_shift_outlier_scores(x, found, lambda x: x)
    np.testing.assert_allclose(scores, np.abs(np.asarray(x, np.float64)[:, 0] - exact), atol=1e-6)


def test_probabilistic_error(key):
    x, mean, log_variance = jax.random.normal(key, (3, 5, 4))
    apre = jax.jit(kernels.probabilistic_error)
    squared = apre(x, mean, jnp.zeros_like(x), beta=0.0)
    np.testing.assert_allclose(squared, np.sum((x - mean) ** 2, 1), rtol=1e-5)
    np.testing.assert_allclose(squared, kernels.reconstruction_error(x, mean) ** 2, rtol=1e-5)
    likelihood = jax.scipy.stats.norm.logpdf(x, mean, jnp.exp(log_variance / 2)).sum(1)
    expected = -2 * likelihood - 4 * np.log(2 * np.pi)
    np.testing.assert_allclose(apre(x, mean, log_variance), expected, rtol=1e-4)
    # The best variance for a residual is alpha / beta times its square.
    best = jnp.log(2.0 / 0.5 * (x - mean) ** 2)
    slope = jax.grad(lambda s: apre(x, mean, s, alpha=2.0, beta=0.5).sum())(best)
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in (x, mean, log_variance)]
        check_grads(kernels.probabilistic_error, wide, order=1)


@pytest.mark.parametrize("compare", ["original", "shifted", "both"])
def test_scores(compare, key):
    x = jax.random.normal(key, (20, 4))
    reconstruct = lambda x: (0.5 * x, jnp.full_like(x, 0.3))
    error = lambda x, out: kernels.probabilistic_error(x, *out, alpha=0.5)
    y = kernels.mean_shift(x, num_neighbors=5, num_steps=2)
    found = kernels.mean_shift_outlier_scores(x, y, reconstruct, error=error, compare=compare)
    expected = {
        "original": error(x, reconstruct(y)),
        "shifted": error(y, reconstruct(x)),
        "both": jnp.linalg.norm(x - y, axis=1) + error(x, reconstruct(x)),
    }[compare]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_perfect_reconstruction_does_not_hide_an_outlier(key):
    """The identity reconstructs everything: its own errors say nothing, the score does."""
    x = jnp.append(jax.random.normal(key, (40, 2)), jnp.full((1, 2), 12.0), axis=0)
    shifted = kernels.mean_shift(x, num_neighbors=6)
    found = kernels.mean_shift_outlier_scores(x, shifted, lambda x: x)
    assert np.argmax(found) == 40


def test_sharded(mesh, key):
    x = jax.random.normal(key, (32, 6))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    whole = kernels.mean_shift(x, num_neighbors=3)
    np.testing.assert_allclose(kernels.mean_shift(split, num_neighbors=3), whole, rtol=1e-4)


@pytest.mark.parametrize(
    ("x", "options", "match"),
    [
        (np.ones((4, 2)), {"num_neighbors": 0}, r"num_neighbors in \[1, 4\]"),
        (np.ones((4, 2)), {"num_neighbors": 5}, r"num_neighbors in \[1, 4\]"),
        (np.ones((4, 2)), {"num_neighbors": 4, "include_self": False}, r"in \[1, 3\]"),
        (np.ones((4, 2)), {"num_neighbors": 2, "num_steps": -1}, "num_steps >= 0"),
        (np.full((4, 2), np.nan), {"num_neighbors": 2}, "finite"),
        (np.ones(4), {"num_neighbors": 2}, "2 axes"),
    ],
)
def test_bad_mean_shift(x, options, match):
    with pytest.raises(ValueError, match=match):
        kernels.mean_shift(x, **options)


def test_bad_errors_and_scores():
    x = np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match="reconstructed to have the shape"):
        kernels.reconstruction_error(x, x[:, :1])
    with pytest.raises(ValueError, match="log_variance to have the shape"):
        kernels.probabilistic_error(x, x, x[0])
    with pytest.raises(ValueError, match="beta >= 0"):
        kernels.probabilistic_error(x, x, x, beta=-1.0)
    with pytest.raises(ValueError, match="compare"):
        kernels.mean_shift_outlier_scores(x, x, lambda x: x, compare="median")
    with pytest.raises(ValueError, match="shifted to have the shape"):
        kernels.mean_shift_outlier_scores(x, x[:2], lambda x: x)
    with pytest.raises(ValueError, match="num_steps >= 0"):
        kernels.kernel_mean_shift(x, kernels.Gaussian(1.0), num_steps=-1)
