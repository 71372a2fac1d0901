"""A heatmap as shapes: its cells, the edges of blocks, and what each part of it says when pointed at."""

from typing import NamedTuple

import numpy as np

from pegasusx_ref.verification.reports.cells import levels, path, power_of_two
from pegasusx_ref.verification.reports.heatmaps import Edges, Heatmap, Strip, block_at

WIDTH, GAP, HEAD_HEIGHT, LINE_HEIGHT = 900, 24, 16, 28  # of the picture, in its own units
LEFT, LEFT_WITHOUT_HEADS, RIGHT = 64, 8, 16  # of the axes, for labels
NARROWEST, TICK = 3, 80  # blocks whose edges are drawn, and the room of a label
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)  # from label to label


class DrawnStrip(NamedTuple):
    """One axis of a heatmap; all lengths but x and width are in cells.

    Attributes:
        axis: what the rows are.
        x: where it begins in the picture.
        width: of it in the picture.
        num_cells: along it.
        bin_width: rows in a cell.
        paths: the cells of each level that occurs, as an SVG path.
        edges: lines where blocks meet, as an SVG path.
        other_edges: lines where those of the layer beside it meet.
        tiles: pieces that say something when pointed at: x, head, width, text.
        ticks: cells with their labels.
    """

    axis: str
    x: int
    width: int
    num_cells: int
    bin_width: int
    paths: dict[int, str]
    edges: str
    other_edges: str
    tiles: list[tuple[int, int, int, str]]
    ticks: list[tuple[float, str]]


class Drawing(NamedTuple):
    """A heatmap, drawn.

    Attributes:
        heatmap: what is to be seen.
        num_heads: lines of cells; 1 where the tensors have no heads.
        head_height: of a line, in the picture.
        left: where the first axis begins.
        width: of the picture.
        strips: the axes, from left to right.
    """

    heatmap: Heatmap
    num_heads: int
    head_height: int
    left: int
    width: int
    strips: list[DrawnStrip]


def drawn(heatmap: Heatmap, most_cells: int, most_tiles: int) -> Drawing:
    """Draw a heatmap; long ones in bins, of which each shows the worst of its rows.

    Args:
        heatmap: what is to be seen.
        most_cells: along an axis.
        most_tiles: along an axis, of the pieces that say something when pointed at.
    """
    num_heads = max(strip.rows.rho.shape[0] for strip in heatmap.strips)
    widths = [WIDTH] if len(heatmap.strips) == 1 else [WIDTH // 6, WIDTH - WIDTH // 6 - GAP]
    left, head_height = (LEFT, HEAD_HEIGHT) if heatmap.has_heads else (LEFT_WITHOUT_HEADS, LINE_HEIGHT)
    strips, x = [], left
    for strip, width in zip(heatmap.strips, widths, strict=True):
        strips.append(drawn_strip(strip, heatmap.has_heads, x, width, most_cells, most_tiles))
        x += width + GAP
    return Drawing(heatmap, num_heads, head_height, left, left + WIDTH + RIGHT, strips)


def drawn_strip(strip: Strip, has_heads: bool, x: int, width: int, most_cells: int, most_tiles: int) -> DrawnStrip:
    """Draw one axis of a heatmap."""
    length = strip.rows.rho.shape[1]
    bin_width = power_of_two(length / most_cells)
    cells = levels(strip.rows, bin_width)
    num_heads, num_cells = cells.shape
    tile = power_of_two(num_cells / most_tiles)
    tiles = [
        (start, head, min(tile, num_cells - start), text)
        for head in range(num_heads)
        for start in range(0, num_cells, tile)
        if (text := told(strip, head if has_heads else None, start * bin_width, (start + tile) * bin_width))
    ]
    step = next((step for step in STEPS if step * width >= length * TICK), STEPS[-1])
    edges, other_edges = (lines(some, bin_width, num_heads, width / num_cells) for some in strip[2:])
    return DrawnStrip(
        axis=strip.axis,
        x=x,
        width=width,
        num_cells=num_cells,
        bin_width=bin_width,
        paths={int(level): path(cells == level) for level in np.unique(cells) if level >= 0},
        edges=edges,
        other_edges=other_edges,
        tiles=tiles,
        ticks=[(row / bin_width, str(row)) for row in range(0, length, step)],
    )


def lines(edges: Edges, bin_width: int, height: int, scale: float) -> str:
    """Draw a line at every edge, or none where they are too close to tell apart."""
    if len(edges) > 1 and (edges[1] - edges[0]) / bin_width * scale < NARROWEST:
        return ""
    return "".join(f"M{edge / bin_width:g} 0v{height}" for edge in edges)


def told(strip: Strip, head: int | None, start: int, stop: int) -> str:
    """Say what there is to know of some rows; nothing where none counts."""
    rho, is_wrong = (array[head or 0, start:stop] for array in strip.rows)
    if np.isnan(rho).all():
        return ""
    largest = int(np.nanargmax(rho))
    stop = start + len(rho)
    of_head = "" if head is None else f"head {head}, "
    where = f"{strip.axis} {start}" if len(rho) == 1 else f"{strip.axis}s {start} to {stop - 1}"
    blocks = sorted({b for b in (block_at(strip, start), block_at(strip, stop - 1)) if b is not None})
    of_block = "" if not blocks else f", block{'s' * (len(blocks) - 1)} {' to '.join(map(str, blocks))}"
    at = "" if len(rho) == 1 else f" at {start + largest}"
    wrong = f", {is_wrong.sum()} wrong" if is_wrong.any() else ""
    return f"{of_head}{where}{of_block}: ρ {'' if len(rho) == 1 else 'up to '}{rho[largest]:.3g}{at}{wrong}"
