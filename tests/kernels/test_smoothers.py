"""Smoothers: scikit-learn's own predictions, closed forms of effective parameters, NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from sklearn import ensemble, tree

from gradkin import kernels

N, Q, TREES = 60, 24, 7


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x, x_query = (rng.uniform(size=(size, 3)).astype(np.float32) for size in (N, Q))
    return x, np.sin(5 * x[:, 0]) + x[:, 1] + 0.3 * rng.normal(size=N), x_query


def dense(leaves, query, counts=None):
    """The weights by their definition, in float64."""
    counts = np.ones(leaves.shape) if counts is None else counts
    same = query[:, None, :] == leaves[None, :, :]
    weights = same * counts[None]
    return np.mean(weights / weights.sum(1, keepdims=True), axis=2)


def boosted(leaves, query, rate, counts):
    """The recursion of boosting by its definition, in float64."""
    train, new = (np.zeros((len(ids), len(leaves))) for ids in (leaves, query))
    for column, query_column, count in zip(leaves.T, query.T, counts.T):
        column, query_column, count = column[:, None], query_column[:, None], count[:, None]
        rest = np.eye(len(leaves)) - train
        new = new + rate * dense(column, query_column, count) @ rest
        train = train + rate * dense(column, column, count) @ rest
    return train, new


FORESTS = {
    "one tree": lambda: tree.DecisionTreeRegressor(max_leaf_nodes=9, random_state=0),
    "forest": lambda: ensemble.RandomForestRegressor(
        TREES, bootstrap=False, max_features=1, random_state=1
    ),
    "bootstrap": lambda: ensemble.RandomForestRegressor(
        TREES, max_samples=0.7, min_samples_leaf=3, random_state=2
    ),
    "extra trees": lambda: ensemble.ExtraTreesRegressor(TREES, max_depth=4, random_state=3),
}


def of_forest(forest, x, x_query) -> tuple[Any, Any, Any]:
    """Leaves of both, and counts."""
    leaves, query = forest.apply(x), forest.apply(x_query)
    if leaves.ndim == 1:
        return leaves[:, None], query[:, None], None
    return leaves, query, kernels.bootstrap_counts(forest, len(x))


@pytest.mark.parametrize("name", FORESTS)
def test_predicts_what_the_forest_predicts(data, name):
    x, y, x_query = data
    forest = FORESTS[name]().fit(x, y)
    leaves, query, counts = of_forest(forest, x, x_query)
    if name == "bootstrap":
        with jax.enable_x64(True):
            S = kernels.forest_smoother(leaves, query, counts=counts)
            np.testing.assert_allclose(S @ y, forest.predict(x_query), rtol=1e-10)
    S = kernels.forest_smoother(leaves, query, counts=counts)
    np.testing.assert_allclose(S @ np.float32(y), forest.predict(x_query), rtol=1e-4, atol=1e-5)
    expected = dense(leaves, query, counts)
    np.testing.assert_allclose(S.materialize(), expected, rtol=1e-5, atol=1e-7)
    p = kernels.effective_parameters(S)
    np.testing.assert_allclose(p, N * np.mean(np.sum(expected**2, axis=1)), rtol=1e-5)
    np.testing.assert_allclose(kernels.effective_parameters(expected), p, rtol=1e-5)


@pytest.mark.parametrize("initial", ["zero", "mean"])
def test_predicts_what_boosting_predicts(data, initial):
    x, y, x_query = data
    options: dict[str, Any] = {"max_leaf_nodes": 5, "max_depth": None, "random_state": 0}
    if initial == "zero":
        options["init"] = "zero"
    model = ensemble.GradientBoostingRegressor(n_estimators=12, learning_rate=0.3, **options)
    model.fit(x, y)
    with jax.enable_x64(True):
        S = kernels.boosting_smoother(
            model.apply(x), model.apply(x_query), learning_rate=0.3, initial=initial
        )
        np.testing.assert_allclose(S.train @ y, model.predict(x), rtol=1e-9)
        np.testing.assert_allclose(S.query @ y, model.predict(x_query), rtol=1e-9)
        half = kernels.boosting_smoother(
            model.apply(x)[:, :6], model.apply(x_query)[:, :6], learning_rate=0.3, initial=initial
        )
        whole = kernels.boosting_smoother(
            model.apply(x)[:, 6:], model.apply(x_query)[:, 6:], learning_rate=0.3, initial=half
        )
        np.testing.assert_allclose(whole.query, S.query, atol=1e-12)


def test_boosting_with_counts_is_the_recursion():
    rng = np.random.default_rng(1)
    leaves, query = rng.integers(0, 3, (12, 5)), rng.integers(0, 3, (6, 5))
    counts = rng.integers(1, 4, (12, 5)).astype(np.float32)
    counts[0] = 0
    S = kernels.boosting_smoother(leaves, query, learning_rate=0.5, counts=counts)
    train, new = boosted(leaves, query, 0.5, counts)
    np.testing.assert_allclose(S.train, train, atol=1e-6)
    np.testing.assert_allclose(S.query, new, atol=1e-6)


def test_boosting_of_separating_trees():
    """S = (1 - (1 - nu)^t) I, and rates of zero stop after t trees."""
    rng = np.random.default_rng(2)
    leaves = np.stack([rng.permutation(10) for _ in range(8)], axis=1)
    rates = np.where(np.arange(8) < 5, 0.2, 0.0)
    S = kernels.boosting_smoother(leaves, leaves[:3], learning_rate=rates)
    np.testing.assert_allclose(S.train, (1 - 0.8**5) * np.eye(10), atol=1e-6)
    p = kernels.effective_parameters(S.train)
    np.testing.assert_allclose(p, 10 * (1 - 0.8**5) ** 2, rtol=1e-5)


def test_effective_parameters_of_a_tree(data):
    x, y, x_query = data
    full = tree.DecisionTreeRegressor(random_state=0).fit(x, y)
    leaves, query = full.apply(x)[:, None], full.apply(x_query)[:, None]
    S = kernels.forest_smoother(leaves, leaves)
    np.testing.assert_array_equal(S.materialize(), np.eye(N))
    for smoother in (S, kernels.forest_smoother(leaves, query)):
        np.testing.assert_allclose(kernels.effective_parameters(smoother), N, rtol=1e-6)
    root = np.zeros((N, 1), int)
    np.testing.assert_allclose(
        kernels.effective_parameters(kernels.forest_smoother(root, root[:5])), 1, rtol=1e-5
    )
    fours = np.repeat(np.arange(N // 4), 4)[:, None]
    np.testing.assert_allclose(
        kernels.effective_parameters(kernels.forest_smoother(fours, fours)), N / 4, rtol=1e-5
    )


def test_a_forest_is_smoother_than_its_trees(data):
    """Jensen's inequality, with equality for equal trees."""
    x, y, x_query = data
    forest = FORESTS["forest"]().fit(x, y)
    leaves, query, _ = of_forest(forest, x, x_query)
    p = lambda columns: kernels.effective_parameters(
        kernels.forest_smoother(leaves[:, columns], query[:, columns])
    )
    single = [float(p([t])) for t in range(TREES)]
    assert p(np.arange(TREES)) < np.mean(single)
    np.testing.assert_allclose(p([2] * TREES), single[2], rtol=1e-5)


