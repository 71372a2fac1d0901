"""Sources of a candidate's tensors: one of our backends, any function, a transformers model. [spec 16]"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.tracing import record
from pegasusx_ref.verification.candidates.inputs import Inputs
from pegasusx_ref.verification.candidates.mapping import map_names
from pegasusx_ref.verification.candidates.name_maps import NameMap

Candidate = Callable[[Inputs], Mapping[str, np.ndarray]]


def from_backend(model: PegasusXForConditionalGeneration, layerwise: bool = False) -> Candidate:
    """Return a candidate that runs a model on one of our backends.

    Args:
        model: on any backend.
        layerwise: keep the tensors of one layer at a time, and run a layer again when one of its tensors is read; for
            long texts, whose tensors do not fit into memory.
    """

    def run(inputs: Inputs) -> Mapping[str, np.ndarray]:
        from pegasusx_ref.verification.candidates.backend_capture import LayerwiseTensors

        if layerwise:
            return LayerwiseTensors(model, inputs)
        with record() as trace:
            if "labels" in inputs:
                _, gradients = model.loss_and_gradients(**inputs)
                trace |= {f"{name}.grad": gradient for name, gradient in gradients.items()}
            else:
                model(**inputs)
        return {name: model.ops.to_numpy(tensor) for name, tensor in trace.items()}

    return run


def from_callable(
    function: Callable[[Inputs], Mapping[str, Any] | Iterable[tuple[str, Any]]],
    mapping: NameMap | None = None,
    config: PegasusXConfig | None = None,
) -> Candidate:
    """Return a candidate that calls a function.

    Args:
        function: takes the inputs (arrays by name) and returns NumPy or torch tensors by name, as a mapping or pairs.
        mapping: from trace-point names to the function's names, as in `from_dump`.
        config: the model's configuration, as in `from_dump`.
    """

    def run(inputs: Inputs) -> Mapping[str, np.ndarray]:
        tensors = function(inputs)
        return map_names(tensors if isinstance(tensors, Mapping) else dict(tensors), mapping, config, inputs)

    return run


def from_transformers(model: Any) -> Candidate:
    """Return a candidate that runs a live `PegasusXForConditionalGeneration` of transformers. [spec 16.12]

    Hooks watch the modules, and a `TorchFunctionMode` the softmaxes inside attention. Nothing of the model is replaced,
    and captured tensors are copied. With ``attn_implementation="eager"`` the decoder shows its scores too.

    Args:
        model: transformers' model, in `eval` mode. With labels among the inputs its gradients are captured too.
    """

    def run(inputs: Inputs) -> Mapping[str, np.ndarray]:
        from pegasusx_ref.verification.candidates.transformers_capture import Capture
        from pegasusx_ref.verification.candidates.transformers_gradients import GradientCapture

        capture = GradientCapture if "labels" in inputs else Capture
        return capture(model, PegasusXConfig.from_dict(model.config.to_dict()), inputs)

    return run
