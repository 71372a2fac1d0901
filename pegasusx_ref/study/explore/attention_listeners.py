"""Listeners that keep the strongest keys of every query and discard the attention tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.study.explore.top_keys import KeyCounts, TopKeys, quantize
from pegasusx_ref.tracing import listen
from pegasusx_ref.tracing.trace_points import numbers_in


class EncoderAttentionListener:
    """The strongest keys of tokens and global tokens in every encoder layer.

    Args:
        config: of the model.
        num_tokens: T.
        counts: how many keys are kept of a query.

    Attributes:
        blocks: (start, stop) of the blocks of every layer.
        in_block: keys of each token in its block, counted from the block's start.
        on_globals: keys of each token among the global tokens.
        globals_share: weight of all global tokens for each token (layers, T), quantized.
        by_globals: keys of each global token in the text.
        globals_own_share: weight of all global tokens for each global token (layers, G), quantized.
        last_hidden_state: output of the encoder (1, T, D).
    """

    last_hidden_state: Any

    def __init__(self, config: PegasusXConfig, num_tokens: int, counts: KeyCounts) -> None:
        layers, G = config.encoder_layers, config.num_global_tokens
        self.blocks = [layer_blocks(config, num_tokens, i) for i in range(layers)]
        self.in_block = TopKeys(layers, num_tokens, config.block_size, counts.block)
        self.on_globals = TopKeys(layers, num_tokens, G, counts.globals)
        self.globals_share = np.zeros((layers, num_tokens), np.uint8)
        self.by_globals = TopKeys(layers, G, num_tokens, counts.text)
        self.globals_own_share = np.zeros((layers, G), np.uint8)
        self._num_globals = G

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the encoder inside the block; only the first batch row is kept."""
        with (
            listen(self._on_local_probs, "encoder.layers.*.self_attn.local.*.probs"),
            listen(self._on_global_probs, "encoder.layers.*.self_attn.global.probs"),
            listen(self._on_output, "encoder.layer_norm"),
        ):
            yield

    def _on_local_probs(self, name: str, probs: Any) -> None:
        layer, block = numbers_in(name)
        start, stop = self.blocks[layer][block]
        probs_HSX, G = to_numpy(probs)[0], self._num_globals
        self.on_globals.add(layer, start, probs_HSX[:, :, :G])
        self.in_block.add(layer, start, probs_HSX[:, :, G:])
        self.globals_share[layer, start:stop] = globals_share(probs_HSX, G)

    def _on_global_probs(self, name: str, probs: Any) -> None:
        (layer,) = numbers_in(name)
        probs_HGX, G = to_numpy(probs)[0], self._num_globals
        self.by_globals.add(layer, 0, probs_HGX[:, :, G:])
        self.globals_own_share[layer] = globals_share(probs_HGX, G)

    def _on_output(self, _: str, tokens_BTD: Any) -> None:
        self.last_hidden_state = to_numpy(tokens_BTD)


@contextmanager
def cross_attention_top_keys(
    config: PegasusXConfig, num_tokens: int, num_steps: int, counts: KeyCounts
) -> Iterator[TopKeys]:
    """Keep the strongest keys of each decode step in the text while one call of the model computes all steps.

    Args:
        config: of the model.
        num_tokens: T.
        num_steps: L.
        counts: how many keys are kept of a query.

    Returns:
        A context manager that returns the keys, by decoder layer and step.
    """
    top_keys = TopKeys(config.decoder_layers, num_steps, num_tokens, counts.text)

    def on_probs(name: str, probs: Any) -> None:
        (layer,) = numbers_in(name)
        top_keys.add(layer, 0, to_numpy(probs)[0])

    with listen(on_probs, "decoder.layers.*.encoder_attn.probs"):
        yield top_keys


def globals_share(probs_HLX: np.ndarray, num_globals: int) -> np.ndarray:
    """Sum the weights of the global tokens, the first keys, average over heads and quantize (L,)."""
    return quantize(probs_HLX[:, :, :num_globals].sum(axis=2).mean(axis=0))
