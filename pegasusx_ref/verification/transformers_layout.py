"""From transformers' padded blocks and joined heads to the shapes of the trace points. [spec 16]"""

from collections.abc import Iterator

import numpy as np

from pegasusx_ref.attention import split_heads
from pegasusx_ref.config import PegasusXConfig
from pegasusx_ref.encoder import is_staggered
from pegasusx_ref.global_local import block_slices

Named = Iterator[tuple[str, np.ndarray]]


class Unpadded:
    """Takes away transformers' padding: of the tokens, of a block, of half a block at both ends.

    Args:
        config: of the model.
        num_tokens: T.
    """

    def __init__(self, config: PegasusXConfig, num_tokens: int) -> None:
        self._config, self._num_tokens = config, num_tokens

    def tensors(self, name: str, array: np.ndarray) -> Named:
        """Give what a tensor of transformers holds, by name of its trace point.

        Args:
            name: that of the trace point; ``local`` stands for all blocks together.
            array: transformers' tensor.
        """
        T, G = self._num_tokens, self._config.num_global_tokens
        if name.startswith("decoder") or name == "lm_head":
            is_context = name.endswith(".context")
            yield name, split_heads(array, self._config.decoder_attention_heads) if is_context else array
        elif name.endswith(".context"):
            yield from self._context(name, split_heads(array, self._config.encoder_attention_heads))
        elif ".local." in name:
            yield from self._blocks(name, array)
        elif ".global." in name:
            first = G + self._shift(array.shape[3] - G)
            yield name, array[..., np.r_[:G, first : first + T]]
        elif ".globals." in name or name == "encoder.embed_global":
            yield name, array
        else:
            first = self._shift(array.shape[1])
            yield name, array[:, first : first + T]

    def _context(self, name: str, heads: np.ndarray) -> Named:
        if ".globals." in name:
            yield name.replace(".globals.", ".global."), heads
            return
        first = self._shift(heads.shape[2])
        for n, (start, stop) in enumerate(self._slices(name)[0]):
            yield name.replace(".tokens.", f".local.{n}."), heads[:, :, first + start : first + stop]

    def _blocks(self, name: str, padded: np.ndarray) -> Named:
        """Cut padded blocks (B, H, N, K, G + K) into slices; another number of blocks is the finding, not an error."""
        K, G = self._config.block_size, self._config.num_global_tokens
        slices, staggered = self._slices(name)
        num_blocks, shift = padded.shape[2], K // 2 if staggered else 0
        for n, (start, stop) in enumerate(slices):
            block, first = divmod(start + shift, K)
            found = padded[:, :, min(block, num_blocks - 1)]
            if num_blocks == -(-self._num_tokens // K) + staggered:
                last = first + stop - start
                found = found[:, :, first:last][..., np.r_[:G, G + first : G + last]]
            yield name.replace(".local.", f".local.{n}."), found

    def _shift(self, num_padded: int) -> int:
        """Tell by how much tokens are moved: staggered layers pad them by half a block on both sides."""
        K = self._config.block_size
        return K // 2 if num_padded == -(-self._num_tokens // K) * K + K else 0

    def _slices(self, name: str) -> tuple[list[tuple[int, int]], bool]:
        staggered = is_staggered(self._config, int(name.split(".")[2]))
        return block_slices(self._num_tokens, self._config.block_size, staggered), staggered
