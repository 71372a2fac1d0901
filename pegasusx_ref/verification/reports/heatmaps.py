"""Where tensors are wrong: rho by position and head, a layer's blocks and global tokens side by side."""

import re
from typing import NamedTuple

import numpy as np

from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general, numbers_in
from pegasusx_ref.verification import Report
from pegasusx_ref.verification.checking import Rows

AXES = {"G": "global token", "T": "position", "L": "target position"}
Edges = tuple[int, ...]


class Strip(NamedTuple):
    """The rows of one text along one axis.

    Attributes:
        axis: what the rows are: "global token", "position", "target position".
        rows: rho and what is wrong, by head and row; one line where a tensor has no heads.
        edges: where the layer's blocks meet.
        other_edges: where the blocks of the layer beside it meet, if those are others.
    """

    axis: str
    rows: Rows
    edges: Edges = ()
    other_edges: Edges = ()


class Heatmap(NamedTuple):
    """One place of the model, of one text.

    Attributes:
        place: such as "encoder.layers.1.self_attn.scores".
        text: its number in the batch.
        has_heads: whether the tensors have heads.
        strips: global tokens first.
    """

    place: str
    text: int
    has_heads: bool
    strips: list[Strip]


class Spot(NamedTuple):
    """A row, and how far off it is."""

    axis: str
    row: int
    head: int
    block: int | None
    rho: float
    is_wrong: bool


def place(name: str) -> str:
    """Name what the tensors of tokens, of global tokens and of the blocks of a layer have in common."""
    return re.sub(r"\b(local\.\d+|global|globals|tokens)\.", "", name)


def heatmaps(report: Report, where: str) -> list[Heatmap]:
    """Lay the tensors of a place side by side.

    Args:
        report: what `verify` found.
        where: the place, as `place` names it.

    Returns:
        One heatmap a text; none where no tensor of the place could be compared.
    """
    num_texts, num_tokens = report.valid.source_mask_BT.shape
    whole: dict[str, Rows] = {}
    has_heads = False
    for name, rows in report.rows.items():
        if place(name) != where:
            continue
        has_heads |= rows.rho.ndim == 3
        rho, is_wrong = (array.reshape(num_texts, -1, array.shape[-1]) for array in rows)
        letter, start, length = TRACE_POINTS[general(name)][-2], 0, rho.shape[2]
        if letter == "S":
            layer, block = numbers_in(name)
            letter, start, length = "T", report.valid.blocks[layer][block][0], num_tokens
        shape = (*rho.shape[:2], length)
        side = whole.setdefault(AXES[letter], Rows(np.full(shape, np.nan), np.zeros(shape, dtype=bool)))
        side.rho[:, :, start : start + rho.shape[2]] = rho
        side.is_wrong[:, :, start : start + rho.shape[2]] = is_wrong
    edges = block_edges(report, where)

    def strips(text: int) -> list[Strip]:
        of_text = {axis: Rows(*(array[text] for array in whole[axis])) for axis in AXES.values() if axis in whole}
        return [Strip(axis, rows, *(edges if axis == "position" else ())) for axis, rows in of_text.items()]

    return [Heatmap(where, text, has_heads, strips(text)) for text in range(num_texts)] if whole else []


def block_edges(report: Report, where: str) -> tuple[Edges, Edges]:
    """Say where the blocks of a place's layer meet, and those of the layer beside it where they are staggered."""
    match = re.match(r"encoder\.layers\.(\d+)\.", where)
    if match is None:
        return (), ()
    layer, blocks = int(match.group(1)), report.valid.blocks
    beside = layer - 1 if layer else min(1, len(blocks) - 1)
    edges, others = (tuple(start for start, _ in blocks[number] if start) for number in (layer, beside))
    return edges, tuple(edge for edge in others if edge not in edges)


def worst_spots(heatmap: Heatmap, count: int) -> list[Spot]:
    """Give the rows that are most wrong, and otherwise those with the largest rho."""
    spots = []
    for strip in heatmap.strips:
        rho, is_wrong = (array.ravel() for array in strip.rows)
        seen = np.flatnonzero(~np.isnan(rho))
        for i in seen[np.lexsort((rho[seen], is_wrong[seen]))][::-1][:count]:
            head, row = divmod(int(i), strip.rows.rho.shape[1])
            block = block_at(strip, row)
            spots.append(Spot(strip.axis, row, head, block, float(rho[i]), bool(is_wrong[i])))
    return sorted(spots, key=lambda spot: (spot.is_wrong, spot.rho), reverse=True)[:count]


def block_at(strip: Strip, row: int) -> int | None:
    """Number the block that a position lies in."""
    return int(np.searchsorted(strip.edges, row, side="right")) if strip.edges else None
