"""The Tversky projection as a Flax NNX module; importing this imports flax."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from gradkin.similarity.tversky import TverskyParams, tversky_projection
from gradkin.typing import Array


class TverskyProjection(nnx.Module):
    """Similarities of the inputs to learned prototypes, over a learned bank of features."""

    def __init__(
        self, params: TverskyParams, *, prototypes: Any = None, bank: Any = None, **options: Any
    ):
        self.prototypes = nnx.Param(params.prototypes) if prototypes is None else prototypes
        self.bank = nnx.Param(params.bank) if bank is None else bank
        self.alpha = nnx.Param(jnp.asarray(params.alpha))
        self.beta = nnx.Param(jnp.asarray(params.beta))
        self.theta = nnx.Param(jnp.asarray(params.theta))
        # Hashable, so that it is part of the graph definition.
        self.options = tuple(sorted(options.items()))

    def params(self) -> TverskyParams:
        """The parameters as the pure functions take them."""
        return TverskyParams(
            self.prototypes[...], self.bank[...], self.alpha[...], self.beta[...], self.theta[...]
        )

    def __call__(self, x: Array) -> Array:
        """Map ``[..., d]`` to ``[..., out]``."""
        return tversky_projection(self.params(), x, **dict(self.options))
