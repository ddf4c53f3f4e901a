"""Centered sums against float64, where naive float32 has no digit left, weighted and masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin import kernels

RNG = np.random.default_rng(4)
N = 150
X = RNG.normal(size=(N, 5)).astype(np.float32)
Y = (X[:, :2] + 0.5 * RNG.normal(size=(N, 2))).astype(np.float32)
WEIGHTS = RNG.uniform(0.2, 3, size=N).astype(np.float32)
MASK = np.arange(N) % 7 != 2


def distances(x):
    return np.sqrt(np.sum((x[:, None].astype(float) - x[None]) ** 2, axis=-1))


def gaussian(x, h):
    return np.exp(-(distances(x) ** 2) / (2 * h**2))


def plainly(R, w=None):
    w = np.ones(len(R)) if w is None else w / w.mean()
    p = w / len(R)
    A = R - (R @ p)[:, None] - (p @ R)[None] + p @ R @ p
    return A * np.sqrt(w[:, None] * w[None])


def u_centered(R):
    n = len(R)
    R = R - np.diag(np.diag(R))
    A = R - R.sum(1)[:, None] / (n - 2) - R.sum(0)[None] / (n - 2)
    A = A + R.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(A, 0)
    return A


def sums(A, B):
    return np.array([(A * B).sum(), (A * A).sum(), (B * B).sum()])


def matrices(x=X, y=Y, **options):
    return (
        gradkin.kernel_matrix(kernels.Euclidean(), x, block=40, **options),
        gradkin.kernel_matrix(kernels.Gaussian(2.0), y, block=40, **options),
    )


@pytest.mark.parametrize(("passes", "unbiased"), [(1, False), (1, True), (2, True)])
def test_equals_centering_entry_by_entry(passes, unbiased):
    K, L = matrices()
    center = u_centered if unbiased else plainly
    wanted = sums(center(distances(X)), center(gaussian(Y, 2)))
    found = K.centered_sums(L, unbiased=unbiased, passes=passes)
    np.testing.assert_allclose(found, wanted, rtol=2e-5)
    if passes == 1:
        alone = K.centered_sums(unbiased=unbiased)
        np.testing.assert_allclose(alone, [wanted[1]] * 3, rtol=2e-5)


def raw(x, y):
    """Entries that vary little around one large number."""
    return 1 + 1e-5 * jnp.sum(jnp.square(x - y))


@pytest.mark.parametrize(("passes", "unbiased"), [(1, False), (1, True), (2, True)])
def test_entries_that_vary_little(passes, unbiased):
    """Expanded sums of raw entries in float32 lose all digits here; these lose none."""
    entries = np.asarray(gradkin.kernel_matrix(raw, X).materialize())
    center = u_centered if unbiased else plainly
    wanted = (center(entries.astype(float)) ** 2).sum()
    naive = np.float32(0)
    for row in entries:
        naive += (row * row).sum(dtype=np.float32)
    rows = entries.sum(1, dtype=np.float32)
    naive = naive - 2 * (rows**2).sum() / np.float32(N) + rows.sum() ** 2 / np.float32(N) ** 2
    assert abs(naive - wanted) > 0.5 * wanted
    K = gradkin.kernel_matrix(raw, X, block=40)
    found = K.centered_sums(unbiased=unbiased, passes=passes)
    assert float(found.kl) == pytest.approx(wanted, rel=1e-3)


def test_weights():
    """Weighted means; whole weights are repeated points."""
    K, L = matrices()
    wanted = sums(*(plainly(R, WEIGHTS.astype(float)) for R in (distances(X), gaussian(Y, 2))))
    np.testing.assert_allclose(K.centered_sums(L, weights=WEIGHTS), wanted, rtol=2e-5)
    counts = np.arange(N) % 3
    repeated = matrices(np.repeat(X, counts, axis=0), np.repeat(Y, counts, axis=0))
    twice = repeated[0].centered_sums(repeated[1])
    # Weights have mean 1 over N points, the repeated ones are as many as the counts' sum.
    ratio = (N / counts.sum()) ** 2
    once = K.centered_sums(L, weights=counts, passes=2)
    np.testing.assert_allclose(once, ratio * np.array(twice), rtol=1e-4)


@pytest.mark.parametrize(("passes", "unbiased"), [(1, False), (2, True)])
def test_masked_points_are_not_there(passes, unbiased):
    """What either matrix masks is left out of both, even where it holds NaN."""
    K = gradkin.kernel_matrix(
        kernels.Euclidean(), np.where(MASK[:, None], X, np.nan), mask=MASK, block=40
    )
    _, L = matrices()
    found = K.centered_sums(L, unbiased=unbiased, passes=passes)
    small = matrices(X[MASK], Y[MASK])
    np.testing.assert_allclose(
        found, small[0].centered_sums(small[1], unbiased=unbiased, passes=passes), rtol=1e-4
    )


def test_kernels_that_are_not_symmetric():
    K = gradkin.kernel_matrix(lambda x, y: jnp.sum(x) * jnp.exp(-jnp.sum((x - y) ** 2)), X)
    L = gradkin.kernel_matrix(kernels.Gaussian(2.0), Y)
    entries = np.asarray(K.materialize(), float), gaussian(Y, 2)
    np.testing.assert_allclose(K.centered_sums(L), sums(*map(plainly, entries)), rtol=1e-4)
    np.testing.assert_allclose(
        K.centered_sums(L, unbiased=True), sums(*map(u_centered, entries)), rtol=1e-3
    )


def test_gradient():
    """The means that are taken out on the way have no part in the derivative."""
    x, y = X[:12], Y[:12]

    def streamed(x):
        K = gradkin.kernel_matrix(kernels.Exponential(2.0), x, block=5)
        L = gradkin.kernel_matrix(kernels.Gaussian(2.0), y, block=5)
        return K.centered_sums(L).kl

    def dense(x):
        squares = jnp.sum(jnp.square(x[:, None] - x[None]), -1)
        eye = jnp.eye(12)
        R = jnp.where(eye > 0, 1, jnp.exp(-jnp.sqrt(jnp.where(eye > 0, 1, squares)) / 2))
        # One centered matrix is enough.
        return jnp.sum(R * jnp.asarray(plainly(gaussian(y, 2)), np.float32))

    np.testing.assert_allclose(
        jax.jit(jax.grad(streamed))(x), jax.grad(dense)(x), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda K: K.centered_sums(passes=3), "passes to be one of"),
        (lambda K: K.centered_sums(weights=WEIGHTS, unbiased=True), "U-centering has none"),
        (lambda K: K.centered_sums(weights=-WEIGHTS), "weights >= 0"),
        (lambda K: K.centered_sums(weights=WEIGHTS[:3]), "weights to have shape"),
        (lambda K: K.off_diagonal().centered_sums(), "with its diagonal"),
        (
            lambda K: K.centered_sums(gradkin.kernel_matrix(kernels.Gaussian(), X, X)),
            "other to compare points with themselves",
        ),
        (
            lambda K: gradkin.kernel_matrix(kernels.Gaussian(), X, weights=WEIGHTS).centered_sums(),
            "without weights of columns",
        ),
        (
            lambda K: gradkin.kernel_matrix(kernels.Gaussian(), X[:2]).centered_sums(unbiased=True),
            "at least 3 points",
        ),
        (lambda K: K.centered_sums(gradkin.kernel_matrix(raw, X[:9])), "other to have shape"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(matrices()[0])
