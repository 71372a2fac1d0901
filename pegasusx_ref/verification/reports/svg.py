"""A heatmap as SVG: the colours of its cells, the block edges, the axis labels and the tooltips."""

from typing import NamedTuple

import numpy as np

from pegasusx_ref.verification.reports.heatmaps import Edges, Heatmap, Strip, block_at
from pegasusx_ref.verification.verdicts import FAIL, WARN, RowErrors

LEVELS = (0.3, 1.0, WARN, FAIL, 30.0, 1e3, 1e6)  # the largest rho of each colour; one more colour is above them
FIRST_FAILING = LEVELS.index(FAIL) + 1
WIDTH, GAP, HEAD_HEIGHT, LINE_HEIGHT = 900, 24, 16, 28  # in SVG units
LEFT, LEFT_WITHOUT_HEADS, RIGHT = 64, 8, 16  # margins for labels
MIN_BLOCK_WIDTH, TICK_WIDTH = 8, 80  # narrower blocks have no edges; the width of a label
TICK_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class SvgStrip(NamedTuple):
    """One axis of a heatmap; all lengths except x and width are in cells.

    Attributes:
        axis: what the rows are.
        x: the left edge, in SVG units.
        width: in SVG units.
        num_cells: along the axis.
        bin_width: rows in a cell.
        paths: the cells of each level that occurs, as an SVG path.
        edges: lines between the layer's blocks, as an SVG path.
        other_edges: lines between the neighbouring layer's blocks, as an SVG path.
        tooltips: x, head, width and text of each area with a tooltip.
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
    tooltips: list[tuple[int, int, int, str]]
    ticks: list[tuple[float, str]]


class Drawing(NamedTuple):
    """A heatmap's shapes.

    Attributes:
        heatmap: what is drawn.
        num_heads: lines of cells; 1 where the tensors have no heads.
        head_height: the height of a line, in SVG units.
        left: the left edge of the first axis.
        width: of the drawing.
        strips: the axes, from left to right.
    """

    heatmap: Heatmap
    num_heads: int
    head_height: int
    left: int
    width: int
    strips: list[SvgStrip]


def draw(heatmap: Heatmap, max_cells: int, max_tooltips: int) -> Drawing:
    """Draw a heatmap; a long axis has bins, each with the colour of its worst row.

    Args:
        heatmap: what to draw.
        max_cells: along an axis.
        max_tooltips: along an axis.
    """
    num_heads = max(strip.rows.rho.shape[0] for strip in heatmap.strips)
    widths = [WIDTH] if len(heatmap.strips) == 1 else [WIDTH // 6, WIDTH - WIDTH // 6 - GAP]
    left, head_height = (LEFT, HEAD_HEIGHT) if heatmap.has_heads else (LEFT_WITHOUT_HEADS, LINE_HEIGHT)
    strips, x = [], left
    for strip, width in zip(heatmap.strips, widths, strict=True):
        strips.append(draw_strip(strip, heatmap.has_heads, x, width, max_cells, max_tooltips))
        x += width + GAP
    return Drawing(heatmap, num_heads, head_height, left, left + WIDTH + RIGHT, strips)


def draw_strip(strip: Strip, has_heads: bool, x: int, width: int, max_cells: int, max_tooltips: int) -> SvgStrip:
    """Draw one axis of a heatmap."""
    length = strip.rows.rho.shape[1]
    bin_width = power_of_two(length / max_cells)
    cells = levels(strip.rows, bin_width)
    num_heads, num_cells = cells.shape
    size = power_of_two(num_cells / max_tooltips)
    tooltips = [
        (start, head, min(size, num_cells - start), text)
        for head in range(num_heads)
        for start in range(0, num_cells, size)
        if (text := tooltip(strip, head if has_heads else None, start * bin_width, (start + size) * bin_width))
    ]
    step = next((step for step in TICK_STEPS if step * width >= length * TICK_WIDTH), TICK_STEPS[-1])
    edges, other_edges = (lines(some, bin_width, num_heads, width / num_cells) for some in strip[2:])
    return SvgStrip(
        axis=strip.axis,
        x=x,
        width=width,
        num_cells=num_cells,
        bin_width=bin_width,
        paths={int(level): outline(cells == level) for level in np.unique(cells) if level >= 0},
        edges=edges,
        other_edges=other_edges,
        tooltips=tooltips,
        ticks=[(row / bin_width, str(row)) for row in range(0, length, step)],
    )


def power_of_two(least: float) -> int:
    """Round up to a power of two, so that bins do not straddle the edges of blocks."""
    return 1 << max(0, int(np.ceil(np.log2(least))))


def binned(values: np.ndarray, width: int, fill: float) -> np.ndarray:
    """Take the largest of every `width` values along the last axis, ignoring NaN; `fill` pads the last bin."""
    missing = -values.shape[-1] % width
    padded = np.pad(values, ((0, 0), (0, missing)), constant_values=fill)
    largest: np.ndarray = np.fmax.reduce(padded.reshape(len(values), -1, width), axis=2)
    return largest


def levels(rows: RowErrors, bin_width: int) -> np.ndarray:
    """Compute the level of every cell; -1 where no row counts."""
    rho, is_wrong = binned(rows.rho, bin_width, np.nan), binned(rows.is_wrong, bin_width, False)
    found = np.searchsorted(LEVELS, rho, side="left")
    # A row with one wrong element fails, even if its rho passes.
    found = np.where(is_wrong, np.maximum(found, FIRST_FAILING), found)
    return np.where(np.isnan(rho), -1, found)


def outline(is_set: np.ndarray) -> str:
    """Outline cells as an SVG path: one rectangle for adjacent cells of a line."""
    steps = np.diff(np.pad(is_set.astype(int), ((0, 0), (1, 1))), axis=1)
    starts, stops = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return "".join(f"M{x} {y}h{stop - x}v1h{x - stop}z" for (y, x), (_, stop) in zip(starts, stops, strict=True))


def lines(edges: Edges, bin_width: int, height: int, scale: float) -> str:
    """Draw a line at every edge as an SVG path, or none where the edges are too close."""
    if len(edges) > 1 and (edges[1] - edges[0]) / bin_width * scale < MIN_BLOCK_WIDTH:
        return ""
    return "".join(f"M{edge / bin_width:g} 0v{height}" for edge in edges)


def tooltip(strip: Strip, head: int | None, start: int, stop: int) -> str:
    """Describe some rows; the empty string where none counts."""
    rho, is_wrong = (array[head or 0, start:stop] for array in strip.rows)
    if np.isnan(rho).all():
        return ""
    largest = int(np.nanargmax(rho))
    stop = start + len(rho)
    in_head = "" if head is None else f"head {head}, "
    where = f"{strip.axis} {start}" if len(rho) == 1 else f"{strip.axis}s {start} to {stop - 1}"
    blocks = sorted({b for b in (block_at(strip, start), block_at(strip, stop - 1)) if b is not None})
    in_block = "" if not blocks else f", block{'s' * (len(blocks) - 1)} {' to '.join(map(str, blocks))}"
    at = "" if len(rho) == 1 else f" at {start + largest}"
    wrong = f", {is_wrong.sum()} wrong" if is_wrong.any() else ""
    return f"{in_head}{where}{in_block}: ρ {'' if len(rho) == 1 else 'up to '}{rho[largest]:.3g}{at}{wrong}"
