"""What a hypothesis may look at. [spec 16]"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.model.config import PegasusXConfig

Variants = dict[str, Callable[[], np.ndarray]]  # a mistake in words, and the result with it


class Surroundings(NamedTuple):
    """What there is beside an operation.

    Attributes:
        config: of the model.
        weights: of the model, by checkpoint name.
        source_mask_BT: True where a source token is real.
        tensors: the candidate's tensors of the same layer, by trace-point name.
    """

    config: PegasusXConfig
    weights: Mapping[str, np.ndarray]
    source_mask_BT: np.ndarray
    tensors: Mapping[str, np.ndarray]


class Case(NamedTuple):
    """An operation whose result is wrong.

    A variant of it is the whole result with one mistake. Rows of NaN are not compared: those of padding, where the
    mistake is about which tokens there are. The shape may be another one than it should be.

    Attributes:
        name: of its result.
        inputs: the candidate's own tensors that went in.
        settings: what else went in, as the operation names it.
        around: what there is beside it.
    """

    name: str
    inputs: tuple[np.ndarray, ...]
    settings: Mapping[str, Any]
    around: Surroundings
