"""From transformers' padded blocks and joined heads to the shapes of the trace points. [spec 16]"""

from collections.abc import Iterator

import numpy as np

from pegasusx_ref.golden.attention import split_heads
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import is_staggered
from pegasusx_ref.tracing.trace_points import numbers_in
from pegasusx_ref.verification.layouts import HIDDEN, Places, padded_blocks

Named = Iterator[tuple[str, np.ndarray]]


class Unpadded:
    """Takes away transformers' padding, inside attention: of the tokens to whole blocks, of half a block at both ends.

    Where the rows stand inside attention is looked up, not taken for granted: a layer that shifts them by another
    number, or cuts other blocks, is shown as it is.

    Args:
        config: of the model.
        num_tokens: T.
    """

    def __init__(self, config: PegasusXConfig, num_tokens: int) -> None:
        self._config, self._num_tokens = config, num_tokens
        self._places: dict[str, Places] = {}

    def look_up(self, layer: str, given: np.ndarray, rows: np.ndarray) -> None:
        """Find the rows of tokens among those that attention is given.

        Args:
            layer: such as ``encoder.layers.1``.
            given: to attention (B, P, D), with padding.
            rows: of the tokens (B, T, D).
        """
        known = {rows[:, t].tobytes(): t for t in range(rows.shape[1])}
        places = np.array([known.get(given[:, p].tobytes(), -1) for p in range(given.shape[1])])
        if np.array_equal(np.sort(places[places >= 0]), np.arange(rows.shape[1])):  # each once
            self._places[layer] = places

    def tensors(self, name: str, array: np.ndarray) -> Named:
        """Give what a tensor of transformers holds, by name of its trace point.

        Args:
            name: that of the trace point; ``local`` stands for all blocks together.
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
        """Cut blocks (B, H, N, K, G + K) into blocks; blocks of other tokens are the finding, and shown whole."""
        G, N, K, expected = self._config.num_global_tokens, *blocks.shape[2:4], self._expected(name)
        own = self._places_of(name, N * K).reshape(N, K)
        own = own[: np.flatnonzero((own >= 0).any(axis=1)).max() + 1]  # the last one may be nothing but padding
        fits = np.array_equal(own, expected)
        for n, places in enumerate(own):
            found, is_real = blocks[:, :, n], places >= 0
            columns = np.r_[np.full(G, True), is_real]
            if fits and not (name.endswith("scores") and (found[:, :, is_real][..., ~columns] > HIDDEN).any()):
                found = found[:, :, is_real][..., columns]
            yield name.replace(".local.", f".local.{n}."), found

    def _rows(self, name: str, num_padded: int) -> np.ndarray:
        """List where the tokens stand, in their order."""
        places = self._places_of(name, num_padded)
        return np.argsort(places, kind="stable")[(places < 0).sum() :]

    def _places_of(self, name: str, num_padded: int) -> Places:
        """Say which token stands where among so many rows; -1 is padding."""
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


def layer_of(name: str) -> str:
    """Take the layer from a name."""
    return ".".join(name.split(".")[:3])
