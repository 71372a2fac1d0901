"""The two models that users call: ids in, hidden states, logits or generated ids out."""

from typing import Any

from pegasusx_ref import inputs
from pegasusx_ref.decoder import DecoderCache
from pegasusx_ref.encoder_decoder import EncoderDecoder
from pegasusx_ref.errors import InputError
from pegasusx_ref.generator import Generator
from pegasusx_ref.head import IGNORED_LABEL, shift_tokens_right
from pegasusx_ref.outputs import Seq2SeqLMOutput, Seq2SeqModelOutput
from pegasusx_ref.tracing import tap


class PegasusXModel(EncoderDecoder):
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
            encoder_outputs: what `encode` returned, a tuple, or hidden states (B, T, D), instead of input_ids.
            past_key_values: the cache of an earlier call, for the target tokens before these.
            use_cache: give past_key_values; as the configuration says where None.
            output_hidden_states: give the input of every layer too.
            output_attentions: give the attention probabilities too.

        Raises:
            InputError: arguments that the model cannot take, or that do not fit each other.

        Source: HF `PegasusXModel.forward`.
        """
        hidden_BLD, output = self._forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return Seq2SeqModelOutput(last_hidden_state=self.ops.to_numpy(hidden_BLD), **output)


class PegasusXForConditionalGeneration(Generator):
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
            use_cache = bool(use_cache)
        hidden_BLD, output = self._forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            labels=labels,
        )
        logits_BLV = tap("lm_head", self._project(hidden_BLD))
        loss = None
        if labels is not None:
            loss = float(self.ops.cross_entropy(logits_BLV, self.ops.asarray(labels)))
        return Seq2SeqLMOutput(loss=loss, logits=self.ops.to_numpy(logits_BLV), **output)
