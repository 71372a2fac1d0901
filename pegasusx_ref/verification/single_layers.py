"""Runs of single layers, from the tensors that enter them. [spec 16]"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.decoder import decoder_layer
from pegasusx_ref.model.encoder import encoder_layer, layer_blocks
from pegasusx_ref.model.forward import visible_targets
from pegasusx_ref.model.inputs import mask as check_mask
from pegasusx_ref.tracing import scope
from pegasusx_ref.verification.candidates.inputs import real_tokens

LAYERS = re.compile(r"(encoder|decoder)\.(\d{1,5})(?:-(\d{1,5}))?")


class LayerRunner:
    """Runs single layers of a model under the names of their trace points.

    Args:
        model: the model.
        arrays: ids and masks of the run; a mask may be None.
    """

    def __init__(self, model: PegasusXForConditionalGeneration, arrays: Mapping[str, Any]) -> None:
        ops, shapes = model.ops, {name: np.shape(arrays[name]) for name in ("input_ids", "decoder_input_ids")}
        mask = check_mask("attention_mask", arrays.get("attention_mask"), shapes["input_ids"])
        self._model, self._arrays = model, arrays
        self._source_mask_BT = None if mask is None else ops.asarray(mask)
        B, L = shapes["decoder_input_ids"]
        self._visible = visible_targets(ops, arrays.get("decoder_attention_mask"), B, L, 0)

    def run(self, place: str, *states: Any) -> None:
        """Run a layer.

        Args:
            place: such as "encoder.layers.0".
            states: what enters it: tokens (B, T, D) and global tokens (B, G, D), or hidden states of the target
                (B, L, D) and the encoder's output (B, T, D).
        """
        ops, config, weights = self._model.ops, self._model.config, self._model.weights.at(place)
        with scope(place):
            if place.startswith("encoder"):
                tokens_BTD, globals_BGD = states
                blocks = layer_blocks(config, tokens_BTD.shape[1], int(place.rpartition(".")[2]))
                encoder_layer(ops, weights, config, tokens_BTD, globals_BGD, self._source_mask_BT, blocks)
            else:
                x_BLD, encoded_BTD = states
                decoder_layer(ops, weights, config, x_BLD, self._visible, encoded_BTD, self._source_mask_BT, None)

    def states(self, place: str, tensors: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return a candidate's tensors that enter a layer; what is not finite in padding becomes 0.

        Args:
            place: such as "encoder.layers.0".
            tensors: of the candidate.

        Raises:
            InputError: one is not shown, has another shape, or is not finite.
        """
        config = self._model.config
        source, target = real_tokens(self._arrays)
        global_tokens = np.ones((len(source), config.num_global_tokens), bool)
        reals = (source, global_tokens) if place.startswith("encoder") else (target, source)
        found = []
        for names, real in zip(entering(place), reals, strict=True):
            name = next((name for name in names if name in tensors), None)
            if name is None:
                raise InputError(f"{place} cannot be checked alone: the candidate shows neither {' nor '.join(names)}")
            state, shape = tensors[name], (*real.shape, config.d_model)
            if state.shape != shape:
                raise InputError(f"{place} cannot be checked alone: {name} has shape {state.shape}, expected {shape}")
            is_finite = np.isfinite(state)
            if not is_finite[real].all():
                raise InputError(f"{place} cannot be checked alone: {name} is not finite")
            found.append(np.where(is_finite, state, 0))
        return found


def entering(place: str) -> list[tuple[str, ...]]:
    """List what enters a layer: for each tensor its names, of which one is enough.

    Args:
        place: such as "encoder.layers.0".
    """
    side, _, number = place.split(".")
    before = f"{side}.layers.{int(number) - 1}"
    if side == "decoder":
        first = ("decoder.embeddings" if number == "0" else f"{before}.output",)
        return [(f"{place}.input", *first), ("encoder.layer_norm",)]
    starts = {"tokens": "encoder.embeddings", "globals": "encoder.embed_global"}
    return [
        (f"{place}.{stream}.input", start if number == "0" else f"{before}.{stream}.output")
        for stream, start in starts.items()
    ]


def parse_layers(layers: Iterable[str], config: PegasusXConfig) -> list[str]:
    """Parse "encoder.0" or "decoder.2-4" into places such as "encoder.layers.0", in order of execution. [spec 16.21]

    Args:
        layers: names, or a str of names with commas between them.
        config: of the model.

    Raises:
        InputError: a name of another form, or a layer that the model does not have.
    """
    counts = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    found = set()
    for name in layers.replace(" ", "").split(",") if isinstance(layers, str) else layers:
        match = LAYERS.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise InputError(f"layers: {shown(name)}: expected a name such as encoder.0 or decoder.2-4")
        side, first = match.group(1), int(match.group(2))
        last = int(match.group(3) or first)
        if first > last:
            raise InputError(f"layers: {shown(name)}: the range is reversed: write {side}.{last}-{first}")
        if last >= counts[side]:
            raise InputError(f"layers: {shown(name)}: the model has the {side} layers 0 to {counts[side] - 1}")
        found |= {(side, number) for number in range(first, last + 1)}
    if not found:
        raise InputError("layers are empty: name one, such as encoder.0, or pass None for the whole model")
    return [f"{side}.layers.{number}" for side in counts for number in sorted(n for s, n in found if s == side)]
