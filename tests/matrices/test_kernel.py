"""Every verb of a kernel matrix, against the matrix written down in float64."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest

import gradkin
from gradkin import kernels

RNG = np.random.default_rng(0)
N, M, D = 21, 13, 6
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = RNG.normal(size=(M, D)).astype(np.float32)
WEIGHTS = np.linspace(-0.5, 2, M).astype(np.float32)
ROWS, COLUMNS = np.arange(N) % 5 != 0, np.arange(M) % 4 != 1
RIGHT = RNG.normal(size=(M, 3)).astype(np.float32)
LEFT = RNG.normal(size=(3, N)).astype(np.float32)


def written_down(x=X, y=Y, h=1.5):
    squares = np.sum((x[:, None].astype(float) - y[None]) ** 2, axis=-1)
    return np.exp(-squares / (2 * h**2))


def pairs(x, y):
    """A Gaussian kernel as a user would write it."""
    return jnp.exp(-jnp.sum(jnp.square(x - y)) / (2 * 1.5**2))


def broken(points, keep):
    """Points that hold NaN where they are masked."""
    return np.where(keep[:, None], points, np.nan).astype(np.float32)


def least(R, k):
    """Indices of the k least entries per row."""
    return np.argsort(R, axis=1, kind="stable")[:, :k]


@jax.jit
def read(K, right, left):
    return {
        "right": K @ right,
        "vector": K @ right[:, 0],
        "left": left @ K,
        "sum": K.sum(),
        "columns": K.sum(axis=0),
        "rows": K.sum(axis=-1),
        "norm": K.frobenius_norm(),
        "inner": K.inner(K),
        "max": K.max(),
        "greatest rows": K.max(axis=1),
        "greatest columns": K.max(axis=0),
        "least": K.top_k(4, largest=False)[0],
        "entries": K.materialize(),
        "turned": K.T.materialize().T,
    }


def wanted(R, right, left, missing=None):
    low = R if missing is None else np.where(missing, -np.inf, R)
    high = R if missing is None else np.where(missing, np.inf, R)
    return {
        "right": R @ right,
        "vector": R @ right[:, 0],
        "left": left @ R,
        "sum": R.sum(),
        "columns": R.sum(0),
        "rows": R.sum(1),
        "norm": np.linalg.norm(R),
        "inner": (R**2).sum(),
        "max": low.max(),
        "greatest rows": low.max(1),
        "greatest columns": low.max(0),
        "least": np.sort(high, axis=1)[:, :4],
        "entries": R,
        "turned": R,
    }


def same(found, expected, tolerance=1e-5):
    for name in expected:
        np.testing.assert_allclose(
            found[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": kernels.Gaussian(1.5), "block": 8, "weights": WEIGHTS},
        {"kernel": pairs, "block": 5, "weights": WEIGHTS},
    ],
    ids=["tile", "function"],
)
def test_verbs(options):
    K = gradkin.kernel_matrix(x=X, y=Y, **options)
    R = written_down() * options.get("weights", np.ones(M))
    same(read(K, RIGHT, LEFT), wanted(R, RIGHT, LEFT))
    same(
        {"mean": K.mean(), "columns": K.mean(0), "rows": K.mean(1)},
        {"mean": R.mean(), "columns": R.mean(0), "rows": R.mean(1)},
    )


def test_masked_points_are_never_read():
    """What is left out may be NaN, in points and in weights; it counts nowhere."""
    kernel = kernels.Gaussian(1.5)
    K = gradkin.kernel_matrix(
        kernel,
        broken(X, ROWS),
        broken(Y, COLUMNS),
        weights=np.where(COLUMNS, WEIGHTS, np.nan),
        mask=(ROWS, COLUMNS),
        block=8,
    )
    present = ROWS[:, None] & COLUMNS[None]
    R = np.where(present, written_down() * WEIGHTS, 0)
    found = read(K, RIGHT, LEFT)
    same(found, wanted(R, RIGHT, LEFT, ~present))
    assert float(K.mean()) == pytest.approx(R.sum() / present.sum(), rel=1e-5)
    np.testing.assert_allclose(K.mean(0)[COLUMNS], R.sum(0)[COLUMNS] / ROWS.sum(), rtol=1e-5)
    assert not np.any(K.mean(0)[~COLUMNS])
    # Nor is what stands at them in a vector.
    right = np.where(COLUMNS, RIGHT[:, 0], np.nan)
    np.testing.assert_allclose(K @ right, R @ np.where(COLUMNS, right, 0), rtol=1e-4, atol=1e-5)
    one_sided = gradkin.kernel_matrix(pairs, X, broken(Y, COLUMNS), mask=(None, COLUMNS))
    np.testing.assert_allclose(one_sided.sum(1), written_down()[:, COLUMNS].sum(1), rtol=1e-5)


def test_numpy_does_not_wrap_it():
    K = gradkin.kernel_matrix(kernels.Gaussian(), X)
    with pytest.raises(TypeError, match=r"Expected K.materialize\(\)"):
        np.asarray(K)
    with pytest.raises(TypeError, match="function of two points, got a ndarray"):
        gradkin.kernel_matrix(X, cast(Any, kernels.Gaussian()))


def test_points_with_themselves():
    K = gradkin.kernel_matrix(kernels.Euclidean(), X + np.float32(1e3), block=8)
    R = np.sqrt(np.sum((X[:, None].astype(float) - X[None]) ** 2, axis=-1))
    found = np.asarray(K.materialize())
    np.testing.assert_allclose(found, R, rtol=1e-3)
    # Not rounding noise of the matrix product.
    np.testing.assert_array_equal(np.diagonal(found), np.zeros(N))
    np.testing.assert_array_equal(K.diagonal(), np.zeros(N))
    assert float(K.trace()) == 0
    G = gradkin.kernel_matrix(kernels.Gaussian(1.5), X, mask=ROWS)
    assert float(G.trace()) == ROWS.sum()
    assert G.T.materialize().shape == (N, N)
    rectangular = gradkin.kernel_matrix(kernels.Gaussian(1.5), X, X[::-1])
    np.testing.assert_allclose(
        rectangular.diagonal(), np.diagonal(written_down(X, X[::-1])), rtol=1e-5
    )


def test_without_the_diagonal():
    K = gradkin.kernel_matrix(kernels.Gaussian(1.5), broken(X, ROWS), mask=ROWS, block=8)
    R = np.where(ROWS[:, None] & ROWS & ~np.eye(N, dtype=bool), written_down(X, X), 0)
    off = K.off_diagonal()
    counts = ROWS.sum() * (ROWS.sum() - 1)
    found = jax.jit(
        lambda K: (K.sum(), K.mean(), K.sum(1), K.logsumexp(1), K.max(1), K.trace(), K.mean(0))
    )(off)
    with np.errstate(divide="ignore"):
        logs = np.log(R.sum(1))
    mean = np.where(ROWS, R.sum(1) / (ROWS.sum() - 1), 0)
    greatest = np.where(ROWS, R.max(1), -np.inf)
    for value, expected in zip(
        found, (R.sum(), R.sum() / counts, R.sum(1), logs, greatest, 0, mean)
    ):
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert not np.any((np.asarray(off.top_k(3)[1]) == np.arange(N)[:, None])[ROWS])


def test_transpose_of_an_asymmetric_kernel():
    sets = (np.abs(X) > 0.5).astype(np.float32)
    for K in (
        gradkin.kernel_matrix(kernels.Tversky(0.1, 0.9), sets, weights=np.arange(N)),
        gradkin.kernel_matrix(lambda x, y: jnp.vdot(x, y) * x[0], X),
    ):
        entries = np.asarray(K.materialize())
        assert not np.allclose(entries, entries.T)
        np.testing.assert_allclose(K.T.materialize(), entries.T, rtol=1e-6)
        np.testing.assert_allclose(K.T.T.materialize(), entries, rtol=1e-6)
        np.testing.assert_allclose(K.sum(0), entries.sum(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(K.T.sum(0), entries.sum(1), rtol=1e-4, atol=1e-4)


def test_logsumexp_far_away():
    """Entries underflow in float32; their logarithms do not."""
    far = X + np.float32(100)
    K = gradkin.kernel_matrix(kernels.Gaussian(1.5), far, Y, weights=np.abs(WEIGHTS), block=8)
    logs = -np.sum((far[:, None].astype(float) - Y[None]) ** 2, axis=-1) / 4.5
    with np.errstate(divide="ignore"):
        logs = logs + np.log(np.abs(WEIGHTS).astype(float))
    assert not np.any(K.sum(1))
    rows, columns, whole = jax.jit(lambda K: (K.logsumexp(1), K.logsumexp(0), K.logsumexp()))(K)
    np.testing.assert_allclose(rows, np.logaddexp.reduce(logs, axis=1), rtol=1e-5)
    np.testing.assert_allclose(columns, np.logaddexp.reduce(logs, axis=0), rtol=1e-5)
    np.testing.assert_allclose(whole, np.logaddexp.reduce(logs, axis=None), rtol=1e-5)


def test_logsumexp_has_a_derivative_at_a_weight_of_zero():
    """It is the entry over the sum, as for any weight."""
    x = jnp.arange(3.0)
    entries = np.exp(-(np.subtract.outer(np.arange(3.0), np.arange(3.0)) ** 2) / 2)

    def total(weights, turn):
        K = gradkin.kernel_matrix(kernels.Gaussian(1.0), x, weights=weights)
        return (K.T if turn else K).logsumexp()

    weights = jnp.array([1.0, 0.0, 2.0])
    wanted = entries.sum(0) / (entries @ np.asarray(weights)).sum()
    for turn in (False, True):
        np.testing.assert_allclose(jax.grad(total)(weights, turn), wanted, rtol=1e-5)


def test_logsumexp_of_what_is_not_there():
    nothing = np.zeros(M, bool)
    K = gradkin.kernel_matrix(kernels.Gaussian(), X, Y, mask=(None, nothing))
    total, gradient = jax.value_and_grad(
        lambda x: jnp.sum(
            jnp.exp(gradkin.kernel_matrix(pairs, x, Y, mask=(None, nothing)).logsumexp(1))
        )
    )(X)
    assert np.all(K.logsumexp(1) == -np.inf)
    assert float(K.max()) == -np.inf
    assert float(K.mean()) == 0
    assert (float(total), float(jnp.sum(gradient))) == (0, 0)
    negative = gradkin.kernel_matrix(kernels.Linear(), X, Y)
    assert np.all(np.isnan(negative.logsumexp(1)))
    zeros = gradkin.kernel_matrix(kernels.Linear(), 0 * X, Y)
    assert np.all(zeros.logsumexp(1) == -np.inf)


def test_top_k():
    R = written_down()
    K = gradkin.kernel_matrix(kernels.Gaussian(1.5), X, Y, block=8)
    values, indices = K.top_k(3)
    np.testing.assert_array_equal(indices, least(-R, 3))
    np.testing.assert_allclose(values, np.take_along_axis(R, least(-R, 3), 1), rtol=1e-5)
    few = gradkin.kernel_matrix(
        kernels.SquaredEuclidean(), X, Y, mask=(None, np.arange(M) < 2), block=8
    )
    values, indices = few.top_k(3, largest=False)
    assert np.all(np.isinf(values[:, 2]))
    assert np.all(np.asarray(indices[:, :2]) < 2)


@pytest.mark.parametrize(("n", "m", "block"), [(1, 7, None), (17, 1, 4)])
def test_any_size(n, m, block):
    x, y = X[:n], np.resize(Y, (m, D))
    K = gradkin.kernel_matrix(kernels.Gaussian(1.5), x, y, block=block)
    R = written_down(x, y)
    found = jax.jit(lambda K: (K.sum(), K.sum(0), K.logsumexp(1), K.top_k(1)[0], K.T.max(1)))(K)
    for value, expected in zip(
        found, (R.sum(), R.sum(0), np.log(R.sum(1)), R.max(1)[:, None], R.max(0))
    ):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_is_a_pytree():
    """Through jit, scan and vmap; another bandwidth does not compile again."""
    traces = []

    @jax.jit
    def total(K):
        traces.append(1)
        return K.sum()

    matrices = [gradkin.kernel_matrix(kernels.Gaussian(h), X, Y) for h in (1.0, 1.5)]
    totals = [float(total(K)) for K in matrices]
    assert len(traces) == 1
    assert jax.tree.structure(matrices[0]) == jax.tree.structure(matrices[1])
    mapped = jax.vmap(lambda h: gradkin.kernel_matrix(kernels.Gaussian(h), X, Y).sum())
    np.testing.assert_allclose(mapped(jnp.array([1.0, 1.5])), totals, rtol=1e-6)
    batch = np.stack([X, 2 * X])
    blocked = lambda x: gradkin.kernel_matrix(kernels.Gaussian(1.5), x, Y, block=8).logsumexp(1)
    np.testing.assert_allclose(
        jax.vmap(blocked)(batch), np.stack([blocked(x) for x in batch]), rtol=1e-5
    )
    carried, _ = jax.lax.scan(lambda K, _: (K, K.sum()), matrices[1], length=2)
    assert float(carried.sum()) == pytest.approx(totals[1], rel=1e-6)


def test_numbers_of_other_kinds():
    K = gradkin.kernel_matrix(kernels.Linear(), np.arange(4), np.arange(3))
    assert (K.dtype, K.shape, len(K)) == (np.float32, (4, 3), 4)
    np.testing.assert_array_equal(K @ np.arange(3), np.arange(4) * 5)
    np.testing.assert_array_equal(np.arange(4) @ K, np.arange(3) * 14)
    half = gradkin.kernel_matrix(kernels.Gaussian(1.5), X.astype(jnp.bfloat16))
    assert half.dtype == np.float32
    counts = gradkin.kernel_matrix(lambda x, y: jnp.sum(x == y), np.array([[1, 2], [1, 3]]))
    np.testing.assert_array_equal(counts.materialize(), [[2, 1], [1, 2]])


def test_solved_by_conjugate_gradients():
    """What needs products only takes the matrix as it is."""
    K = gradkin.kernel_matrix(kernels.Gaussian(1.5), X, block=8)
    operator = lineax.FunctionLinearOperator(
        lambda v: K @ v + 0.1 * v,
        jax.ShapeDtypeStruct((N,), np.float32),
        lineax.positive_semidefinite_tag,
    )
    solver = lineax.CG(rtol=1e-6, atol=1e-6)
    found = jax.jit(lambda b: lineax.linear_solve(operator, b, solver).value)(LEFT[0])
    expected = np.linalg.solve(written_down(X, X) + 0.1 * np.eye(N), LEFT[0])
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


def test_lanczos_of_products():
    from matfree import decomp

    K = gradkin.kernel_matrix(kernels.Gaussian(1.5), X, block=8)
    tridiagonal = decomp.tridiag_sym(8)
    found = tridiagonal(lambda v: K @ v, LEFT[0])
    eigenvalues = np.linalg.eigvalsh(np.asarray(found.J_small))
    assert eigenvalues.max() == pytest.approx(
        np.linalg.eigvalsh(written_down(X, X)).max(), rel=1e-2
    )


def test_memory_is_that_of_points():
    """A value and its gradient at 16 times the entries: not 16 times the bytes."""

    def temporaries(n, step):
        shape = jax.ShapeDtypeStruct((n, D), np.float32)
        analysis: Any = jax.jit(step).lower(shape, shape).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    def loss(x, y):
        K = gradkin.kernel_matrix(kernels.Gaussian(1.5), x, y, block=8)
        return jnp.sum(jnp.sin(K @ y)) + jnp.sum(K.logsumexp(1))

    step = jax.value_and_grad(loss, argnums=(0, 1))
    small, large = temporaries(2000, step), temporaries(8000, step)
    assert large < 4.5 * small
    assert large < 8000 * 8000 * 4 / 20


def test_explain_and_repr():
    K = gradkin.kernel_matrix(kernels.Gaussian(1.5), X, Y, block=8)
    said = K.explain()
    assert (said.panels, said.panel_rows, said.panel_bytes) == (3, 7, 7 * M * 4)
    assert "Gaussian: 21 x 13 entries, by tile" in str(said)
    assert repr(K) == "KernelMatrix(Gaussian, shape=(21, 13))"
    assert repr(K.T) == "KernelMatrix(Gaussian, shape=(13, 21))"
    assert "each pair once" in str(gradkin.kernel_matrix(kernels.Gaussian(), X, block=8).explain())
    plain = gradkin.kernel_matrix(pairs, X).T
    assert repr(plain) == "KernelMatrix(pairs.T, shape=(21, 21))"
    assert plain.explain().route == "pairs"


BAD = {
    "block": (lambda: gradkin.kernel_matrix(pairs, X, block=0), "block >= 1, got block=0"),
    "empty": (lambda: gradkin.kernel_matrix(pairs, X[:0]), "x to hold at least one point"),
    "scalar": (lambda: gradkin.kernel_matrix(pairs, 1.0), "x to hold at least one point"),
    "features": (lambda: gradkin.kernel_matrix(pairs, X, Y[:, :3]), "points of one shape"),
    "dtype": (lambda: gradkin.kernel_matrix(pairs, X, Y.astype(jnp.bfloat16)), "shape and dtype"),
    "nan": (lambda: gradkin.kernel_matrix(pairs, broken(X, ROWS)), "x to be finite.*5 of 21"),
    "infinite": (
        lambda: gradkin.kernel_matrix(pairs, X, np.full_like(Y, np.inf)),
        "y to be finite",
    ),
    "weights": (lambda: gradkin.kernel_matrix(pairs, X, Y, weights=X[:, 0]), r"shape \(13,\)"),
    "mask": (lambda: gradkin.kernel_matrix(pairs, X, mask=ROWS[:5]), "mask to be boolean"),
    "mask of numbers": (lambda: gradkin.kernel_matrix(pairs, X, mask=X[:, 0]), "to be boolean"),
    "one mask": (lambda: gradkin.kernel_matrix(pairs, X, Y, mask=ROWS), "mask to be a pair"),
    "two masks": (lambda: gradkin.kernel_matrix(pairs, X, mask=(ROWS, ROWS)), "one mask"),
    "vector kernel": (lambda: gradkin.kernel_matrix(lambda x, y: x - y, X), "return a scalar"),
    "ring": (lambda: gradkin.kernel_matrix(pairs, X, ring=True), "a mesh, or x sharded"),
    "k": (lambda: gradkin.kernel_matrix(pairs, X, Y).top_k(14), "k from 1 to the 13 columns"),
    "no k": (lambda: gradkin.kernel_matrix(pairs, X, Y).top_k(0), "k from 1"),
    "axis": (lambda: gradkin.kernel_matrix(pairs, X).sum(2), "axis to be one of"),
    "right": (lambda: gradkin.kernel_matrix(pairs, X, Y) @ X[:, 0], "the right side to be"),
    "left": (lambda: Y[:, 0] @ gradkin.kernel_matrix(pairs, X, Y), "the left side to be"),
    "diagonal": (lambda: gradkin.kernel_matrix(pairs, X, Y).diagonal(), "a square matrix"),
    "off": (lambda: gradkin.kernel_matrix(pairs, X, Y).off_diagonal(), "points with themselves"),
    "inner": (
        lambda: gradkin.kernel_matrix(pairs, X).inner(gradkin.kernel_matrix(pairs, Y)),
        "other to have shape",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


class Unregistered:
    """Knows tiles, but JAX does not know it."""

    def __call__(self, x, y):
        return jnp.vdot(x, y)

    def tile(self, x, y):
        return x @ y.T


def test_wrong_kinds():
    K = gradkin.kernel_matrix(pairs, X)
    with pytest.raises(TypeError, match="function of two points"):
        gradkin.kernel_matrix(3, X)
    with pytest.raises(TypeError, match="tile to be a pytree, got Unregistered"):
        gradkin.kernel_matrix(Unregistered(), X)
    with pytest.raises(TypeError, match="real numbers"):
        gradkin.kernel_matrix(pairs, X + 1j)
    with pytest.raises(TypeError, match="got a KernelMatrix"):
        _ = K @ K
    with pytest.raises(TypeError, match="other to be a KernelMatrix"):
        K.inner(cast(Any, X))
