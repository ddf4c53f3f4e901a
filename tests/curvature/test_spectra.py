"""Spectra, traces and solves of matrices whose eigenvalues are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import gradkin
from gradkin import curvature, kernels
from tests.matrices.models.model import normal

VALUES = np.array([-2.0, -0.5, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 3.0, 10.0], np.float32)


def with_values(values):
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(len(values),) * 2))
    return jnp.asarray(basis * np.asarray(values) @ basis.T, np.float32)


A = with_values(VALUES)
KEY = jax.random.key(0)


def close(actual, wanted, tolerance=1e-5):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_eigenpairs_in_each_order():
    for which, wanted in {"smallest": [-2, -0.5, 0.1], "magnitude": [10, 3, -2]}.items():
        found = curvature.top_eigenpairs(KEY, A, 3, which=which)
        close(found.values, wanted)
        close(found.vectors @ found.vectors.T, np.eye(3))
        close(found.vectors @ A, jnp.diag(found.values) @ found.vectors, 1e-4)


def test_residual_bounds_the_distance_to_an_eigenvalue():
    found = curvature.top_eigenpairs(KEY, A, 4, num_matvecs=6)
    vectors = np.asarray(found.vectors)
    true = np.linalg.norm(vectors @ A - np.asarray(found.values)[:, None] * vectors, axis=1)
    close(found.residuals, true, 1e-4)
    nearest = np.abs(np.asarray(found.values)[:, None] - VALUES).min(1)
    assert np.all(nearest <= np.asarray(found.residuals) + 1e-5)
    assert found.residuals[3] > 1e-3


@jax.jit
def exhausted(matrix):
    pairs = curvature.top_eigenpairs(KEY, matrix, 6)
    return pairs, curvature.spectral_density(KEY, matrix, num_probes=30)


@pytest.mark.parametrize(
    ("matrix", "values"),
    [
        (2 * jnp.eye(9), [2]),
        (jnp.zeros((9, 9)), [0]),
        (jnp.ones((9, 9)), [9, 0]),
        (with_values([7, 7, 7, 4, 4, 1, 1, 1, 1]), [7, 4, 1]),
    ],
    ids=["identity", "zero", "ones", "repeated"],
)
def test_an_exhausted_search_ends_with_what_there_is(matrix, values):
    """Few distinct eigenvalues: all are found, and none is made of divided rounding errors."""
    found = exhausted(matrix)[0]
    known = np.asarray(found.values)[np.isfinite(found.values)]
    assert len(known) == np.sum(np.linalg.norm(found.vectors, axis=1) > 0.9) >= len(values)
    gaps = np.abs(known[:, None] - np.array(values, np.float32))
    assert np.all(gaps.min(1) < 1e-4)
    assert np.all(gaps.min(0) < 1e-4)
    density = exhausted(matrix)[1]
    total = density.trace_of(lambda t: t)
    assert abs(total.value - jnp.trace(matrix)) <= 5 * total.standard_error + 1e-5
    close(jnp.trapezoid(density.density, density.grid), 1, 0.01)


def test_rounding_in_a_null_space_is_not_taken_for_more():
    """Six of twelve eigenvalues are zero, and a product by derivatives rounds them differently."""
    numbers = np.random.default_rng(0)
    u, v = (numbers.normal(size=6).astype(np.float32) for _ in range(2))
    x = np.sqrt(24) * np.linalg.qr(numbers.normal(size=(24, 6)))[0]
    x = jnp.asarray(x, np.float32)

    def loss(params, example):
        features, target = example
        return 0.5 * jnp.square(jnp.vdot(params["u"] * params["v"], features) - target)

    H = gradkin.hessian(loss)({"u": jnp.asarray(u), "v": jnp.asarray(v)}, (x, x @ (u * v)))
    wanted = np.linalg.eigvalsh(np.asarray(H.materialize(), np.float64))[:-3:-1]
    find = jax.jit(jax.vmap(lambda key: H.top_eigenpairs(key, 2, num_matvecs=12).values))
    found = find(jnp.concatenate([KEY[None], jax.random.split(KEY, 15)]))
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), rtol=1e-4)


@functools.cache
def spectrum():
    return curvature.spectral_density(KEY, A, num_probes=200)


def test_spectral_density_integrates_functions_of_the_eigenvalues():
    density = spectrum()
    assert density.nodes.shape == density.weights.shape == (200, 10)
    close(density.weights.sum(1), np.ones(200))
    for fun in (lambda t: t, lambda t: t**3, jnp.abs, lambda t: t < 0, jnp.exp):
        found = density.trace_of(fun)
        wanted = np.sum(np.asarray(fun(VALUES), np.float64))
        assert abs(found.value - wanted) < 5 * found.standard_error


def test_few_products_match_the_moments():
    """Nodes and weights of m products are exact for polynomials up to degree 2m - 1."""
    few = curvature.spectral_density(KEY, A, num_probes=200, num_matvecs=3)
    moments = [jnp.mean(jnp.sum(d.weights * d.nodes**5, 1)) for d in (few, spectrum())]
    np.testing.assert_allclose(*moments, rtol=1e-4)


def test_smoothed_density():
    density = spectrum()
    close(jnp.trapezoid(density.density, density.grid), 1, 1e-3)
    assert density.grid[0] < -2
    assert density.grid[-1] > 10
    narrow = curvature.spectral_density(
        KEY, A, num_probes=200, grid=jnp.linspace(9, 11, 201), width=0.05
    )
    share = jnp.trapezoid(narrow.density, narrow.grid)
    error = jnp.trapezoid(narrow.standard_error, narrow.grid)
    assert abs(share - 0.1) < 5 * error  # one eigenvalue of ten is at 10
    assert abs(narrow.grid[jnp.argmax(narrow.density)] - 10) < 0.02


def test_xtrace_is_exact_at_low_rank_and_nearer_where_few_eigenvalues_matter():
    low = with_values([5, 3, *[0] * 38])
    found = curvature.trace(KEY, low, num_matvecs=8, method="xtrace")
    close(found.value, 8, 1e-4)
    decaying = with_values(0.5 ** np.arange(60))
    wanted = jnp.trace(decaying)
    keys = jax.random.split(KEY, 40)
    errors = {}
    for method in ("hutchinson", "xtrace"):
        one = lambda key, method=method: curvature.trace(
            key, decaying, num_matvecs=20, method=method
        )
        found = jax.vmap(one)(keys)
        errors[method] = jnp.sqrt(jnp.mean((found.value - wanted) ** 2))
    assert errors["xtrace"] < 0.1 * errors["hutchinson"]


def test_standard_errors_are_what_they_say():
    """Over many keys the estimates spread as far as one run says."""
    one = lambda key: (
        curvature.trace(key, A, num_matvecs=16),
        curvature.frobenius_norm(key, A, num_matvecs=16),
        curvature.diagonal(key, A, num_matvecs=16),
    )
    trace, norm, diagonal = jax.vmap(one)(jax.random.split(KEY, 400))
    for found, wanted in (
        (trace, VALUES.sum()),
        (norm, np.linalg.norm(VALUES)),
        (diagonal, np.diag(A)),
    ):
        spread = jnp.std(found.value, axis=0)
        claimed = jnp.sqrt(jnp.mean(found.standard_error**2, axis=0))
        np.testing.assert_allclose(spread, claimed, rtol=0.25)
        assert np.all(np.abs(jnp.mean(found.value, 0) - wanted) < 5 * spread / 20 + 0.03)


def test_log_determinant_and_solve():
    found = curvature.log_determinant(KEY, A, damping=3.0, num_probes=50)
    assert abs(found.value - np.sum(np.log(VALUES + 3))) < 5 * found.standard_error
    assert np.isnan(curvature.log_determinant(KEY, A, damping=0.0, num_probes=50).value)
    b = normal(0, 10)
    solution = curvature.solve(A, b, damping=3.0, rtol=1e-6)
    close(solution.value, np.linalg.solve(A + 3 * np.eye(10), b), 1e-4)
    assert solution.residual_norm < 1e-5
    zero = curvature.solve(A, jnp.zeros(10), damping=3.0, rtol=1e-6)
    assert not np.any(zero.value)
    assert zero.residual_norm == 0


def test_kernel_matrices_and_second_moments():
    """All three matrices: a kernel, and gradients by way of their second moment."""
    x = normal(0, 12, 2)
    K = gradkin.kernel_matrix(kernels.Gaussian(1.0), x)
    values = np.linalg.eigvalsh(K.materialize())
    close(curvature.top_eigenpairs(KEY, K, 2).values, values[::-1][:2], 1e-4)
    G = gradkin.per_example_grads(lambda w, x: jnp.tanh(w @ x))(jnp.ones(2), x)
    F = gradkin.empirical_fisher(G)
    close(curvature.top_eigenpairs(KEY, F, 1).values, G.singular_values()[:1] ** 2 / 12, 1e-4)


def test_float64():
    with jax.enable_x64(True):
        matrix = jnp.asarray(np.diag(VALUES.astype(np.float64)) + 1e-9)
        found = curvature.top_eigenpairs(jax.random.key(0), matrix, 2)
        wanted = np.linalg.eigvalsh(matrix)[::-1][:2]
        np.testing.assert_allclose(found.values, wanted, rtol=1e-13)
        solution = curvature.solve(matrix, jnp.ones(10), damping=3.0, rtol=1e-12)
        assert solution.residual_norm < 1e-10


def test_what_is_read_off_is_differentiable():
    """Eigenvalues forwards; quadrature backwards, through labels, which are no floats."""
    with jax.enable_x64(True):
        x = jnp.asarray(normal(0, 8, 2), np.float64)
        labels = jnp.arange(8) % 3
        make = gradkin.gauss_newton(lambda w, x: jnp.tanh(x @ w), curvature.cross_entropy)
        w = jnp.asarray(normal(1, 2, 3), np.float64)
        key = jax.random.key(0)

        def largest(w):
            return make(w, x, labels).top_eigenpairs(key).values[0]

        def determinant(w):
            H = make(w, x, labels)
            return H.log_determinant(key, damping=1.0, num_probes=2).value

        check_grads(jax.jit(largest), (w,), order=1, modes=["fwd"], atol=1e-4, rtol=1e-4)
        check_grads(jax.jit(determinant), (w,), order=1, modes=["rev"], atol=1e-4, rtol=1e-4)


def test_bad_input_is_named():
    G = gradkin.per_example_grads(lambda w, x: w @ x)(jnp.ones(2), jnp.ones((3, 2)))
    with pytest.raises(TypeError, match=r"write gradkin.empirical_fisher\(G\)"):
        curvature.trace(KEY, G)
    with pytest.raises(ValueError, match=r"symmetric matrix, got shape \(2, 3\)"):
        curvature.top_eigenpairs(KEY, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="k from 1 to 10, .* got 11"):
        curvature.top_eigenpairs(KEY, A, 11)
    with pytest.raises(ValueError, match="num_matvecs from 3 to 10, .* got 2"):
        curvature.top_eigenpairs(KEY, A, 3, num_matvecs=2)
    with pytest.raises(ValueError, match="which to be one of"):
        curvature.top_eigenpairs(KEY, A, which="middle")
    with pytest.raises(ValueError, match="method to be one of"):
        curvature.trace(KEY, A, method="guess")
    with pytest.raises(ValueError, match="num_matvecs >= 2, got 1"):
        curvature.trace(KEY, A, num_matvecs=1)
    with pytest.raises(ValueError, match="even and at least 4 for xtrace, got 5"):
        curvature.trace(KEY, A, num_matvecs=5, method="xtrace")
    with pytest.raises(ValueError, match="num_probes >= 2, got 1"):
        curvature.spectral_density(KEY, A, num_probes=1)
    with pytest.raises(ValueError, match="at least 2 grid points"):
        curvature.spectral_density(KEY, A, grid=1)
    with pytest.raises(ValueError, match="grid to have 1 axes"):
        curvature.spectral_density(KEY, A, grid=jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="width > 0"):
        curvature.spectral_density(KEY, A, width=0.0)
    with pytest.raises(ValueError, match="num_probes >= 2"):
        curvature.log_determinant(KEY, A, num_probes=0)
    with pytest.raises(ValueError, match=r"b to have shape \(10,\), got \(3,\)"):
        curvature.solve(A, jnp.ones(3))
    with pytest.raises(ValueError, match="damping >= 0"):
        curvature.solve(A, jnp.ones(10), damping=-1.0)
    with pytest.raises(ValueError, match="max_steps > 0"):
        curvature.solve(A, jnp.ones(10), max_steps=0)
