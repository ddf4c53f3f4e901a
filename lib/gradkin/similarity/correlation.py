"""Correlation of two similarity matrices over pairs of different stimuli."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.typing import Array


def correlation(x: Array, y: Array, weights: Array) -> Array:
    """Weighted Pearson correlation of two arrays; NaN where either is constant."""
    weights = weights / jnp.sum(weights)
    # What does not count may be missing.
    x, y = (jnp.where(weights == 0, 0, value) for value in (x, y))
    mean = lambda value: jnp.sum(weights * value)
    centered = [value - mean(value) for value in (x, y)]
    variances = [mean(jnp.square(value)) for value in centered]
    # What rounding leaves of a constant does not vary.
    rounding = (8 * jnp.finfo(x.dtype).eps) ** 2
    constant = [v <= rounding * mean(jnp.square(value)) for v, value in zip(variances, (x, y))]
    r = mean(centered[0] * centered[1]) / jnp.sqrt(variances[0] * variances[1])
    return jnp.where(constant[0] | constant[1], jnp.nan, r)


def pairs(stimuli: Array | None, like: Array) -> Array:
    """``[n, n]``, 1 for ordered pairs of different stimuli that both count."""
    off_diagonal = 1 - jnp.eye(len(like), dtype=like.dtype)
    if stimuli is None:
        return off_diagonal
    rows = stimuli.astype(like.dtype)
    return off_diagonal * rows[:, None] * rows[None, :]


def check_similarities(**matrices: Any) -> None:
    """Raise ValueError unless they are symmetric matrices of the same three stimuli or more."""
    checks.rank(2, **matrices)
    shapes = {name: np.shape(matrix) for name, matrix in matrices.items()}
    rows, columns = next(iter(shapes.values()))
    if rows < 3 or rows != columns or len(set(shapes.values())) != 1:
        raise ValueError(
            f"Expected [n, n] matrices of the same n >= 3 stimuli, got shapes {shapes}."
        )
    for name, matrix in matrices.items():
        if checks.is_concrete(matrix):
            found = np.asarray(matrix)
            if not np.allclose(found, found.T, rtol=1e-4, atol=1e-5, equal_nan=True):
                raise ValueError(
                    f"Expected {name} to be symmetric, got differences of up to "
                    f"{np.abs(found - found.T).max()}; ({name} + {name}.T) / 2 is."
                )


def check_stimuli(stimuli: Any, n: int) -> None:
    """Raise ValueError unless the mask chooses at least three of ``n`` stimuli."""
    if stimuli is None:
        return
    if np.shape(stimuli) != (n,):
        raise ValueError(f"Expected stimuli of shape ({n},), got {np.shape(stimuli)}.")
    if checks.is_concrete(stimuli) and np.sum(np.asarray(stimuli)) < 3:
        raise ValueError(f"Expected at least 3 stimuli, got {int(np.sum(np.asarray(stimuli)))}.")
