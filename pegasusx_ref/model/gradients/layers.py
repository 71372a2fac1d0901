"""The backward pass of the sublayers that encoder and decoder share."""

import numpy as np

from pegasusx_ref.golden.attention import merge_heads, split_heads
from pegasusx_ref.golden.embedding import embed_tokens_backward
from pegasusx_ref.golden.feed_forward import activation_backward, linear_backward
from pegasusx_ref.golden.normalization import layer_norm_backward
from pegasusx_ref.model.gradients.place import Place
from pegasusx_ref.model.layers import embedding_scale


def embed_backward(place: Place, ids_BT: np.ndarray, grad_BTD: np.ndarray) -> None:
    """Collect the gradients of the embedding table; positions are constants. [spec 19.11]

    Args:
        place: the encoder or the decoder.
        ids_BT: its token ids (B, T).
        grad_BTD: gradients of the embeddings with positions (B, T, D).
    """
    grad_BTD = place.tap("embed_tokens", place.tap("embeddings", grad_BTD))
    config, name = place.config, "embed_tokens.weight"
    scale, num_rows = embedding_scale(config), len(place.parameter(name))
    place.collect(name, embed_tokens_backward(grad_BTD, ids_BT, num_rows, scale, config.pad_token_id))


def normalize_backward(place: Place, name: str, x_BTD: np.ndarray, grad_BTD: np.ndarray) -> np.ndarray:
    """Pass gradients through the LayerNorm of that name, and collect those of its scale and shift. [spec 19.12]

    Args:
        place: a layer, the encoder or the decoder.
        name: "self_attn_layer_norm", "final_layer_norm", …
        x_BTD: its input (B, T, D).
        grad_BTD: gradients of its result (B, T, D).

    Returns:
        Gradients of its input (B, T, D).
    """
    grad_x_BTD, grad_weight_D, grad_bias_D = layer_norm_backward(
        grad_BTD, x_BTD, place.parameter(f"{name}.weight"), place.config.layer_norm_eps
    )
    place.collect(f"{name}.weight", grad_weight_D)
    place.collect(f"{name}.bias", grad_bias_D)
    return grad_x_BTD


def map_backward(place: Place, name: str, x: np.ndarray, grad: np.ndarray, bias: str = "") -> np.ndarray:
    """Pass gradients through the linear map of that name, and collect those of its weight and bias. [spec 19.13]

    Args:
        place: a layer, or one attention.
        name: "q_proj", "fc1", …
        x: its input (B, T, in features).
        grad: gradients of its result (B, T, out features).
        bias: the name of its bias, where it is not NAME.bias.

    Returns:
        Gradients of its input.
    """
    grad_x, grad_weight, grad_bias = linear_backward(place.tap(name, grad), x, place.parameter(f"{name}.weight"))
    place.collect(f"{name}.weight", grad_weight)
    if place.has(bias := bias or f"{name}.bias"):
        place.collect(bias, grad_bias.reshape(place.parameter(bias).shape))
    return grad_x


def heads_of(place: Place, name: str, num_heads: int) -> np.ndarray:
    """Return queries, keys or values of the forward pass (B, H, T, F)."""
    return split_heads(place.tensor(name), num_heads)


def project_out_backward(place: Place, context_BHTF: np.ndarray, grad_BTD: np.ndarray) -> np.ndarray:
    """Pass gradients through the output projection and split them into heads. [spec 19.14]

    Args:
        place: one attention, or a stream of one.
        context_BHTF: attended values of the forward pass (B, H, T, F).
        grad_BTD: gradients of the update of the residual stream (B, T, D).

    Returns:
        Gradients of the attended values (B, H, T, F).
    """
    return split_heads(map_backward(place, "out_proj", merge_heads(context_BHTF), grad_BTD), context_BHTF.shape[1])


def feed_forward_backward(place: Place, residual: str, grad_BTD: np.ndarray) -> np.ndarray:
    """Pass gradients through the feed-forward sublayer: along the residual, and through the update. [spec 19.15]

    Args:
        place: a layer, or a stream of one.
        residual: the trace point of the sublayer's input.
        grad_BTD: gradients of the layer's output (B, T, D).

    Returns:
        Gradients of the sublayer's input (B, T, D).
    """
    grad_BTD = place.tap("output", grad_BTD)
    grad_BTM = place.tap("activation", map_backward(place, "fc2", place.tensor("activation"), grad_BTD))
    grad_BTM = activation_backward(grad_BTM, place.tensor("fc1"), place.config.activation_function)
    grad_normed_BTD = map_backward(place, "fc1", place.tensor("final_layer_norm"), grad_BTM)
    grad_normed_BTD = place.tap("final_layer_norm", grad_normed_BTD)
    through_BTD = normalize_backward(place, "final_layer_norm", place.tensor(residual), grad_normed_BTD)
    return place.tap(residual, grad_BTD + through_BTD)
