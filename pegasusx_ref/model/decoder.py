"""The decoder: causal self-attention, cross-attention to the encoder's tokens. [spec 10]"""

from collections.abc import Callable
from typing import Any

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.kv_cache import DecoderCache, DynamicKV, LayerCache, StaticKV
from pegasusx_ref.model.layers import feed_forward, normalize, project_heads, project_out
from pegasusx_ref.model.weights import Weights
from pegasusx_ref.tracing import scope, tap


def decoder_self_attention(
    ops: Backend,
    weights: Weights,
    config: PegasusXConfig,
    x_BLD: Array,
    visible: Array | None,
    past: LayerCache | None,
) -> tuple[Array, DynamicKV | StaticKV, DynamicKV | StaticKV]:
    """Attend from every new target token to itself and the target tokens before it. [spec 10.3]

    Args:
        ops: the backend.
        weights: of one layer's ``self_attn``.
        config: for the number of heads.
        x_BLD: normalized hidden states of the new tokens (B, L, D).
        visible: which of the X target tokens, past and new, each new one may attend to; None means all.
        past: the layer's cache, or None in the first call.

    Returns:
        The update of the residual stream (B, L, D), and keys and values of all X tokens.

    Source: HF `PegasusXAttention.forward`.
    """
    H = config.decoder_attention_heads
    q_BHLF = project_heads(ops, weights, "q_proj", H, x_BLD)
    k_BHLF = project_heads(ops, weights, "k_proj", H, x_BLD)
    v_BHLF = project_heads(ops, weights, "v_proj", H, x_BLD)
    keys = DynamicKV.of(k_BHLF) if past is None else past.self_k.append(ops, k_BHLF)
    values = DynamicKV.of(v_BHLF) if past is None else past.self_v.append(ops, v_BHLF)
    context_BHLF = ops.attention(q_BHLF, keys.array, values.array, visible)
    return project_out(ops, weights, context_BHLF), keys, values


def decoder_cross_attention(
    ops: Backend,
    weights: Weights,
    config: PegasusXConfig,
    x_BLD: Array,
    encoded_BTD: Array,
    key_mask_BT: Array | None,
    past: LayerCache | None,
) -> tuple[Array, Array, Array]:
    """Attend from every new target token to the encoder's tokens, whose keys and values are computed once. [spec 10.4]

    The global tokens are not among the keys: their information reaches the decoder through the tokens.

    Args:
        ops: the backend.
        weights: of one layer's ``encoder_attn``.
        config: for the number of heads.
        x_BLD: normalized hidden states of the new tokens (B, L, D).
        encoded_BTD: the encoder's output (B, T, D).
        key_mask_BT: True where a source token is real (B, T); None means everywhere.
        past: the layer's cache, or None in the first call.

    Returns:
        The update of the residual stream (B, L, D), and the keys and values (B, H, T, F).

    Source: arXiv 2208.04347 section 3.2; HF `PegasusXAttention.forward`.
    """
    H = config.decoder_attention_heads
    q_BHLF = project_heads(ops, weights, "q_proj", H, x_BLD)
    if past is None:
        k_BHTF = project_heads(ops, weights, "k_proj", H, encoded_BTD)
        v_BHTF = project_heads(ops, weights, "v_proj", H, encoded_BTD)
        k_BHTF, v_BHTF = ops.lay_out(k_BHTF, v_BHTF)  # every later step reads all of them
    else:
        k_BHTF, v_BHTF = past.cross_k_BHTF, past.cross_v_BHTF
    visible = None if key_mask_BT is None else key_mask_BT[:, None]
    context_BHLF = ops.attention(q_BHLF, k_BHTF, v_BHTF, visible)
    return project_out(ops, weights, context_BHLF), k_BHTF, v_BHTF


