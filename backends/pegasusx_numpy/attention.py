"""Attention a head at a time: its scores stay in the cache, and every thread takes one head after the other."""

from collections.abc import Sequence

import numpy as np

from pegasusx_numpy.threads import for_each, split

QUERIES = 512  # of a piece at the most: bounds its scores where blocks are large
FEW = 32  # queries, as in decoding: reading the keys takes longer than multiplying them
LITTLE = 2**24  # multiplications that are done before another thread has woken up
KEYS = 128  # in a small matrix: see `products.few_rows_times`


def attention(
    q_BHLF: np.ndarray, k_BHXF: np.ndarray, v_BHXF: np.ndarray, visible: np.ndarray | None = None
) -> np.ndarray:
    """Compute `pegasusx_ref.golden.attention.attention`."""
    B, H, L, F = q_BHLF.shape
    context_BHLF = like_heads(q_BHLF)
    hidden = None if visible is None else np.broadcast_to(~visible, (B, *visible.shape[1:]))

    def work(piece: tuple[int, slice | int]) -> None:
        b, some = piece
        attend = attend_many if isinstance(some, int) else attend_few
        mask = None if hidden is None else hidden[b]
        context_BHLF[b, some] = attend(q_BHLF[b, some], k_BHXF[b, some], v_BHXF[b, some], mask)

    if L > FEW:
        heads: Sequence[slice | int] = range(H)
    elif B * L == 1 or H * L * k_BHXF.shape[2] * F <= LITTLE:
        heads = [slice(None)]
    else:
        heads = split(H, H)
    pieces = [(b, some) for b in range(B) for some in heads]
    for_each(pieces, work)
    return context_BHLF


def attend_many(q_LF: np.ndarray, k_XF: np.ndarray, v_XF: np.ndarray, hidden: np.ndarray | None = None) -> np.ndarray:
    """Attend with one head: the golden steps in place, the quotient after the product.

    Args:
        q_LF: queries (L, F).
        k_XF: keys (X, F), one at least.
        v_XF: values (X, F).
        hidden: True where a query must not see a key (L, X), with 1 for L where it is the same for all; None: nowhere.

    Returns:
        Attended values (L, F).
    """
    context_LF = np.empty_like(q_LF)
    for start in range(0, len(q_LF), QUERIES):
        rows = slice(start, start + QUERIES)
        scores_SX = (q_LF[rows] * q_LF.shape[1] ** -0.5) @ k_XF.T
        if hidden is not None:
            _hide(scores_SX, hidden if len(hidden) == 1 else hidden[rows])
        sums_S1 = exponentials(scores_SX)
        context_LF[rows] = scores_SX @ v_XF
        context_LF[rows] /= sums_S1
    return context_LF


def attend_few(q_HLF: np.ndarray, k_HXF: np.ndarray, v_HXF: np.ndarray, hidden: np.ndarray | None = None) -> np.ndarray:
    """Attend with few queries and some heads: keys and values in small matrices, which OpenBLAS takes as they are.

    Args:
        q_HLF: queries (H, L, F).
        k_HXF: keys (H, X, F), one at least.
        v_HXF: values (H, X, F).
        hidden: see `attend_many`.

    Returns:
        Attended values (H, L, F).
    """
    H, L, F = q_HLF.shape
    X = k_HXF.shape[1]
    size = KEYS if L > 1 else X  # a single query multiplies a matrix by a vector, which is no trouble
    whole = X // size * size
    q_HLF = q_HLF * F**-0.5

    def in_small(x_HXF: np.ndarray) -> np.ndarray:
        return x_HXF[:, :whole].reshape(H, -1, size, F)

    scores_HLX = np.empty((H, L, X), dtype=q_HLF.dtype)
    small = scores_HLX[:, :, :whole].reshape(H, L, -1, size)
    small[:] = (q_HLF[:, None] @ in_small(k_HXF).swapaxes(2, 3)).swapaxes(1, 2)
    scores_HLX[:, :, whole:] = q_HLF @ k_HXF[:, whole:].swapaxes(1, 2)
    if hidden is not None:
        _hide(scores_HLX, hidden)
    sums_HL1 = exponentials(scores_HLX)
    context_HLF: np.ndarray = (small.swapaxes(1, 2) @ in_small(v_HXF)).sum(axis=1)
    context_HLF += scores_HLX[:, :, whole:] @ v_HXF[:, whole:]
    context_HLF /= sums_HL1
    return context_HLF


def exponentials(scores: np.ndarray) -> np.ndarray:
    """Put exp(score - the row's maximum) in the place of scores (..., X), and give each row's sum (..., 1)."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    sums: np.ndarray = scores.sum(axis=-1, keepdims=True)
    return sums


def _hide(scores: np.ndarray, hidden: np.ndarray) -> None:
    np.copyto(scores, np.finfo(scores.dtype).min, where=hidden)


def like_heads(x_BHTF: np.ndarray) -> np.ndarray:
    """Make room for attended values whose heads lie side by side, so that merging them copies nothing."""
    B, H, T, F = x_BHTF.shape
    return np.empty((B, T, H, F), dtype=x_BHTF.dtype).swapaxes(1, 2)
