"""Sketches: equal to a projection of the rows, unbiased, and the same however gradients lie."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import gradients
from gradkin.gradients.kronecker_sketch import plan_of
from gradkin.gradients.sketches import hadamard
from tests.matrices import oracle, zoo
from tests.matrices.models.model import Model, integers, normal

SKETCHES = {
    "rademacher": gradients.RademacherSketch,
    "gaussian": gradients.GaussianSketch,
    "hadamard": gradients.HadamardSketch,
    "count": gradients.CountSketch,
    "sparse": functools.partial(gradients.CountSketch, nonzeros=3),
    "kronecker": gradients.KroneckerSketch,
    "tensor": gradients.TensorSketch,
}
# Variance of an inner product times k, at most, for unit vectors; for the Kronecker sketch by the
# bound (1 + 2 / p) (1 + 2 / q) of its rank-one case.
SPREAD = dict.fromkeys(SKETCHES, 2.0) | {"tensor": 11.0, "kronecker": 20.0}


def mlp_loss(params, example):
    x, y = example
    x = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"])
    return jnp.sum((x @ params["out"] - y) ** 2)


@pytest.fixture
def problem(key):
    keys = jax.random.split(key, 4)
    params = {
        "in": {"kernel": jax.random.normal(keys[0], (12, 10)), "bias": jnp.full(10, 0.1)},
        "out": jax.random.normal(keys[1], (10, 3)),
    }
    return params, (jax.random.normal(keys[2], (16, 12)), jax.random.normal(keys[3], (16, 3)))


def assert_close(found, wanted, tolerance=1e-5):
    bound = tolerance * float(np.max(np.abs(wanted)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound)


def layered_loss(params, ids):
    """Rows that are looked up, layers stacked by a scan, a kernel of several heads."""
    x = params["table"][ids]
    x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, params["layers"])
    return jnp.sum(jnp.tanh(jnp.einsum("td,dhk->thk", x, params["heads"])) ** 2)


def layered():
    shapes = {"table": (11, 12), "layers": (3, 12, 12), "heads": (12, 3, 4)}
    params = {name: normal(i, *s, scale=0.4) for i, (name, s) in enumerate(shapes.items())}
    return Model(layered_loss, (params, integers(3, 11, 5, 4)))


@pytest.mark.parametrize("name", ["layered", "conv_2d_same"])
def test_equals_the_projection_of_the_rows(name):
    """Whatever the gradients are kept as: products, stacked products, looked-up rows, sums."""
    model = layered() if name == "layered" else zoo.PLAIN[name]()
    kinds = tuple(SKETCHES) if name == "layered" else ("count", "kronecker", "tensor")

    def both(args, key):
        called = model._replace(args=args)
        G = oracle.matrix(called, route="factors")
        dense = oracle.rows(called)
        sketches = [SKETCHES[kind](key, 16) for kind in kinds]
        return [(G.sketch(s), gradients.project_rows(s, dense)) for s in sketches]

    results = jax.jit(both, compiler_options=oracle.FAST)(model.args, jax.random.key(0))
    for found, wanted in results:
        assert wanted.shape[1] == 16
        assert np.all(np.any(np.asarray(wanted) != 0, axis=1))
        assert_close(found, wanted, 1e-4)


@pytest.mark.parametrize("name", SKETCHES)
def test_inner_products_are_unbiased(name):
    numbers = np.random.default_rng(0)
    shapes = {"a": (6, 5), "b": (7,), "c": (3, 2, 5), "d": ()}
    draw = lambda: {
        k: jnp.asarray(numbers.normal(size=(1, *s)), jnp.float32) for k, s in shapes.items()
    }
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    g = draw()
    h = jax.tree.map(lambda x, y: x + y, g, draw())
    size, count = 16, 4000

    def products(key):
        found = []
        for combine in ("sum", "concat"):
            s = SKETCHES[name](key, size, combine=combine)
            (a,), (b,) = (gradients.project_rows(s, x) for x in (g, h))
            found.append(jnp.vdot(a, b))
        return found

    wanted = flat(g) @ flat(h)
    scale = np.sum(flat(g) ** 2) * np.sum(flat(h) ** 2)
    for values in jax.jit(jax.vmap(products))(jax.random.split(jax.random.key(1), count)):
        values = np.asarray(values, np.float64)
        assert abs(values.mean() - wanted) < 4 * values.std() / math.sqrt(count)
        assert values.var() < 1.15 * SPREAD[name] * scale / size


def test_same_sketch_however_the_gradients_lie(problem):
    """Streamed, selected, weighted, clipped, taken and centred rows are sketched alike."""
    weights = np.linspace(-1, 1, 16, dtype=np.float32)

    @jax.jit
    def read(params, batch):
        s, joined = (
            gradients.KroneckerSketch(jax.random.key(2), 32, combine=combine)
            for combine in ("sum", "concat")
        )
        G = gradkin.per_example_grads(mlp_loss)(params, batch)
        S = gradkin.per_example_grads(mlp_loss, batch_size=5)(params, batch)
        parts = [part.sketch(s) for part in G.by_leaf().values()]
        dense = jax.vmap(jax.grad(mlp_loss), in_axes=(None, 0))(params, batch)
        rows = gradients.project_rows(s, dense)
        clip = jnp.minimum(1, 1 / G.norms())[:, None]
        return {
            "streamed": (S.sketch(s), rows),
            "parts": (sum(parts[1:], start=parts[0]), rows),
            "joined": (G.sketch(joined), jnp.concatenate(parts, axis=1)),
            "weighted": (G.scale(weights).sketch(s), rows * weights[:, None]),
            "clipped": (S.clip(1.0).sketch(s), rows * clip),
            "taken": (G[np.array([3, 5])].sketch(s), rows[np.array([3, 5])]),
            "centred": (G.centered().sketch(s), rows - rows.mean(0, keepdims=True)),
        }

    for found, wanted in read(*problem).values():
        assert_close(found, wanted, 1e-4)


def test_masked_rows_are_zero_even_if_nan(problem):
    params, (x, y) = problem
    x = x.at[2].set(jnp.nan)
    G = gradkin.per_example_grads(mlp_loss)(params, (x, y))
    for make in (gradients.HadamardSketch, gradients.TensorSketch):
        features = G.sketch(make(jax.random.key(0), 8))
        assert np.isnan(features[2]).any()
        assert np.isfinite(np.delete(np.asarray(features), 2, axis=0)).all()
        masked = G.where(np.arange(16) != 2).sketch(make(jax.random.key(0), 8))
        np.testing.assert_array_equal(masked[2], 0)


def test_sharded(problem, mesh):
    kinds = ("rademacher", "hadamard", "kronecker", "tensor")

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def read(kinds, batch_size, params, batch):
        G = gradkin.per_example_grads(mlp_loss, batch_size=batch_size)(params, batch)
        return [G.sketch(SKETCHES[kind](jax.random.key(3), 16)) for kind in kinds]

    params, batch = problem
    split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    one = read(kinds, None, params, batch)
    for batch_size in (None, 8):
        for found, wanted in zip(read(kinds, batch_size, everywhere, split), one, strict=True):
            assert len(found.devices()) == 8
            assert_close(np.asarray(found), np.asarray(wanted))
    # XLA cannot split a Fourier transform; all else stays where it is.
    text = read.lower(kinds[:-1], None, everywhere, split).compile().as_text() or ""
    assert "all-gather" not in text, "examples were collected"


def test_signs_in_blocks():
    """A parameter longer than a block: entries are +-1 / sqrt(k), balanced, no two rows alike."""
    length, size = 300, 8192
    s = gradients.RademacherSketch(jax.random.key(0), size)
    matrix = np.asarray(gradients.project_rows(s, jnp.eye(length))) * math.sqrt(size)
    np.testing.assert_allclose(np.abs(matrix), 1, rtol=1e-6)
    gram = matrix @ matrix.T / size - np.eye(length)
    # The largest of 45,000 means of 8,192 signs.
    assert np.abs(gram).max() < 6 / math.sqrt(size)
    assert abs(matrix.mean()) < 5 / math.sqrt(length * size)


def test_hadamard_is_the_matrix_and_exact_where_all_of_it_is_taken():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 256)), jnp.float32)
    wanted = np.asarray(x) @ scipy.linalg.hadamard(256)
    np.testing.assert_allclose(hadamard(x), wanted, rtol=1e-4, atol=1e-4)
    features = gradients.project_rows(gradients.HadamardSketch(jax.random.key(1), 512), x)
    np.testing.assert_allclose(features @ features.T, x @ x.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "plan"),
    [
        ((100, 80), (1, 100, 80, 8, 8)),
        ((32, 4, 8), (1, 32, 32, 8, 8)),  # one side of attention's heads
        ((3, 3, 16, 32), (3, 144, 32, 8, 8)),  # a convolution
        ((1000, 4), (1, 1000, 4, 16, 4)),  # a side below sqrt(k) is kept whole
        ((4, 1000), (1, 4, 1000, 4, 16)),
        ((8, 8), None),  # no more numbers than the projection has
        ((1, 500), None),
        ((500,), None),
        ((), None),
    ],
)
def test_how_a_parameter_becomes_a_matrix(shape, plan):
    assert plan_of(shape, 64) == plan


def test_a_side_kept_whole_loses_nothing():
    """Rank-one gradients that differ only along the short side keep their cosine exactly."""
    a = np.random.default_rng(0).normal(size=50).astype(np.float32)
    b = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
    s = gradients.KroneckerSketch(jax.random.key(0), 64)
    rows = jnp.asarray(a[None, :, None] * b[:, None, :])
    x, y = np.asarray(gradients.project_rows(s, rows), np.float64)
    cosine = x @ y / np.sqrt(x @ x * (y @ y))
    wanted = b[0] @ b[1] / np.sqrt(b[0] @ b[0] * (b[1] @ b[1]))
    np.testing.assert_allclose(cosine, wanted, rtol=1e-4)


def test_dtypes(problem):
    params, batch = jax.tree.map(lambda x: x.astype(jnp.bfloat16), problem)
    features = gradkin.per_example_grads(mlp_loss)(params, batch).sketch(
        gradients.KroneckerSketch(jax.random.key(0), 16)
    )
    assert features.dtype == jnp.float32
    with jax.enable_x64(True):
        params, batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), problem)
        s = gradients.TensorSketch(jax.random.key(0), 16)
        found = gradkin.per_example_grads(mlp_loss)(params, batch).sketch(s)
        assert found.dtype == jnp.float64
        dense = jax.vmap(jax.grad(mlp_loss), in_axes=(None, 0))(params, batch)
        np.testing.assert_allclose(found, gradients.project_rows(s, dense), rtol=1e-11, atol=1e-11)


def test_bad_input(problem):
    key = jax.random.key(0)
    G = gradkin.per_example_grads(mlp_loss)(*problem)
    with pytest.raises(ValueError, match="size=0"):
        gradients.RademacherSketch(key, 0)
    with pytest.raises(ValueError, match="combine='mean'"):
        gradients.TensorSketch(key, 8, combine="mean")
    with pytest.raises(ValueError, match="nonzeros"):
        gradients.CountSketch(key, 8, nonzeros=0)
    with pytest.raises(TypeError, match="Expected a sketch"):
        G.sketch(8)
    with pytest.raises(TypeError, match="Expected a sketch"):
        gradients.project_rows(key, jnp.ones((2, 3)))
    s = gradients.RademacherSketch(key, 8)
    with pytest.raises(ValueError, match="same number of examples"):
        gradients.project_rows(s, {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))})
    with pytest.raises(TypeError, match="real gradients, got complex64"):
        gradients.project_rows(s, jnp.ones((2, 3), jnp.complex64))
