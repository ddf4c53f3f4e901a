"""Arrays of floats, whatever numbers were given."""

from typing import Any

import jax.numpy as jnp

from gradkin.typing import Array


def floating(x: Any) -> Array:
    """``x`` as an array: integers and booleans become floats, which a step would truncate."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)
