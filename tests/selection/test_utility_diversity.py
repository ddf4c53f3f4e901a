"""UDS: nuclear norms, the projection's exact second moment, the memory, what is selected."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import selection

norm = jax.jit(selection.nuclear_norm)
select = jax.jit(selection.utility_diversity_select, static_argnames="k")


def made(key, *, time=5, vocabulary=12, rows=3, columns=4, scale="jl"):
    return selection.init_bilinear_projection(
        key, time=time, vocabulary=vocabulary, rows=rows, columns=columns, scale=scale
    )


def test_nuclear_norm_against_numpy_and_its_bounds():
    rng = np.random.default_rng(0)
    for shape in ((6, 4, 9), (6, 9, 4)):
        x = rng.normal(size=shape).astype(np.float32)
        found = np.asarray(norm(x))
        expected = np.linalg.svd(x.astype(np.float64), compute_uv=False).sum(-1)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        frobenius = np.linalg.norm(x, axis=(1, 2))
        assert np.all(found >= frobenius * (1 - 1e-5))
        assert np.all(found <= np.sqrt(4) * frobenius * (1 + 1e-5))
    q, _ = np.linalg.qr(rng.normal(size=(9, 9)))
    np.testing.assert_allclose(norm(q.astype(np.float32) @ x), found, rtol=1e-5)
    u, v = x[0, :, 0], x[1, 0]
    rank_one = np.linalg.norm(u) * np.linalg.norm(v)
    np.testing.assert_allclose(norm(np.outer(u, v)[None].repeat(6, 0))[0], rank_one, rtol=1e-5)


def test_masked_rows_do_not_count(key):
    x = jax.random.normal(key, (2, 5, 12))
    mask = jnp.array([[True, True, False, True, False], [False, True, True, True, True]])
    spoiled = jnp.where(mask[..., None], x, jnp.nan)
    expected = [norm(x[i][mask[i]][None])[0] for i in range(2)]
    np.testing.assert_allclose(norm(spoiled, mask=mask), expected, rtol=1e-5)
    projection = made(key)
    zeros = jnp.where(mask[..., None], x, 0)
    np.testing.assert_array_equal(
        selection.project_logits(projection, spoiled, mask=mask),
        selection.project_logits(projection, zeros),
    )


def by_definition(projection, x):
    """Two full Fourier transforms in NumPy."""
    d1, d2, rows, columns, factor = (np.asarray(leaf) for leaf in projection)
    padded = np.zeros((len(d1), len(d2)))
    padded[: len(x)] = x
    first = np.fft.fft(padded * d2, axis=1).real[:, columns]
    second = np.fft.fft(first * d1[:, None], axis=0).real[rows]
    return factor * second.ravel()


@pytest.mark.parametrize(("time", "vocabulary", "scale"), [(5, 12, "jl"), (6, 9, "reference")])
def test_projection_by_definition_and_linear(key, time, vocabulary, scale):
    projection = made(key, time=time, vocabulary=vocabulary, scale=scale)
    x, y = jax.random.normal(key, (2, 4, vocabulary))
    project = functools.partial(selection.project_logits, projection)
    found = project(x)
    np.testing.assert_allclose(found, by_definition(projection, x), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(project(2 * x - 3 * y), 2 * found - 3 * project(y), atol=1e-2)


@pytest.mark.parametrize(("time", "vocabulary", "scale"), [(5, 12, "jl"), (6, 9, "reference")])
def test_projection_has_the_stated_second_moment(key, time, vocabulary, scale):
    x = np.array(jax.random.normal(key, (time, vocabulary)))
    x[0, 0] = 5
    draw = lambda k: selection.project_logits(
        made(k, time=time, vocabulary=vocabulary, scale=scale, rows=8, columns=8), x
    )
    vectors = jax.jit(jax.vmap(draw))(jax.random.split(key, 4000))
    share = lambda n: np.where(2 * np.arange(n) % n == 0, 1, 0.5)
    total = 4 if scale == "jl" else time * vocabulary
    expected = total * share(time) @ x**2 @ share(vocabulary)
    np.testing.assert_allclose(np.mean(np.sum(vectors**2, axis=1)), expected, rtol=0.05)


def test_memory_holds_the_last_vectors(key):
    x = jax.random.normal(key, (8, 3))
    memory = selection.init_memory(5, 3)
    np.testing.assert_array_equal(selection.mean_distance(memory, x), 0)
    for start in (0, 2, 4, 6):
        memory = selection.push(memory, x[start : start + 2])
        held = np.asarray(x[max(0, start - 3) : start + 2])
        distances = np.linalg.norm(np.asarray(x)[:, None] - held[None], axis=-1)
        np.testing.assert_allclose(
            selection.mean_distance(memory, x), distances.mean(1), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_array_equal(np.sort(memory.vectors[:, 0]), np.sort(x[3:, 0]))


def test_selects_by_utility_first_and_diversity_later(key, mesh):
    projection = made(key)
    logits = jax.random.normal(key, (8, 5, 12))
    empty = selection.init_memory(6, 12)
    run = functools.partial(select, projection=projection, k=3)
    found = run(empty, logits=logits, alpha=2.0)
    order = np.argsort(-np.asarray(norm(logits)))
    np.testing.assert_array_equal(found.indices, order[:3])
    assert int(found.memory.count) == 3
    split = jax.device_put(logits, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_array_equal(run(empty, logits=split, alpha=2.0).indices, found.indices)
    # Of what the memory holds, nothing is selected while there is something else.
    best = selection.project_logits(projection, logits[order[0]])
    full = selection.push(empty, jnp.stack([best] * 6))
    later = run(full, logits=logits, alpha=1e4)
    assert order[0] not in np.asarray(later.indices)
    flat = jax.grad(lambda x: jnp.sum(run(full, logits=x, alpha=1.0).scores))(logits)
    np.testing.assert_array_equal(flat, 0)


def test_bad_input(key):
    projection, memory = made(key), selection.init_memory(4, 12)
    x = jnp.ones((6, 5, 12))
    run = selection.utility_diversity_select
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k from 1 to 4.*got k={k}"):
            run(memory, projection, x, k, alpha=1.0)
    with pytest.raises(ValueError, match="alpha"):
        run(memory, projection, x, 2, alpha=-1.0)
    for shape in ((6, 6, 12), (6, 5, 11)):
        with pytest.raises(ValueError, match="at most 5 tokens and a vocabulary of 12"):
            run(memory, projection, jnp.ones(shape), 2, alpha=1.0)
    with pytest.raises(ValueError, match="finite"):
        run(memory, projection, x * jnp.nan, 2, alpha=1.0)
    with pytest.raises(ValueError, match="a token of every example"):
        run(memory, projection, x, 2, alpha=1.0, mask=jnp.zeros((6, 5), bool))
    with pytest.raises(ValueError, match="mask of shape"):
        selection.nuclear_norm(x, mask=jnp.ones((6, 4), bool))
    with pytest.raises(ValueError, match="matrices"):
        selection.nuclear_norm(jnp.ones(3))
    with pytest.raises(ValueError, match="at most 4 vectors of dimension 12"):
        selection.push(memory, jnp.ones((5, 12)))
    with pytest.raises(ValueError, match="scale"):
        made(key, scale="unit")
    with pytest.raises(ValueError, match="size"):
        selection.init_memory(0, 3)
    with pytest.raises(ValueError, match="columns"):
        made(key, columns=0)
