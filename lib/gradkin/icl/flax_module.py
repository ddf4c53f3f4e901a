"""From pure weights to a Flax NNX module, without importing flax before it is asked for."""

from typing import Any

from gradkin.icl.attention import AttentionWeights, depth


def nnx_transformer(
    weights: AttentionWeights,
    *,
    num_outputs: int = 1,
    num_layers: int | None = None,
    softmax: str = "none",
    damping: float = 1.0,
    full: bool = False,
) -> Any:
    """The attention-only transformer as a Flax NNX module.

    Args:
      weights: the initial weights; ``module.weights()`` gives the current ones back.
      num_outputs: how many last entries of the query token hold minus the prediction.
      num_layers: how many layers are applied; those of ``weights`` by default.
      softmax: which layers normalise their scores: "none", "first" or "all".
      damping: factor on each layer's update.
      full: update every token in every layer instead of taking the route of ``predict``.

    Returns:
      An ``nnx.Module`` that maps tokens ``[..., tokens, width]`` to ``[..., outputs]``.

    Raises:
      ValueError: where ``num_layers`` disagrees with ``weights`` or ``softmax`` is unknown.
      ImportError: where flax is not installed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import icl
      >>> weights = icl.init_attention(jax.random.key(0), width=3)
      >>> icl.nnx_transformer(weights)(jnp.ones((8, 5, 3))).shape
      (8, 1)
    """
    depth(weights, num_layers, softmax)
    from gradkin.icl.nnx_model import InContextTransformer

    return InContextTransformer(
        weights,
        num_outputs=num_outputs,
        num_layers=num_layers,
        softmax=softmax,
        damping=damping,
        full=full,
    )
