"""Stable top-k, the selection of candidates in beam search. [spec 12]"""

import numpy as np


def stable_top_k(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best scores of each row, best first; among equal scores the lower column comes first. [spec 12.16]

    Args:
        scores: (B, n), without NaN.
        count: number of scores to return; all n if there are fewer.

    Returns:
        The scores (B, count) and their columns (B, count).
    """
    columns = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, columns, axis=1), columns
