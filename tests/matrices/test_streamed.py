"""A streamed matrix returns what the recorded one returns, for any size of the micro-batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from tests.matrices import oracle
from tests.matrices.models import attention, dense, exotic, lookup


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_verbs_equal_vmap_grad(batch_size):
    oracle.assert_exact(dense.mlp(), batch_size=batch_size, read=oracle.verbs)


@pytest.mark.parametrize(
    "build",
    [
        attention.MODELS["transformer_scan_tied_remat"],
        lookup.embeddings,
        dense.two_arguments,
        dense.dropout,
        exotic.half_precision,
    ],
    ids=["transformer", "embeddings", "two_arguments", "dropout", "half_precision"],
)
def test_models(build):
    model = build()
    tolerance = 2e-2 if build is exotic.half_precision else 1e-5
    oracle.assert_exact(model, batch_size=2, tolerance=tolerance)


@pytest.fixture(scope="module")
def pair():
    model = dense.mlp(batch=5)
    return oracle.matrix(model), oracle.matrix(model, batch_size=2)


def same(a, b, tolerance=1e-5):
    oracle.assert_close(
        jax.tree.map(np.asarray, a), jax.tree.map(np.asarray, b), tolerance=tolerance
    )


def test_size(pair):
    G, S = pair
    assert len(S) == len(G) == 5
    assert S.shape == G.shape
    assert S.dtype == G.dtype
    assert S.T.shape == G.T.shape
    assert type(S.explain()) is type(G.explain())
    same(S.frobenius_norm(), G.frobenius_norm())


def test_chains_of_row_operations(pair):
    weights = np.array([1.0, -2.0, 0.0, 3.0, 0.5], np.float32)
    mask = np.array([True, True, False, True, True])

    def chain(G):
        last = G.select(lambda path: path.endswith("kernel")).scale(weights).clip(1.0).where(mask)
        return {
            "sum": last.sum(),
            "norms": last.norms(),
            "centered": last.centered().squared_norms(),
            "unit": last.normalize().scale(2.0).gram(),
            "mean": last.clip(0.5).mean(),
        }

    G, S = pair
    same(chain(S), chain(G))


def test_rows_taken(pair):
    G, S = pair
    same(S[3], G[3])
    for index in (slice(1, 4), np.array([4, 0, 4]), np.array([True, False, True, False, False])):
        scaled = [M.scale(np.arange(5.0)).clip(1.5)[index] for M in (S, G)]
        same(scaled[0].norms(), scaled[1].norms())
        same(scaled[0].sum(), scaled[1].sum())


def test_products_with_the_other_state(pair):
    G, S = pair
    for left, right in ((S, G), (G, S), (S, S)):
        same(left @ right[1:4].T, G @ G[1:4].T)
        same(left.cosine(right), G.cosine())


def test_weights(pair):
    G, S = pair
    weights = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    same(weights @ S, weights @ G)
    same(weights[0] @ S.scale(weights[1]), weights[0] @ G.scale(weights[1]))
    same(S.T @ weights[2], G.T @ weights[2])


def test_leaves(pair):
    G, S = pair
    assert list(S.by_leaf()) == list(G.by_leaf())
    for path, part in S.by_leaf().items():
        same(part.norms(), G.by_leaf()[path].norms())
    same(S.norms(by="leaf"), G.norms(by="leaf"))


def test_not_finite():
    model = dense.mlp(batch=5)
    params, (x, y) = model.args
    model = model._replace(args=(params, (x.at[2].set(jnp.nan), y)))
    S = oracle.matrix(model, batch_size=2)
    assert np.isnan(S.norms()).tolist() == [False, False, True, False, False]
    keep = np.array([True, True, False, True, True])
    wanted = oracle.matrix(dense.mlp(batch=5)).where(keep)
    same(S.where(keep).sum(), wanted.sum())
    same(S.clip(1.0, nonfinite="zero").mean(), wanted.clip(1.0).mean())


def test_losses_follow_the_rows():
    model = dense.mlp(batch=5)
    losses, S = gradkin.value_and_per_example_grads(model.loss, batch_size=2)(*model.args)
    wanted, _ = gradkin.value_and_per_example_grads(model.loss)(*model.args)
    same(losses, wanted)
    same(S[np.array([4, 1])].losses, np.asarray(wanted)[[4, 1]])


def test_nothing_is_computed_until_asked():
    calls = []

    def loss(params, x):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(params * x)

    gradkin.per_example_grads(loss, batch_size=2)(jnp.ones(3), jnp.ones((4, 3)))
    jax.effects_barrier()
    assert not calls


def test_memory_does_not_grow_with_the_batch():
    """Temporaries of a clipped sum at 64 and 1024 examples differ by less than the gradients."""
    model = dense.mlp(batch=4)

    def temporaries(num_examples):
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((num_examples, *x.shape[1:]), x.dtype), model.args[1]
        )
        transform = gradkin.per_example_grads(model.loss, batch_size=16)
        step = jax.jit(lambda p, b: transform(p, b).clip(1.0).sum())
        analysis: Any = step.lower(model.args[0], batch).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    small, large = temporaries(64), temporaries(1024)
    parameters = sum(x.size for x in jax.tree.leaves(model.args[0]))
    assert large - small < 1024 * 64  # bytes; one row is 4 * parameters
    assert large < 4 * parameters * 1024


@pytest.mark.parametrize(
    ("build", "passes"),
    [(dense.mlp, 1), (dense.mlp, 2), (attention.MODELS["transformer_scan_tied_remat"], 2)],
    ids=["mlp_one", "mlp_two", "transformer_two"],
)
def test_one_pass_or_two(build, passes):
    """Clipped, scaled and selected sums from stored factors or from weighted losses."""
    model = build()
    num_examples = len(model.args[1][0])
    weights = np.linspace(-1, 2, num_examples).astype(np.float32)

    @functools.partial(jax.jit, compiler_options=oracle.FAST)
    def read(args):
        G = oracle.matrix(model._replace(args=args))
        S = oracle.matrix(model._replace(args=args), batch_size=2, passes=passes)
        path = lambda text: "bias" not in text
        return [
            (M.clip(0.5).sum(), M.scale(weights).normalize().mean(), M.select(path).clip(1.0).sum())
            for M in (S, G)
        ]

    streamed, recorded = read(model.args)
    same(streamed, recorded)


@pytest.mark.parametrize("passes", [1, 2])
def test_gradient_of_a_clipped_sum(passes):
    model = dense.mlp(batch=5)

    def total(params, **options):
        G = oracle.matrix(model._replace(args=(params, model.args[1])), **options)
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(G.clip(0.5).sum()))

    run = lambda **options: jax.jit(jax.grad(lambda p: total(p, **options)))(model.args[0])
    same(run(batch_size=2, passes=passes), run(), 1e-4)


def test_a_million_examples():
    """Norms of a million rows in the memory of one micro-batch and the result."""
    transform = gradkin.per_example_grads(lambda w, x: jnp.vdot(w, x) ** 2 / 2, batch_size=4096)
    x = jnp.ones((1_000_000, 4)) * jnp.arange(1_000_000.0)[:, None] / 1e6
    norms = jax.jit(lambda w, x: transform(w, x).norms())
    compiled = norms.lower(jnp.ones(4), x).compile()
    analysis: Any = compiled.memory_analysis()
    assert analysis.temp_size_in_bytes < 4 * x.nbytes
    found = compiled(jnp.ones(4), x)
    wanted = 8 * (np.arange(1_000_000) / 1e6) ** 2
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-9)


def test_gradient_through_the_stream():
    model = dense.mlp(batch=5)

    def total(params, batch_size):
        called = model._replace(args=(params, model.args[1]))
        G = oracle.matrix(called, batch_size=batch_size)
        return jnp.sum(G.norms()) + jnp.sum(jnp.cos(G.gram()))

    recorded = jax.jit(lambda p: jax.grad(total)(p, None))(model.args[0])
    streamed = jax.jit(lambda p: jax.grad(total)(p, 2))(model.args[0])
    same(streamed, recorded, 1e-4)
