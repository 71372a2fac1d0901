"""Dense attention with a mask on the keys. [spec 6]"""

import numpy as np

from pegasusx_ref.tracing import tap


def split_heads(x_BTD: np.ndarray, num_heads: int) -> np.ndarray:
    """Split the features into heads: head h gets the features [h F, (h + 1) F). [spec 6.1]

    Args:
        x_BTD: projected hidden states (B, T, D).
        num_heads: H, a divisor of D.

    Returns:
        The same numbers as (B, H, T, F), F = D / H.
    """
    B, T, D = x_BTD.shape
    return x_BTD.reshape(B, T, num_heads, D // num_heads).swapaxes(1, 2)


def merge_heads(x_BHTF: np.ndarray) -> np.ndarray:
    """Concatenate the heads of each token, the inverse of `split_heads`. [spec 6.2]

    Args:
        x_BHTF: attended values (B, H, T, F).

    Returns:
        The same numbers as (B, T, D), D = H F.
    """
    B, H, T, F = x_BHTF.shape
    return x_BHTF.swapaxes(1, 2).reshape(B, T, H * F)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Turn each row of scores into weights proportional to exp(score) that sum to 1. [spec 6.3]

    The row's maximum is subtracted first: it cancels in the quotient and prevents overflow.

    Args:
        scores: (..., keys).

    Returns:
        Weights (..., keys).
    """
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def causal_mask(num_queries: int, num_keys: int) -> np.ndarray:
    """Let each query attend to its own position and earlier ones; the queries are the last L keys. [spec 6.7]

    Args:
        num_queries: L.
        num_keys: X, at least L; larger if a cache holds earlier keys.

    Returns:
        Booleans (1, L, X), True where query l may attend to key x: x <= l + X - L.
    """
    return np.tri(num_queries, num_keys, num_keys - num_queries, dtype=bool)[None]


def mask_scores(scores_BHLX: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Give masked keys the lowest finite score, and NaN to rows whose unmasked scores are all -inf.

    Args:
        scores_BHLX: scores (B, H, L, X).
        visible: see `attention`.

    Returns:
        The scores that the softmax takes (B, H, L, X).
    """
    lowest = np.finfo(scores_BHLX.dtype).min
    scores_BHLX = np.where(visible[:, None], scores_BHLX, lowest)
    overflowed = (scores_BHLX.max(axis=-1, keepdims=True) == lowest) & visible[:, None].any(axis=-1, keepdims=True)
    return np.where(overflowed, np.nan, scores_BHLX)  # otherwise masked keys would win


def attention(
    q_BHLF: np.ndarray, k_BHXF: np.ndarray, v_BHXF: np.ndarray, visible: np.ndarray | None = None
) -> np.ndarray:
    """Compute scaled dot-product attention: softmax(q k^T / sqrt F) v. [spec 6.4]

    A masked key gets the lowest finite score, so its weight is exactly 0 if any key of the row is unmasked. A query
    whose keys are all masked averages over all X keys evenly, as in HF; no real token's result depends on such a query.
    A query gets NaN if all its unmasked scores are -inf, or any of them is +inf.

    Args:
        q_BHLF: queries (B, H, L, F).
        k_BHXF: keys (B, H, X, F).
        v_BHXF: values (B, H, X, F).
        visible: True where a query may attend to a key: (B, L, X), where B or L may be 1 to broadcast; None means
            everywhere.

    Returns:
        Attended values (B, H, L, F).

    Source: arXiv 1706.03762 section 3.2.1; HF `eager_attention_forward`.
    """
    B, H, _, F = q_BHLF.shape
    X = k_BHXF.shape[2]
    assert k_BHXF.shape == v_BHXF.shape == (B, H, X, F), "keys and values must match the queries"

    scores_BHLX = (q_BHLF * F**-0.5) @ k_BHXF.swapaxes(2, 3)
    if visible is not None:
        scores_BHLX = mask_scores(scores_BHLX, visible)
    scores_BHLX = tap("scores", scores_BHLX)

    probs_BHLX = tap("probs", softmax(scores_BHLX))
    return tap("context", probs_BHLX @ v_BHXF)


def softmax_backward(grad: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Pass gradients through a softmax: what all weights of a row have in common cancels. [spec 19.6]

    Args:
        grad: gradients of the weights (..., keys).
        probs: the weights (..., keys).

    Returns:
        Gradients of the scores (..., keys).
    """
    return probs * (grad - (grad * probs).sum(axis=-1, keepdims=True))


def attention_backward(
    grad_BHLF: np.ndarray,
    q_BHLF: np.ndarray,
    k_BHXF: np.ndarray,
    v_BHXF: np.ndarray,
    probs_BHLX: np.ndarray,
    visible: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pass gradients through scaled dot-product attention. [spec 19.7]

    Args:
        grad_BHLF: gradients of the attended values (B, H, L, F).
        q_BHLF: queries (B, H, L, F).
        k_BHXF: keys (B, H, X, F).
        v_BHXF: values (B, H, X, F).
        probs_BHLX: attention weights of the forward pass (B, H, L, X).
        visible: see `attention`.

    Returns:
        Gradients of queries, keys and values. A masked key gets none: its score is a constant.
    """
    grad_BHLF = tap("context.grad", grad_BHLF)
    grad_v_BHXF = probs_BHLX.swapaxes(2, 3) @ grad_BHLF
    grad_probs_BHLX = tap("probs.grad", grad_BHLF @ v_BHXF.swapaxes(2, 3))
    grad_scores_BHLX = softmax_backward(grad_probs_BHLX, probs_BHLX)
    if visible is not None:  # matters where a query sees no key at all and averages over masked ones
        grad_scores_BHLX = np.where(visible[:, None], grad_scores_BHLX, 0)
    grad_scores_BHLX = tap("scores.grad", grad_scores_BHLX)

    grad_products_BHLX = grad_scores_BHLX * q_BHLF.shape[3] ** -0.5
    grad_q_BHLF = grad_products_BHLX @ k_BHXF
    grad_k_BHXF = grad_products_BHLX.swapaxes(2, 3) @ q_BHLF
    return grad_q_BHLF, grad_k_BHXF, grad_v_BHXF
