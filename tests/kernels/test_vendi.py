"""Vendi scores: closed forms, NumPy, the reference package's values and its mistakes, gradients."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

import gradkin
from gradkin import kernels

ORDERS = (0.0, 0.5, 1.0, 2.0, 3.0, math.inf)
score_jit = jax.jit(kernels.vendi_score, static_argnames="normalize")
features_jit = jax.jit(
    kernels.vendi_score_features, static_argnames=("normalize", "method", "block")
)


def hill(p, q):
    """Hill number of order q in float64."""
    p = np.asarray(p, np.float64)
    p = p[p > 0]
    if q == 1:
        return np.exp(-np.sum(p * np.log(p)))
    if np.isinf(q):
        return 1 / p.max()
    return np.sum(p**q) ** (1 / (1 - q))


def reference(K, q=1.0, p=None):
    """The definition, in float64, eigenvalues below rounding left out."""
    K = np.asarray(K, np.float64)
    p = np.full(len(K), 1 / len(K)) if p is None else np.asarray(p, np.float64)
    values = np.linalg.eigvalsh(K * np.sqrt(np.outer(p, p)))
    return hill(np.where(values > 1e-12, values, 0) / values.sum(), q)


def unit_rows(key, n, d, dtype=jnp.float32):
    x = jax.random.normal(key, (n, d), dtype)
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def equicorrelated(n, s):
    return (1 - s) * np.eye(n) + s * np.ones((n, n))


@pytest.mark.parametrize("q", ORDERS)
def test_closed_forms(q):
    n, s = 12, 0.3
    spectrum = [(1 + (n - 1) * s) / n, *[(1 - s) / n] * (n - 1)]
    sizes = np.array([1, 3, 8])
    blocks = np.kron(np.eye(3), np.ones((8, 8)))
    index = np.concatenate([8 * i + np.arange(size) for i, size in enumerate(sizes)])
    np.testing.assert_allclose(score_jit(np.eye(n), order=q), n, rtol=1e-5)
    np.testing.assert_allclose(score_jit(np.ones((n, n)), order=q), 1, rtol=1e-5)
    np.testing.assert_allclose(score_jit(equicorrelated(n, s), order=q), hill(spectrum, q), 1e-5)
    found = score_jit(blocks[np.ix_(index, index)], order=q)
    np.testing.assert_allclose(found, hill(sizes / n, q), rtol=1e-5)


def test_two_points():
    for s, expected in ((0.5, 1.7547654), (1.0, 1.0), (0.0, 2.0)):
        K = np.array([[1, s], [s, 1]])
        np.testing.assert_allclose(kernels.vendi_score(K), expected, rtol=1e-5)


def test_values_of_the_reference_package():
    """vendi_score 0.0.3: ``vendi.score_K(K)`` of its README's two examples."""
    K = np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(kernels.vendi_score(K), 2.15730048, rtol=1e-5)
    points = jnp.array([0.0, 0.0, 10.0, 10.0, 20.0, 20.0])[:, None]
    K = gradkin.kernel_matrix(kernels.Laplacian(1.0), points)
    np.testing.assert_allclose(kernels.vendi_score(K), 2.99999600, rtol=1e-5)


@pytest.mark.parametrize("q", ORDERS)
def test_against_numpy_with_weights(q, key):
    x = unit_rows(key, 12, 20)
    p = np.linspace(1, 3, 12) / np.linspace(1, 3, 12).sum()
    K = np.asarray(x, np.float64) @ np.asarray(x, np.float64).T
    np.testing.assert_allclose(score_jit(K, order=q), reference(K, q), rtol=1e-5)
    np.testing.assert_allclose(score_jit(K, order=q, weights=p), reference(K, q, p), rtol=1e-5)
    by_gram = features_jit(x, order=q, weights=p, method="gram")
    np.testing.assert_allclose(by_gram, reference(K, q, p), rtol=1e-5)


