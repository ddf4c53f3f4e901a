"""Inductive bias: SciPy's exact laws, closed forms of the posterior, frequencies of samples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from gradkin import kernels

PROBABILITIES = np.array([1e-25, 1e-12, 1e-6, 1e-3, 0.05, 0.3, 0.5, 0.7, 0.99])
LAWS = [(2.0, 0.0), (2.0, 3.0), (6.0, 0.0), (10.0, 40.0), (30.0, 5.0), (80.0, 300.0), (2e3, 9e3)]


def float32(values) -> np.ndarray:
    return np.asarray(values, np.float32)


def exact(df, noncentrality) -> Any:
    return stats.ncx2(df, noncentrality) if noncentrality else stats.chi2(df)


@pytest.mark.parametrize(("df", "noncentrality"), LAWS)
def test_tail_is_scipys(df, noncentrality):
    law, truth = (
        kernels.ScaledNoncentralChiSquare(df, noncentrality, 0.01),
        exact(df, noncentrality),
    )
    quantiles = truth.ppf(PROBABILITIES)
    values = float32(0.01 * quantiles)
    wanted = -truth.logcdf(quantiles)
    atol = 0.08 if df == 2 else 0.03
    np.testing.assert_allclose(law.neg_log_cdf(values), wanted, atol=atol)
    # Near the mean the two terms of the formula cancel.
    near = np.linspace(0.97, 1.03, 7) * truth.mean()
    np.testing.assert_allclose(
        law.neg_log_cdf(float32(0.01 * near)), -truth.logcdf(near), atol=0.03
    )


@pytest.mark.parametrize(("df", "noncentrality"), LAWS)
def test_density_is_scipys(df, noncentrality):
    law, truth = kernels.ScaledNoncentralChiSquare(df, noncentrality, 3.0), exact(df, noncentrality)
    x = truth.ppf([0.001, 0.2, 0.5, 0.8, 0.999])
    np.testing.assert_allclose(
        law.log_density(float32(3 * x)), truth.logpdf(x) - np.log(3), atol=0.015
    )
    np.testing.assert_allclose(law.mean(), 3 * (df + noncentrality), rtol=1e-6)


def test_sankaran():
    """Close where the law is nearly normal; the paper's code lacks a logarithm."""
    df, noncentrality = 80.0, 300.0
    law, truth = kernels.ScaledNoncentralChiSquare(df, noncentrality, 1.0), exact(df, noncentrality)
    x = truth.ppf([1e-12, 1e-6, 1e-3])
    found = law.neg_log_cdf(float32(x), method="sankaran")
    np.testing.assert_allclose(found, -truth.logcdf(x), rtol=0.01)
    reference = law.neg_log_cdf(float32(x), method="reference")
    z = np.sqrt(2 * np.asarray(reference))
    np.testing.assert_allclose(found - reference, np.log(z * np.sqrt(2 * np.pi)), atol=0.1)
    assert law.neg_log_cdf(2 * truth.mean(), method="reference") == 0


def test_fit_finds_a_chi_square():
    losses = float32(1e-3 * np.random.default_rng(0).chisquare(12, 1600))
    law = kernels.fit_noncentral_chi_square(losses)
    np.testing.assert_allclose(law.mean(), losses.mean(), rtol=0.02)
    for probability in (0.5, 0.1, 1e-4):
        value = 1e-3 * stats.chi2.ppf(probability, 12)
        wanted = -np.log(probability)
        rtol = 0.2 if probability == 1e-4 else 0.06  # extrapolated from 1600 samples
        np.testing.assert_allclose(law.neg_log_cdf(value), wanted, rtol=rtol)
        np.testing.assert_allclose(
            kernels.required_inductive_bias(losses, value), law.neg_log_cdf(value), rtol=1e-6
        )


