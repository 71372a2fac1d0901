"""The optional outputs of the encoder and of every decode step of `generate`. [spec 16]"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Self

import numpy as np

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.generation import GenerationConfig, NextLogits
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.outputs import Arrays, Recorded, recording


class WantedOutputs(NamedTuple):
    """Which optional outputs `generate` returns."""

    hidden_states: bool
    attentions: bool

    @classmethod
    def of(cls, config: GenerationConfig) -> Self:
        """Take them from the settings."""
        is_output = config.return_dict_in_generate
        return cls(is_output and config.output_hidden_states, is_output and config.output_attentions)

    def recording(self) -> AbstractContextManager[dict[str, Any]]:
        """Record their trace points."""
        return recording(self.hidden_states, self.attentions)

    def of_encoder(
        self, ops: Backend, config: PegasusXConfig, trace: Mapping[str, Any], tokens_BTD: Array, encoder_outputs: Any
    ) -> dict[str, Any]:
        """Collect the fields of the encoder.

        Args:
            ops: the backend.
            config: the model's configuration.
            trace: recorded tensors by name.
            tokens_BTD: the encoder's output.
            encoder_outputs: the caller's, if the encoder did not run; its own optional outputs are passed on.
        """
        recorded, layers = Recorded(ops, trace), config.encoder_layers
        found: dict[str, Any] = {}
        if self.hidden_states and encoder_outputs is None:
            states = recorded.layers("encoder.layers.{}.tokens.input", layers)
            found["encoder_hidden_states"] = (*states, ops.to_numpy(tokens_BTD))
        elif self.hidden_states:
            found["encoder_hidden_states"] = getattr(encoder_outputs, "hidden_states", None)
        if self.attentions and encoder_outputs is None:
            found["encoder_attentions"] = recorded.encoder_attentions(layers)
        elif self.attentions:
            found["encoder_attentions"] = getattr(encoder_outputs, "attentions", None)
        return found


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
