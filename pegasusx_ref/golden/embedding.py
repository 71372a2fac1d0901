"""Token embedding and sinusoidal positions. [spec 3]"""

import math

import numpy as np


def embed_tokens(ids_BT: np.ndarray, table_VD: np.ndarray, scale: float) -> np.ndarray:
    """Look up every token in the embedding table and scale the result. [spec 3.1]

    Args:
        ids_BT: token ids in [0, V), integers (B, T).
        table_VD: the embedding table (V, D); its row 0 (padding) is a row like any other.
        scale: sqrt(D) in PEGASUS-X, 1 where config.scale_embedding is false.

    Returns:
        Token embeddings (B, T, D) in the table's dtype.

    Source: arXiv 1706.03762 section 3.4; HF `PegasusXScaledWordEmbedding`.
    """
    return table_VD[ids_BT] * scale


def embed_tokens_backward(
    grad_BTD: np.ndarray, ids_BT: np.ndarray, num_rows: int, scale: float, padding_id: int | None = None
) -> np.ndarray:
    """Add up the gradients of all places where a token occurs, in its row of the table. [spec 19.2]

    Args:
        grad_BTD: gradients of the token embeddings (B, T, D).
        ids_BT: token ids in [0, V), integers (B, T).
        num_rows: V.
        scale: of `embed_tokens`.
        padding_id: the token whose row gets no gradient by look-ups, or None.

    Returns:
        Gradients of the embedding table (V, D).

    Source: HF `nn.Embedding` with padding_idx.
    """
    grad_VD = np.zeros_like(grad_BTD, shape=(num_rows, grad_BTD.shape[2]))
    np.add.at(grad_VD, ids_BT, grad_BTD * scale)  # a repeated token adds up: grad_VD[ids_BT] += would keep the last
    if padding_id is not None:
        grad_VD[padding_id] = 0
    return grad_VD


def position_frequencies(width: int) -> np.ndarray:
    """Compute the angular frequencies of the position encodings, w_k = 10000^(-k / (D/2 - 1)), k = 0 .. D/2 - 1.

    Args:
        width: number of features D, even and at least 4.

    Returns:
        Frequencies (D/2,), float64.
    """
    half = width // 2
    return np.exp(-math.log(10000.0) / (half - 1) * np.arange(half, dtype=np.float64))


def sinusoidal_positions(start: int, length: int, width: int) -> np.ndarray:
    """Compute the position encodings of `length` tokens, always in float64. [spec 3.2]

    The first D/2 features are sines, the last D/2 cosines (not interleaved), at the angular frequencies of
    `position_frequencies`. They are computed for any position; there is no table with a maximum length.

    Args:
        start: position of the first token, 0 or the number of tokens already decoded.
        length: number of tokens T.
        width: number of features D, even and at least 4.

    Returns:
        Position encodings (T, D), float64.

    Source: arXiv 1706.03762 section 3.5; HF `PegasusXSinusoidalPositionalEmbedding`, which computes in the model dtype.
    """
    angles = np.arange(start, start + length, dtype=np.float64)[:, None] * position_frequencies(width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def add_positions(x_BTD: np.ndarray, start: int) -> np.ndarray:
    """Add the position encodings in float64, then round once to the dtype of the tokens. [spec 3.3]

    Args:
        x_BTD: token embeddings (B, T, D).
        start: position of the first token.

    Returns:
        Embedded tokens (B, T, D) in the dtype of `x_BTD`.

    Source: HF `PegasusXEncoder.forward`, `PegasusXDecoder.forward`, which round the positions before the sum.
    """
    _, length, width = x_BTD.shape
    positions_TD = np.asarray(sinusoidal_positions(start, length, width), like=x_BTD)
    return (x_BTD + positions_TD).astype(x_BTD.dtype)
