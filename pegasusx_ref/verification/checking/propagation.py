"""Errors that an operation passes on from inputs that the candidate does not show, to first order. [spec 16]

Each function takes an operation's inputs, the variances of their errors (None where an input is exact) and its result,
and returns the variance that the result inherits. Errors of different elements count as independent.
"""

import numpy as np

from pegasusx_ref.golden.attention import softmax
from pegasusx_ref.golden.feed_forward import ACTIVATIONS

Variance = np.ndarray | None
TINY = 1e-300
LARGE = 0.01  # the variance of scores from which on a softmax is not linear
NEAR_KINK = 4.0  # standard deviations around an input within which an activation has its steepest slope


def through_product(x: np.ndarray, y: np.ndarray, of_x: Variance, of_y: Variance) -> np.ndarray:
    """Return the variance of a matrix product x @ y.

    Args:
        x: (..., m, n).
        y: (..., n, p).
        of_x: variance of x.
        of_y: variance of y.
    """
    found: np.ndarray = np.zeros(()) if of_x is None else of_x @ (y * y)
    return found if of_y is None else found + (x * x) @ of_y


def through_softmax(scores: np.ndarray, probs: np.ndarray, of_scores: np.ndarray) -> np.ndarray:
    """Return the variance of a softmax: the derivative of p_i by s_j is p_i (1 - p_i) for i = j, else -p_i p_j.

    Args:
        scores: (..., n).
        probs: their softmax (..., n).
        of_scores: variance of the scores (..., n).
    """
    p = softened(scores, probs, of_scores)
    found: np.ndarray = p**2 * ((1 - p) ** 2 * of_scores + (p**2 * of_scores).sum(axis=-1, keepdims=True))
    return np.minimum(found, p * (1 - p)) if p is not probs else found


def through_attention(p: np.ndarray, v: np.ndarray, context: np.ndarray, of_scores: np.ndarray) -> np.ndarray:
    """Return the variance of a context by independent errors of scores, where neither they nor probabilities are shown.

    The derivative of context c_f by score s_x is p_x (v_xf - c_f).

    Args:
        p: probabilities (..., m, n), `softened`.
        v: values (..., n, p).
        context: the weighted sum (..., m, p).
        of_scores: variance of the errors of scores and of their exponentials (..., m, n).
    """
    weights = p * np.minimum(p * of_scores, 1.0)  # no score does more than to choose another value
    return spread(weights, v, context)


def through_queries(
    p: np.ndarray, k: np.ndarray, v: np.ndarray, context: np.ndarray, of_scores: np.ndarray
) -> np.ndarray:
    """Return the variance of a context by errors of hidden queries, which change all scores of a query together.

    An error e of the query changes c_f by the covariance of v_f and k e under p: at most the deviation of v_f times
    that of k e. The largest share that a direction has in the variance of all keys stands for that of each query.

    Args:
        p: probabilities (..., m, n), `softened`.
        k: keys (..., n, d).
        v: values (..., n, p).
        context: the weighted sum (..., m, p).
        of_scores: variance that scores have from the errors of queries (..., m, n).
    """
    k = np.where(np.isfinite(k), k, 0.0)  # a context of others is not compared
    centered = k - k.mean(axis=-2, keepdims=True)
    directions = np.linalg.eigvalsh(centered.swapaxes(-1, -2) @ centered)
    share: np.ndarray = directions[..., -1:, None] / np.maximum(directions.sum(axis=-1)[..., None, None], TINY)
    found: np.ndarray = spread(p, v, context) * np.minimum(share * (p * of_scores).sum(axis=-1, keepdims=True), 1.0)
    return found


def spread(weights: np.ndarray, v: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Return the weighted sum of (v - c)^2 over all values."""
    total, mean = weights.sum(axis=-1, keepdims=True), weights @ v
    found: np.ndarray = np.maximum(weights @ (v * v) - 2 * context * mean + context**2 * total, 0)
    return found


def softened(scores: np.ndarray, probs: np.ndarray, of_scores: np.ndarray) -> np.ndarray:
    """Return the expected softmax of scores with large errors, which may exchange the largest ones.

    Args:
        scores: (..., n).
        probs: their softmax (..., n).
        of_scores: variance of the scores (..., n).

    Source: MacKay 1992, "The evidence framework applied to classification networks".
    """
    largest = of_scores.max(axis=-1, keepdims=True)
    if not largest.max(initial=0.0) > LARGE:
        return probs
    found: np.ndarray = softmax(scores / np.sqrt(1 + np.pi / 8 * largest))
    return found


def through_layer_norm(x: np.ndarray, weight: np.ndarray, eps: float, of_x: np.ndarray) -> np.ndarray:
    """Return the variance of a LayerNorm: an error changes its own element, and all others by mean and deviation.

    Args:
        x: (..., n).
        weight: (n,).
        eps: added to the variance.
        of_x: variance of x (..., n).
    """
    n = x.shape[-1]
    centered = x - x.mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps)
    normed = centered * inverse
    by_mean = of_x.mean(axis=-1, keepdims=True) / n
    by_deviation = normed**2 * (normed**2 * of_x).mean(axis=-1, keepdims=True) / n
    found: np.ndarray = (weight * inverse) ** 2 * (of_x + by_mean + by_deviation)
    return found


def through_activation(name: str, x: np.ndarray, of_x: np.ndarray) -> np.ndarray:
    """Return the variance of an activation, by its steepest slope between x minus and plus four deviations.

    Args:
        name: a key of `ACTIVATIONS`.
        x: (..., n).
        of_x: variance of x (..., n).
    """
    reach = NEAR_KINK * np.sqrt(of_x)
    if name == "relu":
        return np.where(x > -reach, of_x, 0.0)
    function, step = ACTIVATIONS[name], 1e-4
    slopes = [np.abs(function(at + step) - function(at - step)) / (2 * step) for at in (x - reach, x, x + reach)]
    found: np.ndarray = np.maximum.reduce(slopes) ** 2 * of_x
    return found
