"""TracIn, TRAK, influence functions and retraining, against closed forms and one another."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import curvature, gradients

DECAY = 0.1


def ridge_loss(w, example):
    """Squared error with decay: its minimum, its Hessian and leaving one out are closed forms."""
    x, y = example
    return 0.5 * (x @ w - y) ** 2 + 0.5 * DECAY * jnp.sum(w**2)


def predict(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def network_loss(params, example):
    return curvature.cross_entropy(predict(params, example[0]), example[1])


def margin(params, example):
    return gradients.correct_class_margin(predict(params, example[0]), example[1])


@pytest.fixture
def ridge(key):
    """Data, queries, the minimum and the exact influence in float64."""
    a, b, c = jax.random.split(key, 3)
    x, y = jax.random.normal(a, (16, 4)), jax.random.normal(b, (16,))
    queries = (jax.random.normal(c, (5, 4)), jnp.linspace(-1.0, 1.0, 5))
    X, Y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    H = X.T @ X / 16 + DECAY * np.eye(4)
    w = np.linalg.solve(H, X.T @ Y / 16)
    rows = lambda batch: np.stack(
        [(u @ w - v) * u + DECAY * w for u, v in zip(*map(np.asarray, batch))]
    )
    wanted = rows((x, y)) @ np.linalg.solve(H, rows(queries).T)
    return (x, y), queries, jnp.asarray(w, jnp.float32), wanted


@pytest.fixture
def network(key):
    """Three networks, training examples and queries."""
    keys = jax.random.split(key, 5)
    checkpoints = {
        "in": jax.random.normal(keys[0], (3, 6, 8)) * 0.5,
        "out": jax.random.normal(keys[1], (3, 8, 3)) * 0.5,
    }
    labels = lambda k, n: jax.random.randint(k, (n,), 0, 3)
    train = (jax.random.normal(keys[2], (16, 6)), labels(keys[3], 16))
    return checkpoints, train, (jax.random.normal(keys[4], (4, 6)), labels(keys[4], 4))


def rows(loss, params, batch):
    grads = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
    return np.concatenate([np.reshape(g, (len(g), -1)) for g in jax.tree.leaves(grads)], axis=1)


def normal_rows(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def at(checkpoints, c):
    return jax.tree.map(lambda x: x[c], checkpoints)


def assert_close(found, wanted, tolerance=1e-4):
    bound = tolerance * float(np.max(np.abs(wanted)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound)


# ---- TracIn ------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
def test_tracin_is_the_weighted_sum_over_checkpoints(network, normalize):
    checkpoints, train, queries = network
    rates = np.array([0.1, 0.2, 0.3], np.float32)
    change = normal_rows if normalize else lambda x: x
    wanted = sum(
        rate
        * change(rows(network_loss, at(checkpoints, c), train))
        @ change(rows(margin, at(checkpoints, c), queries)).T
        for c, rate in enumerate(rates)
    )
    options = {"query_loss_fn": margin, "normalize": normalize}
    run = lambda **more: gradients.tracin(
        network_loss, checkpoints, rates, train, queries, **options, **more
    )
    found = run()
    assert_close(found, wanted)
    assert_close(run(batch_size=5), wanted)
    # As many places as the Hadamard matrix has columns: nothing is lost.
    exact = gradients.HadamardSketch(jax.random.key(0), 64, combine="concat")
    assert_close(run(sketch=exact), wanted)


def test_tracin_predicts_a_small_step(network):
    """One step of descent on example i lowers the loss of query j by about the score."""
    checkpoints, train, queries = network
    params, rate = at(checkpoints, 0), 1e-3
    one = jax.tree.map(lambda x: x[:1], checkpoints)
    scores = gradients.tracin(network_loss, one, rate, train, queries)
    losses = jax.vmap(network_loss, (None, 0))

    def drop(example):
        g = jax.grad(network_loss)(params, example)
        moved = jax.tree.map(lambda p, g: p - rate * g, params, g)
        return losses(params, queries) - losses(moved, queries)

    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )
        params, queries = wide(params), wide(queries)
        found = jax.vmap(drop)(wide(train))
    assert_close(scores, found, 0.02)


def test_tracin_of_zero_gradients_is_zero():
    loss = lambda w, x: w @ x
    x = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    for sketch in (None, gradients.RademacherSketch(jax.random.key(0), 4)):
        scores = gradients.tracin(loss, jnp.ones((1, 2)), 1.0, x, x, normalize=True, sketch=sketch)
        np.testing.assert_allclose(scores, [[0, 0], [0, 1]], atol=1e-6)


# ---- TRAK --------------------------------------------------------------------------------


def test_margin_is_the_log_odds(key):
    logits = jax.random.normal(key, (6,))
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    value, grad = jax.value_and_grad(gradients.correct_class_margin)(logits, 2)
    np.testing.assert_allclose(value, np.log(p[2] / (1 - p[2])), rtol=1e-5)
    np.testing.assert_allclose(jax.nn.softplus(-value), -np.log(p[2]), rtol=1e-5)
    assert np.isfinite(grad).all()


def test_trak_is_its_formula(network):
    checkpoints, train, queries = network
    sketch = gradients.RademacherSketch(jax.random.key(7), 6)
    found = gradients.trak(margin, checkpoints, train, queries, sketch=sketch, regularization=0.1)
    kernels, residuals = [], []
    for c in range(3):
        s = gradients.RademacherSketch(jax.random.fold_in(sketch.key, c), 6)
        features = [
            np.asarray(
                gradkin.per_example_grads(margin)(at(checkpoints, c), batch).sketch(s), float
            )
            for batch in (train, queries)
        ]
        second = features[0].T @ features[0]
        second += 0.1 * np.trace(second) / 6 * np.eye(6)
        kernels.append(features[0] @ np.linalg.solve(second, features[1].T))
        losses = jax.vmap(network_loss, (None, 0))(at(checkpoints, c), train)
        residuals.append(1 - np.exp(-np.asarray(losses)))
    wanted = np.mean(kernels, 0) * np.mean(residuals, 0)[:, None]
    assert_close(found, wanted, 1e-3)


def test_trak_without_projection_is_influence_in_logistic_regression(key):
    """One Newton step: phi_i^T (Phi^T Phi)^-1 phi_j times the residual."""
    phi = jax.random.normal(key, (1, 12, 3))
    residuals = jnp.linspace(0.1, 0.9, 12)[None]
    scores = gradients.trak_scores(phi, phi[:, :4], residuals)
    P = np.asarray(phi[0], np.float64)
    hat = P @ np.linalg.inv(P.T @ P) @ P[:4].T
    assert_close(scores, hat * np.asarray(residuals[0])[:, None])


def test_trak_bad_input():
    features, residuals = jnp.ones((2, 3, 4)), jnp.ones((2, 3))
    with pytest.raises(ValueError, match="more features"):
        gradients.trak_scores(features, features, residuals)
    with pytest.raises(ValueError, match="Expected queries"):
        gradients.trak_scores(features, features[:1], residuals, regularization=1.0)
    with pytest.raises(ValueError, match="regularization"):
        gradients.trak_scores(features, features, residuals, regularization=-1.0)
    with pytest.raises(TypeError, match="Expected a sketch"):
        gradients.trak(lambda w, x: w @ x, jnp.ones((2, 3)), jnp.ones((4, 3)), jnp.ones((4, 3)),
                       sketch=4)  # fmt: skip


# ---- influence functions -----------------------------------------------------------------


def test_influence_by_conjugate_gradients(ridge):
    train, queries, w, wanted = ridge
    G, Q = (gradkin.per_example_grads(ridge_loss)(w, batch) for batch in (train, queries))
    found = gradients.influence(G, Q, gradkin.hessian(ridge_loss)(w, train), damping=0.0)
    assert_close(found.scores, wanted, 1e-3)
    assert np.all(found.residual_norms < 1e-3)
    streamed = gradkin.per_example_grads(ridge_loss, batch_size=6)(w, train)
    H = gradkin.hessian(ridge_loss, batch_size=6)(w, train)
    assert_close(gradients.influence(streamed, Q, H, damping=0.0).scores, wanted, 1e-3)


def test_influence_with_small_eigenvalues_is_finite(key):
    """Many parameters, eigenvalues far below one: where lineax's own guard would give NaN."""
    x = 0.01 * jax.random.normal(key, (8, 4000))
    loss = lambda w, x: 0.5 * (x @ w - 1) ** 2
    w = jnp.zeros(4000)
    G = gradkin.per_example_grads(loss)(w, x)
    found = gradients.influence(G, G[:3], gradkin.hessian(loss)(w, x), damping=1e-3)
    X = np.asarray(x, np.float64)
    inverse = np.linalg.inv(X @ X.T / 8 + 1e-3 * np.eye(8))  # on both sides of the same products
    assert_close(found.scores, X @ X.T @ inverse[:, :3], 1e-3)
    assert np.all(found.residual_norms < 1e-3)


