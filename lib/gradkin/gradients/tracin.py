"""TracIn: how much training on one example lowered the loss of another, read off checkpoints."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from gradkin.matrices import products, sketching, verbs
from gradkin.matrices.per_example import per_example_grads
from gradkin.typing import Array, PyTree


def tracin(
    loss_fn: Callable[..., Any],
    checkpoints: PyTree,
    learning_rates: ArrayLike,
    train: PyTree,
    queries: PyTree,
    *,
    query_loss_fn: Callable[..., Any] | None = None,
    normalize: bool = False,
    sketch: Any = None,
    batch_size: int | None = None,
) -> Float[Array, "train queries"]:
    """Influence of training examples on queries, traced over training (Pruthi et al. 2020, eq. 1).

    .. math:: S_{ij} = \\sum_c \\eta_c \\,
        \\langle \\nabla \\ell(\\theta_c, z_i),\\ \\nabla \\ell(\\theta_c, q_j) \\rangle

    To first order, how much steps of descent on example ``i`` at these checkpoints lowered the loss
    of query ``j``: positive for examples that helped. One checkpoint with rate 1 is the plain inner
    product of gradients. Products of the gradients' factors; no gradient is formed.

    Args:
      loss_fn: ``loss_fn(params, example)`` -> scalar.
      checkpoints: parameters, with a leading axis of ``C`` checkpoints at each leaf.
      learning_rates: of each checkpoint, ``[C]``, or one number.
      train: ``n`` training examples, batched.
      queries: ``m`` queries, batched.
      query_loss_fn: loss of a query; None for ``loss_fn``.
      normalize: cosines instead of inner products, which take the advantage from long gradients;
        a zero gradient has cosine zero.
      sketch: a sketch (`RademacherSketch`, ...) to compare projections instead of gradients.
      batch_size: examples whose gradients exist at a time; None for all.

    Returns:
      Scores ``[n, m]``.

    Raises:
      ValueError: learning rates that are not one per checkpoint, or no checkpoints.
      TypeError: ``sketch`` is no sketch.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> loss = lambda w, x: w @ x  # the gradient is x
      >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
      >>> gradients.tracin(loss, jnp.zeros((3, 2)), 0.5, x, x).tolist()
      [[1.5, 1.5], [1.5, 3.0]]

    References:
      Pruthi et al. (2020), "Estimating Training Data Influence by Tracing Gradient Descent",
      arXiv:2002.08484, eq. (1) and sec. 3.2. :cite:`pruthi:20`

      Hammoudeh & Lowd (2022), "Identifying a Training-Set Attack's Target Using Renormalized
      Influence Estimation", arXiv:2201.10055 (cosines). :cite:`hammoudeh:22`
    """
    if sketch is not None:
        sketching.check_sketch(sketch)
    counts = {np.shape(x)[:1] for x in jax.tree.leaves(checkpoints)}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(
            f"Expected checkpoints with one leading axis at every leaf, got {sorted(counts)}."
        )
    ((count,),) = counts
    rates = jnp.asarray(learning_rates, float)
    if rates.shape not in ((), (count,)):
        raise ValueError(
            f"Expected learning_rates to be a number or {count}, one per checkpoint, got shape "
            f"{rates.shape}."
        )

    def features(fun: Callable[..., Any], params: PyTree, batch: PyTree) -> Any:
        G = per_example_grads(fun, batch_size=batch_size)(params, batch)
        if sketch is None:
            return G.normalize() if normalize else G
        rows = G.sketch(sketch)
        if normalize:
            norms = verbs.safe_sqrt(jnp.sum(jnp.square(rows), axis=1, keepdims=True))
            rows = rows * jnp.broadcast_to(verbs.inverse(norms), rows.shape)
        return rows

    def scores(params: PyTree) -> Array:
        ours = features(loss_fn, params, train)
        theirs = features(query_loss_fn or loss_fn, params, queries)
        if sketch is None:
            return ours @ theirs.T
        return jnp.matmul(ours, theirs.T, precision=products.HIGHEST)

    def add(total: Array, checkpoint: Any) -> tuple[Array, None]:
        params, rate = checkpoint
        value = scores(params)
        return total + value * rate.astype(value.dtype), None

    shape = jax.eval_shape(scores, jax.tree.map(lambda x: jnp.asarray(x)[0], checkpoints))
    start = jnp.zeros(shape.shape, shape.dtype)
    total, _ = jax.lax.scan(add, start, (checkpoints, jnp.broadcast_to(rates, (count,))))
    return total
