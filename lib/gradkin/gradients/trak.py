"""TRAK: attribution by linear regression in the features that gradients are."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices import contraction, products, sketching
from gradkin.matrices.per_example import value_and_per_example_grads
from gradkin.typing import Array, IntScalar, PyTree, Scalar


def correct_class_margin(logits: Float[Array, " classes"], label: IntScalar) -> Array:
    """Log-odds of the right class: ``log(p / (1 - p))`` (Park et al. 2023, sec. 3.2).

    The output of a classifier that TRAK attributes: unbounded, and linear in the parameters of a
    logistic regression. The loss is ``log(1 + exp(-margin))``.

    Args:
      logits: ``[classes]``, at least two.
      label: index of the right class.

    Returns:
      Scalar: the right logit minus the log-sum-exp of the others.

    Raises:
      ValueError: fewer than two logits, or a concrete label that is no class.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> float(gradients.correct_class_margin(jnp.array([3.0, 1.0]), jnp.array(0)))
      2.0

    References:
      Park et al. (2023), "TRAK: Attributing Model Behavior at Scale", arXiv:2303.14186,
      sec. 3.2. :cite:`park:23`
    """
    if logits.shape[0] < 2:
        raise ValueError(f"Expected at least two logits, got {logits.shape[0]}.")
    if checks.is_concrete(label) and not 0 <= int(label) < logits.shape[0]:
        raise ValueError(f"Expected label to be one of {logits.shape[0]} classes, got {label}.")
    logits = logits.astype(contraction.at_least_float32(logits.dtype))
    right = jnp.arange(logits.shape[0]) == label
    others = jnp.where(right, -jnp.inf, logits)
    return jnp.sum(jnp.where(right, logits, 0)) - jax.nn.logsumexp(others)


def trak(
    output_fn: Callable[..., Any],
    checkpoints: PyTree,
    train: PyTree,
    queries: PyTree,
    *,
    sketch: Any,
    regularization: Scalar = 0.0,
    batch_size: int | None = None,
) -> Float[Array, "train queries"]:
    """TRAK scores of training examples for the outputs of queries (Park et al. 2023, eq. 16).

    Args:
      output_fn: ``output_fn(params, example)`` -> scalar margin of one example whose loss is
        ``log(1 + exp(-output))``, such as `correct_class_margin` of the logits.
      checkpoints: parameters of ``M`` independently trained models, with a leading axis at each
        leaf; TRAK trains each on a random half of the data.
      train: ``n`` training examples, batched.
      queries: ``m`` queries, batched.
      sketch: projects gradients to ``k`` numbers, ``k`` well below ``n``, such as
        `RademacherSketch`; model ``m`` gets its key folded with ``m``.
      regularization: see `trak_scores`.
      batch_size: examples whose gradients exist at a time; None for all.

    Returns:
      Scores ``[n, m]``; see `trak_scores`.

    Raises:
      TypeError: ``sketch`` is no sketch.
      ValueError: more features than examples without regularization.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import gradients
      >>> x = jax.random.normal(jax.random.key(0), (20, 3))
      >>> sketch = gradients.RademacherSketch(jax.random.key(1), 2)
      >>> margin = lambda w, x: w @ x
      >>> gradients.trak(margin, jnp.ones((4, 3)), x, x[:5], sketch=sketch).shape
      (20, 5)

    References:
      Park et al. (2023), "TRAK: Attributing Model Behavior at Scale", arXiv:2303.14186,
      algorithm 1. :cite:`park:23`

    """
    sketching.check_sketch(sketch)
    count = jax.tree.leaves(checkpoints)[0].shape[0]

    def features(model: tuple[PyTree, Array]) -> tuple[Array, Array, Array]:
        params, number = model
        s = dataclasses.replace(sketch, key=jax.random.fold_in(sketch.key, number))
        transform = value_and_per_example_grads(output_fn, batch_size=batch_size)
        margins, G = transform(params, train)
        return G.sketch(s), transform(params, queries)[1].sketch(s), jax.nn.sigmoid(-margins)

    found = jax.lax.map(features, (checkpoints, jnp.arange(count)))
    return trak_scores(*found, regularization=regularization)


def trak_scores(
    features: Float[Array, "models train size"],
    queries: Float[Array, "models queries size"],
    residuals: Float[Array, "models train"],
    *,
    regularization: Scalar = 0.0,
) -> Float[Array, "train queries"]:
    """TRAK scores from features of ``M`` models (Park et al. 2023, eq. 16).

    .. math:: \\tau = \\Big(\\frac{1}{M} \\sum_m Q_m\\Big)
        \\Big(\\frac{1}{M} \\sum_m \\Phi_m (\\Phi_m^\\top \\Phi_m + \\lambda_m I)^{-1}
        \\phi_m^\\top\\Big)

    How the output of a query would change if a training example were counted once more, in the
    linear model of the features: positive for examples that raise the output.

    Args:
      features: projected gradients ``Phi`` of the training examples' outputs, for each model.
      queries: those of the queries' outputs, ``phi``.
      residuals: ``1 - p``, one minus the probability of the right class; the diagonal of ``Q``.
      regularization: ``lambda`` over the mean of the diagonal of ``Phi^T Phi``, >= 0.

    Returns:
      Scores ``[n, m]``.

    Raises:
      ValueError: negative regularization, shapes that disagree, or more features than examples
        without regularization (the system is singular).

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> phi = 2 * jnp.eye(2)[None]
      >>> gradients.trak_scores(phi, phi, jnp.full((1, 2), 0.5)).tolist()
      [[0.5, 0.0], [0.0, 0.5]]

    References:
      Park et al. (2023), "TRAK: Attributing Model Behavior at Scale", arXiv:2303.14186,
      eq. (16). :cite:`park:23`

    Note:
      The paper's last step, soft thresholding of the scores, is left out. The released code divides
      the inverse by its mean absolute entry; here the scale is the formula's.
    """
    checks.non_negative(regularization=regularization)
    models, num, size = features.shape
    if queries.shape[::2] != (models, size) or residuals.shape != (models, num):
        raise ValueError(
            f"Expected queries [{models}, m, {size}] and residuals [{models}, {num}] beside "
            f"features {features.shape}, got {queries.shape} and {residuals.shape}."
        )
    if size > num and checks.is_concrete(regularization) and regularization == 0:
        raise ValueError(
            f"Expected regularization > 0 with more features ({size}) than examples ({num})."
        )

    def one(model: tuple[Array, Array]) -> Array:
        phi, query = model
        second = jnp.matmul(phi.T, phi, precision=products.HIGHEST)
        mean = jnp.trace(second) / size
        shift = jnp.asarray(regularization, phi.dtype) * mean
        solved = jax.scipy.linalg.solve(
            second + shift * jnp.eye(size, dtype=phi.dtype), query.T, assume_a="pos"
        )
        return jnp.matmul(phi, solved, precision=products.HIGHEST)

    values = jnp.mean(jax.lax.map(one, (features, queries)), axis=0)
    return values * jnp.broadcast_to(jnp.mean(residuals, axis=0)[:, None], values.shape)
