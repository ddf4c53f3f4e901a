"""Opposing groups: who they are, what their gradients do; the smallest model; split SGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import curvature, optim
from tests.matrices.models.model import normal

CHANGE = normal(0, 16)


def logistic(w, x, y):
    return jnp.log1p(jnp.exp(-y * jnp.vdot(w, x)))


def pair(losers, gainers):
    return curvature.OpposingGroups(jnp.array(losers), jnp.array(gainers))


@functools.partial(jax.jit, static_argnames="size")
def groups_of(change, size):
    return curvature.opposing_groups(change, size=size)


def test_groups_are_the_extremes_in_any_order():
    groups = groups_of(CHANGE, 3)
    order = np.argsort(np.asarray(CHANGE))
    assert groups.gainers.tolist() == order[:3].tolist()
    assert groups.losers.tolist() == order[::-1][:3].tolist()
    shuffle = np.random.default_rng(0).permutation(16)
    moved = groups_of(CHANGE[shuffle], 3)
    for one, other in zip(groups, moved):
        assert shuffle[np.asarray(other)].tolist() == one.tolist()
    batched = jax.vmap(lambda c: curvature.opposing_groups(c, size=3))(jnp.stack([CHANGE, -CHANGE]))
    assert batched.losers[1].tolist() == groups.gainers.tolist()


def test_groups_never_share_an_example():
    """Ties go by position; what is not a number counts as a rise."""
    groups = groups_of(jnp.zeros(16), 8)
    assert sorted([*groups.losers.tolist(), *groups.gainers.tolist()]) == list(range(16))
    assert groups.losers[0] == 15
    groups = groups_of(jnp.array([1.0, jnp.nan, 5.0, -1.0]), 1)
    assert (groups.losers.tolist(), groups.gainers.tolist()) == ([1], [3])


def test_sharded(mesh):
    split = jax.device_put(CHANGE, NamedSharding(mesh, PartitionSpec("data")))
    assert groups_of(split, 3).losers.tolist() == groups_of(CHANGE, 3).losers.tolist()
    x, y = normal(1, 16, 3), jnp.sign(normal(2, 16))
    at = lambda *batch: curvature.gradient_opposition(
        gradkin.per_example_grads(logistic)(jnp.ones(3), *batch), pair([0, 9], [3, 15])
    )
    wanted, sharding = jax.jit(at)(x, y), NamedSharding(mesh, PartitionSpec("data"))
    found = jax.jit(at)(*jax.device_put((x, y), sharding))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)
    g = jax.vmap(jax.grad(logistic), (None, 0, 0))(jnp.ones(3), x, y)
    a, b, mean = (np.mean(np.asarray(g)[rows], axis=0) for rows in ([0, 9], [3, 15], range(16)))
    np.testing.assert_allclose(wanted.losers, a, rtol=1e-5)
    norms = [np.linalg.norm(v) for v in (a, b, mean)]
    np.testing.assert_allclose(wanted.cosine, a @ b / norms[0] / norms[1], rtol=1e-4)
    np.testing.assert_allclose(wanted.norm_ratios, np.array(norms[:2]) / norms[2], rtol=1e-5)


def test_mirrored_outliers_are_exactly_opposite():
    """(x, 1) and (x, -1) at w = 0: their gradients cancel."""
    x = jnp.repeat(8 * normal(3, 4, 3), 2, axis=0)
    y = jnp.tile(jnp.array([1.0, -1.0]), 4)
    G = gradkin.per_example_grads(logistic)(jnp.zeros(3), x, y)
    found = curvature.gradient_opposition(G, pair([0, 2, 4, 6], [1, 3, 5, 7]))
    np.testing.assert_allclose(found.cosine, -1, rtol=1e-6)
    np.testing.assert_allclose(G.sum(), 0, atol=1e-6)
    np.testing.assert_allclose(found.losers, -found.gainers, rtol=1e-6)
    zero = curvature.gradient_opposition(G.scale(jnp.zeros(8)), pair([0], [1]))
    assert float(zero.cosine) == 0
    assert np.isnan(zero.norm_ratios).all()


def test_antiphase_against_correlations():
    changes = normal(4, 20, 6)
    groups = pair([0, 2], [1, 3, 5])
    correlation = np.corrcoef(np.asarray(changes).T)
    pairs = curvature.antiphase(changes, groups, of="pairs")
    np.testing.assert_allclose(pairs, correlation[np.ix_([0, 2], [1, 3, 5])].mean(), rtol=1e-4)
    sides = [np.asarray(changes)[:, rows].mean(1) for rows in groups]
    means = jax.jit(curvature.antiphase)(changes, groups)
    np.testing.assert_allclose(means, np.corrcoef(*sides)[0, 1], rtol=1e-4)
    opposite = jnp.concatenate([changes, -3 * changes + 1], axis=1)
    np.testing.assert_allclose(curvature.antiphase(opposite, pair([0], [6])), -1, rtol=1e-5)
    assert np.isnan(curvature.antiphase(jnp.ones((3, 2)), pair([0], [1])))


def test_concentration():
    assert float(curvature.change_concentration(jnp.ones(100), share=0.07)) == np.float32(0.07)
    one = jnp.zeros(50).at[7].set(-2.0)
    assert float(curvature.change_concentration(one)) == 1
    assert float(curvature.change_concentration(jnp.zeros(50))) == 0
    np.testing.assert_allclose(curvature.change_concentration(CHANGE, share=1.0), 1, rtol=1e-6)


def test_shared_feature():
    features = normal(5, 12, 3)
    groups = pair([0, 1], [2, 3])
    centred = np.asarray(features) - np.asarray(features).mean(0)
    a, b = centred[:2].mean(0), centred[2:4].mean(0)
    wanted = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(curvature.shared_feature(features, groups), wanted, rtol=1e-4)
    shifted = curvature.shared_feature(plus_one(features), groups)
    np.testing.assert_allclose(shifted, wanted, rtol=1e-3)
    assert float(curvature.shared_feature(jnp.ones((4, 2)), pair([0], [1]))) == 0


def plus_one(x):
    return x + jnp.ones_like(x)


MODEL = curvature.OpposingModel(jnp.asarray(0.7), jnp.array([0.3, -0.2]), jnp.asarray(0.4))
BETA, MOMENT = jnp.array([1.0, 2.0]), 5.0


def risk(model):
    return model.risk(BETA, MOMENT)


def descend(model, rate, steps):
    def step(model, _):
        new = jax.tree.map(lambda w, g: w - rate * g, model, jax.grad(risk)(model))
        return new, new

    return jax.jit(lambda m: jax.lax.scan(step, m, length=steps)[1])(model)


def test_derivatives_of_the_population_risk():
    slope, bend = jax.jit(lambda model: (jax.grad(risk)(model), jax.hessian(risk)(model)))(MODEL)
    c, gap = 0.7, 0.7 * MODEL.signal - BETA
    np.testing.assert_allclose(bend.opposing.opposing, MOMENT * c**2, rtol=1e-6)
    np.testing.assert_allclose(MODEL.opposing_curvature(MOMENT), MOMENT * c**2, rtol=1e-6)
    np.testing.assert_allclose(bend.c.opposing, 2 * MOMENT * c * 0.4, rtol=1e-6)
    np.testing.assert_allclose(slope.signal, c * gap, rtol=1e-6)
    np.testing.assert_allclose(slope.opposing, MOMENT * c**2 * 0.4, rtol=1e-6)
    along = jnp.vdot(gap, MODEL.signal) + MOMENT * c * 0.4**2
    np.testing.assert_allclose(slope.c, along, rtol=1e-6)


def test_flow_conserves_and_an_unused_feature_stays_unused():
    path = descend(MODEL, 1e-3, 3000)
    balance = path.c**2 - jnp.sum(path.signal**2, axis=1) - path.opposing**2
    start = 0.7**2 - 0.3**2 - 0.2**2 - 0.4**2
    np.testing.assert_allclose(balance, start, atol=1e-2)
    assert path.opposing_curvature(MOMENT)[-1] > path.opposing_curvature(MOMENT)[0]
    unused = descend(MODEL._replace(opposing=jnp.zeros(())), 0.05, 50)
    np.testing.assert_array_equal(unused.opposing, 0)


def test_oscillation_sets_in_at_two_over_the_curvature():
    """``b_o`` grows, with alternating sign, where ``eta alpha c^2 > 2``, and shrinks below."""
    limit = 2 / float(MODEL.opposing_curvature(MOMENT))
    for factor, grows in ((1.05, True), (0.95, False)):
        after = descend(MODEL, factor * limit, 1).opposing[0]
        assert after < 0
        assert (abs(after) > 0.4) == grows


def test_sample_is_of_the_model(key):
    sample = jax.jit(
        lambda key: curvature.opposing_sample(
            key, BETA, num_examples=40_000, moment=MOMENT, probability=0.1
        )
    )(key)
    np.testing.assert_allclose(jnp.mean(sample.outliers), 0.1, atol=0.01)
    np.testing.assert_allclose(jnp.mean(sample.inputs[:, -1] ** 2), MOMENT, rtol=0.05)
    assert abs(jnp.mean(sample.inputs[:, -1])) < 0.05
    np.testing.assert_allclose(sample.targets, sample.inputs[:, :2] @ BETA, rtol=1e-5, atol=1e-6)
    assert np.all((np.asarray(sample.inputs[:, -1]) != 0) == np.asarray(sample.outliers))
    half = jnp.mean(jnp.square(MODEL.predict(sample.inputs) - sample.targets)) / 2
    np.testing.assert_allclose(half, risk(MODEL), rtol=0.05)


def test_split_sgd_is_clipped_descent():
    """Thresholds are the first gradient's quantiles by leaf; momentum is dampened."""
    optimizer = curvature.split_sgd(0.5, quantile=0.75, momentum=0.8)
    params = {"a": jnp.zeros(5), "b": jnp.zeros((2, 2))}
    first = {"a": normal(6, 5), "b": normal(7, 2, 2)}
    then = jax.tree.map(lambda g: -3 * g, first)
    taus = jax.tree.map(lambda g: np.quantile(np.abs(g), 0.75), first)
    step = jax.jit(functools.partial(optim.update, optimizer))
    state, at, momentum = optimizer.init(params), params, jax.tree.map(np.asarray, params)
    for grads in (first, then):
        at, state = step(grads, state, at)
        clipped = jax.tree.map(lambda g, tau: 0.5 * np.clip(g, -tau, tau), grads, taus)
        momentum = jax.tree.map(lambda m, u: 0.8 * m + 0.2 * u, momentum, clipped)
        params = jax.tree.map(lambda p, m: p - m, params, momentum)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), at, params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), state.thresholds, taus)


