"""Stable top-k over large vocabularies, by sorting a few chunks of columns."""

import numpy as np

CHUNK = 256  # columns: smaller chunks are more to compare with each other, larger ones leave more to sort


def stable_top_k(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute `golden.top_k.stable_top_k`; shapes are fixed, so it never waits for the device.

    The best scores are in the best chunks of columns, where chunks are ordered as scores are: by their largest score,
    the lower chunk first among equals. So only these chunks are sorted.

    Args:
        scores: (B, n), without NaN.
        count: number of scores to return; all n if there are fewer.
    """
    num_chunks = scores.shape[1] // CHUNK
    if num_chunks <= count:
        columns = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(scores, columns, axis=1), columns
    in_chunks = scores[:, : num_chunks * CHUNK].reshape(-1, num_chunks, CHUNK)
    _, chunks = stable_top_k(in_chunks.max(axis=2), count)
    chunks = np.sort(chunks, axis=1)  # column order decides among equal scores
    candidates = np.take_along_axis(in_chunks, chunks[:, :, None], axis=1).reshape(-1, count * CHUNK)
    candidates = np.concatenate([candidates, scores[:, num_chunks * CHUNK :]], axis=1)  # always with the remainder
    best, places = stable_top_k(candidates, count)
    chunks = np.concatenate([chunks, np.full_like(chunks[:, :1], num_chunks)], axis=1)
    return best, np.take_along_axis(chunks, places // CHUNK, axis=1) * CHUNK + places % CHUNK
