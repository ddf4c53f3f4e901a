"""The learned control of a private run: its filter, its agent, its statistics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin import gradients
from gradkin.gradients import rldp_sac


@pytest.mark.parametrize(("q", "z", "order"), [(0.05, 1.0, 4), (0.2, 2.0, 16), (1.0, 3.0, 8)])
def test_divergence_matches_dp_accounting(q, z, order):
    dp = pytest.importorskip("dp_accounting", reason="the extra 'private' is not installed")
    accountant = dp.rdp.RdpAccountant([order])
    accountant.compose(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(z)))
    ours = gradients.sampled_gaussian_rdp(z, probability=q, order=order)
    assert float(ours) == pytest.approx(float(accountant._rdp[0]), rel=1e-3)
    budget = gradients.RdpFilter(50.0, 1e-5, q, order)
    expected = accountant.get_epsilon(1e-5)
    assert float(budget.spent_epsilon(ours)) == pytest.approx(expected, rel=1e-3)


def test_filter_never_passes_its_budget(key):
    budget, planned = gradients.RdpFilter.for_steps(2.0, 1e-5, 0.1, 100)
    assert 99 < budget.budget / float(budget.cost(planned)) < 101

    def step(spent, key):
        z = jnp.exp(jax.random.uniform(key, (), minval=-0.5, maxval=1.0)) * planned
        spent = jnp.where(budget.allows(spent, z), spent + budget.cost(z), spent)
        return spent, budget.spent_epsilon(spent)

    _, epsilons = jax.lax.scan(step, jnp.float32(0.0), jax.random.split(key, 300))
    assert 1.8 < float(epsilons[-1]) <= 2.0
    assert float(budget.spent_epsilon(0.0)) == 0


def test_policy_density_integrates_to_one():
    mean, std = jnp.asarray([0.3]), jnp.asarray([0.7])
    a = jnp.linspace(-0.9999, 0.9999, 20_001)
    density = jax.vmap(lambda u: jnp.exp(rldp_sac.log_probability(mean, std, u[None])))(
        jnp.arctanh(a)
    )
    assert float(jnp.trapezoid(density, a)) == pytest.approx(1, abs=2e-3)


def test_agent_finds_the_better_arm(key):
    start, data, learn = jax.random.split(key, 3)
    agent = gradients.sac_init(start, observation_size=1, action_size=1, learning_rate=1e-2)

    def step(agent, keys):
        action = jax.random.uniform(keys[0], (64, 1), minval=-1.0)
        reward = 10 * action[:, 0]
        zeros = jnp.zeros((64, 1))
        batch = gradients.Transitions(zeros, action, reward, zeros)
        return gradients.sac_update(keys[1], agent, batch, learning_rate=1e-2, discount=0.0), None

    keys = jnp.stack([jax.random.split(data, 300), jax.random.split(learn, 300)], axis=1)
    agent, _ = jax.jit(lambda a, k: jax.lax.scan(step, a, k))(agent, keys)
    action = gradients.sac_act(key, agent, jnp.zeros(1), explore=False)
    assert float(action[0]) > 0.8


def test_actions_move_bounds_and_noise_within_their_ranges():
    controller = gradients.RldpController((0.1, 2.0), (0.5, 4.0), clip_step=1.0, noise_step=0.5)
    bounds = jnp.asarray([0.5, 1.0])
    same, noise = controller.apply(bounds, 1.0, jnp.zeros(3))
    np.testing.assert_array_equal(same, bounds)
    assert float(noise) == 1.0
    moved, noise = controller.apply(bounds, 1.0, jnp.asarray([-1.0, 1.0, 1.0]))
    np.testing.assert_allclose(moved, [0.5 / math.e, 2.0], rtol=1e-6)
    assert float(noise) == pytest.approx(math.exp(0.5))
    with pytest.raises(ValueError, match=r"Expected action of shape \(3,\)"):
        controller.apply(bounds, 1.0, jnp.zeros(2))


def test_no_epsilon_for_statistics_that_were_not_paid_for():
    budget = gradients.RdpFilter(2.0, 1e-5, 0.1, 8)
    free = gradients.RldpController((0.1, 1.0), (0.5, 2.0), stat_source="private_unaccounted")
    with pytest.raises(ValueError, match="nothing was paid for it"):
        free.spent_epsilon(budget, 0.1)
    paid = gradients.RldpController((0.1, 1.0), (0.5, 2.0))
    assert float(paid.spent_epsilon(budget, 0.1)) == float(budget.spent_epsilon(0.1))


def test_reward_has_the_sign_of_the_gain():
    assert float(gradients.rldp_reward(1.0, 0.5)) == pytest.approx(math.log1p(1 / 0.501))
    assert float(gradients.rldp_reward(-1.0, 0.5)) == pytest.approx(-math.log1p(1 / 0.501))


def statistics(x, losses, mask, key, noise):
    G = gradkin.per_example_grads(lambda p, x: p["a"] * x[0] + p["b"] * x[1])(
        {"a": jnp.zeros(()), "b": jnp.zeros(())}, x
    )
    total = gradients.clipped_sum(G, {"a": 1.0, "b": 1.0}, groups="leaf", mask=mask)
    return gradients.noised_statistics(
        key, total, losses, loss_bound=2.0, expected_size=4.0, noise_multiplier=noise
    )


def test_statistics_without_noise_and_their_sensitivity(key):
    x = jnp.asarray([[0.5, 3.0], [2.0, 0.1], [0.2, 0.2], [9.0, 9.0]])
    losses = jnp.asarray([0.5, 5.0, 1.0, 0.0])
    shares, loss = statistics(x, losses, jnp.ones(4, bool), key, 1e-9)
    np.testing.assert_allclose(shares, [0.5, 0.5], atol=1e-5)
    assert float(loss) == pytest.approx((0.5 + 2.0 + 1.0 + 0.0) / 4)
    fewer, less = statistics(x, losses, jnp.arange(4) != 1, key, 1e-9)
    # In units of a centred sum of three numbers within +-1/2.
    moved = 4 * np.array([*(shares - fewer), (loss - less) / 2])
    assert np.linalg.norm(moved) <= math.sqrt(3) / 2 + 1e-4
    keys = jax.random.split(key, 500)
    draws, _ = jax.vmap(lambda k: statistics(x, losses, jnp.ones(4, bool), k, 3.0))(keys)
    expected = 3.0 * math.sqrt(3) / 2 / 4
    assert float(jnp.std(draws[:, 0])) == pytest.approx(expected, rel=0.1)


def test_joint_noise_is_what_composes_to_the_whole():
    left = float(gradients.joint_noise(1.5, 4.0))
    assert left**-2 + 4.0**-2 == pytest.approx(1.5**-2)
    assert math.isinf(float(gradients.joint_noise(2.0, 1.0)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradients.RdpFilter(1.0, 1.0, 0.1, 8), "Expected 0 < delta < 1"),
        (lambda: gradients.RdpFilter(0.0, 0.1, 0.1, 8), "Expected epsilon > 0"),
        (lambda: gradients.RdpFilter(1.0, 1e-5, 1.5, 8), "Expected 0 < probability <= 1"),
        (lambda: gradients.RdpFilter(0.1, 1e-5, 0.1, 2), "leaves some of"),
        (lambda: gradients.RdpFilter(1.0, 1e-5, 0.1, 1), "Expected order to be an integer"),
        (
            lambda: gradients.sampled_gaussian_rdp(0.0, probability=0.1, order=4),
            "Expected noise_multiplier > 0",
        ),
        (lambda: gradients.RldpController((0.0, 1.0), (1.0, 2.0)), "Expected clip_range > 0"),
        (
            lambda: gradients.RldpController((0.1, 1.0), (1.0, 2.0), stat_source="raw"),
            "Expected stat_source to be one of",
        ),
        (lambda: gradients.rldp_reward(1.0, 1.0, kappa=0.0), "Expected kappa > 0"),
        (lambda: gradients.joint_noise(0.0, 1.0), "Expected noise_multiplier > 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
