"""Sublayers that encoder and decoder share: embedding, normalization, projections, feed-forward; and the head."""

import math

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.golden.attention import merge_heads, split_heads
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.weights import LOGITS_BIAS, Weights
from pegasusx_ref.tracing import scope, tap, wanted


def embed(ops: Backend, weights: Weights, config: PegasusXConfig, side: str, tokens: Array, start: int) -> Array:
    """Embed token ids with the scale that the configuration asks for, then add positions. [spec 3.4]

    Args:
        ops: the backend.
        weights: of the whole model.
        config: for the scale, sqrt(D) or 1.
        side: "encoder" or "decoder".
        tokens: token ids (B, T), or scaled embeddings without positions (B, T, D).
        start: position of the first token.

    Returns:
        Token embeddings with positions (B, T, D).
    """
    with scope(side):
        if tokens.ndim == 2:
            table_VD = weights[f"{side}.embed_tokens.weight"]
            tokens = tap("embed_tokens", ops.embed_tokens(tokens, table_VD, embedding_scale(config)))
        return tap("embeddings", ops.add_positions(tokens, start))


def embedding_scale(config: PegasusXConfig) -> float:
    """Return what embeddings are multiplied by: sqrt(D), or 1.

    Args:
        config: for scale_embedding.
    """
    return math.sqrt(config.d_model) if config.scale_embedding else 1.0


def lm_head(ops: Backend, weights: Weights, hidden_BLD: Array) -> Array:
    """Score every token of the vocabulary: the hidden states times the rows of the embedding table. [spec 11.4]

    A checkpoint with a final_logits_bias has it added.

    Args:
        ops: the backend.
        weights: of the whole model.
        hidden_BLD: the decoder's hidden states after its last LayerNorm (B, L, D).

    Returns:
        Logits (B, L, V).

    Source: HF `PegasusXForConditionalGeneration.lm_head`.
    """
    return ops.linear_full_precision(hidden_BLD, weights["lm_head.weight"], weights.get(LOGITS_BIAS))


def normalize(ops: Backend, weights: Weights, name: str, config: PegasusXConfig, x_BTD: Array) -> Array:
    """Apply the LayerNorm of that name. [spec 4.2]

    Args:
        ops: the backend.
        weights: of the layer, or of the encoder or decoder as a whole.
        name: "self_attn_layer_norm", "final_layer_norm", …
        config: for eps.
        x_BTD: hidden states (B, T, D).

    Returns:
        Normalized hidden states (B, T, D).
    """
    return ops.layer_norm(x_BTD, weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_eps)


def project_heads(ops: Backend, weights: Weights, name: str, num_heads: int, x_BTD: Array) -> Array:
    """Project hidden states to queries, keys or values and split them into heads. [spec 6.5]

    Args:
        ops: the backend.
        weights: of one attention.
        name: "q_proj", "k_proj" or "v_proj".
        num_heads: H.
        x_BTD: hidden states (B, T, D).

    Returns:
        Queries, keys or values (B, H, T, F).
    """
    return split_heads(tap(name, ops.linear(x_BTD, weights[f"{name}.weight"])), num_heads)


def project_out(ops: Backend, weights: Weights, context_BHTF: Array) -> Array:
    """Merge the heads and project the attended values back to hidden states. [spec 6.6]

    Args:
        ops: the backend.
        weights: of one attention.
        context_BHTF: attended values (B, H, T, F).

    Returns:
        The update of the residual stream (B, T, D).
    """
    return tap("out_proj", ops.linear_full_precision(merge_heads(context_BHTF), weights["out_proj.weight"]))


def feed_forward(ops: Backend, weights: Weights, config: PegasusXConfig, x_BTD: Array) -> Array:
    """Run the feed-forward sublayer of a layer: x + fc2(activation(fc1(LayerNorm(x)))). [spec 5.7]

    Args:
        ops: the backend.
        weights: of one layer.
        config: for the activation and the LayerNorm's eps.
        x_BTD: hidden states (B, T, D).

    Returns:
        The layer's output (B, T, D).

    Source: arXiv 1706.03762 section 3.3, pre-LN; HF `PegasusXEncoderLayer.forward`.
    """

    def position_wise(x_BTD: Array) -> Array:
        normed_BTD = tap("final_layer_norm", normalize(ops, weights, "final_layer_norm", config, x_BTD))
        hidden_BTM = tap("fc1", ops.linear(normed_BTD, weights["fc1.weight"], weights["fc1.bias"]))
        hidden_BTM = tap("activation", ops.activation(hidden_BTM, config.activation_function))
        update_BTD = tap("fc2", ops.linear_full_precision(hidden_BTM, weights["fc2.weight"], weights["fc2.bias"]))
        return ops.add(x_BTD, update_BTD)

    inside = ("final_layer_norm", "fc1", "activation", "fc2")
    if any(wanted(name) for name in inside):  # a listener gets whole tensors
        return tap("output", position_wise(x_BTD))
    return tap("output", ops.apply_in_chunks(position_wise, x_BTD))
