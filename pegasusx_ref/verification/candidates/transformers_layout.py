"""transformers' padded blocks and merged heads, and their conversion to and from the trace points' shapes. [spec 16]"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pegasusx_ref.golden.attention import split_heads
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import is_staggered
from pegasusx_ref.tracing.trace_points import layer_of, numbers_in
from pegasusx_ref.verification.checking.operations import HIDDEN

Places = np.ndarray  # the token of each row of a block; -1 is padding
Named = Iterator[tuple[str, np.ndarray]]


def padded_blocks(num_padding: int, num_tokens: int, block_size: int) -> list[Places]:
    """Split padding and the tokens after it into whole blocks.

    Args:
        num_padding: rows before the first token.
        num_tokens: T.
        block_size: K.
    """
    num_places = -(-(num_tokens + num_padding) // block_size) * block_size
    places = np.arange(num_places) - num_padding
    return list(np.where(places < num_tokens, np.maximum(places, -1), -1).reshape(-1, block_size))


def to_transformers_attentions(attentions: dict[str, Any], block_size: int, staggered: bool) -> dict[str, np.ndarray]:
    """Convert one encoder layer's attentions to the padded blocks of transformers. [spec 16.7]

    transformers pads the source to P, a multiple of K, and a staggered layer by another K/2 on both sides (P' = P + K).
    Rows and columns of padding, which this package does not compute, are 0. In transformers the padded key columns are
    0 too, but the padded query rows hold ordinary attention that nothing reads.

    Args:
        attentions: {"global": (B, H, G, G+T), "local": [(B, H, S, G+S), …]} of one layer.
        block_size: K.
        staggered: whether the layer is staggered.

    Returns:
        {"global": (B, H, G, G+P'), "local": (B, H, N, K, G+K)}, N = P'/K; P' = P in a layer that is not staggered.

    Source: HF `PegasusXEncoderLayer.pad_local_tokens`, `PegasusXGlobalLocalAttention`.
    """
    probs_BHGX = attentions["global"]
    B, H, G, X = probs_BHGX.shape
    K, T = block_size, X - G
    left = K // 2 if staggered else 0
    num_blocks = -(-T // K) + staggered

    global_probs = np.zeros((B, H, G, G + num_blocks * K), dtype=probs_BHGX.dtype)
    global_probs[..., :G] = probs_BHGX[..., :G]
    global_probs[..., G + left : G + left + T] = probs_BHGX[..., G:]

    local_probs = np.zeros((B, H, num_blocks, K, G + K), dtype=probs_BHGX.dtype)
    for n, block in enumerate(attentions["local"]):
        S = block.shape[2]
        first = left if n == 0 else 0  # a staggered layer's first K/2 tokens fill the end of its first block
        local_probs[:, :, n, first : first + S, :G] = block[..., :G]
        local_probs[:, :, n, first : first + S, G + first : G + first + S] = block[..., G:]
    return {"global": global_probs, "local": local_probs}


class Unpadded:
    """Removal of transformers' padding inside attention: up to whole blocks, and K/2 rows at both ends.

    The rows of the tokens are looked up in the attention's input. So a layer with a wrong shift or wrong blocks keeps
    its shapes, and they are the finding.

    Args:
        config: the model's configuration.
        num_tokens: T.
    """

    def __init__(self, config: PegasusXConfig, num_tokens: int) -> None:
        self._config, self._num_tokens = config, num_tokens
        self._places: dict[str, Places] = {}

    def look_up(self, layer: str, padded: np.ndarray, rows: np.ndarray) -> None:
        """Find the rows of the tokens in the input of attention.

        Args:
            layer: the layer's name, such as ``encoder.layers.1``.
            padded: the input of attention (B, P, D), with padding.
            rows: the rows of the tokens (B, T, D).
        """
        known = {rows[:, t].tobytes(): t for t in range(rows.shape[1])}
        places = np.array([known.get(padded[:, p].tobytes(), -1) for p in range(padded.shape[1])])
        if np.array_equal(np.sort(places[places >= 0]), np.arange(rows.shape[1])):  # each once
            self._places[layer] = places

    def tensors(self, name: str, array: np.ndarray) -> Named:
        """Yield the tensors of the trace points that a tensor of transformers contains.

        Args:
            name: the trace point's name; ``local`` stands for all blocks.
            array: transformers' tensor.
        """
        G, config = self._config.num_global_tokens, self._config
        if name.startswith("decoder"):
            yield name, split_heads(array, config.decoder_attention_heads) if name.endswith(".context") else array
        elif ".local." in name:
            yield from self._blocks(name, array)
        elif ".global." in name:
            yield name, array[..., np.r_[:G, G + self._rows(name, array.shape[3] - G)]]
        elif name.endswith(".globals.context"):
            yield name.replace(".globals.", ".global."), split_heads(array, config.encoder_attention_heads)
        elif name.endswith(".tokens.context"):
            heads = split_heads(array[:, self._rows(name, array.shape[1])], config.encoder_attention_heads)
            for n, places in enumerate(self._expected(name)):
                yield name.replace(".tokens.", f".local.{n}."), heads[:, :, places[places >= 0]]
        elif ".self_attn.tokens." in name:
            yield name, array[:, self._rows(name, array.shape[1])]
        elif ".globals." in name or name in ("encoder.embed_global", "lm_head"):
            yield name, array
        else:
            yield name, array[:, : self._num_tokens]

    def _blocks(self, name: str, blocks: np.ndarray) -> Named:
        """Split (B, H, N, K, G + K) into blocks; blocks of wrong tokens keep their padding."""
        G, N, K, expected = self._config.num_global_tokens, *blocks.shape[2:4], self._expected(name)
        own = self._places_of(name, N * K).reshape(N, K)
        own = own[: np.flatnonzero((own >= 0).any(axis=1)).max() + 1]  # the last block may be padding only
        fits = np.array_equal(own, expected)
        for n, places in enumerate(own):
            found, is_real = blocks[:, :, n], places >= 0
            columns = np.r_[np.full(G, True), is_real]
            if fits and not (name.endswith("scores") and (found[:, :, is_real][..., ~columns] > HIDDEN).any()):
                found = found[:, :, is_real][..., columns]
            yield name.replace(".local.", f".local.{n}."), found

    def _rows(self, name: str, num_padded: int) -> np.ndarray:
        """Return the rows of the tokens, in their order."""
        places = self._places_of(name, num_padded)
        return np.argsort(places, kind="stable")[(places < 0).sum() :]

    def _places_of(self, name: str, num_padded: int) -> Places:
        """Return the token of each padded row; -1 is padding."""
        places = self._places.get(layer_of(name))
        if places is None or len(places) != num_padded:
            places = np.concatenate(self._expected(name))
            missing = max(num_padded - len(places), 0)
            places = np.r_[places, np.full(missing, -1)][:num_padded]
        return places

    def _expected(self, name: str) -> list[Places]:
        staggered = is_staggered(self._config, numbers_in(name)[0])
        K = self._config.block_size
        return padded_blocks(K // 2 if staggered else 0, self._num_tokens, K)
