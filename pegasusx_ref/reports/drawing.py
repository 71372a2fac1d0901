"""A heatmap as shapes: cells of many rows, edges of blocks, and what each part of it says when pointed at."""

from typing import NamedTuple

import numpy as np

from pegasusx_ref.reports.heatmaps import Edges, Heatmap, Strip, block_at
from pegasusx_ref.verification.checking import FAIL, WARN

LEVELS = (0.3, 1.0, WARN, FAIL, 30.0, 1e3, 1e6)  # rho up to which a cell has its colour; above the last one more
FIRST_FAILING = LEVELS.index(FAIL) + 1
WIDTH, GAP, HEAD_HEIGHT, LINE_HEIGHT = 900, 24, 16, 28  # of the picture, in its own units
LEFT, LEFT_WITHOUT_HEADS, RIGHT = 64, 8, 16  # of the axes, for labels
NARROWEST = 3  # blocks that are drawn


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
    cells = levels(strip, bin_width)
    num_heads, num_cells = cells.shape
    tile = power_of_two(num_cells / most_tiles)
    tiles = [
        (start, head, min(tile, num_cells - start), text)
        for head in range(num_heads)
        for start in range(0, num_cells, tile)
        if (text := told(strip, head if has_heads else None, start * bin_width, (start + tile) * bin_width))
    ]
    step = next(s for e in range(9) for s in (10**e, 2 * 10**e, 5 * 10**e) if length / s <= width / 80)
    ticks = [(position / bin_width, str(position)) for position in range(0, length, step)]
    found = {level: path(cells == level) for level in range(len(LEVELS) + 1) if (cells == level).any()}
    edges, others = (lines(edges, bin_width, num_heads, width / num_cells) for edges in strip[2:])
    return DrawnStrip(strip.axis, x, width, num_cells, bin_width, found, edges, others, tiles, ticks)


def power_of_two(least: float) -> int:
    """Round up to a power of two, so that bins do not straddle the edges of blocks."""
    return 1 << max(0, int(np.ceil(np.log2(least))))


def binned(values: np.ndarray, width: int, rest: float) -> np.ndarray:
    """Take the largest of every `width` values along the last axis, whatever is NaN apart."""
    missing = -values.shape[-1] % width
    padded = np.pad(values, ((0, 0), (0, missing)), constant_values=rest)
    largest: np.ndarray = np.fmax.reduce(padded.reshape(len(values), -1, width), axis=2)
    return largest


def levels(strip: Strip, bin_width: int) -> np.ndarray:
    """Give the level of every cell; -1 where no row counts."""
    rho, is_wrong = binned(strip.rows.rho, bin_width, np.nan), binned(strip.rows.is_wrong, bin_width, False)
    found = np.searchsorted(LEVELS, rho, side="left")
    # A row may be wrong in one element and right as a whole.
    found = np.where(is_wrong, np.maximum(found, FIRST_FAILING), found)
    return np.where(np.isnan(rho), -1, found)


def path(is_set: np.ndarray) -> str:
    """Outline cells: one rectangle for those that lie side by side."""
    steps = np.diff(np.pad(is_set.astype(int), ((0, 0), (1, 1))), axis=1)
    starts, stops = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return "".join(f"M{x} {y}h{stop - x}v1h{x - stop}z" for (y, x), (_, stop) in zip(starts, stops, strict=True))


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
