"""The reference's decoder for many searches over the same sources: each prefix is decoded once. [spec 16]"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.generation import GenerationConfig
from pegasusx_ref.generation.search import processors_for
from pegasusx_ref.golden.head import log_softmax
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.decoder import decoder
from pegasusx_ref.model.encoder import Encoded
from pegasusx_ref.model.forward import check_source, run_encoder
from pegasusx_ref.model.kv_cache import DecoderCache
from pegasusx_ref.model.layers import embed, lm_head
from pegasusx_ref.verification.generation.texts import Text
from pegasusx_ref.verification.verifier import tensors_on_host

MAX_KEPT = 2**25  # logits of a source that are kept
Prefix = tuple[int, ...]  # the start token, and the tokens after it


class Reference:
    """The model in float64, and its sources.

    Args:
        model: with the candidate's weights.
        input_ids: (B, T).
        attention_mask: (B, T) or None.
    """

    def __init__(self, model: PegasusXForConditionalGeneration, input_ids: Any, attention_mask: Any) -> None:
        ops = get_backend("numpy", dtype="float64")
        self.model = PegasusXForConditionalGeneration(model.config, tensors_on_host(model), ops)
        source = check_source(ops, model.config, input_ids, attention_mask, None)
        assert source.ids_BT is not None
        self.source_ids, self.mask_BT = source.ids_BT, source.mask_BT
        self.encoded = run_encoder(ops, self.model.weights, model.config, source)
        self.decoders = [PrefixDecoder(self.model, source_of(self.encoded, b)) for b in range(len(self.source_ids))]

    def logits(self, prefixes: Sequence[Sequence[Prefix]]) -> np.ndarray:
        """Compute the next logits (B, L, V) of L prefixes of each source."""
        return np.stack([decoder.logits(rows) for decoder, rows in zip(self.decoders, prefixes, strict=True)])

    def scores(self, source: int, prefix: Prefix, config: GenerationConfig) -> np.ndarray:
        """Compute the processed scores (V,) of the token after a prefix: logits, with beams log-probabilities."""
        scores_1V = self.decoders[source].logits([prefix]).astype(np.float32)
        if config.num_beams > 1:
            scores_1V = log_softmax(scores_1V)
        for process in processors_for(config, self.source_ids[source : source + 1]):
            scores_1V = process(np.array([prefix]), scores_1V)
        scores_V: np.ndarray = scores_1V[0]
        return scores_V

    def total(self, source: int, text: Text, config: GenerationConfig) -> float:
        """Sum the scores of a text's tokens, as beam search does."""
        prefix = (config.start_token_id, *text)
        return sum(float(self.scores(source, prefix[:n], config)[prefix[n]]) for n in range(1, len(prefix)))


def source_of(encoded: Encoded, number: int) -> Encoded:
    """Select one source of a batch."""
    mask_BT = encoded.mask_BT
    here = slice(number, number + 1)
    return Encoded(encoded.tokens_BTD[here], None, None if mask_BT is None else mask_BT[here])


class PrefixDecoder:
    """The decoder over prefixes of one source, which share their beginnings in one cache.

    Args:
        model: in float64.
        source: the encoder's output, of one source.
    """

    def __init__(self, model: PegasusXForConditionalGeneration, source: Encoded) -> None:
        self._model, self._source = model, source
        self._cache: DecoderCache | None = None
        self._paths: dict[Prefix, list[int]] = {(): []}  # where the keys of a prefix's tokens are
        self._hidden: dict[Prefix, np.ndarray] = {}
        self._logits: dict[Prefix, np.ndarray] = {}

    def logits(self, prefixes: Sequence[Prefix]) -> np.ndarray:
        """Return the next logits (L, V)."""
        if new := [prefix for prefix in dict.fromkeys(prefixes) if prefix not in self._logits]:
            if len(self._logits) * self._model.config.vocab_size > MAX_KEPT:
                self._logits, new = {}, list(dict.fromkeys(prefixes))
            logits_1LV = lm_head(self._model.ops, self._model.weights, self._hidden_states(new)[None])
            self._logits |= zip(new, logits_1LV[0], strict=True)
        return np.stack([self._logits[prefix] for prefix in prefixes])

    def _hidden_states(self, prefixes: Sequence[Prefix]) -> np.ndarray:
        """Return the decoder's hidden states after the newest tokens (L, D)."""
        for length in range(1, max(map(len, prefixes)) + 1):
            begun = dict.fromkeys(prefix[:length] for prefix in prefixes if len(prefix) >= length)
            if new := [prefix for prefix in begun if prefix not in self._paths]:
                self._decode(new, length)
        return np.stack([self._hidden[prefix] for prefix in prefixes])

    def _decode(self, new: list[Prefix], length: int) -> None:
        ops, weights, config = self._model.ops, self._model.weights, self._model.config
        X, L = len(self._hidden), len(new)
        visible = np.zeros((1, L, X + L), dtype=bool)
        for row, prefix in enumerate(new):
            self._paths[prefix] = [*self._paths[prefix[:-1]], X + row]
            visible[0, row, self._paths[prefix]] = True
        ids_L1 = np.array([[prefix[-1]] for prefix in new])
        x_1LD = embed(ops, weights, config, "decoder", ids_L1, length - 1).reshape(1, L, -1)
        source = self._source
        hidden_1LD, self._cache = decoder(
            ops, weights.at("decoder"), config, x_1LD, visible, source.tokens_BTD, source.mask_BT, self._cache
        )
        self._hidden |= zip(new, hidden_1LD[0], strict=True)
