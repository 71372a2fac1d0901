"""Which elements of a tensor count: the rows of real tokens. [spec 16]"""

import re

import numpy as np

from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general, numbers_in


class ValidRows:
    """The rows that belong to real tokens.

    Args:
        source_mask_BT: True where a source token is real.
        target_mask_BL: True where a target token is real.
        blocks: of every encoder layer.
    """

    def __init__(
        self, source_mask_BT: np.ndarray, target_mask_BL: np.ndarray, blocks: list[list[tuple[int, int]]]
    ) -> None:
        self.source_mask_BT, self.blocks = source_mask_BT, blocks
        # What is written of a source without any real token means nothing.
        self.target_mask_BL = target_mask_BL & source_mask_BT.any(axis=1, keepdims=True)

    def names_beside(self, name: str) -> list[str]:
        """List the tensors of the layer that a tensor belongs to; of no layer, none."""
        layer = re.match(r"\w+\.layers\.(\d+)\.", name)
        if layer is None:
            return []
        i, points = int(layer.group(1)), [p for p in TRACE_POINTS if p.startswith(general(layer.group()))]
        blocks = range(len(self.blocks[i]) if name.startswith("encoder") else 1)
        return list(dict.fromkeys(point.format(i=i, n=n) for n in blocks for point in points))

    def of(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Say which rows of a tensor count.

        Args:
            name: of the tensor.
            shape: of the tensor; its last axis is a row.

        Returns:
            Booleans of the shape without the last axis.
        """
        letter = TRACE_POINTS[general(name)][-2]
        if letter == "G":
            return np.ones(shape[:-1], dtype=bool)
        mask = self.target_mask_BL if letter == "L" else self.source_mask_BT
        if letter == "S":
            layer, block = numbers_in(name)
            start, stop = self.blocks[layer][block]
            mask = mask[:, start:stop]
        return np.broadcast_to(mask if len(shape) == 3 else mask[:, None], shape[:-1])
