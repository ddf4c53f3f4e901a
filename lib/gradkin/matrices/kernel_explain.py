"""What a pass over a kernel matrix costs."""

import math
from typing import Any, NamedTuple

import numpy as np

from gradkin.matrices import kernel_halves, kernel_tiles


class KernelExplanation(NamedTuple):
    """Sizes and costs of one pass; printing gives a paragraph.

    Attributes:
      kernel: its name.
      shape: rows and columns.
      route: how entries are made: "tile" by the kernel's own, "pairs" by mapping a function.
      panels: how many (per device).
      panel_rows: rows of a panel.
      panel_bytes: bytes of a panel.
      matrix_bytes: bytes of the matrix that is not written down.
      multiply_adds: of the products or differences of a pass, one per pair and number of a point.
      devices: over which rows are split.
      reason: why this route.
    """

    kernel: str
    shape: tuple[int, int]
    route: str
    panels: int
    panel_rows: int
    panel_bytes: int
    matrix_bytes: int
    multiply_adds: int
    devices: int
    reason: str

    def __str__(self) -> str:
        split = f" on each of {self.devices} devices" if self.devices > 1 else ""
        return (
            f"{self.kernel}: {self.shape[0]} x {self.shape[1]} entries, by {self.route} "
            f"({self.reason})\n"
            f"{self.panels} panels of {self.panel_rows} rows{split}, "
            f"{self.panel_bytes / 1e6:.3g} MB each instead of {self.matrix_bytes / 1e6:.3g} MB; "
            f"{self.multiply_adds / 1e9:.3g} G multiply-adds per pass"
        )


def name(kernel: Any) -> str:
    """A kernel's name."""
    if isinstance(kernel, kernel_tiles.Swapped):
        return f"{name(kernel.kernel)}.T"
    if isinstance(kernel, kernel_tiles.Function):
        return getattr(kernel.function, "__name__", type(kernel.function).__name__)
    return type(kernel).__name__


def explain(K: Any) -> KernelExplanation:
    """Describe a kernel matrix; nothing is computed."""
    n, m = K.shape
    point_size = math.prod(K.x.shape[1:])
    itemsize = np.dtype(K.dtype).itemsize
    devices = 1
    if K.placement is not None:
        devices = math.prod(K.placement.mesh.shape[a] for a in K.placement.axes)
    rows = n if K.placement is not None and K.placement.split == "columns" else n // devices
    columns = m if K.placement is None or K.placement.split == "rows" else m // devices
    block = K.block or kernel_tiles.panel_rows(K.kernel, columns, point_size, itemsize)
    panels, size = kernel_tiles.layout(rows, block) if rows > block else (1, rows)
    tile = kernel_tiles.fills_tiles(K.kernel)
    return KernelExplanation(
        kernel=name(K.kernel),
        shape=(n, m),
        route="tile" if tile else "pairs",
        panels=panels,
        panel_rows=size,
        panel_bytes=size * columns * itemsize,
        matrix_bytes=n * m * itemsize,
        multiply_adds=n * m * point_size,
        devices=devices,
        reason=("the kernel fills tiles" if tile else "a plain function, mapped over all pairs")
        + (", each pair once in sums and products" if kernel_halves.applies((K,)) else ""),
    )
