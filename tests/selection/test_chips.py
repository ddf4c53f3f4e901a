"""CHIPS: automatic derivatives, limits, rotations, sketches, ranges, devices, bad input."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import gradients, selection

SIZE, WIDTH, PAIRS = 6, 6, 24  # of a batch, of features and embeddings, of a pool


@functools.partial(jax.jit, static_argnames="pairs")
def features(heads, images, texts, groups, pairs=False):
    kind = "pairs" if pairs else "aggregate"
    return selection.pair_features(
        heads, images, texts, batch_size=SIZE, groups=groups, negative_moment=kind
    )


@jax.jit
def score(pool, target, alpha, damping, beta):
    return selection.chips(pool, target, alpha=alpha, damping=damping, beta=beta)


align = jax.jit(selection.newton_alignment)
ALONE = np.arange(PAIRS, dtype=np.int32)  # groups of one pair


def heads_of(*leaves):
    return selection.EndpointHeads(*map(jnp.asarray, leaves))


def problem(seed, size=PAIRS, *, dtype: Any = np.float32):
    """Heads, images, texts; captions that say something of their images."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(dtype)
    images = normal(size, WIDTH)
    texts = images @ normal(WIDTH, WIDTH) + 2 * normal(size, WIDTH)
    heads = heads_of(normal(WIDTH, WIDTH), normal(WIDTH, WIDTH), np.asarray(1.3, dtype))
    return heads, images, texts


def flat(tree):
    """Gradients of ``[B, ...]`` at each leaf as rows, the temperature last."""
    return np.concatenate([np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(tree)], axis=1)


def logits_of(heads, images, texts, xp=jnp):
    """The logits, written plainly."""
    image, text, log_scale = heads
    x, y = images @ image, texts @ text
    x, y = (z / xp.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    return xp.exp(log_scale) * (x @ y.T)


def losses_of(logits, xp=jnp):
    rows, columns = (xp.log(xp.sum(xp.exp(logits), axis=axis)) for axis in (1, 0))
    return (rows + columns) / 2 - xp.diagonal(logits)


@pytest.fixture(scope="module")
def exact():
    """Found and expected in float64, of a batch in which two pairs do not contrast."""
    counted = np.ones((SIZE, SIZE), bool)
    counted[1, 4] = counted[4, 1] = False

    @jax.jit
    def run(heads, images, texts):
        of = lambda h: jnp.where(counted, logits_of(h, images, texts), -jnp.inf)
        negatives = counted & ~np.eye(SIZE, dtype=bool)
        groups = np.array([0, 1, 2, 3, 1, 5])
        return {
            "split": selection.info_nce_gradients(heads, images, texts, negatives=negatives),
            "losses": selection.info_nce(heads, images, texts, negatives=counted),
            "expected": losses_of(of(heads)),
            "gradients": jax.jacrev(lambda h: losses_of(of(h)))(heads),
            "logits": of(heads),
            "of_logits": jax.jacrev(lambda h: logits_of(h, images, texts))(heads),
            "features": features(heads, images, texts, groups),
            "pairs": features(heads, images, texts, groups, pairs=True).negative_moment,
        }

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, run(*problem(3, SIZE, dtype=np.float64)))


def test_parts_add_up_to_the_gradient(exact):
    both = jax.tree.map(np.add, *exact["split"])
    np.testing.assert_allclose(flat(both), flat(exact["gradients"]), atol=1e-8, rtol=0)
    np.testing.assert_allclose(exact["losses"], exact["expected"], atol=1e-12, rtol=0)


