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


def force_start(ids: np.ndarray, scores: Array, token_id: int) -> Array:
    """Force the first token after the start token. [spec 12.20]

    Args:
        ids: tokens so far (N, n), the start token first.
        scores: of the next token (N, V), modified in place.
        token_id: the id to force.

    Returns:
        The scores; at n = 1, 0 for this id and -inf for all others.

    Source: HF `ForcedBOSTokenLogitsProcessor`.
    """
    if ids.shape[1] == 1:
        scores[:] = -np.inf
        scores[:, token_id] = 0
    return scores


def raise_end(ids: np.ndarray, scores: Array, start: int, factor: float, eos_token_ids: Sequence[int]) -> Array:
    """Raise the scores of end tokens exponentially after a number of tokens. [spec 12.21]

    Args:
        ids: tokens so far (N, n), the start token first.
        scores: of the next token (N, V), modified in place.
        start: generated tokens after which the scores change.
        factor: above 1 to end sooner, below 1 to end later.
        eos_token_ids: the ids that end a text.

    Returns:
        The scores s; s + |s| (factor^k - 1) for end tokens where s is finite, with k = n - 1 - start above 0.

    Source: HF `ExponentialDecayLengthPenalty`.
    """
    excess = ids.shape[1] - 1 - start
    if excess <= 0:
        return scores
    with np.errstate(over="ignore"):
        change = float(np.minimum(np.float64(factor) ** excess - 1, 1e30))  # so that the scores stay in float32
    for token_id in eos_token_ids:
        column = scores[:, token_id]
        added = abs(column) * change
        added[column == -np.inf] = 0  # -inf + inf is NaN
        scores[:, token_id] = column + added
    return scores


def renormalize(ids: np.ndarray, scores: Array, ops: Backend = GOLDEN) -> Array:
    """Make the scores log-probabilities again. [spec 12.22]

    Args:
        ids: not used.
        scores: of the next token (N, V).
        ops: the backend of the scores.

    Returns:
        log softmax of the scores, new; a row of -inf alone stays as it is.

    Source: HF `LogitNormalization`.
    """
    normalized = ops.log_softmax(scores)
    normalized[(scores == -np.inf).all(-1)] = -np.inf
    return normalized
