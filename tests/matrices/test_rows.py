"""Row weights, masks, selections of rows and columns, and what happens to rows that are NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from tests.matrices import oracle
from tests.matrices.models import dense, lookup


@pytest.fixture(scope="module")
def G():
    """An eager matrix with outer, row and dense terms."""
    model = _model()
    return oracle.matrix(model, route="factors")


@pytest.fixture(scope="module")
def rows():
    """The same gradients written down."""
    return jax.tree.map(np.asarray, jax.jit(lambda: oracle.rows(_model()))())


def _model():
    """A perceptron on the mean of looked-up rows and on numbers."""
    perceptron, words = dense.mlp(batch=4), lookup.embeddings()

    def loss(params, example):
        own, numbers = example
        return perceptron.loss(params["mlp"], numbers) + words.loss(params["words"], own)

    params = {"mlp": perceptron.args[0], "words": words.args[0]}
    return dense.Model(loss, (params, (words.args[1], perceptron.args[1])))


def flat(tree):
    """``[B, P]`` in float64."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)


def vector(tree):
    """``[P]`` in float64."""
    return np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in jax.tree.leaves(tree)])


def close(actual, wanted, tolerance=1e-5):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(
        np.asarray(actual, np.float64),
        wanted,
        rtol=tolerance,
        atol=tolerance * np.max(np.abs(wanted)),
    )


def test_size_and_dtype(G, rows):
    assert len(G) == 4
    assert G.shape == flat(rows).shape
    assert G.T.shape == G.shape[::-1]
    assert G.T.T is G
    assert G.dtype == G.T.dtype == np.float32
    assert G.losses.shape == (4,)


def test_one_row_is_a_pytree_like_the_parameters(G, rows):
    for i in (0, 3, -1, np.int64(2), jnp.asarray(1)):
        close(vector(G[i]), flat(rows)[int(i)])
    assert jax.tree.structure(G[0]) == jax.tree.structure(_model().args[0])


@pytest.mark.parametrize(
    "index",
    [
        slice(1, 3),
        slice(None, None, -2),
        np.array([True, False, True, True]),
        np.array([3, 3, 0]),
        jnp.asarray([2, -1]),
        [0, 2],
    ],
    ids=["slice", "backwards", "mask", "repeated", "negative", "list"],
)
def test_rows_taken(G, rows, index):
    where = np.asarray(index) if isinstance(index, list | jax.Array) else index
    taken = G.scale(np.arange(1.0, 5.0))[index]
    wanted = (flat(rows) * np.arange(1.0, 5.0)[:, None])[where]
    assert len(taken) == len(wanted)
    close(flat(taken.materialize()), wanted)
    close(taken.losses, np.asarray(G.losses)[where])


def test_rows_taken_out_of_range(G):
    with pytest.raises(IndexError, match="from -4 to 3"):
        G[4]
    with pytest.raises(IndexError, match="mask of shape"):
        G[np.array([True, False])]
    with pytest.raises(IndexError, match="row numbers or a mask"):
        G[np.array([0.5])]
    with pytest.raises(IndexError, match="row numbers or a mask"):
        G[np.zeros((2, 2), np.int32)]


def test_iterating_gives_every_row(G, rows):
    # The protocol by __getitem__ and IndexError.
    close(np.stack([vector(row) for row in G]), flat(rows))


def test_numpy_on_the_left(G, rows):
    weights = np.array([1.0, -2.0, 0.0, 0.5])
    wanted = weights @ flat(rows)
    for left in (weights, weights.astype(np.float32), jnp.asarray(weights), list(weights)):
        close(vector(left @ G), wanted)
        close(vector(G.T @ np.asarray(left)), wanted)
    close(vector(np.array([1, 0, 2, 0]) @ G), np.array([1, 0, 2, 0]) @ flat(rows))


def test_several_weightings_at_once(G, rows):
    weights = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    close(flat(weights @ G), weights @ flat(rows))


def test_products_with_tangents(G, rows):
    tangent = jax.tree.map(lambda p: jnp.cos(p), _model().args[0])
    close(G @ tangent, flat(rows) @ vector(tangent))
    # The transpose accepts whatever defers to it on the left: an array, here.
    linear = gradkin.per_example_grads(jnp.vdot)(jnp.ones(3), jnp.eye(3) * 2)
    close(jnp.arange(3.0) @ linear.T, [0, 2, 4])


