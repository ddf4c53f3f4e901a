"""The transformer, its query-only route and its NNX module agree."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import icl


def setup(num_layers, num_heads, width=5, tokens=7):
    key_weights, key_tokens = jax.random.split(jax.random.key(3))
    weights = icl.init_attention(
        key_weights, width=width, num_heads=num_heads, num_layers=num_layers, variance=0.3
    )
    return weights, jax.random.normal(key_tokens, (tokens, width))


@pytest.mark.parametrize(
    ("softmax", "own", "applied"),
    [
        ("none", 1, 1),
        ("none", 1, 2),
        ("none", 3, 3),
        ("none", 1, 4),
        ("first", 1, 3),
        ("first", 3, 3),
        ("all", 1, 1),
        ("all", 3, 3),
    ],
)
def test_query_route_agrees_with_all_tokens(softmax, own, applied):
    weights, tokens = setup(own, 2)
    options = {"num_layers": applied, "softmax": softmax, "damping": 0.7, "num_context": 5}
    full = icl.transformer(weights, tokens, **options)
    fast = icl.predict(weights, tokens, num_outputs=2, **options)
    assert full.shape == (applied + 1, 7, 5)
    np.testing.assert_allclose(fast, -full[-1, -1, -2:], rtol=2e-4, atol=1e-5)


def test_a_layer_agrees_with_sums_written_out():
    weights, tokens = setup(1, 2)
    layer = jax.tree.map(lambda w: np.asarray(w[0]), weights)
    for softmax in (False, True):
        expected = np.zeros((7, 5))
        for head in range(2):
            q, k, v = (np.asarray(tokens) @ m[head] for m in layer[:3])
            scores = q @ k[:6].T
            if softmax:
                scores = np.exp(scores / np.sqrt(5))
                scores = scores / scores.sum(1, keepdims=True)
            expected += scores @ v[:6] @ layer.output[head]
        found = icl.attend(jax.tree.map(jnp.asarray, layer), tokens, tokens[:6], softmax=softmax)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_updates_and_clip_are_restricted():
    weights, tokens = setup(1, 1)
    states = icl.transformer(weights, tokens, num_layers=2, num_outputs=2)
    np.testing.assert_array_equal(states[-1, :, :3], tokens[:, :3])
    assert jnp.abs(states[-1, :, 3:] - tokens[:, 3:]).max() > 1e-3
    assert jnp.abs(icl.transformer(weights, 9 * tokens, clip=0.5)[-1]).max() == 0.5


def test_the_query_token_is_not_read():
    weights, tokens = setup(2, 2)
    other = tokens.at[-1].set(7.0)
    states = icl.transformer(weights, jnp.stack([tokens, other])[0])
    moved = icl.transformer(weights, other)
    np.testing.assert_array_equal(states[:, :-1], moved[:, :-1])


def test_scores_see_the_order_only_through_the_tokens():
    weights, tokens = setup(2, 2)
    order = jnp.array([3, 1, 0, 5, 4, 2, 6])
    np.testing.assert_allclose(
        icl.predict(weights, tokens[order]), icl.predict(weights, tokens), rtol=1e-4
    )


def test_batches_shard(mesh):
    weights, _ = setup(2, 1)
    batch = jax.random.normal(jax.random.key(0), (16, 7, 5))
    predict = jax.jit(jax.vmap(functools.partial(icl.predict, weights)))
    placed = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    found = predict(placed)
    assert found.sharding.spec == PartitionSpec("data")
    np.testing.assert_allclose(found, predict(batch), rtol=1e-5)


def test_initial_variance():
    weights = icl.init_attention(jax.random.key(0), width=40, num_heads=4, variance=0.002)
    for w, fan_in in zip(weights, (40, 40, 40, 160)):
        assert float(w.std()) == pytest.approx((0.002 / fan_in) ** 0.5, rel=0.03)
        assert float(jnp.abs(w).max()) <= 2 * (0.002 / fan_in) ** 0.5 / 0.8796 + 1e-6


def test_nnx_module_agrees_and_trains():
    from flax import nnx

    weights, _ = setup(1, 2)
    batch = jax.random.normal(jax.random.key(1), (4, 7, 5))
    full = icl.nnx_transformer(weights, num_layers=2, softmax="first", full=True)
    model = icl.nnx_transformer(weights, num_layers=2, softmax="first")
    np.testing.assert_allclose(full(batch), model(batch), rtol=1e-4, atol=1e-6)
    expected = jax.vmap(lambda t: icl.predict(weights, t, num_layers=2, softmax="first"))(batch)
    np.testing.assert_allclose(model(batch), expected, rtol=1e-4, atol=1e-6)
    grads = nnx.grad(lambda m: (m(batch) ** 2).sum())(model)
    pure = jax.grad(
        lambda w: (
            jax.vmap(lambda t: icl.predict(w, t, num_layers=2, softmax="first"))(batch) ** 2
        ).sum()
    )(weights)
    np.testing.assert_allclose(grads.query[...], pure.query, rtol=1e-3, atol=1e-5)
    assert type(model.weights()) is icl.AttentionWeights


def test_importing_the_package_does_not_import_flax():
    code = "import sys, gradkin.icl; sys.exit('flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bad_inputs():
    weights, tokens = setup(2, 1)
    with pytest.raises(ValueError, match="num_layers"):
        icl.predict(weights, tokens, num_layers=3)
    with pytest.raises(ValueError, match="num_context"):
        icl.transformer(weights, tokens, num_context=8)
    with pytest.raises(ValueError, match="softmax"):
        icl.nnx_transformer(weights, softmax="last")
    with pytest.raises(ValueError, match="4 axes"):
        icl.predict(jax.tree.map(lambda w: w[0], weights), tokens)
    with pytest.raises(ValueError, match="key_size > 0"):
        icl.init_attention(jax.random.key(0), width=3, key_size=0)
