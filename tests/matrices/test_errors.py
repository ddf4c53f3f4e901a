"""Bad input fails at the boundary, by name, whatever the state of the matrix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin import per_example_grads, value_and_per_example_grads

PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
X = jnp.ones((4, 3))


def loss(params, x):
    return jnp.sum(jnp.tanh(x @ params["w"] + params["b"]))


@pytest.fixture(scope="module", params=[None, 2], ids=["recorded", "streamed"])
def G(request):
    return per_example_grads(loss, batch_size=request.param)(PARAMS, X)


transforms = pytest.mark.parametrize(
    "transform", [per_example_grads, value_and_per_example_grads], ids=["grads", "value_and_grads"]
)


@transforms
def test_leading_axes_disagree(transform):
    with pytest.raises(
        ValueError, match=r"same number of examples everywhere, got 4 in argument 1 at 'x', 5 in"
    ):
        transform(lambda p, e: loss(p, e["x"]))(PARAMS, {"x": X, "y": jnp.ones(5)})


@transforms
def test_empty_batch(transform):
    with pytest.raises(ValueError, match="at least one example, got an empty batch"):
        transform(loss)(PARAMS, X[:0])


@transforms
def test_integer_parameters_name_the_recipe(transform):
    with pytest.raises(
        TypeError, match=r"got int32 at 'b'.*nnx\.split\(model, nnx\.Param, \.\.\.\)"
    ):
        transform(loss)(PARAMS | {"b": jnp.zeros(2, jnp.int32)}, X)


def test_key_parameters_name_the_recipe():
    with pytest.raises(TypeError, match=r"nnx\.split"):
        per_example_grads(loss)(PARAMS | {"key": jax.random.key(0)}, X)


@transforms
@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (lambda p, x: x @ p["w"], r"float32 of shape \(2,\)"),
        (lambda p, x: loss(p, x).astype(jnp.int32), "int32 of shape"),
        (lambda p, x: jax.lax.complex(loss(p, x), 1.0), "complex64 of shape"),
        (lambda p, x: (loss(p, x), 1.0), "tuple"),
        (lambda p, x: None, "NoneType"),
    ],
    ids=["vector", "integer", "complex", "tuple", "nothing"],
)
def test_loss_is_one_real_number(transform, bad, got):
    with pytest.raises(TypeError, match=f"one real number per example, got {got}"):
        transform(bad)(PARAMS, X)


def test_loss_with_auxiliary_values_returns_a_pair():
    with pytest.raises(TypeError, match="has_aux=True"):
        per_example_grads(loss, has_aux=True)(PARAMS, X)


def test_no_leading_axis():
    with pytest.raises(
        ValueError, match=r"argument 1 at '1' to have a leading example axis, got shape \(\)"
    ):
        per_example_grads(lambda p, e: loss(p, e[0]) * e[1])(PARAMS, (X, 2.0))


def test_nothing_is_mapped():
    with pytest.raises(ValueError, match="mapped over examples"):
        per_example_grads(lambda p: jnp.sum(p["w"]))(PARAMS)


def test_no_parameters():
    with pytest.raises(ValueError, match="at least one leaf"):
        per_example_grads(lambda p, x: jnp.sum(x))({}, X)


def test_argnums_out_of_range():
    with pytest.raises(ValueError, match="argnums below 2 arguments, got argnums=2"):
        per_example_grads(loss, argnums=2)(PARAMS, X)


def test_in_axes_length():
    with pytest.raises(ValueError, match="entry for each of 2 arguments, got 3"):
        per_example_grads(loss, in_axes=(None, 0, 0))(PARAMS, X)


def test_in_axes_of_the_parameters():
    with pytest.raises(
        ValueError, match=r"parameters' entry in in_axes to be None, got in_axes\[0\]=0"
    ):
        per_example_grads(loss, in_axes=(0, 0))(PARAMS, X)


@pytest.mark.parametrize("size", [0, -1, 2.0])
def test_batch_size(size):
    with pytest.raises(ValueError, match=f"batch_size to be a positive integer, got {size}"):
        per_example_grads(loss, batch_size=size)


def test_route():
    with pytest.raises(ValueError, match="route to be one of"):
        per_example_grads(loss, route="fast")


def test_passes():
    with pytest.raises(ValueError, match="passes to be one of"):
        per_example_grads(loss, batch_size=2, passes=3)


def test_function():
    not_callable: Any = PARAMS
    with pytest.raises(TypeError, match="fun to be callable, got dict"):
        per_example_grads(not_callable)


def test_tangent_lacks_a_leaf(G):
    with pytest.raises(ValueError, match="'b' is missing"):
        G @ {"w": PARAMS["w"]}


def test_tangent_has_another_leaf(G):
    with pytest.raises(ValueError, match="'c' is not a parameter"):
        G @ (PARAMS | {"c": jnp.ones(2)})


def test_tangent_has_another_shape(G):
    with pytest.raises(ValueError, match=r"at 'w' got \(2, 3\), expected \(3, 2\)"):
        G @ (PARAMS | {"w": PARAMS["w"].T})


@pytest.mark.parametrize("weights", [np.ones(3), np.ones((4, 1)), np.ones((1, 1, 4))])
def test_weights_shape(G, weights):
    with pytest.raises(ValueError, match=r"weights to have shape \(4,\)"):
        weights @ G


def test_scale_shape(G):
    with pytest.raises(
        ValueError, match=r"weights to have shape \(4,\), one per example, got \(5,\)"
    ):
        G.scale(np.ones(5))


@pytest.mark.parametrize("mask", [np.ones(4), np.ones(3, bool), True])
def test_mask(G, mask):
    with pytest.raises(ValueError, match=r"mask to be boolean of shape \(4,\)"):
        G.where(mask)


def test_clip_options(G):
    with pytest.raises(ValueError, match="max_norm >= 0, got max_norm=-1"):
        G.clip(-1.0)
    with pytest.raises(ValueError, match="max_norm >= 0"):
        G.clip(float("nan"))
    with pytest.raises(ValueError, match="nonfinite to be one of"):
        G.clip(1.0, nonfinite="ignore")


def test_by(G):
    with pytest.raises(ValueError, match="by to be one of"):
        G.norms(by="layer")
    with pytest.raises(ValueError, match="by to be one of"):
        G.squared_norms(by="layer")


def test_select_needs_a_leaf(G):
    with pytest.raises(ValueError, match="at least one of: b, w"):
        G.select(lambda path: False)


def test_matrices_of_other_parameters(G):
    other = per_example_grads(lambda p, x: jnp.sum(x @ p))(jnp.ones((3, 2)), X)
    with pytest.raises(ValueError, match="same columns"):
        G @ other.T
    with pytest.raises(ValueError, match="same columns"):
        G @ G.select(lambda path: path == "w").T


def test_parameters_by_parameters(G):
    with pytest.raises(TypeError, match=r"use G @ G\.T"):
        G.T @ G


def test_matrix_times_matrix_without_transpose(G):
    with pytest.raises((TypeError, ValueError)):
        G @ G


def test_weights_are_not_gradients():
    with pytest.raises(ValueError, match="tangent to have the structure of the parameters"):
        gradkin.per_example_grads(loss)(PARAMS, X) @ np.ones(4)  # type: ignore[operator]


def test_parameters_of_equal_paths():
    params = {"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)}
    loss = lambda p, x: jnp.vdot(p["a"]["b"] + p["a/b"], x)
    with pytest.raises(ValueError, match="'a/b' twice"):
        gradkin.per_example_grads(loss)(params, jnp.ones((3, 2)))
