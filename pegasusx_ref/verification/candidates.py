"""Where a candidate's tensors come from: one of our backends, any function, transformers' model. [spec 16]"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.tracing import record
from pegasusx_ref.verification.dumps import renamed

Inputs = Mapping[str, Any]  # arrays: input_ids, attention_mask, decoder_input_ids, decoder_attention_mask
Candidate = Callable[[Inputs], Mapping[str, np.ndarray]]


def from_backend(model: PegasusXForConditionalGeneration) -> Candidate:
    """Make a candidate of a model on any of our backends."""

    def run(inputs: Inputs) -> dict[str, np.ndarray]:
        with record() as trace:
            model(**inputs)
        return {name: model.ops.to_numpy(tensor) for name, tensor in trace.items()}

    return run


def from_callable(
    function: Callable[[Inputs], Mapping[str, Any] | Iterable[tuple[str, Any]]],
    mapping: str | Path | Mapping[str, Any] | None = None,
) -> Candidate:
    """Make a candidate of any function.

    Args:
        function: takes the inputs, arrays by name, and returns tensors of NumPy or torch by name, a mapping or pairs.
        mapping: from its names to those of the trace points, as of `from_dump`.
    """

    def run(inputs: Inputs) -> Mapping[str, np.ndarray]:
        tensors = function(inputs)
        return renamed(tensors if isinstance(tensors, Mapping) else dict(tensors), mapping)

    return run


def from_transformers(model: Any) -> Candidate:
    """Make a candidate of a live `PegasusXForConditionalGeneration` of transformers. [spec 16.12]

    Modules are watched by hooks, the softmaxes inside attention by a `TorchFunctionMode`; nothing of the model is
    replaced, and what is captured is copied. With ``attn_implementation="eager"`` the decoder shows its scores too.

    Args:
        model: transformers' model, in `eval` mode.
    """

    def run(inputs: Inputs) -> Mapping[str, np.ndarray]:
        from pegasusx_ref.verification.transformers_capture import Capture

        return Capture(model, PegasusXConfig.from_dict(model.config.to_dict()), inputs)

    return run
