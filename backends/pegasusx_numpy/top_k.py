"""Stable top-k over large vocabularies, by sorting only scores that can be among the best."""

import math

import numpy as np


def stable_top_k(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute `golden.top_k.stable_top_k`.

    Columns are divided into groups. The largest scores of the best `count` groups are that many scores, so no score
    below the least of them is among the best; and of those equal to it, only the first of each row can be.

    Args:
        scores: (B, n), without NaN.
        count: number of scores to return; all n if there are fewer.
    """
    B, n = scores.shape
    num_groups = 4 * math.isqrt(n)
    if count >= num_groups or num_groups > n:
        columns = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(scores, columns, axis=1), columns
    # Every num_groups-th column is of the same group: NumPy compares whole rows of groups at a time.
    whole = n // num_groups * num_groups
    largest = scores[:, :whole].reshape(B, -1, num_groups).max(axis=1)
    threshold = np.partition(largest, num_groups - count, axis=1)[:, num_groups - count, None]
    equal = np.flatnonzero(scores == threshold)
    place_in_row = np.arange(len(equal)) - np.searchsorted(equal, n * np.arange(B))[equal // n]
    above = np.flatnonzero(~(scores <= threshold))  # also NaN, after an overflow
    rows, columns = np.divmod(np.sort(np.concatenate([above, equal[place_in_row < count]])), n)
    order = np.lexsort((-scores[rows, columns], rows))
    best = columns[order][np.searchsorted(rows, np.arange(B))[:, None] + np.arange(count)]
    return np.take_along_axis(scores, best, axis=1), best
