"""Block-local attention with global tokens: the index map, the local queries, the global queries. [spec 7, 8]"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from pegasusx_ref.golden.attention import attention, attention_backward
from pegasusx_ref.tracing import scope

Blocks = list[tuple[int, int]]
Attend = Callable[..., Any]  # `attention`, or another implementation of it


def block_bounds(num_tokens: int, block_size: int, staggered: bool) -> Blocks:
    """List the blocks of one layer as (start, stop) over the real tokens. [spec 8.1]

    Even layers start with a whole block, staggered ones with half a block, so that the edges of one are in the middle
    of the other's blocks. The last block may be shorter: nothing is padded.

    Args:
        num_tokens: T.
        block_size: K, even where `staggered`.
        staggered: shift every edge by K/2.

    Returns:
        Ranges that cover [0, T) without gaps or overlaps, each at most K long.

    Source: arXiv 2208.04347 section 3.1 and figure 1; HF `PegasusXEncoderLayer.pad_local_tokens`.
    """
    first_stop = block_size // 2 if staggered else block_size
    edges = [0, *range(first_stop, num_tokens, block_size), num_tokens]
    return list(pairwise(edges))


def local_attention(
    q_BHTF: np.ndarray,
    k_BHTF: np.ndarray,
    v_BHTF: np.ndarray,
    global_k_BHGF: np.ndarray,
    global_v_BHGF: np.ndarray,
    key_mask_BT: np.ndarray | None,
    blocks: Blocks,
    attend: Attend = attention,
) -> np.ndarray:
    """Let every token attend to the global tokens and to the tokens of its own block. [spec 7.1]

    Args:
        q_BHTF: queries of the tokens (B, H, T, F).
        k_BHTF: keys of the tokens (B, H, T, F).
        v_BHTF: values of the tokens (B, H, T, F).
        global_k_BHGF: keys of the global tokens (B, H, G, F).
        global_v_BHGF: values of the global tokens (B, H, G, F).
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        blocks: (start, stop) of each block, from `block_bounds`.
        attend: computes `attention`.

    Returns:
        Attended values (B, H, T, F); the rows of padding tokens are computed like any other.

    Source: arXiv 2208.04347 section 3.1; HF `compute_local_attention_representations`.
    """
    num_globals, contexts = global_k_BHGF.shape[2], []
    for n, (start, stop) in enumerate(blocks):
        q_BHSF = q_BHTF[:, :, start:stop]
        k_BHXF = np.concatenate([global_k_BHGF, k_BHTF[:, :, start:stop]], axis=2)
        v_BHXF = np.concatenate([global_v_BHGF, v_BHTF[:, :, start:stop]], axis=2)
        block_mask_BS = None if key_mask_BT is None else key_mask_BT[:, start:stop]
        with scope(f"local.{n}"):
            contexts.append(attend(q_BHSF, k_BHXF, v_BHXF, prepend_globals(block_mask_BS, num_globals)))
    return np.concatenate(contexts, axis=2)


def global_attention(
    global_q_BHGF: np.ndarray,
    k_BHTF: np.ndarray,
    v_BHTF: np.ndarray,
    global_k_BHGF: np.ndarray,
    global_v_BHGF: np.ndarray,
    key_mask_BT: np.ndarray | None,
    attend: Attend = attention,
) -> np.ndarray:
    """Let every global token attend to all global tokens and to all tokens. [spec 7.2]

    Args:
        global_q_BHGF: queries of the global tokens (B, H, G, F).
        k_BHTF: keys of the tokens (B, H, T, F).
        v_BHTF: values of the tokens (B, H, T, F).
        global_k_BHGF: keys of the global tokens (B, H, G, F).
        global_v_BHGF: values of the global tokens (B, H, G, F).
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        attend: computes `attention`.

    Returns:
        Attended values of the global tokens (B, H, G, F).

    Source: arXiv 2208.04347 section 3.2; HF `compute_global_attention_representations`.
    """
    k_BHXF = np.concatenate([global_k_BHGF, k_BHTF], axis=2)
    v_BHXF = np.concatenate([global_v_BHGF, v_BHTF], axis=2)
    with scope("global"):
        return attend(global_q_BHGF, k_BHXF, v_BHXF, prepend_globals(key_mask_BT, global_k_BHGF.shape[2]))


def prepend_globals(key_mask_BX: np.ndarray | None, num_globals: int) -> np.ndarray | None:
    """Prepend the global tokens, which are never masked, to a mask of tokens. [spec 7.3]

    Args:
        key_mask_BX: True where a token is real (B, X), or None.
        num_globals: G.

    Returns:
        The keys that every query may attend to (B, 1, G + X), or None without a mask.
    """
    if key_mask_BX is None:
        return None
    return np.pad(key_mask_BX, ((0, 0), (num_globals, 0)), constant_values=True)[:, None]


def global_local_attention(
    q_BHTF: np.ndarray,
    k_BHTF: np.ndarray,
    v_BHTF: np.ndarray,
    global_q_BHGF: np.ndarray,
    global_k_BHGF: np.ndarray,
    global_v_BHGF: np.ndarray,
    key_mask_BT: np.ndarray | None,
    blocks: Blocks,
    attend: Attend = attention,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the local and the global part of the encoder's attention, the operation that backends replace. [spec 7.4]

    Args:
        q_BHTF: queries of the tokens (B, H, T, F).
        k_BHTF: keys of the tokens (B, H, T, F).
        v_BHTF: values of the tokens (B, H, T, F).
        global_q_BHGF: queries of the global tokens (B, H, G, F).
        global_k_BHGF: keys of the global tokens (B, H, G, F).
        global_v_BHGF: values of the global tokens (B, H, G, F).
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        blocks: (start, stop) of each block, from `block_bounds`.
        attend: computes `attention`; a backend without a faster operation passes its own.

    Returns:
        Attended values of the tokens (B, H, T, F) and of the global tokens (B, H, G, F).

    Source: arXiv 2208.04347 section 3; HF `PegasusXGlobalLocalAttention`.
    """
    keys_and_values = (k_BHTF, v_BHTF, global_k_BHGF, global_v_BHGF)
    return (
        local_attention(q_BHTF, *keys_and_values, key_mask_BT, blocks, attend),
        global_attention(global_q_BHGF, *keys_and_values, key_mask_BT, attend),
    )


