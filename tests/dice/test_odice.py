"""One update of the algorithm and of its baselines."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from gradkin import optim
from gradkin.dice import (
    IqlConfig,
    OdiceConfig,
    Td3BcConfig,
    Transitions,
    cloning_init,
    cloning_update,
    critic_heads,
    expectile_loss,
    iql_init,
    iql_update,
    odice_init,
    odice_update,
    policy_weight,
    polyak_update,
    sample_transitions,
    td3_bc_action,
    td3_bc_init,
    td3_bc_update,
    value_gradient,
    value_heads,
)

CONFIG = OdiceConfig(
    lam=0.6, eta=1.0, value_sizes=(8,), policy_sizes=(8,), weight_decay=0.01,
    value_learning_rate=1e-2, policy_learning_rate=1e-2,
)  # fmt: skip


update = jax.jit(odice_update)


@pytest.fixture(scope="module")
def batch():
    keys = jax.random.split(jax.random.key(0), 4)
    s, after = jax.random.normal(keys[0], (2, 16, 3))
    a = jnp.tanh(jax.random.normal(keys[1], (16, 2)))
    terminal = jax.random.bernoulli(keys[2], 0.2, (16,)).astype(jnp.float32)
    return Transitions(s, a, 3 * jax.random.normal(keys[3], (16,)), after, terminal)


@pytest.fixture(scope="module")
def state():
    init = functools.partial(odice_init, config=CONFIG, observation_size=3, action_size=2)
    return jax.jit(init)(jax.random.key(1))


def test_order_of_the_update(state, batch):
    """V by the old networks, the target after V, the policy by the old residual."""
    new, metrics = update(CONFIG, state, batch)

    @jax.jit
    def by_hand(state, batch):
        out = value_gradient(value_heads, state.value, state.target, batch, lam=0.6, eta=1.0,
                             has_features=True)  # fmt: skip
        adam = optax.adam(1e-2)
        value, _ = optim.update(adam, out.gradient, state.value_optimizer, state.value)
        return value, polyak_update(state.target, value, 0.005), policy_weight(out.residual).mean()

    value, expected, weight = by_hand(state, batch)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(compare, new.value, value)
    jax.tree.map(compare, new.target, expected)
    np.testing.assert_allclose(metrics.weight, weight, rtol=1e-4)
    assert float(metrics.diagnostics.cosine) < 1


def test_decay_is_inside_adam_and_only_the_policys(state, batch):
    """With weights 0 the policy's gradient is the decay alone: Adam turns it into its sign."""
    still = batch._replace(reward=batch.reward - 100.0)
    new, metrics = update(CONFIG, state, still)
    assert float(metrics.weight) == 0.0
    moved = new.policy.mean[0]["kernel"] - state.policy.mean[0]["kernel"]
    np.testing.assert_allclose(moved, -1e-2 * np.sign(state.policy.mean[0]["kernel"]), rtol=1e-2)


def test_lambda_and_eta_under_one_vmap(state, batch):
    many = dataclasses.replace(CONFIG, eta=jnp.array([0.0, 1.0]), lam=jnp.array([0.6, 0.6]))
    stacked, _ = jax.jit(jax.vmap(odice_update, in_axes=(0, None, None)))(many, state, batch)
    semi, _ = update(dataclasses.replace(CONFIG, rule="semi"), state, batch)
    orthogonal, _ = update(CONFIG, state, batch)
    for index, single in enumerate((semi, orthogonal)):
        got = jax.tree.map(lambda x, index=index: x[index], stacked.target)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), got, single.target
        )


def test_sharded_batch_gives_the_same(state, batch, mesh):
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = update(CONFIG, state, jax.device_put(batch, rows))[1]
    np.testing.assert_allclose(
        spread.policy_loss, update(CONFIG, state, batch)[1].policy_loss, 1e-4
    )


def test_cloning_learns_the_actions(batch):
    state = cloning_init(jax.random.key(0), (3, 32, 2))
    step = lambda s, _: cloning_update(s, batch, learning_rate=1e-2)
    state, losses = jax.jit(lambda s: jax.lax.scan(step, s, None, 200))(state)
    assert losses[-1] < losses[0] - 1


def test_iql_value_is_an_expectile_of_its_critic(batch):
    config = IqlConfig(hidden_sizes=(16,), learning_rate=1e-2, expectile=0.9, target_rate=0.1)
    init = functools.partial(iql_init, config=config, observation_size=3, action_size=2)
    zeros = jnp.zeros_like(batch.observation)
    same = batch._replace(observation=zeros, terminal=jnp.ones(16))  # one state, 16 actions
    step = lambda s, _: iql_update(config, s, same)
    train = jax.jit(lambda k: jax.lax.scan(step, init(k), None, 500))
    state, values = train(jax.random.key(0))
    q = critic_heads(state.target, zeros, batch.action).min(0)
    np.testing.assert_allclose(values[-1], stats.expectile(q, 0.9), atol=0.1)
    assert values[-1] > q.mean() + 0.5
    loss = expectile_loss(jnp.array([-1.0, 2.0]), 0.9)
    np.testing.assert_allclose(loss, [0.1, 3.6], rtol=1e-5)


def test_td3_bc_moves_the_policy_every_other_step(batch, key):
    config = Td3BcConfig(hidden_sizes=(8,))
    state = td3_bc_init(key, config, observation_size=3, action_size=2)
    step = jax.jit(lambda k, s: td3_bc_update(k, config, s, batch))
    one, _ = step(key, state)
    two, _ = step(key, one)
    first = lambda s: s.policy[0]["kernel"]
    np.testing.assert_array_equal(first(one), first(state))
    assert np.any(first(two) != first(one))
    assert np.abs(td3_bc_action(two.policy, batch.observation)).max() <= 1


def test_sampling_draws_whole_rows(batch, key):
    drawn = sample_transitions(key, batch, 64)
    rows = np.argmax(np.isclose(drawn.reward[:, None], batch.reward[None]), 1)
    np.testing.assert_array_equal(drawn.observation, np.asarray(batch.observation)[rows])
    assert len(set(rows.tolist())) > 8


def test_bad_arguments(batch, key):
    with pytest.raises(ValueError, match="lam in"):
        odice_init(key, dataclasses.replace(CONFIG, lam=1.2), observation_size=3, action_size=2)
    with pytest.raises(ValueError, match="observation_size"):
        odice_init(key, CONFIG, observation_size=0, action_size=2)
    with pytest.raises(ValueError, match="batch_size"):
        sample_transitions(key, batch, 0)
