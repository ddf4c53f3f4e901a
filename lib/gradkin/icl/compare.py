"""How alike two in-context learners are: in what they predict, and in their weights."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin.icl.attention import AttentionWeights, merge
from gradkin.icl.tasks import Tasks
from gradkin.typing import Array, Scalar

Predictor = Callable[[Array, Array, Array], Array]


class Comparison(NamedTuple):
    """Means over tasks of the distance of two learners.

    prediction_difference: |f - g|; cosine: of the sensitivities df/dx_q and dg/dx_q;
    sensitivity_difference: |df/dx_q - dg/dx_q|.
    """

    prediction_difference: Float[Array, ""]
    cosine: Float[Array, ""]
    sensitivity_difference: Float[Array, ""]


def compare(first: Predictor, second: Predictor, tasks: Tasks) -> Comparison:
    """Compare two in-context learners by predictions and by sensitivities to the query.

    The sensitivity of a linear learner to the query is its weight vector, so this compares the
    models that the learners found. For several outputs the Jacobian is compared as one vector.

    Args:
      first: ``(x, y, query) -> prediction [outputs]`` for one task.
      second: another such function.
      tasks: ``Tasks`` with a leading task axis.

    Returns:
      ``Comparison`` of means over tasks. The cosine with a zero sensitivity counts as 0.

    Example:
      >>> import jax
      >>> from gradkin import icl
      >>> tasks = icl.linear_tasks(jax.random.key(0), 8)
      >>> step = lambda rate: lambda x, y, q: icl.gradient_descent(x, y, rate=rate)[-1] @ q
      >>> result = icl.compare(step(1.0), step(2.0), tasks)
      >>> round(float(result.cosine), 5)
      1.0

    References:
      von Oswald et al. (2023), section 3, arXiv:2212.07677. :cite:`icl-gradient-descent`
    """

    def sensitivity(predictor):
        def value_and_jacobian(x, y, query):
            value, pullback = jax.vjp(lambda q: predictor(x, y, q), query)
            (jacobian,) = jax.vmap(pullback)(jnp.eye(value.shape[0], dtype=value.dtype))
            return value, jacobian.reshape(-1)

        return jax.vmap(value_and_jacobian)(tasks.x, tasks.y, tasks.query)

    (f, df), (g, dg) = sensitivity(first), sensitivity(second)
    return Comparison(
        prediction_difference=jnp.linalg.norm(f - g, axis=-1).mean(),
        cosine=row_cosine(df, dg).mean(),
        sensitivity_difference=jnp.linalg.norm(df - dg, axis=-1).mean(),
    )


def row_cosine(a: Float[Array, "rows n"], b: Float[Array, "rows n"]) -> Float[Array, " rows"]:
    """Cosine of each pair of rows; 0 where a row is zero.

    Args:
      a: rows.
      b: rows.

    Returns:
      ``[rows]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> icl.row_cosine(jnp.eye(2), jnp.array([[2.0, 0.0], [0.0, 0.0]])).tolist()
      [1.0, 0.0]
    """
    scale = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.where(scale > 0, (a * b).sum(-1) / jnp.where(scale > 0, scale, 1), 0)


def balance(weights: AttentionWeights, *, num_inputs: int) -> AttentionWeights:
    """One linear layer in the normal form: merged, with mean 1 on the diagonal of its x block.

    A linear layer depends on ``query key^T`` times ``value output`` only, so a factor may move
    between the two. Here the first has mean 1 over the diagonal of the inputs' block, as in the
    construction of gradient descent.

    Args:
      weights: one layer of one head.
      num_inputs: dimension of x.

    Returns:
      The same layer as ``AttentionWeights`` with ``key`` and ``output`` the identity.

    Raises:
      ValueError: for more than one layer or head.

    Example:
      >>> import jax
      >>> from gradkin import icl
      >>> weights = icl.gd_attention(num_inputs=2, num_outputs=1, num_context=4, rate=2.0)
      >>> doubled = weights._replace(query=2 * weights.query)
      >>> icl.balance(doubled, num_inputs=2).value[0, 0, 2].tolist()
      [0.0, 0.0, -1.0]

    References:
      von Oswald et al. (2023), arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    if weights.query.shape[:2] != (1, 1):
        raise ValueError(
            f"Expected weights of one layer and one head, got weights.query.shape="
            f"{weights.query.shape}."
        )
    bilinear, value = merge(jax.tree.map(lambda w: w[0], weights))
    scale = jnp.diagonal(bilinear[0])[:num_inputs].mean()
    identity = jnp.eye(bilinear.shape[-1], dtype=bilinear.dtype)[None, None]
    return AttentionWeights(bilinear[None] / scale, identity, value[None] * scale, identity)


