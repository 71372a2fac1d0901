"""The loss of labels and its gradients: one forward pass that is recorded, and one backward pass."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pegasusx_ref.backend import GoldenBackend
from pegasusx_ref.golden.head import cross_entropy, cross_entropy_backward
from pegasusx_ref.model import inputs
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.forward import forward, visible_targets
from pegasusx_ref.model.gradients.decoder import decoder_backward
from pegasusx_ref.model.gradients.encoder import encoder_backward
from pegasusx_ref.model.gradients.layers import embed_backward, map_backward
from pegasusx_ref.model.gradients.place import Place
from pegasusx_ref.model.layers import lm_head
from pegasusx_ref.model.weights import (
    EMBEDDING,
    EMBEDDING_COPIES,
    LOGITS_BIAS,
    Weights,
    parameter_shapes,
    tie_embeddings,
)
from pegasusx_ref.tracing import record, tap


def loss_and_gradients(
    config: PegasusXConfig,
    tensors: Mapping[str, np.ndarray],
    batch: Mapping[str, Any],
    labels_BL: np.ndarray,
    label_smoothing: float = 0.0,
) -> tuple[float, dict[str, np.ndarray]]:
    """Compute the loss and its gradient by every parameter. [spec 19.23]

    Args:
        config: the model's configuration.
        tensors: parameters by name, without tied copies, all of one dtype.
        batch: input_ids (B, T), attention_mask (B, T) or None, decoder_input_ids (B, L), decoder_attention_mask (B, L)
            or None.
        labels_BL: checked labels (B, L).
        label_smoothing: see `cross_entropy`.

    Returns:
        The loss in nats a label, and gradients by parameter name.
    """
    ops = GoldenBackend(None, str(next(iter(tensors.values())).dtype))
    weights = Weights(tie_embeddings(tensors))
    with record() as trace:
        hidden_BLD, _ = forward(ops, weights, config, **batch, labels=labels_BL, use_cache=False)
        tap("lm_head", lm_head(ops, weights, hidden_BLD))
    gradients: dict[str, np.ndarray] = {}
    backward(Place(config, weights, trace, gradients), batch, labels_BL, label_smoothing)
    loss = cross_entropy(trace["lm_head"], labels_BL, label_smoothing)
    return float(loss), by_parameter(config, gradients, tensors)


def backward(place: Place, batch: Mapping[str, Any], labels_BL: np.ndarray, label_smoothing: float) -> None:
    """Pass gradients from the loss through head, decoder and encoder to the embedding table. [spec 19.25]

    Args:
        place: the whole model, with the tensors of a forward pass; collects the gradients of parameters.
        batch: see `loss_and_gradients`.
        labels_BL: checked labels (B, L).
        label_smoothing: see `cross_entropy`.
    """
    (B, T), (_, L) = np.shape(batch["input_ids"]), labels_BL.shape
    source_mask_BT = inputs.mask("attention_mask", batch["attention_mask"], (B, T))
    visible = visible_targets(GoldenBackend(None, "float64"), batch["decoder_attention_mask"], B, L, 0)
    encoder, decoder = place.at("encoder"), place.at("decoder")

    grad_BLV = cross_entropy_backward(place.tensor("lm_head"), labels_BL, label_smoothing)
    grad_BLD = map_backward(place, "lm_head", decoder.tensor("layer_norm"), grad_BLV, LOGITS_BIAS)
    grad_BLD, grad_BTD = decoder_backward(decoder, grad_BLD, visible, encoder.tensor("layer_norm"), source_mask_BT)
    grad_BTD = encoder_backward(encoder, grad_BTD, source_mask_BT)
    embed_backward(decoder, np.asarray(batch["decoder_input_ids"]), grad_BLD)
    embed_backward(encoder, np.asarray(batch["input_ids"]), grad_BTD)


def by_parameter(
    config: PegasusXConfig, gradients: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the gradient of each parameter; a tied table collects those of its three uses. [spec 19.24]

    Args:
        config: the model's configuration.
        gradients: by the name under which a parameter was used.
        tensors: the parameters.
    """
    found = dict(gradients)
    if config.tie_word_embeddings:
        found[EMBEDDING] = sum((found.pop(name) for name in EMBEDDING_COPIES), np.zeros_like(tensors[EMBEDDING]))
    return {
        name: found[name] if name in found else np.zeros_like(tensors[name])
        for name in parameter_shapes(config)
        if name in tensors
    }
