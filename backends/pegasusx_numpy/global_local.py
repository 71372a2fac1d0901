"""The attention core: every thread takes one head and one block after the other."""

import numpy as np

from pegasusx_numpy.attention import attend_many, like_heads
from pegasusx_numpy.threads import for_each
from pegasusx_ref.golden.global_local import Blocks


def global_local_attend(
    q_BHTF: np.ndarray,
    k_BHTF: np.ndarray,
    v_BHTF: np.ndarray,
    global_q_BHGF: np.ndarray,
    global_k_BHGF: np.ndarray,
    global_v_BHGF: np.ndarray,
    key_mask_BT: np.ndarray | None,
    blocks: Blocks,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute `pegasusx_ref.golden.global_local.global_local_attention`; masked keys are left out.

    Args:
        q_BHTF: see there.
        k_BHTF: see there.
        v_BHTF: see there.
        global_q_BHGF: see there.
        global_k_BHGF: see there.
        global_v_BHGF: see there.
        key_mask_BT: see there.
        blocks: see there.
        threads: at the most; those of BLAS where None.

    Returns:
        Attended values of the tokens (B, H, T, F) and of the global tokens (B, H, G, F), the heads of a token side by
        side, so that merging them copies nothing.
    """
    B, H, T, _ = q_BHTF.shape
    context_BHTF, context_BHGF = like_heads(q_BHTF), like_heads(global_q_BHGF)
    everything = (0, T)

    def work(piece: tuple[int, int, tuple[int, int], bool]) -> None:
        b, h, (start, stop), is_global = piece
        seen = slice(start, stop) if key_mask_BT is None else start + np.flatnonzero(key_mask_BT[b, start:stop])
        k_XF = np.concatenate([global_k_BHGF[b, h], k_BHTF[b, h, seen]])
        v_XF = np.concatenate([global_v_BHGF[b, h], v_BHTF[b, h, seen]])
        q_SF, found_SF = (
            (global_q_BHGF[b, h], context_BHGF[b, h])
            if is_global
            else (q_BHTF[b, h, start:stop], context_BHTF[b, h, start:stop])
        )
        found_SF[:] = attend_many(q_SF, k_XF, v_XF)

    heads = [(b, h) for b in range(B) for h in range(H)]
    # The longest pieces first, so that no thread is left with one of them at the end.
    pieces = [(b, h, everything, True) for b, h in heads]
    pieces += [(b, h, block, False) for b, h in heads for block in blocks]
    for_each(pieces, work, threads)
    return context_BHTF, context_BHGF
