"""How much groups differ: definitions in NumPy, limits, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gradkin import kernels

VALUES = jnp.asarray(np.sin(np.arange(30.0)), jnp.float32)
GROUPS = jnp.arange(30) % 3


def divergence(values, groups, num_groups, bandwidth, weights):
    grid = np.linspace(values.min(), values.max(), 1000)
    densities = np.stack(
        [
            scipy.stats.norm.pdf(grid[:, None], values[None, groups == g], bandwidth).sum(1)
            for g in range(num_groups)
        ]
    )
    p = densities / densities.sum(1, keepdims=True)
    entropy = lambda q: -np.sum(np.maximum(q, 1e-10) * np.log2(np.maximum(q, 1e-10)))
    return entropy(weights @ p) - sum(w * entropy(q) for w, q in zip(weights, p))


@pytest.mark.parametrize("equal", [False, True])
def test_definition(equal):
    groups = jnp.where(jnp.arange(30) < 5, 0, GROUPS)
    sizes = np.bincount(groups)
    weights = np.full(3, 1 / 3) if equal else sizes / 30
    found = jax.jit(
        lambda v, g: kernels.group_divergence(v, g, num_groups=3, bandwidth=0.2, equal=equal)
    )(VALUES, groups)
    exact = divergence(np.float64(VALUES), np.asarray(groups), 3, 0.2, weights)
    np.testing.assert_allclose(found, exact, rtol=1e-3)


def test_limits():
    of = lambda v, g, n: float(kernels.group_divergence(v, g, num_groups=n, bandwidth=0.1))
    apart = jnp.repeat(jnp.array([0.0, 10.0, 20.0, 30.0]), 5)
    np.testing.assert_allclose(of(apart, jnp.repeat(jnp.arange(4), 5), 4), 2, atol=1e-3)
    assert abs(of(VALUES, jnp.zeros(30, int), 1)) < 1e-5
    same = jnp.concatenate([VALUES, VALUES])
    assert abs(of(same, jnp.repeat(jnp.arange(2), 30), 2)) < 1e-5
    # A group without members changes nothing.
    np.testing.assert_allclose(of(VALUES, GROUPS, 5), of(VALUES, GROUPS, 3), rtol=1e-5)


def test_constant_outputs_have_finite_derivatives():
    of = lambda v: kernels.group_divergence(v, GROUPS, num_groups=3)
    value, grad = jax.value_and_grad(of)(jnp.ones(30))
    assert abs(float(value)) < 1e-5
    assert bool(jnp.all(jnp.isfinite(grad)))


def test_explained_by_groups():
    values, groups = np.asarray(VALUES, np.float64), np.asarray(GROUPS)
    means = [values[groups == g].mean() for g in range(3)]
    exact = np.var(means, ddof=1) / np.var(values, ddof=1)
    found = kernels.explained_by_groups(VALUES, GROUPS, num_groups=4)
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    scaled = kernels.explained_by_groups(7 * VALUES - 3, GROUPS, num_groups=3)
    np.testing.assert_allclose(scaled, exact, rtol=1e-4)
    assert float(kernels.explained_by_groups(VALUES, 0 * GROUPS, num_groups=3)) == 0
    assert float(kernels.explained_by_groups(jnp.ones(30), GROUPS, num_groups=3)) == 0
    found, present = kernels.group_means(VALUES, GROUPS, num_groups=4)
    np.testing.assert_allclose(found[:3], means, rtol=1e-4, atol=1e-6)
    assert present.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(VALUES, GROUPS, num_groups=2), "groups from 0 to 1, got 0 to 2"),
        (lambda f: f(VALUES, GROUPS - 1, num_groups=3), "got -1 to 1"),
        (lambda f: f(VALUES, GROUPS[:5], num_groups=3), "of one shape"),
        (lambda f: f(VALUES, GROUPS, num_groups=0), "num_groups > 0"),
    ],
)
def test_bad_input(call, message):
    for measure in (kernels.group_divergence, kernels.explained_by_groups, kernels.group_means):
        with pytest.raises(ValueError, match=message):
            call(measure)
    with pytest.raises(ValueError, match="bandwidth > 0"):
        kernels.group_divergence(VALUES, GROUPS, num_groups=3, bandwidth=0.0)