@pytest.mark.parametrize(("df", "noncentrality"), [(3.0, 0.0), (5.0, 20.0), (40.0, 100.0)])
def test_fit_is_the_most_likely(df, noncentrality):
    truth = exact(df, noncentrality)
    losses = float32(truth.rvs(size=1600, random_state=np.random.default_rng(1)))
    law = kernels.fit_noncentral_chi_square(losses)
    found = np.asarray(law, np.float64)
    likelihood = np.mean(exact(*found[:2]).logpdf(losses / found[2]) - np.log(found[2]))
    assert likelihood > np.mean(truth.logpdf(losses)) - 1e-3
    for factor in np.exp(0.05 * np.vstack([np.eye(3), -np.eye(3)])):
        other = kernels.ScaledNoncentralChiSquare(*map(float, found * factor))
        assert np.mean(law.log_density(losses)) > np.mean(other.log_density(losses)) - 1e-5


def test_fit_does_not_depend_on_scale_or_order():
    losses = float32(np.random.default_rng(2).chisquare(8, 1600))
    bias = kernels.required_inductive_bias(losses, float32([1.0, 3.0]))
    other = kernels.required_inductive_bias(1e-6 * losses[::-1], 1e-6 * float32([1.0, 3.0]))
    np.testing.assert_allclose(other, bias, rtol=2e-2)
    assert kernels.required_inductive_bias(losses, float(2 * losses.max())) < 1e-3


