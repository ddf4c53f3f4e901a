"""What was once wrong, or silently accepted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkin
from gradkin import curvature, gradients

PAIR = curvature.OpposingGroups(losers=jnp.array([0]), gainers=jnp.array([1]))


def test_integers_are_not_stepped_in_integers():
    zero, one = jnp.array([0, 0]), jnp.array([1, 1])
    path = curvature.loss_path(lambda w: jnp.sum(w**2), zero, one, num_points=3)
    assert path.losses.tolist() == [2.0, 0.5, 0.0] or path.losses.tolist() == [0.0, 0.5, 2.0]
    assert float(path.barrier()) == 0
    assert float(curvature.interpolate(0, 1, 0.5)) == 0.5
    assert float(curvature.bezier_point(0, 1, 2, 0.5)) == 1
    curve = curvature.loss_curve(jnp.sum, jnp.arange(3), jnp.ones(3), alphas=jnp.array([0.5]))
    assert curve.tolist() == [4.5]
    step = curvature.sam_perturbation(jnp.array([3, 4]), rho=1.0)
    np.testing.assert_allclose(step, [0.6, 0.8], rtol=1e-6)
    counted = curvature.LossPath(jnp.linspace(0, 1, 5), jnp.array([8, 8, 6, 2, 0]))
    assert float(counted.barrier()) == 2
    assert float(curvature.annealed_loss(6, 2.5, step=20, weight=0.5, anneal_steps=10)) == 7.25


def test_a_leaf_whose_first_gradient_is_nearly_all_zero_still_learns():
    optimizer: Any = curvature.split_sgd(0.1, momentum=0.0)
    state = optimizer.init(jnp.zeros(20))
    _, state = optimizer.update(jnp.zeros(20).at[3].set(1.0), state)
    steps, state = optimizer.update(jnp.ones(20), state)
    np.testing.assert_allclose(steps, -0.1 * np.ones(20), rtol=0.2)
    assert float(state.thresholds) == 1


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_threshold_of_half_precision(dtype):
    numbers = jax.random.normal(jax.random.key(0), (100_000,)).astype(dtype)
    optimizer: Any = curvature.split_sgd(0.1)
    _, state = optimizer.update(numbers, optimizer.init(numbers))
    wanted = np.quantile(np.abs(np.asarray(numbers, np.float64)), 0.9)
    np.testing.assert_allclose(np.float64(state.thresholds), wanted, rtol=0.01)
    assert isinstance(optimizer, optax.GradientTransformation)


def test_no_gradient_bounds_the_radius():
    entropy = lambda x: jnp.sum(x * jnp.log(x) - x)  # none for x < 0
    radius = curvature.smoothness_radius(
        jax.random.key(0),
        entropy,
        jnp.array([2.0]),
        jnp.array([[0.1]]),
        radii=jnp.linspace(2.5, 5.0, 6),
        region="halfspace",
    )
    assert float(radius) == 2.5


@pytest.mark.parametrize("steps", [3, 7, 10, 30])
def test_what_never_changes_is_in_phase_with_nothing(steps):
    constant = jnp.full((steps, 2), 0.1)
    assert np.isnan(curvature.antiphase(constant, PAIR))
    changing = constant.at[:, 1].set(jnp.arange(steps, dtype=np.float32))
    assert np.isnan(curvature.antiphase(changing, PAIR))


def test_groups_are_of_the_examples():
    outside = PAIR._replace(losers=jnp.array([7]))
    G = gradkin.per_example_grads(lambda w, x: w @ x)(jnp.ones(2), jnp.eye(2))
    for call in (
        lambda: curvature.gradient_opposition(G, outside),
        lambda: curvature.antiphase(jnp.ones((3, 2)), outside),
        lambda: curvature.shared_feature(jnp.eye(2), outside),
    ):
        with pytest.raises(ValueError, match="groups.losers to be indices of the 2 examples"):
            call()


def test_nan_stays_visible():
    features = jnp.array([[jnp.nan, 1.0], [1.0, 2.0], [0.0, 1.0]])
    assert np.isnan(curvature.shared_feature(features, PAIR))
    assert np.isnan(gradients.spectral_stats(jnp.array([jnp.nan, 1.0])).effective_rank)
    subsets = jnp.array([[True, False], [False, True], [True, True]])
    scores, outputs = jnp.array([[jnp.nan], [2.0]]), jnp.array([[0.1], [0.2], [0.4]])
    assert np.isnan(gradients.linear_datamodeling_score(scores, subsets, outputs)[0])
    with pytest.raises(ValueError, match="eigenvalues without NaN"):
        curvature.count_outliers(jnp.array([3.0, jnp.nan]))
    assert np.isnan(jax.jit(curvature.near_zero_share)(jnp.array([jnp.nan, 1.0])))


def test_equal_eigenvalues_have_no_gap():
    assert int(curvature.count_outliers(jnp.ones(6))) == 0


def test_only_permutations_are_applied():
    params = {"b": jnp.arange(3.0)}
    spec = curvature.permutation_spec(params, {"b": ("hidden",)})
    for order in ([0, 0, 1], [0, 1, 3]):
        with pytest.raises(ValueError, match="each index below 3 once"):
            curvature.apply_permutation(spec, {"hidden": jnp.array(order)}, params)


@pytest.mark.parametrize("values", [[3e-20, 1e-20], [3e20, 1e20]])
def test_spectra_of_any_scale(values):
    stats = gradients.spectral_stats(jnp.array(values))
    np.testing.assert_allclose(stats.stable_rank, 1 + 1 / 9, rtol=1e-5)
    np.testing.assert_allclose(stats.frobenius_norm, np.linalg.norm(np.float64(values)), rtol=1e-5)


def test_eigenvalues_that_rounding_made_count_nothing():
    A = jnp.diag(jnp.array([16.0, 1.0, 0.0, 0.0, 0.0]))
    rows = jax.random.normal(jax.random.key(0), (4, 5))
    G = gradkin.per_example_grads(lambda w, x: w @ x)(jnp.ones(5), rows)
    two, three = (
        gradients.spectral_influence(jax.random.key(1), G, G, A, rank=rank) for rank in (2, 3)
    )
    np.testing.assert_allclose(three, two, rtol=1e-3, atol=1e-4)


def test_labels_are_classes():
    with pytest.raises(ValueError, match="one of 3 classes, got 5"):
        gradients.correct_class_margin(jnp.ones(3), 5)
    with pytest.raises(ValueError, match="labels of 3 classes"):
        gradients.el2n(jnp.ones((2, 3)), jnp.array([0, 7]))