def test_influence_by_eigenvectors(ridge, key):
    train, queries, w, wanted = ridge
    G, Q = (gradkin.per_example_grads(ridge_loss)(w, batch) for batch in (train, queries))
    H = gradkin.hessian(ridge_loss)(w, train)
    assert_close(gradients.spectral_influence(key, G, Q, H, rank=4), wanted, 1e-3)
    values, vectors = np.linalg.eigh(np.asarray(H.materialize(), np.float64))
    g, q = (rows(ridge_loss, w, batch) @ vectors[:, 2:] for batch in (train, queries))
    two = gradients.spectral_influence(key, G, Q, H, rank=2)
    assert_close(two, g / values[2:] @ q.T, 1e-3)


def test_influence_by_lissa(ridge, key):
    train, queries, w, _ = ridge
    b = gradkin.per_example_grads(ridge_loss)(w, queries)[0]
    transform = gradkin.hessian(ridge_loss)
    wanted = transform(w, train).solve(b, damping=0.5).value

    def errors(batch_size):
        run = lambda k: gradients.lissa(
            k, transform, w, (train,), b, steps=400, batch_size=batch_size, scale=40.0, damping=0.5
        )
        found = jax.vmap(run)(jax.random.split(key, 8))
        distance = jnp.linalg.norm(found.value - wanted[None], axis=1) / jnp.linalg.norm(wanted)
        return float(jnp.mean(distance)), float(jnp.mean(found.residual_norm))

    few, residual = errors(4)
    many, _ = errors(64)
    assert few < 0.3
    assert many < few
    assert 0 < residual < 0.5


