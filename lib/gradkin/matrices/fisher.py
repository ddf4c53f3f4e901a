"""The Fisher information, by labels drawn from the model, and the empirical Fisher."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkin import checks
from gradkin.matrices import recording
from gradkin.matrices.curvature import CurvatureMatrix
from gradkin.matrices.gauss_newton import GaussNewton
from gradkin.matrices.hessian import check_batch_size, check_real
from gradkin.matrices.output_losses import OutputLoss
from gradkin.matrices.per_example import bind, hashable, per_example_grads
from gradkin.typing import Array, PRNGKey, PyTree


@dataclasses.dataclass(frozen=True)
class SampledScores:
    """``mean_s g_s g_s^T`` with ``g_s`` the gradient in the outputs for a sampled target.

    In place of targets come seeds, the raw bits of one PRNG key per example: targets need not be
    stored, and a micro-batch draws the same ones.
    """

    loss: OutputLoss
    num_samples: int
    implementation: Any

    def __call__(self, outputs: PyTree, seed: Array, u: PyTree) -> PyTree:
        def one(key: PRNGKey) -> PyTree:
            target = self.loss.sample(key, outputs)
            score = jax.grad(self.loss.value)(outputs, target)
            along = [
                jnp.vdot(g, x, precision=jax.lax.Precision.HIGHEST)
                for g, x in zip(jax.tree.leaves(score), jax.tree.leaves(u), strict=True)
            ]
            total = sum(along[1:], start=along[0])
            return jax.tree.map(lambda g: g * total.astype(g.dtype), score)

        samples = jax.vmap(one)(self.keys(seed))
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), samples)

    def keys(self, seed: Array) -> PRNGKey:
        """The keys of one example's samples."""
        key = jax.random.wrap_key_data(seed, impl=self.implementation)
        return jax.random.split(key, self.num_samples)


@dataclasses.dataclass(frozen=True)
class SampledLoss:
    """Mean loss of one example over the same sampled targets, held fixed."""

    predict: Callable[..., Any]
    scores: SampledScores

    def __call__(self, params: PyTree, inputs: Any, sample: Any) -> Array:
        seed, number = sample
        outputs = self.predict(params, inputs)
        key = self.scores.keys(seed)[number]
        target = self.scores.loss.sample(key, jax.lax.stop_gradient(outputs))
        return self.scores.loss.value(outputs, target)


@dataclasses.dataclass(frozen=True)
class AnyTarget:
    """The loss of one example for some target; only its shape is looked at."""

    predict: Callable[..., Any]
    loss: OutputLoss

    def __call__(self, params: PyTree, inputs: Any) -> Any:
        outputs = self.predict(params, inputs)
        return self.loss.value(outputs, self.loss.sample(jax.random.key(0), outputs))


def fisher(
    predict_fn: Callable[..., Any],
    distribution: OutputLoss,
    *,
    in_axes: Any = 0,
    batch_size: int | None = None,
    num_samples: int = 1,
) -> Callable[..., CurvatureMatrix]:
    """Transform a model into its Fisher information, by labels drawn from the model itself.

    .. math:: \\frac{1}{B} \\sum_i \\frac{1}{S} \\sum_s g_{is} g_{is}^\\top, \\qquad
        g_{is} = \\nabla_\\theta \\log p(y_{is} \\mid f_i), \\quad y_{is} \\sim p(\\cdot \\mid f_i)

    An unbiased estimate of the Fisher information at these inputs, of rank at most ``B S``. Where
    the distribution is an exponential family in its natural parameters its expectation over the
    labels is the Gauss-Newton matrix, which `gradkin.gauss_newton` multiplies without sampling.

    Args:
      predict_fn: ``predict_fn(params, inputs)`` -> outputs of one example.
      distribution: `curvature.cross_entropy` (categorical), `curvature.squared_error` (normal of
        unit variance), `curvature.binary_cross_entropy` (Bernoulli), or an `curvature.OutputLoss`
        with a ``sample``.
      in_axes: as in `jax.vmap`, for ``(params, inputs)``; that of params must be None (an int
        applies to inputs).
      batch_size: as for `gradkin.hessian`.
      num_samples: labels per example, ``S``.

    Returns:
      A function of ``(key, params, inputs)`` that returns a `CurvatureMatrix`. The labels are fixed
      by the key: all products are with the same matrix.

    Raises:
      TypeError: a distribution that cannot be sampled, or parameters not real floating point.
      ValueError: leading axes that disagree, no examples, or no samples.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import curvature
      >>> F = gradkin.fisher(lambda w, x: x @ w, curvature.squared_error, num_samples=10_000)
      >>> matrix = F(jax.random.key(0), jnp.zeros((1, 1)), jnp.array([[3.0]]))
      >>> bool(abs(matrix.materialize()[0, 0] - 9.0) < 0.5)
      True

    References:
      Martens (2020), "New Insights and Perspectives on the Natural Gradient Method",
      arXiv:1412.1193, sec. 5 and 9. :cite:`martens:20`
    """

    def transformed(key: PRNGKey, params: PyTree, inputs: PyTree) -> CurvatureMatrix:
        check_batch_size(batch_size)
        if not checks.is_integer(num_samples, least=1):
            raise ValueError(f"Expected num_samples >= 1, got {num_samples!r}.")
        if not isinstance(distribution, OutputLoss) or distribution.sample is None:
            raise TypeError(
                "Expected distribution to be an OutputLoss with a sample, such as "
                f"gradkin.curvature.cross_entropy, got {distribution!r}."
            )
        predict = hashable(predict_fn)
        spec, num_examples = bind(
            AnyTarget(predict, distribution), 0, False, in_axes, "auto", (params, inputs)
        )
        check_real(params)
        scores = SampledScores(distribution, num_samples, jax.random.key_impl(key))
        seeds = jax.random.key_data(jax.random.split(key, num_examples))
        axes = hashable((*recording.mapped_axes(spec), 0))
        source = GaussNewton("Fisher information", predict, scores, axes)
        return CurvatureMatrix((params, inputs, seeds), source, num_examples, batch_size)

    return transformed