def test_each_part_is_its_sum_over_similarities(exact):
    powers = np.exp(exact["logits"])
    p, q = (powers / powers.sum(axis, keepdims=True) for axis in (1, 0))
    rows = [jax.tree.map(lambda x, i=i: x[i], exact["of_logits"]) for i in range(SIZE)]
    of_logits = np.stack([flat(row) for row in rows])  # [i, j, d]
    positive, negative = (np.zeros((SIZE, of_logits.shape[2])) for _ in range(2))
    pairs = np.zeros((of_logits.shape[2],) * 2)
    for i in range(SIZE):
        positive[i] = -((1 - p[i, i]) + (1 - q[i, i])) / 2 * of_logits[i, i]
        for j in set(range(SIZE)) - {i}:
            negative[i] += (p[i, j] * of_logits[i, j] + q[j, i] * of_logits[j, i]) / 2
            weight = (p[i, j] + q[i, j]) / 2 / SIZE
            pairs += weight * np.outer(of_logits[i, j], of_logits[i, j])
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
    close(flat(exact["split"].positive), positive)
    close(flat(exact["split"].negative), negative)
    found = exact["features"]
    close(found.gradients, positive + negative)
    close(found.positive_moment, positive.T @ positive / SIZE)
    close(found.negative_moment, negative.T @ negative / SIZE)
    close(exact["pairs"], pairs)
    close(found.mismatch, 1 - (np.diagonal(p) + np.diagonal(q)) / 2)
    cosines = found.images @ found.texts.T
    others = np.where(np.eye(SIZE, dtype=bool) | (powers == 0), -np.inf, cosines)
    close(found.margin, np.diagonal(cosines) - np.maximum(others.max(0), others.max(1)))
    close(np.linalg.norm(found.images, axis=1), 1)


def test_limits_and_rotations():
    pool = jax.tree.map(np.asarray, features(*problem(0), ALONE))
    k = pool.gradients.shape[1]
    wanted = pool.gradients[:5].mean(0)
    M = (pool.positive_moment + pool.negative_moment) / 2
    plain = pool.gradients @ wanted
    # Of large damping the inverse is a number: the order is that of inner products, TracIn's.
    found = np.asarray(align(pool.gradients, wanted, M, damping=1e6))
    np.testing.assert_allclose(1e6 * np.trace(M) / k * found, plain, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.argsort(found), np.argsort(plain))
    found = align(pool.gradients, wanted, M, damping=0.1)
    shifted = M.astype(np.float64) + 0.1 * np.trace(M) / k * np.eye(k)
    solved = pool.gradients @ np.linalg.solve(shifted, wanted)
    bound = 1e-4 * np.abs(solved).max()
    np.testing.assert_allclose(found, solved, rtol=1e-3, atol=bound)
    # Any orthogonal sketch of full size is exact.
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(k, k)))[0].astype(np.float32)
    turned = align(pool.gradients @ Q, wanted @ Q, Q.T @ M @ Q, damping=0.1)
    np.testing.assert_allclose(turned, found, rtol=1e-3, atol=bound)
    zero = align(pool.gradients, wanted, np.zeros_like(M), damping=0.1)
    np.testing.assert_allclose(zero, plain, rtol=1e-5, atol=1e-6)


