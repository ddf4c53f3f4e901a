"""The decoder: NumPy in float64, what positions and causality promise, adapters, rows of G."""

import importlib.util
import operator
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import models

nnx = pytest.importorskip("flax.nnx")

SIZES = {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 24, "max_length": 8}
V, RANK, ALPHA = 11, 8, 20


def made(seed=0, **options):
    """A decoder in pieces, its parameters from NumPy: none at zero or one, nothing to compile."""
    options = {**SIZES, "lora_rank": RANK, "lora_alpha": ALPHA, **options}
    new = nnx.eval_shape(lambda: models.Decoder(V, **options, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(new)
    rng = np.random.default_rng(seed)

    def numbers(path, leaf):
        drawn = rng.normal(size=leaf.shape)
        if "norm" in str(path):
            drawn = 1 + 0.2 * drawn
        elif "embedding" not in str(path):
            drawn = drawn * leaf.shape[-2] ** -0.5
        return jnp.asarray(drawn, leaf.dtype)

    return graph, jax.tree_util.tree_map_with_path(numbers, state)


def tokens_of(*shape):
    return jnp.asarray(np.random.default_rng(shape).integers(0, V, shape, np.int32))


@jax.jit
def logits_of(graph, state, tokens):
    return nnx.merge(graph, state)(tokens)


@pytest.fixture(scope="module")
def pieces():
    return made()


def numbers(state):
    """Nested dictionaries of arrays, in float64."""
    pure = nnx.to_pure_dict(state)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), pure)


