"""Figures of one look: the runner applies `style` around every experiment's `plot`."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

COLOURS = ("#3b6ea8", "#d1603d", "#4c9f70", "#8d6bb8", "#b8923a", "#5d6770")
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#5d6770",
    "axes.grid": True,
    "axes.labelcolor": "#2b3138",
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.dpi": 110,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.7,
    "image.cmap": "viridis",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": 160,
    "xtick.color": "#5d6770",
    "xtick.labelsize": 8.5,
    "ytick.color": "#5d6770",
    "ytick.labelsize": 8.5,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The project's look, for figures made and saved inside."""
    import matplotlib
    from cycler import cycler

    options: dict[Any, Any] = {**STYLE, "axes.prop_cycle": cycler(color=COLOURS)}
    with matplotlib.rc_context(options):
        yield


def panels(rows: int = 1, columns: int = 1, *, width: float = 3.4, height: float = 2.6) -> Any:
    """Return a figure and its axes (one, or an array) without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns)


def band(axes: Any, x: Any, values: Any, *, label: str | None = None, **options: Any) -> None:
    """Draw the mean over seeds of ``values [S, N]`` against ``x [N]``, one sd around it shaded.

    Where a seed is not finite there is a gap.
    """
    values = np.asarray(values, np.float64)
    values = np.where(np.isfinite(values).all(0), values, np.nan)
    mean = values.mean(0)
    (line,) = axes.plot(x, mean, label=label, **options)
    if len(values) > 1:
        sd = values.std(0, ddof=1)
        axes.fill_between(x, mean - sd, mean + sd, color=line.get_color(), alpha=0.18, linewidth=0)