def decoder_layer(
    ops: Backend,
    weights: Weights,
    config: PegasusXConfig,
    x_BLD: Array,
    visible: Array | None,
    encoded_BTD: Array,
    source_mask_BT: Array | None,
    past: LayerCache | None,
) -> tuple[Array, LayerCache]:
    """Run one decoder layer: self-attention, cross-attention, feed-forward, each after its LayerNorm. [spec 10.5]

    Args:
        ops: the backend.
        weights: of this layer.
        config: the model's configuration.
        x_BLD: hidden states of the new target tokens (B, L, D).
        visible: which of the X target tokens, past and new, each new one may attend to; None means all.
        encoded_BTD: the encoder's output (B, T, D).
        source_mask_BT: True where a source token is real (B, T); None means everywhere.
        past: the layer's cache, or None in the first call.

    Returns:
        The hidden states after the layer (B, L, D) and the cache that includes the new tokens.

    Source: HF `PegasusXDecoderLayer.forward`.
    """
    x_BLD = tap("input", x_BLD)

    normed_BLD = tap("self_attn_layer_norm", normalize(ops, weights, "self_attn_layer_norm", config, x_BLD))
    with scope("self_attn"):
        update_BLD, self_k, self_v = decoder_self_attention(
            ops, weights.at("self_attn"), config, normed_BLD, visible, past
        )
    x_BLD = tap("self_attn_residual", ops.add(x_BLD, update_BLD))

    normed_BLD = tap("encoder_attn_layer_norm", normalize(ops, weights, "encoder_attn_layer_norm", config, x_BLD))
    with scope("encoder_attn"):
        update_BLD, cross_k_BHTF, cross_v_BHTF = decoder_cross_attention(
            ops, weights.at("encoder_attn"), config, normed_BLD, encoded_BTD, source_mask_BT, past
        )
    x_BLD = tap("encoder_attn_residual", ops.add(x_BLD, update_BLD))

    x_BLD = feed_forward(ops, weights, config, x_BLD)
    return x_BLD, LayerCache(self_k, self_v, cross_k_BHTF, cross_v_BHTF)


def decoder(
    ops: Backend,
    weights: Weights,
    config: PegasusXConfig,
    x_BLD: Array,
    visible: Array | None,
    encoded_BTD: Array,
    source_mask_BT: Array | None,
    past: DecoderCache | None,
    layer: Callable[..., tuple[Array, Any]] = decoder_layer,
) -> tuple[Array, DecoderCache]:
    """Run the whole decoder over the new target tokens: all layers, then the last LayerNorm. [spec 10.6]

    The new tokens need not be consecutive: they may belong to several beams, and `visible` defines each one's history.

    Args:
        ops: the backend.
        weights: of the decoder.
        config: the model's configuration.
        x_BLD: scaled embeddings of the new target tokens with positions (B, L, D).
        visible: which of the X target tokens, past and new, each new one may attend to; None means all.
        encoded_BTD: the encoder's output (B, T, D).
        source_mask_BT: True where a source token is real (B, T); None means everywhere.
        past: the cache of the earlier target tokens, or None in the first call.
        layer: `decoder_layer`, or a function with its arguments: training recomputes it in the backward pass.

    Returns:
        Hidden states for the head (B, L, D) and the cache that includes the new tokens.

    Source: HF `PegasusXDecoder.forward`.
    """
    with scope("decoder"):
        caches = []
        for i in range(config.decoder_layers):
            with scope(f"layers.{i}"):
                x_BLD, cache = layer(
                    ops,
                    weights.at(f"layers.{i}"),
                    config,
                    x_BLD,
                    visible,
                    encoded_BTD,
                    source_mask_BT,
                    None if past is None else past.layers[i],
                )
            caches.append(cache)
        hidden_BLD = tap("layer_norm", normalize(ops, weights, "layer_norm", config, x_BLD))
        length = x_BLD.shape[1] + (0 if past is None else past.length)
        return hidden_BLD, DecoderCache(tuple(caches), length)
