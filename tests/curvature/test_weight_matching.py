"""Matching by weights, activations and the midpoint's loss."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import curvature
from tests.curvature.networks import mlp, mlp_params, shuffled
from tests.matrices.models.model import normal

WIDTHS = (6, 16, 12, 3)
A, B = mlp_params(0, *WIDTHS), mlp_params(10, *WIDTHS)
X = normal(3, 40, 6)
SPEC = curvature.infer_permutations(mlp, A, X)


@functools.partial(jax.jit, static_argnames=("spec", "solver"))
def match(key, a, b, spec=SPEC, solver="scipy"):
    return curvature.weight_matching(key, spec, a, b, solver=solver)


def squared_distance(a, b):
    return sum(float(jnp.sum((x - y) ** 2)) for x, y in zip(*map(jax.tree.leaves, (a, b))))


@pytest.mark.parametrize("solver", ["scipy", "optax"])
def test_recovers_a_permutation(key, solver):
    order = shuffled(SPEC)
    found = match(key, A, curvature.apply_permutation(SPEC, order, A), solver=solver)
    back = curvature.apply_permutation(
        SPEC, found.permutation, curvature.apply_permutation(SPEC, order, A)
    )
    jax.tree.map(np.testing.assert_array_equal, back, A)


def test_objective_rises_and_is_the_distance(key):
    found = match(key, A, B)
    assert np.all(np.diff(found.objective) >= 0)
    assert found.objective[-1] > found.objective[0]
    assert 2 <= found.sweeps <= 20
    matched = curvature.apply_permutation(SPEC, found.permutation, B)
    fall = squared_distance(A, B) - squared_distance(A, matched)
    np.testing.assert_allclose(fall, 2 * (found.objective[-1] - found.objective[0]), rtol=1e-4)
    np.testing.assert_allclose(mlp(matched, X), mlp(B, X), atol=1e-5)
    # Nothing is left to be won by moving one layer alone.
    again = curvature.weight_matching(key, SPEC, A, B, init=found.permutation)
    assert again.sweeps == 1
    np.testing.assert_array_equal(again.objective, again.objective[0])


def test_one_hidden_layer_of_three_is_solved_exactly(key):
    a, b = mlp_params(20, 5, 3, 2), mlp_params(30, 5, 3, 2)
    spec = curvature.infer_permutations(mlp, a, normal(0, 2, 5))
    orders = [{"0/b:0": jnp.asarray(p)} for p in itertools.permutations(range(3))]
    moved = [curvature.apply_permutation(spec, order, b) for order in orders]
    found = match(key, a, b, spec=spec).permutation
    best = min(squared_distance(a, each) for each in moved)
    reached = squared_distance(a, curvature.apply_permutation(spec, found, b))
    np.testing.assert_allclose(reached, best, rtol=1e-6)


def test_a_permutation_on_both_sides_never_lowers_the_objective(key):
    """A recurrent kernel: the objective is quadratic in its permutation."""
    spec = curvature.permutation_spec({"r": jnp.ones((9, 9))}, {"r": ("h", "h")})
    for seed in range(4):
        a, b = ({"r": normal(seed + 10 * i, 9, 9)} for i in range(2))
        found = match(key, a, b, spec=spec)
        matched = curvature.apply_permutation(spec, found.permutation, b)["r"]
        np.testing.assert_allclose(found.objective[-1], jnp.vdot(a["r"], matched), rtol=1e-4)
        assert np.all(np.diff(found.objective) >= 0)


def test_weights_that_are_not_finite_stay(key):
    broken = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), A)
    found = match(key, broken, B)
    jax.tree.map(np.testing.assert_array_equal, found.permutation, SPEC.identity())


def test_under_vmap_and_sharded(key, mesh):
    pairs = jax.tree.map(lambda x, y: jnp.stack([x, y]), A, B)
    swapped = jax.tree.map(lambda leaf: leaf[::-1], pairs)
    keys = jnp.stack([key, key])
    both = jax.vmap(lambda k, a, b: match(k, a, b).permutation)(keys, pairs, swapped)
    jax.tree.map(
        lambda many, one: np.testing.assert_array_equal(many[0], one),
        both,
        match(key, A, B).permutation,
    )
    split = jax.tree.map(
        lambda leaf: jax.device_put(
            leaf, NamedSharding(mesh, PartitionSpec("data" if len(leaf) % 8 == 0 else None))
        ),
        (A, B),
    )
    found = match(key, *split).permutation
    jax.tree.map(np.testing.assert_array_equal, found, match(key, A, B).permutation)


def hidden(params, x):
    found = []
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + jnp.broadcast_to(layer["b"], (len(x), len(layer["b"]))))
        found.append(x)
    return dict(zip(("0/b:0", "1/b:0"), found))


def test_activation_matching_recovers_a_permutation():
    order = shuffled(SPEC, seed=1)
    moved = curvature.apply_permutation(SPEC, order, A)
    found = jax.jit(curvature.activation_matching)(hidden(A, X), hidden(moved, X))
    back = curvature.apply_permutation(SPEC, found, moved)
    np.testing.assert_allclose(mlp(back, X), mlp(A, X), atol=1e-5)
    live = hidden(A, X)["0/b:0"].std(0) > 0
    np.testing.assert_array_equal(back[0]["w"][:, live], A[0]["w"][:, live])


def test_straight_through_lowers_the_loss_at_the_midpoint(key):
    target = mlp(A, X)
    moved = curvature.apply_permutation(SPEC, shuffled(SPEC), A)
    loss = lambda params: jnp.mean((mlp(params, X) - target) ** 2)
    options = {"loss_fn": loss, "num_steps": 40, "optimizer": optax.sgd(0.5, momentum=0.9)}
    search = functools.partial(curvature.ste_matching, **options)
    ste = jax.jit(lambda key, latent: search(key, SPEC, A, moved, init=latent))
    random = ste(key, B)
    assert random.losses.shape == (40,)
    chosen = curvature.apply_permutation(SPEC, random.permutation, moved)
    middle = jax.tree.map(lambda x, y: (x + y) / 2, A, chosen)
    np.testing.assert_allclose(loss(middle), random.losses.min(), rtol=1e-3)
    assert random.losses.min() < 0.9 * random.losses[0]
    # From a's own weights the first projection is the weight matching, which is exact here.
    assert ste(key, A).losses[0] < 1e-10


def test_bad_input(key):
    with pytest.raises(ValueError, match="Expected a to have the leaves"):
        curvature.weight_matching(key, SPEC, A[:-1], B)
    with pytest.raises(ValueError, match="Expected b to have the leaves"):
        curvature.weight_matching(key, SPEC, A, B[:-1])
    with pytest.raises(ValueError, match="permutes something"):
        curvature.weight_matching(key, curvature.permutation_spec(A, {}), A, B)
    with pytest.raises(ValueError, match="max_sweeps"):
        curvature.weight_matching(key, SPEC, A, B, max_sweeps=0)
    with pytest.raises(ValueError, match="permutations named"):
        curvature.weight_matching(key, SPEC, A, B, init={"h": jnp.arange(3)})
    with pytest.raises(ValueError, match="names|acts_b"):
        curvature.activation_matching({"h": X}, {"k": X})
    with pytest.raises(ValueError, match="init"):
        curvature.ste_matching(key, SPEC, A, B, lambda p: jnp.sum(p[0]["w"]), init=A[:1])
    with pytest.raises(ValueError, match="num_steps"):
        curvature.ste_matching(key, SPEC, A, B, lambda p: jnp.sum(p[0]["w"]), num_steps=0)
