"""Tokens: how a task is written down for a transformer."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array


def constructed_tokens(
    x: Float[Array, "context inputs"],
    y: Float[Array, "context outputs"],
    query: Float[Array, " inputs"],
    *,
    initial: Float[Array, "outputs inputs"] | None = None,
) -> Float[Array, "tokens width"]:
    """One token (x_i, y_i) per example and (x_q, -W0 x_q) last (von Oswald et al. 2023).

    Args:
      x: context inputs.
      y: context targets.
      query: the input asked about.
      initial: the weights W0 that descent starts from; zero by default.

    Returns:
      ``[context + 1, inputs + outputs]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> icl.constructed_tokens(jnp.ones((1, 2)), 3 * jnp.ones((1, 1)), jnp.ones(2)).tolist()
      [[1.0, 1.0, 3.0], [1.0, 1.0, 0.0]]

    References:
      von Oswald et al. (2023), Proposition 1, arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    start = jnp.zeros(y.shape[1], y.dtype) if initial is None else -(initial @ query)
    return jnp.block([[x, y], [query[None], start[None]]])


def classic_tokens(
    x: Float[Array, "context inputs"],
    y: Float[Array, "context outputs"],
    query: Float[Array, " inputs"],
) -> Float[Array, "tokens inputs"]:
    """Inputs and targets in tokens of their own: x_1, (0, y_1), x_2, ..., x_q.

    Args:
      x: context inputs.
      y: context targets, outputs <= inputs; they fill the last entries of their tokens.
      query: the input asked about.

    Returns:
      ``[2 * context + 1, inputs]``.

    Raises:
      ValueError: where there are more outputs than inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> icl.classic_tokens(jnp.ones((1, 2)), 3 * jnp.ones((1, 1)), jnp.ones(2)).tolist()
      [[1.0, 1.0], [0.0, 3.0], [1.0, 1.0]]

    References:
      von Oswald et al. (2023), section on copying, arXiv:2212.07677.
      :cite:`icl-gradient-descent`
    """
    (num_context, num_inputs), num_outputs = x.shape, y.shape[1]
    if num_outputs > num_inputs:
        raise ValueError(
            f"Expected no more outputs than inputs, got y.shape={y.shape} and x.shape={x.shape}."
        )
    padded = jnp.pad(y, ((0, 0), (num_inputs - num_outputs, 0)))
    pairs = jnp.stack([x, padded], axis=1).reshape(2 * num_context, num_inputs)
    return jnp.concatenate([pairs, query[None]])


def sinusoidal_positions(num_tokens: int, size: int) -> Float[np.ndarray, "tokens size"]:
    """Sine and cosine position codes (Vaswani et al. 2017, section 3.5).

    Column 2k is sin(t / 10000^(2k / size)) at position t, column 2k + 1 the cosine.

    Args:
      num_tokens: number of positions.
      size: columns, even and positive.

    Returns:
      float32 ``[num_tokens, size]``, a NumPy array.

    Raises:
      ValueError: for a size that is not positive and even.

    Example:
      >>> from gradkin import icl
      >>> icl.sinusoidal_positions(2, 2).round(3).tolist()
      [[0.0, 1.0], [0.8410000205039978, 0.5400000214576721]]

    References:
      Vaswani et al. (2017), "Attention is all you need", arXiv:1706.03762. :cite:`vaswani:17`
    """
    checks.positive(num_tokens=num_tokens, size=size)
    if size % 2:
        raise ValueError(f"Expected an even size, got size={size}.")
    angle = np.arange(num_tokens)[:, None] / 10_000 ** (np.arange(0, size, 2) / size)[None]
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(num_tokens, size).astype(np.float32)


def centered_labels(one_hot: Float[Array, "context classes"]) -> Float[Array, "context classes"]:
    """Targets that make one attention layer a step on the cross-entropy: y_i - 1/C.

    At zero weights softmax gives 1/C to each class, so minus the gradient of the mean
    cross-entropy is (1/N) sum_i (y_i - 1/C) x_i^T: the same form as for squared error.

    Args:
      one_hot: labels as one-hot rows over C classes.

    Returns:
      The centred rows, for the y part of ``constructed_tokens``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> icl.centered_labels(jnp.eye(2)).tolist()
      [[0.5, -0.5], [-0.5, 0.5]]

    Note:
      Exact for the first step from zero weights only: later the softmax is not uniform.
    """
    return one_hot - 1 / one_hot.shape[1]
