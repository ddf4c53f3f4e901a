"""The private gradient: what it computes, on how many devices, and what it refuses."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import gradients, optim
from gradkin.gradients import verification

FULL = gradients.FullBatch(16)


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return (hidden @ params["v"] - y) ** 2


@pytest.fixture
def problem(key):
    keys = jax.random.split(key, 5)
    params = {
        "w": jax.random.normal(keys[0], (4, 8)),
        "b": jnp.zeros(8),
        "v": jax.random.normal(keys[1], (8,)),
    }
    return params, jax.random.normal(keys[2], (16, 4)), jax.random.normal(keys[3], (16,))


def private(**options):
    options = {
        "clip_norm": 0.5,
        "noise_multiplier": 0.0,
        "sampling": FULL,
        "check": False,
        **options,
    }
    return gradients.private_gradient(loss, **options)


def plain_clipped_sum(params, x, y, clip_norm, keep=None):
    grads = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, x, y)
    norms = jnp.sqrt(sum(jnp.sum(g.reshape(len(x), -1) ** 2, axis=1) for g in grads.values()))
    scale = jnp.minimum(1, clip_norm / norms)
    scale = scale if keep is None else jnp.where(keep, scale, 0.0)
    return jax.tree.map(lambda g: jnp.tensordot(scale, g, 1), grads)


def close(a, b, **options):
    options = {"rtol": 2e-5, "atol": 1e-6, **options}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **options), a, b)


def test_without_noise_it_is_the_clipped_mean(key, problem):
    expected = jax.tree.map(lambda g: g / 16, plain_clipped_sum(*problem, clip_norm=0.5))
    noised = gradients.private_gradient(
        loss, clip_norm=0.5, noise_multiplier=0.0, sampling=FULL, check=True
    )(key, *problem)
    close(noised.value, expected)
    assert noised.reduction == "mean"
    assert float(noised.sensitivity) == pytest.approx(0.5 / 16)
    norms = gradkin.per_example_grads(loss)(*problem).norms()
    close(noised.norms[:, 0], norms)
    assert float(noised.clipped_fraction[0]) == pytest.approx(float(jnp.mean(norms > 0.5)))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("relation", ["add_or_remove_one", "replace_one"])
def test_noise_is_scaled_to_what_it_is_added_to(key, problem, reduction, relation):
    function = private(noise_multiplier=1.5, reduction=reduction, relation=relation)
    sensitivity = 0.5 * (2 if relation == "replace_one" else 1)
    expected = 1.5 * sensitivity / (16 if reduction == "mean" else 1)
    keys = jax.random.split(key, 400)
    noised = jax.vmap(function, in_axes=(0, None, None, None))(keys, *problem)
    draws = jnp.concatenate([v.reshape(400, -1) for v in noised.value.values()], axis=1)
    assert float(jnp.std(draws, axis=0).mean()) == pytest.approx(expected, rel=0.03)
    assert float(noised.noise_std[0, 0]) == pytest.approx(expected)
    quiet = private(reduction=reduction)(key, *problem).value
    centre = jnp.concatenate([v.reshape(-1) for v in quiet.values()])
    assert np.max(np.abs(draws.mean(0) - centre)) < 5 * expected / math.sqrt(400)


def test_a_mean_is_not_divided_twice(key, problem):
    total = private(reduction="sum")(key, *problem)
    mean = total.mean(16.0)
    close(mean.value, private()(key, *problem).value)
    with pytest.raises(ValueError, match="divided already"):
        mean.mean(16.0)


def test_proportional_noise_follows_the_groups(key, problem):
    function = private(
        noise_multiplier=1.0,
        groups="leaf",
        clip_norm={"b": 0.1, "v": 0.2, "w": 2.0},
        allocation="proportional",
        reduction="sum",
    )
    noised = function(key, *problem)
    np.testing.assert_allclose(
        noised.noise_std, math.sqrt(3) * np.array([0.1, 0.2, 2.0]), rtol=1e-5
    )
    # Dividing each group by its bound gives equal noise and sensitivity sqrt(3).
    assert float(noised.sensitivity) == pytest.approx(math.sqrt(0.01 + 0.04 + 4))
    flat = private(noise_multiplier=1.0, groups="leaf", clip_norm=1.0)(key, *problem)
    np.testing.assert_allclose(flat.noise_std, np.full(3, 1 / 16), rtol=1e-5)


def test_padding_and_changing_sizes_compile_once(key, problem):
    params, x, y = problem
    sampling = gradients.PoissonSampling(40, 0.2, padded_size=16)
    step: Any = jax.jit(private(sampling=sampling, reduction="sum"))
    for count in (0, 3, 16):
        mask = jnp.arange(16) < count
        dirty = jnp.where(mask[:, None], x, jnp.full_like(x, jnp.nan))
        noised = step(key, params, dirty, y, mask=mask)
        close(noised.value, plain_clipped_sum(params, x, y, 0.5, keep=mask))
        assert int(noised.num_examples) == count
    assert step._cache_size() == 1


@pytest.mark.parametrize("noise_multiplier", [0.0, 1.0])
def test_microbatches_change_nothing(key, problem, noise_multiplier):
    params, x, y = problem
    x = x.at[3].set(jnp.nan)
    mask = jnp.arange(16) != 5
    whole = private(noise_multiplier=noise_multiplier)(key, params, x, y, mask=mask)
    parts = private(noise_multiplier=noise_multiplier, microbatch_size=4)(
        key, params, x, y, mask=mask
    )
    close(whole, parts)


def test_a_user_is_one_row(key, problem):
    params, x, y = problem
    users = gradients.private_gradient(
        loss,
        clip_norm=0.5,
        noise_multiplier=0.0,
        sampling=gradients.FullBatch(4),
        unit="user",
        reduction="sum",
        check=False,
    )
    present = jnp.arange(16).reshape(4, 4) != 7
    noised = users(key, params, x.reshape(4, 4, 4), y.reshape(4, 4), mask=present)
    grads = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, x, y)
    of_user = jax.tree.map(
        lambda g: jnp.stack(
            [jnp.mean(g[jnp.asarray([i for i in range(4 * u, 4 * u + 4) if i != 7])], axis=0)
             for u in range(4)]
        ),
        grads,
    )  # fmt: skip
    norms = jnp.sqrt(sum(jnp.sum(g.reshape(4, -1) ** 2, axis=1) for g in of_user.values()))
    expected = jax.tree.map(lambda g: jnp.tensordot(jnp.minimum(1, 0.5 / norms), g, 1), of_user)
    close(noised.value, expected)


def test_quantile_clipping_finds_the_quantile(key, problem):
    params, x, y = problem
    norms = np.asarray(gradkin.per_example_grads(loss)(params, x, y).norms())
    rule = gradients.QuantileClipping(quantile=0.75, learning_rate=0.3, count_noise=0.6)
    function = private(quantile=rule, noise_multiplier=1.0)

    def step(clip_norm, key):
        new = function(key, params, x, y, clip_norm=clip_norm).next_clip_norm
        return new, new

    _, path = jax.lax.scan(step, jnp.float32(50.0), jax.random.split(key, 300))
    low, high = np.quantile(norms, [0.6, 0.9])
    assert low < float(jnp.median(path[150:])) < high
    # Both releases together have the noise multiplier that is accounted for.
    z = rule.gradient_noise(1.0)
    assert z**-2 + (2 * rule.count_noise) ** -2 == pytest.approx(1.0)
    noised = function(key, params, x, y)
    assert float(noised.noise_std[0]) == pytest.approx(z * 0.5 / 16)


def test_same_on_eight_devices(key, problem, mesh):
    params, x, y = problem
    function = jax.jit(private(noise_multiplier=1.0))
    alone = function(key, params, x, y)
    rows, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    # Parameters split over devices: the noise is split the same way, and is the same noise.
    split = {
        "w": NamedSharding(mesh, PartitionSpec(None, "data")),
        "b": NamedSharding(mesh, PartitionSpec("data")),
        "v": whole,
    }
    shared = function(
        jax.device_put(key, whole), jax.device_put(params, split), *jax.device_put((x, y), rows)
    )
    close(alone.value, shared.value)
    parts = jax.jit(private(noise_multiplier=1.0, microbatch_size=8))(
        key, params, *jax.device_put((x, y), rows)
    )
    close(alone.value, parts.value)


def test_any_optax_optimizer_follows(key, problem):
    params, x, y = problem
    mechanism = gradients.GaussianMechanism(1.0, FULL)
    first: Any = gradients.private_aggregate(key, mechanism, clip_norm=0.5)
    grads = gradkin.per_example_grads(loss)(params, x, y)
    for optimizer in (optax.adam(1e-2), optax.contrib.schedule_free_sgd(0.1)):
        chain = optax.chain(first, optimizer)
        new, state = optim.update(chain, grads, chain.init(params), params)
        assert int(state[0].count) == 1
        jax.tree.map(
            lambda a, b: np.testing.assert_array_less(0, jnp.sum(jnp.abs(a - b))), new, params
        )
    state = first.init(params)
    one, state = first.update(grads, state)
    two, _ = first.update(grads, state)
    assert float(jnp.abs(one["v"] - two["v"]).sum()) > 0, "each step has its own noise"
    stacked, _ = first.update(grads.materialize(), first.init(params))
    close(one, stacked)
    expected = private(noise_multiplier=1.0)(jax.random.fold_in(key, 0), params, x, y)
    close(one, expected.value)
    with pytest.raises(ValueError, match="one leading axis of examples"):
        first.update({"a": jnp.zeros(())}, state)


def test_works_with_linen_and_nnx(key):
    linen = pytest.importorskip("flax.linen")
    nnx = pytest.importorskip("flax.nnx")
    x = jax.random.normal(key, (16, 3))
    module = linen.Dense(2)
    variables = module.init(key, x[0])
    of_linen = lambda variables, x: jnp.sum(module.apply(variables, x) ** 2)
    graph, params, rest = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param, ...)
    of_nnx = lambda params, x, rest: jnp.sum(nnx.merge(graph, params, rest)(x) ** 2)
    make = lambda f, **o: gradients.private_gradient(
        f, clip_norm=1.0, noise_multiplier=0.0, sampling=FULL, check=False, **o
    )
    assert make(of_linen)(key, variables, x).value["params"]["kernel"].shape == (3, 2)
    noised = make(of_nnx, in_axes=(0, None))(key, params, x, rest)
    assert jax.tree.structure(noised.value) == jax.tree.structure(params)


def test_batch_statistics_are_refused(key):
    linen = pytest.importorskip("flax.linen")
    nnx = pytest.importorskip("flax.nnx")
    x = jnp.ones((16, 3))
    variables = linen.BatchNorm(use_running_average=True).init(key, x)
    function = gradients.private_gradient(
        lambda v, x: 0.0 * v["params"]["scale"].sum(),
        clip_norm=1.0,
        noise_multiplier=1.0,
        sampling=FULL,
    )
    with pytest.raises(ValueError, match="batch statistics at 'batch_stats/mean'"):
        function(key, variables, x)
    _, state = nnx.split(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="got batch statistics at 'mean"):
        function(key, state, x)


def test_coupled_examples_are_refused(key, problem):
    coupled = lambda w, x: jnp.sum(w * (x - jax.lax.pmean(x, "batch")))
    function = gradients.private_gradient(
        coupled, clip_norm=1.0, noise_multiplier=1.0, sampling=FULL
    )
    with pytest.raises(ValueError, match="reduces over a named axis"):
        function(key, jnp.zeros(4), problem[1])


def test_a_wrong_factor_is_noticed(monkeypatch, key, problem):
    function = private(check=True)
    real = verification.per_example_grads
    wrong = lambda *a, **o: lambda *args: real(*a, **o)(*args).scale(jnp.asarray([1.0, 1.01]))
    monkeypatch.setattr(verification, "per_example_grads", wrong)
    with pytest.raises(RuntimeError, match="differ from jax.grad"):
        function(key, *problem)


def test_the_object_that_clips_is_accounted_for():
    sampling = gradients.PoissonSampling(100, 0.1)
    function = private(noise_multiplier=1.3, sampling=sampling, relation="replace_special")
    assert function.mechanism == gradients.GaussianMechanism(1.3, sampling, "replace_special")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(function.mechanism, "noise_multiplier", 0.1)  # noqa: B010


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": 0.0}, "Expected clip_norm > 0"),
        ({"clip_norm": -1.0}, "Expected clip_norm > 0"),
        ({"clip_norm": math.inf, "noise_multiplier": 1.0}, "Expected a finite clip_norm"),
        ({"noise_multiplier": -0.1}, "Expected noise_multiplier >= 0"),
        ({"relation": "other"}, "Expected relation to be one of"),
        ({"reduction": "median"}, "Expected reduction to be one of"),
        ({"unit": "silo"}, "Expected unit to be one of"),
        ({"style": "other"}, "Expected style to be one of"),
        ({"groups": "other"}, "Expected groups to be one of"),
        ({"allocation": "other"}, "Expected allocation to be one of"),
        ({"microbatch_size": 0}, "Expected microbatch_size to be a positive"),
        (
            {"quantile": gradients.QuantileClipping(), "groups": "leaf"},
            "Expected groups='flat' with quantile",
        ),
        (
            {"quantile": gradients.QuantileClipping(count_noise=0.5), "noise_multiplier": 1.0},
            "the count alone would spend",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        private(**options)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, lambda x, y: (x, jnp.zeros(())), "Expected a batch with one leading axis"),
        ({}, lambda x, y: (x[:8], y[:8]), "Expected a batch of 16 rows, as drawn by sampling"),
        ({}, lambda x, y: (x[:8], y), "Expected a batch with one leading axis"),
        ({"microbatch_size": 5}, lambda x, y: (x, y), "Expected microbatch_size to divide"),
        ({"unit": "user"}, lambda x, y: (y, y), "Expected a batch of users"),
        ({"in_axes": (0,)}, lambda x, y: (x, y), "Expected in_axes to be 0, or one of"),
    ],
)
def test_bad_batches(key, problem, options, change, message):
    with pytest.raises(ValueError, match=message):
        private(**options)(key, problem[0], *change(*problem[1:]))


def test_bad_mask(key, problem):
    with pytest.raises(ValueError, match="Expected mask to be boolean with 16 rows"):
        private()(key, *problem, mask=jnp.ones(16))


def test_bad_quantile():
    with pytest.raises(ValueError, match=r"Expected quantile in \[0, 1\]"):
        gradients.QuantileClipping(quantile=1.5)