def test_split_sgd_without_large_entries_is_sgd():
    optimizer = curvature.split_sgd(0.5, quantile=1.0, momentum=0.0)
    g = normal(8, 6)
    _, state = optimizer.update(g, optimizer.init(g))
    np.testing.assert_allclose(jnp.asarray(optimizer.update(g / 2, state)[0]), -g / 4, rtol=1e-6)
    fixed = curvature.split_sgd(0.5, quantile=0.0, momentum=0.0, sign_step=0.01)
    moved, _ = fixed.update(g, fixed.init(g))
    smallest = np.argmin(np.abs(np.asarray(g)))
    others = np.delete(np.asarray(moved) / np.sign(g), smallest)
    np.testing.assert_allclose(others, -0.01, rtol=1e-6)


SAMPLE = functools.partial(curvature.opposing_sample, jax.random.key(0), BETA)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curvature.opposing_groups(CHANGE, size=9), "size from 1 to 8"),
        (lambda: curvature.opposing_groups(CHANGE, size=0), "size from 1 to 8"),
        (lambda: curvature.opposing_groups(CHANGE[None], size=1), "change to have 1 axes"),
        (lambda: curvature.antiphase(normal(1, 1, 4), pair([0], [1])), "at least 2 steps"),
        (lambda: curvature.antiphase(CHANGE, pair([0], [1])), "changes to have 2 axes"),
        (lambda: curvature.antiphase(normal(1, 3, 4), pair([0], [1]), of="all"), "of to be"),
        (lambda: curvature.change_concentration(CHANGE, share=0.0), "share"),
        (lambda: curvature.change_concentration(CHANGE[None]), "change to have 1 axes"),
        (lambda: SAMPLE(num_examples=0, moment=1.0, probability=0.1), "num_examples > 0"),
        (lambda: SAMPLE(num_examples=1, moment=-1.0, probability=0.1), "moment > 0"),
        (lambda: SAMPLE(num_examples=1, moment=1.0, probability=1.5), "probability"),
        (lambda: curvature.split_sgd(0.0), "learning_rate > 0"),
        (lambda: curvature.split_sgd(0.1, quantile=1.5), "quantile"),
        (lambda: curvature.split_sgd(0.1, momentum=1.0), "momentum"),
        (lambda: curvature.split_sgd(0.1, sign_step=0.0), "sign_step > 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