def test_sketches_keep_inner_products(key):
    size, trials = 32, jax.random.split(key, 400)
    rows = np.random.default_rng(2).normal(size=(2, 73)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def product(key):
        u = gradients.project_rows(gradients.RademacherSketch(key, size), rows)
        return u[0] @ u[1]

    found, expected = np.asarray(product(trials)), rows[0] @ rows[1]
    assert abs(found.mean() - expected) < 4 * found.std() / len(trials) ** 0.5
    squares = rows**2
    variance = (np.prod(squares.sum(1)) + expected**2 - 2 * squares[0] @ squares[1]) / size
    assert 0.7 < found.var() / variance < 1.3


def test_ranges_signs_and_order():
    heads, images, texts = problem(4)
    pool, target = (features(heads, *x, ALONE) for x in ((images, texts), problem(5)[1:]))
    scores = score(pool, target, 0.7, 0.1, 0.5)
    low, high = 1 / (1 + np.e), np.e / (1 + np.e)
    assert np.all((scores.learnability > 0) & (scores.learnability < 2))
    assert np.all((scores.relevance >= low) & (scores.relevance <= high))
    np.testing.assert_array_equal(np.sign(scores.utility), np.sign(scores.alignment))
    assert np.any(scores.utility < 0)
    expected = np.prod([np.asarray(x) for x in scores[1:]], axis=0)
    np.testing.assert_allclose(scores.utility, expected, rtol=1e-5)
    ends = [np.asarray(score(pool, target, 0.7, 0.1, beta).relevance) for beta in (0.0, 1.0)]
    before, between, after = (np.log(x / (1 - x)) for x in (ends[0], scores.relevance, ends[1]))
    np.testing.assert_allclose(between, (before + after) / 2, atol=1e-5)
    # Batches in another order, and pairs within them.
    order = np.arange(PAIRS).reshape(-1, SIZE)[[2, 0, 3, 1]][:, [5, 1, 0, 3, 2, 4]].ravel()
    turned = score(features(heads, images[order], texts[order], ALONE), target, 0.7, 0.1, 0.5)
    utility = np.asarray(scores.utility)
    bound = 1e-3 * np.abs(utility).max()
    np.testing.assert_allclose(turned.utility, utility[order], rtol=1e-3, atol=bound)


def test_learned_pairs_zero_embeddings_and_groups():
    x, one = np.tile(np.eye(SIZE, dtype=np.float32), (4, 1)), np.eye(SIZE, dtype=np.float32)
    scaled = lambda value: heads_of(one, one, np.float32(value))
    pool = features(scaled(7.0), x, x, ALONE)
    np.testing.assert_array_equal(pool.mismatch, 0)
    np.testing.assert_array_equal(score(pool, pool, 0.7, 0.1, 0.5).utility, 0)
    # Nearly certain: far below what one minus a probability can be in float32.
    nearly = features(scaled(3.5), x, x, ALONE)
    np.testing.assert_allclose(nearly.mismatch, (SIZE - 1) * np.exp(-np.exp(3.5)), rtol=1e-4)
    # A pair whose embedding is zero pulls nothing, and all that is said of it is finite.
    nothing = features(scaled(0.0), x * np.float32(np.arange(SIZE) > 0), x, ALONE)
    assert all(np.all(np.isfinite(leaf)) for leaf in nothing)
    assert not np.any(nothing.images[0])
    # No negatives: no loss, and nothing to be learned.
    alone = features(scaled(0.0), x, x, np.zeros_like(ALONE))
    assert np.all(np.isposinf(alone.margin))
    np.testing.assert_array_equal(alone.mismatch, 0)
    np.testing.assert_array_equal(alone.gradients, 0)
    np.testing.assert_array_equal(score(alone, alone, 0.7, 0.1, 0.5).utility, 0)


def test_half_precision_is_computed_in_single():
    half = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), problem(6))
    found = jax.jit(selection.info_nce)(*half)
    wide = [np.asarray(x, np.float64) for x in jax.tree.leaves(half)]
    *heads, images, texts = wide
    assert found.dtype == jnp.float32
    expected = losses_of(logits_of(heads, images, texts, np), np)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_is_aligned_in_single():
    rng = np.random.default_rng(9)
    half = lambda *shape: rng.normal(size=shape).astype(jnp.bfloat16)
    rows, wanted, root = half(PAIRS, 73), half(73), half(73, 73)
    M = (root @ root.T).astype(jnp.bfloat16)
    found = align(rows, wanted, M, damping=0.1)
    assert found.dtype == jnp.float32
    wide = align(*(np.asarray(x, np.float32) for x in (rows, wanted, M)), damping=0.1)
    np.testing.assert_allclose(found, wide, rtol=1e-5)


def test_moments_of_pairs_keep_single_precision_beside_double():
    with jax.enable_x64(True):
        found = jax.eval_shape(functools.partial(features, pairs=True), *problem(0), ALONE)
    assert found.negative_moment.dtype == np.float32


