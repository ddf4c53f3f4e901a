"""Array aliases shared by every public signature."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array as Array
from jaxtyping import ArrayLike as ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray

# A number a user may pass as Python float, NumPy scalar or traced 0-d array: a plain `float`
# annotation would reject tracers under run-time type checks.
Scalar = float | int | np.floating | Float[Array, ""] | Float[np.ndarray, ""]
IntScalar = int | np.integer | Int[Array, ""] | Int[np.ndarray, ""]
PRNGKey = PRNGKeyArray | jax.Array
PyTree = Any
