"""DiceSGD: DP-SGD whose clipping bias is fed back. No relation of the DICE of offline RL."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkin import checks
from gradkin.gradients import accounting, clipping
from gradkin.gradients.accounting import GaussianMechanism
from gradkin.gradients.clipping import ClippedSum
from gradkin.gradients.private_aggregate import as_matrix
from gradkin.gradients.sampling import FullBatch, Sampling
from gradkin.typing import PRNGKey, PyTree, Scalar

CONVENTIONS = ("paper", "reference")


class ErrorFeedbackState(NamedTuple):
    """State of `dicesgd`. Not private: neither log it nor store it with a released model.

    Attributes:
      error: what clipping has held back so far, float32, a pytree like the parameters; in units of
        a mean ("paper") or of a sum ("reference").
      key: of the noise.
      count: steps taken, int32.
    """

    error: PyTree
    key: PRNGKey
    count: jax.Array


def dicesgd(
    key: PRNGKey,
    *,
    clip_norm: Scalar,
    feedback_clip_norm: Scalar | None = None,
    noise_std: Scalar = 0.0,
    convention: str = "paper",
) -> optax.GradientTransformation:
    """DP-SGD with clipped error feedback (Zhang et al. 2024, algorithm 1).

    .. math::
        v_t &= \\tfrac1B \\sum_i \\mathrm{clip}(g_i, C_1) + \\mathrm{clip}(e_t, C_2) \\\\
        \\text{released: } & v_t + w_t,\\quad w_t \\sim N(0, \\sigma^2 I) \\\\
        e_{t+1} &= e_t + \\tfrac1B \\sum_i g_i - v_t

    At rest v equals the mean gradient, so a constant bias of clipping goes away, provided that
    ``C2`` is as large as that bias; ``C2 >= C1`` suffices.

    Args:
      key: of the noise of all steps.
      clip_norm: ``C1 > 0``.
      feedback_clip_norm: ``C2 >= 0`` in units of the mean; default ``C1``. 0 is DP-SGD.
        "reference" has ``C1 / B`` and takes no other.
      noise_std: ``sigma >= 0`` of the released mean; see `dicesgd_noise_std`.
      convention: "paper"; or "reference", the authors' code.

    Returns:
      An `optax.GradientTransformation` for per-example gradients ``G`` or leaves ``[B, ...]``. Rows
      that are NaN or infinite are zeroed, in the feedback too.

    Raises:
      ValueError: bounds out of range, an unknown convention, no leading axis.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import gradients
      >>> transform = gradients.dicesgd(jax.random.key(0), clip_norm=1.0)
      >>> update, state = transform.update(jnp.array([[3.0], [1.0]]), transform.init(jnp.zeros(1)))
      >>> update.tolist(), state.error.tolist()
      ([1.0], [1.0])

    Note:
      The authors' code works on sums: it clips the sum of errors at ``C1``, so that ``C2 = C1 / B``
      in the paper's units, B times weaker than the paper's rule, and adds ``1e-6`` to the norm of
      the error; its noise is ``2 z C1`` on the sum, ``noise_std = 2 z C1 / B`` here. The paper's
      privacy analysis has constants that we could not verify: none are offered.

    References:
      Zhang, Bu, Wu & Hong (2024), "Differentially Private SGD Without Clipping Bias: An
      Error-Feedback Approach", ICLR, arXiv:2311.14632. :cite:`dicesgd-error-feedback`
    """
    checks.one_of(CONVENTIONS, convention=convention)
    checks.positive(clip_norm=clip_norm)
    checks.non_negative(noise_std=noise_std)
    if convention == "reference" and feedback_clip_norm is not None:
        raise ValueError(
            "Expected no feedback_clip_norm with convention='reference' (it is C1 / B), got "
            f"{feedback_clip_norm}."
        )
    second = clip_norm if feedback_clip_norm is None else feedback_clip_norm
    checks.non_negative(feedback_clip_norm=second)

    def init(params: PyTree) -> ErrorFeedbackState:
        error = jax.tree.map(lambda p: jnp.zeros(np.shape(p), np.float32), params)
        return ErrorFeedbackState(error, key, jnp.zeros((), np.int32))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        G = as_matrix(updates)
        total = clipping.clipped_sum(G, clip_norm)
        raw = G.where(total.kept).sum()
        size = np.float32(len(G))
        error_norm = optax.tree.norm(state.error)
        if convention == "paper":
            unit, bound, offset = size, second, 0.0
        else:
            unit, bound, offset = np.float32(1), clip_norm, 1e-6
        share = _clip_factor(error_norm, bound, offset)
        released = jax.tree.map(lambda g, e: g / unit + share * e, total.value, state.error)
        error = jax.tree.map(lambda e, g, v: e + g / unit - v, state.error, raw, released)
        mean = jax.tree.map(lambda v: v * (unit / size), released)
        mean = _with_noise(state, mean, noise_std)
        return mean, ErrorFeedbackState(error, state.key, state.count + np.int32(1))

    return optax.GradientTransformation(init, update)


def _clip_factor(norm: Any, bound: Scalar, offset: float) -> Any:
    norm, bound = norm + np.float32(offset), jnp.asarray(bound, np.float32)
    above = norm > bound
    ratio = bound / jnp.where(above, norm, jnp.ones_like(norm))
    return jnp.where(above, ratio, jnp.ones_like(norm))


def _with_noise(state: ErrorFeedbackState, tree: PyTree, noise_std: Scalar) -> PyTree:
    if checks.is_concrete(noise_std) and noise_std == 0:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.fold_in(state.key, state.count), len(leaves))
    std = jnp.asarray(noise_std, np.float32)
    noised = [
        v + std * jax.random.normal(k, v.shape, v.dtype) for k, v in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, noised)


def clipping_bias(G: Any, clip_norm: Scalar) -> PyTree:
    """``mean_i clip(g_i) - mean_i g_i``: what DP-SGD gets wrong on average.

    Args:
      G: per-example gradients, or leaves ``[B, ...]``.
      clip_norm: ``C > 0``.

    Returns:
      A pytree like the parameters. `dicesgd` removes it where its norm is at most ``C2``.

    Raises:
      ValueError: a non-positive bound.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> gradients.clipping_bias(jnp.array([[3.0], [-1.0]]), 1.0).tolist()
      [-1.0]

    References:
      Zhang, Bu, Wu & Hong (2024), ICLR, arXiv:2311.14632. :cite:`dicesgd-error-feedback`
    """
    checks.positive(clip_norm=clip_norm)
    G = as_matrix(G)
    total: ClippedSum = clipping.clipped_sum(G, clip_norm)
    return jax.tree.map(lambda c, g: (c - g) / len(G), total.value, G.where(total.kept).sum())


def dicesgd_mechanism(
    *,
    clip_norm: float,
    feedback_clip_norm: float,
    noise_std: float,
    batch_size: int,
    sampling: Sampling,
    relation: str = "replace_one",
) -> GaussianMechanism:
    """What may safely be said about the privacy of `dicesgd`: an adaptive Gaussian composition.

    Given what was released before, one step moves by at most ``2 C1 / B + 2 C2`` when an example
    is replaced, ``C1 / B + 2 C2`` when one is added or removed: the hidden error may differ
    altogether. It depends on the whole history, so amplification by sampling does not apply.

    Args:
      clip_norm: ``C1``.
      feedback_clip_norm: ``C2``.
      noise_std: ``sigma`` of the released mean.
      batch_size: ``B``, the divisor.
      sampling: must be `FullBatch`: the analysis uses no sampling.
      relation: neighbouring relation.

    Returns:
      A mechanism for `epsilon`: a guard, far looser than the paper's own bound.

    Raises:
      ValueError: any sampling, or values out of range.

    Example:
      >>> from gradkin import gradients
      >>> mechanism = gradients.dicesgd_mechanism(
      ...     clip_norm=1.0, feedback_clip_norm=1.0, noise_std=21.0, batch_size=20,
      ...     sampling=gradients.FullBatch(20))
      >>> round(mechanism.noise_multiplier, 6)
      10.0

    References:
      Zhang, Bu, Wu & Hong (2024), ICLR, arXiv:2311.14632. :cite:`dicesgd-error-feedback`
    """
    if not isinstance(sampling, FullBatch):
        raise ValueError(
            f"Expected sampling=FullBatch(...) for error feedback, got {type(sampling).__name__}: "
            "the error remembers every earlier batch, so the subsampled accountant does not apply."
        )
    checks.positive(clip_norm=clip_norm, batch_size=batch_size)
    checks.non_negative(feedback_clip_norm=feedback_clip_norm, noise_std=noise_std)
    mechanism = GaussianMechanism(0.0, sampling, relation)
    one = 2 * clip_norm if relation == "replace_one" else clip_norm
    sensitivity = one / batch_size + 2 * feedback_clip_norm
    return GaussianMechanism(noise_std / sensitivity, sampling, mechanism.relation)


def dicesgd_noise_std(
    *,
    clip_norm: float,
    feedback_clip_norm: float,
    batch_size: int,
    num_examples: int,
    steps: int,
    epsilon: float,
    delta: float,
    relation: str = "replace_one",
) -> float:
    """Noise for `dicesgd` that meets a budget by the conservative analysis.

    Args:
      clip_norm: ``C1``.
      feedback_clip_norm: ``C2``.
      batch_size: ``B``, the divisor.
      num_examples: size of the data set.
      steps: number of releases.
      epsilon: the budget.
      delta: in (0, 1).
      relation: neighbouring relation.

    Returns:
      ``sigma`` of the released mean. It does not shrink with the data set: a guard, not a setting
      to train with.

    Example:
      >>> from gradkin import gradients
      >>> round(gradients.dicesgd_noise_std(
      ...     clip_norm=1.0, feedback_clip_norm=1.0, batch_size=100, num_examples=100, steps=1,
      ...     epsilon=1.0, delta=1e-5), 1)
      7.5

    References:
      Zhang, Bu, Wu & Hong (2024), ICLR, arXiv:2311.14632. :cite:`dicesgd-error-feedback`
    """
    sampling = FullBatch(num_examples)
    multiplier = accounting.noise_multiplier(
        sampling, steps=steps, epsilon=epsilon, delta=delta, relation=relation
    )
    unit = dicesgd_mechanism(
        clip_norm=clip_norm,
        feedback_clip_norm=feedback_clip_norm,
        noise_std=1.0,
        batch_size=batch_size,
        sampling=sampling,
        relation=relation,
    )
    return multiplier / unit.noise_multiplier
