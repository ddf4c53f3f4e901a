"""The best rows of a store against all scores in NumPy: exact, with ties, on any devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import store
from gradkin.store import streams, top_k

DIM, SIZE, TOTAL = 6, 16, 75
DTYPES = ("float32", "bfloat16", "int8")


def make(folder, features, dtype="float32", **options):
    """A store of features ``{checkpoint: [n, DIM]}``, its last shard in two parts."""
    made = store.create_store(folder, dim=DIM, dtype=dtype, shard_size=SIZE, **options)
    for checkpoint, array in features.items():
        for part in np.split(np.arange(len(array)), [max(0, len(array) - 3)]):
            if len(part):
                made.write(array[part], start=int(part[0]), checkpoint=checkpoint)
    return made


def oracle(scores, k):
    """The best of ``[Q, N]``, among equals the lowest number."""
    order = np.lexsort((np.broadcast_to(np.arange(scores.shape[1]), scores.shape), -scores))
    return np.take_along_axis(scores, order[:, :k], 1), order[:, :k]


def unit(x):
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


@pytest.fixture(scope="module")
def features():
    """Small whole numbers, which all dtypes hold: every fifth row ties with others."""
    rng = np.random.default_rng(0)
    rows = rng.integers(-3, 4, size=(TOTAL, DIM)).astype(np.float32)
    rows[:, 0] = np.where(rng.random(TOTAL) < 0.5, 127, -127)
    rows[::5] = rows[2]
    rows[7] = 0
    return rows


@pytest.fixture(scope="module")
def queries():
    return np.random.default_rng(1).integers(-2, 3, size=(3, DIM)).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", ["dot", "cosine", "normalized"])
def test_against_all_scores(tmp_path, features, queries, dtype, metric):
    made = make(tmp_path, {"a": features}, dtype)
    left = unit(queries.astype(np.float64)) if metric == "cosine" else queries.astype(np.float64)
    right = features.astype(np.float64)
    right = right if metric == "dot" else unit(right)
    found = made.top_k(queries, 9, metric=metric)
    scores, indices = oracle((left @ right.T).round(6), 9)
    assert found.scores.dtype == np.float32
    assert found.indices.dtype == np.int64
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5, atol=1e-5)
    if metric == "dot":  # whole numbers: ties are exact, and so is their order
        np.testing.assert_array_equal(found.scores, scores)
        np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(
        np.take_along_axis((left @ right.T), found.indices, 1), found.scores, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_devices_share_a_shard(tmp_path, features, queries, mesh, dtype):
    made = make(tmp_path, {"a": features}, dtype)
    alone, shared = made.top_k(queries, 11), made.top_k(queries, 11, mesh=mesh)
    np.testing.assert_array_equal(shared.scores, alone.scores)
    np.testing.assert_array_equal(shared.indices, alone.indices)


def test_a_mesh_of_two_axes_and_everything_kept(tmp_path, features, queries):
    made = make(tmp_path, {"a": features})
    mesh = jax.make_mesh((2, 3), ("a", "b"), devices=jax.devices()[:6])
    found = made.top_k(queries, TOTAL, mesh=mesh)
    scores, indices = oracle(queries @ features.T, TOTAL)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.indices, indices)


def test_checkpoints_add_up_with_their_weights(tmp_path, features, queries):
    second = np.roll(features, 3, axis=0)
    made = make(tmp_path, {"a": features, "b": second})
    both = np.stack([queries, queries[::-1]])
    found = made.top_k(both, 8, checkpoints=("a", "b"), weights=(2.0, -0.5))
    wanted = 2 * queries @ features.T - 0.5 * queries[::-1] @ second.T
    scores, indices = oracle(wanted, 8)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.indices, indices)
    largest = made.top_k(
        both, 8, checkpoints=("a", "b"), weights=(2.0, -0.5), largest_of_queries=True
    )
    scores, indices = oracle(wanted.max(axis=0, keepdims=True), 8)
    np.testing.assert_array_equal(largest.scores, scores[0])
    np.testing.assert_array_equal(largest.indices, indices[0])
    one = made.top_k(queries, 8, checkpoints=("b",))
    np.testing.assert_array_equal(one.scores, oracle(queries @ second.T, 8)[0])


def test_masked_examples_are_left_out(tmp_path, features, queries):
    made = make(tmp_path, {"a": features})
    mask = np.random.default_rng(2).random(TOTAL) < 0.4
    found = made.top_k(queries, int(mask.sum()), mask=jnp.asarray(mask))
    wanted = np.where(mask, queries @ features.T, -np.inf)
    scores, indices = oracle(wanted, int(mask.sum()))
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.indices, indices)
    with pytest.raises(ValueError, match=f"between 1 and the {mask.sum()} examples"):
        made.top_k(queries, int(mask.sum()) + 1, mask=mask)
    with pytest.raises(ValueError, match="leaves all out"):
        made.top_k(queries, 1, mask=np.zeros(TOTAL, bool))
    for bad in (mask[1:], mask.astype(np.int32)):
        with pytest.raises(ValueError, match=r"mask of shape \(75,\) and dtype bool"):
            made.top_k(queries, 1, mask=bad)


def test_queries_of_another_store(tmp_path, features, queries):
    made = make(tmp_path / "pool", {"a": features, "b": features}, sketch="gaussian 0")
    asked = make(tmp_path / "asked", {"a": queries[:1], "b": queries[1:2]}, sketch="gaussian 0")
    found = made.top_k(asked, 4, checkpoints=("a", "b"), metric="cosine")
    both = made.top_k(
        np.stack([queries[:1], queries[1:2]]), 4, checkpoints=("a", "b"), metric="cosine"
    )
    np.testing.assert_array_equal(found.indices, both.indices)
    other = store.create_store(tmp_path / "dim", dim=DIM + 1, sketch="gaussian 0")
    with pytest.raises(ValueError, match="stores of the same dim, got 6 in .* and 7 in"):
        made.top_k(other, 1, checkpoints=("a",))
    other = make(tmp_path / "sketch", {"a": queries}, sketch="gaussian 1")
    with pytest.raises(ValueError, match="same sketch, got 'gaussian 0' in .* and 'gaussian 1'"):
        made.top_k(other, 1, checkpoints=("a",))
    with pytest.raises(ValueError, match="one of the checkpoints .* got 'c'"):
        asked.top_k(queries, 1, checkpoints=("c",))


def test_rows_and_queries_of_zeros_score_zero(tmp_path, queries):
    made = make(tmp_path, {"a": np.zeros((20, DIM), np.float32)}, "int8")
    for metric in ("dot", "cosine", "normalized"):
        found = made.top_k(queries, 3, metric=metric)
        np.testing.assert_array_equal(found.scores, 0)
        np.testing.assert_array_equal(found.indices, [[0, 1, 2]] * 3)
    assert not made.top_k(np.zeros((1, DIM)), 3, metric="cosine").scores.any()


def test_memory_does_not_grow_with_the_store(tmp_path, monkeypatch, queries):
    made_buffers, original = [], streams.make_buffer

    def counted(*arguments):
        made_buffers.append(original(*arguments))
        return made_buffers[-1]

    monkeypatch.setattr(streams, "make_buffer", counted)
    rng = np.random.default_rng(0)
    for total in (5 * SIZE, 20 * SIZE):
        features = rng.normal(size=(total, DIM)).astype(np.float32)
        made = make(tmp_path / str(total), {"a": features})
        made_buffers.clear()
        found = made.top_k(queries, 5)
        assert len(made_buffers) == streams.BUFFERS
        assert {buffer.codes[0].shape for buffer in made_buffers} == {(SIZE, DIM)}
        assert all(buffer.codes[0].ctypes.data % streams.ALIGNMENT == 0 for buffer in made_buffers)
        np.testing.assert_array_equal(found.indices, oracle(queries @ features.T, 5)[1])


def test_tiles_cover_all_rows(monkeypatch):
    monkeypatch.setattr(top_k, "TILE_BYTES", 4 * DIM * 8)
    rng = np.random.default_rng(0)
    queries = rng.integers(-9, 9, size=(2, DIM)).astype(np.float32)
    for num_rows in (5, 16, 29):
        codes = rng.integers(-127, 128, size=(num_rows, DIM)).astype(np.int8)
        found = jax.jit(top_k.products)(queries, codes)
        np.testing.assert_array_equal(found, queries @ codes.T.astype(np.float32))


def test_bad_queries(tmp_path, features, queries):
    made = make(tmp_path, {"a": features, "b": features[:70]})
    one: dict[str, Any] = {"checkpoints": ("a",)}
    nan = np.full((1, DIM), np.nan, np.float32)
    cases: list[tuple[Any, int, dict[str, Any], str]] = [
        (queries, 1, {}, r"checkpoints to be named: .*\('a', 'b'\)"),
        (queries, 1, {"checkpoints": ()}, "different names as checkpoints"),
        (queries, 1, {"checkpoints": "a"}, "different names as checkpoints"),
        (queries, 1, {"checkpoints": ("a", "a")}, "different names as checkpoints"),
        (queries, 1, {"checkpoints": ("a", "c")}, "one of the checkpoints .* got 'c'"),
        (np.stack([queries] * 2), 1, {"checkpoints": ("a", "b")}, "the same examples, got"),
        (queries, 0, one, "between 1 and the 75 examples, got k=0"),
        (queries, 76, one, "got k=76"),
        (queries[:0], 1, one, r"shape \[Q, dim\], Q >= 1"),
        (queries[0], 1, one, r"shape \[Q, dim\]"),
        (queries[:, :4], 1, one, r"queries of shape \[n, 6\]"),
        (nan, 1, one, "finite queries"),
        (queries, 1, {**one, "weights": (1.0, 2.0)}, "1 finite weights"),
        (queries, 1, {**one, "metric": "euclidean"}, "metric to be one of"),
    ]
    for asked, k, options, match in cases:
        with pytest.raises(ValueError, match=match):
            made.top_k(asked, k, **options)
    with pytest.raises(TypeError, match="queries of a floating dtype"):
        made.top_k(queries.astype(np.int32), 1, **one)


def test_scores_that_overflow_are_an_error(tmp_path, features):
    made = make(tmp_path, {"a": features})
    with pytest.raises(ValueError, match="overflow float32"):
        made.top_k(np.full((1, DIM), 1e38, np.float32), 2)


def test_a_checkpoint_with_a_hole_is_not_searched(tmp_path, features, queries):
    made = store.create_store(tmp_path, dim=DIM, shard_size=SIZE)
    made.write(features[SIZE:40], start=SIZE, checkpoint="a")
    with pytest.raises(ValueError, match="those of 0 to 15 are missing"):
        made.top_k(queries, 1)
    empty = store.create_store(tmp_path / "empty", dim=DIM)
    with pytest.raises(ValueError, match="checkpoints to be named"):
        empty.top_k(queries, 1)
