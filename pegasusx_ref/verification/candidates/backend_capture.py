"""Capture of every tensor of one of our backends, a layer at a time. [spec 16]"""

from contextvars import copy_context
from typing import Any

import numpy as np

from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.tracing import listen, record
from pegasusx_ref.tracing.trace_points import layer_of
from pegasusx_ref.verification.candidates.inputs import Inputs
from pegasusx_ref.verification.candidates.read_on_access import ReadOnAccess
from pegasusx_ref.verification.single_layers import LayerRunner, entering


class LayerwiseTensors(ReadOnAccess):
    """Tensors of one run of a model: those between layers, and those inside the most recent layer.

    For a long text, the tensors inside all layers do not fit into memory. So a layer runs again when a tensor inside it
    is read.

    Args:
        model: on one of our backends.
        inputs: arrays by name.
    """

    def __init__(self, model: PegasusXForConditionalGeneration, inputs: Inputs) -> None:
        self._to_numpy = model.ops.to_numpy
        self._names: dict[str, None] = {}  # in the order of execution
        self._between: dict[str, Any] = {}
        self._inside: dict[str, Any] = {}
        self._current = ""  # the layer whose inner tensors are stored
        kept = {names[0] for side in ("encoder", "decoder") for names in entering(f"{side}.layers.0")}

        def keep(name: str, tensor: Any) -> None:
            self._names[name] = None
            if layer_of(name) == "" or name.replace(layer_of(name), f"{name[:7]}.layers.0") in kept:
                self._between[name] = tensor

        with listen(keep):
            model(**inputs)
        self._runner = LayerRunner(model, inputs)
        self._context = copy_context()  # with the listeners of this run

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._between:
            return self._to_numpy(self._between[name])
        if name not in self._names:
            raise KeyError(name)
        if (place := layer_of(name)) != self._current:
            states = [self._between[names[0]] for names in entering(place)]
            self._inside = {}  # frees the memory of the previous layer
            self._inside = self._context.run(self._run, place, states)
            self._current = place
        return self._to_numpy(self._inside[name])

    def _run(self, place: str, states: list[Any]) -> dict[str, Any]:
        with record() as trace:
            self._runner.run(place, *states)
        return trace
