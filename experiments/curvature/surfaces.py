"""Landscapes drawn: contours and solids of the logarithm of a loss."""

import numpy as np


def limits(surfaces, decades=2.0):
    """From the least loss up to so many decades above it."""
    low = float(surfaces.min())
    return low, min(float(surfaces.max()), low * 10**decades)


def contour(axis, steps, surface, low, high):
    """Contours ``surface[a, b]``, the first axis across."""
    from matplotlib import colors

    shown = np.clip(surface, low, high).T
    levels = np.geomspace(low, high, 13)
    axis.contourf(steps, steps, shown, levels, norm=colors.LogNorm(low, high))
    lines = levels[(levels > shown.min()) & (levels < shown.max())]
    if len(lines):
        axis.contour(steps, steps, shown, lines, colors="white", linewidths=0.4)
    axis.plot(0, 0, "+", color="white")
    axis.grid(False)


def solid(axis, steps, surface, low, high):
    """The same in three dimensions, on an axis of such."""
    a, b = np.meshgrid(steps, steps, indexing="ij")
    shown = np.log10(np.clip(surface, low, high))
    axis.plot_surface(a, b, shown, cmap="viridis", linewidth=0, rstride=1, cstride=1)
    axis.set_box_aspect((1, 1, 0.7), zoom=1.1)
    axis.tick_params(pad=-3, labelsize=7)
    axis.view_init(elev=35, azim=-55)
