"""The index map of a layer, which keys each query attends to, as a few rectangles: exact at any length."""

from typing import NamedTuple

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.study.pictures.attention_probabilities import check_layer
from pegasusx_ref.study.pictures.reach import runs


class Area(NamedTuple):
    """A rectangle of the index map: its rows are queries and its columns are keys, global tokens first.

    Attributes:
        kind: "own block", "global tokens", or "padding", which masks what lies below it.
        first_key: left column.
        first_query: top row.
        num_keys: width.
        num_queries: height.
    """

    kind: str
    first_key: int
    first_query: int
    num_keys: int
    num_queries: int


def index_map_areas(
    config: PegasusXConfig, num_tokens: int, layer: int, key_mask: np.ndarray | None = None
) -> list[Area]:
    """Cover the index map of a layer with rectangles: visible keys first, then the padding that masks them.

    Args:
        config: for the blocks, their staggering and the global tokens.
        num_tokens: T.
        layer: of the encoder, from 0.
        key_mask: (T,), False for padding; None: no padding.

    Raises:
        InputError: there is no such layer, or the mask has another length.
    """
    check_layer(layer, config.encoder_layers, "encoder")
    if key_mask is not None and np.shape(key_mask) != (num_tokens,):
        raise InputError(f"key_mask has shape {np.shape(key_mask)}: {num_tokens} tokens need ({num_tokens},)")
    G = config.num_global_tokens
    blocks = layer_blocks(config, num_tokens, layer)
    own = [Area("own block", G + start, G + start, stop - start, stop - start) for start, stop in blocks]
    global_keys = Area("global tokens", 0, 0, G, G + num_tokens)
    global_queries = Area("global tokens", G, 0, num_tokens, G)
    hidden = [] if key_mask is None else runs(~np.asarray(key_mask, dtype=bool))
    masked = [Area("padding", G + start, 0, stop - start, G + num_tokens) for start, stop in hidden]
    return [*own, global_keys, global_queries, *masked]