def test_axioms(key):
    x = unit_rows(key, 9, 4)
    order = jax.random.permutation(key, 9)
    K = np.asarray(x @ x.T)
    value = kernels.vendi_score(K)
    assert 1 <= value <= 9
    np.testing.assert_allclose(kernels.vendi_score(K[np.ix_(order, order)]), value, rtol=1e-5)
    # A repeated point is one of the summed weight.
    twice = np.append(np.arange(9), [0, 0])
    p = np.append([3], np.ones(8)) / 11
    np.testing.assert_allclose(
        kernels.vendi_score(K[np.ix_(twice, twice)]), kernels.vendi_score(K, weights=p), rtol=1e-5
    )
    # Mutually dissimilar sets: the log-scores average, plus the entropy of the choice.
    share = 0.3
    both = np.block([[K, np.zeros((9, 3))], [np.zeros((3, 9)), equicorrelated(3, 0.5)]])
    p = np.append(np.full(9, share / 9), np.full(3, (1 - share) / 3))
    logs = [np.log(float(kernels.vendi_score(k))) for k in (K, equicorrelated(3, 0.5))]
    expected = share * logs[0] + (1 - share) * logs[1] + np.log(hill([share, 1 - share], 1))
    np.testing.assert_allclose(np.log(kernels.vendi_score(both, weights=p)), expected, rtol=1e-5)
    one = np.eye(9)[0]
    np.testing.assert_allclose(kernels.vendi_score(K, weights=one), 1, rtol=1e-5)
    scores = [float(kernels.vendi_score(K, order=q)) for q in (*ORDERS[:-1], 40.0, math.inf)]
    assert scores == sorted(scores, reverse=True)


def test_order_close_to_one(key):
    x = unit_rows(key, 12, 20)
    K = x @ x.T
    orders = jnp.array([0.999, 0.99999, 1.0, 1.00001, 1.001])
    scores = jax.vmap(lambda q: kernels.vendi_score(K, order=q))(orders)
    for q, score in zip(orders, scores):
        np.testing.assert_allclose(score, reference(K, float(q)), rtol=3e-6)


def test_normalize(key):
    x = jax.random.normal(key, (6, 9))
    K = np.asarray(x @ x.T)
    lengths = np.sqrt(np.diag(K))
    expected = reference(K / np.outer(lengths, lengths))
    np.testing.assert_allclose(kernels.vendi_score(K, normalize=True), expected, rtol=1e-5)
    np.testing.assert_allclose(kernels.vendi_score_features(x), expected, rtol=1e-5)
    np.testing.assert_allclose(kernels.vendi_score_features(1e25 * x), expected, rtol=1e-5)


