"""Dependence of several variables: definitions, expansions, the exclusive or, bad input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from gradkin import kernels
from tests.kernels import dependence as oracle

VARIABLES = (oracle.X, oracle.Y, oracle.X1)


def f32(x):
    return jnp.asarray(x, jnp.float32)


def joint(variables, **options):
    return kernels.joint_distance_covariance([f32(v) for v in variables], **options)


@pytest.mark.parametrize(("offset", "unbiased"), [(1.0, False), (0.5, True)])
def test_definition(offset, unbiased):
    exact = oracle.joint(VARIABLES, offset, unbiased)
    found = joint(VARIABLES, offset=offset, unbiased=unbiased)
    np.testing.assert_allclose(found, exact, rtol=2e-5)
    streamed = joint(VARIABLES, offset=offset, unbiased=unbiased, block=5)
    np.testing.assert_allclose(streamed, exact, rtol=2e-5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_of_two_it_is_the_distance_covariance(unbiased):
    exact = oracle.dcov(oracle.X, oracle.Y, unbiased)
    np.testing.assert_allclose(joint(VARIABLES[:2], unbiased=unbiased), exact, rtol=1e-5)


def test_of_three_it_is_the_pairs_and_the_triple():
    pairs = sum(oracle.dcov(a, b, True) for a, b in itertools.combinations(VARIABLES, 2))
    tables = [oracle.centered(-oracle.distances(v), True) for v in VARIABLES]
    triple = np.sum(np.prod(tables, axis=0)) / (12 * 9)
    np.testing.assert_allclose(joint(VARIABLES, unbiased=True), pairs + triple, rtol=2e-5)


def test_sees_an_exclusive_or_where_pairs_do_not(key):
    s, t = jax.random.bernoulli(key, shape=(2, 400)).astype(jnp.float32)
    xor = jnp.abs(s - t)
    single = [kernels.squared_distance_covariance(xor, a, unbiased=True) for a in (s, t)]
    assert max(map(abs, map(float, single))) < 0.01
    np.testing.assert_allclose(joint((xor, s, t), unbiased=True), 0.125, atol=0.03)
    together = kernels.concatenated_distance_covariance(xor, (s, t), unbiased=True)
    np.testing.assert_allclose(together, (2 - np.sqrt(2)) / 4, atol=0.03)


def test_concatenated_is_of_the_scaled_columns():
    attributes = (oracle.X, oracle.Y1)
    columns = np.column_stack(attributes)
    for standardize, z in ((True, columns / columns.std(0)), (False, columns)):
        found = kernels.concatenated_distance_covariance(
            f32(oracle.X1),
            [f32(a) for a in attributes],
            standardize=standardize,
            unbiased=True,
        )
        np.testing.assert_allclose(found, oracle.dcov(oracle.X1, z, True), rtol=1e-5)


def test_a_constant_attribute_changes_nothing():
    of = lambda *more: kernels.concatenated_distance_covariance(
        f32(oracle.X1), (f32(oracle.Y), *more)
    )
    np.testing.assert_allclose(of(jnp.full(12, 7.0)), of(), rtol=1e-5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_mask_leaves_out_even_nan(unbiased):
    keep = np.arange(12) % 4 != 2
    hidden = [np.where(keep.reshape(-1, *[1] * (v.ndim - 1)), v, np.nan) for v in VARIABLES]
    kept = [v[keep] for v in VARIABLES]
    found = joint(hidden, unbiased=unbiased, mask=keep)
    np.testing.assert_allclose(found, oracle.joint(kept, 1.0, unbiased), rtol=2e-5)
    found = kernels.concatenated_distance_covariance(
        f32(hidden[2]), [f32(v) for v in hidden[:2]], unbiased=unbiased, mask=keep
    )
    z = np.column_stack(kept[:2])
    np.testing.assert_allclose(found, oracle.dcov(kept[2], z / z.std(0), unbiased), rtol=2e-5)


def test_gradients():
    x, y, z = (f32(v[:6]) for v in VARIABLES)
    of = lambda f: kernels.joint_distance_covariance((f, x, y), unbiased=True)
    check_grads(of, (z,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-3)
    of = lambda f: kernels.concatenated_distance_covariance(f, (x, y), unbiased=True)
    check_grads(of, (z,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-3)
    # Outputs that coincide have a derivative of zero to one another, not NaN.
    assert bool(jnp.all(jnp.isfinite(jax.grad(of)(jnp.zeros(6)))))


def test_sharded(key, mesh):
    variables = jax.random.normal(key, (3, 16, 2))
    split = [jax.device_put(v, NamedSharding(mesh, PartitionSpec("data"))) for v in variables]
    for unbiased in (False, True):
        found = kernels.joint_distance_covariance(split, unbiased=unbiased)
        expected = kernels.joint_distance_covariance(list(variables), unbiased=unbiased)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


SIX = jnp.arange(6.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: joint((SIX,)), "at least 2 variables"),
        (lambda: joint((SIX, SIX[:5])), "paired points"),
        (lambda: joint((SIX[:3], SIX[:3]), unbiased=True), "at least 4 points"),
        (lambda: joint((SIX, SIX), offset=0.0), "offset > 0"),
        (
            lambda: kernels.concatenated_distance_covariance(SIX, ()),
            "at least one attribute",
        ),
        (
            lambda: kernels.concatenated_distance_covariance(SIX, (SIX, SIX[:5])),
            "paired points",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
