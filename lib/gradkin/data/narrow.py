"""The dtypes in which arrays are handed out."""

import numpy as np


def narrow(array: np.ndarray) -> np.ndarray:
    """Return 64-bit numbers in 32 bits, as JAX stores them; integers only where they fit."""
    if array.dtype == np.float64:
        return array.astype(np.float32)
    if array.dtype in (np.int64, np.uint64):
        info = np.iinfo(np.int32)
        if array.size == 0 or (array.min() >= info.min and array.max() <= info.max):
            return array.astype(np.int32)
    return array
