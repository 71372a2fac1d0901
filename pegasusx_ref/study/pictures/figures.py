"""Matplotlib figures of attention: index maps, the reach of a token, attention in blocks, cross-attention.

The functions run no model. `figure.savefig("picture.png", dpi=150)` writes a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import is_staggered, layer_blocks
from pegasusx_ref.rendering.canvas import (
    BLUE,
    GREY,
    LIGHT,
    ORANGE,
    heatmap,
    legend,
    new_axes,
    new_figure,
    rectangle,
    thinned,
    title,
)
from pegasusx_ref.rendering.tables import counted
from pegasusx_ref.study.pictures.block_coordinates import binned, in_block_coordinates
from pegasusx_ref.study.pictures.index_map_areas import index_map_areas
from pegasusx_ref.study.pictures.reach import runs, token_reach

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"own block": BLUE, "global tokens": ORANGE, "padding": LIGHT}
MOST_LABELS, MOST_CELLS = 80, 512  # source tokens with labels; cells of longer sources
PROBABILITY = "probability\n(colours by its square root)"
GRID = 64  # queries: up to here every cell has an outline


def index_map(config: PegasusXConfig, num_tokens: int, layer: int, key_mask: np.ndarray | None = None) -> Figure:
    """Draw which keys each query of an encoder layer attends to: its block and the global tokens, without padding.

    Args:
        config: for the blocks, their staggering and the global tokens.
        num_tokens: T.
        layer: of the encoder, from 0.
        key_mask: (T,), False for padding; None: no padding.

    Raises:
        InputError: there is no such layer, or the mask has another length.
        ExtraError: matplotlib is not installed.
    """
    found = index_map_areas(config, num_tokens, layer, key_mask)
    G, staggered = config.num_global_tokens, is_staggered(config, layer)
    figure = new_figure(5, 5.2)
    axes = new_axes(figure, aspect="equal", xlim=(-G, num_tokens), ylim=(num_tokens, -G))
    outline: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.5} if G + num_tokens <= GRID else {}
    for kind, key, query, num_keys, num_queries in found:
        if kind == "padding":
            rectangle(axes, key - G, query - G, num_keys, num_queries, LIGHT, edgecolor="#A0A0A0", hatch="////")
            continue
        for row in range(num_queries) if outline else (0,):
            for column in range(num_keys) if outline else (0,):
                width, height = (1, 1) if outline else (num_keys, num_queries)
                rectangle(axes, key - G + column, query - G + row, width, height, COLOURS[kind], **outline)
    edges = thinned([start for start, _ in layer_blocks(config, num_tokens, layer)])
    axes.set(xticks=thinned(edges, 6), yticks=edges, xlabel="key: global tokens, then tokens", ylabel="query")
    title(axes, f"Layer {layer}, {'' if staggered else 'not '}staggered: K = {config.block_size}, G = {G}")
    kinds = list(dict.fromkeys(area.kind for area in found))
    legend(figure, [(kind, COLOURS[kind], "////" if kind == "padding" else "") for kind in kinds])
    return figure


def attention_in_blocks(probs_by_block: Sequence[np.ndarray], blocks: Blocks, head: int | None = None) -> Figure:
    """Draw a layer's local attention in block coordinates, the queries of all blocks stacked.

    Args:
        probs_by_block: for each block (H, S, G+S), of one text.
        blocks: (start, stop) of the layer's blocks, from `block_bounds`.
        head: index of a head; None: the mean of all heads.

    Raises:
        InputError: the probabilities do not fit the blocks, or there is no such head.
        ExtraError: matplotlib is not installed.
    """
    stack = in_block_coordinates(probs_by_block, blocks, head)
    num_heads, _, num_keys = probs_by_block[0].shape
    G = num_keys - (blocks[0][1] - blocks[0][0])
    widths = [stack.to_globals.shape[1], stack.to_block.shape[1]]
    figure = new_figure(6, 6)
    grid = figure.add_gridspec(1, 2, width_ratios=[max(widths[0] / sum(widths), 0.15), widths[1] / sum(widths)])
    left, right = new_axes(figure, grid[0]), new_axes(figure, grid[1])
    highest = max(float(np.nanmax(part)) for part in (stack.to_globals, stack.to_block))
    image = heatmap(left, stack.to_globals, highest, stack.keys)
    heatmap(right, stack.to_block, highest, stack.keys)
    for axes in (left, right):
        for row in stack.first_rows[1:]:
            axes.axhline(row, color=GREY, linewidth=0.4)
    rows = thinned(range(len(blocks)), 16)
    left.set_yticks([stack.first_rows[n] for n in rows], [str(blocks[n][0]) for n in rows])
    left.set(ylabel="query: the first of each block is named", xlabel=f"{G} global\ntokens", xticks=[])
    right.set(yticks=[], xlabel="key, counted from the block's start")
    heads = f"mean of {num_heads} heads" if head is None else f"head {head}"
    cells = f"a cell: up to {counted(stack.queries, 'query', 'queries')} (mean) × {counted(stack.keys, 'key')} (sum)"
    figure.suptitle(
        f"Attention of {blocks[-1][1]} tokens in {counted(len(blocks), 'block')}, {heads}"
        + (f"\n{cells}" if max(stack.queries, stack.keys) > 1 else ""),
        fontsize=10,
    )
    figure.colorbar(image, ax=right, label=PROBABILITY, shrink=0.6)
    return figure


def spread(config: PegasusXConfig, num_tokens: int, token: int) -> Figure:
    """Draw one token's reach, layer by layer, without and with the global tokens.

    Args:
        config: for the layers, their blocks and the global tokens.
        num_tokens: T.
        token: position of the token.

    Raises:
        InputError: there is no such position.
        ExtraError: matplotlib is not installed.
    """
    variants = {
        "through blocks alone": token_reach(config, num_tokens, token, through_globals=False),
        f"through blocks and {config.num_global_tokens} global tokens": token_reach(config, num_tokens, token),
    }
    layers = range(config.encoder_layers + 1)
    figure = new_figure(7.5, 1.6 + 0.36 * len(layers))
    for place, (name, reached) in enumerate(variants.items(), start=1):
        axes = new_axes(figure, 2, 1, place, xlim=(0, num_tokens), ylim=(layers[-1] + 0.6, -0.6))
        for layer in layers:
            rectangle(axes, 0, layer - 0.35, num_tokens, 0.7, LIGHT)
            for start, stop in runs(reached[layer]):
                # A single token of 16,384 would be thinner than a pixel: the outline keeps it visible.
                rectangle(axes, start, layer - 0.35, stop - start, 0.7, BLUE, edgecolor=BLUE, linewidth=0.8)
            count = int(reached[layer].sum())
            axes.annotate(f"{count:,}", (1.01, layer), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        axes.set_yticks(layers, ["input", *(f"after {layer}" for layer in layers[:-1])])
        title(axes, f"Token {token} of {num_tokens:,}, K = {config.block_size}: {name}")
        axes.set_ylabel("layer")
    axes.set_xlabel("position; on the right the number of tokens reached")
    return figure


def cross_attention(probs: np.ndarray, pieces: Sequence[str], words: Sequence[str]) -> Figure:
    """Draw the cross-attention of each word of a summary over the source tokens.

    Args:
        probs: a row for each word, a column for each source token (words, T).
        pieces: the source tokens.
        words: of the summary; `average_by_word` groups tokens into words.

    Raises:
        InputError: the shape of `probs` differs from the numbers of words and pieces.
        ExtraError: matplotlib is not installed.
    """
    if probs.shape != (len(words), len(pieces)):
        raise InputError(f"probs has shape {probs.shape}: {len(words)} words over {len(pieces)} pieces are expected")
    named = len(pieces) <= MOST_LABELS
    keys = 1 if named else -(-len(pieces) // MOST_CELLS)
    cells = binned(probs, keys, axis=1)
    width = max(4, 1.5 + 0.17 * len(pieces)) if named else 9
    figure = new_figure(width, max(2.8, 1.4 + 0.22 * len(words)) + 0.5 * named)
    axes = new_axes(figure)
    image = heatmap(axes, cells, float(cells.max()), keys)
    if named:
        axes.set_xticks(np.arange(len(pieces)) + 0.5, pieces, rotation=90, fontsize=8)
    axes.set_yticks(np.arange(len(words)) + 0.5, words, fontsize=8)
    axes.set(xlabel="source token", ylabel="word written")
    title(axes, "Cross-attention" + (f"; a cell: up to {keys} source tokens (sum)" if keys > 1 else ""))
    figure.colorbar(image, ax=axes, label=PROBABILITY, shrink=0.8)
    return figure
