"""Blocks with padding, as transformers has them."""

from typing import Any

import numpy as np

HIDDEN = -1e3  # a masked score is at most this: some masks add -10000, and float16's lowest number is -65504

Places = np.ndarray  # of a block's tokens among all; -1 is padding


def padded_blocks(num_padding: int, num_tokens: int, block_size: int) -> list[Places]:
    """Cut some padding and then the tokens into whole blocks.

    Args:
        num_padding: places before the first token.
        num_tokens: T.
        block_size: K.
    """
    num_places = -(-(num_tokens + num_padding) // block_size) * block_size
    places = np.arange(num_places) - num_padding
    return list(np.where(places < num_tokens, np.maximum(places, -1), -1).reshape(-1, block_size))


def to_transformers_attentions(attentions: dict[str, Any], block_size: int, staggered: bool) -> dict[str, np.ndarray]:
    """Spread one encoder layer's attentions over the padded blocks that transformers computes. [spec 16.7]

    transformers pads the text to P, a multiple of K, and a staggered layer by K/2 more on both sides (P' = P + K).
    What belongs to padding, which has no counterpart here, is 0; in transformers the padded key columns are 0 too, but
    the padded query rows hold ordinary attention that nothing reads.

    Args:
        attentions: {"global": (B, H, G, G+T), "local": [(B, H, S, G+S), …]} of one layer.
        block_size: K.
        staggered: whether the layer is.

    Returns:
        {"global": (B, H, G, G+P'), "local": (B, H, N, K, G+K)}, N = P'/K; P' = P where not staggered.

    Source: HF `PegasusXEncoderLayer.pad_local_tokens`, `PegasusXGlobalLocalAttention`.
    """
    probs_BHGX = attentions["global"]
    B, H, G, X = probs_BHGX.shape
    K, T = block_size, X - G
    left = K // 2 if staggered else 0
    num_blocks = -(-T // K) + staggered

    global_probs = np.zeros((B, H, G, G + num_blocks * K), dtype=probs_BHGX.dtype)
    global_probs[..., :G] = probs_BHGX[..., :G]
    global_probs[..., G + left : G + left + T] = probs_BHGX[..., G:]

    local_probs = np.zeros((B, H, num_blocks, K, G + K), dtype=probs_BHGX.dtype)
    for n, block in enumerate(attentions["local"]):
        S = block.shape[2]
        first = left if n == 0 else 0  # a staggered layer's first slice fills the second half of its block
        local_probs[:, :, n, first : first + S, :G] = block[..., :G]
        local_probs[:, :, n, first : first + S, G + first : G + first + S] = block[..., G:]
    return {"global": global_probs, "local": local_probs}
