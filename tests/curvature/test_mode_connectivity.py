"""Barriers, distances and singular directions between two networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import curvature
from tests.curvature.networks import mlp, mlp_params, shuffled
from tests.matrices.models.model import normal

WIDTHS = (6, 16, 12, 3)
A, B = mlp_params(0, *WIDTHS), mlp_params(10, *WIDTHS)
X, Y = normal(3, 40, 6), normal(4, 40, 3)
SPEC = curvature.infer_permutations(mlp, A, X)
ORDER = shuffled(SPEC)
MOVED = curvature.apply_permutation(SPEC, ORDER, A)


def loss(params, x=X):
    return jnp.mean((mlp(params, x) - Y) ** 2)


path = jax.jit(functools.partial(curvature.loss_path, loss))


def test_path_is_the_losses_between():
    found = path(A, B)
    assert found.at[5] == 0.5
    np.testing.assert_allclose(found.losses[0], loss(B), rtol=1e-5)
    np.testing.assert_allclose(found.losses[-1], loss(A), rtol=1e-5)
    middle = loss(jax.tree.map(lambda x, y: (x + y) / 2, A, B))
    np.testing.assert_allclose(found.midpoint(), middle, rtol=1e-5)
    chord = np.linspace(1, 0, 11) * float(loss(B)) + np.linspace(0, 1, 11) * float(loss(A))
    np.testing.assert_allclose(found.barrier(), (found.losses - chord).max(), rtol=1e-3)
    np.testing.assert_allclose(path(B, A).barrier(), found.barrier(), rtol=1e-4)


def test_no_barrier_to_itself_and_never_a_negative_one():
    np.testing.assert_allclose(path(A, A).barrier(), 0, atol=1e-6)
    bowl = curvature.loss_path(lambda w: jnp.sum(w**2), normal(0, 3), normal(1, 3))
    assert bowl.barrier() == 0
    assert np.all(bowl.excess()[1:-1] < 0)


def test_several_losses_at_once():
    both = lambda params: jnp.stack([loss(params), 2 * loss(params)])
    found = curvature.loss_path(both, A, B, num_points=3)
    assert found.losses.shape == (3, 2)
    np.testing.assert_allclose(found.barrier()[1], 2 * found.barrier()[0], rtol=1e-5)


def test_sharded_data_make_the_same_path(mesh):
    split = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
    found = jax.jit(lambda a, b, x: curvature.loss_path(lambda p: loss(p, x), a, b).losses)(
        A, B, split
    )
    np.testing.assert_allclose(found, path(A, B).losses, rtol=1e-5)


def test_taylor_barrier_is_exact_for_quadratics():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        H, g, a, b = (jnp.asarray(rng.normal(size=s)) for s in ((4, 4), (4,), (4,), (4,)))
        quadratic = lambda w: w["x"] @ H @ w["x"] + g @ w["x"]
        a, b = {"x": a}, {"x": b}
        exact = curvature.loss_path(quadratic, a, b, num_points=3).excess()[1]
        found = curvature.taylor_barrier(quadratic, a, b)
        np.testing.assert_allclose(found, exact, rtol=1e-12)
        d = b["x"] - a["x"]
        np.testing.assert_allclose(found, -(d @ (H + H.T) @ d) / 8, rtol=1e-12)


def test_taylor_barrier_scales_with_the_square_at_minima():
    well = lambda w: jnp.sum((w**2 - 1) ** 2)  # minima at +-1
    a = jnp.ones(3)
    found = curvature.taylor_barrier(well, a, -a)
    np.testing.assert_allclose(found, (8 + 8) * 4 * 3 / 16, rtol=1e-6)  # second derivative 8


def test_distance_reduction():
    reduction = curvature.distance_reduction(A, MOVED, A)
    np.testing.assert_allclose(reduction, 1, rtol=1e-6)
    assert curvature.distance_reduction(A, A, MOVED) == 0
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    before, after = (np.linalg.norm(flat(A) - flat(other)) for other in (B, MOVED))
    found = curvature.distance_reduction(A, B, MOVED)
    np.testing.assert_allclose(found, (before - after) / before, rtol=1e-5)


align = jax.jit(curvature.singular_alignment)
GAMMAS = jnp.array([0.0, 0.3, 0.9])


def test_alignment_with_itself_is_one_and_is_lost_by_permuting():
    itself = align(A, A, gamma=GAMMAS)
    np.testing.assert_allclose(itself.total, 1, rtol=1e-4)
    moved = align(A, MOVED, gamma=GAMMAS)
    assert np.all(moved.total < 0.6)
    for one, other in zip(A, MOVED):
        values = [np.linalg.svd(layer["w"], compute_uv=False) for layer in (one, other)]
        np.testing.assert_allclose(*values, rtol=1e-5)


def test_alignment_is_of_polar_factors():
    a, b = normal(5, 7, 7), normal(6, 7, 7)
    polar = [u @ vt for u, _, vt in map(np.linalg.svd, (np.asarray(a), np.asarray(b)))]
    found = align({"w": a}, {"w": b})
    np.testing.assert_allclose(found.layers["w"], np.sum(polar[0] * polar[1]) / 7, rtol=1e-4)
    assert found.total == found.layers["w"]


def test_alignment_by_its_definition():
    gamma, layers = 0.4, []
    for one, other in zip(A, B):
        (u, s, v), (w, t, z) = (
            np.linalg.svd(layer["w"], full_matrices=False) for layer in (one, other)
        )
        i, j = s >= gamma * s[0], t >= gamma * t[0]
        pairs = (u[:, i].T @ w[:, j]) * (v[i] @ z[j].T)
        layers.append((pairs.sum(), min(i.sum(), j.sum())))
    total = np.sum([p for p, _ in layers]) / np.sum([n for _, n in layers])
    found = align(A, B, gamma=jnp.array(gamma))
    np.testing.assert_allclose(found.total, total, atol=1e-5)
    np.testing.assert_allclose(found.layers["1/w"], layers[1][0] / layers[1][1], atol=1e-5)


def test_alignment_does_not_see_the_basis_of_equal_singular_values():
    rotation = np.linalg.qr(np.asarray(normal(7, 6, 6)))[0].astype(np.float32)
    a = {"k": jnp.asarray(rotation).reshape(2, 3, 6)}  # all singular values 1
    np.testing.assert_allclose(align(a, a).total, 1, rtol=1e-4)
    many = jax.vmap(lambda scale: curvature.singular_alignment(a, {"k": scale * a["k"]}).total)
    np.testing.assert_allclose(many(jnp.array([1.0, 5.0, -2.0])), [1, 1, -1], rtol=1e-4)


def test_bad_input():
    with pytest.raises(ValueError, match="odd"):
        curvature.loss_path(loss, A, B, num_points=10)
    with pytest.raises(ValueError, match="leaves of a"):
        curvature.loss_path(loss, A, B[:-1])
    with pytest.raises(ValueError, match="leaves of a"):
        curvature.taylor_barrier(loss, A, B[:-1])
    with pytest.raises(ValueError, match="permuted_b"):
        curvature.distance_reduction(A, B, B[:-1])
    with pytest.raises(ValueError, match=r"gamma in \[0, 1\]"):
        curvature.singular_alignment(A, B, gamma=1.5)
    with pytest.raises(ValueError, match="at least one matrix"):
        curvature.singular_alignment({"b": jnp.ones(3)}, {"b": jnp.ones(3)})
