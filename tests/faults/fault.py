"""A fault of the suite: the injected bug, the tensor that `verify` must flag, and the diagnosis."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from faults.injection import (
    Injection,
    positions,
)
from pegasusx_ref.golden.embedding import sinusoidal_positions

EVERYWHERE = ("float64", "float32", "bfloat16")
FINE = ("float64", "float32")  # smaller than bfloat16 rounding
LOW = ("float32", "bfloat16")  # a fault of low precision

Tensors = Mapping[str, np.ndarray]


class Fault(NamedTuple):
    """One injected bug.

    Attributes:
        name: the fault in words.
        where: the tensor that must be flagged first.
        model: changes a live transformers model in memory.
        dump: changes a stored tensor; takes the right one, and all tensors.
        diagnosis: the expected diagnosis; None where it is not among the known bugs.
        seen_in: the arithmetics in which it exceeds rounding.
        config: settings that differ from `fault_table.CONFIG`.
    """

    name: str
    where: str
    model: Injection | None = None
    dump: Callable[[np.ndarray, Tensors], np.ndarray] | None = None
    diagnosis: str | None = None
    seen_in: tuple[str, ...] = EVERYWHERE
    config: Mapping[str, Any] = {}


LAYER_0, LAYER_1 = "encoder.layers.0", "encoder.layers.1"
LOCAL, GLOBAL = "compute_local_attention_representations", "compute_global_attention_representations"
SUM = "hidden_states = residual + hidden_states"  # three times in a decoder layer
ROOT = math.sqrt(32)


def exact_positions(side: str, first: int = 0) -> Injection:
    """Add the specification's positions; transformers computes them in the model's dtype."""
    return positions(side, lambda T, D: sinusoidal_positions(first, T, D))
