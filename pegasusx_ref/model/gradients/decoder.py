"""The backward pass of the decoder."""

import numpy as np

from pegasusx_ref.golden.attention import attention_backward, merge_heads
from pegasusx_ref.model.gradients.encoder import PROJECTIONS, projections_backward
from pegasusx_ref.model.gradients.layers import (
    feed_forward_backward,
    heads_of,
    map_backward,
    normalize_backward,
    project_out_backward,
)
from pegasusx_ref.model.gradients.place import Place


def decoder_attention_backward(
    place: Place, grad_BLD: np.ndarray, visible: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pass gradients through one of the decoder's attentions, to its queries, keys and values. [spec 19.20]

    Args:
        place: ``self_attn`` or ``encoder_attn`` of a layer.
        grad_BLD: gradients of the update of the residual stream (B, L, D).
        visible: which keys each query may attend to; None means all.

    Returns:
        Gradients of queries (B, H, L, F), keys and values (B, H, X, F).
    """
    H = place.config.decoder_attention_heads
    q_BHLF, k_BHXF, v_BHXF = (heads_of(place, name, H) for name in PROJECTIONS)
    grad_BHLF = project_out_backward(place, place.tensor("context"), grad_BLD)
    with place.scope():
        return attention_backward(grad_BHLF, q_BHLF, k_BHXF, v_BHXF, place.tensor("probs"), visible)


def decoder_layer_backward(
    place: Place,
    grad_BLD: np.ndarray,
    visible: np.ndarray | None,
    encoded_BTD: np.ndarray,
    source_mask_BT: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pass gradients through one decoder layer. [spec 19.21]

    Args:
        place: the layer.
        grad_BLD: gradients of its output (B, L, D).
        visible: which target tokens each may attend to (B or 1, L, L); None means all.
        encoded_BTD: the encoder's output (B, T, D).
        source_mask_BT: True where a source token is real (B, T); None means everywhere.

    Returns:
        Gradients of the hidden states before the layer (B, L, D), and of the encoder's output (B, T, D).
    """
    grad_BLD = feed_forward_backward(place, "encoder_attn_residual", grad_BLD)

    cross, source = place.at("encoder_attn"), None if source_mask_BT is None else source_mask_BT[:, None]
    grad_q_BHLF, grad_k_BHTF, grad_v_BHTF = decoder_attention_backward(cross, grad_BLD, source)
    grad_encoded_BTD = map_backward(cross, "k_proj", encoded_BTD, merge_heads(grad_k_BHTF))
    grad_encoded_BTD = grad_encoded_BTD + map_backward(cross, "v_proj", encoded_BTD, merge_heads(grad_v_BHTF))
    grad_normed_BLD = map_backward(cross, "q_proj", place.tensor("encoder_attn_layer_norm"), merge_heads(grad_q_BHLF))
    grad_normed_BLD = place.tap("encoder_attn_layer_norm", grad_normed_BLD)
    before_BLD = place.tensor("self_attn_residual")
    grad_BLD = grad_BLD + normalize_backward(place, "encoder_attn_layer_norm", before_BLD, grad_normed_BLD)
    grad_BLD = place.tap("self_attn_residual", grad_BLD)

    own, normed_BLD = place.at("self_attn"), place.tensor("self_attn_layer_norm")
    grads = decoder_attention_backward(own, grad_BLD, visible)
    grad_normed_BLD = place.tap("self_attn_layer_norm", projections_backward(own, normed_BLD, grads))
    grad_BLD = grad_BLD + normalize_backward(place, "self_attn_layer_norm", place.tensor("input"), grad_normed_BLD)
    return place.tap("input", grad_BLD), grad_encoded_BTD


def decoder_backward(
    place: Place,
    grad_BLD: np.ndarray,
    visible: np.ndarray | None,
    encoded_BTD: np.ndarray,
    source_mask_BT: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pass gradients through the decoder; the encoder's output collects them from every layer. [spec 19.22]

    Args:
        place: the decoder.
        grad_BLD: gradients of its hidden states after the last LayerNorm (B, L, D).
        visible: which target tokens each may attend to (B or 1, L, L); None means all.
        encoded_BTD: the encoder's output (B, T, D).
        source_mask_BT: True where a source token is real (B, T); None means everywhere.

    Returns:
        Gradients of the target's embeddings with positions (B, L, D), and of the encoder's output (B, T, D).
    """
    last = f"layers.{place.config.decoder_layers - 1}.output" if place.config.decoder_layers else "embeddings"
    grad_BLD = normalize_backward(place, "layer_norm", place.tensor(last), place.tap("layer_norm", grad_BLD))
    grad_encoded_BTD = np.zeros_like(encoded_BTD)
    for i in reversed(range(place.config.decoder_layers)):
        grad_BLD, through_BTD = decoder_layer_backward(
            place.at(f"layers.{i}"), grad_BLD, visible, encoded_BTD, source_mask_BT
        )
        grad_encoded_BTD = grad_encoded_BTD + through_BTD
    return grad_BLD, grad_encoded_BTD
