"""The backward pass of the encoder."""

import numpy as np

from pegasusx_ref.golden.attention import merge_heads
from pegasusx_ref.golden.embedding import embed_tokens_backward
from pegasusx_ref.golden.global_local import Blocks, global_local_attention_backward
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.model.gradients.layers import (
    feed_forward_backward,
    heads_of,
    map_backward,
    normalize_backward,
    project_out_backward,
)
from pegasusx_ref.model.gradients.place import Place

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def encoder_self_attention_backward(
    place: Place,
    normed_BTD: np.ndarray,
    normed_BGD: np.ndarray,
    grad_BTD: np.ndarray,
    grad_BGD: np.ndarray,
    key_mask_BT: np.ndarray | None,
    blocks: Blocks,
) -> tuple[np.ndarray, np.ndarray]:
    """Pass gradients through attention; the four matrices collect them from both streams. [spec 19.16]

    Args:
        place: one layer's ``self_attn``.
        normed_BTD: normalized tokens of the forward pass (B, T, D).
        normed_BGD: normalized global tokens (B, G, D).
        grad_BTD: gradients of what attention adds to the tokens (B, T, D).
        grad_BGD: gradients of what it adds to the global tokens (B, G, D).
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        blocks: the layer's blocks.

    Returns:
        Gradients of the normalized tokens (B, T, D) and global tokens (B, G, D).
    """
    H, tokens, globals_ = place.config.encoder_attention_heads, place.stream("tokens"), place.stream("globals")
    contexts = [place.tensor(f"local.{n}.context") for n in range(len(blocks))]
    probs = [place.tensor(f"local.{n}.probs") for n in range(len(blocks))]
    grad_context_BHTF = project_out_backward(tokens, np.concatenate(contexts, axis=2), grad_BTD)
    grad_context_BHGF = project_out_backward(globals_, place.tensor("global.context"), grad_BGD)

    q_BHTF, k_BHTF, v_BHTF = (heads_of(tokens, name, H) for name in PROJECTIONS)
    q_BHGF, k_BHGF, v_BHGF = (heads_of(globals_, name, H) for name in PROJECTIONS)
    with place.scope():
        grads = global_local_attention_backward(
            grad_context_BHTF,
            grad_context_BHGF,
            q_BHTF,
            k_BHTF,
            v_BHTF,
            q_BHGF,
            k_BHGF,
            v_BHGF,
            probs,
            place.tensor("global.probs"),
            key_mask_BT,
            blocks,
        )
    return projections_backward(tokens, normed_BTD, grads[:3]), projections_backward(globals_, normed_BGD, grads[3:])


def projections_backward(place: Place, x_BTD: np.ndarray, grads: tuple[np.ndarray, ...]) -> np.ndarray:
    """Add up the gradients that hidden states get through queries, keys and values. [spec 19.17]

    Args:
        place: one attention, or a stream of one.
        x_BTD: the hidden states that were projected (B, T, D).
        grads: gradients of queries, keys and values (B, H, T, F).

    Returns:
        Gradients of the hidden states (B, T, D).
    """
    total_BTD = np.zeros_like(x_BTD)
    for name, grad_BHTF in zip(PROJECTIONS, grads, strict=True):
        total_BTD = total_BTD + map_backward(place, name, x_BTD, merge_heads(grad_BHTF))
    return total_BTD


def encoder_layer_backward(
    place: Place, grad_BTD: np.ndarray, grad_BGD: np.ndarray, key_mask_BT: np.ndarray | None, blocks: Blocks
) -> tuple[np.ndarray, np.ndarray]:
    """Pass gradients through one encoder layer. [spec 19.18]

    Args:
        place: the layer.
        grad_BTD: gradients of its tokens after the layer (B, T, D).
        grad_BGD: gradients of its global tokens after the layer (B, G, D).
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        blocks: the layer's blocks.

    Returns:
        Gradients of both streams before the layer.
    """
    tokens, globals_ = place.stream("tokens"), place.stream("globals")
    grad_BTD = feed_forward_backward(tokens, "self_attn_residual", grad_BTD)
    grad_BGD = feed_forward_backward(globals_, "self_attn_residual", grad_BGD)

    normed_BTD, normed_BGD = (stream.tensor("self_attn_layer_norm") for stream in (tokens, globals_))
    attended_BTD, attended_BGD = encoder_self_attention_backward(
        place.at("self_attn"), normed_BTD, normed_BGD, grad_BTD, grad_BGD, key_mask_BT, blocks
    )
    attended_BTD = tokens.tap("self_attn_layer_norm", attended_BTD)
    attended_BGD = globals_.tap("self_attn_layer_norm", attended_BGD)
    grad_BTD = grad_BTD + normalize_backward(place, "self_attn_layer_norm", tokens.tensor("input"), attended_BTD)
    grad_BGD = grad_BGD + normalize_backward(
        place, "global_self_attn_layer_norm", globals_.tensor("input"), attended_BGD
    )
    return tokens.tap("input", grad_BTD), globals_.tap("input", grad_BGD)


def encoder_backward(place: Place, grad_BTD: np.ndarray, key_mask_BT: np.ndarray | None) -> np.ndarray:
    """Pass gradients through the encoder; nothing reads the global tokens after the last layer. [spec 19.19]

    Args:
        place: the encoder.
        grad_BTD: gradients of its output (B, T, D).
        key_mask_BT: True where a token is real (B, T); None means everywhere.

    Returns:
        Gradients of the tokens' embeddings with positions (B, T, D).
    """
    config, (B, T, _) = place.config, grad_BTD.shape
    last = f"layers.{config.encoder_layers - 1}.tokens.output" if config.encoder_layers else "embeddings"
    grad_BTD = normalize_backward(place, "layer_norm", place.tensor(last), place.tap("layer_norm", grad_BTD))
    grad_BGD = np.zeros((B, config.num_global_tokens, config.d_model), dtype=grad_BTD.dtype)
    for i in reversed(range(config.encoder_layers)):
        blocks = layer_blocks(config, T, i)
        grad_BTD, grad_BGD = encoder_layer_backward(place.at(f"layers.{i}"), grad_BTD, grad_BGD, key_mask_BT, blocks)
    grad_BGD = place.tap("embed_global", grad_BGD)
    global_ids_BG = np.tile(np.arange(config.num_global_tokens), (B, 1))
    place.collect("embed_global.weight", embed_tokens_backward(grad_BGD, global_ids_BG, config.num_global_tokens, 1.0))
    return grad_BTD
