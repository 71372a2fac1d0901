"""Where a candidate's tensors come from: one of our backends, any function, transformers' model. [spec 16]"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pegasusx_ref.config import PegasusXConfig
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.tracing import record

Inputs = Mapping[str, Any]  # arrays: input_ids, attention_mask, decoder_input_ids, decoder_attention_mask
Candidate = Callable[[Inputs], Mapping[str, np.ndarray]]


def from_backend(model: PegasusXForConditionalGeneration) -> Candidate:
    """Make a candidate of a model on any of our backends."""

    def run(inputs: Inputs) -> dict[str, np.ndarray]:
        with record() as trace:
            model(**inputs)
        return {name: model.ops.to_numpy(tensor) for name, tensor in trace.items()}

    return run


def from_transformers(model: Any) -> Candidate:
    """Make a candidate of a live `PegasusXForConditionalGeneration` of transformers. [spec 16.12]

    Modules are watched by hooks, the softmaxes inside attention by a `TorchFunctionMode`; nothing of the model is
    replaced, and what is captured is copied. With ``attn_implementation="eager"`` the decoder shows its scores too.

    Args:
        model: transformers' model, in `eval` mode.
    """

    def run(inputs: Inputs) -> dict[str, np.ndarray]:
        from pegasusx_ref.verification.transformers_capture import Capture

        return Capture(model, PegasusXConfig.from_dict(model.config.to_dict())).run(inputs)

    return run
