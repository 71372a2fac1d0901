"""Several texts for one source: rows of one decoder call, each with its own history. [spec 12]

Beams and samples are extra rows on the target axis; the source is not copied. The caches hold the tokens of all rows in
the order in which they were generated. A table of ancestors records which of them belong to a row, so nothing in the
caches is moved or copied when beams change places.
"""

from typing import Protocol

import numpy as np

from pegasusx_ref.backend import Array


class NextLogits(Protocol):
    """The model, as a search sees it: newest ids in, logits of the next token out."""

    def __call__(self, ids_BL: np.ndarray, visible: np.ndarray | None) -> Array:
        """Decode the newest token of each row.

        Args:
            ids_BL: the newest id of each of the L rows of each source (B, L).
            visible: which of all generated tokens, ordered by step and row, each row may attend to (B, L, X), from
                `visible_history`.

        Returns:
            Logits of the next token (B, L, V), on the device; the next call may overwrite them.
        """


def own_history(batch_size: int, num_rows: int, num_steps: int) -> np.ndarray:
    """Return ancestors for rows that never changed places: each row's own number at every step (B, L, steps)."""
    return np.broadcast_to(np.arange(num_rows)[None, :, None], (batch_size, num_rows, num_steps))


def visible_history(ancestors: np.ndarray) -> np.ndarray | None:
    """Let each row attend to the tokens of its ancestors and to its newest token. [spec 12.10]

    Args:
        ancestors: for every earlier step, the row that generated this row's token (B, L, n).

    Returns:
        Booleans (B, L, (n + 1) L) over all generated tokens, ordered by step and row, the newest step last; None with
        one row per source, which attends to everything.
    """
    B, L, _ = ancestors.shape
    if L == 1:
        return None
    writers = np.concatenate([ancestors, own_history(B, L, 1)], axis=2)
    return (writers[..., None] == np.arange(L)).reshape(B, L, -1)
