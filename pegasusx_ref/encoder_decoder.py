"""Encoder and decoder in one model, without a head: arguments checked, arrays taken to the device and back."""

from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref import inputs
from pegasusx_ref.attention import causal_mask
from pegasusx_ref.backend import Array
from pegasusx_ref.decoder import DecoderCache, decoder
from pegasusx_ref.encoder import encoder
from pegasusx_ref.errors import InputError
from pegasusx_ref.layers import embed
from pegasusx_ref.outputs import EncoderOutput, Recorded, recording
from pegasusx_ref.pretrained import Pretrained
from pegasusx_ref.tracing import scope, tap


class Embedded(NamedTuple):
    """A source that is checked and on the device, ready for the encoder."""

    embeds_BTD: Array
    mask_BT: Array | None


class Encoded(NamedTuple):
    """A source after the encoder."""

    tokens_BTD: Array
    mask_BT: Array | None
    globals_BGD: Array | None = None  # the caller's encoder outputs come without


class EncoderDecoder(Pretrained):
    """What both public models have in common."""

    def encode(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        inputs_embeds: Any = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Run the encoder alone, for `encoder_outputs=` of later calls.

        Args:
            input_ids: token ids (B, T), an array or lists.
            attention_mask: 1 for a token, 0 for padding (B, T); all tokens where None.
            inputs_embeds: scaled token embeddings without positions (B, T, D), instead of input_ids.
            output_hidden_states: give the input of every layer too.
            output_attentions: give the attention probabilities too.

        Raises:
            InputError: ids, mask or embeddings that the model cannot take.
        """
        source = self._embedded(input_ids, attention_mask, inputs_embeds)
        with recording(output_hidden_states, output_attentions) as trace:
            encoded = self._encoded(source)
        return self._encoder_output(encoded, Recorded(self.ops, trace), output_hidden_states, output_attentions)

    def _embedded(self, input_ids: Any, attention_mask: Any, inputs_embeds: Any) -> Embedded:
        embeds_BTD = self._embed("encoder", input_ids=input_ids, inputs_embeds=inputs_embeds)
        return Embedded(embeds_BTD, self._mask("attention_mask", attention_mask, embeds_BTD.shape[:2]))

    def _source(
        self, input_ids: Any, attention_mask: Any, inputs_embeds: Any, encoder_outputs: Any
    ) -> Embedded | Encoded:
        inputs.exactly_one(input_ids=input_ids, inputs_embeds=inputs_embeds, encoder_outputs=encoder_outputs)
        if encoder_outputs is None:
            return self._embedded(input_ids, attention_mask, inputs_embeds)
        states = inputs.encoder_states(encoder_outputs)
        tokens_BTD = self.ops.asarray(inputs.hidden_states("encoder_outputs", states, self.config.d_model))
        if attention_mask is None:
            attention_mask = getattr(encoder_outputs, "attention_mask", None)
        return Encoded(tokens_BTD, self._mask("attention_mask", attention_mask, tokens_BTD.shape[:2]))

    def _encoded(self, source: Embedded | Encoded) -> Encoded:
        if isinstance(source, Encoded):
            return source
        weights = self.weights.at("encoder")
        tokens_BTD, globals_BGD = encoder(self.ops, weights, self.config, source.embeds_BTD, source.mask_BT)
        return Encoded(tokens_BTD, source.mask_BT, globals_BGD)

    def _placed(self, embeds_BLD: Array, start: int) -> Array:
        with scope("decoder"):
            return tap("embeddings", self.ops.add_positions(embeds_BLD, start))

    def _decode(
        self, source: Encoded, x_BLD: Array, visible: Array | None, past: DecoderCache | None
    ) -> tuple[Array, DecoderCache]:
        weights = self.weights.at("decoder")
        return decoder(self.ops, weights, self.config, x_BLD, visible, source.tokens_BTD, source.mask_BT, past)

    def _visible_targets(self, attention_mask: Any, B: int, L: int, past_length: int) -> Array | None:
        """Combine causality and the target's mask, on the host; None where each new token may see all."""
        X = past_length + L
        mask_BX = inputs.mask("decoder_attention_mask", attention_mask, (B, X))
        if mask_BX is None:
            return None if L == 1 else self.ops.asarray(causal_mask(L, X))
        return self.ops.asarray(causal_mask(L, X) & mask_BX[:, None])

    def _check_past(self, past: DecoderCache, states_BTD: Array) -> None:
        if not isinstance(past, DecoderCache):
            raise InputError(
                f"past_key_values is a {type(past).__name__}: pass on the past_key_values of an earlier output"
            )
        B, T, D = states_BTD.shape
        heads = self.config.decoder_attention_heads
        expected = {((B, heads, T, D // heads), str(states_BTD.dtype))}
        cached = {(tuple(layer.cross_k_BHTF.shape), str(layer.cross_k_BHTF.dtype)) for layer in past.layers}
        if len(past.layers) != self.config.decoder_layers or cached - expected:
            raise InputError(
                f"past_key_values holds {len(past.layers)} layers of cross-attention keys {sorted(cached)}, but this "
                f"call needs {self.config.decoder_layers} of {sorted(expected)} (batch, heads, source tokens, features "
                "a head): it belongs to another source or model"
            )

    def _embed(self, side: str, **given: Any) -> Array:
        """Embed ids, or check embeddings: `given` holds the arguments for both, ids first."""
        inputs.exactly_one(**given)
        (ids_name, ids), (embeds_name, embeds) = given.items()
        if ids is None:
            return self.ops.asarray(inputs.hidden_states(embeds_name, embeds, self.config.d_model))
        ids_BT = self.ops.asarray(inputs.token_ids(ids_name, ids, self.config.vocab_size))
        with scope(side):
            return embed(self.ops, self.weights.at(side), self.config, ids_BT)

    def _mask(self, name: str, values: Any, shape: tuple[int, int]) -> Array | None:
        mask_BX = inputs.mask(name, values, shape)
        return None if mask_BX is None else self.ops.asarray(mask_BX)

    def _encoder_output(
        self, source: Encoded, recorded: Recorded, hidden_states: bool, attentions: bool
    ) -> EncoderOutput:
        to_numpy, layers = self.ops.to_numpy, self.config.encoder_layers
        output = EncoderOutput(
            last_hidden_state=to_numpy(source.tokens_BTD),
            attention_mask=None if source.mask_BT is None else to_numpy(source.mask_BT),
        )
        if source.globals_BGD is None:
            return output
        output.global_hidden_state = to_numpy(source.globals_BGD)
        if hidden_states:
            tokens = recorded.layers("encoder.layers.{}.tokens.input", layers)
            globals_ = recorded.layers("encoder.layers.{}.globals.input", layers)
            output.hidden_states = (*tokens, output.last_hidden_state)
            output.global_hidden_states = (*globals_, output.global_hidden_state)
        if attentions:
            output.attentions = recorded.encoder_attentions(layers)
        return output

    def _forward(
        self,
        *,
        input_ids: Any,
        attention_mask: Any,
        decoder_input_ids: Any,
        decoder_attention_mask: Any,
        inputs_embeds: Any,
        decoder_inputs_embeds: Any,
        encoder_outputs: Any,
        past_key_values: DecoderCache | None,
        use_cache: bool | None,
        output_hidden_states: bool,
        output_attentions: bool,
        labels: np.ndarray | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Run encoder and decoder.

        Returns:
            The decoder's last hidden state (B, L, D) on the device, and the output fields that both models share.
        """
        # Everything is checked before the encoder runs: an error should not cost minutes.
        embeds_BLD = self._embed(
            "decoder", decoder_input_ids=decoder_input_ids, decoder_inputs_embeds=decoder_inputs_embeds
        )
        B, L, _ = embeds_BLD.shape
        if labels is not None and labels.shape != (B, L):
            raise InputError(f"labels have shape {labels.shape}, but the target {(B, L)}")
        source = self._source(input_ids, attention_mask, inputs_embeds, encoder_outputs)
        inputs.same_batch(encoder=source[0].shape[0], decoder=B)
        if past_key_values is not None:
            self._check_past(past_key_values, source[0])
        past_length = 0 if past_key_values is None else past_key_values.length
        visible = self._visible_targets(decoder_attention_mask, B, L, past_length)

        with recording(output_hidden_states, output_attentions) as trace:
            source = self._encoded(source)
            x_BLD = self._placed(embeds_BLD, past_length)
            hidden_BLD, cache = self._decode(source, x_BLD, visible, past_key_values)

        recorded, layers = Recorded(self.ops, trace), self.config.decoder_layers
        if isinstance(encoder_outputs, EncoderOutput):
            encoded = encoder_outputs
        else:
            encoded = self._encoder_output(source, recorded, output_hidden_states, output_attentions)
        output: dict[str, Any] = {
            "encoder_last_hidden_state": encoded.last_hidden_state,
            "encoder_hidden_states": encoded.hidden_states,
            "encoder_attentions": encoded.attentions,
        }
        if self.config.use_cache if use_cache is None else use_cache:
            output["past_key_values"] = cache
        if output_hidden_states:
            states = recorded.layers("decoder.layers.{}.input", layers)
            output["decoder_hidden_states"] = (*states, self.ops.to_numpy(hidden_BLD))
        if output_attentions:
            output["decoder_attentions"] = tuple(recorded.layers("decoder.layers.{}.self_attn.probs", layers))
            output["cross_attentions"] = tuple(recorded.layers("decoder.layers.{}.encoder_attn.probs", layers))
        return hidden_BLD, output
