"""Noisy moments: squared distances, nearest means, and what they cost."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin.kernels import PrivacyBudget, private_moments

EXACT = PrivacyBudget(math.inf)


def draw(seed=0, n=40, d=4):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def squared(x, y):
    return np.sum((x[None].astype(np.float64) - y[:, None]) ** 2, axis=(1, 2))


def test_squared_distances(key):
    x, y = draw(), draw(1, 5)
    release = private_moments(key, x, max_norm=10.0, budget=EXACT)
    np.testing.assert_allclose(release.squared_l2(y), squared(x, y), rtol=1e-5)
    np.testing.assert_allclose(release.means()[0], x.mean(0), rtol=1e-5, atol=1e-6)
    # A translation of points and queries changes nothing.
    shifted = private_moments(key, x + 1, max_norm=10.0, budget=EXACT)
    np.testing.assert_allclose(shifted.squared_l2(y + 1), squared(x, y), rtol=1e-4)


@pytest.mark.parametrize("delta", [0.0, 1e-5])
def test_noise_deviation_is_exact(key, delta):
    if delta:
        pytest.importorskip("dp_accounting")
    x, y, budget = draw(), draw(1, 5), PrivacyBudget(1.0, delta)
    fit = lambda k: private_moments(k, x, max_norm=6.0, budget=budget)
    got = jax.vmap(lambda k: fit(k).squared_l2(y))(jax.random.split(key, 4000))
    said = fit(key).noise_std(y)
    np.testing.assert_allclose(np.std(got, axis=0), said, rtol=0.06)
    np.testing.assert_allclose(
        np.mean(got, axis=0), squared(x, y), atol=5 * np.max(said) / 4000**0.5
    )


def test_scales_follow_sensitivities(key):
    x = draw()
    options = {"max_norm": 6.0, "budget": PrivacyBudget(2.0)}
    release = private_moments(key, x, shares=(0.5, 0.4, 0.1), **options)
    assert release.noise_scales == pytest.approx((1 / 1.0, 6 * 2 / 0.8, 36 / 0.2))
    # One row more changes the parts by at most that, in L1.
    edge = np.full((1, 4), 3.0, np.float32)  # norm 6
    fit = lambda x: private_moments(key, x, max_norm=6.0, budget=EXACT)
    one, other = fit(np.concatenate([x, edge])), fit(x)
    assert float(one.count[0] - other.count[0]) == 1
    change = np.asarray(one.total - other.total)
    assert 11.9 < np.abs(change).sum() <= 12.001
    assert float(one.squares[0] - other.squares[0]) == pytest.approx(36, rel=1e-4)
    pytest.importorskip("dp_accounting")
    budget = PrivacyBudget(2.0, 1e-5, "replace_one")
    release = private_moments(key, x, max_norm=6.0, budget=budget, shares=(0.2, 0.8, 0.0))
    z = budget.noise_multiplier
    assert release.noise_scales[:2] == pytest.approx((2 * z / 0.2**0.5, 12 * z / 0.8**0.5))
    assert release.squares is None
    assert release.event() == budget.event()


def test_nearest_means(key):
    centres = 4 * np.eye(4, dtype=np.float32)
    labels = np.arange(400) % 4
    x = centres[labels] + 0.3 * draw(n=400)
    fit = lambda budget, outside="clip": private_moments(
        key,
        x,
        max_norm=5.0,
        budget=budget,
        shares=(0.1, 0.9, 0.0),
        outside=outside,
        labels=labels,
        num_classes=4,
    )
    np.testing.assert_array_equal(fit(EXACT).classify(x), labels)
    assert np.mean(fit(PrivacyBudget(2.0)).classify(x) == labels) > 0.95
    assert np.mean(fit(PrivacyBudget(0.001)).classify(x) == labels) < 0.9
    np.testing.assert_array_equal(fit(EXACT).count, [100] * 4)


def test_rows_outside(key):
    x = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], np.float32)
    fit = lambda outside, x=x: private_moments(key, x, max_norm=1.0, budget=EXACT, outside=outside)
    np.testing.assert_allclose(fit("clip").total[0], [0.9, 1.2], rtol=1e-5)
    np.testing.assert_allclose(fit("drop").total[0], [0.3, 0.4], rtol=1e-5)
    assert float(fit("drop").count[0]) == 2
    # A norm that is one but for rounding is not refused, and still does not exceed the bound.
    unit = np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for row in unit[:20]:
        total = np.asarray(fit("refuse", row[None]).total[0], np.float64)
        assert np.linalg.norm(total) <= 1
    with pytest.raises(ValueError, match="max_norm=1.0, got 1 rows outside"):
        fit("refuse")
    with pytest.raises(ValueError, match="outside='clip' or 'drop' inside jit"):
        jax.jit(lambda x: fit("refuse", x).total)(x)
    hidden = jax.jit(lambda x: fit("clip", x).total)(jnp.asarray(x).at[0].set(jnp.nan))
    np.testing.assert_allclose(hidden[0], [0.3, 0.4], rtol=1e-5)


def test_shards(key, mesh):
    x, budget = draw(n=64), PrivacyBudget(1.0)
    fit = lambda x: private_moments(key, x, max_norm=6.0, budget=budget)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    got, wanted = fit(jax.device_put(x, rows)), fit(x)
    np.testing.assert_allclose(got.total, wanted.total, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(got.squares, wanted.squares, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_norm": 0.0}, "max_norm > 0"),
        ({"shares": (0.5, 0.6, -0.1)}, "three shares >= 0 that add up to 1"),
        ({"shares": (0.5, 0.4, 0.0)}, "three shares >= 0 that add up to 1"),
        ({"shares": (0.5, 0.0, 0.5)}, "positive share for the sum"),
        ({"outside": "ignore"}, "outside to be one of"),
    ],
)
def test_bad_options(key, options, message):
    with pytest.raises(ValueError, match=message):
        private_moments(key, draw(), **{"max_norm": 9.0, "budget": EXACT} | options)


def test_refusals(key):
    release = private_moments(key, draw(), max_norm=9.0, budget=EXACT, shares=(0.1, 0.9, 0.0))
    with pytest.raises(ValueError, match="got none of \\['squares'\\]"):
        release.squared_l2(draw())
    with pytest.raises(ValueError, match=r"y of shape \[q, 4\]"):
        private_moments(key, draw(), max_norm=9.0, budget=EXACT).squared_l2(draw(d=3))
    with pytest.raises(ValueError, match="a release with labels"):
        release.classify(draw())
