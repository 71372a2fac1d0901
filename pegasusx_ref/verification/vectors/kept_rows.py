"""The part of a trace that a vector keeps: all of it, or the rows of some source tokens and their columns as keys."""

from typing import NamedTuple

import numpy as np

from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general
from pegasusx_ref.verification.checking.valid_rows import ValidRows


class Selection(NamedTuple):
    """Some indices along one axis of a tensor."""

    axis: int
    indices: list[int]

    def take(self, array: np.ndarray) -> np.ndarray:
        """Take the indices; return an array without the axis, such as a mask of rows, as it is."""
        return array.take(self.indices, axis=self.axis) if self.axis < array.ndim else array


class KeptRows:
    """The part of each tensor that is kept.

    Args:
        rows: source tokens; None keeps everything.
        valid: which rows count, and the blocks of every encoder layer.
        num_globals: G.
    """

    def __init__(self, rows: tuple[int, ...] | None, valid: ValidRows, num_globals: int) -> None:
        self._rows, self.valid, self._num_globals = rows, valid, num_globals

    def keeps(self, name: str) -> bool:
        """Return whether any part of a tensor is kept; a block without any of the rows is left out."""
        selection = self.selection(name)
        return selection is None or bool(selection.indices)

    def selection(self, name: str) -> Selection | None:
        """Return the part of a tensor that is kept; None is the whole."""
        if self._rows is None:
            return None
        letters = TRACE_POINTS[general(name)]
        if "S" in letters:
            start, stop = self.valid.block(name)
            return Selection(letters.index("S"), [row - start for row in self._rows if start <= row < stop])
        if "T" in letters:
            return Selection(letters.index("T"), list(self._rows))
        if letters == "BHGX":  # the keys of global tokens: the global tokens, then the tokens
            G = self._num_globals
            return Selection(3, [*range(G), *(G + row for row in self._rows)])
        return None

    def take(self, name: str, array: np.ndarray) -> np.ndarray:
        """Return the part of a tensor that is kept."""
        selection = self.selection(name)
        return array if selection is None else selection.take(array)

    def take_valid(self, name: str, array: np.ndarray) -> np.ndarray:
        """Return the rows that are kept and count, as a matrix."""
        found: np.ndarray = self.take(name, array)[self.take(name, self.valid.mask(name, array.shape))]
        return found