def test_renaming_leaves_changes_nothing(data):
    x, y, x_query = data
    leaves, query, counts = of_forest(FORESTS["bootstrap"]().fit(x, y), x, x_query)
    S = kernels.forest_smoother(leaves, query, counts=counts)
    other = kernels.forest_smoother(1000 - 3 * leaves, 1000.0 - 3 * query, counts=counts)
    np.testing.assert_array_equal(S.materialize(), other.materialize())


def test_under_jit_sharded_and_differentiated(data, mesh):
    x, y, x_query = data
    leaves, query, counts = of_forest(FORESTS["bootstrap"]().fit(x, y), x, x_query)
    outcomes = jnp.asarray(y, jnp.float32)

    @jax.jit
    def predict(leaves, query, counts):
        return kernels.forest_smoother(leaves, query, counts=counts) @ outcomes

    expected = dense(leaves, query, counts) @ y
    arrays = tuple(map(jnp.asarray, (leaves, query, counts)))
    np.testing.assert_allclose(predict(*arrays), expected, rtol=1e-4)
    split = jax.device_put(arrays[1], NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(predict(arrays[0], split, arrays[2]), expected, rtol=1e-4)
    eager = kernels.forest_smoother(arrays[0], split, counts=arrays[2])
    np.testing.assert_allclose(eager @ outcomes, expected, rtol=1e-4)
    slope = jax.grad(lambda c: jnp.sum(predict(*arrays[:2], c)))(arrays[2] + 1.0)
    steepest = np.unravel_index(np.argmax(np.abs(slope)), slope.shape)
    step = np.zeros(counts.shape)
    step[steepest] = 1e-4
    above, below = (dense(leaves, query, counts + 1.0 + d) @ y for d in (step, -step))
    np.testing.assert_allclose(slope[steepest], np.sum(above - below) / 2e-4, rtol=1e-3)


def test_boosting_under_jit_and_vmap():
    rng = np.random.default_rng(3)
    leaves, query = rng.integers(0, 3, (12, 5)), rng.integers(0, 3, (6, 5))
    at = lambda rate: kernels.boosting_smoother(leaves, query, learning_rate=rate)
    several = jax.jit(jax.vmap(at))(jnp.array([0.1, 0.5]))
    np.testing.assert_allclose(several.query[1], at(0.5).query, atol=1e-6)


def test_forest_kernel(data):
    x, y, x_query = data
    leaves, query, _ = of_forest(FORESTS["extra trees"]().fit(x, y), x, x_query)
    K = kernels.forest_kernel(leaves)
    expected = np.mean(leaves[:, None] == leaves[None], axis=2)
    np.testing.assert_allclose(K.materialize(), expected, rtol=1e-6)
    assert np.linalg.eigvalsh(np.asarray(K.materialize(), np.float64)).min() > -1e-6
    cross = kernels.forest_kernel(leaves, query=query)
    np.testing.assert_allclose(
        cross.materialize(), np.mean(query[:, None] == leaves[None], axis=2), rtol=1e-6
    )
    np.testing.assert_allclose(np.ones(Q) @ cross, cross.T @ jnp.ones(Q), rtol=1e-5)


def test_leaves_without_training_points():
    leaves, query = np.array([[1, 1], [2, 1]]), np.array([[1, 1], [3, 1]])
    with pytest.raises(ValueError, match="row 1 in tree 0 holds none"):
        kernels.forest_smoother(leaves, query)
    with pytest.raises(ValueError, match="row 0 in tree 0 holds none"):
        kernels.forest_smoother(leaves, leaves, counts=np.array([[0, 1], [1, 1]]))
    with pytest.raises(ValueError, match="leaf of leaves"):
        kernels.boosting_smoother(
            leaves, leaves[1:], learning_rate=0.1, counts=np.array([[0, 1], [1, 1]])
        )
    S = jax.jit(lambda q: kernels.forest_smoother(leaves, q).materialize())(query)
    np.testing.assert_array_equal(np.isnan(S), [[False, False], [True, True]])


def test_bootstrap_counts(data):
    x, y, _ = data
    forest = FORESTS["bootstrap"]().fit(x, y)
    counts = kernels.bootstrap_counts(forest, N)
    assert counts.shape == (N, TREES)
    np.testing.assert_array_equal(counts.sum(0), round(0.7 * N))
    bagged = ensemble.BaggingRegressor(random_state=0).fit(x, y)
    np.testing.assert_array_equal(kernels.bootstrap_counts(bagged, N).sum(0), N)
    np.testing.assert_array_equal(
        kernels.bootstrap_counts(FORESTS["extra trees"]().fit(x, y), N), 1
    )
    with pytest.raises(TypeError, match="estimators_samples_, got a DecisionTreeRegressor"):
        kernels.bootstrap_counts(FORESTS["one tree"]().fit(x, y), N)
    with pytest.raises(ValueError, match="num_examples=61"):
        kernels.bootstrap_counts(forest, N + 1)


@pytest.mark.parametrize("kernel", [kernels.Gaussian(0.3), kernels.Polynomial(2, offset=1.0)])
def test_kernel_smoother(data, kernel):
    x, y, x_query = data
    weights = np.asarray(jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(x))(x_query))
    S = kernels.kernel_smoother(kernel, x, x_query)
    expected = weights / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(S.materialize(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        kernels.effective_parameters(S), N * np.mean(np.sum(expected**2, 1)), rtol=1e-4
    )


def test_kernel_smoother_far_from_all_points(data):
    x, y, _ = data
    far = np.full((1, 3), 50.0, np.float32)
    S = jax.jit(lambda h: kernels.kernel_smoother(kernels.Gaussian(h), x, far).materialize())(0.5)
    distances = np.sum((far - x.astype(np.float64)) ** 2, axis=1)
    expected = np.exp(-(distances - distances.min()) / 0.5)
    np.testing.assert_allclose(S[0], expected / expected.sum(), atol=5e-3)
    np.testing.assert_allclose(S.sum(), 1, rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.int32, jnp.bfloat16])
