"""Kendall's tau against SciPy, with ties, groups and masks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gradkin import curvature

tau = jax.jit(lambda a, b, groups, mask: curvature.kendall_tau(a, b, groups=groups, mask=mask))
ALL = jnp.ones(30, bool)
ONE = jnp.zeros(30, jnp.int32)


def reference(a, b):
    found: Any = scipy.stats.kendalltau(a, b)
    return float(found.statistic)


def numbers(seed, levels):
    return np.random.default_rng(seed).integers(0, levels, 30).astype(np.float32)


@pytest.mark.parametrize("levels", [3, 1000])
def test_matches_scipy_with_ties(levels):
    for seed in range(5):
        a, b = numbers(seed, levels), numbers(seed + 100, 7)
        wanted = reference(a, b)
        np.testing.assert_allclose(tau(a, b, ONE, ALL), wanted, atol=1e-6)
        increasing = tau(np.exp(a / 1000), 3 * b - 1, ONE, ALL)
        np.testing.assert_allclose(increasing, wanted, atol=1e-6)


def test_mask_leaves_out_and_groups_separate():
    a, b = numbers(0, 1000), numbers(1, 1000)
    mask = np.arange(30) % 3 > 0
    wanted = reference(a[mask], b[mask])
    hidden = np.where(mask, a, np.nan)
    np.testing.assert_allclose(tau(hidden, b, ONE, mask), wanted, atol=1e-6)
    # Within groups the order is the same, between them the opposite.
    groups = np.repeat(np.arange(3, dtype=np.int32), 10)
    within = np.tile(np.arange(10, dtype=np.float32), 3)
    up, down = within + 100 * groups, within - 100 * groups
    assert tau(up, down, ONE, ALL) < 0
    np.testing.assert_allclose(tau(up, down, groups, ALL), 1, rtol=1e-6)
    assert float(curvature.kendall_tau(up, up)) == 1


def test_undefined_is_nan():
    a = numbers(0, 1000)
    assert np.isnan(tau(a, np.ones(30, np.float32), ONE, ALL))
    assert np.isnan(tau(a.copy(), np.where(np.arange(30) == 3, np.nan, a), ONE, ALL))


def test_maps_over_rows():
    rows = np.stack([numbers(seed, 1000) for seed in range(4)])
    target = numbers(9, 1000)
    found = jax.vmap(tau, (0, None, None, None))(rows, target, ONE, ALL)
    wanted = [reference(row, target) for row in rows]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"b to have the shape of a, got b.shape=\(3,\)"):
        curvature.kendall_tau(jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match="groups to have the shape of a"):
        curvature.kendall_tau(jnp.ones(2), jnp.ones(2), groups=jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="mask to have the shape of a"):
        curvature.kendall_tau(jnp.ones(2), jnp.ones(2), mask=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="a to have 1 axes"):
        curvature.kendall_tau(jnp.ones((2, 2)), jnp.ones((2, 2)))
