"""Small pictures for experiments: pooled, and turned by matrices."""

import numpy as np

from gradkin import data as datasets


def pooling(side: int, most: int) -> int:
    """The least divisor of ``side`` that leaves at most ``most`` pixels."""
    return next(f for f in range(1, side + 1) if side % f == 0 and side // f <= most)


def flattened(split: datasets.Dataset, most: int) -> np.ndarray:
    """Grey images of a split in [0, 1], averaged to at most ``most`` pixels a side: ``[N, d]``."""
    images = datasets.images(split)[..., 0]
    n, side, _ = images.shape
    factor = pooling(side, most)
    small = side // factor
    return images.reshape(n, small, factor, small, factor).mean((2, 4)).reshape(n, -1)


def side_of(name: str, most: int) -> int:
    """The side of what `flattened` makes of a data set."""
    side = 8 if name == "digits" else 28
    return side // pooling(side, most)


def rotations(side: int, degrees: tuple[float, ...]) -> np.ndarray:
    """Matrices ``R [angles, d, d]``: ``x @ R[i]`` turns flat pictures about their centre.

    Bilinear, with black outside; turning is linear in the pixels.
    """
    from scipy import ndimage

    basis = np.eye(side * side, dtype=np.float32).reshape(-1, side, side)
    turned = [ndimage.rotate(basis, a, axes=(2, 1), reshape=False, order=1) for a in degrees]
    return np.stack(turned).reshape(len(degrees), side * side, side * side)
