"""The value gradient against autodiff of its loss, rule by rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkin
from gradkin.dice import (
    Transitions,
    f_divergence,
    init_heads,
    orthogonal_gradient,
    value_gradient,
    value_heads,
)

LAM, ETA, DISCOUNT, SIZE, HEADS = 0.4, 0.7, 0.9, 16, 2


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(0), 6)
    params = init_heads(keys[0], HEADS, (3, 8, 1), layer_norm=True)
    target = init_heads(keys[1], HEADS, (3, 8, 1), layer_norm=True)
    s, after = jax.random.normal(keys[2], (2, SIZE, 3))
    reward = jax.random.normal(keys[3], (SIZE,))
    terminal = jax.random.bernoulli(keys[4], 0.3, (SIZE,))
    return params, target, Transitions(s, s, reward, after, terminal)


@functools.partial(jax.jit, static_argnames=("rule", "divergence"))
def gradient(params, target, batch, *, lam=LAM, eta=ETA, rule="orthogonal", divergence="pearson"):
    return value_gradient(
        value_heads, params, target, batch, lam=lam, eta=eta, discount=DISCOUNT, rule=rule,
        divergence=divergence, has_features=True,
    )  # fmt: skip


def terms(target, batch, divergence="pearson"):
    """Linear, forward, backward and full losses written out, for `jax.grad`."""
    value = lambda p, s: value_heads(p, s)[0]
    least = lambda s: value(target, s).min(0)[None]
    factor = DISCOUNT * (1 - batch.terminal.astype(jnp.float32))[None]
    f = lambda after, now: LAM * f_divergence(divergence).conjugate(
        batch.reward[None] + factor * after - now
    ).mean()  # fmt: skip
    s, after = batch.observation, batch.next_observation
    return (
        lambda p: (1 - LAM) * value(p, s).mean(),
        lambda p: f(least(after), value(p, s)),
        lambda p: f(value(p, after), least(s)),
        lambda p: f(value(p, after), value(p, s)),
    )


def add(*trees):
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


def close(left, right, rtol=1e-4):
    left, right = ravel_pytree(left)[0], ravel_pytree(right)[0]
    np.testing.assert_allclose(left, right, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("divergence", ["pearson", "kl"])
def test_rules_against_autodiff(problem, divergence):
    params, target, batch = problem
    linear, forward, backward, full = terms(target, batch, divergence)
    g_l, g_f, g_b, g = jax.jit(
        lambda p: [jax.grad(t)(p) for t in (linear, forward, backward, full)]
    )(params)
    kind = {"divergence": divergence}
    close(gradient(params, target, batch, rule="semi", **kind).gradient, add(g_l, g_f))
    close(gradient(params, target, batch, rule="true", **kind).gradient, add(g_l, g))
    out = gradient(params, target, batch, **kind)
    close(out.gradient, add(g_l, orthogonal_gradient(g_f, g_b, ETA).gradient))
    np.testing.assert_allclose(out.forward_loss, forward(params), rtol=1e-5)
    np.testing.assert_allclose(out.backward_loss, backward(params), rtol=1e-5)
    np.testing.assert_allclose(out.linear_loss, linear(params), rtol=1e-4, atol=1e-6)


def test_forward_part_is_a_weighting_of_the_per_example_gradients(problem):
    params, target, batch = problem
    value = lambda p, s: value_heads(p, s[None])[0].mean()
    # Heads differ in their residuals, so take one head's weights from a one-headed problem.
    first = jax.tree.map(lambda x: x[:1], params)
    out = gradient(first, target, batch, rule="semi")
    weights = (1 - LAM - LAM * f_divergence("pearson").density_ratio(out.residual[0])) / SIZE
    rows = gradkin.per_example_grads(value)(first, batch.observation)
    close(out.gradient, weights @ rows)


def test_eta_zero_is_semi(problem):
    params, target, batch = problem
    zero, semi = gradient(*problem, eta=0.0), gradient(*problem, rule="semi")
    close(zero.gradient, semi.gradient, rtol=1e-6)
    np.testing.assert_array_equal(zero.residual, semi.residual)


def test_diagnostics(problem):
    params, target, batch = problem
    _, forward, backward, _ = terms(target, batch)
    g_f, g_b = (ravel_pytree(jax.grad(t)(params))[0] for t in (forward, backward))
    seen = gradient(*problem).diagnostics
    norms = np.linalg.norm(g_f), np.linalg.norm(g_b)
    np.testing.assert_allclose(seen.cosine, g_f @ g_b / norms[0] / norms[1], rtol=1e-4)
    np.testing.assert_allclose(seen.coefficient, g_f @ g_b / norms[0] ** 2, rtol=1e-4)
    np.testing.assert_allclose((seen.forward_norm, seen.backward_norm), np.array(norms), rtol=1e-4)
    phi = [value_heads(params, s)[1] for s in (batch.observation, batch.next_observation)]
    product = (phi[0] * phi[1]).sum(-1)
    np.testing.assert_allclose(seen.feature_product, product.mean(), rtol=1e-5)
    cosine = product / np.linalg.norm(phi[0], axis=-1) / np.linalg.norm(phi[1], axis=-1)
    np.testing.assert_allclose(seen.feature_cosine, cosine.mean(), rtol=1e-5)
    semi = gradient(*problem, rule="semi").diagnostics
    assert semi.cosine is None
    assert semi.backward_norm is None


def test_terminal_masks_the_bootstrap_only(problem):
    params, target, batch = problem
    ended = batch._replace(terminal=jnp.ones(SIZE))
    out = gradient(params, target, ended)
    np.testing.assert_allclose(out.diagnostics.backward_norm, 0.0)
    here = value_heads(params, batch.observation)[0]
    np.testing.assert_allclose(out.residual, batch.reward[None] - here, rtol=1e-5)


def test_sharded_batch_gives_the_same(problem, mesh):
    params, target, batch = problem
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = gradient(params, target, jax.device_put(batch, rows))
    close(spread.gradient, gradient(*problem).gradient)


def test_tabular_fixed_point_of_the_semi_gradient():
    """One state, three rewards: mean omega(R) = (1 - lambda) / lambda gives V in closed form."""
    reward = jnp.array([0.0, -1.0, -2.0])
    zero = jnp.zeros(3, jnp.int32)
    batch = Transitions(zero, zero, reward, zero, jnp.ones(3))
    table = jnp.zeros(1)
    lookup = lambda p, s: p[s]
    for _ in range(60):
        out = value_gradient(lookup, table, table, batch, lam=0.5, eta=0.0, rule="semi")
        table = table - 2.0 * out.gradient
    # E[R / 2 + 1] = 1 while every ratio is positive: V = mean reward.
    np.testing.assert_allclose(table, [-1.0], atol=1e-4)
    np.testing.assert_allclose(f_divergence("pearson").density_ratio(out.residual).mean(), 1.0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lam": 0.0}, "lam in"),
        ({"lam": 1.0}, "lam in"),
        ({"eta": -1.0}, "eta >= 0"),
        ({"rule": "half"}, "rule='half'"),
        ({"divergence": "chi"}, "divergence='chi'"),
    ],
)
def test_bad_options(problem, options, match):
    params, target, batch = problem
    with pytest.raises(ValueError, match=match):
        value_gradient(value_heads, params, target, batch, **{"lam": LAM, **options})


def test_bad_batches(problem):
    params, target, batch = problem
    call = lambda b: value_gradient(lambda p, s: s.sum(-1), params, target, b, lam=LAM)
    with pytest.raises(ValueError, match="one leading length"):
        call(batch._replace(reward=batch.reward[1:]))
    with pytest.raises(ValueError, match="batch.reward to have 1 axis"):
        call(batch._replace(reward=batch.reward[:, None]))
    with pytest.raises(ValueError, match="of one shape"):
        call(batch._replace(next_observation=batch.observation[:, :1]))
    with pytest.raises(ValueError, match="at least one transition"):
        call(Transitions(*(field[:0] for field in batch)))
    with pytest.raises(ValueError, match=r"\[H, B\] or \[B\]"):
        value_gradient(lambda p, s: s, params, target, batch, lam=LAM)
