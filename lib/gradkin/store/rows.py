"""Rows as they are stored: codes, and per row what a code is worth and the row's norm."""

import jax.numpy as jnp
import numpy as np

from gradkin.store.layout import Spec

# Of float32 values encoded at a time: they stay in a processor's cache.
BLOCK_BYTES = 2**20
TINY = np.finfo(np.float32).tiny
# Rows of a smaller norm count as zero where they are divided by it: its inverse overflows.
LEAST_NORM = 1e-30
# Columns of the scales: what a code of 1 is worth; the norm of the row as it is stored.
SCALE, NORM = 0, 1


def as_rows(features: object, dim: int, *, name: str = "features") -> np.ndarray:
    """Rows as a float32 array ``[n, dim]``, ``n >= 1``.

    Raises:
      ValueError: another shape.
      TypeError: not of a floating dtype.
    """
    array = np.asarray(features)
    if array.ndim != 2 or array.shape[1] != dim or not array.shape[0]:
        raise ValueError(
            f"Expected {name} of shape [n, {dim}] with n >= 1, got {name}.shape={array.shape}."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"Expected {name} of a floating dtype, got {name}.dtype={array.dtype}.")
    with np.errstate(over="ignore"):  # what does not fit is found as infinite
        return array.astype(np.float32, copy=False)


def encode(features: np.ndarray, spec: Spec, *, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of float32 rows.

    int8: ``code = round(x / scale)`` with ``scale = max |x| / 127`` of the row, so every value is
    off by half a scale at most. A row whose largest value is below 1.5e-36 becomes a row of zeros.

    Args:
      features: ``[n, dim]``.
      spec: says the dtype.
      start: number of the first row, for the message.

    Returns:
      Codes ``[n, dim]``; ``[n, 2]`` float32: what a code of 1 is worth, and the norm of the row
      as it is stored.

    Raises:
      ValueError: a row is not finite, or is not in ``bfloat16``.
    """
    plain = spec.dtype == "float32"
    codes = features if plain else np.empty(features.shape, spec.stored_dtype)
    scales = np.empty((len(features), 2), np.float32)
    step = max(1, BLOCK_BYTES // (4 * max(1, spec.dim)))
    for first in range(0, len(features), step):
        rows = slice(first, first + step)
        block = features[rows]
        largest = np.maximum(block.max(axis=1), -block.min(axis=1))
        fits = np.isfinite(largest)
        scale = np.ones(len(block), np.float32)
        if spec.dtype == "int8":
            scale = largest / np.float32(127)
            scale[scale < TINY] = 0
            inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
            with np.errstate(invalid="ignore"):  # of rows that are refused below
                codes[rows] = np.rint(block * inverse[:, None])
        elif not plain:
            with np.errstate(over="ignore"):
                codes[rows] = block.astype(spec.stored_dtype)
        stored = block if plain else codes[rows].astype(np.float32)
        norms = norms_of(stored)
        fits &= np.isfinite(norms)
        if not fits.all():
            bad = start + first + int(np.argmin(fits))
            raise ValueError(
                f"Expected features that are finite in {spec.dtype}, got others in the row of "
                f"example {bad}."
            )
        scales[rows, SCALE] = scale
        scales[rows, NORM] = np.minimum(norms * scale, np.finfo(np.float32).max)
    return codes, scales


def norms_of(x: np.ndarray) -> np.ndarray:
    """Norms of float32 rows, float64; of few rows the squares need float64 too."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", x, x).astype(np.float64)
        far = ~((squares > 1e-20) & (squares < 1e30))
        if far.any():
            wide = x[far].astype(np.float64)
            squares[far] = np.einsum("ij,ij->i", wide, wide)
        return np.sqrt(squares)


def decode(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The rows that codes and scales stand for, float32."""
    return codes.astype(np.float32) * scales[:, SCALE, None]


def factors(scales: np.ndarray, count: int, *, normalized: bool) -> np.ndarray:
    """What products with codes are multiplied by: ``[n]`` float32.

    Args:
      scales: ``[n, 2]`` of `encode`.
      count: rows that are there; those behind them get 0.
      normalized: divide by the norms; rows of a norm below `LEAST_NORM` get 0.
    """
    result = np.zeros(len(scales), np.float32)
    scale, norm = scales[:count].T.astype(np.float64)
    if normalized:
        large = norm > LEAST_NORM
        scale = np.divide(scale, norm, out=np.zeros_like(norm), where=large)
    result[:count] = scale
    return result
