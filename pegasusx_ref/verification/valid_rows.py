"""The rows of a tensor that count: those of real tokens. [spec 16]"""

import re

import numpy as np

from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general, numbers_in


class ValidRows:
    """The rows that belong to real tokens.

    Args:
        source_mask_BT: True where a source token is real.
        target_mask_BL: True where a target token is real.
        blocks: of every encoder layer.
    """

    def __init__(self, source_mask_BT: np.ndarray, target_mask_BL: np.ndarray, blocks: list[Blocks]) -> None:
        self.source_mask_BT, self.blocks = source_mask_BT, blocks
        # The target of a source without a real token has no meaning.
        self.target_mask_BL = target_mask_BL & source_mask_BT.any(axis=1, keepdims=True)

    def block(self, name: str) -> tuple[int, int]:
        """Return start and stop of the block that a tensor belongs to."""
        layer, block = numbers_in(name)
        return self.blocks[layer][block]

    def layer_tensor_names(self, name: str) -> list[str]:
        """List the tensors of the layer that a tensor belongs to; none where it belongs to no layer."""
        layer = re.match(r"\w+\.layers\.(\d+)\.", name)
        if layer is None:
            return []
        i, points = int(layer.group(1)), [p for p in TRACE_POINTS if p.startswith(general(layer.group()))]
        blocks = range(len(self.blocks[i]) if name.startswith("encoder") else 1)
        return list(dict.fromkeys(point.format(i=i, n=n) for n in blocks for point in points))

    def mask(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return which rows of a tensor count.

        Args:
            name: the tensor's name.
            shape: the tensor's shape; its last axis is a row.

        Returns:
            Booleans of the shape without the last axis.
        """
        letter = TRACE_POINTS[general(name)][-2]
        if letter == "G":
            return np.ones(shape[:-1], dtype=bool)
        mask = self.target_mask_BL if letter == "L" else self.source_mask_BT
        if letter == "S":
            mask = mask[:, slice(*self.block(name))]
        return np.broadcast_to(mask if len(shape) == 3 else mask[:, None], shape[:-1])
