"""Dense attention on several threads, some heads at a time, so that their scores stay in the cache."""

import numpy as np

from pegasusx_numpy.thread_pool import balanced_chunks, parallel_for
from pegasusx_numpy.workspace import empty

MAX_QUERIES = 512  # of a chunk: bounds its scores where blocks are large
MAX_GROUPED_SCORES = 2**16  # of heads that are computed together: with fewer, Python takes longer than the products
FEW_QUERIES = 32  # as in decoding: up to here reading the keys takes longer than multiplying with them
MIN_PARALLEL_KEYS = 2**20  # numbers, with few queries: fewer are read before another thread has started
KEYS_PER_GEMM = 128  # with few queries: see `linear.gemm_few_rows`


def attention(
    q_BHLF: np.ndarray, k_BHXF: np.ndarray, v_BHXF: np.ndarray, visible: np.ndarray | None = None
) -> np.ndarray:
    """Compute `pegasusx_ref.golden.attention.attention`."""
    B, H, L, F = q_BHLF.shape
    context_BHLF = empty_context(q_BHLF)
    masked = None if visible is None else np.broadcast_to(~visible, (B, *visible.shape[1:]))

    def work(item: tuple[int, slice]) -> None:
        b, heads = item
        attend = attention_of_heads if L > FEW_QUERIES else attention_few_queries
        mask = None if masked is None else masked[b]
        context_BHLF[b, heads] = attend(q_BHLF[b, heads], k_BHXF[b, heads], v_BHXF[b, heads], mask)

    if L > FEW_QUERIES:
        groups = head_groups(H, L * k_BHXF.shape[2])
    elif H * k_BHXF.shape[2] * F <= MIN_PARALLEL_KEYS:
        groups = [slice(None)]
    else:
        groups = balanced_chunks(H, H)
    parallel_for([(b, heads) for b in range(B) for heads in groups], work)
    return context_BHLF


def head_groups(num_heads: int, num_scores: int) -> list[slice]:
    """Split the heads into groups that are computed together: single heads unless these have few scores.

    Args:
        num_heads: H.
        num_scores: of a head.
    """
    size = max(MAX_GROUPED_SCORES // num_scores, 1)
    return [slice(start, start + size) for start in range(0, num_heads, size)]


def attention_of_heads(
    q_HLF: np.ndarray, k_HXF: np.ndarray, v_HXF: np.ndarray, masked: np.ndarray | None = None
) -> np.ndarray:
    """Compute some heads in place, in chunks of queries; the context is normalized instead of the probabilities.

    Args:
        q_HLF: queries (H, L, F).
        k_HXF: keys (H, X, F), X >= 1.
        v_HXF: values (H, X, F).
        masked: True where a query may not attend to a key (L, X), or (1, X) for all queries; None means nowhere.

    Returns:
        Attended values (H, L, F).
    """
    _, L, F = q_HLF.shape
    context_HLF = np.empty_like(q_HLF)
    for start in range(0, L, MAX_QUERIES):
        rows = slice(start, start + MAX_QUERIES)
        scores_HSX = (q_HLF[:, rows] * F**-0.5) @ k_HXF.swapaxes(1, 2)
        masked_rows = masked if masked is None or len(masked) == 1 else masked[rows]
        sums_HS1 = exp_in_place(scores_HSX, masked_rows)
        np.matmul(scores_HSX, v_HXF, out=context_HLF[:, rows])
        context_HLF[:, rows] /= sums_HS1
    return context_HLF


def attention_few_queries(
    q_HLF: np.ndarray, k_HXF: np.ndarray, v_HXF: np.ndarray, masked: np.ndarray | None = None
) -> np.ndarray:
    """Compute some heads with few queries; keys and values are in small matrices, which OpenBLAS does not pack.

    Args:
        q_HLF: queries (H, L, F).
        k_HXF: keys (H, X, F), X >= 1.
        v_HXF: values (H, X, F).
        masked: see `attention_of_heads`.

    Returns:
        Attended values (H, L, F).
    """
    H, L, F = q_HLF.shape
    X = k_HXF.shape[1]
    size = KEYS_PER_GEMM if L > 1 else X  # a single query needs a matrix-vector product, which packs nothing
    whole = X // size * size
    q_HLF = q_HLF * F**-0.5

    def small_matrices(x_HXF: np.ndarray) -> np.ndarray:
        return x_HXF[:, :whole].reshape(H, -1, size, F)

    scores_HLX = np.empty((H, L, X), dtype=q_HLF.dtype)
    small_scores = scores_HLX[:, :, :whole].reshape(H, L, -1, size)
    small_scores[:] = (q_HLF[:, None] @ small_matrices(k_HXF).swapaxes(2, 3)).swapaxes(1, 2)
    scores_HLX[:, :, whole:] = q_HLF @ k_HXF[:, whole:].swapaxes(1, 2)
    sums_HL1 = exp_in_place(scores_HLX, masked)
    context_HLF: np.ndarray = (small_scores.swapaxes(1, 2) @ small_matrices(v_HXF)).sum(axis=1)
    context_HLF += scores_HLX[:, :, whole:] @ v_HXF[:, whole:]
    context_HLF /= sums_HL1
    return context_HLF


def exp_in_place(scores: np.ndarray, masked: np.ndarray | None = None) -> np.ndarray:
    """Replace scores (..., X) by exp(score - the row's maximum), and return the sum of each row (..., 1).

    Args:
        scores: finite or not; a row whose unmasked scores are all -inf becomes NaN.
        masked: True for keys whose scores become the lowest number; None means nowhere.
    """
    lowest = np.finfo(scores.dtype).min
    if masked is not None:
        np.copyto(scores, lowest, where=masked)
    largest = scores.max(axis=-1, keepdims=True)
    if masked is not None:
        largest[(largest == lowest) & ~masked.all(axis=-1, keepdims=True)] = np.nan
    scores -= largest
    np.exp(scores, out=scores)
    sums: np.ndarray = scores @ np.ones((scores.shape[-1], 1), scores.dtype)  # takes a quarter of the time of sum()
    return sums


def empty_context(q_BHTF: np.ndarray) -> np.ndarray:
    """Allocate attended values (B, H, T, F) as (B, T, H, F) in memory, so that merging the heads copies nothing."""
    B, H, T, F = q_BHTF.shape
    return empty((B, T, H, F), q_BHTF.dtype).swapaxes(1, 2)