def test_smoothers_of_narrow_points(dtype):
    """Integers and short floats that float32 holds exactly: the weights are the same."""
    x, x_query = np.array([[0, 1], [2, 0], [3, 4]]), np.array([[1, 1], [2, 3]])
    narrow, wide = ([jnp.asarray(a, t) for a in (x, x_query)] for t in (dtype, np.float32))
    smoother = functools.partial(kernels.kernel_smoother, kernels.Gaussian(1.0))
    found, expected = (smoother(*points).materialize() for points in (narrow, wide))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    found, expected = (kernels.linear_smoother(*points) for points in (narrow, wide))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_neighbors(data):
    x, _, x_query = data
    for k in (1, 5, N):
        S = np.asarray(kernels.neighbor_smoother(x, x_query, num_neighbors=k))
        np.testing.assert_allclose(kernels.effective_parameters(S), N / k, rtol=1e-5)
        nearest = np.argsort(np.sum((x_query[:, None] - x[None]) ** 2, 2), axis=1)[:, :k]
        np.testing.assert_allclose(np.take_along_axis(S, nearest, 1), 1 / k, rtol=1e-6)


def test_linear(data):
    x, y, x_query = data
    x, x_query = (np.concatenate([a, a[:, :1] + a[:, 1:2]], 1) for a in (x, x_query))  # rank 3
    S = kernels.linear_smoother(x, x_query)
    solution = np.linalg.lstsq(x, y, rcond=1e-6)[0]
    np.testing.assert_allclose(S @ y.astype(np.float32), x_query @ solution, rtol=1e-3)
    p = kernels.effective_parameters(kernels.linear_smoother(x, x))
    np.testing.assert_allclose(p, 3, rtol=1e-4)
    shrunk = jax.jit(functools.partial(kernels.linear_smoother, x, x))(penalty=2.0)
    scales = np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2
    np.testing.assert_allclose(
        kernels.effective_parameters(shrunk), np.sum((scales / (scales + 2)) ** 2), rtol=1e-4
    )


