"""Phases of training, told from global and local measures of the loss landscape."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gradkin import checks
from gradkin.typing import Array, ArrayLike, Scalar

PHASES = ("I", "II", "III", "IV-A", "IV-B")


def classify_phase(
    train_loss: Float[ArrayLike, "..."],
    connectivity: Float[ArrayLike, "..."],
    similarity: Float[ArrayLike, "..."],
    *,
    loss_threshold: Scalar,
    tolerance: Scalar,
    similarity_threshold: Scalar,
) -> Int[Array, "..."]:
    """The phase of models with the same hyper-parameters (Yang et al. 2021).

    =========  =============  ======================  ==================
    phase      training loss  mode connectivity       similarity
    =========  =============  ======================  ==================
    0, I       large          barrier                 any
    1, II      large          none                    any
    2, III     small          barrier                 any
    3, IV-A    small          none                    low
    4, IV-B    small          none                    high
    =========  =============  ======================  ==================

    There is a barrier where the connectivity is below ``-tolerance``.

    Args:
      train_loss: mean over the models; any shape.
      connectivity: between two of them, as by `bezier_connectivity`; same shape.
      similarity: of their outputs, as by `gradkin.kernels.linear_cka`; same shape.
      loss_threshold: a training loss is small up to here.
      tolerance: a barrier up to this height is none, >= 0; at least the noise floor of the error.
      similarity_threshold: a similarity is high from here on.

    Returns:
      Numbers of phases, their names in `PHASES`; -1 where a measure is NaN.

    Raises:
      ValueError: shapes that differ, or a negative tolerance.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> found = curvature.classify_phase(
      ...     jnp.array([1.0, 0.01]), jnp.array([-0.2, 0.0]), jnp.array([0.4, 0.95]),
      ...     loss_threshold=0.1, tolerance=0.03, similarity_threshold=0.9)
      >>> [curvature.PHASES[i] for i in found]
      ['I', 'IV-B']

    References:
      Yang et al. (2021), "Taxonomizing local versus global structure in neural network loss
      landscapes", arXiv:2107.11228. :cite:`yang:21b`

      Schuerholt et al. (2025), "A Model Zoo on Phase Transitions in Neural Networks",
      arXiv:2504.18072. :cite:`phase-model-zoo`

    Note:
      Neither paper gives thresholds that carry over to other data: choose them before looking.
    """
    checks.non_negative(tolerance=tolerance)
    shapes = [np.shape(x) for x in (train_loss, connectivity, similarity)]
    if len(set(shapes)) != 1:
        raise ValueError(
            "Expected train_loss, connectivity and similarity of one shape, got "
            f"{shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    loss, mc, cka = (jnp.asarray(x) for x in (train_loss, connectivity, similarity))
    barrier = mc < -jnp.asarray(tolerance, mc.dtype)
    alike = cka >= jnp.asarray(similarity_threshold, cka.dtype)
    connected = jnp.where(alike, 4, 3)
    large = loss > jnp.asarray(loss_threshold, loss.dtype)
    phase = jnp.where(large, jnp.where(barrier, 0, 1), jnp.where(barrier, 2, connected))
    unknown = jnp.isnan(loss) | jnp.isnan(mc) | jnp.isnan(cka)
    return jnp.where(unknown, -1, phase).astype(jnp.int32)