class TestMistakesOfTheReferencePackage:
    """vendi_score 0.0.3, each checked by running it."""

    def test_order_counts_with_features(self, key):
        """``score_X(X, q=2)`` is the score of order 1."""
        x = unit_rows(key, 10, 4)
        assert abs(features_jit(x, order=2.0) - features_jit(x, order=1.0)) > 0.1
        np.testing.assert_allclose(features_jit(x, order=2.0), reference(x @ x.T, 2), rtol=1e-5)

    def test_rounding_is_no_rank(self):
        """Of a Gram matrix of rank 16, n = 200: order 0 gives 107, order 0.1 gives 18.34."""
        x = np.random.default_rng(0).normal(size=(200, 16))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        for dtype in (np.float32, np.float64):
            with jax.enable_x64(dtype == np.float64):
                K = jnp.asarray(x @ x.T, dtype)
                assert score_jit(K, order=0.0).round(3) == 16
                np.testing.assert_allclose(
                    score_jit(K, order=0.1), reference(x @ x.T, 0.1), rtol=1e-5
                )

    def test_infinite_order_is_a_number(self):
        """``q=float("inf")`` gives NaN; only the string "inf" works."""
        np.testing.assert_allclose(score_jit(equicorrelated(4, 0.5), order=math.inf), 1.6, 1e-6)

    def test_internal_diversity_of_features(self, key):
        """``intdiv_X`` raises a TypeError, ``intdiv`` a NameError."""
        x = unit_rows(key, 7, 3)
        K = gradkin.kernel_matrix(kernels.Cosine(), x)
        expected = 1 - float(jnp.mean(x @ x.T))
        np.testing.assert_allclose(kernels.internal_diversity(K), expected, rtol=1e-4)
        np.testing.assert_allclose(kernels.internal_diversity(x @ x.T), expected, rtol=1e-4)
        p = np.eye(7)[2]
        np.testing.assert_allclose(kernels.internal_diversity(K, weights=p), 0, atol=1e-6)
        expected = 1 - float(jnp.mean((x @ x.T) ** 2))
        np.testing.assert_allclose(kernels.internal_diversity(K, power=2), expected, rtol=1e-4)

    def test_weights_with_the_dual(self, key):
        """``score_dual`` has no weights."""
        x = unit_rows(key, 30, 4)
        p = np.arange(1, 31) / np.arange(1, 31).sum()
        found = features_jit(x, weights=p, method="covariance")
        np.testing.assert_allclose(found, reference(x @ x.T, 1, p), rtol=1e-5)


@pytest.mark.parametrize("q", ORDERS)
def test_gram_is_covariance(q):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (14, 5), jnp.float64)
        gram, dual = (features_jit(x, order=q, method=m) for m in ("gram", "covariance"))
        np.testing.assert_allclose(gram, dual, rtol=1e-8)