def test_influence_by_ekfac_is_exact_where_kronecker_is(key):
    """A linear model of one example's width: the block of its weight is a Kronecker product."""
    params, x = {"w": jnp.ones((4, 3))}, jax.random.normal(key, (16, 4))
    loss = lambda p, x: jnp.sum(jnp.tanh(x @ p["w"]))
    G = gradkin.per_example_grads(loss)(params, x)
    E = curvature.ekfac(G)
    found = gradients.influence(G, G[:3], E, damping=0.3)
    g = rows(loss, params, x).astype(np.float64)
    matrix = np.asarray(E.materialize(), np.float64) + 0.3 * np.eye(12)
    assert_close(found.scores, g @ np.linalg.solve(matrix, g[:3].T), 1e-3)
    np.testing.assert_array_equal(found.residual_norms, 0)


def test_influence_bad_input(ridge):
    train, queries, w, _ = ridge
    G = gradkin.per_example_grads(ridge_loss)(w, train)
    with pytest.raises(TypeError, match="Expected curvature"):
        gradients.influence(G, G, jnp.eye(4), damping=1.0)
    with pytest.raises(ValueError, match="damping"):
        gradients.influence(G, G, gradkin.hessian(ridge_loss)(w, train), damping=-1.0)
    with pytest.raises(ValueError, match="steps"):
        gradients.lissa(jax.random.key(0), gradkin.hessian(ridge_loss), w, (train,), w,
                        steps=0, batch_size=4, scale=1.0)  # fmt: skip
    with pytest.raises(ValueError, match="learning_rates"):
        gradients.tracin(ridge_loss, w[None], jnp.ones(3), train, queries)
    with pytest.raises(ValueError, match="checkpoints"):
        gradients.tracin(ridge_loss, (w, w[:2]), 1.0, train, queries)


# ---- retraining --------------------------------------------------------------------------


def test_leave_one_out_of_ridge_regression(ridge):
    """Against the closed form without each example, and influence functions as its first order."""
    (x, y), queries, w, _ = ridge

    def train_fn(weights):
        H = (x * weights[:, None]).T @ x / 16 + DECAY * jnp.mean(weights) * jnp.eye(4)
        w = jnp.linalg.solve(H, (weights * y) @ x / 16)
        return (queries[0] @ w - queries[1]) ** 2 / 2

    found = gradients.leave_one_out(train_fn, 16)
    X, Y = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def losses(keep):
        H = X[keep].T @ X[keep] / 16 + DECAY * len(keep) / 16 * np.eye(4)
        fit = np.linalg.solve(H, X[keep].T @ Y[keep] / 16)
        return (np.asarray(queries[0]) @ fit - np.asarray(queries[1])) ** 2 / 2

    everyone = np.arange(16)
    wanted = np.stack([losses(np.delete(everyone, i)) - losses(everyone) for i in range(16)])
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(
        gradients.leave_one_out(train_fn, 16, batch_size=5), found, rtol=1e-4, atol=1e-6
    )
    G, Q = (gradkin.per_example_grads(ridge_loss)(w, batch) for batch in ((x, y), queries))
    scores = gradients.influence(G, Q, gradkin.hessian(ridge_loss)(w, (x, y)), damping=0.0).scores
    assert np.corrcoef(np.ravel(scores), np.ravel(found))[0, 1] > 0.9


