"""Tversky similarity: the paper's equations by loops, classical indices, and the layer."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

import gradkin
from gradkin import similarity
from gradkin.similarity import features
from gradkin.similarity.tversky import AGGREGATES, DIFFERENCES, INTERSECTIONS, MODELS

REDUCTIONS = list(itertools.product(INTERSECTIONS, DIFFERENCES, AGGREGATES))


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(5), 3)
    return tuple(jax.random.normal(k, (n, 4)) for k, n in zip(keys, (5, 3, 7)))


@jax.jit
def all_reductions(a, b, bank):
    """Both models' similarities for every reduction."""
    weights: Any = {"alpha": 0.7, "beta": 0.2, "theta": 1.3, "smoothing": 1.0}
    return {
        (*names, model): similarity.tversky_similarity(
            a,
            b,
            bank,
            model=model,
            intersection=names[0],
            difference=names[1],
            aggregate=names[2],
            **weights,
        )
        for names in REDUCTIONS
        for model in MODELS
    }


def reduce_pair(p, q, name) -> Any:
    """One of the reductions of two positive numbers."""
    return {
        "product": lambda: p * q,
        "min": lambda: min(p, q),
        "max": lambda: max(p, q),
        "mean": lambda: (p + q) / 2,
        "gmean": lambda: np.sqrt(p * q),
        "softmin": lambda: -np.log(np.exp(-p) + np.exp(-q)),
    }[name]()


def by_definition(a, b, bank, intersection, difference, aggregate):
    """f(A n B), f(A - B) and f(B - A) of two vectors, feature by feature."""
    pairs = [(float(a @ f), float(b @ f)) for f in bank]
    both = [(p, q) for p, q in pairs if p > 0 and q > 0]
    only_a = sum(p for p, q in pairs if p > 0 and q <= 0)
    only_b = sum(q for p, q in pairs if q > 0 and p <= 0)
    sums = [sum(p for p, _ in both), sum(q for _, q in both)]
    if aggregate == "feature" or intersection == "product":
        common = sum(reduce_pair(p, q, intersection) for p, q in both)
    else:
        common = reduce_pair(sums[0], sums[1], intersection)
    if difference == "subtractmatch":
        compared = both if aggregate == "feature" else [sums]
        only_a += sum(max(p - q, 0) for p, q in compared)
        only_b += sum(max(q - p, 0) for p, q in compared)
    return common, only_a, only_b


@pytest.mark.parametrize("names", REDUCTIONS, ids="-".join)
def test_against_definition(problem, names):
    a, b, bank = (np.asarray(x, np.float64) for x in problem)
    found = all_reductions(*problem)
    for i, j in itertools.product(range(len(a)), range(len(b))):
        common, only_a, only_b = by_definition(a[i], b[j], bank, *names)
        contrast = 1.3 * common - 0.7 * only_a - 0.2 * only_b
        ratio = common / (common + 0.7 * only_a + 0.2 * only_b + 1)
        np.testing.assert_allclose(
            found[(*names, "contrast")][i, j], contrast, rtol=2e-5, atol=1e-5
        )
        np.testing.assert_allclose(found[(*names, "ratio")][i, j], ratio, rtol=2e-5, atol=1e-5)


def test_classical_index_of_sets():
    """One-hot features: the ratio model is Tversky's index, Jaccard's and Dice's."""
    sets = np.random.default_rng(0).integers(0, 2, (6, 9)).astype(np.float32)
    sets[:, 0] = 1
    options: Any = {"model": "ratio", "intersection": "min"}
    both = sets @ sets.T
    either = sets.sum(1)[:, None] + sets.sum(1)[None] - both
    x, bank = jnp.asarray(sets), jnp.eye(9)
    jaccard = similarity.tversky_similarity(x, x, bank, alpha=1.0, beta=1.0, **options)
    dice = similarity.tversky_similarity(x, x, bank, **options)
    np.testing.assert_allclose(jaccard, both / either, rtol=1e-6)
    np.testing.assert_allclose(dice, 2 * both / (both + either), rtol=1e-6)
    from gradkin import kernels

    kernel = kernels.Tversky(0.3, 0.8)  # the kernel compares sets as they are, without a bank
    found = similarity.tversky_similarity(x, x, bank, alpha=0.3, beta=0.8, **options)
    np.testing.assert_allclose(found, kernel.tile(x, x), rtol=1e-5)