def test_products_of_two_matrices(G, rows):
    other = G[1:3].scale(np.array([2.0, -1.0]))
    wanted = flat(rows) @ (flat(rows)[1:3] * np.array([[2.0], [-1.0]])).T
    close(G @ other.T, wanted)
    close(other @ G.T, wanted.T)
    norms = np.linalg.norm(flat(rows), axis=1)
    close(G.cosine(other), wanted / norms[:, None] / (norms[1:3] * [2, 1]))
    close(G.frobenius_norm(), np.linalg.norm(flat(rows)))


def test_factors_against_formed_gradients(G, rows):
    """Two batches of one model may be stored differently."""
    formed = oracle.matrix(_model(), route="dense")
    close(G @ formed.T, flat(rows) @ flat(rows).T)
    close(formed @ G.T, flat(rows) @ flat(rows).T)


def test_scale_composes(G, rows):
    w = np.array([0.5, 2.0, -1.0, 0.0], np.float32)
    scaled = G.scale(w).scale(3.0)
    close(flat(scaled.materialize()), 3 * w[:, None] * flat(rows))
    close(scaled.norms(), 3 * np.abs(w) * np.linalg.norm(flat(rows), axis=1))
    close(vector(scaled.mean()), np.mean(3 * w[:, None] * flat(rows), axis=0))


def test_clip_measures_the_current_matrix(G, rows):
    dense_rows = flat(rows)
    norms = np.linalg.norm(dense_rows, axis=1)
    bound = float(np.median(norms))
    clipped = G.clip(bound)
    close(clipped.norms(), np.minimum(norms, bound))
    # A second, looser bound changes nothing; a row below the bound is untouched.
    close(flat(clipped.clip(2 * bound).materialize()), flat(clipped.materialize()))
    close(flat(G.clip(np.inf).materialize()), dense_rows)
    # Exact zeros at a bound of zero, also for a row that is zero already.
    assert not np.any(flat(G.where(np.array([True, True, True, False])).clip(0.0).materialize()))


def test_clip_by_layer_and_over_all_layers(G, rows):
    own = flat(rows["mlp"])
    bound = float(np.median(np.linalg.norm(own, axis=1)))
    by_layer = G.select(lambda path: path.startswith("mlp")).clip(bound)
    factor = np.minimum(1, bound / np.linalg.norm(own, axis=1))
    close(flat(by_layer.materialize()), factor[:, None] * own)
    over_all = G.clip(bound).select(lambda path: path.startswith("mlp"))
    factor = np.minimum(1, bound / np.linalg.norm(flat(rows), axis=1))
    close(flat(over_all.materialize()), factor[:, None] * own)


def test_select_keeps_the_structure(G, rows):
    chosen = G.select(lambda path: path == "mlp/1/kernel")
    assert chosen.shape == (4, 256)
    mean = chosen.mean()
    close(mean["mlp"][1]["kernel"], rows["mlp"][1]["kernel"].mean(0))
    assert mean["words"]["tokens"] is None
    assert mean["mlp"][0]["kernel"] is None
    with_none = jax.tree.map(lambda _: None, _model().args[0])
    with_none["mlp"][1]["kernel"] = jnp.ones((16, 16))
    close(chosen @ with_none, rows["mlp"][1]["kernel"].sum((1, 2)))


def test_select_needs_a_leaf(G):
    with pytest.raises(ValueError, match="select at least one of: mlp/0/bias, mlp/0/kernel"):
        G.select(lambda path: False)


def test_leaves_add_up(G, rows):
    parts = G.by_leaf()
    assert list(parts) == [row.path for row in G.explain().rows]
    assert all(len(part.by_leaf()) == 1 for part in parts.values())
    close(sum(part.gram() for part in parts.values()), flat(rows) @ flat(rows).T)
    by_leaf = G.squared_norms(by="leaf")
    assert jax.tree.structure(by_leaf) == jax.tree.structure(_model().args[0])
    close(sum(jax.tree.leaves(by_leaf)), G.squared_norms())


