"""Logits processors: change the scores of the next token before one is chosen. [spec 12]

A processor takes the ids so far (N, n), including the start token, and the scores of the next token (N, V), logits or
log-probabilities, and returns the new scores. The scores are on the device and belong to the search, so a processor may
modify them in place. The ids are on the host: indices are computed there, and only the indices are copied over.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pegasusx_ref.backend import Array, Backend, GoldenBackend

Processor = Callable[[np.ndarray, Array], Array]
GOLDEN = GoldenBackend("cpu", "float32")  # for scores that are NumPy arrays


def forbid_early_end(ids: np.ndarray, scores: Array, min_length: int, eos_token_ids: Sequence[int]) -> Array:
    """Set the scores of end tokens to -inf while a text is too short. [spec 12.2]

    Args:
        ids: tokens so far (N, n), the start token first.
        scores: of the next token (N, V), modified in place.
        min_length: minimum number of tokens, including the start token.
        eos_token_ids: the ids that end a text.

    Returns:
        The scores, with -inf for the end tokens while n < min_length.

    Source: HF `MinLengthLogitsProcessor`.
    """
    if ids.shape[1] < min_length:
        for token_id in eos_token_ids:
            scores[:, token_id] = -np.inf
    return scores


def force_end(ids: np.ndarray, scores: Array, max_length: int, forced_eos_ids: Sequence[int]) -> Array:
    """Force an end token at the last position, even if the text is shorter than min_length. [spec 12.3]

    Args:
        ids: tokens so far (N, n), the start token first.
        scores: of the next token (N, V), modified in place.
        max_length: maximum number of tokens, including the start token.
        forced_eos_ids: the ids to force; empty for none.

    Returns:
        The scores; at n = max_length - 1, 0 for the forced ids and -inf for all others.

    Source: HF `ForcedEOSTokenLogitsProcessor`.
    """
    if ids.shape[1] == max_length - 1 and forced_eos_ids:
        scores[:] = -np.inf
        for token_id in forced_eos_ids:
            scores[:, token_id] = 0
    return scores


def penalize_repetition(ids: np.ndarray, scores: Array, penalty: float, ops: Backend = GOLDEN) -> Array:
    """Penalize tokens that already occurred: divide positive scores, multiply negative ones. [spec 12.5]

    Args:
        ids: tokens so far (N, n), the start token first.
        scores: of the next token (N, V), modified in place.
        penalty: above 1 to discourage, below 1 to encourage repetition.
        ops: the backend of the scores.

    Returns:
        The scores, changed once for each distinct token.

    Source: arXiv 1909.05858 section 4.1; HF `RepetitionPenaltyLogitsProcessor`.
    """
    rows, columns = ops.asarray(np.arange(len(ids))[:, None]), ops.asarray(ids)
    # An array, because torch on CUDA multiplies by the reciprocal of a Python number.
    factor = ops.to_float32(np.array([penalty]))
    seen = scores[rows, columns]
    scores[rows, columns] = seen.clip(max=0) * factor + seen.clip(min=0) / factor
    return scores


def forbid_repeated_ngrams(
    ids: np.ndarray, scores: Array, size: int, sources: np.ndarray | None = None, ops: Backend = GOLDEN
) -> Array:
    """Set the scores of tokens to -inf that would repeat an n-gram of the text or of its source. [spec 12.6]

    Args:
        ids: tokens so far (N, n), the start token first.
        scores: of the next token (N, V), modified in place.
        size: n.
        sources: source ids (N, T) whose n-grams must not occur, including padding; None for the text itself.
        ops: the backend of the scores.

    Returns:
        The scores, with -inf for the excluded tokens.

    Source: HF `NoRepeatNGramLogitsProcessor`, `EncoderNoRepeatNGramLogitsProcessor`.
    """
    length, runs_of = ids.shape[1], ids if sources is None else sources
    if length + 1 < size or runs_of.shape[1] < size:
        return scores
    newest = ids[:, length - (size - 1) :]
    runs = np.lib.stride_tricks.sliding_window_view(runs_of, size, axis=1)
    rows, places = (runs[:, :, :-1] == newest[:, None]).all(axis=2).nonzero()
    if rows.size:
        scores[ops.asarray(rows), ops.asarray(runs[rows, places, -1])] = -np.inf
    return scores


def scale_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Flatten the distribution (above 1) or sharpen it (below 1). [spec 12.7]

    Source: HF `TemperatureLogitsWarper`.
    """
    return scores / scores.dtype.type(temperature)


def keep_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Keep the k best tokens, and those equal to the k-th. [spec 12.8]

    Source: arXiv 1805.04833; HF `TopKLogitsWarper`.
    """
    k = min(k, scores.shape[-1])
    kth = np.partition(scores, -k, axis=-1)[..., -k, None]
    return np.where(scores < kth, -np.inf, scores)


def keep_top_p(scores: np.ndarray, p: float) -> np.ndarray:
    """Keep the smallest set of best tokens whose total probability reaches p, at least one. [spec 12.9]

    Source: arXiv 1904.09751; HF `TopPLogitsWarper`.
    """
    order = np.argsort(scores, axis=-1, kind="stable")
    ascending = np.take_along_axis(scores, order, axis=-1)
    exponentials = np.exp(ascending - ascending[..., -1:])
    cumulative = np.cumsum(exponentials / exponentials.sum(axis=-1, keepdims=True), axis=-1)
    dropped = cumulative <= 1 - p
    dropped[..., -1] = False
    scores = scores.copy()
    np.put_along_axis(scores, order, np.where(dropped, -np.inf, ascending), axis=-1)
    return scores
