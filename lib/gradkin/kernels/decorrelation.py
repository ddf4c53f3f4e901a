"""Weights of examples under which variables are independent of one another (stable learning)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices import distances
from gradkin.optim import update
from gradkin.typing import Array, ArrayLike, PRNGKey, Scalar

FORMS = ("normalized", "product")


class Decorrelation(NamedTuple):
    """Weights of examples, and what they achieve.

    Attributes:
      weights: ``[n]``, non-negative, mean 1.
      logits: ``[n]``, of which the weights are the softmax, times n; what a memory keeps.
      before: the dependence that is left with equal weights.
      after: with these.
    """

    weights: Array
    logits: Array
    before: Array
    after: Array

    def effective_size(self) -> Array:
        """``(sum w)^2 / sum w^2``: n for equal weights, 1 where one example has it all."""
        return jnp.square(jnp.sum(self.weights)) / jnp.sum(jnp.square(self.weights))


class Memory(NamedTuple):
    """Features and logits of earlier batches, for weights of small batches.

    Attributes:
      features: ``[k, n, q]``, running mean of the batches' features.
      logits: ``[n]``, running mean of their logits.
      batches: how many batches it has seen.
    """

    features: Array
    logits: Array
    batches: Array

    def updated(self, features: Array, logits: Array, *, decay: float = 0.9) -> "Memory":
        """The memory after another batch: the mean of the first batches, then a moving average.

        Args:
          features: ``[k, n, q]`` of the batch.
          logits: ``[n]``, found for it.
          decay: how much is kept, in [0, 1); reached after ``1 / (1 - decay)`` batches.
        """
        seen = self.batches.astype(features.dtype)
        keep = jnp.minimum(seen / (seen + 1), jnp.asarray(decay, features.dtype))
        mix = lambda old, new: keep * old + (1 - keep) * lax.stop_gradient(new)
        return Memory(mix(self.features, features), mix(self.logits, logits), self.batches + 1)


def empty_memory(features: Array) -> Memory:
    """A memory that has seen nothing, for features like these, ``[k, n, q]``.

    Args:
      features: ``[k, n, q]``, only its shape and dtype matter.

    Returns:
      `Memory` of zeros: constant features, which depend on nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> kernels.empty_memory(jnp.ones((2, 5, 3))).features.shape
      (2, 5, 3)
    """
    zeros = jnp.zeros_like(features)
    return Memory(zeros, zeros[0, :, 0], jnp.zeros((), np.int32))


def cosine_features(
    key: PRNGKey, x: ArrayLike, *, size: int, bandwidth: Scalar = 1.0
) -> Float[Array, "points size"]:
    """Random cosines ``sqrt(2) cos(<w, x> / h + b)`` (Rahimi & Recht 2007).

    With w normal and b uniform, the mean over features of products is the Gaussian kernel of the
    bandwidth. The features of different variables need different keys.

    Args:
      key: for frequencies and phases.
      x: ``[n]`` or ``[n, ...]`` points.
      size: how many features.
      bandwidth: h > 0.

    Returns:
      ``[n, size]``.

    Raises:
      ValueError: ``size`` or ``bandwidth`` not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import kernels
      >>> u = kernels.cosine_features(jax.random.key(0), jnp.array([0.0, 1.0]), size=100_000)
      >>> bool(jnp.abs(jnp.mean(u[0] * u[1]) - jnp.exp(-0.5)) < 0.02)
      True

    References:
      Rahimi & Recht (2007), "Random Features for Large-Scale Kernel Machines", NeurIPS.
      :cite:`rahimi:07`
    """
    checks.positive(size=size, bandwidth=bandwidth)
    x = distances.points(jnp.asarray(x))
    frequencies, phases = jax.random.split(key)
    w = jax.random.normal(frequencies, (x.shape[1], size), x.dtype)
    b = jax.random.uniform(phases, (1, size), x.dtype, 0, 2 * np.pi)
    angles = distances.product(x, w.T) / jnp.asarray(bandwidth).astype(x.dtype) + b
    return jnp.sqrt(jnp.asarray(2, x.dtype)) * jnp.cos(angles)


def weighted_dependence(
    weights: Float[ArrayLike, " n"],
    features: Float[ArrayLike, "k n q"],
    *,
    form: str = "normalized",
) -> Float[Array, ""]:
    """Dependence of variables under weights of the examples (Zhang et al. 2021, eq. 6).

    .. math:: D(w) = \\sum_{i<j} \\| C_{ij}(w) \\|_F^2

    of the covariances between the features of variables i and j. With random features, equal
    weights and divided by ``q^2`` it estimates the sum of their HSIC.

    Args:
      weights: ``[n]``, non-negative, not all zero.
      features: ``[k, n, q]``, for each of k variables q features, of `cosine_features`.
      form: "normalized": the covariance under the probabilities ``w / sum w``; "product": that of
        the features times ``w / mean w``, divided by ``n - 1``, which punishes every spread of the
        weights, even where the variables are independent.

    Returns:
      A scalar, >= 0; 0 for a single variable.

    Raises:
      ValueError: ill-fitting shapes, negative weights, an unknown form.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> u = jnp.array([[[1.0], [1.0], [-1.0]], [[1.0], [-1.0], [1.0]]])
      >>> w = jnp.array([0.0, 1.0, 1.0])
      >>> float(kernels.weighted_dependence(w, u))  # opposite on the two that are left
      1.0

    References:
      Zhang, Cui, Xu, Zhou, He & Shen (2021), "Deep Stable Learning for Out-of-Distribution
      Generalization", CVPR, arXiv:2104.07876, eqs. (6) and (7). :cite:`zhang:21`

    Note:
      The paper has the product form, its published code the normalized one between features of
      equal index; here all pairs of features count.
    """
    checks.one_of(FORMS, form=form)
    features = jnp.asarray(features)
    weights = jnp.asarray(weights)
    checks.rank(3, features=features)
    if weights.shape != features.shape[1:2]:
        raise ValueError(
            f"Expected weights of shape ({features.shape[1]},), got weights.shape={weights.shape}."
        )
    checks.non_negative(weights=weights)
    total = jnp.sum(weights)
    checks.positive(**{"the sum of weights": total})
    k, n, q = features.shape
    flat = jnp.moveaxis(features, 0, 1).reshape((n, k * q))
    share = (weights.astype(flat.dtype) / total.astype(flat.dtype))[:, None]
    if form == "product":
        flat, share = flat * (share * n), jnp.full_like(share, 1 / n)
    centered = flat - jnp.sum(share * flat, axis=0, keepdims=True)
    factor = jnp.full_like(share, 1 / (n - 1)) if form == "product" else share
    cross = distances.product((factor * centered).T, centered.T)
    blocks = jnp.sum(jnp.square(cross.reshape((k, q, k, q))), axis=(1, 3))
    return (jnp.sum(blocks) - jnp.trace(blocks)) / 2


def decorrelating_weights(
    features: Float[ArrayLike, "k n q"],
    *,
    num_steps: int = 500,
    learning_rate: Scalar = 0.02,
    penalty: Scalar = 0.003,
    form: str = "normalized",
    memory: Memory | None = None,
) -> Decorrelation:
    """Weights of the examples that make variables independent (Zhang et al. 2021; Liu et al. 2022).

    .. math:: \\min_a\\; D(w) + \\lambda \\frac{1}{n} \\sum_s (w_s - 1)^2,
        \\qquad w = n\\, \\operatorname{softmax}(a)

    by Adam from equal weights. What is learned from examples so weighted does not lean on
    dependencies between the variables. No derivative passes through, in either direction: the
    encoder would lower D by making its outputs constant.

    Args:
      features: ``[k, n, q]``, for each of k variables q features, of `cosine_features`.
      num_steps: steps of Adam.
      learning_rate: its rate.
      penalty: lambda >= 0, against weights on few examples.
      form: see `weighted_dependence`.
      memory: of earlier batches; its examples, with their fixed logits, count in D.

    Returns:
      `Decorrelation`.

    Raises:
      ValueError: ill-fitting shapes, a negative ``penalty``, an unknown form.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> one = jnp.array([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
      >>> two = jnp.array([1.0, 1.0, -1.0, -1.0, -1.0, 1.0])
      >>> found = kernels.decorrelating_weights(jnp.stack([one, two])[:, :, None])
      >>> [round(float(w), 1) for w in found.weights]
      [0.8, 0.8, 1.5, 0.8, 0.8, 1.5]

    References:
      Zhang, Cui, Xu, Zhou, He & Shen (2021), "Deep Stable Learning for Out-of-Distribution
      Generalization", CVPR, arXiv:2104.07876. :cite:`zhang:21`

      Liu, Luo, Zeng, Liu, Chang, Kong & Chen (2022), "Improving Multi-Interest Network with Stable
      Learning", arXiv:2207.07910. :cite:`desmil-hsic`

    Note:
      The published code of Zhang et al. adds sines to cosines and rescales phases, uses SGD with
      momentum and another penalty; none of that is here.
    """
    checks.one_of(FORMS, form=form)
    checks.rank(3, features=features)
    checks.non_negative(penalty=penalty)
    features = lax.stop_gradient(jnp.asarray(features))
    if memory is None:
        memory = Memory(features[:, :0], jnp.zeros((0,), features.dtype), jnp.zeros((), np.int32))
    if memory.features.shape[::2] != features.shape[::2]:
        raise ValueError(
            f"Expected a memory of the variables of features {features.shape}, got "
            f"{memory.features.shape}."
        )
    return solve(features, memory, learning_rate, penalty, num_steps=num_steps, form=form)


@functools.partial(jax.jit, static_argnames=("num_steps", "form"))
def solve(
    features: Array,
    memory: Memory,
    learning_rate: Scalar,
    penalty: Scalar,
    *,
    num_steps: int,
    form: str,
) -> Decorrelation:
    """See `decorrelating_weights`."""
    n, dtype = features.shape[1], features.dtype
    everything = jnp.concatenate([lax.stop_gradient(memory.features), features], axis=1)
    fixed = lax.stop_gradient(memory.logits)

    def dependence(logits: Array) -> Array:
        weights = jax.nn.softmax(jnp.concatenate([fixed, logits]))
        return weighted_dependence(weights, everything, form=form)

    def objective(logits: Array) -> Array:
        spread = jnp.mean(jnp.square(n * jax.nn.softmax(logits) - 1))
        return dependence(logits) + jnp.asarray(penalty).astype(dtype) * spread

    optimizer = optax.adam(jnp.asarray(learning_rate))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        logits, state = carry
        return update(optimizer, jax.grad(objective)(logits), state, logits), None

    start = jnp.zeros(n, dtype)
    (logits, _), _ = lax.scan(step, (start, optimizer.init(start)), length=num_steps)
    logits = logits - jnp.mean(logits)
    weights = n * jax.nn.softmax(logits)
    return Decorrelation(weights, logits, dependence(start), dependence(logits))
