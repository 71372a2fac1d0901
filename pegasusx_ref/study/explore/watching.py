"""Listeners that keep what the page shows of attention, and let the tensors go."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.study.explore.sampling import Counts, Sample, quantized
from pegasusx_ref.tracing import listen
from pegasusx_ref.tracing.trace_points import numbers_in


class EncoderWatch:
    """What tokens and global tokens attend to, in every encoder layer.

    Args:
        config: of the model.
        num_tokens: T.
        counts: how many keys are kept of a query.

    Attributes:
        blocks: the blocks of every layer.
        in_block: what each token weighs most in its block; keys count from the block's start.
        on_globals: what each token weighs most among the global tokens.
        globals_share: the weight of all global tokens for each token (layers, T), quantized.
        by_globals: what each global token weighs most in the text.
        globals_own_share: the weight of all global tokens for each global token (layers, G), quantized.
        last_hidden_state: what the decoder reads (1, T, D).
    """

    last_hidden_state: Any

    def __init__(self, config: PegasusXConfig, num_tokens: int, counts: Counts) -> None:
        layers, G = config.encoder_layers, config.num_global_tokens
        self.blocks = [layer_blocks(config, num_tokens, i) for i in range(layers)]
        self.in_block = Sample(layers, num_tokens, config.block_size, counts.block)
        self.on_globals = Sample(layers, num_tokens, G, counts.globals)
        self.globals_share = np.zeros((layers, num_tokens), np.uint8)
        self.by_globals = Sample(layers, G, num_tokens, counts.text)
        self.globals_own_share = np.zeros((layers, G), np.uint8)
        self._num_globals = G

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Watch the encoder inside the block; of several texts the first."""
        with (
            listen(self._see_block, "encoder.layers.*.self_attn.local.*.probs"),
            listen(self._see_globals, "encoder.layers.*.self_attn.global.probs"),
            listen(self._see_output, "encoder.layer_norm"),
        ):
            yield

    def _see_block(self, name: str, probs: Any) -> None:
        layer, block = numbers_in(name)
        start, stop = self.blocks[layer][block]
        probs_HSX, G = to_numpy(probs)[0], self._num_globals
        self.on_globals.add(layer, start, probs_HSX[:, :, :G])
        self.in_block.add(layer, start, probs_HSX[:, :, G:])
        self.globals_share[layer, start:stop] = share(probs_HSX, G)

    def _see_globals(self, name: str, probs: Any) -> None:
        (layer,) = numbers_in(name)
        probs_HGX, G = to_numpy(probs)[0], self._num_globals
        self.by_globals.add(layer, 0, probs_HGX[:, :, G:])
        self.globals_own_share[layer] = share(probs_HGX, G)

    def _see_output(self, _: str, tokens_BTD: Any) -> None:
        self.last_hidden_state = to_numpy(tokens_BTD)


class CrossWatch:
    """What each step of the decoder attends to in the text, in every decoder layer.

    Args:
        config: of the model.
        num_tokens: T.
        num_steps: L.
        counts: how many keys are kept of a query.

    Attributes:
        in_text: what each step weighs most in the text.
    """

    def __init__(self, config: PegasusXConfig, num_tokens: int, num_steps: int, counts: Counts) -> None:
        self.in_text = Sample(config.decoder_layers, num_steps, num_tokens, counts.text)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Watch cross-attention inside the block, in a call of the model with all steps at once."""
        with listen(self._see, "decoder.layers.*.encoder_attn.probs"):
            yield

    def _see(self, name: str, probs: Any) -> None:
        (layer,) = numbers_in(name)
        self.in_text.add(layer, 0, to_numpy(probs)[0])


def share(probs_HLX: np.ndarray, num_globals: int) -> np.ndarray:
    """Add up the weights of the global tokens, the first keys, and average over heads; quantized (L,)."""
    return quantized(probs_HLX[:, :, :num_globals].sum(axis=2).mean(axis=0))
