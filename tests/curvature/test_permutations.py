"""Permutations read off models: what they are, and that the models do not notice."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradkin import curvature
from tests.curvature.networks import mlp, mlp_params, shuffled
from tests.matrices.models.model import integers, normal, plus, weight


def residual(params, x):
    """One stream: every block reads and writes it."""
    x = x @ params["into"]
    for block in params["blocks"]:
        h = jax.nn.standardize(x) * jnp.broadcast_to(block["scale"], x.shape)
        x = x + jnp.tanh(h @ block["up"]) @ block["down"]
    return x @ params["out"]


def convolution(x, kernel, **options):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def convolutional(params, x):
    """Two convolutions, the second in groups, pooling, then flattened: channels move in blocks."""
    x = jax.nn.gelu(convolution(x, params["first"]))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(convolution(x, params["second"], feature_group_count=2))
    return plus(jax.nn.relu(x.reshape(len(x), -1) @ params["dense"]) @ params["out"], params["b"])


def attention(params, x):
    """Heads, and the features inside them: queries' with keys', values' with the projection's."""
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, params[name]) for name in "qkv")
    scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
    return jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", scores, v), params["o"])


def split_heads(params, x):
    """The same with one matrix for each, so that an axis is heads x features."""
    q, k, v = ((x @ params[name]).reshape(*x.shape[:2], 2, 3) for name in "qkv")
    scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
    mixed = jnp.einsum("bhts,bshk->bthk", scores, v)
    return mixed.reshape(*x.shape[:2], 6) @ params["o"]


def recurrent(params, x):
    """A recurrent kernel moves on both sides; an embedding by its features only."""

    @jax.checkpoint
    def step(h, e):
        return jnp.tanh(h @ params["r"] + e), None

    embedded = jnp.swapaxes(params["e"][x], 0, 1)
    h, _ = lax.scan(step, jnp.zeros(embedded.shape[1:]), embedded)
    return h @ params["o"]


def scanned(params, x):
    """Stacked layers share one axis for all of them: the units of all layers move together."""
    step = lambda x, w: (jnp.sin(x @ w), None)
    x, _ = lax.scan(step, x @ params["into"], params["layers"])
    return lax.cond(jnp.sum(x) > 0, lambda y: y, lambda y: 2 * y, x) @ params["out"]


def pinned(params, x):
    """What fixes an order: a concatenation, a cumulative sum, a slice, an unknown primitive."""
    w = params["w"]
    a, b, c, d, e = (jnp.tanh(x @ w[name]) for name in "abcde")
    joined = jnp.concatenate([a, a], axis=1) @ params["joined"]
    rolled = jnp.cumsum(b, axis=1) + jnp.fft.rfft(d, axis=1).real[:, :1] @ jnp.ones((1, 4))
    sliced = c[:, 1:3] @ jnp.ones((2, 4)) + lax.top_k(e, 2)[0] @ jnp.ones((2, 4))
    return joined + rolled + sliced


X = normal(0, 5, 6)
MODELS = {
    "mlp": (
        mlp,
        mlp_params(1, 6, 7, 4, 3),
        X,
        {
            "0/b": ("0/b:0",),
            "0/w": (None, "0/b:0"),
            "1/b": ("1/b:0",),
            "1/w": ("0/b:0", "1/b:0"),
            "2/w": ("1/b:0", None),
        },
    ),
    "residual": (
        residual,
        {
            "blocks": [
                {"down": normal(i, 5, 4), "scale": normal(i, 4), "up": normal(i, 4, 5)}
                for i in range(2)
            ],
            "into": weight(5, 6, 4),
            "out": weight(6, 4, 2),
        },
        X,
        {
            **{
                f"blocks/{i}/{name}": axes
                for i in range(2)
                for name, axes in {
                    "down": (f"blocks/{i}/down:0", "blocks/0/down:1"),
                    "scale": ("blocks/0/down:1",),
                    "up": ("blocks/0/down:1", f"blocks/{i}/down:0"),
                }.items()
            },
            "into": (None, "blocks/0/down:1"),
            "out": ("blocks/0/down:1", None),
        },
    ),
    "convolutional": (
        convolutional,
        {
            "b": normal(0, 3),
            "dense": weight(1, 24, 5),
            "first": normal(2, 3, 3, 1, 4, scale=0.4),
            "out": weight(3, 5, 3),
            "second": normal(4, 3, 3, 2, 6, scale=0.4),
        },
        normal(1, 2, 4, 4, 1),
        {
            "dense": ((4, "dense:0", "dense:0#1"), "dense:1"),
            "first": (None, None, None, ("dense:0", "first:3")),
            "out": ("dense:1", None),
            "second": (None, None, "first:3", ("dense:0", "dense:0#1")),
        },
    ),
    "attention": (
        attention,
        {n: weight(i, 6, 2, 3) for i, n in enumerate("qkv")} | {"o": normal(9, 2, 3, 6)},
        normal(2, 2, 4, 6),
        {
            "k": (None, "k:1", "k:2"),
            "o": ("k:1", "o:1", None),
            "q": (None, "k:1", "k:2"),
            "v": (None, "k:1", "o:1"),
        },
    ),
    "split heads": (
        split_heads,
        {n: weight(i, 6, 6) for i, n in enumerate("qkvo")},
        normal(2, 2, 4, 6),
        {
            "k": (None, ("k:1", "k:1#1")),
            "o": (("k:1", "o:0"), None),
            "q": (None, ("k:1", "k:1#1")),
            "v": (None, ("k:1", "o:0")),
        },
    ),
    "recurrent": (
        recurrent,
        {"e": normal(0, 8, 4), "o": weight(1, 4, 2), "r": weight(2, 4, 4)},
        integers(0, 8, 3, 5),
        {"e": (None, "e:1"), "o": ("e:1", None), "r": ("e:1", "e:1")},
    ),
    "scanned": (
        scanned,
        {"into": weight(0, 6, 4), "layers": weight(1, 3, 4, 4), "out": weight(2, 4, 2)},
        X,
        {
            "into": (None, "into:1"),
            "layers": (None, "into:1", "into:1"),
            "out": ("into:1", None),
        },
    ),
    "pinned": (
        pinned,
        {"joined": weight(0, 8, 4), "w": {n: weight(i, 6, 4) for i, n in enumerate("abcde")}},
        X,
        {},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_do_not_notice_their_permutations(name):
    model, params, x, axes = MODELS[name]
    spec = curvature.infer_permutations(model, params, x)
    assert spec.axes() == axes
    moved = jax.jit(functools.partial(curvature.apply_permutation, spec))(shuffled(spec), params)
    if axes:
        gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), moved, params)
        assert max(jax.tree.leaves(gaps)) > 0.1
    both = jax.jit(lambda *several: [model(p, x) for p in several])(params, moved)
    np.testing.assert_allclose(*both, rtol=1e-4, atol=2e-5)


def test_flax_model_with_its_batch_statistics():
    """Channels carry along kernels, scales, and the running means and variances."""
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
            x = nn.Conv(6, (1, 1))(x) + nn.GroupNorm(2)(nn.Conv(6, (3, 3))(h))
            return nn.Dense(3)(nn.relu(x).mean((1, 2)))

    x = normal(0, 2, 4, 4, 2)
    start = jax.jit(Block().init)(jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: jnp.abs(normal(1, *leaf.shape)) + 0.1, start)
    spec = curvature.infer_permutations(Block().apply, variables, x)
    axes = spec.axes()
    channels = axes["batch_stats/BatchNorm_0/mean"]
    assert axes["params/Conv_0/kernel"][3:] == axes["params/BatchNorm_0/scale"] == channels
    assert axes["params/Conv_1/kernel"][3:] == axes["params/Conv_2/kernel"][3:]
    # Two groups that move as wholes, and the three channels in them.
    assert sorted(spec.sizes.values()) == [2, 3, 4]
    moved = curvature.apply_permutation(spec, shuffled(spec), variables)
    both = jax.jit(lambda *several: [Block().apply(v, x) for v in several])(variables, moved)
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-5)


def test_shapes_are_enough_and_loops_keep_what_they_carry():
    def model(params, x):
        carry = (x @ params["in"], params["w"])
        body = lambda c: (jnp.tanh(c[0] @ c[1]), c[1])
        h, _ = lax.while_loop(lambda c: jnp.sum(c[0]) < 0, body, carry)
        return jnp.argmax(h @ params["out"], axis=1)

    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    params = {"in": shape(6, 4), "out": shape(4, 3), "w": shape(4, 4)}
    spec = curvature.infer_permutations(model, params, shape(5, 6))
    assert spec.axes()["w"] == ("in:1", "in:1")
    assert spec.sizes == {"in:1": 4}
    assert hash(spec) == hash(curvature.infer_permutations(model, params, shape(5, 6)))
    assert jax.tree.leaves(spec) == []


def test_stated_spec_is_the_inferred_one():
    model, params, x, axes = MODELS["mlp"]
    inferred = curvature.infer_permutations(model, params, x)
    assert curvature.permutation_spec(params, axes) == inferred
    flat = {"w": jnp.arange(12.0).reshape(6, 2)}
    spec = curvature.permutation_spec(flat, {"w": ((3, "channel"), None)})
    moved = curvature.apply_permutation(spec, {"channel": jnp.array([1, 0])}, flat)["w"]
    assert moved[:, 0].tolist() == [2, 0, 6, 4, 10, 8]
    keep = curvature.apply_permutation(spec, spec.identity(), flat)["w"]
    np.testing.assert_array_equal(keep, flat["w"])


def test_permutation_is_a_linear_map_with_its_own_derivative():
    _, params, _, axes = MODELS["mlp"]
    spec = curvature.permutation_spec(params, axes)
    order = shuffled(spec)
    moved, pull = jax.vjp(lambda p: curvature.apply_permutation(spec, order, p), params)
    back = pull(moved)[0]  # the transpose of a permutation is its inverse
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("solver", ["scipy", "optax"])
def test_linear_assignment_is_the_best_permutation(solver, key):
    scores = jax.random.normal(key, (3, 4, 4))
    solve = functools.partial(curvature.linear_assignment, solver=solver)
    found = jax.jit(solve)(scores)
    best = [
        max(
            itertools.permutations(range(4)),
            key=lambda p, s=s: sum(s[i, j] for i, j in enumerate(p)),
        )
        for s in np.asarray(scores)
    ]
    assert found.tolist() == [list(p) for p in best]
    np.testing.assert_array_equal(jax.vmap(solve)(scores), found)
    assert solve(scores[0].at[0, 0].set(jnp.nan)).tolist() == [0, 1, 2, 3]
    grad = jax.grad(lambda s: jnp.sum(jnp.take_along_axis(s, solve(s)[:, None], 1)))(scores[0])
    np.testing.assert_array_equal(grad, jax.nn.one_hot(found[0], 4))


def test_bad_input():
    params = {"w": jnp.ones((4, 3))}
    spec = curvature.permutation_spec(params, {"w": (None, "units")})
    with pytest.raises(ValueError, match="the path 'v'"):
        curvature.permutation_spec(params, {"v": (None,)})
    with pytest.raises(ValueError, match="one entry for each axis of w"):
        curvature.permutation_spec(params, {"w": ("units",)})
    with pytest.raises(ValueError, match="'units' to have one size"):
        curvature.permutation_spec(params, {"w": ("units", "units")})
    with pytest.raises(ValueError, match="sizes that divide 4"):
        curvature.permutation_spec(params, {"w": ((3, "units"), None)})
    with pytest.raises(ValueError, match="at w got nothing"):
        curvature.apply_permutation(spec, {"units": jnp.arange(3)}, {"v": jnp.ones((4, 3))})
    with pytest.raises(ValueError, match=r"at w got \(4, 2\)"):
        curvature.apply_permutation(spec, {"units": jnp.arange(3)}, {"w": jnp.ones((4, 2))})
    with pytest.raises(ValueError, match="permutations named"):
        curvature.apply_permutation(spec, {}, params)
    with pytest.raises(ValueError, match=r"of shape \(3,\)"):
        curvature.apply_permutation(spec, {"units": jnp.arange(2)}, params)
    with pytest.raises(ValueError, match="square scores"):
        curvature.linear_assignment(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="solver"):
        curvature.linear_assignment(jnp.ones((2, 2)), solver="greedy")
