"""Attention probabilities in block coordinates: T rows of G + K columns, however long the text is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.study.pictures.looks import check_head
from pegasusx_ref.verification.reports.cells import power_of_two

MOST_ROWS, MOST_COLUMNS = 512, 256  # of cells, before they are too small to see


class BlockRows(NamedTuple):
    """Probabilities of one layer, the rows of all blocks on top of each other.

    A cell is the sum over its keys and the mean over its queries, so the cells of a row still sum to 1. Bins end at
    block edges: no cell mixes two blocks.

    Attributes:
        to_globals: what each row gives to the global tokens (rows, columns).
        to_block: what it gives to its own block, by the key's place in the block (rows, columns); NaN where the block
            has no such key.
        first_rows: the row at which each block begins.
        queries: at most so many in a cell.
        keys: at most so many in a cell.
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
) -> BlockRows:
    """Stack the blocks of a layer, binned until they can be seen.

    Args:
        probs_by_block: for each block (H, S, G+S), as ``encode(…, output_attentions=True).attentions[layer]["local"]``
            holds them for one text of the batch.
        blocks: (start, stop) of the layer's blocks, from `block_bounds`.
        head: which one; None takes the mean of all.
        most_rows: of the stack, up to one bin a block.
        most_columns: to show, for the global tokens and for the block each.

    Raises:
        InputError: the probabilities are not those of these blocks, or have no such head.
    """
    sizes = [stop - start for start, stop in blocks]
    if [probs.shape[-2] for probs in probs_by_block] != sizes or any(probs.ndim != 3 for probs in probs_by_block):
        raise InputError(
            f"probabilities of shapes {[probs.shape for probs in probs_by_block]} are not those of blocks of {sizes} "
            "tokens: pass those of one text and one layer, (H, S, G+S) a block"
        )
    num_heads, _, num_keys = probs_by_block[0].shape
    check_head(head, num_heads)
    G = num_keys - sizes[0]
    queries = power_of_two(sum(sizes) / most_rows)
    keys = power_of_two(max(G, *sizes) / most_columns)
    to_globals, to_block, first_rows = [], [], [0]
    columns = -(-max(sizes) // keys)
    for probs in probs_by_block:
        rows = binned(probs.mean(axis=0) if head is None else probs[head], queries, axis=0)
        rows /= binned(np.ones((probs.shape[1], 1)), queries, axis=0)  # of the queries the mean
        to_globals.append(binned(rows[:, :G], keys, axis=1))
        block = binned(rows[:, G:], keys, axis=1)
        to_block.append(np.pad(block, ((0, 0), (0, columns - block.shape[1])), constant_values=np.nan))
        first_rows.append(first_rows[-1] + len(rows))
    return BlockRows(np.concatenate(to_globals), np.concatenate(to_block), first_rows[:-1], queries, keys)


def binned(array: np.ndarray, width: int, axis: int) -> np.ndarray:
    """Add up bins of so many neighbours along an axis; the last may hold fewer."""
    sums: np.ndarray = np.add.reduceat(array, np.arange(0, array.shape[axis], width), axis=axis, dtype=np.float64)
    return sums