def test_the_scale_of_features_does_not_matter():
    """Nor where its square leaves the range of numbers, to either side."""
    heads, images, texts = problem(10, SIZE)

    @jax.jit
    def run(images, texts):
        losses, back = jax.vjp(lambda h: selection.info_nce(h, images, texts), heads)
        split = selection.info_nce_gradients(heads, images, texts)
        return losses, back(jnp.ones_like(losses))[0], split

    expected = run(images, texts)
    _, gradient, split = expected
    summed = jax.tree.map(lambda a, b: jnp.sum(a + b, axis=0), *split)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, gradient, summed)
    for scales in ((1e20, 1e20), (1e-25, 1e-25), (1e15, 1e-30)):
        scaled = (x * np.float32(s) for x, s in zip((images, texts), scales))
        jax.tree.map(close, run(*scaled), expected)


@functools.partial(jax.jit, static_argnames="parallel")
def sketched(sketch, heads, images, texts, groups, *, parallel):
    pool = selection.pair_features(
        heads, images, texts, batch_size=4, sketch=sketch, groups=groups, parallel=parallel
    )
    return pool, selection.chips(pool, pool, damping=1.0)


def test_eight_devices(key, mesh):
    heads, *pairs = problem(7, 64)
    pairs = [*pairs, np.arange(64, dtype=np.int32) % 3]
    sketch = gradients.RademacherSketch(key, 8)
    alone = sketched(sketch, heads, *pairs, parallel=1)
    pairs = jax.device_put(pairs, NamedSharding(mesh, PartitionSpec("data")))
    compiled = sketched.lower(sketch, heads, *pairs, parallel=8).compile()
    assert "all-gather" not in str(compiled.as_text()), "pairs were collected"
    spread = compiled(sketch, heads, *pairs)
    for rows in (spread[0].gradients, spread[1].utility):
        assert len(rows.sharding.device_set) == 8
        assert not rows.sharding.is_fully_replicated
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, spread, alone)


def test_bad_input(key):
    heads, images, texts = problem(8, SIZE)
    run = functools.partial(selection.pair_features, heads)
    for size in (1, 4):
        with pytest.raises(ValueError, match=f"divide the 6 pairs, got batch_size={size}"):
            run(images, texts, batch_size=size)
    with pytest.raises(ValueError, match="parallel to divide the 3 batches, got parallel=2"):
        run(images, texts, batch_size=2, parallel=2)
    with pytest.raises(ValueError, match="images to hold at least one point"):
        run(images[:0], texts[:0], batch_size=2)
    with pytest.raises(ValueError, match="as many texts as images, got 5 and 6"):
        run(images, texts[:5], batch_size=2)
    with pytest.raises(ValueError, match="finite"):
        run(images * np.float32(np.nan), texts, batch_size=2)
    with pytest.raises(ValueError, match="negative_moment"):
        run(images, texts, batch_size=2, negative_moment="all")
    with pytest.raises(ValueError, match="groups to be integers of shape"):
        run(images, texts, batch_size=2, groups=np.zeros(5, np.int32))
    with pytest.raises(TypeError, match="sketch"):
        run(images, texts, batch_size=2, sketch=8)
    with pytest.raises(ValueError, match="size"):
        gradients.RademacherSketch(key, 0)
    with pytest.raises(ValueError, match=r"heads.image \[5, m\]"):
        run(images[:, :5], texts, batch_size=2)
    with pytest.raises(ValueError, match="negatives to be boolean of shape"):
        selection.info_nce(heads, images, texts, negatives=np.ones((6, 5), bool))
    row, moment = np.ones(6, np.float32), np.eye(4, dtype=np.float32)
    parts = images[:, :4], moment, moment, row, row, images, texts
    pool = selection.PairFeatures(*map(jnp.asarray, parts))
    for name in ("alpha", "beta"):
        for value in (-0.1, 1.1):
            with pytest.raises(ValueError, match=rf"{name} in \[0, 1\], got {name}={value}"):
                selection.chips(pool, pool, **{name: value})
    for damping in (0.0, -1.0):
        with pytest.raises(ValueError, match="damping > 0"):
            selection.chips(pool, pool, damping=damping)
    with pytest.raises(ValueError, match="sketched alike"):
        selection.chips(pool, pool._replace(gradients=pool.images))
    with pytest.raises(ValueError, match=r"curvature \[k, k\]"):
        selection.newton_alignment(images, np.ones(3), np.eye(3), damping=1.0)
