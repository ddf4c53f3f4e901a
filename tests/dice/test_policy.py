"""Policies, their weights, networks and targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gradkin.dice import (
    act,
    f_divergence,
    init_heads,
    init_mlp,
    init_policy,
    log_prob,
    mlp,
    policy_mean,
    policy_weight,
    polyak_update,
    weighted_cloning_loss,
)


def test_log_prob_against_scipy(key):
    policy = init_policy(key, (3, 8, 2))._replace(log_std=jnp.array([-0.5, 9.0]))
    s, a = jax.random.normal(key, (4, 3)), jax.random.normal(key, (4, 2))
    std = np.exp([-0.5, 2.0])  # clipped
    for tanh in (False, True):
        mean = policy_mean(policy, s, tanh=tanh)
        expected = stats.norm.logpdf(a, mean, std).sum(-1)
        np.testing.assert_allclose(log_prob(policy, s, a, tanh=tanh), expected, rtol=1e-4)
        assert np.abs(act(policy, 100 * s, tanh=tanh)).max() <= 1


def test_weights_of_both_rules():
    residual = jnp.array([[-3.0, -1.0, 0.5], [1.0, 500.0, 0.0]])
    weight = policy_weight(residual)
    np.testing.assert_allclose(weight, [[0, 0, 0.5], [1, 100, 0]])
    ratio = policy_weight(residual, rule="ratio", clip=50.0)
    np.testing.assert_allclose(ratio, [[0, 0.5, 1.25], [1.5, 50, 1]])
    y = jnp.array([-2.0, 0.0])
    np.testing.assert_allclose(
        policy_weight(y, rule="ratio", divergence="kl"), f_divergence("kl").density_ratio(y)
    )
    assert jax.grad(lambda r: policy_weight(r).sum())(residual).any() == False  # noqa: E712


def test_heads_are_averaged_by_the_loss():
    log_probs, weights = jnp.array([-1.0, -3.0]), jnp.array([[2.0, 0.0], [0.0, 4.0]])
    expected = -np.mean(np.asarray(weights) * np.asarray(log_probs))
    np.testing.assert_allclose(weighted_cloning_loss(log_probs, weights), expected)
    with pytest.raises(ValueError, match="weights"):
        weighted_cloning_loss(log_probs, weights[:, :1])


def test_mlp_by_hand(key):
    params = init_mlp(key, (3, 5, 2), layer_norm=True)
    x = np.asarray(jax.random.normal(key, (4, 3)))
    hidden = x @ params[0]["kernel"] + params[0]["bias"][None]
    hidden = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(
        hidden.var(-1, keepdims=True) + 1e-5
    )
    hidden = np.maximum(hidden, 0)
    out, features = mlp(params, jnp.asarray(x))
    np.testing.assert_allclose(features, hidden, rtol=1e-4, atol=1e-6)
    expected = hidden @ params[1]["kernel"] + params[1]["bias"][None]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)
    limit = 3**-0.5
    assert np.abs(params[0]["kernel"]).max() <= limit


def test_bad_arguments(key):
    with pytest.raises(ValueError, match="rule='square'"):
        policy_weight(jnp.ones(2), rule="square")
    with pytest.raises(ValueError, match="clip"):
        policy_weight(jnp.ones(2), clip=0.0)
    with pytest.raises(ValueError, match="sizes"):
        init_mlp(key, (3,))
    with pytest.raises(ValueError, match="num_heads"):
        init_heads(key, 0, (3, 1))
    with pytest.raises(ValueError, match="online"):
        polyak_update({"a": jnp.ones(2)}, {"a": jnp.ones(3)}, 0.1)
