"""Text generation with a model: settings checked, the encoder run once, the decoder step by step over its caches."""

import warnings
from typing import Any

import numpy as np

from pegasusx_ref import inputs
from pegasusx_ref.backend import Array
from pegasusx_ref.decoder import DecoderCache
from pegasusx_ref.encoder_decoder import Encoded, EncoderDecoder
from pegasusx_ref.errors import InputError
from pegasusx_ref.generation import GenerationConfig, NextLogits, Streamer, search
from pegasusx_ref.outputs import GenerateOutput
from pegasusx_ref.stepping import FixedSteps, GrowingSteps
from pegasusx_ref.trace_points import TRACE_POINTS
from pegasusx_ref.tracing import wanted

CACHES = ("dynamic", "static")


class Generator(EncoderDecoder):
    """A model with a head, which can write."""

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        inputs_embeds: Any = None,
        encoder_outputs: Any = None,
        max_length: int | None = None,
        min_length: int | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        num_beams: int | None = None,
        num_return_sequences: int | None = None,
        length_penalty: float | None = None,
        early_stopping: bool | str | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        repetition_penalty: float | None = None,
        no_repeat_ngram_size: int | None = None,
        encoder_no_repeat_ngram_size: int | None = None,
        decoder_start_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        forced_eos_token_id: int | list[int] | None = None,
        return_dict_in_generate: bool = False,
        streamer: Streamer | None = None,
        cache_implementation: str | None = None,
    ) -> Any:
        """Write a text for each source: greedily, by beam search, or by sampling.

        What is None comes from generation_config.json, or from config.json where there is none. What the settings mean
        is in `GenerationConfig`.

        Args:
            input_ids: source token ids (B, T), an array or lists.
            attention_mask: 1 for a source token, 0 for padding (B, T); all tokens where None.
            inputs_embeds: see `PegasusXModel`.
            encoder_outputs: see `PegasusXModel`.
            max_length: tokens at the most, the start token counted in.
            min_length: tokens at the least, the start token counted in.
            max_new_tokens: tokens at the most, the start token not counted; goes before max_length; 20 where neither
                is set.
            min_new_tokens: tokens at the least, the start token not counted; goes before min_length.
            num_beams: texts followed at a time; 1 is greedy.
            num_return_sequences: texts returned for each source, R.
            length_penalty: see `GenerationConfig`.
            early_stopping: see `GenerationConfig`.
            do_sample: draw tokens at random.
            temperature: see `GenerationConfig`.
            top_k: see `GenerationConfig`.
            top_p: see `GenerationConfig`.
            seed: of the random numbers; the same seed writes the same texts.
            repetition_penalty: see `GenerationConfig`.
            no_repeat_ngram_size: see `GenerationConfig`.
            encoder_no_repeat_ngram_size: see `GenerationConfig`.
            decoder_start_token_id: see `GenerationConfig`.
            eos_token_id: see `GenerationConfig`.
            pad_token_id: see `GenerationConfig`.
            forced_eos_token_id: see `GenerationConfig`.
            return_dict_in_generate: return a `GenerateOutput` with the scores of beam search.
            streamer: has `put`, which gets the start tokens and then the newest token of every row (B R,), and `end`;
                transformers' streamers serve. With one beam only.
            cache_implementation: "dynamic": caches grow with the text; "static": they have a fixed size, doubled where
                the text outgrows it, so that the backend can compile the step; None: what pays on the backend. The
                tokens are the same.

        Returns:
            int64 ids (B R, L), the start token first, rows that end early filled up.

        Raises:
            InputError: arguments that the model cannot take, or that do not fit each other.
            ConfigError: settings that describe no decoding.
        """
        config = self.generation_config.updated(
            max_length=max_length,
            min_length=min_length,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            num_beams=num_beams,
            num_return_sequences=num_return_sequences,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            encoder_no_repeat_ngram_size=encoder_no_repeat_ngram_size,
            decoder_start_token_id=decoder_start_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            forced_eos_token_id=forced_eos_token_id,
        )
        config.check(self.config.vocab_size)
        if settings := config.not_followed():
            warnings.warn(f"the checkpoint asks for {settings}, which is not followed here", stacklevel=2)
        shortest, longest = config.lengths()
        if shortest > longest:
            warnings.warn(
                f"at least {shortest} tokens are asked for, but at most {longest}, the start token counted in: "
                "the greatest length decides",
                stacklevel=2,
            )
        if streamer is not None:
            _check_streamer(streamer, config)
        source_ids = None
        if config.encoder_no_repeat_ngram_size:
            if input_ids is None:
                raise InputError(
                    f"encoder_no_repeat_ngram_size={config.encoder_no_repeat_ngram_size} compares with the source: "
                    "pass input_ids, or set it to 0"
                )
            source_ids = inputs.token_ids("input_ids", input_ids, self.config.vocab_size)
        watched = self._is_watched()
        cache = self._cache_for(cache_implementation, watched)
        source = self._encoded(self._source(input_ids, attention_mask, inputs_embeds, encoder_outputs))
        batch_size = source.tokens_BTD.shape[0]
        next_logits = self._next_logits(source, longest, cache, watched)
        ids, scores = search(next_logits, batch_size, config, source_ids, seed, streamer, self.ops)
        return GenerateOutput(sequences=ids, sequences_scores=scores) if return_dict_in_generate else ids

    def _is_watched(self) -> bool:
        """Tell whether anyone listens to what a step does inside."""
        inside = [name for name in TRACE_POINTS if name.startswith("decoder.layer")]
        return any(wanted(name.format(i=i)) for name in inside for i in range(self.config.decoder_layers))

    def _cache_for(self, cache_implementation: str | None, watched: bool) -> str:
        if cache_implementation not in (None, *CACHES):
            raise InputError(
                f"cache_implementation={cache_implementation!r} is not known here: pass one of {', '.join(CACHES)}"
            )
        if cache_implementation is None:
            return "static" if self.ops.compiles and not watched else "dynamic"
        return cache_implementation

    def _next_logits(self, source: Encoded, longest: int, cache_implementation: str, watched: bool) -> NextLogits:
        """Make a decoder that remembers the tokens it was given: L rows a source, all at the same position."""

        def embed(ids_BL: np.ndarray, position: int) -> Array:
            B, L = ids_BL.shape
            embeds = self._embed("decoder", decoder_input_ids=ids_BL.reshape(B * L, 1), decoder_inputs_embeds=None)
            return self._placed(embeds, position).reshape(B, L, -1)

        def decode(x_BLD: Array, visible: Array | None, past: DecoderCache | None) -> tuple[Array, DecoderCache]:
            hidden_BLD, cache = self._decode(source, x_BLD, visible, past)
            return self._project(hidden_BLD), cache

        if cache_implementation == "static":
            return FixedSteps(self.ops, embed, decode, longest - 1, compiled=not watched)
        return GrowingSteps(self.ops, embed, decode)

    def _project(self, hidden_BLD: Array) -> Array:
        return self.ops.linear_wide(hidden_BLD, self.weights["lm_head.weight"])


def _check_streamer(streamer: Any, config: GenerationConfig) -> None:
    if not isinstance(streamer, Streamer):
        raise InputError(f"streamer={streamer!r} needs the methods put(ids) and end(), as in transformers")
    if config.num_beams > 1:
        raise InputError(
            f"a streamer takes tokens as they are chosen, but {config.num_beams} beams may still change all of them: "
            "pass num_beams=1"
        )