def test_covariance_degrees_of_freedom():
    """Draws with covariance exactly I: the trace of the hat matrix."""
    hadamard = np.ones((1, 1))
    for _ in range(3):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    draws = np.sqrt(7 / 8) * hadamard[:, 1:] + 5.0
    hat = np.asarray(
        kernels.linear_smoother(np.vander(np.arange(7.0), 3), np.vander(np.arange(7.0), 3))
    )
    measured = jax.jit(kernels.covariance_degrees_of_freedom)(draws, draws @ hat.T)
    np.testing.assert_allclose(measured, 3, rtol=1e-4)
    np.testing.assert_allclose(
        kernels.covariance_degrees_of_freedom(2 * draws, 2 * draws, noise_std=2.0), 7, rtol=1e-4
    )


def test_refit_errors(key):
    predictions, target = jax.random.normal(key, (6, 11)), jnp.linspace(0, 1, 11)
    errors = jax.jit(kernels.refit_errors)(predictions, target)
    each = np.mean((np.asarray(predictions) - np.asarray(target)) ** 2, axis=1)
    np.testing.assert_allclose(errors.representation_bias, each.min(), rtol=1e-5)
    np.testing.assert_allclose(errors.error, each.mean(), rtol=1e-5)
    np.testing.assert_allclose(errors.excess, each.mean() - each.min(), rtol=1e-4)
    best = np.asarray(predictions)[each.argmin()]
    np.testing.assert_allclose(
        errors.variability, np.mean((np.asarray(predictions) - best) ** 2), rtol=1e-5
    )
    same = kernels.refit_errors(jnp.broadcast_to(target, (4, 11)), target + 1)
    np.testing.assert_allclose([same.variability, same.excess], 0, atol=1e-6)


def test_bad_input():
    leaves, points = np.array([[1, 2], [1, 3]]), np.ones((4, 2), np.float32)
    smoother, boosting = kernels.forest_smoother, kernels.boosting_smoother
    for call, words in (
        (lambda: smoother(leaves[:, 0], leaves), "leaves to have 2 axes"),
        (lambda: smoother(leaves, leaves[:, :1]), "one number of trees"),
        (lambda: smoother(leaves + 0.5, leaves), "whole numbers in leaves"),
        (lambda: smoother(leaves, leaves, counts=np.ones((3, 2))), r"counts.shape=\(3, 2\)"),
        (lambda: smoother(leaves, leaves, counts=-np.ones((2, 2))), "counts >= 0"),
        (lambda: boosting(leaves, leaves, learning_rate=np.ones(3)), "the 2 trees"),
        (lambda: boosting(leaves, leaves, learning_rate=0.1, initial="one"), "initial"),
        (
            lambda: boosting(
                leaves,
                leaves,
                learning_rate=0.1,
                initial=kernels.BoostingSmoother(jnp.eye(2), jnp.eye(3)),
            ),
            "initial of shapes",
        ),
        (lambda: kernels.effective_parameters(np.ones(3)), "a matrix"),
        (lambda: kernels.kernel_smoother(kernels.Gaussian(), points[0], points), "2 axes"),
        (lambda: kernels.neighbor_smoother(points, points, num_neighbors=5), "num_neighbors=5"),
        (lambda: kernels.linear_smoother(points, points[:, :1]), "2 features"),
        (lambda: kernels.linear_smoother(points, points, penalty=-1.0), "penalty"),
        (lambda: kernels.covariance_degrees_of_freedom(points[:1], points[:1]), "2 draws"),
        (lambda: kernels.covariance_degrees_of_freedom(points, points, noise_std=0.0), "noise_std"),
        (lambda: kernels.refit_errors(points, np.ones(3)), r"target.shape=\(3,\)"),
        (lambda: kernels.SharedLeaves().check((3,)), "trees, 2"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