def test_symmetry_and_its_lack(problem):
    a, b, bank = problem
    one = lambda a, b, alpha, beta: similarity.tversky_similarity(
        a, b, bank, alpha=alpha, beta=beta
    )
    np.testing.assert_allclose(one(a, b, 0.4, 0.4), one(b, a, 0.4, 0.4).T, rtol=1e-5, atol=1e-6)
    excess = (one(a, b, 0.0, 1.0) - one(a, b, 1.0, 0.0)) * 0.5  # half f(A - B) - f(B - A)
    difference = one(a, b, 0.2, 0.7) - one(b, a, 0.2, 0.7).T
    np.testing.assert_allclose(difference, excess, rtol=1e-4, atol=1e-5)


def test_bank_of_signs_gives_products_of_one_sign(problem):
    a, b, _ = problem
    bank = jnp.concatenate([jnp.eye(4), -jnp.eye(4)])
    found = similarity.tversky_similarity(a, b, bank, alpha=0.0, beta=0.0)
    plus, minus = jax.nn.relu(a) @ jax.nn.relu(b).T, jax.nn.relu(-a) @ jax.nn.relu(-b).T
    np.testing.assert_allclose(found, plus + minus, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_of_itself(problem, difference):
    a, _, bank = problem
    options: Any = {"intersection": "min", "difference": difference}
    found = similarity.tversky_similarity(a, a, bank, model="ratio", **options)
    np.testing.assert_allclose(jnp.diagonal(found), 1, rtol=1e-6)
    contrast = similarity.tversky_similarity(a, a, bank, **options)
    np.testing.assert_allclose(jnp.diagonal(contrast), similarity.salience(a, bank), rtol=1e-6)


def test_features_in_groups_give_the_same(problem, monkeypatch):
    a, b, bank = problem

    def value_and_grad():
        def total(a):
            found = similarity.tversky_similarity(a, b, bank, intersection="softmin")
            return jnp.sum(found**2)

        return jax.jit(jax.value_and_grad(total))(a)

    whole = value_and_grad()
    monkeypatch.setattr(features, "LARGEST", 30)  # two features at a time: 2 + 2 + 2 + 1
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), value_and_grad(), whole)


def test_nan_is_not_hidden(problem):
    a, b, bank = problem
    found = similarity.tversky_similarity(a.at[1, 2].set(jnp.nan), b, bank)
    assert np.all(np.isnan(found[1]))
    assert np.all(np.isfinite(found[jnp.array([0, 2, 3, 4])]))


def test_sets_and_salience(problem):
    a, _, bank = problem
    products = np.asarray(a @ bank.T)
    np.testing.assert_array_equal(similarity.feature_sets(a, bank), products > 0)
    above = np.where(products > 0.5, products, 0).sum(1)
    np.testing.assert_allclose(similarity.salience(a, bank, threshold=0.5), above, rtol=1e-6)


