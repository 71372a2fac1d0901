"""Logits processors of sampling, which run on the host: scores (N, V) in, new scores out. [spec 12]"""

import numpy as np


def scale_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Flatten the distribution (above 1) or sharpen it (below 1). [spec 12.7]

    Source: HF `TemperatureLogitsWarper`.
    """
    return scores / scores.dtype.type(temperature)


def keep_top_k(scores: np.ndarray, k: int, at_least: int = 1) -> np.ndarray:
    """Keep the k best tokens, and those equal to the k-th. [spec 12.8]

    Args:
        scores: of the next token (N, V).
        k: number of tokens.
        at_least: number of tokens if k is less.

    Source: arXiv 1805.04833; HF `TopKLogitsWarper`.
    """
    k = min(max(k, at_least), scores.shape[-1])
    kth = np.partition(scores, -k, axis=-1)[..., -k, None]
    return np.where(scores < kth, -np.inf, scores)


def keep_top_p(scores: np.ndarray, p: float, at_least: int = 1) -> np.ndarray:
    """Keep the smallest set of best tokens whose total probability reaches p, at least one. [spec 12.9]

    Args:
        scores: of the next token (N, V).
        p: the probability.
        at_least: number of tokens that are kept if the set is smaller.

    Source: arXiv 1904.09751; HF `TopPLogitsWarper`.
    """
    order = np.argsort(scores, axis=-1, kind="stable")
    ascending = np.take_along_axis(scores, order, axis=-1)
    exponentials = np.exp(ascending - ascending[..., -1:])
    cumulative = np.cumsum(exponentials / exponentials.sum(axis=-1, keepdims=True), axis=-1)
    dropped = cumulative <= 1 - p
    dropped[..., -at_least:] = False
    scores = scores.copy()
    np.put_along_axis(scores, order, np.where(dropped, -np.inf, ascending), axis=-1)
    return scores
