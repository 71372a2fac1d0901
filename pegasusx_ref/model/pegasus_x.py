"""The two models that users call: ids in, hidden states, logits or generated ids out."""

import inspect
import warnings
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from secrets import randbits
from typing import Any

import numpy as np

from pegasusx_ref.errors import InputError, NumericsError, shown
from pegasusx_ref.generation import GenerationConfig, NextLogits, Streamer, check_streamer, search
from pegasusx_ref.golden.head import IGNORED_LABEL, shift_tokens_right
from pegasusx_ref.model import inputs
from pegasusx_ref.model.decode_step import DynamicDecodeStep, StaticDecodeStep
from pegasusx_ref.model.forward import check_source, forward, run_encoder
from pegasusx_ref.model.kv_cache import DecoderCache
from pegasusx_ref.model.layers import lm_head
from pegasusx_ref.model.not_finite import explained
from pegasusx_ref.model.outputs import GenerateOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from pegasusx_ref.model.pretrained import PegasusXPreTrainedModel
from pegasusx_ref.tracing import TRACE_POINTS, tap, wanted

CACHES = ("dynamic", "static")


class PegasusXModel(PegasusXPreTrainedModel):
    """PEGASUS-X without a head: the decoder's hidden states are the result."""

    has_head = False

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        *,
        inputs_embeds: Any = None,
        decoder_inputs_embeds: Any = None,
        encoder_outputs: Any = None,
        past_key_values: DecoderCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Seq2SeqModelOutput:
        """Run encoder and decoder.

        Args:
            input_ids: source token ids (B, T), an array or lists.
            attention_mask: 1 for a source token, 0 for padding (B, T); all tokens where None.
            decoder_input_ids: target token ids (B, L), the start token first; with past_key_values the new ones only.
            decoder_attention_mask: 1 for a target token, 0 for padding (B, past + L); all tokens where None.
            inputs_embeds: scaled source embeddings without positions (B, T, D), instead of input_ids.
            decoder_inputs_embeds: scaled target embeddings without positions (B, L, D), instead of decoder_input_ids.
            encoder_outputs: the output of `encode`, a tuple, or hidden states (B, T, D), instead of input_ids.
            past_key_values: the cache of an earlier call, for the target tokens before these.
            use_cache: whether to return past_key_values; the configuration's value where None.
            output_hidden_states: whether to return the input of every layer too.
            output_attentions: whether to return the attention probabilities too.

        Raises:
            InputError: arguments that the model cannot take, or that do not fit each other.

        Source: HF `PegasusXModel.forward`.
        """
        hidden_BLD, output = forward(
            self.ops,
            self.weights,
            self.config,
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return Seq2SeqModelOutput(last_hidden_state=self.ops.to_numpy(hidden_BLD), **output)


class PegasusXForConditionalGeneration(PegasusXPreTrainedModel):
    """PEGASUS-X with its language-model head: logits, loss, and `generate`."""

    has_head = True

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        *,
        labels: Any = None,
        inputs_embeds: Any = None,
        decoder_inputs_embeds: Any = None,
        encoder_outputs: Any = None,
        past_key_values: DecoderCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Seq2SeqLMOutput:
        """Run encoder, decoder and head.

        Args:
            input_ids: see `PegasusXModel`.
            attention_mask: see `PegasusXModel`.
            decoder_input_ids: see `PegasusXModel`; made from labels where None.
            decoder_attention_mask: see `PegasusXModel`.
            labels: token ids to score (B, L), -100 where no loss is taken; padding counts unless it is -100.
            inputs_embeds: see `PegasusXModel`.
            decoder_inputs_embeds: see `PegasusXModel`.
            encoder_outputs: see `PegasusXModel`.
            past_key_values: see `PegasusXModel`.
            use_cache: see `PegasusXModel`; with labels False where None.
            output_hidden_states: see `PegasusXModel`.
            output_attentions: see `PegasusXModel`.

        Raises:
            InputError: arguments that the model cannot take, or that do not fit each other.

        Source: HF `PegasusXForConditionalGeneration.forward`.
        """
        if labels is not None:
            labels = inputs.token_ids("labels", labels, self.config.vocab_size, ignored_labels=True)
            if (labels == IGNORED_LABEL).all():
                raise InputError(f"labels are {IGNORED_LABEL} everywhere: there is no loss without a label")
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
                decoder_input_ids = shift_tokens_right(labels, pad, start)
            use_cache = inputs.flag("use_cache", use_cache)
        hidden_BLD, output = forward(
            self.ops,
            self.weights,
            self.config,
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            labels=labels,
        )
        logits_BLV = tap("lm_head", lm_head(self.ops, self.weights, hidden_BLD))
        loss = None
        if labels is not None:
            loss = float(self.ops.cross_entropy(logits_BLV, self.ops.asarray(labels)))
        return Seq2SeqLMOutput(loss=loss, logits=self.ops.to_numpy(logits_BLV), **output)

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        inputs_embeds: Any = None,
        encoder_outputs: Any = None,
        seed: int | None = None,
        return_dict_in_generate: bool = False,
        streamer: Streamer | None = None,
        cache_implementation: str | None = None,
        **settings: Any,
    ) -> Any:
        """Generate a text for each source: greedily, by beam search, or by sampling.

        Args:
            input_ids: source token ids (B, T), an array or lists.
            attention_mask: 1 for a source token, 0 for padding (B, T); all tokens where None.
            inputs_embeds: see `PegasusXModel`.
            encoder_outputs: see `PegasusXModel`.
            seed: of the random numbers; the same seed generates the same texts.
            return_dict_in_generate: return a `GenerateOutput` with the scores of beam search.
            streamer: has `put`, which gets the start tokens and then the newest token of every row (B R,), and `end`;
                transformers' streamers qualify. With one beam only.
            cache_implementation: "dynamic": caches grow with the text; "static": caches have a fixed size, doubled when
                they are full, so that the backend can compile the step; None: whichever is faster on the backend. The
                tokens are the same.
            settings: the attributes of `GenerationConfig`: max_new_tokens, num_beams, length_penalty, …; a setting that
                is missing or None is taken from generation_config.json, without that file from config.json.

        Returns:
            int64 ids (B R, L), R = num_return_sequences, the start token first, rows that end early filled up.

        Raises:
            InputError: arguments that the model cannot take, or that do not fit each other.
            ConfigError: an invalid setting.
            NumericsError: logits that are not finite; the message names the first token, the first layer, the remedy.
            TypeError: a name that is not a setting.
        """
        config, seed = self._checked_settings(settings, streamer), inputs.random_seed(seed)
        seed = randbits(128) if seed is None else seed  # so that a run can be repeated to explain its error
        is_static, is_traced = self._cache_kind(cache_implementation)
        as_output = inputs.flag("return_dict_in_generate", return_dict_in_generate)
        source = (input_ids, attention_mask, inputs_embeds, encoder_outputs)
        search_with = partial(self._search, source, config, seed)
        try:
            ids, scores = search_with(streamer, is_static, not is_traced)
        except NumericsError as error:
            raise explained(error, self.ops, self._tensors, search_with) from None
        return GenerateOutput(sequences=ids, sequences_scores=scores) if as_output else ids

    @np.errstate(over="ignore", invalid="ignore")  # an overflow that matters is an error of the search
    def _search(
        self,
        arguments: tuple[Any, Any, Any, Any],
        config: GenerationConfig,
        seed: int,
        streamer: Streamer | None = None,
        is_static: bool = False,
        compiled: bool = False,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Encode the source, given by the arguments of `check_source`, and search for its texts."""
        source = check_source(self.ops, self.config, *arguments)
        if (size := config.encoder_no_repeat_ngram_size) and source.ids_BT is None:
            raise InputError(
                f"encoder_no_repeat_ngram_size={size} compares with the source: pass input_ids, or set it to 0"
            )
        model = (self.ops, self.weights, self.config)
        encoded = run_encoder(*model, source)
        source_ids = source.ids_BT
        del source  # embeddings of a long input are large
        if is_static:
            max_tokens = config.lengths()[1] - 1
            next_logits: NextLogits = StaticDecodeStep(*model, encoded, max_tokens, compiled)
        else:
            next_logits = DynamicDecodeStep(*model, encoded)
        return search(next_logits, encoded.tokens_BTD.shape[0], config, source_ids, seed, streamer, self.ops)

    def _checked_settings(self, settings: dict[str, Any], streamer: Streamer | None) -> GenerationConfig:
        """Merge the settings with the checkpoint's, check them, and warn of those that have no effect."""
        names = {f.name for f in fields(GenerationConfig)} - {"extra"}
        for name in settings.keys() - names:
            known = names | set(inspect.signature(self.generate).parameters) - {"settings"}
            hint = "".join(f"; did you mean {n!r}?" for n in get_close_matches(name, known, 1, cutoff=0.8))
            raise TypeError(f"generate() got an unexpected keyword argument {name!r}{hint}")
        config = self.generation_config.updated(**settings)
        config.check(self.config.vocab_size)
        if ignored := config.unsupported():
            warnings.warn(f"ignoring unsupported settings of the checkpoint: {ignored}", stacklevel=3)
        shortest, longest = config.lengths()
        if shortest > longest:
            warnings.warn(
                f"the minimum length of {shortest} tokens exceeds the maximum of {longest} (both count the start "
                "token): the maximum applies",
                stacklevel=3,
            )
        if streamer is not None:
            check_streamer(streamer, config)
        return config

    def _cache_kind(self, cache_implementation: str | None) -> tuple[bool, bool]:
        """Decide whether the cache is static, and tell whether a listener wants tensors from inside a decode step."""
        if not isinstance(cache_implementation, str | None) or cache_implementation not in (None, *CACHES):
            raise InputError(
                f"cache_implementation={shown(cache_implementation)} is unknown: pass one of {', '.join(CACHES)}"
            )
        inside = [name for name in TRACE_POINTS if name.startswith("decoder.layer")]
        is_traced = any(wanted(name.format(i=i)) for name in inside for i in range(self.config.decoder_layers))
        if cache_implementation is None:
            return self.ops.compiles and not is_traced, is_traced
        return cache_implementation == "static", is_traced
