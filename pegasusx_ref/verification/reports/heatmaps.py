"""Heatmaps of rho by position and head, with a layer's blocks and global tokens side by side."""

import re
from typing import NamedTuple

import numpy as np

from pegasusx_ref.tracing.trace_points import letters_of
from pegasusx_ref.verification.verdicts import Report, RowErrors

AXES = {"G": "global token", "T": "position", "L": "target position"}
Edges = tuple[int, ...]


class Strip(NamedTuple):
    """The rows of one text along one axis.

    Attributes:
        axis: what the rows are: "global token", "position", "target position".
        rows: the errors by head and row; one head where a tensor has none.
        edges: between the layer's blocks.
        other_edges: between the neighbouring layer's blocks, where they differ.
    """

    axis: str
    rows: RowErrors
    edges: Edges = ()
    other_edges: Edges = ()


class Heatmap(NamedTuple):
    """One place of the model, for one batch row.

    Attributes:
        place: such as "encoder.layers.1.self_attn.scores".
        batch_row: its number.
        has_heads: whether the tensors have heads.
        strips: global tokens first.
    """

    place: str
    batch_row: int
    has_heads: bool
    strips: list[Strip]


class Spot(NamedTuple):
    """A row and its error."""

    axis: str
    row: int
    head: int
    block: int | None
    rho: float
    is_wrong: bool


def place_of(name: str) -> str:
    """Return the name that tensors of tokens, of global tokens and of a layer's blocks share."""
    return re.sub(r"\b(local\.\d+|global|globals|tokens)\.", "", name)


def heatmaps(report: Report, place: str) -> list[Heatmap]:
    """Assemble the tensors of a place side by side.

    Args:
        report: the result of `verify`.
        place: from `place_of`.

    Returns:
        One heatmap for each batch row; none where no tensor of the place could be compared.
    """
    batch, num_tokens = report.valid.source_mask_BT.shape
    whole: dict[str, RowErrors] = {}
    has_heads = False
    for name, errors in report.rows.items():
        if place_of(name) != place:
            continue
        has_heads |= errors.rho.ndim == 3
        rho, is_wrong = (array.reshape(batch, -1, array.shape[-1]) for array in errors)
        letter, start, length = letters_of(name)[-2], 0, rho.shape[2]
        if letter == "S":
            letter, start, length = "T", report.valid.block(name)[0], num_tokens
        shape = (*rho.shape[:2], length)
        rows = whole.setdefault(AXES[letter], RowErrors(np.full(shape, np.nan), np.zeros(shape, dtype=bool)))
        rows.rho[:, :, start : start + rho.shape[2]] = rho
        rows.is_wrong[:, :, start : start + rho.shape[2]] = is_wrong
    edges = block_edges(report, place)

    def strip(axis: str, b: int) -> Strip:
        return Strip(axis, RowErrors(*(array[b] for array in whole[axis])), *(edges if axis == "position" else ()))

    axes = [axis for axis in AXES.values() if axis in whole]
    return [Heatmap(place, b, has_heads, [strip(axis, b) for axis in axes]) for b in range(batch)] if axes else []


def block_edges(report: Report, place: str) -> tuple[Edges, Edges]:
    """Return the edges between the blocks of a place's layer, and those of a neighbouring layer that differ."""
    match = re.match(r"encoder\.layers\.(\d+)\.", place)
    if match is None:
        return (), ()
    layer, blocks = int(match.group(1)), report.valid.blocks
    neighbour = layer - 1 if layer else min(1, len(blocks) - 1)
    edges, others = (tuple(start for start, _ in blocks[number] if start) for number in (layer, neighbour))
    return edges, tuple(edge for edge in others if edge not in edges)


def worst_spots(heatmap: Heatmap, count: int) -> list[Spot]:
    """Return the rows with the largest rho, wrong rows first."""
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
    """Return the number of the block that a position is in."""
    return int(np.searchsorted(strip.edges, row, side="right")) if strip.edges else None
