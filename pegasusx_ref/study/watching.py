"""A run, watched: of every tensor its range and norm are kept, not the tensor, so that long inputs fit."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.study.tensor_values import is_masked


class Summary(NamedTuple):
    """The numbers of a tensor in short; masked scores, which are the lowest number of the dtype, do not count.

    Attributes:
        dtype: of the tensor.
        minimum: NaN where nothing counts or something is NaN, like the next two.
        maximum: see above.
        rms: root of the mean square: the norm of the tensor, divided by the root of the number of its elements.
        counted: elements that count.
        masked: elements that do not.
    """

    dtype: str
    minimum: float
    maximum: float
    rms: float
    counted: int
    masked: int


def summary_of(tensor: np.ndarray, is_scores: bool) -> Summary:
    """Summarize a tensor.

    Args:
        tensor: of floating-point numbers.
        is_scores: elements that are the dtype's lowest number are masked.
    """
    values = tensor.ravel()
    if is_scores:
        values = values[~is_masked(values)]
    masked = tensor.size - values.size
    if not values.size:
        return Summary(tensor.dtype.name, np.nan, np.nan, np.nan, 0, masked)
    minimum, maximum = float(values.min()), float(values.max())
    largest = float(np.maximum(-minimum, maximum))
    # Squares of large numbers would overflow.
    rms = largest * float(np.linalg.norm(values / largest)) / values.size**0.5 if 0 < largest < np.inf else largest
    return Summary(tensor.dtype.name, minimum, maximum, rms, values.size, masked)


def joined(summaries: Iterable[Summary]) -> Summary:
    """Summarize several tensors as if they were one: the blocks of a layer."""
    parts = list(summaries)
    if len(parts) == 1:
        return parts[0]
    seen = [part for part in parts if part.counted]
    counted, masked = sum(part.counted for part in seen), sum(part.masked for part in parts)
    if not seen:
        return parts[0]._replace(masked=masked)
    rms = math.hypot(*(part.rms * math.sqrt(part.counted / counted) for part in seen))
    # NumPy's minimum and maximum hand NaN on, Python's do not.
    minimum, maximum = np.min([part.minimum for part in seen]), np.max([part.maximum for part in seen])
    return Summary(parts[0].dtype, float(minimum), float(maximum), rms, counted, masked)


class Watch:
    """A listener that summarizes every tensor; `summaries` has them by name, in the order of execution."""

    def __init__(self) -> None:
        self.summaries: dict[str, Summary] = {}

    def __call__(self, name: str, tensor: Any) -> None:
        """See `listen`."""
        self.summaries[name] = summary_of(np.asarray(tensor), name.endswith(".scores"))