def test_brittleness_leaves_out_the_best_of_each_query():
    x = jnp.array([4.0, 1.0, 3.0, 2.0])
    train_fn = lambda w: jnp.stack([jnp.sum(w * x), jnp.sum(w), jnp.sum(w * x)])
    scores = jnp.stack([x, x, -x], axis=1)
    found = gradients.brittleness(train_fn, scores, (0, 1, 2))
    np.testing.assert_allclose(found, [[10, 4, 10], [6, 3, 9], [3, 2, 7]])
    np.testing.assert_allclose(
        gradients.brittleness(train_fn, scores, (0, 1, 2), batch_size=2), found
    )
    with pytest.raises(ValueError, match="counts from 0 to 3"):
        gradients.brittleness(train_fn, scores, (4,))
    with pytest.raises(ValueError, match="one output for each"):
        gradients.brittleness(lambda w: jnp.sum(w), scores, (1,))


def test_datamodeling_score_is_spearmans(key):
    subsets = gradients.random_subsets(key, 20, 12, fraction=0.4)
    np.testing.assert_array_equal(subsets.sum(axis=1), 4)
    scores = jax.random.normal(key, (12, 3))
    outputs = np.random.default_rng(0).integers(0, 6, (20, 3)).astype(np.float32)  # with ties
    found = jax.jit(gradients.linear_datamodeling_score)(scores, subsets, outputs)
    predicted = np.asarray(subsets, np.float32) @ np.asarray(scores)
    for j in range(3):
        found_by_scipy: Any = scipy.stats.spearmanr(predicted[:, j], outputs[:, j])
        wanted = found_by_scipy[0]
        np.testing.assert_allclose(found[j], wanted, atol=1e-5)
    # Additive outputs are ranked without error, whatever their scale; constants rank nothing.
    exact = gradients.linear_datamodeling_score(scores, subsets, jnp.exp(predicted))
    np.testing.assert_allclose(exact, 1, atol=1e-5)
    none = gradients.linear_datamodeling_score(scores, subsets, jnp.ones((20, 3)))
    np.testing.assert_array_equal(none, 0)


def test_metrics_bad_input(key):
    subsets = gradients.random_subsets(key, 4, 6)
    with pytest.raises(ValueError, match="fraction"):
        gradients.random_subsets(key, 4, 6, fraction=0.1)
    with pytest.raises(ValueError, match="Expected scores"):
        gradients.linear_datamodeling_score(jnp.ones((5, 2)), subsets, jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="2 subsets"):
        gradients.linear_datamodeling_score(jnp.ones((6, 2)), subsets[:1], jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="num_examples"):
        gradients.leave_one_out(lambda w: w, 1)
    with pytest.raises(ValueError, match="axes"):
        gradients.retrain(lambda w: w, jnp.ones(3))


# ---- difficulty --------------------------------------------------------------------------


def test_grand_and_el2n(network):
    checkpoints, (x, labels), _ = network
    norms = [np.linalg.norm(rows(network_loss, at(checkpoints, c), (x, labels)), axis=1)
             for c in range(3)]  # fmt: skip
    assert_close(gradients.grand(network_loss, checkpoints, (x, labels)), np.mean(norms, 0))
    logits = jax.vmap(jax.vmap(predict, (None, 0)), (0, None))(checkpoints, x)
    # The norm of the gradient in the logits.
    errors = jax.vmap(jax.vmap(jax.grad(curvature.cross_entropy)), (0, None))(logits, labels)
    wanted = np.mean(np.linalg.norm(errors, axis=-1), axis=0)
    np.testing.assert_allclose(gradients.el2n(logits, labels), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="one label per example"):
        gradients.el2n(logits, labels[:3])


def test_sharded(network, mesh):
    """Scores of training examples on eight devices are those of one."""
    checkpoints, train, queries = network
    sketch = gradients.RademacherSketch(jax.random.key(0), 6)

    @jax.jit
    def read(checkpoints, train, queries):
        params = at(checkpoints, 0)
        G, Q = (gradkin.per_example_grads(network_loss)(params, b) for b in (train, queries))
        F = gradkin.gauss_newton(predict, curvature.cross_entropy)(params, *train)
        return [
            gradients.tracin(network_loss, checkpoints, 0.1, train, queries),
            gradients.trak(margin, checkpoints, train, queries, sketch=sketch, regularization=0.1),
            gradients.influence(G, Q, F, damping=1.0, rtol=1e-6).scores,
        ]

    split = jax.device_put(train, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put((checkpoints, queries), NamedSharding(mesh, PartitionSpec()))
    many, one = read(everywhere[0], split, everywhere[1]), read(checkpoints, train, queries)
    for a, b in zip(many, one, strict=True):
        assert_close(np.asarray(a), np.asarray(b), 1e-3)
