"""DP-SGD as the first link of an optax chain."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkin.gradients import clipping, noise
from gradkin.gradients.accounting import GaussianMechanism
from gradkin.gradients.clipping import Groups
from gradkin.matrices.per_example import per_example_grads
from gradkin.typing import PRNGKey, PyTree


class PrivateAggregateState(NamedTuple):
    """State of `private_aggregate`.

    Attributes:
      key: folded with ``count`` to draw the noise of a step.
      count: steps taken, int32.
    """

    key: PRNGKey
    count: jax.Array


def private_aggregate(
    key: PRNGKey,
    mechanism: GaussianMechanism,
    *,
    clip_norm: Any,
    groups: Groups = "flat",
    style: str = "rescale",
    allocation: str = "equal",
) -> optax.GradientTransformation:
    """Clip, sum, noise and divide per-example gradients; any optax optimizer follows.

    Args:
      key: of the noise of all steps.
      mechanism: noise, sampling and relation; the mean is over its expected batch size, and
        `epsilon` of the same object is the cost.
      clip_norm: see `clipped_sum`.
      groups: see `clipped_sum`.
      style: see `clipped_sum`.
      allocation: see `add_noise`.

    Returns:
      An `optax.GradientTransformation` whose updates come in as per-example gradients ``G`` (rows
      of padding removed by ``G.where(mask)``) or as a pytree with a leading axis of examples.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import gradkin
      >>> from gradkin import gradients
      >>> mechanism = gradients.GaussianMechanism(0.0, gradients.FullBatch(2))
      >>> optimizer = optax.chain(
      ...     gradients.private_aggregate(jax.random.key(0), mechanism, clip_norm=1.0),
      ...     optax.sgd(1.0))
      >>> w = jnp.zeros(2)
      >>> G = gradkin.per_example_grads(lambda w, x: w @ x)(w, 0.5 * jnp.eye(2))
      >>> optimizer.update(G, optimizer.init(w), w)[0].tolist()
      [-0.25, -0.25]

    References:
      Abadi et al. (2016), "Deep Learning with Differential Privacy", CCS. :cite:`abadi:16`
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        total = clipping.clipped_sum(as_matrix(updates), clip_norm, groups=groups, style=style)
        noised = noise.add_noise(
            jax.random.fold_in(state.key, state.count),
            total,
            noise_multiplier=mechanism.noise_multiplier,
            relation=mechanism.relation,
            allocation=allocation,
        ).mean(mechanism.sampling.expected_size)
        return noised.value, PrivateAggregateState(state.key, state.count + np.int32(1))

    return optax.GradientTransformation(
        lambda params: PrivateAggregateState(key, jnp.zeros((), np.int32)), update
    )


def as_matrix(grads: Any) -> Any:
    """Per-example gradients as a matrix ``G``, from ``G`` or from leaves ``[B, ...]``."""
    if hasattr(grads, "materialize"):
        return grads
    sizes = {np.shape(g)[:1] for g in jax.tree.leaves(grads)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"Expected gradients with one leading axis of examples, got leading axes {sizes}."
        )
    zeros = jax.tree.map(lambda g: jnp.zeros(np.shape(g)[1:], np.float32), grads)
    wide: PyTree = jax.tree.map(lambda g: jnp.asarray(g).astype(np.float32), grads)
    return per_example_grads(_linear)(zeros, wide)


def _linear(params: PyTree, grad: PyTree) -> Any:
    """A loss whose gradient is ``grad``."""
    return sum(jnp.vdot(p, g) for p, g in zip(jax.tree.leaves(params), jax.tree.leaves(grad)))
