"""Dense attention with a mask on the keys. [spec 6]"""

import numpy as np

from pegasusx_ref.tracing import tap


def split_heads(x_BTD: np.ndarray, num_heads: int) -> np.ndarray:
    """Cut the features into heads: head h takes the features [h F, (h + 1) F). [spec 6.1]

    Args:
        x_BTD: projected hidden states (B, T, D).
        num_heads: H, a divisor of D.

    Returns:
        The same numbers as (B, H, T, F), F = D / H.
    """
    B, T, D = x_BTD.shape
    return x_BTD.reshape(B, T, num_heads, D // num_heads).swapaxes(1, 2)


def merge_heads(x_BHTF: np.ndarray) -> np.ndarray:
    """Put the heads of each token side by side again, the inverse of `split_heads`. [spec 6.2]

    Args:
        x_BHTF: attended values (B, H, T, F).

    Returns:
        The same numbers as (B, T, D), D = H F.
    """
    B, H, T, F = x_BHTF.shape
    return x_BHTF.swapaxes(1, 2).reshape(B, T, H * F)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Turn each row of scores into weights that are proportional to exp(score) and sum to 1. [spec 6.3]

    The row's maximum is subtracted first: it cancels in the quotient, and nothing can overflow.

    Args:
        scores: (..., keys).

    Returns:
        Weights (..., keys).
    """
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def attention(
    q_BHLF: np.ndarray,
    k_BHXF: np.ndarray,
    v_BHXF: np.ndarray,
    key_mask_BX: np.ndarray | None = None,
    causal: bool = False,
) -> np.ndarray:
    """Let every query take the average of the values, weighted by how well the keys fit it. [spec 6.4]

    A masked key gets the lowest finite score, so it weighs exactly 0 beside any other key. A query whose keys are all
    masked averages over all X keys evenly, as in HF; no real token's result depends on such a query.

    Args:
        q_BHLF: queries (B, H, L, F).
        k_BHXF: keys (B, H, X, F).
        v_BHXF: values (B, H, X, F).
        key_mask_BX: True where a key may be attended to (B, X); None means everywhere.
        causal: query l sees the keys 0 .. l + X - L only: the queries are the last L of X tokens.

    Returns:
        Attended values (B, H, L, F).

    Source: arXiv 1706.03762 section 3.2.1; HF `eager_attention_forward`.
    """
    B, H, L, F = q_BHLF.shape
    X = k_BHXF.shape[2]
    assert k_BHXF.shape == v_BHXF.shape == (B, H, X, F), "keys and values must match the queries"

    scores_BHLX = (q_BHLF * F**-0.5) @ k_BHXF.swapaxes(2, 3)
    lowest = np.finfo(scores_BHLX.dtype).min
    if key_mask_BX is not None:
        scores_BHLX = np.where(key_mask_BX[:, None, None, :], scores_BHLX, lowest)
    if causal:
        visible_LX = np.tri(L, X, X - L, dtype=bool, like=q_BHLF)
        scores_BHLX = np.where(visible_LX, scores_BHLX, lowest)
    scores_BHLX = tap("scores", scores_BHLX)

    probs_BHLX = tap("probs", softmax(scores_BHLX))
    return tap("context", probs_BHLX @ v_BHXF)
