"""Noisy sums of features: the kernels they stand for, their noise, their sensitivity."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import kernels
from gradkin.kernels import (
    PrivacyBudget,
    private_features,
    private_kernel_sums,
    private_smooth_kernel_sums,
)

EXACT = PrivacyBudget(math.inf)
KERNELS = (
    kernels.Gaussian(1.5),
    kernels.Exponential(2.0),
    kernels.Laplacian(3.0),
    kernels.Cauchy(2.0),
    kernels.Gaussian(np.array([1.0, 2.0, 0.5], np.float32)),
)


def draw(seed=0, n=30, d=3):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def mean_of(kernel, x, y):
    return np.asarray(kernel.tile(jnp.asarray(y), jnp.asarray(x))).mean(1)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)
def test_features_stand_for_their_kernel(key, kernel, paired):
    x, y = draw(), draw(1, 4)
    release = private_kernel_sums(key, kernel, x, size=200_000, budget=EXACT, paired=paired)
    # Four standard errors: a feature of a pair of points has variance at most 1 (paired: 1 / 2).
    np.testing.assert_allclose(release.sum(y) / 30, mean_of(kernel, x, y), atol=1e-2)


def test_cauchy_frequencies_are_not_interchangeable(key):
    # i.i.d. coordinates give the l1 kernel, one scalar per vector the l2 kernel.
    x, y = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    for kernel, distance in ((kernels.Laplacian(2.0), 3.0), (kernels.Exponential(2.0), 3**0.5)):
        release = private_kernel_sums(key, kernel, x, size=200_000, budget=EXACT)
        assert float(release.sum(y)[0]) == pytest.approx(math.exp(-distance / 2), abs=1e-2)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("delta", [0.0, 1e-5])
def test_noise_deviation_is_exact(key, paired, delta):
    if delta:
        pytest.importorskip("dp_accounting")
    kernel, x, y = kernels.Gaussian(1.5), draw(), draw(1, 3)
    budget, m = PrivacyBudget(1.0, delta), 50
    noise_keys = jax.random.split(key, 2000)
    fit = lambda k, b: private_kernel_sums(k, kernel, x, size=m, budget=b, paired=paired)
    errors = jax.vmap(lambda k: fit(k, budget).sum(y) - fit(k, EXACT).sum(y))(noise_keys)
    said = jax.vmap(lambda k: fit(k, budget).noise_std(y))(noise_keys)
    np.testing.assert_allclose(np.std(errors / said), 1.0, rtol=0.05)
    # 2 sqrt(m) / epsilon for Laplace noise; z for Gaussian pairs, whatever m; sqrt(2) z for phases.
    wanted = 2 * math.sqrt(m) if not delta else budget.noise_multiplier * (1 if paired else 2**0.5)
    np.testing.assert_allclose(np.mean(said), wanted, rtol=1e-5 if paired else 0.05)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("relation", ["add_or_remove_one", "replace_one"])
def test_sensitivity_is_what_the_noise_is_scaled_to(key, paired, relation):
    m, x, replaced = 40, draw(n=10), relation == "replace_one"
    fit = lambda x, budget=EXACT, **o: private_kernel_sums(
        key, kernels.Exponential(1.0), x, size=m, budget=budget, paired=paired, **o
    )
    l1 = (2 if replaced else 1) * math.sqrt(2) * m
    l2 = (2 if replaced else 1) * math.sqrt(m if paired else 2 * m)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = x.copy()
        other[3] = 5 * rng.normal(size=3)
        left_out = {} if replaced else {"mask": np.arange(10) != 3}
        change = np.asarray(fit(x).sums - fit(other, **left_out).sums)
        assert np.abs(change).sum() <= l1
        assert np.linalg.norm(change) <= l2 * (1 + 1e-5)
    assert fit(x, PrivacyBudget(0.5, relation=relation)).noise_scale == pytest.approx(l1 / 0.5)
    pytest.importorskip("dp_accounting")
    budget = PrivacyBudget(0.5, 1e-5, relation)
    assert fit(x, budget).noise_scale == pytest.approx(l2 * budget.noise_multiplier)


def test_noise_audit(key):
    m = 20
    options = {"size": m, "budget": PrivacyBudget(2.0), "mask": np.zeros(5, bool)}
    fit = lambda k: private_kernel_sums(
        k, kernels.Gaussian(1.0), draw(n=5), paired=False, **options
    )
    sums = np.asarray(jax.vmap(lambda k: fit(k).sums[0])(jax.random.split(key, 2000)))
    wanted = 2 * (math.sqrt(2) * m / 2.0) ** 2
    np.testing.assert_allclose(sums.var(0), wanted, rtol=0.25)
    assert sums.var() == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("kernel", [kernels.Gaussian(8.0), kernels.Exponential(16.0)])
def test_projection_keeps_sums(key, kernel):
    x, y = draw(n=100, d=128), draw(1, 5, 128)
    release = private_kernel_sums(key, kernel, x, size=20_000, budget=EXACT, projection_size=64)
    assert release.frequencies.shape == (20_000, 64)
    np.testing.assert_allclose(release.sum(y) / 100, mean_of(kernel, x, y), atol=0.06)


def smooth(name, x, y):
    difference = x[None].astype(np.float64) - y[:, None]
    return {
        "l2": lambda: np.linalg.norm(difference, axis=2),
        "l1": lambda: np.abs(difference).sum(2),
        "squared": lambda: (difference**2).sum(2),
    }[name]()


@pytest.mark.parametrize("allocation", ["proportional", "equal"])
@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("l2", kernels.Exponential(1.0)),
        ("l1", kernels.Laplacian(1.0)),
        ("squared", kernels.Gaussian(0.5**0.5)),
    ],
)
def test_smooth_kernels(key, name, kernel, allocation):
    x, y, terms = draw(), draw(1, 4), kernels.exponential_sum(1e-3)
    release = private_smooth_kernel_sums(
        key, kernel, x, terms=terms, size=100_000, budget=EXACT, allocation=allocation
    )
    exact = np.mean(1 / (1 + smooth(name, x, y)), axis=1)
    np.testing.assert_allclose(release.sum(y) / 30, exact, atol=2e-2)


def test_logarithm(key):
    x, y = draw(), draw(1, 4)
    terms = kernels.exponential_sum(1e-3, function="logarithm", largest=20.0)
    release = private_smooth_kernel_sums(
        key, kernels.Exponential(1.0), x, terms=terms, size=100_000, budget=EXACT
    )
    exact = np.mean(np.log1p(smooth("l2", x, y)), axis=1)
    np.testing.assert_allclose(release.sum(y) / 30, exact, atol=0.25)


def test_shares_by_weight_need_less_noise(key):
    x, y, terms = draw(), draw(1, 4), kernels.exponential_sum(1e-3)
    fit = lambda allocation: private_smooth_kernel_sums(
        key,
        kernels.Exponential(1.0),
        x,
        terms=terms,
        size=1000,
        budget=PrivacyBudget(1.0),
        allocation=allocation,
    )
    equal, proportional = (fit(a).noise_std(y) for a in ("equal", "proportional"))
    # That of a single kernel, 2 sqrt(m); the paper's split is worse by sqrt(T sum w^2).
    np.testing.assert_allclose(proportional, 2 * math.sqrt(1000), rtol=0.03)
    excess = math.sqrt(len(terms.weights) * np.sum(terms.weights**2))
    np.testing.assert_allclose(equal / proportional, excess, rtol=0.05)


@pytest.mark.parametrize("tolerance", [0.1, 1e-3, 1e-6])
def test_exponential_sums_meet_their_tolerance(tolerance):
    weights, rates = kernels.exponential_sum(tolerance)
    z = np.concatenate([[0], np.geomspace(1e-4, 1e5, 2000)])
    assert np.max(np.abs(np.exp(-np.outer(z, rates)) @ weights - 1 / (1 + z))) < tolerance
    weights, rates = kernels.exponential_sum(tolerance, function="logarithm", largest=50.0)
    z = np.linspace(0, 50, 2000)
    assert np.max(np.abs(np.exp(-np.outer(z, rates)) @ weights - np.log1p(z))) < tolerance
    assert rates[0] == 0


def test_classes_and_blocks(key, monkeypatch):
    kernel, x, y = kernels.Gaussian(1.0), draw(n=50), draw(1, 4)
    labels = np.arange(50) % 2
    fit = lambda **o: private_kernel_sums(key, kernel, x, size=30, budget=EXACT, **o)
    grouped = fit(labels=labels, num_classes=2)
    np.testing.assert_allclose(jnp.sum(grouped.sum(y), 1), fit().sum(y), rtol=1e-4)
    np.testing.assert_allclose(grouped.sum(y)[:, 1], fit(mask=labels == 1).sum(y), rtol=1e-4)
    private = private_kernel_sums(
        key, kernel, x, size=30, budget=PrivacyBudget(1.0), labels=labels, num_classes=2
    )
    assert private.noise_scale == pytest.approx(math.sqrt(2) * 30)
    far = np.concatenate([x, x + 10]).astype(np.float32)
    release = private_kernel_sums(
        key, kernel, far, size=500, budget=EXACT, labels=np.repeat([0, 1], 50), num_classes=2
    )
    assert np.mean(release.classify(far) == np.repeat([0, 1], 50)) > 0.9
    monkeypatch.setattr(private_features, "BLOCK", 2 * 29 * 7)  # seven rows at a time
    release = private_kernel_sums(key, kernel, x, size=29, budget=EXACT)
    angles = x @ np.asarray(release.frequencies).T
    wanted = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).sum(0)
    np.testing.assert_allclose(release.sums[0], wanted, rtol=1e-4, atol=1e-3)


def test_jit_and_shards(key, mesh):
    x, y, budget = draw(n=64), draw(1, 4), PrivacyBudget(1.0)
    fit = lambda k, x: private_kernel_sums(k, kernels.Gaussian(1.0), x, size=30, budget=budget)
    wanted = fit(key, x)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for got in (jax.jit(fit)(key, x), fit(key, jax.device_put(x, rows))):
        np.testing.assert_allclose(got.sums, wanted.sums, rtol=1e-5, atol=1e-4)
    mapped = jax.vmap(lambda q: wanted.sum(q[None])[0])(jnp.asarray(y))
    np.testing.assert_allclose(mapped, wanted.sum(y), rtol=1e-4, atol=1e-4)
    hidden = jax.jit(fit)(key, jnp.asarray(x).at[0].set(jnp.nan))
    left_out = private_kernel_sums(
        key, kernels.Gaussian(1.0), x, size=30, budget=budget, mask=np.arange(64) > 0
    )
    np.testing.assert_allclose(hidden.sums, left_out.sums, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "options", "error", "message"),
    [
        (kernels.Gaussian(1.0), {"size": 0}, ValueError, "size to be an integer >= 1"),
        (kernels.Gaussian(-1.0), {}, ValueError, "bandwidth > 0"),
        (kernels.Laplacian(1.0), {"projection_size": 2}, ValueError, "no projection_size for Lap"),
        (kernels.Gaussian(1.0), {"projection_size": 0}, ValueError, "projection_size to be an int"),
        (kernels.Polynomial(), {}, TypeError, "known spectrum"),
        (lambda x, y: x @ y, {}, TypeError, "known spectrum"),
    ],
)
def test_bad_kernels(key, kernel, options, error, message):
    with pytest.raises(error, match=message):
        private_kernel_sums(key, kernel, draw(), **{"size": 5, "budget": EXACT} | options)


def test_refusals(key):
    x, terms = draw(), kernels.exponential_sum(0.01)
    fit = lambda kernel, **o: private_smooth_kernel_sums(
        key, kernel, x, **{"terms": terms, "size": 20, "budget": EXACT} | o
    )
    with pytest.raises(TypeError, match="Exponential, Gaussian or Laplacian"):
        fit(kernels.Cauchy(1.0))
    with pytest.raises(ValueError, match=f"size to be an integer >= {len(terms.rates)}"):
        fit(kernels.Gaussian(1.0), size=2)
    with pytest.raises(ValueError, match="allocation to be one of"):
        fit(kernels.Gaussian(1.0), allocation="best")
    with pytest.raises(ValueError, match="as many weights as rates"):
        fit(kernels.Gaussian(1.0), terms=kernels.ExponentialSum(np.ones(2), np.ones(3)))
    with pytest.raises(ValueError, match=r"y of shape \[q, 3\]"):
        private_kernel_sums(key, kernels.Gaussian(1.0), x, size=2, budget=EXACT).sum(x[:, :2])
    with pytest.raises(ValueError, match="a release with labels"):
        private_kernel_sums(key, kernels.Gaussian(1.0), x, size=2, budget=EXACT).classify(x)
    with pytest.raises(ValueError, match="finite, got 1 rows"):
        private_kernel_sums(
            key, kernels.Gaussian(1.0), np.array([[np.inf]], np.float32), size=2, budget=EXACT
        )
    for arguments, message in (
        ((0.5,), "0 < tolerance <= 0.1"),
        ((0.01, {"function": "sine"}), "function to be one of"),
        ((0.01, {"function": "logarithm"}), "0 < largest < inf"),
        ((0.01, {"largest": 2.0}), "no largest"),
    ):
        tolerance, *rest = arguments
        options: Any = rest[0] if rest else {}
        with pytest.raises(ValueError, match=message):
            kernels.exponential_sum(tolerance, **options)
