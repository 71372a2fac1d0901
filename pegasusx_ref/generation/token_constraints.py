"""Logits processors that exclude tokens which the caller names. [spec 12]"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.generation.logits_processors import GOLDEN


def grouped_words(words: Iterable[Sequence[int]], eos_token_ids: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Group forbidden words by length, for `forbid_words`.

    Args:
        words: token ids of each word; one that is an end token alone is left out, as in HF.
        eos_token_ids: the ids that end a text.

    Returns:
        For each length k, the first k - 1 ids of M words (M, k - 1) and their last ids (M,).
    """
    by_length: dict[int, list[Sequence[int]]] = {}
    for word in words:
        if list(word) not in [[token_id] for token_id in eos_token_ids]:
            by_length.setdefault(len(word), []).append(word)
    arrays = (np.array(group, dtype=np.int64) for group in by_length.values())
    return [(array[:, :-1], array[:, -1]) for array in arrays]


def forbid_words(
    ids: np.ndarray, scores: Array, groups: list[tuple[np.ndarray, np.ndarray]], ops: Backend = GOLDEN
) -> Array:
    """Set the scores of tokens to -inf that would complete a forbidden word. [spec 12.17]

    Args:
        ids: tokens so far (N, n), the start token first.
        scores: of the next token (N, V), modified in place.
        groups: the words, from `grouped_words`.
        ops: the backend of the scores.

    Returns:
        The scores, with -inf for the excluded tokens.

    Source: HF `NoBadWordsLogitsProcessor`.
    """
    length = ids.shape[1]
    for prefixes, last in groups:
        if prefixes.shape[1] > length:
            continue
        newest = ids[:, None, length - prefixes.shape[1] :]
        rows, words = (newest == prefixes).all(axis=2).nonzero()
        if rows.size:
            scores[ops.asarray(rows), ops.asarray(last[words])] = -np.inf
    return scores


def suppress_tokens(ids: np.ndarray, scores: Array, tokens: Array, length: int | None = None) -> Array:
    """Set the scores of some tokens to -inf, at every step or at one. [spec 12.18]

    Args:
        ids: tokens so far (N, n), the start token first.
        scores: of the next token (N, V), modified in place.
        tokens: ids (M,), on the device.
        length: the n at which they are excluded; None for any.

    Returns:
        The scores, with -inf for these tokens.

    Source: HF `SuppressTokensLogitsProcessor`, `SuppressTokensAtBeginLogitsProcessor`.
    """
    if length is None or ids.shape[1] == length:
        scores[:, tokens] = -np.inf
    return scores


def allow_only(
    ids: np.ndarray,
    scores: Array,
    allowed: Callable[[int, np.ndarray], Any],
    beams: int = 1,
    ops: Backend = GOLDEN,
) -> Array:
    """Set the scores of all tokens to -inf but those that a function of the text allows. [spec 12.19]

    Args:
        ids: tokens so far (N, n), the start token first.
        scores: of the next token (N, V), modified in place.
        allowed: from the number of the source, or of the sample, and its ids (n,) to the ids that may follow.
        beams: rows of a source.
        ops: the backend of the scores.

    Returns:
        The scores. Where all allowed tokens of all beams of a source already have -inf, theirs are 0.

    Raises:
        InputError: the function returns no tokens, or something else than ids of the vocabulary.

    Source: HF `PrefixConstrainedLogitsProcessor`.
    """
    lists = [_as_ids(allowed(row // beams, text), scores.shape[1]) for row, text in enumerate(ids)]
    rows, columns = np.repeat(np.arange(len(ids)), [len(tokens) for tokens in lists]), np.concatenate(lists)
    places = ops.asarray(rows), ops.asarray(columns)
    kept = np.array(ops.to_numpy(scores[places]))
    sources, possible = rows // beams, kept > -np.inf
    kept[~np.isin(sources, sources[possible])] = 0
    scores[:] = -np.inf
    scores[places] = ops.to_float32(kept)
    return scores


def _as_ids(tokens: Any, vocab_size: int) -> np.ndarray:
    try:
        ids = np.asarray(to_numpy(tokens))
    except Exception:  # of another library, or of lists of different lengths
        ids = np.array(None)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not ids.size or ids.min() < 0 or ids.max() >= vocab_size:
        raise InputError(
            f"prefix_allowed_tokens_fn returned {shown(tokens)}: return at least one token id in [0, {vocab_size})"
        )
    return ids.astype(np.int64)
