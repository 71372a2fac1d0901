"""The optional outputs of every decode step of `generate`. [spec 16]"""

from typing import Any

import numpy as np

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.generation import NextLogits
from pegasusx_ref.model.outputs import Arrays, Recorded, WantedOutputs


class RecordedSteps:
    """A decode step that keeps the optional outputs of each call, in transformers' layout: one row a text.

    Args:
        next_logits: the decode step.
        wanted: the outputs.
        ops: the backend.
        layers: number of the decoder's layers.
    """

    def __init__(self, next_logits: NextLogits, wanted: WantedOutputs, ops: Backend, layers: int) -> None:
        self._next_logits, self._wanted, self._ops, self._layers = next_logits, wanted, ops, layers
        self._hidden_states: list[Arrays] = []
        self._self_attentions: list[Arrays] = []
        self._cross_attentions: list[Arrays] = []

    def __call__(self, ids_BL: np.ndarray, visible: np.ndarray | None) -> Array:
        """Compute the next logits; see `NextLogits`."""
        with self._wanted.recording() as trace:
            logits_BLV = self._next_logits(ids_BL, visible)
        recorded = Recorded(self._ops, trace)
        if self._wanted.hidden_states:
            states = recorded.layers("decoder.layers.{}.input", self._layers)
            states.append(self._ops.to_numpy(trace["decoder.layer_norm"]))
            self._hidden_states.append(tuple(x_BLD.reshape(-1, 1, x_BLD.shape[2]) for x_BLD in states))
        if self._wanted.attentions:
            own = recorded.layers("decoder.layers.{}.self_attn.probs", self._layers)
            cross = recorded.layers("decoder.layers.{}.encoder_attn.probs", self._layers)
            self._self_attentions.append(tuple(_rows(_own_tokens(probs, visible)) for probs in own))
            self._cross_attentions.append(tuple(_rows(probs) for probs in cross))
        return logits_BLV

    def fields(self) -> dict[str, Any]:
        """Return the outputs of all steps, by their names in `GenerateOutput`."""
        found: dict[str, Any] = {}
        if self._wanted.hidden_states:
            found["decoder_hidden_states"] = tuple(self._hidden_states)
        if self._wanted.attentions:
            found["decoder_attentions"] = tuple(self._self_attentions)
            found["cross_attentions"] = tuple(self._cross_attentions)
        return found


def _own_tokens(probs_BHLX: np.ndarray, visible: np.ndarray | None) -> np.ndarray:
    """Select the attention of each row to its own tokens, (B, H, L, tokens so far); the rest is 0."""
    if visible is None:
        return probs_BHLX
    B, H, L, _ = probs_BHLX.shape
    columns_BLN = visible.nonzero()[2].reshape(B, 1, L, -1)
    return np.take_along_axis(probs_BHLX, np.broadcast_to(columns_BLN, (B, H, *columns_BLN.shape[2:])), axis=3)


def _rows(probs_BHLX: np.ndarray) -> np.ndarray:
    """Turn the rows of a source into rows of the batch, (B L, H, 1, X)."""
    B, H, L, X = probs_BHLX.shape
    return probs_BHLX.swapaxes(1, 2).reshape(B * L, H, 1, X)
