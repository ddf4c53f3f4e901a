"""Winsorized mean, median of means and rolling median against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import gradients
from gradkin.gradients import order_statistics


def loss(params, x):
    return jnp.sum(jnp.tanh(x @ params["w"]) * params["v"])


@pytest.fixture
def problem(key):
    keys = jax.random.split(key, 3)
    params = {"w": jax.random.normal(keys[0], (4, 3)), "v": jax.random.normal(keys[1], (3,))}
    return params, jax.random.normal(keys[2], (24, 4))


def stacked(params, x):
    return jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, x)


def assert_close(tree, expected, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), tree, expected
    )


def winsorized(g, level):
    """SciPy's: an implementation of its own."""
    g = np.asarray(g)
    limit = (level + 0.5) / len(g)
    return np.asarray(scipy.stats.mstats.winsorize(g, limits=(limit, limit), axis=0)).mean(0)


@pytest.mark.parametrize("level", [0, 1, 3, 11])
def test_winsorized_mean(problem, level):
    grads = stacked(*problem)
    expected = jax.tree.map(lambda g: winsorized(g, level), grads)
    assert_close(gradients.winsorized_mean(grads, level=level), expected)
    G = gradkin.per_example_grads(loss)(*problem)
    assert_close(gradients.winsorized_mean(G, level=level), expected)


def test_winsorized_mean_between_mean_and_median(problem):
    params, x = problem
    G = gradkin.per_example_grads(loss)(params, x)
    assert_close(gradients.winsorized_mean(G, level=0), G.mean())
    odd = stacked(params, x[:23])
    medians = jax.tree.map(lambda g: np.median(g, axis=0), odd)
    assert_close(gradients.winsorized_mean(odd, level=11), medians)


def test_winsorized_mean_ignores_a_few(problem):
    grads = stacked(*problem)
    spoiled = jax.tree.map(lambda g: g.at[:2].mul(1e6), grads)
    bounded = gradients.winsorized_mean(spoiled, level=2)
    largest = jax.tree.map(lambda g: np.abs(g[2:]).max(), grads)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.abs(a).max() <= b, bounded, largest))


def test_winsorized_mean_of_selected_columns(problem):
    G = gradkin.per_example_grads(loss)(*problem)
    both = gradients.winsorized_mean(G, level=2)
    one = gradients.winsorized_mean(G.select(lambda path: path == "w"), level=2)
    assert one["v"] is None
    assert_close(one["w"], both["w"])


@pytest.mark.parametrize("shape", [(9, 3 * order_statistics.BLOCK + 5), (9, 5, 1000)])
def test_blocks_of_columns(key, shape):
    g = jax.random.normal(key, shape)
    found = jax.jit(lambda g: gradients.winsorized_mean(g, level=2))(g)
    assert_close(found, winsorized(g, 2))


def test_order_statistics_with_ties_and_infinities():
    g = jnp.array([[1.0, np.inf], [1.0, -np.inf], [0.0, 2.0], [3.0, 2.0], [1.0, 2.0]])
    np.testing.assert_array_equal(order_statistics.smallest(g, 5), np.sort(g, axis=0))
    np.testing.assert_array_equal(order_statistics.median(g), [1.0, 2.0])
    np.testing.assert_array_equal(gradients.winsorized_mean(g, level=1), [1.0, 2.0])


def test_nan_stays_visible():
    g = jnp.array([[np.nan, 1.0], [1.0, 2.0], [2.0, 3.0]])
    for value in (
        gradients.winsorized_mean(g, level=1),
        gradients.median_of_means(g, num_groups=3),
    ):
        np.testing.assert_array_equal(value, [np.nan, 2.0])


