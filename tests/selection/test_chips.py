"""CHIPS: automatic derivatives, limits, rotations, sketches, ranges, devices, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import gradients, selection

SIZE, FEATURES, DIMENSION = 6, (4, 5), 3
features = jax.jit(
    selection.pair_features, static_argnames=("batch_size", "negative_moment", "parallel")
)
score = jax.jit(selection.chips)
split = jax.jit(selection.info_nce_gradients)


def problem(key, size=SIZE):
    """Heads, images, texts; captions that say something of their images."""
    k = jax.random.split(key, 5)
    images = jax.random.normal(k[0], (size, FEATURES[0]))
    texts = images @ jax.random.normal(k[1], FEATURES) + jax.random.normal(k[2], (size, 5))
    heads = selection.EndpointHeads(
        jax.random.normal(k[3], (FEATURES[0], DIMENSION)),
        jax.random.normal(k[4], (FEATURES[1], DIMENSION)),
        jnp.asarray(1.3),
    )
    return heads, images, texts


def flat(tree):
    """Gradients of ``[B, ...]`` at each leaf as rows, the temperature last."""
    return np.concatenate([np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(tree)], axis=1)


def logits_of(heads, images, texts, counted):
    """The logits, written plainly."""
    x, y = images @ heads.image, texts @ heads.text
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    y = y / jnp.linalg.norm(y, axis=1, keepdims=True)
    return jnp.where(counted, jnp.exp(heads.log_scale) * (x @ y.T), -jnp.inf)


def losses_of(heads, images, texts, counted):
    logits = logits_of(heads, images, texts, counted)
    rows, columns = jax.nn.log_softmax(logits, axis=1), jax.nn.log_softmax(logits, axis=0)
    return -(jnp.diagonal(rows) + jnp.diagonal(columns)) / 2


@pytest.fixture(scope="module")
def exact():
    """Found and expected in float64, of a batch in which two pairs do not contrast."""
    with jax.enable_x64(True):
        heads, images, texts = jax.tree.map(
            lambda x: jnp.asarray(x, np.float64), problem(jax.random.key(3))
        )
        counted = np.ones((SIZE, SIZE), bool)
        counted[1, 4] = counted[4, 1] = False
        given = heads, images, texts
        jacobian = lambda of: jax.tree.map(np.asarray, jax.jit(jax.jacrev(of))(heads))
        groups = np.array([0, 1, 2, 3, 1, 5])
        run = functools.partial(features, *given, batch_size=SIZE, groups=groups)
        return jax.tree.map(
            np.asarray,
            {
                "split": split(*given, negatives=counted & ~np.eye(SIZE, dtype=bool)),
                "losses": selection.info_nce(*given, negatives=counted),
                "wanted_losses": losses_of(*given, counted),
                "gradients": jacobian(lambda h: losses_of(h, images, texts, counted)),
                "logits": logits_of(*given, counted),
                "of_logits": jacobian(
                    lambda h: jnp.where(counted, logits_of(h, images, texts, True), 0)
                ),
                "features": run(),
                "pairs": run(negative_moment="pairs").negative_moment,
            },
        )


def test_parts_add_up_to_the_gradient(exact):
    both = jax.tree.map(np.add, exact["split"].positive, exact["split"].negative)
    np.testing.assert_allclose(flat(both), flat(exact["gradients"]), atol=1e-8, rtol=0)
    np.testing.assert_allclose(exact["losses"], exact["wanted_losses"], atol=1e-12, rtol=0)


def test_each_part_is_its_sum_over_similarities(exact):
    p = np.asarray(jax.nn.softmax(exact["logits"], axis=1), np.float64)
    q = np.asarray(jax.nn.softmax(exact["logits"], axis=0), np.float64)
    of_logits = np.stack([flat(x) for x in unstacked(exact["of_logits"])])  # [i, j, d]
    positive, negative, pairs = (np.zeros((SIZE, of_logits.shape[2])) for _ in range(3))
    pairs = np.zeros((of_logits.shape[2],) * 2)
    for i in range(SIZE):
        positive[i] = -((1 - p[i, i]) + (1 - q[i, i])) / 2 * of_logits[i, i]
        for j in set(range(SIZE)) - {i}:
            negative[i] += (p[i, j] * of_logits[i, j] + q[j, i] * of_logits[j, i]) / 2
            weight = (p[i, j] + q[i, j]) / 2 / SIZE
            pairs += weight * np.outer(of_logits[i, j], of_logits[i, j])
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    close(flat(exact["split"].positive), positive)
    close(flat(exact["split"].negative), negative)
    found = exact["features"]
    close(found.gradients, positive + negative)
    close(found.positive_moment, positive.T @ positive / SIZE)
    close(found.negative_moment, negative.T @ negative / SIZE)
    close(exact["pairs"], pairs)
    close(found.mismatch, 1 - (np.diagonal(p) + np.diagonal(q)) / 2)
    cosines = found.images @ found.texts.T
    others = np.where(np.eye(SIZE, dtype=bool) | np.isinf(exact["logits"]), -np.inf, cosines)
    margin = np.diagonal(cosines) - np.maximum(others.max(0), others.max(1))
    close(found.margin, margin)
    close(np.linalg.norm(found.images, axis=1), 1)


def unstacked(tree):
    """``[i, j, ...]`` at each leaf as one tree for each ``i``."""
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(SIZE)]


def test_limits_and_rotations(key):
    pool = features(*problem(key, 24), batch_size=6)
    k = pool.gradients.shape[1]
    wanted = np.asarray(pool.gradients[:5].mean(0))
    M = (pool.positive_moment + pool.negative_moment) / 2
    plain = pool.gradients @ wanted
    align = jax.jit(selection.newton_alignment)
    # Of large damping the inverse is a number, and inner products are left.
    shift = 1e6 * np.trace(M) / k
    np.testing.assert_allclose(
        shift * align(pool.gradients, wanted, M, damping=1e6), plain, rtol=1e-4, atol=1e-6
    )
    found = align(pool.gradients, wanted, M, damping=0.1)
    shifted = np.asarray(M, np.float64) + 0.1 * np.trace(M) / k * np.eye(k)
    solved = np.asarray(pool.gradients) @ np.linalg.solve(shifted, wanted)
    np.testing.assert_allclose(found, solved, rtol=1e-3, atol=1e-4 * np.abs(solved).max())
    # Any orthogonal sketch of full size is exact.
    Q = np.linalg.qr(np.asarray(jax.random.normal(key, (k, k))))[0]
    turned = align(pool.gradients @ Q, wanted @ Q, Q.T @ M @ Q, damping=0.1)
    np.testing.assert_allclose(turned, found, rtol=1e-3, atol=1e-4 * np.abs(solved).max())
    zero = align(pool.gradients, wanted, jnp.zeros((k, k)), damping=0.1)
    np.testing.assert_allclose(zero, plain, rtol=1e-5, atol=1e-6)


def test_sketches_keep_inner_products(key):
    heads, images, texts = problem(key, 4)
    rows = jax.tree.map(jnp.add, *split(heads, images, texts))
    whole = flat(rows)
    trials = jax.random.split(key, 400)

    @functools.partial(jax.jit, static_argnums=0)
    def products(size):
        def one(key):
            sketch = gradients.RademacherSketch(key, size)
            u = gradients.project_rows(sketch, rows)
            return u[0] @ u[1]

        return jax.vmap(one)(trials)

    few, many = (np.asarray(products(size)) for size in (32, 64))
    deviation = many.std() / len(trials) ** 0.5
    assert abs(many.mean() - whole[0] @ whole[1]) < 4 * deviation
    assert 0.35 < many.var() / few.var() < 0.65
    # What is projected batch by batch is what was projected at once.
    sketch = gradients.RademacherSketch(key, 8)
    found = features(heads, images, texts, batch_size=4, sketch=sketch).gradients
    np.testing.assert_allclose(found, gradients.project_rows(sketch, rows), rtol=1e-4, atol=1e-5)


def test_ranges_signs_and_order(key):
    heads, images, texts = problem(key, 24)
    pool = features(heads, images, texts, batch_size=6)
    target = features(heads, images[:6], texts[:6], batch_size=6)
    scores = score(pool, target, damping=0.1)
    low, high = jax.nn.sigmoid(-1.0), jax.nn.sigmoid(1.0)
    assert np.all((scores.learnability > 0) & (scores.learnability < 2))
    assert np.all((scores.relevance >= low) & (scores.relevance <= high))
    np.testing.assert_array_equal(np.sign(scores.utility), np.sign(scores.alignment))
    assert np.any(scores.utility < 0)
    expected = scores.alignment * scores.learnability * scores.relevance
    np.testing.assert_allclose(scores.utility, expected, rtol=1e-6)
    images_only, texts_only = (
        score(pool, target, beta=beta, damping=0.1).relevance for beta in (0.0, 1.0)
    )
    between = [np.log(x / (1 - x)) for x in (images_only, scores.relevance, texts_only)]
    np.testing.assert_allclose(between[1], (between[0] + between[2]) / 2, atol=1e-5)
    # Batches in another order, and pairs within them.
    order = np.arange(24).reshape(4, 6)[[2, 0, 3, 1]][:, [5, 1, 0, 3, 2, 4]].ravel()
    turned = score(features(heads, images[order], texts[order], batch_size=6), target, damping=0.1)
    bound = 1e-3 * float(np.abs(scores.utility).max())
    np.testing.assert_allclose(turned.utility, scores.utility[order], rtol=1e-3, atol=bound)


def test_learned_pairs_zero_embeddings_and_groups(key):
    x = np.eye(4, dtype=np.float32)
    certain = selection.EndpointHeads(jnp.eye(4), jnp.eye(4), jnp.asarray(7.0))
    pool = features(certain, x, x, batch_size=4)
    np.testing.assert_array_equal(pool.mismatch, 0)
    np.testing.assert_array_equal(score(pool, pool).utility, 0)
    # Not as certain: far below what one minus a probability can be in float32.
    nearly = features(certain._replace(log_scale=jnp.asarray(3.5)), x, x, batch_size=4)
    np.testing.assert_allclose(nearly.mismatch, 3 * np.exp(-np.exp(3.5)), rtol=1e-4)
    # A pair whose embedding is zero pulls nothing, and all that is said of it is finite.
    nothing = features(
        certain._replace(log_scale=jnp.asarray(0.0)), x * np.float32([0, 1, 1, 1]), x, batch_size=4
    )
    assert all(np.all(np.isfinite(leaf)) for leaf in nothing)
    assert not np.any(nothing.images[0])
    # Alone in its batch: no negative, no loss.
    alone = features(
        certain._replace(log_scale=jnp.asarray(0.0)),
        x,
        x,
        batch_size=4,
        groups=np.zeros(4, np.int32),
    )
    assert np.all(np.isinf(alone.margin))
    np.testing.assert_array_equal(alone.mismatch, 0)
    np.testing.assert_array_equal(alone.gradients, 0)
    found = score(alone, alone)
    assert all(np.all(np.isfinite(leaf)) for leaf in found)


def test_half_precision_is_computed_in_single(key):
    heads, images, texts = problem(key)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (heads, images, texts))
    back = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    found, wanted = (selection.info_nce(*given) for given in (half, back))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_eight_devices(key, mesh):
    heads, images, texts = problem(key, 64)
    sketch = gradients.RademacherSketch(key, 8)
    groups = np.arange(64, dtype=np.int32) % 3
    run = functools.partial(features, batch_size=4, sketch=sketch)
    alone = run(heads, images, texts, groups=groups)
    split = jax.device_put((images, texts, groups), NamedSharding(mesh, PartitionSpec("data")))
    compiled = run.func.lower(
        heads, *split[:2], groups=split[2], parallel=8, **run.keywords
    ).compile()
    assert "all-gather" not in compiled.as_text(), "pairs were collected"
    spread = run(heads, *split[:2], groups=split[2], parallel=8)
    assert len(spread.gradients.sharding.device_set) == 8
    assert not spread.gradients.sharding.is_fully_replicated
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, spread, alone)
    found, wanted = (score(pool, alone, damping=1.0) for pool in (spread, alone))
    jax.tree.map(functools.partial(close, atol=1e-4), found, wanted)


def test_bad_input(key):
    heads, images, texts = problem(key)
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
        run(images * np.nan, texts, batch_size=2)
    with pytest.raises(ValueError, match="negative_moment"):
        run(images, texts, batch_size=2, negative_moment="all")
    with pytest.raises(ValueError, match="groups to be integers of shape"):
        run(images, texts, batch_size=2, groups=np.zeros(5, np.int32))
    with pytest.raises(TypeError, match="sketch"):
        run(images, texts, batch_size=2, sketch=8)
    with pytest.raises(ValueError, match="size"):
        gradients.RademacherSketch(key, 0)
    with pytest.raises(ValueError, match=r"heads.image \[5, m\]"):
        run(texts, texts, batch_size=2)
    with pytest.raises(ValueError, match="negatives to be boolean of shape"):
        selection.info_nce(heads, images, texts, negatives=np.ones((6, 5), bool))
    pool = run(images, texts, batch_size=6)
    for name in ("alpha", "beta"):
        for value in (-0.1, 1.1):
            with pytest.raises(ValueError, match=rf"{name} in \[0, 1\], got {name}={value}"):
                selection.chips(pool, pool, **{name: value})
    for damping in (0.0, -1.0):
        with pytest.raises(ValueError, match="damping > 0"):
            selection.chips(pool, pool, damping=damping)
    other = pool._replace(gradients=pool.gradients[:, :3])
    with pytest.raises(ValueError, match="sketched alike"):
        selection.chips(pool, other)
    with pytest.raises(ValueError, match=r"curvature \[k, k\]"):
        selection.newton_alignment(pool.gradients, np.ones(3), np.eye(3), damping=1.0)
