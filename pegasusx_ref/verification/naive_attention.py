"""Two slow reference implementations of the attention core: a loop over tokens, and dense attention with a mask.

Tests compare the loop with the dense form, the dense form with the blocks of `golden.global_local`, and every backend
with the blocks. Both take one text and one head, with the global tokens first: X = G + T rows.
"""

import math

import numpy as np

from pegasusx_ref.golden.global_local import Blocks


def visible_keys(num_tokens: int, num_globals: int, blocks: Blocks) -> np.ndarray:
    """Compute which row may attend to which in a layer, global tokens first. [spec 1.1]

    Args:
        num_tokens: T.
        num_globals: G.
        blocks: (start, stop) of the layer's blocks, from `block_bounds`.

    Returns:
        Booleans (G + T, G + T), rows are queries, columns keys.

    Source: arXiv 2208.04347 figure 1.
    """
    G, T = num_globals, num_tokens
    visible_XX = np.zeros((G + T, G + T), dtype=bool)
    visible_XX[:G, :] = True
    visible_XX[:, :G] = True
    for start, stop in blocks:
        visible_XX[G + start : G + stop, G + start : G + stop] = True
    return visible_XX


def token_loop_attention(q_XF: np.ndarray, k_XF: np.ndarray, v_XF: np.ndarray, visible_XX: np.ndarray) -> np.ndarray:
    """Compute attention row by row and key by key, with Python floats. [spec 7.5]

    Args:
        q_XF: queries of global tokens and tokens (G + T, F).
        k_XF: keys (G + T, F).
        v_XF: values (G + T, F).
        visible_XX: which row may attend to which; each row to at least one.

    Returns:
        Attended values (G + T, F).
    """
    num_rows, F = q_XF.shape
    context_XF = np.zeros_like(v_XF)
    for row in range(num_rows):
        keys = [key for key in range(num_rows) if visible_XX[row, key]]
        scores = [sum(float(a) * float(b) for a, b in zip(q_XF[row], k_XF[key], strict=True)) for key in keys]
        weights = [math.exp((score - max(scores)) / math.sqrt(F)) for score in scores]
        for key, weight in zip(keys, weights, strict=True):
            context_XF[row] += weight / math.fsum(weights) * v_XF[key]
    return context_XF


def dense_attention(q_XF: np.ndarray, k_XF: np.ndarray, v_XF: np.ndarray, visible_XX: np.ndarray) -> np.ndarray:
    """Compute attention with one square matrix of scores, -inf where a key is not visible. [spec 7.6]

    Args:
        q_XF: queries of global tokens and tokens (G + T, F).
        k_XF: keys (G + T, F).
        v_XF: values (G + T, F).
        visible_XX: which row may attend to which; each row to at least one.

    Returns:
        Attended values (G + T, F).
    """
    scores_XX = np.where(visible_XX, q_XF @ k_XF.T / math.sqrt(q_XF.shape[1]), -np.inf)
    weights_XX = np.exp(scores_XX - scores_XX.max(axis=1, keepdims=True))
    context_XF: np.ndarray = weights_XX @ v_XF / weights_XX.sum(axis=1, keepdims=True)
    return context_XF
