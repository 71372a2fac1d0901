"""The attention core on several threads: a work item is one head of one block."""

import numpy as np

from pegasusx_numpy.attention import attention_of_head, empty_context
from pegasusx_numpy.thread_pool import parallel_for
from pegasusx_ref.golden.global_local import Blocks


def global_local_attention(
    q_BHTF: np.ndarray,
    k_BHTF: np.ndarray,
    v_BHTF: np.ndarray,
    global_q_BHGF: np.ndarray,
    global_k_BHGF: np.ndarray,
    global_v_BHGF: np.ndarray,
    key_mask_BT: np.ndarray | None,
    blocks: Blocks,
    max_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute `pegasusx_ref.golden.global_local.global_local_attention`; masked keys are left out.

    Args:
        q_BHTF: as there, like all arguments up to `blocks`.
        k_BHTF: as there.
        v_BHTF: as there.
        global_q_BHGF: as there.
        global_k_BHGF: as there.
        global_v_BHGF: as there.
        key_mask_BT: as there.
        blocks: as there.
        max_threads: as many as BLAS may use if None.

    Returns:
        Attended values of the tokens (B, H, T, F) and of the global tokens (B, H, G, F), from `empty_context`.
    """
    B, H, T, _ = q_BHTF.shape
    context_BHTF, context_BHGF = empty_context(q_BHTF), empty_context(global_q_BHGF)

    def work(item: tuple[int, int, tuple[int, int], bool]) -> None:
        b, h, (start, stop), is_global = item
        keys = slice(start, stop) if key_mask_BT is None else start + np.flatnonzero(key_mask_BT[b, start:stop])
        k_XF = np.concatenate([global_k_BHGF[b, h], k_BHTF[b, h, keys]])
        v_XF = np.concatenate([global_v_BHGF[b, h], v_BHTF[b, h, keys]])
        if is_global:
            context_BHGF[b, h] = attention_of_head(global_q_BHGF[b, h], k_XF, v_XF)
        else:
            context_BHTF[b, h, start:stop] = attention_of_head(q_BHTF[b, h, start:stop], k_XF, v_XF)

    heads = [(b, h) for b in range(B) for h in range(H)]
    # The longest items first, so that no thread is left with one of them at the end.
    items = [(b, h, (0, T), True) for b, h in heads]
    items += [(b, h, block, False) for b, h in heads for block in blocks]
    parallel_for(items, work, max_threads)
    return context_BHTF, context_BHGF
