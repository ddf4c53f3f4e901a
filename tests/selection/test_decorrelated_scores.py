"""Axes of correlated scores: scikit-learn's, no correlation along them, signs, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import selection

fit = jax.jit(selection.decorrelate_scores, static_argnames=("num_axes", "sign"))
project = jax.jit(selection.project_scores)


def correlated(n=200, seed=0):
    """Four scores that share a factor, one of them far from zero, on other scales."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, 1)) + rng.normal(size=(n, 4)) * np.array([0.3, 0.6, 0.9, 1.3])
    return (scores * np.array([1, 2, 0.1, 5]) + np.array([0, 9, 100, -3])).astype(np.float32)


def test_scikit_learn_finds_the_same_axes():
    decomposition = pytest.importorskip("sklearn.decomposition")
    scores = correlated()
    found = fit(scores, num_axes=3)
    x = scores.astype(np.float64)
    z = (x - x.mean(0)) / x.std(0)
    reference = decomposition.PCA().fit(z)
    ratio = reference.explained_variance_ratio_
    np.testing.assert_allclose(found.variances, 4 * ratio, rtol=1e-4)
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.scale, x.std(0), rtol=1e-4)
    along = np.asarray(project(found, scores))
    expected = reference.transform(z)[:, :3]
    signs = np.sign(np.sum(along * expected, axis=0))
    np.testing.assert_allclose(along, expected * signs, atol=1e-3)
    chosen = selection.decorrelate_scores(scores, variance_ratio=float(ratio[:2].sum()) - 1e-3)
    assert chosen.axes.shape == (4, 2)
    whole = selection.decorrelate_scores(scores, variance_ratio=1.0)
    assert whole.axes.shape == (4, 4)


def test_no_correlation_along_orthonormal_axes_in_float64():
    with jax.enable_x64(True):
        scores = jnp.asarray(correlated(seed=1).astype(np.float64))
        found = fit(scores)
        along = np.asarray(project(found, scores))
        np.testing.assert_allclose(found.axes.T @ found.axes, np.eye(4), atol=1e-12)
        np.testing.assert_allclose(along.T @ along / 200, np.diag(found.variances), atol=1e-12)
        np.testing.assert_allclose(np.sum(found.variances), 4, rtol=1e-12)


def test_white_scores_are_only_rotated():
    """All axes of white scores are alike: what does not change is inner products of documents."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 4))
    x = x - x.mean(0)
    white = (np.sqrt(200) * np.linalg.qr(x)[0]).astype(np.float32)
    found = fit(white)
    np.testing.assert_allclose(found.variances, 1, rtol=1e-5)
    along = np.asarray(project(found, white))
    np.testing.assert_allclose(along @ along.T, white @ white.T, atol=1e-4)


def test_order_scale_and_shift_do_not_matter(mesh):
    scores = correlated(seed=3)
    base = project(fit(scores), scores)
    order = np.random.default_rng(0).permutation(200)
    np.testing.assert_allclose(project(fit(scores[order]), scores), base, atol=1e-3)
    moved = 1e-20 * (scores - scores.mean(0)) * np.array([3, 1, 7, 0.1], np.float32)
    np.testing.assert_allclose(project(fit(moved), moved), base, atol=1e-3)
    split = jax.device_put(scores, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(project(fit(split), split), base, atol=1e-3)
    mapped = jax.vmap(fit)(jnp.stack([scores] * 2))
    np.testing.assert_allclose(mapped.axes[1], fit(scores).axes, atol=1e-4)


def test_better_is_positive():
    scores = correlated(seed=4)
    loading = fit(scores)
    axes = np.asarray(loading.axes)
    assert np.all(axes[np.abs(axes).argmax(0), np.arange(4)] > 0)
    # The sign of the correlation with the mean of the standardized scores.
    z = (scores - scores.mean(0)) / scores.std(0)
    by_mean = fit(scores, sign="mean")
    along = np.asarray(project(by_mean, scores))
    assert np.all(along.T @ z.mean(1) > -1e-2)
    np.testing.assert_allclose(np.abs(by_mean.axes), np.abs(axes), atol=1e-6)
    # All worse: the best are the worst on all axes.
    worse = fit(-scores, sign="mean")
    np.testing.assert_allclose(project(worse, -scores), -along, atol=1e-3)
    np.testing.assert_allclose(
        project(by_mean, -scores + 2 * loading.mean[None]), -along, atol=1e-3
    )
    # Two scores load equally on both axes: the first one leads, however that is rounded.
    for seed in range(3):
        pair = fit(correlated(seed=seed)[:150, 1:3])
        np.testing.assert_allclose(pair.axes, np.array([[1, 1], [1, -1]]) / np.sqrt(2), atol=1e-5)
    given = selection.decorrelate_scores(scores, num_axes=2, sign=np.array([1, -1]))
    np.testing.assert_allclose(given.axes, axes[:, :2] * np.array([[1, -1]]), atol=1e-6)


def test_scores_that_say_nothing_new():
    scores = correlated(seed=5)
    twice = np.concatenate([scores[:, :3], 3 * scores[:, :1] - 1], axis=1)
    with pytest.raises(ValueError, match="num_axes <= 3, the number of axes .* got num_axes=4"):
        selection.decorrelate_scores(twice)
    assert selection.decorrelate_scores(twice, variance_ratio=1.0).axes.shape == (4, 3)
    np.testing.assert_array_equal(fit(twice).axes[:, 3], 0)
    constant = scores.copy()
    constant[:, 2] = 0.1
    with pytest.raises(ValueError, match="column 2 that is constant"):
        selection.decorrelate_scores(constant)
    found = fit(constant)
    np.testing.assert_allclose(found.axes[2], 0, atol=1e-6)
    others = np.linalg.eigvalsh(np.corrcoef(np.delete(scores, 2, axis=1).T))[::-1]
    np.testing.assert_allclose(found.variances, [*others, 0], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(project(found, constant)[:, 3], 0)


def test_bad_input():
    scores = correlated()
    run = selection.decorrelate_scores
    for n in (3, 4):
        with pytest.raises(ValueError, match=rf"more documents than the 4 scores.*\({n}, 4\)"):
            run(scores[:n])
    with pytest.raises(ValueError, match="scores to have 2 axes"):
        run(scores[:, 0])
    with pytest.raises(ValueError, match="finite"):
        run(np.where(scores > 0, scores, np.nan))
    for number in (0, 5):
        with pytest.raises(ValueError, match=f"num_axes from 1 to 4, got num_axes={number}"):
            run(scores, num_axes=number)
    with pytest.raises(ValueError, match="got both"):
        run(scores, num_axes=2, variance_ratio=0.5)
    for ratio in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"variance_ratio in \(0, 1\], got .*{ratio}"):
            run(scores, variance_ratio=ratio)
    with pytest.raises(ValueError, match="num_axes inside jit"):
        jax.jit(lambda s: run(s, variance_ratio=0.5))(scores)
    with pytest.raises(ValueError, match="sign to be one of"):
        run(scores, sign="largest")
    with pytest.raises(ValueError, match=r"sign of shape \(4,\)"):
        run(scores, sign=np.ones(3))
    with pytest.raises(ValueError, match="1 or -1"):
        run(scores, sign=np.array([1, -1, 0, 1]))
    with pytest.raises(ValueError, match="scores with 4 columns"):
        selection.project_scores(run(scores), scores[:, :3])