def normal(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def turned(x):
    """Rotation by complex numbers."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
    return np.concatenate([z.real, z.imag], axis=-1)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def in_numpy(params, tokens, *, heads=2, lora=ALPHA / RANK):
    """One sequence, adapters merged into the kernels, one head and one query at a time."""

    def kernel(p):
        return p["kernel"] + (lora * p["lora_a"] @ p["lora_b"] if "lora_a" in p else 0)

    x = params["embedding"][tokens]
    for i in range(len(params["layers"]["norm1"])):
        layer = jax.tree.map(operator.itemgetter(i), params["layers"])
        h = normal(x, layer["norm1"])
        q, k, v = (np.reshape(h @ kernel(layer[n]), (len(x), heads, -1)) for n in "qkv")
        q, k, mixed = turned(q), turned(k), np.zeros_like(v)
        for head in range(heads):
            for t in range(len(x)):
                scores = k[: t + 1, head] @ q[t, head] / np.sqrt(q.shape[-1])
                mixed[t, head] = softmax(scores) @ v[: t + 1, head]
        x = x + mixed.reshape(x.shape) @ kernel(layer["o"])
        h = normal(x, layer["norm2"]) @ kernel(layer["up"])
        gelu = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + gelu @ kernel(layer["down"])
    return normal(x, params["norm"]) @ kernel(params["head"])


def test_equals_numpy_in_float64():
    """A scan over layers, whole sequences and adapters, against loops and merged kernels."""
    with jax.enable_x64(True):
        graph, state = made()
        tokens = tokens_of(2, 8)
        found = logits_of(graph, state, tokens)
        assert found.dtype == np.float64
        expected = [in_numpy(numbers(state), np.asarray(row)) for row in tokens]
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-10, atol=1e-12)


def test_the_future_is_not_seen(pieces):
    tokens = tokens_of(2, 8)
    before = logits_of(*pieces, tokens)
    after = logits_of(*pieces, tokens.at[:, 5].set((tokens[:, 5] + 1) % V))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before[:, 5:] - after[:, 5:]).max(-1) > 1e-4).all()


def test_rotation_sees_distances_only(key):
    q, k = jax.random.normal(key, (2, 5, 3, 4))
    turn = jax.jit(models.rotary_embedding)
    at = jnp.array([0.0, 1.0, 2.0, 5.0, 9.0])

    def inner(shift):
        return jnp.einsum("thd,shd->hts", turn(q, at + shift), turn(k, at + shift))

    np.testing.assert_allclose(inner(0), inner(17), rtol=1e-3, atol=1e-4)
    assert np.abs(inner(0) - jnp.einsum("thd,shd->hts", turn(q, at), turn(k, 2 * at))).max() > 0.1
    norms = lambda x: np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(norms(turn(q, at)), norms(q), rtol=1e-5)
    np.testing.assert_allclose(turn(q, np.arange(5)), turned(np.asarray(q)), rtol=1e-5, atol=1e-5)
    many = jax.vmap(turn, (0, None))(jnp.stack([q, k]), at)
    np.testing.assert_allclose(many, turn(jnp.stack([q, k]), at), rtol=1e-5, atol=1e-6)


def test_fresh_adapters_change_nothing_and_merge(pieces):
    graph, state = made(lora_rank=0)
    tokens = tokens_of(2, 8)

    @jax.jit
    def adapt(state):
        decoder = models.add_lora(nnx.merge(graph, state), RANK, alpha=ALPHA, rngs=nnx.Rngs(3))
        return nnx.split(decoder, nnx.LoRAParam, ...)

    adapted, lora, rest = adapt(state)
    assert len(jax.tree.leaves(lora)) == 8
    for new, old in zip(jax.tree.leaves(rest), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(new, old)
    found = logits_of(adapted, nnx.merge_state(lora, rest), tokens)
    np.testing.assert_allclose(found, logits_of(graph, state, tokens), rtol=1e-6, atol=1e-6)

    # Trained adapters, multiplied out into the kernels of a decoder without.
    params = nnx.to_pure_dict(pieces[1])
    for name in "qkvo":
        p = params["layers"][name]
        p["kernel"] += ALPHA / RANK * (p.pop("lora_a") @ p.pop("lora_b"))
    nnx.replace_by_pure_dict(state, params)
    np.testing.assert_allclose(
        logits_of(graph, state, tokens), logits_of(*pieces, tokens), rtol=1e-4, atol=1e-5
    )


def of_example(graph, rest):
    def loss(params, example):
        tokens, mask = example
        return models.token_loss(nnx.merge(graph, params, rest)(tokens), tokens, mask)

    return loss


def test_rows_of_gradients_stay_factored(pieces):
    graph, params = pieces
    loss = of_example(graph, nnx.State({}))
    batch = tokens_of(3, 5), jnp.arange(15).reshape(3, 5) % 4 > 0

    @jax.jit
    def both(params):
        G = gradkin.per_example_grads(loss)(params, batch)
        rows = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
        norms = jax.tree.map(lambda x: jnp.sqrt(jnp.sum(x**2, range(1, x.ndim))), rows)
        return G, G.norms(by="leaf"), norms

    G, found, expected = both(params)
    routes = {row.path: row.route for row in G.explain().rows}
    names = [f"layers/{n}/lora_{x}" for n in "qkvo" for x in "ab"]
    names += [f"layers/{n}/kernel" for n in (*"qkvo", "up", "down")]
    names += ["embedding", "head/kernel"]
    assert {path for path, route in routes.items() if route == "factors"} == set(names)
    assert routes.keys() - set(names) == {"norm", "layers/norm1", "layers/norm2"}
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(compare, found, expected)


def test_bfloat16(pieces):
    """Half precision inside, float32 logits and gradients."""
    half, params = made(dtype=jnp.bfloat16)
    tokens = tokens_of(2, 8)
    found, exact = logits_of(half, params, tokens), logits_of(*pieces, tokens)
    assert found.dtype == np.float32
    assert 1e-4 < np.abs(found - exact).max() < 0.3
    loss = of_example(half, nnx.State({}))
    gradient = jax.eval_shape(jax.grad(loss), params, (tokens[0], tokens[0] > 0))
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {np.dtype(np.float32)}
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)  # parameters may be half, too
    assert jax.eval_shape(logits_of, pieces[0], cast, tokens).dtype == np.float32


def test_seeds_as_one_program_and_batches(pieces):
    graph, first = pieces
    second = made(1)[1]
    both = jax.tree.map(lambda *x: jnp.stack(x), first, second)
    tokens = tokens_of(2, 2, 8)
    of_both = jax.vmap(logits_of, (None, 0, None))(graph, both, tokens)
    for found, state in zip(of_both, (first, second), strict=True):
        expected = logits_of(graph, state, tokens[1])
        np.testing.assert_allclose(found[1], expected, rtol=1e-4, atol=1e-5)
    assert jax.eval_shape(logits_of, graph, first, tokens[0, 0]).shape == (8, V)


def test_sharded(pieces, mesh):
    tokens = tokens_of(8, 8)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    found = logits_of(*pieces, jax.device_put(tokens, rows))
    assert found.sharding.is_equivalent_to(rows, found.ndim)
    np.testing.assert_allclose(found[2:4], logits_of(*pieces, tokens[2:4]), rtol=1e-4, atol=1e-5)


def test_tokens_that_are_none_give_nan(pieces):
    for wrong in (-1, V):
        found = logits_of(*pieces, tokens_of(2, 8).at[0, 3].set(wrong))
        assert np.isnan(found[0]).all()
        assert np.isfinite(found[1]).all()


def log_softmax(x):
    return np.log(softmax(np.asarray(x, np.float64)))


@jax.jit
def loss_and_gradient(logits, tokens, mask):
    return jax.value_and_grad(lambda x: jnp.sum(models.token_loss(x, tokens, mask)))(logits)


def test_loss_counts_the_tokens_of_the_mask(key):
    logits, tokens = jax.random.normal(key, (2, 6, V)), tokens_of(2, 6)
    mask = np.array([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 0]], bool)
    found = jax.jit(models.token_loss)(logits, tokens, mask)
    log, tokens = log_softmax(logits), np.asarray(tokens)
    each = lambda b, *places: -np.mean([log[b, t - 1, tokens[b, t]] for t in places])
    expected = np.array([each(0, 2, 3, 5), each(1, 4)])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    total, gradient = loss_and_gradient(logits, tokens, mask)
    np.testing.assert_allclose(total, sum(found), rtol=1e-5)
    one_hot = np.eye(V)[tokens[:, 1:]]
    weights = mask[:, 1:, None] / mask[:, 1:].sum(1)[:, None, None]
    expected = (np.exp(log[:, :-1]) - one_hot) * weights
    np.testing.assert_allclose(gradient[:, :-1], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, -1], 0)


def test_loss_of_half_precision():
    """Summed and counted in float32; the gradient is as narrow as the logits."""
    logits, tokens = jnp.zeros((600, 4), jnp.bfloat16), np.arange(600) % 4
    run = jax.value_and_grad(lambda x: models.token_loss(x, tokens, tokens >= 0))
    found, gradient = jax.jit(run)(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.log(4), rtol=1e-6)
    assert gradient.dtype == jnp.bfloat16


def test_loss_of_nothing_is_zero(key):
    """Not even a NaN is seen where the mask does not look."""
    logits, tokens = jnp.full((2, 6, V), jnp.nan).at[1].set(0.0), tokens_of(2, 6)
    mask = np.zeros((2, 6), bool)
    mask[1, 1] = mask[0, 0] = True
    total, gradient = loss_and_gradient(logits.at[1, 2].set(jnp.nan), tokens, mask)
    np.testing.assert_allclose(total, np.log(V), rtol=1e-6)
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.isfinite(gradient).all()
    for wrong in (-1, V):  # as padding, they are ignored; as targets, not
        padded = tokens.at[:, 2:].set(wrong)
        np.testing.assert_allclose(loss_and_gradient(logits, padded, mask)[0], total)
        assert np.isnan(loss_and_gradient(logits, tokens.at[1, 1].set(wrong), mask)[0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 12, "num_heads": 4}, r"2 num_heads to divide width, got num_heads=4 and wid"),
        ({"depth": 0}, r"depth > 0, got depth=0"),
        ({"lora_rank": -1}, r"lora_rank >= 0, got lora_rank=-1"),
        ({"mlp_width": 0}, r"mlp_width > 0"),
    ],
)
def test_bad_sizes(options, match):
    with pytest.raises(ValueError, match=match):
        models.Decoder(V, **{**SIZES, **options}, rngs=nnx.Rngs(0))


def test_bad_input(pieces):
    decoder = nnx.merge(*pieces)
    with pytest.raises(ValueError, match=r"T from 1 to max_length=8, got tokens.shape=\(9,\)"):
        decoder(jnp.zeros(9, int))
    with pytest.raises(ValueError, match=r"got tokens.shape=\(2, 0\)"):
        decoder(jnp.zeros((2, 0), int))
    with pytest.raises(TypeError, match="integer tokens, got dtype float32"):
        decoder(jnp.zeros(3))
    with pytest.raises(ValueError, match="without adapters, got decoder.lora_rank=8"):
        models.add_lora(decoder, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="rank > 0, got rank=0"):
        models.add_lora(decoder, 0, rngs=nnx.Rngs(0))


def test_bad_loss_and_rotation():
    logits, tokens = jnp.zeros((4, V)), tokens_of(4)
    with pytest.raises(ValueError, match=r"logits.shape=\(4, 11\), tokens.shape=\(3,\)"):
        models.token_loss(logits, tokens[1:], jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"mask.shape=\(3,\)"):
        models.token_loss(logits, tokens, jnp.ones(3, bool))
    with pytest.raises(TypeError, match="boolean mask, got mask of dtype float32"):
        models.token_loss(logits, tokens, jnp.ones(4))
    with pytest.raises(TypeError, match="integer tokens, got dtype float32"):
        models.token_loss(logits, jnp.full(4, 1.7), jnp.ones(4, bool))
    with pytest.raises(ValueError, match=r"even number of channels, got x.shape=\(2, 1, 3\)"):
        models.rotary_embedding(jnp.zeros((2, 1, 3)), np.arange(2))
    with pytest.raises(ValueError, match=r"shape \(2,\), got positions.shape=\(3,\)"):
        models.rotary_embedding(jnp.zeros((2, 1, 4)), np.arange(3))
    with pytest.raises(ValueError, match="base > 0, got base=0"):
        models.rotary_embedding(jnp.zeros((2, 1, 4)), np.arange(2), base=0.0)


def test_says_what_to_install(monkeypatch):
    spec = importlib.util.find_spec("gradkin.models.decoder")
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(ImportError, match=r"pip install 'gradkin\[nn\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
