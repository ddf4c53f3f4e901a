"""Features of gradients: against rows written down, whatever the batch, the mesh and the route."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import curvature, gradients

SKETCH = gradients.RademacherSketch(jax.random.key(5), 8192)


def loss(params, example):
    x, y, weight = example
    logits = jnp.tanh(x @ params["in"]) @ params["out"]
    return weight * curvature.cross_entropy(logits, y)


@pytest.fixture(scope="module")
def network():
    """Parameters, moments of a training that has begun, and 16 examples; the third is masked."""
    k = jax.random.split(jax.random.key(0), 6)
    params = {"in": jax.random.normal(k[0], (5, 4)), "out": jax.random.normal(k[1], (4, 3))}
    like = lambda key, scale: {
        name: scale * jax.random.normal(key, x.shape) for name, x in params.items()
    }
    nu = jax.tree.map(jnp.square, like(k[3], 0.2))
    moments = gradients.AdamMoments(like(k[2], 0.1), nu, jnp.int32(7))
    y = jax.random.randint(k[4], (16,), 0, 3)
    weight = jnp.ones(16).at[2].set(0.0)
    return params, moments, (jax.random.normal(k[5], (16, 5)), y, weight)


@jax.jit
def directions(params, moments, batch):
    """Every example's gradient, signs and step of Adam, ``[n, parameters]``, written down."""
    rows = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
    adam = jax.vmap(gradients.adam_direction, (0, None))(rows, moments)
    adam = jax.tree.map(lambda x: x.at[2].set(0.0), adam)
    projected = gradients.project_rows(SKETCH, adam)
    found = {"gradient": rows, "sign": jax.tree.map(jnp.sign, rows), "adam": adam}
    flat = lambda rows: jnp.concatenate([x.reshape(16, -1) for x in jax.tree.leaves(rows)], axis=1)
    return {name: flat(rows) for name, rows in found.items()}, projected


@pytest.mark.parametrize("direction", ["gradient", "adam", "sign"])
def test_features_are_directions(network, direction):
    params, moments, batch = network
    wanted = directions(params, moments, batch)[0][direction]
    # Micro-batches that do not divide the batch change nothing.
    found = gradients.gradient_features(
        loss, params, batch, direction=direction, moments=moments, batch_size=6
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert not found[2].any()


def test_features_are_projected(network):
    params, moments, batch = network
    exact, projected = directions(params, moments, batch)
    found = gradients.gradient_features(
        loss, params, batch, direction="adam", moments=moments, sketch=SKETCH
    )
    np.testing.assert_allclose(found, projected, rtol=1e-4, atol=1e-4)
    # Cosines survive the projection (standard deviation 0.011 at most).
    unit = lambda x: np.delete(x, 2, 0) / np.linalg.norm(np.delete(x, 2, 0), axis=1, keepdims=True)
    cosines = [unit(np.asarray(x, np.float64)) for x in (exact["adam"], found)]
    errors = cosines[0] @ cosines[0].T - cosines[1] @ cosines[1].T
    assert np.max(np.abs(errors)) < 0.05


def test_features_on_a_mesh_under_jit_and_vmap(network, mesh):
    params, moments, batch = network
    sketch = gradients.CountSketch(jax.random.key(1), 32)

    def features(params, batch):
        return gradients.gradient_features(
            loss, params, batch, sketch=sketch, direction="adam", moments=moments, normalize=True,
            batch_size=8,
        )  # fmt: skip

    wanted = features(params, batch)
    norms = np.linalg.norm(wanted, axis=1)
    np.testing.assert_allclose(np.delete(norms, 2), 1, rtol=1e-5)
    assert norms[2] == 0
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    two = jax.tree.map(lambda x: np.stack([x, 2 * x]), params)
    run = jax.jit(jax.vmap(features, (0, None))).lower(two, spread).compile()
    program = run.as_text()
    assert program
    assert "all-gather" not in program
    np.testing.assert_allclose(run(two, spread)[0], wanted, atol=1e-5)


def test_options_may_be_traced(network):
    params, moments, batch = network
    run = lambda eps: gradients.gradient_features(
        loss, params, batch, direction="adam", moments=moments, eps=eps
    )
    np.testing.assert_allclose(jax.jit(run)(1e-3), run(1e-3), rtol=1e-4, atol=1e-5)


def test_rows_of_any_size_have_norm_one_or_zero():
    linear = lambda w, x: w @ x  # the gradient is x
    x = jnp.array([[3e-25, 4e-25], [3e25, 4e25], [0.0, 0.0], [1e-35, 0.0], [jnp.nan, 1.0]])
    found = gradients.gradient_features(linear, jnp.ones(2), x, normalize=True)
    np.testing.assert_allclose(found[:4], [[0.6, 0.8], [0.6, 0.8], [0, 0], [0, 0]], rtol=1e-5)
    assert np.isnan(found[4]).all()


def test_bad_input(network):
    params, moments, batch = network
    run: Any = gradients.gradient_features
    with pytest.raises(ValueError, match="direction to be one of"):
        run(loss, params, batch, direction="up")
    with pytest.raises(ValueError, match="Expected moments with direction='adam'"):
        run(loss, params, batch, direction="adam")
    other = moments._replace(nu={"in": moments.nu["in"]})
    with pytest.raises(ValueError, match=r"moments.nu to have the leaves of params: \['out'\]"):
        run(loss, params, batch, direction="adam", moments=other)
    with pytest.raises(TypeError, match=r"as from adam_moments\(opt_state, params\), got tuple"):
        run(loss, params, batch, direction="adam", moments=(moments,))
    with pytest.raises(TypeError, match="Expected a sketch"):
        run(loss, params, batch, sketch=512)
    for batch_size in (0, 2.5):
        with pytest.raises(ValueError, match="batch_size to be a positive integer"):
            run(loss, params, batch, batch_size=batch_size)
    with pytest.raises(ValueError, match="one leading axis"):
        run(loss, params, (batch[0], batch[1][:3], batch[2]))
    with pytest.raises(ValueError, match="at least one example"):
        run(loss, params, jax.tree.map(lambda x: x[:0], batch))