def test_closed_form_of_exclusive_or():
    params = similarity.TverskyParams(
        prototypes=jnp.array([[1.0, 0.0], [0.0, 2.0]]),
        bank=jnp.array([[1.0, -1.0], [-1.0, 1.0]]),
        alpha=jnp.array(-4.5),
        beta=jnp.array(1.0),
        theta=jnp.array(2.0),
    )
    x = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    scores = similarity.tversky_projection(params, x)
    np.testing.assert_allclose(scores, [[-1, -2], [3.5, 4], [2, 2.5], [-1, -2]], rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"intersection": "gmean", "difference": "subtractmatch", "normalize": True},
        {"intersection": "softmin", "model": "ratio", "smoothing": 1.0},
        {"intersection": "max", "difference": "subtractmatch", "aggregate": "sum"},
    ],
)
def test_gradients(options):
    """Finite differences, where no inner product is near the threshold."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 2)
        params = similarity.init_tversky(
            keys[0], features_in=4, features_out=2, bank_size=3, init="normal", dtype=np.float64
        )
        x = jax.random.normal(keys[1], (3, 4), jnp.float64)
        margin = min(jnp.abs(y @ params.bank.T).min() for y in (x, params.prototypes))
        assert margin > 1e-3
        apply = jax.jit(lambda p, x: similarity.tversky_projection(p, x, **options))
        assert apply(params, x).dtype == jnp.float64
        check_grads(apply, (params, x), order=1, modes=["rev"], eps=1e-6, rtol=1e-5, atol=1e-7)


def test_empty_sets_have_values_and_finite_gradients():
    a, b, bank = -jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.eye(2)
    values = all_reductions(a, b, bank)
    # The softmin of two empty sums is -log 2, as in the authors' library.
    zero = {name: v for name, v in values.items() if (name[0], name[2]) != ("softmin", "sum")}
    assert len(zero) == len(values) - 2 * len(DIFFERENCES)
    assert all(value == 0 for value in zero.values())

    def total(a, b, bank):
        one = lambda **options: jnp.sum(similarity.tversky_similarity(a, b, bank, **options))
        return (
            one(intersection="gmean", aggregate="sum")
            + one(intersection="gmean", model="ratio")
            + one(intersection="softmin", difference="subtractmatch", normalize=True)
        )

    grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(a, b, bank)
    assert all(np.all(np.isfinite(g)) for g in grads)
    normalized = lambda a: jnp.sum(similarity.tversky_similarity(a, b, bank, normalize=True))
    np.testing.assert_array_equal(jax.grad(normalized)(b), 0)


def test_projection_of_batches_and_examples(problem, mesh):
    x, _, _ = problem
    params = similarity.init_tversky(
        jax.random.key(1), features_in=4, features_out=3, bank_size=6, init="normal"
    )
    apply = jax.jit(lambda x: similarity.tversky_projection(params, x, intersection="min"))
    whole = apply(x)
    np.testing.assert_allclose(jax.vmap(apply)(x), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply(x[None, :, None])[0, :, 0], whole, rtol=1e-5, atol=1e-6)
    eight = jnp.concatenate([x, x[:3]])
    split = jax.device_put(eight, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(apply(split)[:5], whole, rtol=1e-5, atol=1e-6)


def test_per_example_gradients_of_the_layer(problem):
    x, _, _ = problem
    params = similarity.init_tversky(jax.random.key(1), features_in=4, features_out=3, bank_size=6)
    loss = lambda params, x: jnp.sum(similarity.tversky_projection(params, x) ** 2)
    norms = jax.jit(lambda p, x: gradkin.per_example_grads(loss)(p, x).norms())(params, x)
    plain = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, x)
    expected = np.sqrt(sum(np.square(g).reshape(5, -1).sum(1) for g in jax.tree.leaves(plain)))
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_initializers(key):
    sizes: Any = {"features_in": 100, "features_out": 20, "bank_size": 50}
    uniform = similarity.init_tversky(key, **sizes)
    assert uniform.prototypes.shape == (20, 100)
    assert uniform.bank.shape == (50, 100)
    assert 0 <= uniform.bank.min() < 0.01 < 0.99 < uniform.bank.max() < 1
    normal = similarity.init_tversky(key, init="normal", **sizes)
    np.testing.assert_allclose(normal.bank.std(), 0.1, rtol=0.05)
    assert (float(normal.alpha), float(normal.beta), float(normal.theta)) == (0.5, 0.5, 1.0)
    assert not np.allclose(normal.bank[:20], normal.prototypes)


def test_nnx_layer_and_sharing(key, problem):
    nnx = pytest.importorskip("flax.nnx")
    x, _, _ = problem
    params = similarity.init_tversky(key, features_in=4, features_out=3, bank_size=6)
    first = similarity.nnx_tversky_projection(params, normalize=True)
    expected = similarity.tversky_projection(params, x, normalize=True)
    np.testing.assert_allclose(first(x), expected, rtol=1e-6)
    np.testing.assert_array_equal(first.params().bank, params.bank)

    second = similarity.nnx_tversky_projection(params, bank=first.bank)
    shared = nnx.List([first, second])
    assert len(jax.tree.leaves(nnx.split(shared, nnx.Param)[1])) == 9  # one bank, not two
    grads = nnx.grad(lambda module: jnp.sum(module[0](x) + module[1](x)))(shared)
    assert len(jax.tree.leaves(grads)) == 9


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"model": "product"}, "model"),
        ({"intersection": "sum"}, "intersection"),
        ({"difference": "substractmatch"}, "difference"),
        ({"aggregate": "mean"}, "aggregate"),
        ({"threshold": -0.1}, "threshold"),
        ({"smoothing": -1.0}, "smoothing"),
    ],
)
def test_bad_options(problem, options, match):
    with pytest.raises(ValueError, match=f"Expected {match}"):
        similarity.tversky_similarity(*problem, **options)


def test_bad_sizes(key, problem):
    a, b, bank = problem
    with pytest.raises(ValueError, match=r"at least one feature, got bank.shape=\(0, 4\)"):
        similarity.tversky_similarity(a, b, bank[:0])
    with pytest.raises(ValueError, match=r"one width, got b.shape=\(3, 3\) and bank"):
        similarity.tversky_similarity(a, b[:, :3], bank)
    with pytest.raises(ValueError, match="a to have 2 axes"):
        similarity.tversky_similarity(a[0], b, bank)
    with pytest.raises(ValueError, match="bank_size > 0"):
        similarity.init_tversky(key, features_in=2, features_out=2, bank_size=0)
    with pytest.raises(ValueError, match="init"):
        similarity.init_tversky(key, features_in=2, features_out=2, bank_size=1, init="zeros")
