"""Range and RMS of every tensor of a run, without keeping the tensors: long inputs fit in memory."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.study.tensor_values import is_masked


class Statistics(NamedTuple):
    """Statistics of a tensor, masked scores excluded: those have the lowest number of the dtype.

    Attributes:
        dtype: of the tensor.
        minimum: NaN if an element is NaN or all are masked; so are `maximum` and `rms`.
        maximum: see `minimum`.
        rms: root mean square.
        counted: number of elements that are not masked.
        masked: number of masked elements.
    """

    dtype: str
    minimum: float
    maximum: float
    rms: float
    counted: int
    masked: int


def statistics_of(tensor: np.ndarray, is_scores: bool) -> Statistics:
    """Compute the statistics of a tensor.

    Args:
        tensor: of floating-point numbers.
        is_scores: whether the dtype's lowest number marks a masked element.
    """
    values = tensor.ravel()
    if is_scores:
        values = values[~is_masked(values)]
    masked = tensor.size - values.size
    if not values.size:
        return Statistics(tensor.dtype.name, np.nan, np.nan, np.nan, 0, masked)
    minimum, maximum = float(values.min()), float(values.max())
    largest = float(np.maximum(-minimum, maximum))
    # Squares of large numbers would overflow.
    rms = largest * float(np.linalg.norm(values / largest)) / values.size**0.5 if 0 < largest < np.inf else largest
    return Statistics(tensor.dtype.name, minimum, maximum, rms, values.size, masked)


def combined(parts: Iterable[Statistics]) -> Statistics:
    """Combine the statistics of several tensors, such as the blocks of a layer, into those of their union."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    seen = [part for part in parts if part.counted]
    counted, masked = sum(part.counted for part in seen), sum(part.masked for part in parts)
    if not seen:
        return parts[0]._replace(masked=masked)
    rms = math.hypot(*(part.rms * math.sqrt(part.counted / counted) for part in seen))
    # NumPy's minimum and maximum propagate NaN, Python's do not.
    minimum, maximum = np.min([part.minimum for part in seen]), np.max([part.maximum for part in seen])
    return Statistics(parts[0].dtype, float(minimum), float(maximum), rms, counted, masked)


class StatisticsListener:
    """A listener that fills `statistics`: those of every tensor by name, in the order of execution."""

    def __init__(self) -> None:
        self.statistics: dict[str, Statistics] = {}

    def __call__(self, name: str, tensor: Any) -> None:
        """See `listen`."""
        self.statistics[name] = statistics_of(np.asarray(tensor), name.endswith(".scores"))
