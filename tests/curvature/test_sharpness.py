"""Average and worst-case sharpness: closed forms, limits, invariances, shards."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkin
from gradkin import curvature

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
SIZE = 12
BASIS = np.linalg.qr(RNG.normal(size=(SIZE, SIZE)))[0]
A = jnp.asarray(BASIS * np.linspace(0.5, 6, SIZE) @ BASIS.T, np.float32)
SCALE = jnp.asarray(np.exp(0.5 * RNG.normal(size=SIZE)), np.float32)
ROWS = jnp.asarray(RNG.normal(size=(16, 3)), np.float32)
LABELS = jnp.asarray(np.arange(16) % 2, np.int32)
NET = {
    "w1": jnp.asarray(RNG.normal(size=(3, 5)), np.float32),
    "w2": jnp.asarray(RNG.normal(size=(5, 2)), np.float32),
}


def quadratic(w, example):
    """Its mean over the examples +1 and -1 is w A w / 2, with a gradient of each by itself."""
    return 0.5 * jnp.vdot(w, A @ w) + example * w[0]


def net_loss(params, example):
    x, label = example
    outputs = jax.nn.relu(x @ params["w1"]) @ params["w2"]
    return -jax.nn.log_softmax(outputs)[label]


def net_error(params, example):
    x, label = example
    return jnp.argmax(jax.nn.relu(x @ params["w1"]) @ params["w2"]) != label


SIGNS = jnp.array([1.0, -1.0])
average = jax.jit(
    lambda key, scale, rho: curvature.average_sharpness(
        key, quadratic, jnp.zeros(SIZE), SIGNS, rho=rho, scale=scale, num_samples=4000
    )
)
net_average = jax.jit(
    lambda key, params, batch, scale, rho: curvature.average_sharpness(
        key, net_loss, params, batch, rho=rho, scale=scale, num_samples=64, samples_at_once=16
    )
)
net_worst = jax.jit(
    lambda key, params, batch, scale, rho: curvature.worst_case_sharpness(
        key,
        net_loss,
        params,
        batch,
        rho=rho,
        p=math.inf,
        scale=scale,
        group_size=8,
        groups_at_once=2,
        num_steps=20,
        error_fn=net_error,
    )
)


@pytest.mark.parametrize("scaled", [False, True])
def test_average_of_a_quadratic(scaled):
    c = SCALE if scaled else jnp.ones(SIZE)
    found = average(KEY, c, 0.3)
    wanted = 0.5 * 0.3**2 * np.sum(np.diag(A) * np.asarray(c) ** 2)
    assert abs(found.value - wanted) < 4 * found.standard_error
    assert found.standard_error < 0.02 * wanted


def test_uniform_noise_has_a_third_of_the_variance():
    found = jax.jit(
        lambda key: curvature.average_sharpness(
            key, quadratic, jnp.zeros(SIZE), SIGNS, rho=0.3, noise="uniform", num_samples=2000
        )
    )(KEY)
    assert abs(found.value - 0.5 * 0.3**2 / 3 * np.trace(A)) < 4 * found.standard_error


@pytest.mark.parametrize("scaled", [False, True])
def test_second_order_agrees_with_the_search(scaled):
    """On a quadratic at its stationary point, where both say the same."""
    c = SCALE if scaled else jnp.ones(SIZE)
    scaled_matrix = np.asarray(c)[:, None] * np.asarray(A) * np.asarray(c)
    H = gradkin.hessian(quadratic)(jnp.zeros(SIZE), SIGNS)
    scale = c if scaled else None
    trace = curvature.second_order_sharpness(KEY, H, rho=0.3, scale=scale, num_matvecs=400)
    wanted = 0.5 * 0.3**2 * np.trace(scaled_matrix)
    assert abs(trace.value - wanted) < 5 * trace.standard_error
    worst = curvature.second_order_sharpness(KEY, H, rho=0.3, scale=scale, kind="worst")
    np.testing.assert_allclose(
        worst.value, 0.045 * np.linalg.eigvalsh(scaled_matrix)[-1], rtol=1e-4
    )
    assert worst.standard_error < 1e-3
    found = jax.jit(
        lambda c: curvature.worst_case_sharpness(
            KEY, quadratic, jnp.zeros(SIZE), SIGNS, rho=0.3, scale=c, num_steps=100
        )
    )(c)
    np.testing.assert_allclose(found.value, worst.value, rtol=0.01)


def test_each_group_has_a_maximum_of_its_own():
    """Two groups of opposite slopes: each finds its own rise, which the whole has not."""
    linear = lambda w, x: jnp.vdot(w, x)
    x = jnp.array([[3.0, 4.0], [3.0, 4.0], [-3.0, -4.0], [-3.0, -4.0]])
    worst = functools.partial(curvature.worst_case_sharpness, KEY, linear, jnp.ones(2), x, rho=0.1)
    parts = worst(group_size=2)
    np.testing.assert_allclose(parts.per_group, [0.5, 0.5], rtol=1e-4)
    np.testing.assert_allclose(parts.value, 0.5, rtol=1e-4)
    assert abs(worst().value) < 1e-6
    assert parts.error_rise is None
    together = worst(group_size=2, groups_at_once=2)
    np.testing.assert_allclose(together.per_group, parts.per_group, rtol=1e-5)


def test_adaptive_sharpness_is_invariant_to_rescaling():
    """(a W1, W2 / a) is the same function of ReLU units."""
    twin = {"w1": 4.0 * NET["w1"], "w2": NET["w2"] / 4.0}
    batch = (ROWS, LABELS)
    ones = jax.tree.map(jnp.ones_like, NET)
    for measure, tolerance in ((net_average, 1e-4), (net_worst, 1e-2)):
        one, other = (
            measure(KEY, net, batch, curvature.adaptive_scale(net), 0.1).value
            for net in (NET, twin)
        )
        np.testing.assert_allclose(one, other, rtol=tolerance)
        one, other = (measure(KEY, net, batch, ones, 0.1).value for net in (NET, twin))
        assert abs(one / other - 1) > 0.1


def test_small_radii_and_growth():
    batch, scale = (ROWS, LABELS), curvature.adaptive_scale(NET)
    tiny = net_worst(KEY, NET, batch, scale, 1e-4)
    assert 0 <= tiny.value < 1e-2
    assert abs(net_average(KEY, NET, batch, scale, 1e-4).value) < 1e-4
    rises = [net_worst(KEY, NET, batch, scale, rho).value for rho in (0.01, 0.1, 0.4)]
    assert 0 < rises[0] < rises[1] < rises[2]
    # The first order in rho, where the gradient does not vanish: group by group.
    small = net_worst(KEY, NET, batch, scale, 1e-3)
    groups = [(ROWS[i : i + 8], LABELS[i : i + 8]) for i in (0, 8)]
    mean_loss = lambda params, b: jnp.mean(jax.vmap(net_loss, (None, 0))(params, b))
    first = [
        curvature.first_order_sharpness(
            jax.grad(mean_loss)(NET, b), rho=1e-3, p=math.inf, scale=scale
        )
        for b in groups
    ]
    np.testing.assert_allclose(small.per_group, first, rtol=0.03)


def test_one_ascent_step_is_a_lower_bound():
    batch = (ROWS[:8], LABELS[:8])
    step = curvature.sam_sharpness(net_loss, NET, batch, rho=0.2, p=math.inf)
    ones = jax.tree.map(jnp.ones_like, NET)
    both = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)
    worst = net_worst(KEY, NET, both, ones, 0.2)
    assert 0 < step <= worst.value * (1 + 1e-3)
    np.testing.assert_allclose(
        curvature.sam_sharpness(quadratic, jnp.ones(SIZE), SIGNS, rho=1e-3),
        1e-3 * np.linalg.norm(A @ jnp.ones(SIZE)),
        rtol=0.01,
    )


def test_error_at_the_maximum():
    """Labels that the network has right; the 0-1 error of the average needs no derivative."""
    scale = curvature.adaptive_scale(NET)
    outputs = jax.nn.relu(ROWS @ NET["w1"]) @ NET["w2"]
    batch = (ROWS, jnp.argmax(outputs, axis=-1).astype(jnp.int32))
    assert 0 < net_worst(KEY, NET, batch, scale, 1.0).error_rise <= 1
    rise = curvature.average_sharpness(
        KEY, net_error, NET, batch, rho=1.0, scale=scale, num_samples=50
    )
    assert 0 < rise.value <= 1


def test_sharded_examples_give_the_same(mesh):
    batch = (ROWS, LABELS)
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    scale = curvature.adaptive_scale(NET)
    for measure in (net_average, net_worst):
        one, many = (measure(KEY, NET, b, scale, 0.1).value for b in (batch, sharded))
        np.testing.assert_allclose(one, many, rtol=1e-3)


def test_bad_input_is_named():
    average = functools.partial(curvature.average_sharpness, KEY, quadratic, jnp.zeros(SIZE))
    worst = functools.partial(curvature.worst_case_sharpness, KEY, quadratic, jnp.zeros(SIZE))
    for measure in (average, worst):
        with pytest.raises(ValueError, match="rho > 0"):
            measure(SIGNS, rho=0.0)
        with pytest.raises(ValueError, match="scale >= 0"):
            measure(SIGNS, rho=0.1, scale=-SCALE)
        with pytest.raises(ValueError, match="one leading axis of examples"):
            measure({"a": SIGNS, "b": jnp.ones(3)}, rho=0.1)
        with pytest.raises(ValueError, match="one leading axis of examples"):
            measure(jnp.ones(()), rho=0.1)
    with pytest.raises(ValueError, match="num_samples >= 2, got 1"):
        average(SIGNS, rho=0.1, num_samples=1)
    with pytest.raises(ValueError, match="noise to be one of"):
        average(SIGNS, rho=0.1, noise="cauchy")
    with pytest.raises(ValueError, match="samples_at_once to be a positive integer, got 0"):
        average(SIGNS, rho=0.1, samples_at_once=0)
    with pytest.raises(ValueError, match="p to be one of"):
        worst(SIGNS, rho=0.1, p=1)
    with pytest.raises(ValueError, match="group_size=3 and B=2"):
        worst(SIGNS, rho=0.1, group_size=3)
    with pytest.raises(ValueError, match="groups_at_once to be a positive integer, got 0"):
        worst(SIGNS, rho=0.1, groups_at_once=0)
    with pytest.raises(ValueError, match="to return a scalar, got shape"):
        curvature.sam_sharpness(lambda w, x: w, jnp.zeros(2), SIGNS, rho=0.1)
    H = gradkin.hessian(quadratic)(jnp.zeros(SIZE), SIGNS)
    with pytest.raises(ValueError, match="kind to be one of"):
        curvature.second_order_sharpness(KEY, H, rho=0.1, kind="median")
    with pytest.raises(ValueError, match="rho > 0"):
        curvature.second_order_sharpness(KEY, H, rho=-0.1)
