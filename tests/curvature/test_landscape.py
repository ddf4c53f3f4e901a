"""Landscapes: quadratics, normalized directions, and functions that rescaling leaves alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import curvature
from tests.matrices.models.model import normal, plus, weight

STEPS = jnp.linspace(-1, 1, 5)
PARAMS = {
    "first": {"kernel": weight(0, 3, 4), "bias": normal(1, 4)},
    "second": {"kernel": weight(2, 4, 2), "bias": normal(3, 2)},
}
DIRECTION = curvature.random_direction(jax.random.key(1), PARAMS)
X = normal(4, 16, 3)


def loss(params, x):
    hidden = jax.nn.relu(plus(x @ params["first"]["kernel"], params["first"]["bias"]))
    out = plus(hidden @ params["second"]["kernel"], params["second"]["bias"])
    return jnp.mean(jnp.square(out))


def close(actual, wanted, tolerance=1e-5):
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def block_norms(tree, mode, order=2):
    """Norms of the blocks of a mode, the plain way."""
    flat = lambda x: np.abs(np.asarray(x, np.float64)) ** order
    if mode == "model":
        return [sum(flat(x).sum() for x in jax.tree.leaves(tree)) ** (1 / order)]
    found = []
    for leaf in jax.tree.leaves(tree):
        by_filter = mode == "filter" and np.ndim(leaf) > 1
        axes = tuple(range(np.ndim(leaf) - 1)) if by_filter else None
        found.append(flat(leaf).sum(axes) ** (1 / order))
    return found


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("mode", ["model", "layer", "filter"])
def test_blocks_get_the_norms_of_the_parameters(mode, order):
    params = {**PARAMS, "conv": normal(5, 3, 3, 2, 5)}
    direction = curvature.random_direction(jax.random.key(0), params)
    once = curvature.normalize_direction(direction, params, mode=mode, order=order)
    for found, wanted in zip(block_norms(once, mode, order), block_norms(params, mode, order)):
        close(found, wanted)
    twice = curvature.normalize_direction(once, params, mode=mode, order=order)
    jax.tree.map(lambda a, b: close(a, np.asarray(b)), twice, once)
    # No sign changes and no rotation: blocks are multiplied by positive numbers.
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a > 0, b > 0), once, direction)


def test_weights_selection_axis_and_zero_blocks():
    found = curvature.normalize_direction(DIRECTION, PARAMS, mode="weight")
    jax.tree.map(lambda f, d, w: close(f, np.asarray(d * w)), found, DIRECTION, PARAMS)
    for mode in ("filter", "model"):
        found = curvature.normalize_direction(
            DIRECTION, PARAMS, mode=mode, select=lambda path: path == "first/kernel"
        )
        assert not any(np.any(found[layer]["bias"]) for layer in found)
        assert not np.any(found["second"]["kernel"])
        only = {"first": {"kernel": PARAMS["first"]["kernel"]}}
        close(block_norms(found["first"]["kernel"], mode)[0], block_norms(only, mode)[0])
    w, d = normal(6, 2, 3), normal(7, 2, 3)
    rows = curvature.normalize_direction(d, w, filter_axis=0)
    close(np.linalg.norm(rows, axis=1), np.linalg.norm(w, axis=1))
    zero = curvature.normalize_direction(d.at[:, 0].set(0), w.at[:, 1].set(0))
    assert np.all(np.isfinite(zero))
    np.testing.assert_array_equal(np.any(zero, axis=0), [False, False, True])
    short = curvature.normalize_direction(d.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    assert short.dtype == jnp.bfloat16


@jax.jit
def curves(params):
    """Slices along one random direction, normalized in four ways."""
    found = {
        mode: curvature.normalize_direction(DIRECTION, params, mode=mode)
        for mode in ("model", "layer", "filter", "weight")
    }
    fun = lambda params: loss(params, X)
    return {mode: curvature.loss_curve(fun, params, d, alphas=STEPS) for mode, d in found.items()}


def rescaled(factors):
    """The same function: what a hidden unit gets is multiplied, what it gives divided."""
    columns = jnp.broadcast_to(factors, (3, 4))
    rows = jnp.broadcast_to(jnp.reshape(factors, (-1, 1)), (4, 2))
    first, second = PARAMS["first"], PARAMS["second"]
    return {
        "first": {"kernel": first["kernel"] * columns, "bias": first["bias"] * columns[0]},
        "second": {"kernel": second["kernel"] / rows, "bias": second["bias"]},
    }


def test_function_preserving_rescaling():
    before = curves(PARAMS)
    layers = curves(rescaled(jnp.full(4, 7.0)))
    units = curves(rescaled(jnp.array([0.2, 1.0, 3.0, 8.0])))
    for mode in ("layer", "filter", "weight"):
        close(layers[mode], before[mode], 1e-4)
    close(units["weight"], before["weight"], 1e-4)
    for other in (layers["model"] - before["model"], units["filter"] - before["filter"]):
        assert np.abs(other).max() > 0.05 * np.abs(before["model"]).max()


def test_a_quadratic_is_one_on_its_axes():
    """On Hessian axes: half the eigenvalues times the squared steps, and nothing mixed."""
    values = jnp.array([5.0, 1.0, -2.0, 3.0])
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    A = jnp.asarray(basis @ np.diag(values) @ basis.T, jnp.float32)
    quadratic = lambda w, scale: 0.5 * scale * w @ A @ w
    H = gradkin.hessian(quadratic)(jnp.zeros(4), jnp.ones(2))
    a, b = jnp.meshgrid(STEPS, STEPS, indexing="ij")
    axes = curvature.hessian_directions(jax.random.key(0), H)
    surface = curvature.loss_surface(
        lambda w: quadratic(w, 1.0), jnp.zeros(4), axes, alphas=STEPS, betas=STEPS
    )
    close(surface, 2.5 * a**2 + 1.5 * b**2, 1e-4)
    lowest, _ = curvature.hessian_directions(jax.random.key(0), H, which="smallest")
    curve = curvature.loss_curve(lambda w: quadratic(w, 1.0), jnp.zeros(4), lowest, alphas=STEPS)
    close(curve, -(STEPS**2), 1e-4)


def surface(params, axes, x, **options):
    def fun(params):
        return {"loss": loss(params, x), "bias": params["first"]["bias"]}

    return curvature.loss_surface(fun, params, axes, **options)


def test_each_point_is_the_loss_there(mesh):
    other = curvature.random_direction(jax.random.key(2), PARAMS)
    axes = DIRECTION, other
    options = {"alphas": STEPS, "betas": jnp.array([-0.5, 0.0, 2.0])}
    read = jax.jit(lambda params, x: surface(params, axes, x, **options))
    found = read(PARAMS, X)
    assert found["loss"].shape == (5, 3)
    assert found["bias"].shape == (5, 3, 4)
    np.testing.assert_array_equal(found["bias"][2, 1], PARAMS["first"]["bias"])

    def at(a, b):
        moved = jax.tree.map(lambda w, d, e: w + a * d + b * e, PARAMS, *axes)
        return np.asarray(loss(moved, X))

    wanted = [[at(a, b) for b in np.asarray(options["betas"])] for a in np.asarray(STEPS)]
    close(found["loss"], np.array(wanted))
    close(found["loss"][2, 1], np.asarray(loss(PARAMS, X)))
    ragged = jax.vmap(lambda x: surface(PARAMS, axes, x, batch_size=4, **options)["loss"])
    close(ragged(jnp.stack([X, X])), np.stack([wanted, wanted]))
    sharded = read(PARAMS, jax.device_put(X, NamedSharding(mesh, PartitionSpec("data"))))
    close(sharded["loss"], np.array(wanted))


def test_the_family_of_adam():
    optimizer = optax.chain(optax.clip(1.0), optax.adam(0.1))
    grads = jax.tree.map(lambda w: 0.3 * w, PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    mean, square = curvature.adam_directions(state)
    close(mean["first"]["bias"], 0.1 * np.asarray(grads["first"]["bias"]))
    close(square["first"]["bias"], 0.001 * np.asarray(grads["first"]["bias"]) ** 2)
    alphas, betas = jnp.array([-0.5, 0.0, 1.0]), jnp.array([0.25, 4.0])
    fun = lambda params: params["first"]["bias"]
    found = curvature.loss_surface(
        fun, PARAMS, (mean, square), alphas=alphas, betas=betas, mode="adam"
    )
    m, v = (np.asarray(tree["first"]["bias"]) for tree in (mean, square))
    step = np.asarray(alphas)[:, None] / np.sqrt(np.asarray(betas))
    wanted = np.asarray(PARAMS["first"]["bias"]) + step[..., None] * m / (np.sqrt(v) + 1e-6)
    close(found, wanted)


def test_random_directions_are_standard_normal():
    drawn = curvature.random_direction(jax.random.key(0), {"a": jnp.ones((80, 50)), "b": X})
    assert abs(jnp.mean(drawn["a"])) < 0.05
    assert abs(jnp.std(drawn["a"]) - 1) < 0.05
    assert np.abs(np.corrcoef(drawn["a"][:16, :3].ravel(), drawn["b"].ravel())[0, 1]) < 0.5


def test_bad_input_is_named():
    w = jnp.ones((2, 2))
    with pytest.raises(TypeError, match="floating-point parameters, got int32 at 'a'"):
        curvature.random_direction(jax.random.key(0), {"a": jnp.arange(3)})
    with pytest.raises(ValueError, match="direction to have the shapes of params"):
        curvature.normalize_direction(jnp.ones(3), w)
    with pytest.raises(ValueError, match="mode to be one of .* got mode='row'"):
        curvature.normalize_direction(w, w, mode="row")
    with pytest.raises(ValueError, match="order to be one of"):
        curvature.normalize_direction(w, w, order=3)
    with pytest.raises(ValueError, match=r"filter_axis=2 and shape \(2, 2\)"):
        curvature.normalize_direction(w, w, filter_axis=2)
    with pytest.raises(ValueError, match="moments of Adam once, got 0"):
        curvature.adam_directions(optax.sgd(0.1).init(w))
    with pytest.raises(ValueError, match="alphas to have 1 axes"):
        curvature.loss_curve(jnp.sum, w, w, alphas=w)
    with pytest.raises(ValueError, match="batch_size to be a positive integer, got 0"):
        curvature.loss_curve(jnp.sum, w, w, alphas=STEPS, batch_size=0)
    options: dict[str, Any] = {"alphas": STEPS, "betas": STEPS}
    with pytest.raises(ValueError, match=r"directions\[1\] to have the shapes"):
        curvature.loss_surface(jnp.sum, w, (w, jnp.ones(2)), **options)
    with pytest.raises(ValueError, match="mode to be one of"):
        curvature.loss_surface(jnp.sum, w, (w, w), mode="momentum", **options)
    with pytest.raises(ValueError, match="betas > 0"):
        curvature.loss_surface(jnp.sum, w, (w, w), mode="adam", **options)