def test_fit_under_jit_vmap_and_sharded(mesh):
    losses = float32(np.random.default_rng(3).chisquare(8, (2, 1600)))
    several = jax.jit(jax.vmap(lambda l: kernels.required_inductive_bias(l, 1.0)))(losses)
    split = jax.device_put(losses[1], NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(kernels.required_inductive_bias(split, 1.0), several[1], rtol=0.02)
    assert np.all(np.isfinite(several))


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(4)
    x, x_test = (rng.uniform(-1, 1, (size, 3)).astype(np.float32) for size in (30, 12))
    y, y_test = (np.stack([np.sin(2 * a).sum(1), a[:, 0] ** 2], axis=1) for a in (x, x_test))
    return x, y.astype(np.float32), x_test, y_test.astype(np.float32)


def posterior(x, y, x_test, jitter):
    """Mean and covariance of the process with a Gaussian kernel, in float64."""
    gram = lambda a, b: np.exp(-((a[:, None].astype(float) - b[None]) ** 2).sum(2) / 2)
    inverse = np.linalg.inv(gram(x, x) + jitter * np.eye(len(x)))
    cross = gram(x_test, x) @ inverse
    return cross @ y, gram(x_test, x_test) - cross @ gram(x, x_test)


def test_posterior(task):
    x, y, x_test, y_test = task
    loss = kernels.interpolant_loss(kernels.Gaussian(1.0), *task, jitter=1e-3)
    mean, covariance = posterior(x, y, x_test, 1e-3)
    np.testing.assert_allclose(loss.variance, np.linalg.eigvalsh(covariance), atol=1e-4)
    np.testing.assert_allclose(
        np.sum(np.square(loss.residual)), np.sum((mean - y_test) ** 2), rtol=1e-3
    )
    expected = np.mean((mean - y_test) ** 2) + np.trace(covariance) / len(x_test)
    np.testing.assert_allclose(loss.mean(), expected, rtol=1e-3)


def test_posterior_meets_the_data(task):
    x, y, _, _ = task
    loss = kernels.interpolant_loss(kernels.Gaussian(0.5), x, y, x, y)
    assert np.max(loss.variance) < 2e-4
    assert np.max(np.abs(loss.residual)) < 0.02


def test_samples_are_those_of_the_posterior(task, key):
    x, y, x_test, y_test = task
    mean, covariance = posterior(x, y, x_test, 1e-3)
    rng = np.random.default_rng(5)
    draws = rng.multivariate_normal(np.zeros(12), covariance, (4000, 2)).transpose(0, 2, 1)
    losses = np.mean((mean[None] + draws - y_test[None]) ** 2, axis=(1, 2))
    loss = kernels.interpolant_loss(kernels.Gaussian(1.0), *task, jitter=1e-3)
    found = np.asarray(jax.jit(loss.sample, static_argnums=1)(key, 4000))
    test: Any = stats.ks_2samp(losses, found)
    assert test.pvalue > 0.01
    for q in (0.5, 0.1, 0.01):
        value = float(np.quantile(np.concatenate([losses, found]), q))
        tail = loss.inductive_bias(value)
        np.testing.assert_allclose(tail, -np.log(q), atol=0.15 if q == 0.01 else 0.06)


def test_tail_of_sums_of_exponentials():
    """Two outputs without residual: a sum of exponentials, whose law is elementary."""
    variance = np.array([0.5, 1.0, 2.0, 5.0])
    means = 2 * variance / 8
    rates = 1 / means
    share = np.array(
        [np.prod(np.delete(rates, i) / np.delete(rates - r, i)) for i, r in enumerate(rates)]
    )
    loss = kernels.InterpolantLoss(jnp.zeros((4, 2)), jnp.asarray(variance, jnp.float32))
    for value in (0.02, 0.2, 1.0, float(means.sum()), 4.0):
        probability = np.sum(share * -np.expm1(-rates * value))
        np.testing.assert_allclose(loss.inductive_bias(value), -np.log(probability), atol=0.03)


def test_tail_of_equal_variances():
    """One non-central chi-square, far out and where factors underflow."""
    residual, variance = float32(np.random.default_rng(6).normal(size=(5, 3))), 0.04
    loss = kernels.InterpolantLoss(jnp.asarray(residual), jnp.full(5, variance, jnp.float32))
    truth = stats.ncx2(15, np.sum(residual.astype(float) ** 2) / variance)
    for probability in (1e-30, 1e-10, 0.1, 0.5, 0.99):
        value = truth.ppf(probability) * variance / 15
        found = jax.jit(loss.inductive_bias)(value)
        np.testing.assert_allclose(found, -np.log(probability), rtol=0.01, atol=0.01)
    tiny = kernels.InterpolantLoss(jnp.zeros((5, 3)), jnp.ones(5)).inductive_bias(1e-15)
    np.testing.assert_allclose(tiny, -stats.chi2.logcdf(15e-15, 15), rtol=1e-3)


def test_tail_without_variance():
    sure = kernels.InterpolantLoss(jnp.ones((2, 1)), jnp.zeros(2))
    assert sure.inductive_bias(0.9) == np.inf
    assert sure.inductive_bias(1.1) == 0
    half = kernels.InterpolantLoss(jnp.ones((2, 1)), jnp.array([0.0, 1.0]))
    assert half.inductive_bias(0.4) == np.inf
    assert np.isfinite(half.inductive_bias(0.6))


def test_bad_input(task):
    x, y, x_test, y_test = task
    gaussian, law = kernels.Gaussian(1.0), kernels.ScaledNoncentralChiSquare(2.0, 1.0, 1.0)
    fit = kernels.fit_noncentral_chi_square
    good = float32([1.0, 2.0, 3.0])
    for call, words in (
        (lambda: fit(good[:2]), "at least 3 losses, got 2"),
        (lambda: fit(good[None]), "1 axes"),
        (lambda: fit(float32([1.0, np.nan, 2.0])), "finite losses"),
        (lambda: fit(-good), ">= 0 that differ"),
        (lambda: fit(np.ones(5, np.float32)), "that differ"),
        (lambda: kernels.required_inductive_bias(good, 0.0), "value > 0"),
        (lambda: law.neg_log_cdf(1.0, method="exact"), "method"),
        (lambda: kernels.interpolant_loss(gaussian, x, y[:, 0], x_test, y_test), "y to have 2"),
        (lambda: kernels.interpolant_loss(gaussian, x, y[:5], x_test, y_test), "one length"),
        (lambda: kernels.interpolant_loss(gaussian, x, y, x_test, y_test, jitter=0.0), "jitter"),
        (lambda: kernels.interpolant_loss(gaussian, x, y, x_test, y_test[:, :1]), "outputs"),
        (
            lambda: kernels.interpolant_loss(
                kernels.Gaussian(100.0), x, y, x_test, y_test, jitter=1e-12
            ),
            "raise jitter",
        ),
        (
            lambda: kernels.InterpolantLoss(jnp.ones((2, 1)), jnp.ones(2)).inductive_bias(0.0),
            "error > 0",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()
