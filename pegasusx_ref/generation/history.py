"""Several texts for one source side by side: rows of one decoder call, each with its own history. [spec 12]

Beams and samples are extra rows of the target axis, never copies of the source. What each of them wrote before stands
in the caches in the order of writing; a table of ancestors says which of it belongs to whom, so that nothing in the
caches is ever moved or copied when beams are exchanged.
"""

from typing import Protocol

import numpy as np

from pegasusx_ref.backend import Array


class NextLogits(Protocol):
    """The model, as decoding sees it."""

    def __call__(self, ids_BL: np.ndarray, visible: np.ndarray | None) -> Array:
        """Decode the newest token of each row.

        Args:
            ids_BL: the newest id of each of the L rows of each source (B, L).
            visible: which of all tokens written so far, step by step and row by row, each row may see (B, L, X);
                as `visible_history` gives it.

        Returns:
            Logits of the tokens that follow (B, L, V), on the device; the next call may write over them.
        """


def own_history(batch_size: int, num_rows: int, num_steps: int) -> np.ndarray:
    """Say of every row that it wrote its own history: its number, for so many steps (B, L, steps)."""
    return np.broadcast_to(np.arange(num_rows)[None, :, None], (batch_size, num_rows, num_steps))


def visible_history(ancestors: np.ndarray) -> np.ndarray | None:
    """Let each row see what it and its ancestors wrote, and its newest token. [spec 12.10]

    Args:
        ancestors: at every earlier step, the row in which this row's history was written (B, L, n).

    Returns:
        Booleans (B, L, (n + 1) L) over all tokens written, row by row within a step, the newest step last; None where
        there is one row a source, which sees everything.
    """
    B, L, _ = ancestors.shape
    if L == 1:
        return None
    writers = np.concatenate([ancestors, own_history(B, L, 1)], axis=2)
    return (writers[..., None] == np.arange(L)).reshape(B, L, -1)
