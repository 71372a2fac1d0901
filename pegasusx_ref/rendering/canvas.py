"""Helpers that all figures share: one style, a colour-blind-safe palette, and matplotlib as an optional dependency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pegasusx_ref.errors import ExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and orange of Okabe and Ito's colour-blind-safe palette, and greys.
BLUE, ORANGE, GREY, LIGHT = "#0072B2", "#E69F00", "#595959", "#ECECEC"
MOST_TICKS = 12


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure without a window.

    Args:
        width: in inches.
        height: in inches.

    Raises:
        ExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ExtraError("pictures need matplotlib: pip install 'pegasusx-ref[study]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def new_axes(figure: Figure, *args: Any, **kwargs: Any) -> Axes:
    """Add axes with thin grey spines; the arguments are those of matplotlib's `add_subplot`."""
    axes: Axes = figure.add_subplot(*args, **kwargs)
    axes.spines[:].set(color=GREY, linewidth=0.6)
    axes.tick_params(color=GREY, labelsize=8)
    return axes


def title(axes: Axes, text: str) -> None:
    """Set a left-aligned title."""
    axes.set_title(text, loc="left", fontsize=10)


def rectangle(axes: Axes, x: float, y: float, width: float, height: float, colour: str, **kwargs: Any) -> None:
    """Draw a filled rectangle, without an outline by default."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, **({"linewidth": 0} | kwargs)))


def thinned(ticks: Sequence[int], most: int = MOST_TICKS) -> list[int]:
    """Keep every n-th tick, at most `most` of them, so that labels do not overlap."""
    return list(ticks)[:: -(-len(ticks) // most)]


def heatmap(axes: Axes, cells: np.ndarray, highest: float, keys: int) -> Any:
    """Draw cells as a heatmap whose colour scale is the square root of the value; NaN is grey.

    Args:
        axes: to draw into.
        cells: values (rows, columns).
        highest: the value of the darkest colour.
        keys: how many keys a column covers.
    """
    from matplotlib.colors import PowerNorm

    axes.set_facecolor(LIGHT)
    rows, columns = cells.shape
    norm, extent = PowerNorm(0.5, vmin=0, vmax=highest), (0, columns * keys, rows, 0)
    return axes.imshow(cells, cmap="Blues", norm=norm, aspect="auto", interpolation="nearest", extent=extent)


def legend(figure: Figure, kinds: Sequence[tuple[str, str, str]]) -> None:
    """Add a legend below a figure: (name, colour, hatch) of each entry."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=c, edgecolor="#A0A0A0", linewidth=0.4, hatch=h, label=name) for name, c, h in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