def test_where_gives_exact_zeros(G, rows):
    mask = np.array([True, False, True, False])
    kept = G.where(mask)
    close(flat(kept.materialize()), flat(rows) * mask[:, None])
    assert not np.any(np.asarray(kept.norms())[~mask])


def test_normalize(G, rows):
    unit = G.where(np.array([True, True, False, True])).normalize()
    close(unit.norms(), [1, 1, 0, 1])
    close(unit.gram()[2], np.zeros(4))
    cosine = G.where(np.array([True, True, False, True])).cosine()
    close(cosine[2], np.zeros(4))
    close(jnp.diagonal(cosine), [1, 1, 0, 1])


def test_centered(G, rows):
    weights = np.array([1.0, 2.0, 0.5, -1.0])
    dense_rows = weights[:, None] * flat(rows)
    centered = dense_rows - dense_rows.mean(0)
    C = G.scale(weights).centered()
    close(flat(C.materialize()), centered)
    close(C.squared_norms(), np.sum(centered**2, 1))
    close(C.gram(), centered @ centered.T)
    assert np.max(np.abs(vector(C.mean()))) < 1e-5 * np.max(np.abs(dense_rows))
    tangent = jax.tree.map(jnp.cos, _model().args[0])
    close(C @ tangent, centered @ vector(tangent), 1e-4)
    close(
        C.scale(weights).clip(1.0).norms(),
        np.minimum(1, np.linalg.norm(centered * weights[:, None], axis=1)),
    )


def test_second_moment(G, rows):
    weights = np.array([1.0, 2.0, 0.5, -1.0])
    close(vector(G.second_moment()), np.sum(flat(rows) ** 2, 0))
    close(vector(G.scale(weights).second_moment()), weights**2 @ flat(rows) ** 2)


def _with_first_numbers(value):
    """The model with one example whose numbers are all ``value``."""
    model = _model()
    params, (words, (x, y)) = model.args
    return model._replace(args=(params, (words, (x.at[1].set(value), y))))


@pytest.fixture(scope="module", params=["factors", "dense"])
def broken(request):
    """A matrix with one row of NaN."""
    return oracle.matrix(_with_first_numbers(jnp.nan), route=request.param)


def test_not_a_number_is_visible(broken):
    assert np.isnan(broken.norms()).tolist() == [False, True, False, False]
    assert np.isnan(broken.clip(1.0).norms()).tolist() == [False, True, False, False]
    assert all(np.isnan(x).any() for x in jax.tree.leaves(broken.clip(1.0).mean()["mlp"]))
    assert np.isnan(broken.normalize().norms()[1])


def test_where_removes_what_is_not_a_number(broken, rows):
    kept = broken.where(np.array([True, False, True, True]))
    wanted = flat(rows) * np.array([[1], [0], [1], [1]])
    close(vector(kept.sum()), wanted.sum(0))
    close(kept.gram(), wanted @ wanted.T)
    close(kept.norms(), np.linalg.norm(wanted, axis=1))
    close(vector(kept.second_moment()), (wanted**2).sum(0))
    close(flat(kept.materialize()), wanted)


def test_clip_can_replace_what_is_not_finite_by_zero(broken, rows):
    clipped = broken.clip(1.0, nonfinite="zero")
    factor = np.minimum(1, 1 / np.linalg.norm(flat(rows), axis=1)) * [1, 0, 1, 1]
    close(vector(clipped.sum()), factor @ flat(rows))
    close(clipped.norms(), factor * np.linalg.norm(flat(rows), axis=1))
    infinite = oracle.matrix(_with_first_numbers(jnp.inf)).clip(1.0, nonfinite="zero")
    close(vector(infinite.sum()), factor @ flat(rows))


def test_all_rows_zero():
    def loss(params, x):
        return 0.0 * jnp.sum(params["w"] @ x)

    G = gradkin.per_example_grads(loss)({"w": jnp.ones((3, 4))}, jnp.ones((2, 4)))
    for result in (G.norms(), G.clip(1.0).norms(), G.normalize().norms(), G.cosine(), G.mean()):
        assert all(not np.any(x) for x in jax.tree.leaves(result))