def sampled_grads(F: CurvatureMatrix) -> Any:
    """Per-example gradients ``G`` of the sampled-label loss: ``F`` is ``G.T @ G / len(G)``.

    With several samples per example there is a row for each. The factors of these rows are what
    K-FAC is made of (`kronecker`).

    Args:
      F: a matrix made by `gradkin.fisher`.

    Returns:
      A recorded matrix of ``B S`` rows; streamed if ``F`` is.

    Raises:
      TypeError: another curvature.
    """
    source = F.source
    if not isinstance(source, GaussNewton) or not isinstance(source.inner, SampledScores):
        raise TypeError(f"Expected a matrix made by gradkin.fisher, got {F!r}.")
    params, inputs, seeds = F.args
    _, inputs_axes, _ = source.in_axes
    num = source.inner.num_samples
    if num > 1:
        inputs = recording.map_axes(
            lambda axis, x: x if axis is None else jnp.repeat(x, num, axis=axis),
            inputs_axes,
            inputs,
        )
    sample = (jnp.repeat(seeds, num, axis=0), jnp.tile(jnp.arange(num), F.num_examples))
    size = None if F.batch_size is None else F.batch_size * num
    loss = SampledLoss(source.predict, source.inner)
    grads = per_example_grads(loss, in_axes=(None, inputs_axes, 0), batch_size=size)
    return grads(params, inputs, sample)


class EmpiricalFisher(NamedTuple):
    """``G.T @ G / B``; ``args`` is ``(G,)``."""

    name = "empirical Fisher"

    def like(self, args: tuple[Any, ...]) -> PyTree:
        (G,) = args
        return jax.eval_shape(lambda G: G.sum(), G)

    def linear_map(self, args: tuple[Any, ...], total: int) -> Callable[[PyTree], PyTree]:
        (G,) = args

        def product(v: PyTree) -> PyTree:
            along = G @ v
            return (along / jnp.asarray(total, along.dtype)) @ G

        return product


def empirical_fisher(G: Any) -> CurvatureMatrix:
    """Second moment of per-example gradients as a matrix of curvature: ``G.T @ G / len(G)``.

    With the labels of the data this is the empirical Fisher, with labels drawn from the model the
    Fisher information; of ``G.centered()`` it is the covariance of the gradients.

    Args:
      G: per-example gradients, recorded or streamed; row weights and selection count.

    Returns:
      A `CurvatureMatrix`; vectors are pytrees like the parameters, without what is not selected.

    Raises:
      TypeError: no matrix of gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> G = gradkin.per_example_grads(lambda w, x: w @ x)(jnp.ones(2), 2 * jnp.eye(2))
      >>> gradkin.empirical_fisher(G).materialize().tolist()
      [[2.0, 0.0], [0.0, 2.0]]

    References:
      Kunstner, Balles & Hennig (2019), "Limitations of the Empirical Fisher Approximation for
      Natural Gradient Descent", arXiv:1905.12558, eq. (3). :cite:`kunstner:19`

    Note:
      It is no estimate of the Fisher information or of the Hessian away from a perfect fit.
    """
    if not hasattr(G, "squared_norms") or not hasattr(G, "num_examples"):
        raise TypeError(
            "Expected per-example gradients, as gradkin.per_example_grads makes them, got "
            f"{type(G).__name__}."
        )
    return CurvatureMatrix((G,), EmpiricalFisher(), G.num_examples, None)