def interpolate(
    first: AttentionWeights, second: AttentionWeights, *, num_inputs: int, fraction: Scalar = 0.5
) -> AttentionWeights:
    """The layer between two linear layers, in weight space.

    Args:
      first: one layer of one head.
      second: one layer of one head, of the same width.
      num_inputs: dimension of x; both layers are balanced by it first.
      fraction: 0 gives ``first``, 1 gives ``second``.

    Returns:
      ``AttentionWeights`` of one layer and one head.

    Raises:
      ValueError: for more than one layer or head.

    Example:
      >>> from gradkin import icl
      >>> make = lambda rate: icl.gd_attention(
      ...     num_inputs=1, num_outputs=1, num_context=1, rate=rate)
      >>> icl.interpolate(make(1.0), make(2.0), num_inputs=1).value[0, 0, 1].tolist()
      [0.0, -1.5]

    References:
      von Oswald et al. (2023), arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    pair = balance(first, num_inputs=num_inputs), balance(second, num_inputs=num_inputs)
    return jax.tree.map(lambda a, b: (1 - fraction) * a + fraction * b, *pair)


class Projection(NamedTuple):
    """A learned layer as a step of gradient descent plus a rest.

    rate: learning rate of the nearest construction; residual: what it leaves, relative to the
    layer, in [0, 1]; preconditioner: ``[inputs, inputs]`` matrix P of the step dW P, whose mean
    diagonal is close to ``rate``; diagonal_error and off_diagonal: largest relative deviation of
    P's diagonal from ``rate``, largest absolute off-diagonal entry of P / N.
    """

    rate: Float[Array, ""]
    residual: Float[Array, ""]
    preconditioner: Float[Array, "inputs inputs"]
    diagonal_error: Float[Array, ""]
    off_diagonal: Float[Array, ""]


def project_on_construction(
    weights: AttentionWeights, *, num_inputs: int, num_outputs: int, num_context: int
) -> Projection:
    """Write a trained linear layer as the nearest step of gradient descent and a residual.

    With W0 = 0 the query token is (x_q, 0), so the prediction depends on the weights only
    through the tensor T = sum_h Q_h (x) V_h, with Q_h the x rows of query key^T and V_h minus
    the y columns of value output. The construction is T_c = [I, 0] (x) [0; I] / N. Its multiple
    nearest to T in Frobenius norm has rate <T, T_c> / <T_c, T_c>; T - rate T_c is the rest.

    Args:
      weights: one layer, any number of heads.
      num_inputs: dimension of x.
      num_outputs: dimension of y.
      num_context: N, the number of examples in the context.

    Returns:
      ``Projection``.

    Raises:
      ValueError: where the sizes do not add up to the width of a token, or for several layers.

    Example:
      >>> from gradkin import icl
      >>> weights = icl.gd_attention(num_inputs=3, num_outputs=1, num_context=4, rate=2.0)
      >>> found = icl.project_on_construction(
      ...     weights, num_inputs=3, num_outputs=1, num_context=4)
      >>> float(found.rate), float(found.residual)
      (2.0, 0.0)

    Note:
      The paper compares heat maps of the two products; the tensor is what determines the
      predictions, whatever the scale that the training moved from one product to the other.

    References:
      von Oswald et al. (2023), arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    layers, _, width, _ = weights.query.shape
    if layers != 1 or width != num_inputs + num_outputs:
        raise ValueError(
            f"Expected weights of one layer and width num_inputs + num_outputs = "
            f"{num_inputs + num_outputs}, got weights.query.shape={weights.query.shape}."
        )
    bilinear, value = merge(jax.tree.map(lambda w: w[0], weights))
    tensor = jnp.einsum("hab,hco->abco", bilinear[:, :num_inputs], -value[..., num_inputs:])
    inner = tensor[:, :num_inputs, num_inputs:]
    product = jnp.einsum("aboo->ab", inner) * (num_context / num_outputs)
    rate = jnp.trace(product) / num_inputs
    squared = (tensor**2).sum()
    explained = rate**2 * num_inputs * num_outputs / num_context**2
    diagonal = jnp.diagonal(product)
    return Projection(
        rate=rate,
        residual=jnp.sqrt(jnp.maximum(1 - explained / squared, 0)),
        preconditioner=product,
        diagonal_error=jnp.abs(diagonal / rate - 1).max(),
        off_diagonal=jnp.abs(product - jnp.diag(diagonal)).max() / num_context,
    )
