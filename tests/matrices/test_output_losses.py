"""Losses of outputs: their Hessians in closed form and the distributions that they belong to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import curvature
from gradkin.matrices.output_losses import as_output_loss
from tests.matrices.models.model import normal

OUTPUTS, U = normal(0, 3, 4), normal(1, 3, 4)
LOSSES = {
    "labels": (curvature.cross_entropy, jnp.array([0, 3, 1])),
    "a label left out": (curvature.cross_entropy, jnp.array([0, -1, 1])),
    "probabilities": (curvature.cross_entropy, jax.nn.softmax(normal(2, 3, 4))),
    "squared": (curvature.squared_error, normal(3, 3, 4)),
    "binary": (curvature.binary_cross_entropy, jnp.array([[0, 1, 1, 0]] * 3)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_closed_form_is_the_derivative(name):
    loss, target = LOSSES[name]
    generic = as_output_loss(loss.value)
    np.testing.assert_allclose(
        loss.hessian_product(OUTPUTS, target, U),
        generic.hessian_product(OUTPUTS, target, U),
        atol=1e-6,
    )


def test_a_class_ruled_out_is_as_if_it_were_not_there():
    kept = np.array([0, 2, 3])
    outputs = OUTPUTS.at[:, 1].set(-jnp.inf)
    soft = jax.nn.softmax(normal(2, 3, 3))
    value_and_grads = jax.value_and_grad(curvature.cross_entropy, argnums=0)
    for target, without in (
        (jnp.array([0, 3, -1]), jnp.array([0, 2, -1])),
        (jnp.zeros((3, 4)).at[:, kept].set(soft), soft),
    ):
        value, grad = jax.jit(value_and_grads)(outputs, target)
        wanted, grad_wanted = value_and_grads(OUTPUTS[:, kept], without)
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
        np.testing.assert_allclose(grad[:, kept], grad_wanted, atol=1e-6)
        np.testing.assert_array_equal(grad[:, 1], 0)
        product = curvature.cross_entropy.hessian_product(outputs, target, U)
        assert np.isfinite(product).all()
    by_target = jax.grad(curvature.cross_entropy, argnums=1)(outputs, target)
    np.testing.assert_allclose(by_target[:, kept], -jax.nn.log_softmax(OUTPUTS[:, kept]), rtol=1e-5)
    assert curvature.cross_entropy(outputs, jnp.array([0, 1, 0])) == jnp.inf


def test_values():
    label, outputs = 2, jnp.array([1.0, 2.0, 4.0])
    wanted = np.log(np.sum(np.exp([1.0, 2.0, 4.0]))) - 4
    np.testing.assert_allclose(
        curvature.cross_entropy(outputs, jnp.array(label)), wanted, rtol=1e-5
    )
    assert curvature.cross_entropy(outputs, jnp.array(-100)) == 0
    assert curvature.squared_error(outputs, jnp.zeros(3)) == 0.5 * 21
    found = curvature.binary_cross_entropy(outputs, jnp.array([1, 0, 1]))
    np.testing.assert_allclose(found, np.sum(np.log1p(np.exp([-1.0, 2.0, -4.0]))), rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "targets", "probabilities"),
    [
        (curvature.cross_entropy, range(4), jax.nn.softmax),
        (curvature.binary_cross_entropy, range(2), lambda f: jnp.stack([1 - f, f])),
    ],
)
def test_fisher_information_of_the_outputs_is_the_hessian(loss, targets, probabilities):
    """The expectation over all labels of score times score, written out."""
    if loss is curvature.cross_entropy:
        f, u = OUTPUTS[0], U[0]
        p = probabilities(f)
    else:
        f, u = OUTPUTS[0, 0], U[0, 0]
        p = probabilities(jax.nn.sigmoid(f))
    scores = jnp.stack([jax.grad(loss.value)(f, jnp.asarray(y)) for y in targets])
    along = jnp.array([jnp.vdot(s, u) for s in scores])
    wanted = jnp.tensordot(p * along, scores, 1)
    np.testing.assert_allclose(loss.hessian_product(f, jnp.asarray(0), u), wanted, atol=1e-6)


def test_samples_follow_the_distribution(key):
    keys = jax.random.split(key, 20_000)
    f = jnp.array([0.0, 1.0, -1.0])
    labels = jax.vmap(curvature.cross_entropy.sample, (0, None))(keys, f)
    np.testing.assert_allclose(jnp.bincount(labels) / 20_000, jax.nn.softmax(f), atol=0.02)
    bits = jax.vmap(curvature.binary_cross_entropy.sample, (0, None))(keys, f)
    np.testing.assert_allclose(jnp.mean(bits, 0), jax.nn.sigmoid(f), atol=0.02)
    reals = jax.vmap(curvature.squared_error.sample, (0, None))(keys, f)
    np.testing.assert_allclose(jnp.mean(reals, 0), f, atol=0.04)
    np.testing.assert_allclose(jnp.std(reals, 0), 1, atol=0.03)


def test_half_precision_outputs_are_summed_wide():
    outputs = jnp.full(1000, 0.1, jnp.bfloat16)
    assert curvature.squared_error(outputs, jnp.zeros(1000)).dtype == np.float32
    u = curvature.cross_entropy.hessian_product(outputs, jnp.array(0), jnp.ones(1000, jnp.bfloat16))
    assert u.dtype == jnp.bfloat16
    np.testing.assert_allclose(u, 0, atol=1e-5)


def test_bad_targets_are_named():
    with pytest.raises(ValueError, match=r"label for each of \(3,\) positions"):
        curvature.cross_entropy(OUTPUTS, jnp.array(0))
    with pytest.raises(ValueError, match=r"probabilities of shape \(3, 4\)"):
        curvature.cross_entropy(OUTPUTS, jnp.ones(4))
    for loss in (curvature.squared_error, curvature.binary_cross_entropy):
        with pytest.raises(ValueError, match=r"shape of the outputs, \(3, 4\), got \(4,\)"):
            loss(OUTPUTS, jnp.ones(4))
