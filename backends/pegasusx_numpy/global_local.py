"""The attention core on several threads: a work item is one head of one block, or several heads of a small one."""

import numpy as np

from pegasusx_numpy.attention import attention_of_heads, empty_context, head_groups
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
    (B, H, T, _), G = q_BHTF.shape, global_q_BHGF.shape[2]
    context_BHTF, context_BHGF = empty_context(q_BHTF), empty_context(global_q_BHGF)

    def work(item: tuple[int, slice, tuple[int, int], bool]) -> None:
        b, heads, (start, stop), is_global = item
        keys = slice(start, stop) if key_mask_BT is None else start + np.flatnonzero(key_mask_BT[b, start:stop])
        k_HXF = np.concatenate([global_k_BHGF[b, heads], k_BHTF[b, heads][:, keys]], axis=1)
        v_HXF = np.concatenate([global_v_BHGF[b, heads], v_BHTF[b, heads][:, keys]], axis=1)
        if is_global:
            context_BHGF[b, heads] = attention_of_heads(global_q_BHGF[b, heads], k_HXF, v_HXF)
        else:
            context_BHTF[b, heads, start:stop] = attention_of_heads(q_BHTF[b, heads, start:stop], k_HXF, v_HXF)

    size = max(stop - start for start, stop in blocks)
    of_globals, of_blocks = head_groups(H, G * (G + T)), head_groups(H, size * (G + size))
    # The longest items first, so that no thread is left with one of them at the end.
    items = [(b, heads, (0, T), True) for b in range(B) for heads in of_globals]
    items += [(b, heads, block, False) for b in range(B) for heads in of_blocks for block in blocks]
    parallel_for(items, work, max_threads)
    return context_BHTF, context_BHGF
