"""The clipped sum: each row of its table of cases, and the bound itself."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkin
from gradkin import gradients

C = 0.7


def rows(x):
    """Per-example gradients that are ``x`` itself."""
    return gradkin.per_example_grads(lambda w, x: jnp.vdot(w, x))(jnp.zeros(x.shape[1]), x)


def value(x, clip_norm=C, **options):
    return np.asarray(gradients.clipped_sum(rows(jnp.asarray(x)), clip_norm, **options).value)


def test_norm_within_the_bound_is_unchanged():
    x = np.array([[0.1, 0.3]], np.float32)
    np.testing.assert_array_equal(value(x), x[0])


def test_norm_above_the_bound_is_rescaled_to_it(key):
    x = jax.random.normal(key, (1, 5)) * 100
    clipped = value(x)
    assert C * (1 - 1e-6) <= np.linalg.norm(clipped.astype(np.float64)) <= C * (1 + 1e-7)
    np.testing.assert_allclose(clipped / C, x[0] / jnp.linalg.norm(x), rtol=1e-5)


@pytest.mark.parametrize("style", ["rescale", "automatic"])
def test_zero_gradient_stays_zero(style):
    np.testing.assert_array_equal(value(np.zeros((2, 3), np.float32), style=style), 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_row_that_is_not_finite_is_zeroed_and_counted(bad):
    x = jnp.asarray([[0.1, 0.2], [bad, bad], [0.3, 0.0]], np.float32)
    total = gradients.clipped_sum(rows(x), C)
    np.testing.assert_allclose(total.value, [0.4, 0.2], rtol=1e-6)
    assert int(total.nonfinite) == 1
    assert total.kept.tolist() == [True, False, True]
    assert total.norms[1, 0] == 0


def test_row_with_a_bad_group_is_zeroed_in_all_groups():
    loss = lambda p, x: p["a"] * x[0] + p["b"] * x[1]
    params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    x = jnp.asarray([[np.nan, 0.1], [0.2, 0.3]])
    G = gradkin.per_example_grads(loss)(params, x)
    total = gradients.clipped_sum(G, 9.0, groups="leaf")
    assert [float(v) for v in total.value.values()] == pytest.approx([0.2, 0.3])


def test_padding_is_zero_even_if_nan():
    x = np.array([[0.1, 0.2], [np.nan, np.nan]], np.float32)
    total = gradients.clipped_sum(rows(jnp.asarray(x)), C, mask=jnp.asarray([True, False]))
    np.testing.assert_array_equal(total.value, x[0])
    assert int(total.nonfinite) == 0


def test_no_example_at_all_is_zero():
    x = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(value(x, mask=np.zeros(3, bool)), 0)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, np.nan])
def test_bound_that_is_not_positive_is_refused(clip_norm):
    with pytest.raises(ValueError, match="Expected clip_norm > 0"):
        value(np.ones((1, 2), np.float32), clip_norm)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, np.nan])
def test_traced_bound_that_is_not_positive_zeroes_rows_and_poisons_noise(clip_norm):
    x = jnp.ones((2, 2))
    total = jax.jit(lambda c: gradients.clipped_sum(rows(x), c))(jnp.float32(clip_norm))
    np.testing.assert_array_equal(total.value, 0)
    assert np.isnan(total.contribution)
    noised = gradients.add_noise(jax.random.key(0), total, noise_multiplier=1.0)
    assert np.all(np.isnan(noised.value))


def test_infinite_bound_can_be_summed_but_not_privatized():
    x = jnp.asarray([[3.0, 4.0], [1.0, 0.0]])
    total = gradients.clipped_sum(rows(x), np.inf)
    np.testing.assert_array_equal(total.value, [4.0, 4.0])
    free = gradients.add_noise(jax.random.key(0), total, noise_multiplier=0.0)
    np.testing.assert_array_equal(free.value, [4.0, 4.0])
    with pytest.raises(ValueError, match="Expected a finite clip_norm with noise"):
        gradients.add_noise(jax.random.key(0), total, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="Expected a finite clip_norm for style='automatic'"):
        gradients.clipped_sum(rows(x), np.inf, style="automatic")


def test_bfloat16_parameters_are_summed_in_float32(key):
    x = jax.random.normal(key, (64, 3))
    loss = lambda w, x: jnp.vdot(w.astype(jnp.float32), x)
    private = gradients.private_gradient(
        loss,
        clip_norm=10.0,
        noise_multiplier=0.0,
        sampling=gradients.FullBatch(64),
        reduction="sum",
        check=False,
    )
    noised = private(key, jnp.zeros(3, jnp.bfloat16), x)
    assert noised.value.dtype == np.float32
    # Each row is what jax.grad gives for bfloat16 parameters; their sum is not rounded again.
    rows_of_grad = np.asarray(x.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(noised.value, rows_of_grad.sum(0), rtol=1e-5)


def test_automatic_clipping_in_closed_form(key):
    x = jax.random.normal(key, (4, 3))
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    expected = np.sum(C * np.asarray(x) / (norms + 0.05), axis=0)
    np.testing.assert_allclose(value(x, style="automatic", stability=0.05), expected, rtol=1e-5)


def test_groups_are_clipped_on_their_own(key):
    params = {"one": {"w": jnp.zeros(2), "b": jnp.zeros(1)}, "two": {"w": jnp.zeros(3)}}
    loss = lambda p, x: sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(p), x))
    x = [10 * jax.random.normal(k, (5, n)) for k, n in zip(jax.random.split(key, 3), (1, 2, 3))]
    G = gradkin.per_example_grads(loss)(params, x)
    bounds = {"one": 1.0, "two": 0.5}
    total = gradients.clipped_sum(G, bounds, groups="layer")
    first = np.concatenate([x[0], x[1]], axis=1)
    scale = lambda g, c: np.minimum(1, c / np.linalg.norm(g, axis=1, keepdims=True))
    np.testing.assert_allclose(
        total.value["one"]["w"], np.sum(scale(first, 1.0) * x[1], axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(
        total.value["two"]["w"], np.sum(scale(x[2], 0.5) * x[2], axis=0), rtol=1e-5
    )
    assert float(total.contribution) == pytest.approx(np.hypot(1.0, 0.5))
    assert total.leaf_groups == (0, 0, 1)
    # One number is shared out so that the whole has the bound asked for.
    assert float(gradients.clipped_sum(G, 1.0, groups="leaf").contribution) == pytest.approx(1)
    by_name = gradients.clipped_sum(G, 1.0, groups=lambda path: path[-1])
    assert by_name.clip_norms.shape == (2,)


def test_one_group_is_flat_clipping(key):
    x = jax.random.normal(key, (4, 3))
    np.testing.assert_array_equal(value(x), value(x, groups=lambda path: "everything"))


def test_matches_optax(key):
    params = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
    loss = lambda p, x: jnp.sum(jnp.tanh(x @ p["a"] + p["b"]) * x[:2]) ** 2 + jnp.sum(x[1] * p["b"])
    x = jax.random.normal(key, (6, 3))
    G = gradkin.per_example_grads(loss)(params, x)
    ours = jax.tree.map(lambda g: g / 6, gradients.clipped_sum(G, 0.5).value)
    theirs = optax.contrib.differentially_private_aggregate(0.5, 0.0, jax.random.key(0))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected, _ = theirs.update(G.materialize(), theirs.init(params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, expected
    )


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=6, max_size=6),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3),
    st.sampled_from(["rescale", "automatic"]),
)
def test_one_example_moves_the_sum_by_at_most_the_bound(batch, other, style):
    x = np.array(batch, np.float32).reshape(2, 3)
    options = {"style": style, "groups": "flat"}
    neighbour = np.concatenate([x, np.array([other], np.float32)])
    padded = np.concatenate([x, np.zeros((1, 3), np.float32)])
    difference = value(neighbour, **options) - value(padded, **options)
    assert np.linalg.norm(difference) <= C * (1 + 1e-5)


def test_grouped_neighbours_stay_within_the_joint_bound(key):
    loss = lambda p, x: jnp.vdot(p["a"], x[:2]) + jnp.vdot(p["b"], x[2:])
    params = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    x = 10 * jax.random.normal(key, (50, 4, 5))
    bounds = {"a": 0.3, "b": 2.0}

    def total(x):
        G = gradkin.per_example_grads(loss)(params, x)
        value = gradients.clipped_sum(G, bounds, groups="leaf").value
        return jnp.concatenate([value["a"], value["b"]])

    moved = jax.vmap(lambda x: total(x) - total(x.at[0].set(0)))(x)
    assert np.max(np.linalg.norm(moved, axis=1)) <= np.hypot(0.3, 2.0) * (1 + 1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "other"}, "Expected style to be one of"),
        ({"groups": "other"}, "Expected groups to be one of"),
        ({"stability": 0.0}, "Expected stability > 0"),
        ({"mask": np.ones(3, bool)}, "Expected mask to be boolean of shape"),
        ({"mask": np.ones(1)}, "Expected mask to be boolean"),
        ({"clip_norm": np.ones(2)}, "Expected clip_norm to be a number or one per group"),
        ({"clip_norm": {"none": 1.0}}, "Expected clip_norm for the groups"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        value(np.ones((1, 2), np.float32), **{"clip_norm": 1.0, **options})