def global_local_attention_backward(
    grad_BHTF: np.ndarray,
    global_grad_BHGF: np.ndarray,
    q_BHTF: np.ndarray,
    k_BHTF: np.ndarray,
    v_BHTF: np.ndarray,
    global_q_BHGF: np.ndarray,
    global_k_BHGF: np.ndarray,
    global_v_BHGF: np.ndarray,
    local_probs: list[np.ndarray],
    global_probs_BHGX: np.ndarray,
    key_mask_BT: np.ndarray | None,
    blocks: Blocks,
) -> tuple[np.ndarray, ...]:
    """Pass gradients through the encoder's attention; global keys collect them from every block. [spec 19.8]

    Args:
        grad_BHTF: gradients of the tokens' attended values (B, H, T, F).
        global_grad_BHGF: gradients of the global tokens' attended values (B, H, G, F).
        q_BHTF: queries of the tokens (B, H, T, F).
        k_BHTF: keys of the tokens (B, H, T, F).
        v_BHTF: values of the tokens (B, H, T, F).
        global_q_BHGF: queries of the global tokens (B, H, G, F).
        global_k_BHGF: keys of the global tokens (B, H, G, F).
        global_v_BHGF: values of the global tokens (B, H, G, F).
        local_probs: attention weights of each block (B, H, S, G + S).
        global_probs_BHGX: attention weights of the global tokens (B, H, G, G + T).
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        blocks: (start, stop) of each block.

    Returns:
        Gradients of the six inputs, in their order.
    """
    G = global_k_BHGF.shape[2]
    k_BHXF, v_BHXF = (np.concatenate(x, axis=2) for x in ((global_k_BHGF, k_BHTF), (global_v_BHGF, v_BHTF)))
    with scope("global"):
        grad_global_q_BHGF, grad_k_BHXF, grad_v_BHXF = attention_backward(
            global_grad_BHGF,
            global_q_BHGF,
            k_BHXF,
            v_BHXF,
            global_probs_BHGX,
            prepend_globals(key_mask_BT, G),
        )
    grad_q_BHTF = np.empty_like(q_BHTF)
    for n, (start, stop) in enumerate(blocks):
        seen = np.r_[:G, G + start : G + stop]  # the global tokens, and those of the block
        block_mask_BS = None if key_mask_BT is None else key_mask_BT[:, start:stop]
        with scope(f"local.{n}"):
            grad_q_BHTF[:, :, start:stop], grad_seen_k, grad_seen_v = attention_backward(
                grad_BHTF[:, :, start:stop],
                q_BHTF[:, :, start:stop],
                k_BHXF[:, :, seen],
                v_BHXF[:, :, seen],
                local_probs[n],
                prepend_globals(block_mask_BS, G),
            )
        grad_k_BHXF[:, :, seen] += grad_seen_k
        grad_v_BHXF[:, :, seen] += grad_seen_v
    grad_k_BHTF, grad_v_BHTF = grad_k_BHXF[:, :, G:], grad_v_BHXF[:, :, G:]
    return grad_q_BHTF, grad_k_BHTF, grad_v_BHTF, grad_global_q_BHGF, grad_k_BHXF[:, :, :G], grad_v_BHXF[:, :, :G]
