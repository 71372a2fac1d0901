"""The rows of a tensor that count: those of real tokens. [spec 16]"""

from collections.abc import Sequence

import numpy as np

from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.tracing.trace_points import is_gradient, letters_of, numbers_in


class ValidRows:
    """The rows that belong to real tokens.

    Args:
        source_mask_BT: True where a source token is real.
        target_mask_BL: True where a target token is real.
        blocks: of every encoder layer.
        texts: the only texts of the batch that are verified, by number; None means all.
    """

    def __init__(
        self,
        source_mask_BT: np.ndarray,
        target_mask_BL: np.ndarray,
        blocks: list[Blocks],
        texts: Sequence[int] | None = None,
    ) -> None:
        self.texts = np.arange(len(source_mask_BT)) if texts is None else np.array(texts)
        is_verified = np.isin(np.arange(len(source_mask_BT)), self.texts)[:, None]
        self.source_mask_BT, self.blocks = source_mask_BT & is_verified, blocks
        # The target of a source without a real token has no meaning.
        self.target_mask_BL = target_mask_BL & self.source_mask_BT.any(axis=1, keepdims=True)
        # Every row of a text has a gradient, unless a query sees no key: implementations average over different ones.
        self.has_gradient_B = self.target_mask_BL[:, 0]

    def block(self, name: str) -> tuple[int, int]:
        """Return start and stop of the block that a tensor belongs to."""
        layer, block = numbers_in(name)
        return self.blocks[layer][block]

    def mask(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return which rows of a tensor, or of a gradient, of the verified texts count.

        Args:
            name: the tensor's name.
            shape: the tensor's shape; its last axis is a row.

        Returns:
            Booleans of the shape without the last axis.
        """
        letters = letters_of(name)
        if is_gradient(name) and letters:
            text = self.has_gradient_B[self.texts]
            return np.broadcast_to(text.reshape(-1, *[1] * (len(shape) - 2)), shape[:-1])
        letter = letters[-2:-1]
        if letter in ("G", ""):
            return np.ones(shape[:-1], dtype=bool)
        mask = (self.target_mask_BL if letter == "L" else self.source_mask_BT)[self.texts]
        if letter == "S":
            mask = mask[:, slice(*self.block(name))]
        return np.broadcast_to(mask if len(shape) == 3 else mask[:, None], shape[:-1])

    def in_batch(self, rows: np.ndarray, other: float) -> np.ndarray:
        """Return an array of the verified texts as one of all texts, with a value for the others."""
        found = np.full((len(self.source_mask_BT), *rows.shape[1:]), other, dtype=rows.dtype)
        found[self.texts] = rows
        return found
