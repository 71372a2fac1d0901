"""The index map of a layer as a few rectangles, exact at any length: who may attend to whom."""

from typing import NamedTuple

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.study.pictures.looks import check_layer
from pegasusx_ref.study.pictures.reach import runs


class Area(NamedTuple):
    """A rectangle of the index map, whose rows are queries and whose columns are keys, global tokens first.

    Attributes:
        kind: "own block", "global tokens", or "padding", which lies on top of the others and hides them.
        first_key: its left column.
        first_query: its upper row.
        num_keys: its width.
        num_queries: its height.
    """

    kind: str
    first_key: int
    first_query: int
    num_keys: int
    num_queries: int


def areas(config: PegasusXConfig, num_tokens: int, layer: int, key_mask: np.ndarray | None = None) -> list[Area]:
    """Cover what a layer's queries see with rectangles, and what they do not see of it with more.

    Args:
        config: for the blocks, their staggering and the global tokens.
        num_tokens: T.
        layer: of the encoder, from 0.
        key_mask: True where a token is real (T,); None means everywhere.

    Raises:
        InputError: no such layer, or a mask of another length.
    """
    check_layer(layer, config.encoder_layers, "encoder")
    if key_mask is not None and np.shape(key_mask) != (num_tokens,):
        raise InputError(f"key_mask has shape {np.shape(key_mask)}: {num_tokens} tokens need ({num_tokens},)")
    G = config.num_global_tokens
    blocks = layer_blocks(config, num_tokens, layer)
    own = [Area("own block", G + start, G + start, stop - start, stop - start) for start, stop in blocks]
    seen_by_all = Area("global tokens", 0, 0, G, G + num_tokens)
    see_all = Area("global tokens", G, 0, num_tokens, G)
    hidden = [] if key_mask is None else runs(~np.asarray(key_mask, dtype=bool))
    masked = [Area("padding", G + start, 0, stop - start, G + num_tokens) for start, stop in hidden]
    return [*own, seen_by_all, see_all, *masked]
