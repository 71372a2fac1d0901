"""Local attention probabilities in block coordinates: T rows and G + K columns at any length of the text."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.study.pictures.attention_probabilities import check_head, select_head
from pegasusx_ref.verification.reports.svg import power_of_two

MOST_ROWS, MOST_COLUMNS = 512, 256  # of cells: more would be smaller than a pixel


class BlockHeatmap(NamedTuple):
    """Probabilities of one layer in cells, the rows of all blocks stacked.

    A cell is the sum over its keys and the mean over its queries, so a row of cells sums to 1. Bins end at block edges:
    no cell mixes two blocks.

    Attributes:
        to_globals: probabilities of the global tokens (rows, columns).
        to_block: probabilities of the own block, by position in the block (rows, columns); NaN beyond its last key.
        first_rows: the row at which each block begins.
        queries: the most queries in a cell.
        keys: the most keys in a cell.
    """

    to_globals: np.ndarray
    to_block: np.ndarray
    first_rows: list[int]
    queries: int
    keys: int


def in_block_coordinates(
    probs_by_block: Sequence[np.ndarray],
    blocks: Blocks,
    head: int | None = None,
    most_rows: int = MOST_ROWS,
    most_columns: int = MOST_COLUMNS,
) -> BlockHeatmap:
    """Stack the blocks of a layer, binned to at most `most_rows` × `most_columns` cells.

    Args:
        probs_by_block: for each block (H, S, G+S), as ``encode(…, output_attentions=True).attentions[layer]["local"]``
            holds them, for one batch row.
        blocks: (start, stop) of the layer's blocks, from `block_bounds`.
        head: index of a head; None: the mean of all heads.
        most_rows: of the stack, plus up to one a block.
        most_columns: each of the global tokens and of the block.

    Raises:
        InputError: the probabilities do not fit the blocks, or there is no such head.
    """
    sizes = [stop - start for start, stop in blocks]
    if [probs.shape[-2] for probs in probs_by_block] != sizes or any(probs.ndim != 3 for probs in probs_by_block):
        raise InputError(
            f"probabilities of shapes {[probs.shape for probs in probs_by_block]} do not fit blocks of {sizes} tokens: "
            "pass those of one text and one layer, (H, S, G+S) a block"
        )
    num_heads, _, num_keys = probs_by_block[0].shape
    check_head(head, num_heads)
    G = num_keys - sizes[0]
    queries = power_of_two(sum(sizes) / most_rows)
    keys = power_of_two(max(G, *sizes) / most_columns)
    to_globals, to_block, first_rows = [], [], [0]
    columns = -(-max(sizes) // keys)
    for probs in probs_by_block:
        rows = binned(select_head(probs, head), queries, axis=0)
        rows /= binned(np.ones((probs.shape[1], 1)), queries, axis=0)  # the mean over queries
        to_globals.append(binned(rows[:, :G], keys, axis=1))
        block = binned(rows[:, G:], keys, axis=1)
        to_block.append(np.pad(block, ((0, 0), (0, columns - block.shape[1])), constant_values=np.nan))
        first_rows.append(first_rows[-1] + len(rows))
    return BlockHeatmap(np.concatenate(to_globals), np.concatenate(to_block), first_rows[:-1], queries, keys)


def binned(array: np.ndarray, width: int, axis: int) -> np.ndarray:
    """Sum bins of `width` neighbours along an axis; the last bin may be smaller."""
    sums: np.ndarray = np.add.reduceat(array, np.arange(0, array.shape[axis], width), axis=axis, dtype=np.float64)
    return sums
