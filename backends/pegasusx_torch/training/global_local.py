"""The attention core for training: batches of blocks in torch's fused kernel, or groups of queries for single heads."""

from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from pegasusx_ref.golden.global_local import Blocks
from pegasusx_torch.training.attention import Group, float32_on_cpu

MAX_QUERIES = 512  # of a group: bounds its scores where blocks are large


def core_groups(num_globals: int, num_tokens: int, blocks: Blocks, key_mask_T: np.ndarray | None) -> list[Group]:
    """List the groups of queries of one batch row; global tokens stand before the others, and masked keys are left out.

    Args:
        num_globals: G.
        num_tokens: T.
        blocks: (start, stop) of each block.
        key_mask_T: True where a token is real (T,); None means everywhere.
    """
    real = np.arange(num_tokens) if key_mask_T is None else np.flatnonzero(key_mask_T)

    def keys(start: int, stop: int) -> np.ndarray:
        inside = real[(start <= real) & (real < stop)]
        return np.concatenate([np.arange(num_globals), num_globals + inside])

    # The global tokens' group takes longest.
    found = [(0, num_globals, keys(0, num_tokens))]
    found += [(num_globals + start, num_globals + stop, keys(start, stop)) for start, stop in blocks]
    return [
        Group(slice(first, min(first + MAX_QUERIES, stop)), index)
        for start, stop, index in found
        for first in range(start, stop, MAX_QUERIES)
    ]


def fused_attention(
    global_q_BHGF: Tensor,
    q_BHTF: Tensor,
    global_k_BHGF: Tensor,
    k_BHTF: Tensor,
    global_v_BHGF: Tensor,
    v_BHTF: Tensor,
    key_mask_BT: Tensor | None,
    blocks: Blocks,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Compute the attention core by torch's fused kernel, which has a backward pass; adjacent equal blocks at once.

    Args:
        global_q_BHGF: queries of the global tokens.
        q_BHTF: queries of the tokens.
        global_k_BHGF: keys, likewise.
        k_BHTF: likewise.
        global_v_BHGF: values, likewise.
        v_BHTF: likewise.
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        blocks: (start, stop) of each block.
        dropout: of the probabilities.

    Returns:
        Attended values of the global tokens (B, H, G, F) and of the tokens (B, H, T, F).
    """
    G = global_q_BHGF.shape[2]

    def attend(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        mask = None if key_mask is None else pad(key_mask, (G, 0), value=True)[:, None, None]  # globals are visible
        dtype = q.dtype
        q, k, v = map(float32_on_cpu, (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).to(dtype)

    k_BHNF, v_BHNF = torch.cat([global_k_BHGF, k_BHTF], dim=2), torch.cat([global_v_BHGF, v_BHTF], dim=2)
    context_BHGF = attend(global_q_BHGF, k_BHNF, v_BHNF, key_mask_BT)
    contexts = []
    for size, equal in groupby(blocks, key=lambda block: block[1] - block[0]):
        starts = [start for start, _ in equal]
        first, count = starts[0], len(starts)

        def batched(x: Tensor, dim: int, first: int = first, count: int = count, size: int = size) -> Tensor:
            """Make the blocks batch rows: (B, …, blocks K, …) to (B blocks, …, K, …)."""
            return x.narrow(dim, first, count * size).unflatten(dim, (count, size)).movedim(dim, 1).flatten(0, 1)

        def with_globals(global_x: Tensor, x_BHTF: Tensor, count: int = count) -> Tensor:
            return torch.cat([global_x.repeat_interleave(count, dim=0), x_BHTF], dim=2)

        k, v = (
            with_globals(global_x, batched(x, 2)) for global_x, x in ((global_k_BHGF, k_BHTF), (global_v_BHGF, v_BHTF))
        )
        context = attend(batched(q_BHTF, 2), k, v, None if key_mask_BT is None else batched(key_mask_BT, 1))
        contexts.append(context.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3))
    return context_BHGF, torch.cat(contexts, dim=2)
