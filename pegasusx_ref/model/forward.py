"""One run of encoder and decoder: arguments are checked before anything is computed, outputs come from the trace."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.errors import InputError
from pegasusx_ref.golden.attention import causal_mask
from pegasusx_ref.golden.head import shift_tokens_right
from pegasusx_ref.model import inputs
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.decoder import decoder
from pegasusx_ref.model.encoder import Encoded, encoder
from pegasusx_ref.model.kv_cache import DecoderCache
from pegasusx_ref.model.layers import embed
from pegasusx_ref.model.outputs import EncoderOutput, Recorded, WantedOutputs
from pegasusx_ref.model.weights import Weights


class Source(NamedTuple):
    """A checked source on the device, in one of three forms."""

    tokens: Array  # token ids (B, T); scaled embeddings without positions, or the encoder's output (B, T, D)
    mask_BT: Array | None
    ids_BT: np.ndarray | None = None  # the token ids on the host, if ids were given
    outputs: EncoderOutput | None = None  # the encoder's, if the caller passed them


def check_source(
    ops: Backend,
    config: PegasusXConfig,
    input_ids: Any,
    attention_mask: Any,
    inputs_embeds: Any,
    encoder_outputs: Any = None,
) -> Source:
    """Check the source, given as ids, embeddings or encoder outputs, and bring it to the device.

    Raises:
        InputError: none or several of them are given, or one is invalid.
    """
    inputs.exactly_one(input_ids=input_ids, inputs_embeds=inputs_embeds, encoder_outputs=encoder_outputs)
    if encoder_outputs is None:
        tokens = _check_tokens(config, "input_ids", input_ids, "inputs_embeds", inputs_embeds)
        ids_BT = None if input_ids is None else tokens
        return Source(ops.asarray(tokens), _check_mask(ops, attention_mask, tokens), ids_BT)
    outputs = EncoderOutput.of(encoder_outputs)
    states_BTD = inputs.hidden_states("encoder_outputs", outputs.last_hidden_state, config.d_model)
    mask_BT = _check_mask(ops, outputs.attention_mask if attention_mask is None else attention_mask, states_BTD)
    outputs = replace(outputs, last_hidden_state=states_BTD, attention_mask=on_host(ops, mask_BT))
    return Source(ops.asarray(states_BTD), mask_BT, outputs=outputs)


def check_labels(config: PegasusXConfig, labels: Any, decoder_input_ids: Any) -> tuple[np.ndarray, Any]:
    """Check labels, and make the decoder's input from them where there is none.

    Raises:
        InputError: not token ids, or none of them counts.
    """
    labels_BL = inputs.labels(labels, config.vocab_size)
    if decoder_input_ids is None:
        decoder_input_ids = shift_tokens_right(labels_BL, config.pad_token_id, config.decoder_start_token_id)
    return labels_BL, decoder_input_ids


def run_encoder(ops: Backend, weights: Weights, config: PegasusXConfig, source: Source) -> Encoded:
    """Run the encoder, unless the caller passed its output."""
    if source.outputs is not None:
        return Encoded(source.tokens, None, source.mask_BT)
    x_BTD = embed(ops, weights, config, "encoder", source.tokens, start=0)
    return Encoded(*encoder(ops, weights.at("encoder"), config, x_BTD, source.mask_BT), source.mask_BT)


def encode(
    ops: Backend,
    weights: Weights,
    config: PegasusXConfig,
    source: Source,
    wanted: WantedOutputs,
) -> EncoderOutput:
    """Run the encoder alone and collect its outputs."""
    with wanted.recording() as trace:
        encoded = run_encoder(ops, weights, config, source)
    return encoder_output(ops, config, source, encoded, trace, wanted)


def wanted_outputs(output_hidden_states: Any, output_attentions: Any) -> WantedOutputs:
    """Check the arguments that ask for optional outputs."""
    hidden_states = inputs.flag("output_hidden_states", output_hidden_states)
    return WantedOutputs(hidden_states, inputs.flag("output_attentions", output_attentions))


def encoder_output(
    ops: Backend,
    config: PegasusXConfig,
    source: Source,
    encoded: Encoded,
    trace: Mapping[str, Array],
    wanted: WantedOutputs,
) -> EncoderOutput:
    """Collect the encoder's outputs, or return those that the caller passed.

    Args:
        ops: the backend.
        config: the model's configuration.
        source: what was encoded.
        encoded: of `run_encoder`.
        trace: tensors that were recorded meanwhile, by name.
        wanted: the optional outputs.
    """
    if source.outputs is not None:
        return source.outputs
    tokens_BTD, globals_BGD = ops.to_numpy(encoded.tokens_BTD), ops.to_numpy(encoded.globals_BGD)
    output = EncoderOutput(tokens_BTD, global_hidden_state=globals_BGD, attention_mask=on_host(ops, encoded.mask_BT))
    recorded, layers = Recorded(ops, trace), config.encoder_layers
    if wanted.hidden_states:
        output.hidden_states = (*recorded.layers("encoder.layers.{}.tokens.input", layers), tokens_BTD)
        output.global_hidden_states = (*recorded.layers("encoder.layers.{}.globals.input", layers), globals_BGD)
    if wanted.attentions:
        output.attentions = recorded.encoder_attentions(layers)
    return output


def on_host(ops: Backend, mask_BT: Array | None) -> np.ndarray | None:
    """Copy a mask to the host, if there is one."""
    return None if mask_BT is None else ops.to_numpy(mask_BT)


def forward(
    ops: Backend,
    weights: Weights,
    config: PegasusXConfig,
    input_ids: Any,
    attention_mask: Any,
    decoder_input_ids: Any,
    decoder_attention_mask: Any,
    *,
    labels: np.ndarray | None = None,
    inputs_embeds: Any = None,
    decoder_inputs_embeds: Any = None,
    encoder_outputs: Any = None,
    past_key_values: DecoderCache | None = None,
    use_cache: bool | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
) -> tuple[Array, dict[str, Any]]:
    """Run encoder and decoder; the arguments are those of `PegasusXModel`, and checked labels.

    Returns:
        The decoder's last hidden state (B, L, D) on the device, and the output fields that both models share.

    Raises:
        InputError: arguments that the model cannot take, or that do not fit each other.
    """
    # All checks come before the encoder, which may take minutes.
    wanted = wanted_outputs(output_hidden_states, output_attentions)
    is_cache_wanted = config.use_cache if use_cache is None else inputs.flag("use_cache", use_cache)
    inputs.exactly_one(decoder_input_ids=decoder_input_ids, decoder_inputs_embeds=decoder_inputs_embeds)
    targets = ops.asarray(
        _check_tokens(config, "decoder_input_ids", decoder_input_ids, "decoder_inputs_embeds", decoder_inputs_embeds)
    )
    B, L = targets.shape[:2]
    inputs.check_label_shape(labels, (B, L))
    source = check_source(ops, config, input_ids, attention_mask, inputs_embeds, encoder_outputs)
    inputs.same_batch(encoder=source.tokens.shape[0], decoder=B)
    if past_key_values is not None:
        _check_past(ops, config, past_key_values, source)
    start = 0 if past_key_values is None else past_key_values.length
    visible = visible_targets(ops, decoder_attention_mask, B, L, start)

    with wanted.recording() as trace:
        encoded = run_encoder(ops, weights, config, source)
        x_BLD = embed(ops, weights, config, "decoder", targets, start)
        hidden_BLD, cache = decoder(
            ops, weights.at("decoder"), config, x_BLD, visible, encoded.tokens_BTD, encoded.mask_BT, past_key_values
        )

    recorded, layers = Recorded(ops, trace), config.decoder_layers
    output = encoder_output(ops, config, source, encoded, trace, wanted)
    fields: dict[str, Any] = {
        "encoder_last_hidden_state": output.last_hidden_state,
        "encoder_hidden_states": output.hidden_states,
        "encoder_attentions": output.attentions,
        "encoder_attention_mask": output.attention_mask,
    }
    if is_cache_wanted:
        fields["past_key_values"] = cache
    if wanted.hidden_states:
        states = recorded.layers("decoder.layers.{}.input", layers)
        fields["decoder_hidden_states"] = (*states, ops.to_numpy(hidden_BLD))
    if wanted.attentions:
        fields["decoder_attentions"] = tuple(recorded.layers("decoder.layers.{}.self_attn.probs", layers))
        fields["cross_attentions"] = tuple(recorded.layers("decoder.layers.{}.encoder_attn.probs", layers))
    return hidden_BLD, fields


def _check_tokens(config: PegasusXConfig, ids_name: str, ids: Any, embeds_name: str, embeds: Any) -> np.ndarray:
    """Check token ids, or the embeddings if there are no ids."""
    if ids is None:
        return inputs.hidden_states(embeds_name, embeds, config.d_model)
    return inputs.token_ids(ids_name, ids, config.vocab_size)


def _check_mask(ops: Backend, attention_mask: Any, tokens: Array) -> Array | None:
    mask_BT = inputs.mask("attention_mask", attention_mask, tuple(tokens.shape[:2]))
    return None if mask_BT is None else ops.asarray(mask_BT)


def visible_targets(ops: Backend, attention_mask: Any, B: int, L: int, past_length: int) -> Array | None:
    """Combine causality and the target's mask, on the host; None where each new token may see all."""
    X = past_length + L
    mask_BX = inputs.mask("decoder_attention_mask", attention_mask, (B, X))
    if mask_BX is None:
        return None if L == 1 else ops.asarray(causal_mask(L, X))
    return ops.asarray(causal_mask(L, X) & mask_BX[:, None])


def _check_past(ops: Backend, config: PegasusXConfig, past: DecoderCache, source: Source) -> None:
    if not isinstance(past, DecoderCache):
        raise InputError(
            f"past_key_values is a {type(past).__name__}: pass on the past_key_values of an earlier output"
        )
    B, T = source.tokens.shape[:2]
    heads = config.decoder_attention_heads
    expected = {((B, heads, T, config.d_model // heads), ops.dtype)}
    cached = {
        (tuple(layer.cross_k_BHTF.shape), str(layer.cross_k_BHTF.dtype).removeprefix("torch.")) for layer in past.layers
    }
    if len(past.layers) != config.decoder_layers or cached - expected:
        raise InputError(
            f"past_key_values holds {len(past.layers)} layers of cross-attention keys {sorted(cached)}, but this "
            f"call needs {config.decoder_layers} of {sorted(expected)} (batch, heads, source tokens, features "
            "a head): it belongs to another source or model"
        )