def test_large_n_in_float32():
    """With n >> d the Gram matrix's null eigenvalues come back as rounding."""
    x = np.random.default_rng(0).normal(size=(600, 8)) + 1.0
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(x.T @ x / 600)
    expected = hill(values, 1)
    for method in ("gram", "covariance"):
        found = features_jit(jnp.asarray(x, jnp.float32), method=method, normalize=False)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_small_eigenvalues_are_kept():
    """A smooth kernel has a long tail; what lies above rounding counts, in float32 too."""
    x = np.random.default_rng(0).normal(size=(300, 3))
    with jax.enable_x64(True):
        exact = kernels.vendi_score(gradkin.kernel_matrix(kernels.Gaussian(1.0), jnp.asarray(x)))
    found = score_jit(gradkin.kernel_matrix(kernels.Gaussian(1.0), jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(found, exact, rtol=3e-5)


@pytest.mark.parametrize("q", [0.5, 1.0, 1.7, math.inf])
def test_gradient_by_finite_differences(q, key):
    with jax.enable_x64(True):
        x = unit_rows(key, 5, 7, jnp.float64)
        K = x @ x.T
        symmetric = lambda a: kernels.vendi_score(K + 0.5 * (a + a.T), order=q)
        check_grads(jax.jit(symmetric), (jnp.zeros((5, 5)),), order=1, eps=1e-5, rtol=1e-6)
        check_grads(lambda x: kernels.vendi_score_features(x, order=q), (x,), 1, eps=1e-5)


def test_gradient_closed_form(key):
    """d log VS = -tr[(log rho + I) d rho], the identity dropping out where the diagonal stays."""
    with jax.enable_x64(True):
        x = unit_rows(key, 5, 7, jnp.float64)
        rho = np.asarray(x @ x.T) / 5
        values, vectors = np.linalg.eigh(rho)
        expected = -(vectors * np.log(values)) @ vectors.T / 5
        found = np.asarray(jax.grad(lambda K: jnp.log(kernels.vendi_score(K)))(x @ x.T))
        off = ~np.eye(5, dtype=bool)
        np.testing.assert_allclose(found[off], expected[off], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("q", ORDERS)
def test_gradient_is_finite_at_repeated_and_zero_eigenvalues(q):
    gradient = jax.jit(jax.grad(lambda K: kernels.vendi_score(K, order=q)))
    for K in (jnp.eye(6), equicorrelated(6, 0.5), np.ones((6, 6))):
        assert np.all(np.isfinite(gradient(jnp.asarray(K, jnp.float32))))
    # Points all different: no change of a similarity helps. Equicorrelated: less of it does.
    off = ~np.eye(6, dtype=bool)
    np.testing.assert_allclose(gradient(jnp.eye(6))[off], 0, atol=1e-5)
    if q > 0:
        assert np.all(gradient(jnp.asarray(equicorrelated(6, 0.5), jnp.float32))[off] < 0)
    x = jnp.ones((4, 3))
    assert np.all(np.isfinite(jax.grad(lambda x: kernels.vendi_score_features(x, order=q))(x)))


def test_ascent_spreads_points(key):
    """What the gradient is for: points pushed apart until they are orthogonal."""
    x = 1 + 0.1 * jax.random.normal(key, (4, 4))

    @jax.jit
    def ascend(x):
        move = lambda x, _: (x + 0.3 * jax.grad(kernels.vendi_score_features)(x), None)
        return jax.lax.scan(move, x, length=200)[0]

    before, after = features_jit(x, method="gram"), features_jit(ascend(x), method="gram")
    assert before < 1.5
    assert after > 3.9


def test_renyi_entropy(key):
    counts = np.array([5, 0, 3, 1])
    for q in ORDERS:
        np.testing.assert_allclose(
            jnp.exp(kernels.renyi_entropy(counts, order=q)), hill(counts / 9, q), rtol=1e-5
        )
    hard = jax.nn.one_hot(np.repeat(np.arange(4), counts), 4)
    np.testing.assert_allclose(
        features_jit(hard, normalize=False), jnp.exp(kernels.renyi_entropy(counts)), rtol=1e-6
    )
    with jax.enable_x64(True):
        p = jax.random.uniform(key, (5,), jnp.float64) + 0.1
        for q in (0.3, 1.0, 4.0):
            entropy = functools.partial(kernels.renyi_entropy, order=q)
            check_grads(entropy, (p,), order=1, eps=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="positive, finite sum"):
        kernels.renyi_entropy(np.zeros(3))
    with pytest.raises(ValueError, match="p >= 0"):
        kernels.renyi_entropy(np.array([0.5, -0.5]))


def test_kernel_matrix_of_order_two_streams(key):
    x = jax.random.normal(key, (40, 3))
    K = gradkin.kernel_matrix(kernels.Gaussian(1.0), x)
    dense = K.materialize()
    p = np.linspace(1, 2, 40) / np.linspace(1, 2, 40).sum()
    for matrix in (K, dense):
        for weights in (None, p):
            found = kernels.vendi_score(matrix, order=2, weights=weights)
            np.testing.assert_allclose(found, reference(dense, 2, weights), rtol=1e-5)
    np.testing.assert_allclose(kernels.vendi_score(K), reference(dense), rtol=1e-5)
    plain = gradkin.kernel_matrix(kernels.Linear(), x)
    for order in (1, 2):
        np.testing.assert_allclose(
            kernels.vendi_score(plain, order=order, normalize=True),
            kernels.vendi_score_features(x, order=order),
            rtol=1e-4,
        )


def test_masked_points_do_not_count(key):
    x = jax.random.normal(key, (20, 3))
    mask = jnp.arange(20) % 3 > 0
    for normalize in (False, True):
        for order in (1, 2):
            found, expected = (
                kernels.vendi_score(matrix, order=order, normalize=normalize)
                for matrix in (
                    gradkin.kernel_matrix(kernels.Gaussian(1.0), x, mask=mask),
                    gradkin.kernel_matrix(kernels.Gaussian(1.0), x[mask]),
                )
            )
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_masked_points_are_left_out_of_weights_and_diversity(key, weighted):
    x, kernel = jax.random.normal(key, (6, 2)), kernels.Gaussian(1.0)
    mask = jnp.array([True, True, False, True, False, True])
    p = jnp.arange(1.0, 7.0) / 21
    sides = (
        (gradkin.kernel_matrix(kernel, x, mask=mask), p),
        (gradkin.kernel_matrix(kernel, x[mask]), p[mask] / jnp.sum(p[mask])),
    )
    for value in (
        kernels.vendi_score,
        functools.partial(kernels.vendi_score, order=2),
        kernels.internal_diversity,
        functools.partial(kernels.internal_diversity, power=2),
    ):
        found, expected = (value(K, weights=w if weighted else None) for K, w in sides)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_refuses_matrices_of_two_sets_or_with_weights():
    x, kernel = jnp.ones((4, 2)), kernels.Gaussian(1.0)
    for K in (gradkin.kernel_matrix(kernel, x, x), gradkin.kernel_matrix(kernel, x).off_diagonal()):
        with pytest.raises(ValueError, match="points with themselves"):
            kernels.vendi_score(K)
    with pytest.raises(ValueError, match="weights= here"):
        kernels.vendi_score(gradkin.kernel_matrix(kernel, x, weights=jnp.ones(4)))


def test_low_rank_matrices(key):
    x = jax.random.normal(key, (30, 2))
    kernel = kernels.Gaussian(1.5)
    exact = reference(gradkin.kernel_matrix(kernel, x).materialize())
    p = np.linspace(1, 2, 30) / np.linspace(1, 2, 30).sum()
    through = kernels.random_features(key, kernel, x, size=64)
    written = through.materialize()
    np.testing.assert_allclose(kernels.vendi_score(through), reference(written), rtol=1e-4)
    np.testing.assert_allclose(
        kernels.vendi_score(through, weights=p), reference(written, 1, p), rtol=1e-4
    )
    found = kernels.vendi_score(kernels.nystrom(key, kernel, x, rank=29), normalize=True)
    np.testing.assert_allclose(found, exact, rtol=1e-2)
    assert kernels.internal_diversity(through) < 1


def test_under_vmap_and_precision(key):
    xs = jax.random.normal(key, (3, 8, 5))
    mapped = jax.vmap(kernels.vendi_score_features)(xs)
    single = [float(features_jit(x)) for x in xs]
    np.testing.assert_allclose(mapped, single, rtol=1e-5)
    half = kernels.vendi_score_features(xs[0].astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, single[0], rtol=1e-2)


# Streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [96, 97], ids=["has a divisor", "prime"])
def test_blocks(n, key):
    x = jax.random.normal(key, (n, 4))
    w = jax.random.uniform(key, (n,))
    whole = kernels.second_moment(x, weights=w)
    blocked = kernels.second_moment(x, weights=w, block=10)
    unit = np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(
        whole.matrix, (unit * np.asarray(w)[:, None]).T @ unit, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(blocked.matrix, whole.matrix, rtol=1e-4, atol=1e-5)
    gradients = [
        jax.grad(lambda x, b=b: kernels.vendi_score_features(x, block=b))(x) for b in (None, 10)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-7)


def test_batches_merge(key):
    x = jax.random.normal(key, (60, 4))
    parts = [kernels.second_moment(part) for part in jnp.split(x, 3)]
    total = functools.reduce(lambda a, b: a.merge(b), parts)
    assert total.weight == 60
    for q in (1.0, 2.0):
        np.testing.assert_allclose(
            total.vendi_score(order=q), features_jit(x, order=q, method="covariance"), rtol=1e-5
        )


def test_memory_is_bounded():
    """Beside the points, a few blocks: nothing that grows with their number."""

    def temporary(n):
        moment = jax.jit(lambda x: kernels.second_moment(x, block=1000).matrix)
        compiled = moment.lower(jax.ShapeDtypeStruct((n, 16), jnp.float32)).compile()
        analysis: Any = compiled.memory_analysis()
        return analysis.temp_size_in_bytes

    small, large = temporary(20_000), temporary(160_000)
    assert large < 160_000 * 16 * 4 / 4
    assert large <= small + 160_000 * 4 * 2  # the weights are the one vector as long as the points


def test_sharded_rows_stay(mesh, key):
    x = jax.random.normal(key, (320, 6))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    scorer = jax.jit(lambda x: kernels.vendi_score_features(x, block=32))
    np.testing.assert_allclose(scorer(split), scorer(x), rtol=1e-5)
    moment = jax.jit(lambda x: kernels.second_moment(x, block=32).matrix)
    text = moment.lower(split).compile().as_text() or ""
    assert "all-reduce" in text
    assert not re.search("all-gather|all-to-all|collective-permute", text)
    K = jax.device_put(x @ x.T, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(
        score_jit(K, normalize=True), score_jit(x @ x.T, normalize=True), rtol=1e-5
    )


# Bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("K", "options", "match"),
    [
        (np.ones((2, 3)), {}, "square matrix"),
        (np.ones((0, 0)), {}, "not empty"),
        (np.array([[1, np.nan], [np.nan, 1]]), {}, "finite"),
        (np.array([[1, 0.2], [0.7, 1]]), {}, "symmetric"),
        (2 * np.eye(3), {}, "ones on the diagonal"),
        (np.diag([1.0, 0.0]), {"normalize": True}, "diagonal of K > 0"),
        (np.eye(3) - 3 * (1 - np.eye(3)), {}, "semidefinite"),
        (np.eye(3), {"order": -1.0}, "order >= 0"),
        (np.eye(3), {"order": math.nan}, "order >= 0"),
        (np.eye(3), {"weights": np.ones(2) / 2}, "weights of shape"),
        (np.eye(3), {"weights": np.ones(3)}, "sum to 1"),
        (np.eye(3), {"weights": np.array([1.5, -0.5, 0])}, "weights >= 0"),
    ],
)
def test_bad_matrix(K, options, match):
    with pytest.raises(ValueError, match=match):
        kernels.vendi_score(K, **options)


def test_traced_matrix_that_is_not_semidefinite_gives_nan():
    assert np.isnan(score_jit(np.eye(3) - 3 * (1 - np.eye(3))))


@pytest.mark.parametrize(
    ("x", "options", "match"),
    [
        (np.ones(3), {}, "2 axes"),
        (np.ones((0, 3)), {}, "empty"),
        (np.array([[np.inf, 1.0]]), {}, "finite"),
        (np.array([[0.0, 0.0], [1.0, 0.0]]), {}, "zero"),
        (2 * np.ones((2, 2)), {"normalize": False}, "length 1"),
        (np.ones((2, 2)), {"method": "dual"}, "method"),
        (np.ones((2, 2)), {"order": -0.5}, "order >= 0"),
        (np.ones((2, 2)), {"block": 0, "method": "covariance"}, "block > 0"),
        (np.ones((2, 2)), {"weights": np.ones(2)}, "sum to 1"),
    ],
)
def test_bad_features(x, options, match):
    with pytest.raises(ValueError, match=match):
        kernels.vendi_score_features(x, **options)


def test_bad_moment_and_diversity():
    with pytest.raises(ValueError, match="weights of shape"):
        kernels.second_moment(np.ones((3, 2)), weights=np.ones(2))
    with pytest.raises(ValueError, match="weights >= 0"):
        kernels.second_moment(np.ones((3, 2)), weights=-np.ones(3))
    with pytest.raises(ValueError, match="square"):
        kernels.internal_diversity(np.ones((3, 2)))
    with pytest.raises(ValueError, match="power > 0"):
        kernels.internal_diversity(np.eye(3), power=0)
