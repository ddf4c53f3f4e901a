"""Random features: unbiased, of known variance, with the verbs of the exact matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin import kernels

RNG = np.random.default_rng(1)
X = RNG.normal(size=(12, 3)).astype(np.float32)
Y = RNG.normal(size=(7, 3)).astype(np.float32)
KERNELS = {
    "gaussian": kernels.Gaussian(1.3),
    "laplacian": kernels.Laplacian(2.0),
    "exponential": kernels.Exponential(1.5),
    "cauchy": kernels.Cauchy(2.0),
    "per feature": kernels.Gaussian(np.array([1.0, 2.0, 0.5], np.float32)),
}


@pytest.mark.parametrize(
    ("name", "orthogonal"),
    [(name, False) for name in KERNELS] + [(n, True) for n in ("gaussian", "cauchy")],
)
def test_unbiased(key, name, orthogonal):
    """The mean over keys is the kernel within five standard errors of what was seen."""
    kernel, draws = KERNELS[name], 600
    exact = np.asarray(kernel.tile(X, Y))

    @jax.jit
    def estimates(keys):
        one = lambda key: kernels.random_features(
            key, kernel, X, Y, size=8, orthogonal=orthogonal
        ).materialize()
        return jax.lax.map(one, keys)

    seen = np.asarray(estimates(jax.random.split(key, draws)), np.float64)
    error = seen.mean(0) - exact
    standard = seen.std(0) / np.sqrt(draws)
    assert np.all(np.abs(error) < 5 * standard + 1e-5)
    if name == "gaussian" and not orthogonal:
        # The variance of one cosine (Sutherland & Schneider 2015): (1 - k^2)^2 / 2.
        wanted = (1 - exact**2) ** 2 / 2 / 4
        np.testing.assert_allclose(seen.var(0), wanted, rtol=0.35, atol=2e-3)


def test_orthogonal_frequencies_err_less(key):
    exact = np.asarray(kernels.Gaussian(1.3).tile(X, Y))

    def error(orthogonal):
        one = lambda key: kernels.random_features(
            key, kernels.Gaussian(1.3), X, Y, size=12, orthogonal=orthogonal
        ).materialize()
        draws = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, 400))
        return np.mean((np.asarray(draws) - exact) ** 2)

    assert error(True) < 0.9 * error(False)


@pytest.fixture(scope="module")
def pair():
    """Features of masked, weighted points, and the same matrix written down."""
    mask = np.arange(12) != 4
    broken = X.copy()
    broken[4] = np.nan
    K = kernels.random_features(jax.random.key(0), kernels.Gaussian(), broken, size=6, mask=mask)
    weights = np.linspace(-1, 2, 7).astype(np.float32)
    L = kernels.random_features(jax.random.key(1), kernels.Cauchy(), X, Y, size=4, weights=weights)
    return K, L


def read(K):
    n, m = K.shape
    v, u = np.linspace(-1, 1, m).astype(np.float32), np.linspace(2, 1, 2 * n).reshape(2, n)
    u = u.astype(np.float32)
    result = {
        "right": K @ v,
        "left": u @ K,
        "sum": K.sum(),
        "rows": K.sum(1),
        "columns": K.sum(axis=0),
        "mean": K.mean(),
        "row means": K.mean(1),
        "norm": K.frobenius_norm(),
        "inner": K.inner(K),
        "max": K.max(),
        "least": K.top_k(2, largest=False)[0],
        "turned": K.T.sum(1),
    }
    if n == m:
        result |= {"diagonal": K.diagonal(), "trace": K.trace()}
    return result


def test_verbs_equal_those_of_all_entries(pair):
    for K in (*pair, pair[0].off_diagonal(), pair[1].T):
        fast = jax.jit(read)(K)
        slow = jax.jit(read)(K.streamed())
        for name in slow:
            np.testing.assert_allclose(fast[name], slow[name], rtol=2e-4, atol=2e-4, err_msg=name)
        np.testing.assert_allclose(K.materialize(), K.streamed().materialize())
    K, L = pair
    assert repr(K) == "LowRankMatrix(shape=(12, 12), rank=6)"
    assert (len(L), L.shape, L.dtype) == (12, (12, 7), np.float32)
    assert "features" in str(L.explain())


def test_masked_points_are_not_there(pair):
    K, _ = pair
    keep = np.arange(12) != 4
    small = kernels.random_features(jax.random.key(0), kernels.Gaussian(), X[keep], size=6)
    np.testing.assert_allclose(
        np.asarray(K.materialize())[np.ix_(keep, keep)], small.materialize(), atol=1e-6
    )
    assert not np.any(K.materialize()[4])
    assert float(K.mean()) == pytest.approx(float(small.mean()), rel=1e-5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_centered_sums(pair, unbiased):
    K, _ = pair
    other = kernels.random_features(jax.random.key(2), kernels.Cauchy(), X, size=4)
    for weights in (None,) if unbiased else (None, np.linspace(0.5, 2, 12).astype(np.float32)):
        fast = K.centered_sums(other, unbiased=unbiased, weights=weights)
        slow = K.streamed().centered_sums(other.streamed(), unbiased=unbiased, weights=weights)
        np.testing.assert_allclose(fast, slow, rtol=1e-3, atol=1e-4)


def test_gradient_of_the_bandwidth():
    """Through the features, against a difference quotient."""

    def total(h):
        K = kernels.random_features(jax.random.key(0), kernels.Gaussian(h), X, Y, size=16)
        return K.sum()

    step = 1e-2
    quotient = (total(1.0 + step) - total(1.0 - step)) / (2 * step)
    assert float(jax.grad(total)(1.0)) == pytest.approx(float(quotient), rel=1e-2)


@pytest.mark.parametrize(
    ("options", "kernel", "message"),
    [
        ({"size": 7}, kernels.Gaussian(), "size to be even"),
        ({"size": 0}, kernels.Gaussian(), "size to be even"),
        ({"size": 4}, kernels.Linear(), "known frequencies"),
        ({"size": 4, "orthogonal": True}, kernels.Laplacian(), "Euclidean distance"),
        ({"size": 4}, kernels.Gaussian(-1.0), "bandwidth > 0"),
        ({"size": 4, "weights": np.ones(3)}, kernels.Gaussian(), "weights to have shape"),
    ],
)
def test_bad_input(options, kernel, message):
    with pytest.raises(ValueError, match=message):
        kernels.random_features(jax.random.key(0), kernel, X, **options)


def test_products_of_different_kinds_are_refused(pair):
    K, L = pair
    exact = gradkin.kernel_matrix(kernels.Gaussian(), X)
    with pytest.raises(TypeError, match="other to be a LowRankMatrix"):
        K.inner(exact)
    with pytest.raises(TypeError, match="other to be a LowRankMatrix"):
        K.centered_sums(exact)
    with pytest.raises(ValueError, match="other to have shape"):
        K.inner(L)
    with pytest.raises(ValueError, match="square matrix"):
        L.diagonal()
    with pytest.raises(ValueError, match="points with themselves"):
        L.off_diagonal()
    assert jnp.isnan(L.logsumexp())
