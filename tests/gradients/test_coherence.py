"""Coherence: closed forms, NumPy, invariances, and the two ways of computing it in pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import gradients


def rows(vectors):
    """The matrix whose rows are given, with two leaves: the loss is linear in the parameters."""
    vectors = jnp.asarray(vectors, jnp.float32)
    params = {"a": jnp.zeros(1), "b": {"w": jnp.zeros(vectors.shape[1] - 1)}}
    loss = lambda p, v: jnp.sum(p["a"] * v[:1]) + jnp.sum(p["b"]["w"] * v[1:])
    return gradkin.per_example_grads(loss)(params, vectors)


def stats_of(vectors):
    return gradients.coherence_stats(rows(vectors))


def reference(g):
    """alpha by its definition, in float64."""
    g = np.asarray(g, np.float64)
    return np.sum(g.mean(0) ** 2) / np.mean(np.sum(g**2, axis=1))


def groups(k, size):
    """k groups of equal gradients, orthogonal across groups."""
    return np.repeat(3.0 * np.eye(k), size, axis=0)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        (np.ones((5, 3)), 5.0),  # identical
        (np.diag([1.0, 2.0, 0.5, 7.0]), 1.0),  # orthogonal, whatever the norms
        (np.array([[1.0, 2.0], [-1.0, -2.0]]), 0.0),  # cancelling
        (groups(4, 3), 3.0),  # m / k
        (np.zeros((3, 2)), 0.0),  # by convention
    ],
)
def test_m_coherence_closed_forms(vectors, expected):
    stats = stats_of(vectors)
    m = len(vectors)
    np.testing.assert_allclose(stats.m_coherence(), expected, rtol=1e-6)
    np.testing.assert_allclose(stats.coherence(), expected / m, rtol=1e-6)
    unbiased = (expected - 1) / (m - 1) if np.any(vectors) else 0.0
    np.testing.assert_allclose(stats.unbiased_coherence(), unbiased, rtol=1e-6)


def mlp_loss(params, example):
    x, y = example
    for name in sorted(params)[:-1]:
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    out = x @ params["layer2"]["kernel"] + params["layer2"]["bias"]
    return jnp.sum((out - y) ** 2)


@pytest.fixture
def problem(key):
    keys = jax.random.split(key, 5)
    widths = (6, 5, 4, 2)
    params = {
        f"layer{i}": {
            "kernel": jax.random.normal(keys[i], (widths[i], widths[i + 1])),
            "bias": jnp.full(widths[i + 1], 0.1),
        }
        for i in range(3)
    }
    batch = jax.random.normal(keys[3], (16, 6)), jax.random.normal(keys[4], (16, 2))
    return params, batch


def stacked(params, batch):
    """Per-example gradients the plain way, as one matrix."""
    grads = jax.vmap(jax.grad(mlp_loss), in_axes=(None, 0))(params, batch)
    return np.concatenate([np.asarray(g).reshape(16, -1) for g in jax.tree.leaves(grads)], axis=1)


@jax.jit
def stats_jit(params, batch):
    return gradients.coherence_stats(gradkin.per_example_grads(mlp_loss)(params, batch))


def test_network_against_definition(problem):
    stats = stats_jit(*problem)
    alpha = reference(stacked(*problem))
    assert stats.num_examples == 16
    np.testing.assert_allclose(stats.coherence(), alpha, rtol=1e-5)
    np.testing.assert_allclose(stats.m_coherence(), 16 * alpha, rtol=1e-5)
    np.testing.assert_allclose(stats.unbiased_coherence(), (16 * alpha - 1) / 15, rtol=1e-5)


def test_logistic_regression_residual_times_input(key):
    keys = jax.random.split(key, 3)
    w, x = jax.random.normal(keys[0], (3,)), jax.random.normal(keys[1], (20, 3))
    y = jax.random.bernoulli(keys[2], shape=(20,)).astype(jnp.float32)
    loss = lambda w, xy: jax.nn.softplus(xy[0] @ w) - xy[1] * (xy[0] @ w)
    stats = gradients.coherence_stats(gradkin.per_example_grads(loss)(w, (x, y)))
    residual = 1 / (1 + np.exp(-np.asarray(x, np.float64) @ np.asarray(w))) - np.asarray(y)
    np.testing.assert_allclose(
        stats.coherence(), reference(residual[:, None] * np.asarray(x)), rtol=1e-5
    )


def test_merge_equals_one_shot(problem):
    params, (x, y) = problem
    stats = [stats_jit(params, (x[i : i + 4], y[i : i + 4])) for i in range(0, 16, 4)]
    merged = stats[0].merge(stats[1]).merge(stats[2].merge(stats[3]))
    whole = stats_jit(*problem)
    assert merged.num_examples == 16
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), merged, whole)
    average = np.mean([s.coherence() for s in stats])
    assert abs(average - whole.coherence()) > 0.01, "averaging ratios is not the same"


def test_streamed_and_inside_scan(problem):
    params, (x, y) = problem
    streamed = gradkin.per_example_grads(mlp_loss, batch_size=4)(params, (x, y))
    whole = stats_jit(*problem).m_coherence()
    np.testing.assert_allclose(gradients.coherence_stats(streamed).m_coherence(), whole, rtol=1e-5)
    chunks = jax.tree.map(lambda a: a.reshape(4, 4, -1), (x, y))
    first = jax.tree.map(jnp.asarray, stats_jit(params, jax.tree.map(lambda a: a[0], chunks)))
    rest = jax.tree.map(lambda a: a[1:], chunks)
    total, _ = jax.lax.scan(lambda s, b: (s.merge(stats_jit(params, b)), None), first, rest)
    np.testing.assert_allclose(total.m_coherence(), whole, rtol=1e-5)


@pytest.mark.parametrize("by", ["leaf", "layer"])
def test_parts_are_a_convex_combination(problem, by):
    stats = stats_jit(*problem)
    alphas = jax.tree.leaves(stats.coherence(by=by))
    shares = jax.tree.leaves(stats.shares(by=by))
    assert len(alphas) == {"leaf": 6, "layer": 3}[by]
    np.testing.assert_allclose(np.sum(shares), 1, rtol=1e-6)
    np.testing.assert_allclose(np.dot(shares, alphas), stats.coherence(), rtol=1e-5)


def test_by_layer_is_the_selection(problem):
    params, batch = problem
    by_layer = stats_jit(params, batch).m_coherence(by="layer")
    assert list(by_layer) == ["layer0", "layer1", "layer2"]
    G = gradkin.per_example_grads(mlp_loss)(params, batch)
    selected = gradients.coherence_stats(G.select(lambda path: path.startswith("layer1")))
    np.testing.assert_allclose(by_layer["layer1"], selected.m_coherence(), rtol=1e-5)
    assert stats_of(np.eye(3)).m_coherence(by="layer").keys() == {".", "b"}


def test_invariant_to_scale_and_rotation(key):
    g = np.asarray(jax.random.normal(key, (7, 5))) + 0.5
    rotation, _ = np.linalg.qr(np.asarray(jax.random.normal(key, (5, 5))))
    value = stats_of(g).m_coherence()
    np.testing.assert_allclose(stats_of(100 * g).m_coherence(), value, rtol=1e-5)
    np.testing.assert_allclose(stats_of(g @ rotation).m_coherence(), value, rtol=1e-5)
    assert 0 <= value <= 7


def test_tiny_half_precision_gradients_do_not_vanish():
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (8, 6)) * 1e-6, jnp.bfloat16)
    G = gradkin.per_example_grads(lambda w, x: jnp.sum(w * x))(jnp.zeros(6, jnp.bfloat16), x)
    stats = gradients.coherence_stats(G)
    assert stats.sum_grads.dtype == jnp.float32
    np.testing.assert_allclose(stats.coherence(), reference(x.astype(np.float32)), rtol=1e-2)


def test_float64(problem):
    with jax.enable_x64(True):
        params, batch = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), problem)
        stats = gradients.coherence_stats(gradkin.per_example_grads(mlp_loss)(params, batch))
        assert stats.coherence().dtype == jnp.float64
        np.testing.assert_allclose(stats.coherence(), reference(stacked(params, batch)), rtol=1e-12)


def test_zero_gradients_have_finite_derivatives():
    def value(scale):
        loss = lambda w, x: scale * jnp.sum(w * x)
        G = gradkin.per_example_grads(loss)(jnp.ones(2), jnp.eye(2))
        return gradients.coherence_stats(G).m_coherence()

    assert float(value(0.0)) == 0.0
    assert np.isfinite(jax.grad(value)(jnp.asarray(0.0)))


def test_nan_is_not_hidden():
    vectors = np.eye(3)
    vectors[0, 0] = np.nan
    assert np.isnan(stats_of(vectors).m_coherence())


def test_sharded(problem, mesh):
    params, batch = problem
    split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    stats = stats_jit(params, split)
    np.testing.assert_allclose(stats.m_coherence(), stats_jit(*problem).m_coherence(), rtol=1e-5)
    G = gradkin.per_example_grads(mlp_loss)(params, split)
    whole = gradkin.per_example_grads(mlp_loss)(params, batch)
    np.testing.assert_allclose(
        gradients.example_alignment(G), gradients.example_alignment(whole), rtol=1e-4, atol=1e-5
    )


def test_unbiased_is_unbiased(key):
    """i.i.d. rows c + u: numerator and denominator average to |c|^2 and |c|^2 + s^2."""
    c = jnp.array([0.5, 0.0, 0.0, 0.0])
    rows_of = lambda k: c[None] + jax.random.normal(k, (4, 4))

    def both(k):
        g = rows_of(k)
        stats = gradients.CoherenceStats(jnp.sum(g, 0), jnp.sum(g**2), 4)
        squares = stats.sum_squares / 4
        return stats.unbiased_coherence() * squares, stats.coherence() * squares

    unbiased, plain = jax.vmap(both)(jax.random.split(key, 20_000))
    np.testing.assert_allclose(unbiased.mean(), 0.25, atol=0.03)
    np.testing.assert_allclose(plain.mean(), 0.25 + 4 / 4, atol=0.03)


def test_means_of_batches(key):
    """Coherence of means of b examples tells that of the examples, and back."""
    c = 0.3 * jnp.ones(8)
    g = c[None] + jax.random.normal(key, (30_000, 8))
    alpha = float(jnp.sum(c**2) / (jnp.sum(c**2) + 8))

    def measured(vectors):
        return gradients.CoherenceStats(
            jnp.sum(vectors, 0), jnp.sum(vectors**2), len(vectors)
        ).unbiased_coherence()

    of_means = measured(g.reshape(-1, 5, 8).mean(1))
    np.testing.assert_allclose(
        of_means, gradients.coherence_of_means(alpha, batch_size=5), rtol=0.05
    )
    np.testing.assert_allclose(
        gradients.coherence_from_means(of_means, batch_size=5), alpha, rtol=0.05
    )
    there = gradients.coherence_of_means(jnp.float32(0.2), batch_size=7)
    np.testing.assert_allclose(gradients.coherence_from_means(there, batch_size=7), 0.2, rtol=1e-6)
    assert gradients.coherence_of_means(0.2, batch_size=1) == np.float32(0.2)


def test_alignment(problem):
    params, batch = problem
    g = stacked(params, batch).astype(np.float64)
    along = jax.jit(
        lambda p, b: gradients.example_alignment(gradkin.per_example_grads(mlp_loss)(p, b))
    )(params, batch)
    np.testing.assert_allclose(along, g @ g.mean(0) / np.sum(g.mean(0) ** 2), rtol=1e-4)
    np.testing.assert_allclose(along.mean(), 1, rtol=1e-5)
    cancelling = rows(np.array([[1.0, 2.0], [-1.0, -2.0]]))
    np.testing.assert_array_equal(gradients.example_alignment(cancelling), 0)


@pytest.mark.parametrize(
    ("signs", "alpha", "final"),
    [((1, 1, 1, 1), 0.625, (0.2, 0.2, 0.2, 0.2, 0.8)), ((1, 1, -1, -1), 0.125, (1, 1, 1, 1, 0))],
)
def test_illustrative_example(signs, alpha, final):
    """Learn and memorize: one shared feature that tells the label, or does not."""
    loss = lambda w, xy: 0.5 * (xy[1] - xy[0] @ w) ** 2
    with jax.enable_x64(True):
        y = jnp.array([1.0, -1.0, 1.0, -1.0])
        common = y * jnp.array(signs, y.dtype)
        x = jnp.concatenate([jnp.diag(y), common[:, None]], axis=1)

        def step(w, _):
            G = gradkin.per_example_grads(loss)(w, (x, y))
            return w - 0.1 * G.mean(), gradients.coherence_stats(G).coherence()

        w, alphas = jax.jit(lambda w: jax.lax.scan(step, w, length=2000))(jnp.zeros(5))
        np.testing.assert_allclose(alphas[:100], alpha, atol=1e-6)
        np.testing.assert_allclose(w, final, atol=1e-6)


def test_bad_input():
    one = stats_of(np.ones((1, 3)))
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        one.unbiased_coherence()
    with pytest.raises(ValueError, match="by"):
        one.coherence(by="column")
    with pytest.raises(ValueError, match="batch_size"):
        gradients.coherence_of_means(0.5, batch_size=0)
    with pytest.raises(ValueError, match="batch_size"):
        gradients.coherence_from_means(0.5, batch_size=0)
