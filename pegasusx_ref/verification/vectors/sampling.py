"""Which part of a long trace is kept: the rows of some source tokens, and the columns where they are keys."""

from typing import NamedTuple

import numpy as np

from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general, numbers_in


class Sample(NamedTuple):
    """What is kept of a tensor: some places along one axis."""

    axis: int
    indices: list[int]

    def of(self, array: np.ndarray) -> np.ndarray:
        """Take it; of an array without that axis, such as a mask of rows beside sampled columns, everything."""
        return array.take(self.indices, axis=self.axis) if self.axis < array.ndim else array


class Sampling:
    """What is kept of every tensor of a trace.

    Args:
        rows: source tokens; None keeps everything.
        blocks: the blocks of every encoder layer.
        num_globals: G.
    """

    def __init__(self, rows: tuple[int, ...] | None, blocks: list[Blocks], num_globals: int) -> None:
        self._rows, self._slices, self._num_globals = rows, blocks, num_globals

    def keeps(self, name: str) -> bool:
        """Tell whether anything of a tensor is kept: of a block without any of the rows nothing is."""
        sample = self.of(name)
        return sample is None or bool(sample.indices)

    def of(self, name: str) -> Sample | None:
        """Say what is kept of a tensor; None is the whole."""
        if self._rows is None:
            return None
        letters = TRACE_POINTS[general(name)]
        if "S" in letters:
            start, stop = self.block(name)
            return Sample(letters.index("S"), [row - start for row in self._rows if start <= row < stop])
        if "T" in letters:
            return Sample(letters.index("T"), list(self._rows))
        if letters == "BHGX":  # the keys of global tokens: the global tokens, then the tokens
            G = self._num_globals
            return Sample(3, [*range(G), *(G + row for row in self._rows)])
        return None

    def block(self, name: str) -> tuple[int, int]:
        """Give start and stop of the block that a tensor of a slice belongs to."""
        layer, n = numbers_in(name)
        return self._slices[layer][n]
