"""The best single step of gradient descent on random regression tasks, in closed form."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array, Scalar


class Optimum(NamedTuple):
    """The best one-step learner for a law of tasks.

    null_loss: loss of predicting 0. rate, loss: best learning rate and its loss. preconditioner
    ``[inputs]``, preconditioned_loss: best diagonal preconditioner and its loss.
    """

    null_loss: Float[Array, ""]
    rate: Float[Array, ""]
    loss: Float[Array, ""]
    preconditioner: Float[Array, " inputs"]
    preconditioned_loss: Float[Array, ""]


KURTOSIS = {"uniform": 1.8, "normal": 3.0, "laplace": 6.0}


def optimal_step(
    variances: Float[Array, " inputs"] | Float[np.ndarray, " inputs"],
    *,
    num_context: int,
    kurtosis: Scalar = 1.8,
    noise: Scalar = 0.0,
) -> Optimum:
    """Best rate, best preconditioner and their losses for one step from zero.

    Tasks y_i = w . x_i + noise, w ~ N(0, I), independent coordinates of x with mean 0, variance
    v_k and fourth moment kurtosis * v_k^2; loss 1/2 E (prediction - w . x_q)^2. With S the
    second moment matrix of the context and r_k = (E[S^2]_kk + noise^2 v_k / N) / v_k,

        r_k = ((N + kurtosis - 2) v_k + sum_j v_j + noise^2) / N,

    the loss of rate eta is 1/2 sum_k v_k (1 - 2 eta v_k + eta^2 v_k r_k). Hence
    eta = sum v_k^2 / sum v_k^2 r_k, and for one rate per direction p_k = 1 / r_k.

    Args:
      variances: variance v_k of each input coordinate, >= 0 and not all zero; a zero stands for
        a coordinate that is not there.
      num_context: N, the number of examples in the context.
      kurtosis: fourth moment over squared variance of a coordinate: 1.8 for the uniform law,
        3 for the normal, 6 for the Laplace law.
      noise: standard deviation of the noise on context targets.

    Returns:
      ``Optimum``.

    Raises:
      ValueError: for a negative variance or noise, a size or a kurtosis that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> best = icl.optimal_step(jnp.full(10, 1 / 12), num_context=10)
      >>> round(float(best.rate), 4), round(float(best.loss), 5)
      (6.0606, 0.20623)

    Note:
      A derivation, not in the paper; for a normal law the preconditioner is that of Ahn et al.,
      N / ((N + 1) v_k + sum_j v_j).

    References:
      von Oswald et al. (2023), arXiv:2212.07677; Ahn et al. (2023), "Transformers learn to
      implement preconditioned gradient descent for in-context learning", Theorem 1,
      arXiv:2306.00297. :cite:`icl-gradient-descent`, :cite:`ahn:23`
    """
    checks.positive(num_context=num_context, kurtosis=kurtosis)
    checks.non_negative(variances=variances, noise=noise)
    v: Array = jnp.asarray(variances)
    ratio = ((num_context + kurtosis - 2) * v + v.sum() + jnp.square(noise)) / num_context
    rate = (v * v).sum() / (v * v * ratio).sum()
    return Optimum(
        null_loss=v.sum() / 2,
        rate=rate,
        loss=(v * (1 - 2 * rate * v + rate**2 * v * ratio)).sum() / 2,
        preconditioner=jnp.asarray(1 / ratio),
        preconditioned_loss=(v * (1 - v / ratio)).sum() / 2,
    )