@pytest.mark.parametrize("k", [1, 3, 4, 24])
def test_median_of_means(problem, k):
    grads = stacked(*problem)

    def expected(g):
        g = np.asarray(g)
        return np.median(g.reshape(k, 24 // k, *g.shape[1:]).mean(1), axis=0)

    expected = jax.tree.map(expected, grads)
    assert_close(gradients.median_of_means(grads, num_groups=k), expected)
    G = gradkin.per_example_grads(loss)(*problem)
    assert_close(gradients.median_of_means(G, num_groups=k), expected, atol=1e-5)


def test_shift_and_scale(key):
    g = jax.random.normal(key, (12, 6))
    shift = jnp.arange(6.0)
    for reduce in (
        lambda g: gradients.winsorized_mean(g, level=2),
        lambda g: gradients.median_of_means(g, num_groups=4),
    ):
        assert_close(reduce(-3 * g + shift[None]), -3 * reduce(g) + shift)


def test_half_precision_accumulates_in_float32():
    g = jnp.full((512, 2), 1.0, jnp.bfloat16).at[0].set(3.0)
    mean = gradients.winsorized_mean(g, level=0)
    assert mean.dtype == jnp.bfloat16
    np.testing.assert_array_equal(mean.astype(np.float32), 1.0)  # 514 / 512 rounds to 1
    assert gradients.median_of_means(g, num_groups=4).dtype == jnp.bfloat16


def test_sharded(problem, mesh):
    params, x = problem
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))

    @jax.jit
    def both(params, x):
        G = gradkin.per_example_grads(loss)(params, x)
        return gradients.winsorized_mean(G, level=3), gradients.median_of_means(G, num_groups=3)

    assert_close(both(params, split), both(params, x))


def test_transformations_over_stacked_gradients(problem):
    params, _ = problem
    grads = stacked(*problem)
    for transform, expected in (
        (gradients.winsorized_aggregate(2), gradients.winsorized_mean(grads, level=2)),
        (gradients.median_of_means_aggregate(3), gradients.median_of_means(grads, num_groups=3)),
    ):
        optimizer = optax.chain(transform, optax.sgd(0.5))
        update, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
        assert_close(update, jax.tree.map(lambda g: -0.5 * g, expected))


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_rolling_median(key, window):
    g = jax.random.normal(key, (7, 5))
    transform = gradients.rolling_median(window=window)

    def step(state, g):
        update, state = transform.update(g, state)
        return state, jax.tree.leaves(update)[0]

    _, found = jax.lax.scan(step, transform.init(g[0]), g)
    expected = [np.median(g[max(0, i + 1 - window) : i + 1], axis=0) for i in range(7)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(found[0], g[0])


def test_rolling_median_before_momentum(problem):
    params, x = problem
    optimizer = optax.chain(gradients.rolling_median(), optax.trace(0.9), optax.scale(-0.1))
    grads = jax.grad(lambda p: jnp.mean(jax.vmap(loss, (None, 0))(p, x)))(params)
    update, state = optimizer.update(grads, optimizer.init(params), params)
    assert_close(update, jax.tree.map(lambda g: -0.1 * g, grads))
    assert [int(count) for count in jax.tree.leaves(state) if count.dtype == jnp.int32] == [1]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: gradients.winsorized_mean(jnp.ones((4, 2)), level=2), "level=2 and m=4"),
        (lambda: gradients.winsorized_mean(jnp.ones((4, 2)), level=-1), "level=-1"),
        (lambda: gradients.median_of_means(jnp.ones((4, 2)), num_groups=3), "num_groups=3 and B=4"),
        (lambda: gradients.median_of_means(jnp.ones((4, 2)), num_groups=0), "num_groups=0"),
        (
            lambda: gradients.winsorized_mean({"a": jnp.ones((4, 2)), "b": jnp.ones(3)}, level=1),
            "leading axis",
        ),
        (lambda: gradients.winsorized_mean(jnp.ones(()), level=0), "leading axis"),
        (lambda: gradients.winsorized_aggregate(-1), "level"),
        (lambda: gradients.median_of_means_aggregate(0), "num_groups"),
        (lambda: gradients.rolling_median(window=0), "window"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
