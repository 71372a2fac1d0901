"""What a known bug may look at: the failed operation, and what surrounds it in its layer. [spec 16]"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.verification.checking.estimate import Estimate

Variants = dict[str, Callable[[], np.ndarray]]  # a bug in words, and a function that computes the result with it


class LayerContext(NamedTuple):
    """The model, and the candidate's tensors in the layer of a failed operation.

    Attributes:
        config: the model's configuration.
        weights: of the model, by checkpoint name.
        source_mask_BT: True where a source token is real.
        tensors: the candidate's tensors of the same layer, by trace-point name.
    """

    config: PegasusXConfig
    weights: Mapping[str, np.ndarray]
    source_mask_BT: np.ndarray
    tensors: Mapping[str, np.ndarray]


class FailedOperation(NamedTuple):
    """An operation whose result is wrong.

    A variant is the whole result with one bug. Rows of NaN are not compared: padding, where the bug changes which
    tokens there are. A variant may have another shape than the right result.

    Attributes:
        name: the name of its result.
        inputs: the candidate's own tensors that it computed from.
        settings: its other arguments, by name.
        layer: the model, and the other tensors of the layer.
        estimate: its right result, for what it was computed from.
        rows: the rows of the result to compute: indices of its last axis but one; None means all. A variant of
            attention has NaN in the others; operations on single rows need not look at this.
    """

    name: str
    inputs: tuple[np.ndarray, ...]
    settings: Mapping[str, Any]
    layer: LayerContext
    estimate: Estimate | None = None
    rows: np.ndarray | None = None

    @property
    def num_heads(self) -> int:
        """The number of heads of its side of the model."""
        return int(getattr(self.layer.config, f"{self.name.partition('.')[0]}_attention_heads"))
