"""The attention-only transformer as a Flax NNX module; importing this imports flax."""

import jax
from flax import nnx
from jaxtyping import Float

from gradkin.icl.attention import AttentionWeights, predict, transformer
from gradkin.typing import Array


class InContextTransformer(nnx.Module):
    """Attention layers with residuals; a call gives the prediction at the last token."""

    def __init__(
        self,
        weights: AttentionWeights,
        *,
        num_outputs: int = 1,
        num_layers: int | None = None,
        softmax: str = "none",
        damping: float = 1.0,
        full: bool = False,
    ):
        self.query = nnx.Param(weights.query)
        self.key = nnx.Param(weights.key)
        self.value = nnx.Param(weights.value)
        self.output = nnx.Param(weights.output)
        self.num_outputs = num_outputs
        self.num_layers = num_layers
        self.softmax = softmax
        self.damping = damping
        self.full = full

    def weights(self) -> AttentionWeights:
        """The parameters as the pure functions take them."""
        return AttentionWeights(self.query[...], self.key[...], self.value[...], self.output[...])

    def __call__(self, tokens: Float[Array, "*batch tokens width"]) -> Float[Array, "*batch out"]:
        """Predict for one task or for batches of tasks."""
        weights, options = self.weights(), {"num_layers": self.num_layers, "softmax": self.softmax}
        if self.full:
            one = lambda t: (
                -transformer(weights, t, damping=self.damping, **options)[
                    -1, -1, -self.num_outputs :
                ]
            )
        else:
            one = lambda t: predict(
                weights, t, num_outputs=self.num_outputs, damping=self.damping, **options
            )
        for _ in range(tokens.ndim - 2):
            one = jax.vmap(one)
        return one(tokens)
