"""What the pictures share: one look, colours that colour-blind readers can tell apart, and matplotlib where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pegasusx_ref.errors import ExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Two of Okabe and Ito's colours, and greys.
BLUE, ORANGE, GREY, LIGHT = "#0072B2", "#E69F00", "#595959", "#ECECEC"
MOST_TICKS = 12


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure that belongs to no window.

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
    """Add axes with thin grey lines; arguments as of matplotlib's `add_subplot`."""
    axes: Axes = figure.add_subplot(*args, **kwargs)
    axes.spines[:].set(color=GREY, linewidth=0.6)
    axes.tick_params(color=GREY, labelsize=8)
    return axes


def title(axes: Axes, text: str) -> None:
    """Say what is to be seen, where reading begins."""
    axes.set_title(text, loc="left", fontsize=10)


def rectangle(axes: Axes, x: float, y: float, width: float, height: float, colour: str, **kwargs: Any) -> None:
    """Fill a rectangle, without an outline unless one is asked for."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, **({"linewidth": 0} | kwargs)))


def thinned(places: Sequence[int], most: int = MOST_TICKS) -> list[int]:
    """Leave out as many, evenly, that labels at the others do not touch."""
    return list(places)[:: -(-len(places) // most)]


def heat(axes: Axes, cells: np.ndarray, highest: float, keys: int) -> Any:
    """Fill axes with cells of so many keys, from light to dark by the square root; NaN stays grey."""
    from matplotlib.colors import PowerNorm

    axes.set_facecolor(LIGHT)
    rows, columns = cells.shape
    norm, extent = PowerNorm(0.5, vmin=0, vmax=highest), (0, columns * keys, rows, 0)
    return axes.imshow(cells, cmap="Blues", norm=norm, aspect="auto", interpolation="nearest", extent=extent)


def legend(figure: Figure, kinds: Sequence[tuple[str, str, str]]) -> None:
    """Say below a figure what its colours mean: (name, colour, hatch) of each."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=c, edgecolor="#A0A0A0", linewidth=0.4, hatch=h, label=name) for name, c, h in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def counted(number: int, one: str, many: str = "") -> str:
    """Say how many there are of something."""
    return f"{number} {one if number == 1 else many or one + 's'}"
