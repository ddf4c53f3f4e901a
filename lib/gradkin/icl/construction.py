"""Attention weights that do a step of gradient descent, written down instead of trained."""

import jax.numpy as jnp
from jaxtyping import Float

from gradkin import checks
from gradkin.icl.attention import AttentionWeights
from gradkin.typing import Array, Scalar


def gd_attention(
    *,
    num_inputs: int,
    num_outputs: int,
    num_context: int,
    rate: Scalar,
    decay: Scalar = 0.0,
    initial: Float[Array, "outputs inputs"] | None = None,
) -> AttentionWeights:
    """Linear attention that performs one step of gradient descent (Proposition 1).

    On L(W) = 1/(2N) sum_i |W x_i - y_i|^2 the step from W0 is
    dW = -(rate/N) sum_i (W0 x_i - y_i) x_i^T, and the layer moves each target to y_j - dW x_j.
    With ``decay`` it also moves each input to x_j - decay sum_i x_i x_i^T x_j, which is GD++.
    Applied K times, the layer takes K steps; each application keeps the same W0.

    Args:
      num_inputs: dimension of x.
      num_outputs: dimension of y.
      num_context: N, the number of examples in the context.
      rate: the learning rate eta.
      decay: gamma of GD++; 0 is gradient descent.
      initial: W0, where descent starts; zero by default. Use the same in
        ``constructed_tokens``.

    Returns:
      ``AttentionWeights`` of one layer and one head, K = D = inputs + outputs.

    Raises:
      ValueError: for a size that is not positive or an ``initial`` of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> x, y, query = jnp.eye(2), jnp.array([[1.0], [2.0]]), jnp.ones(2)
      >>> weights = icl.gd_attention(num_inputs=2, num_outputs=1, num_context=2, rate=2.0)
      >>> icl.predict(weights, icl.constructed_tokens(x, y, query)).tolist()
      [3.0]

    Note:
      With W0 != 0 every layer keeps W0 in its value matrix: the targets carry what was learned.

    References:
      von Oswald et al. (2023), Proposition 1 and section on GD++, arXiv:2212.07677.
      :cite:`icl-gradient-descent`
    """
    checks.positive(num_inputs=num_inputs, num_outputs=num_outputs, num_context=num_context)
    dtype = jnp.result_type(float)
    if initial is None:
        initial = jnp.zeros((num_outputs, num_inputs), dtype)
    if initial.shape != (num_outputs, num_inputs):
        raise ValueError(
            f"Expected initial.shape={(num_outputs, num_inputs)}, (outputs, inputs), got "
            f"{initial.shape}."
        )
    dtype = initial.dtype
    eye_x, eye_y = jnp.eye(num_inputs, dtype=dtype), jnp.eye(num_outputs, dtype=dtype)
    zero_xy = jnp.zeros((num_inputs, num_outputs), dtype)
    zero_y = jnp.zeros((num_outputs, num_outputs), dtype)
    select = jnp.block([[eye_x, zero_xy], [zero_xy.T, zero_y]])
    value = jnp.block([[eye_x, initial.T], [zero_xy.T, -eye_y]])
    output = jnp.block([[-decay * eye_x, zero_xy], [zero_xy.T, rate / num_context * eye_y]])
    return AttentionWeights(*(w[None, None] for w in (select, select, value, output)))


def softmax_gd_attention(
    *,
    num_inputs: int,
    num_outputs: int,
    num_context: int,
    rate: Scalar,
    sharpness: Scalar = 0.1,
) -> AttentionWeights:
    """Two softmax heads that approach one step of gradient descent as ``sharpness`` -> 0.

    softmax(b k)_i = (1/N) (1 + b (k_i - mean k)) + O(b^2), so heads with keys b x and -b x and
    opposite outputs cancel the constant and the even orders. What remains is the step of
    gradient descent on inputs centred by their mean over the context, up to O(b^2).

    Args:
      num_inputs: dimension of x.
      num_outputs: dimension of y.
      num_context: N, which cancels; it is checked only.
      rate: the learning rate eta.
      sharpness: b, how far the softmax is from linear; smaller is closer and rounds more.

    Returns:
      ``AttentionWeights`` of one layer and two heads; use with ``softmax="all"``.

    Raises:
      ValueError: for a size or a sharpness that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> x, y = jnp.array([[1.0], [-1.0]]), jnp.array([[1.0], [-1.0]])
      >>> weights = icl.softmax_gd_attention(num_inputs=1, num_outputs=1, num_context=2, rate=0.5)
      >>> tokens = icl.constructed_tokens(x, y, jnp.ones(1))
      >>> round(float(icl.predict(weights, tokens, softmax="all")[0]), 2)
      0.5

    Note:
      The centring is exact gradient descent where the context inputs have mean zero; the paper
      reports trained two-head layers and states no construction.

    References:
      von Oswald et al. (2023), section on softmax attention, arXiv:2212.07677.
      :cite:`icl-gradient-descent`
    """
    checks.positive(sharpness=sharpness)
    linear = gd_attention(
        num_inputs=num_inputs, num_outputs=num_outputs, num_context=num_context, rate=rate
    )
    # The heads divide scores by sqrt(K); together they give 2 b / N times the linear sum.
    root = jnp.sqrt(jnp.asarray(linear.key.shape[-1], linear.key.dtype))
    slope = sharpness * root * linear.key
    output = linear.output * (num_context / (2 * sharpness))
    both = lambda w: jnp.concatenate([w, w], axis=1)
    return AttentionWeights(
        query=both(linear.query),
        key=jnp.concatenate([slope, -slope], axis=1),
        value=both(linear.value),
        output=jnp.concatenate([output, -output], axis=1),
    )
