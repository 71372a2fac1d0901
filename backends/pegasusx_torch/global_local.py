"""The attention core: fused attention over blocks, so that scores never exist for all heads at once.

Padding is cut off instead of masked: fused kernels are fastest, and on CUDA often only available, without a mask.
"""

from itertools import groupby
from typing import NamedTuple

import pegasusx_numpy.global_local as numpy_global_local
import torch
from torch import Tensor

from pegasusx_ref.backend import is_core_traced
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.tracing import scope
from pegasusx_torch.attention import (
    attention,
    attention_unmasked,
    context_and_log_sums,
    empty_context,
    is_fused_on_cpu,
    overflowed,
)
from pegasusx_torch.linear import IS_MKL_SLOW
from pegasusx_torch.memory import take

MAX_BATCHED_BLOCKS = 4  # on a CPU, computed in one call: bounds the memory of their keys joined with the global ones
# On CUDA launching the kernels of few blocks takes longer than running them, so these are the limits there: the largest
# grid of a kernel, and numbers of joined keys.
MAX_CUDA_BATCH, MAX_JOINED_NUMBERS = 65535, 2**28


class QKV(NamedTuple):
    """Queries, keys and values of the tokens (B, H, T, F) and of the global tokens (B, H, G, F)."""

    q_BHTF: Tensor
    k_BHTF: Tensor
    v_BHTF: Tensor
    global_q_BHGF: Tensor
    global_k_BHGF: Tensor
    global_v_BHGF: Tensor

    def batch_rows(self, rows: slice) -> "QKV":
        """Return some rows of the batch."""
        return QKV(*(x[rows] for x in self))

    def keys_and_values(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Concatenate keys and values of the global tokens and of the tokens [start, stop)."""
        k_BHXF = concatenate_tokens(self.global_k_BHGF, self.k_BHTF[:, :, start:stop])
        v_BHXF = concatenate_tokens(self.global_v_BHGF, self.v_BHTF[:, :, start:stop])
        return k_BHXF, v_BHXF


def concatenate_tokens(of_globals: Tensor, of_tokens: Tensor) -> Tensor:
    """Concatenate keys or values; on CUDA in the memory layout of a projection, which long runs of bytes make fast.

    Args:
        of_globals: of the global tokens (..., H, G, F).
        of_tokens: of the tokens (..., H, T, F).
    """
    if of_tokens.device.type == "cpu":
        *lead, num_globals, F = of_globals.shape
        joined = take((*lead, num_globals + of_tokens.shape[-2], F), of_tokens)
        return torch.cat([of_globals, of_tokens], dim=-2, out=joined)
    return torch.cat([of_globals.transpose(-3, -2), of_tokens.transpose(-3, -2)], dim=-3).transpose(-3, -2)


def global_local_attention(
    qkv: QKV, key_mask_BT: Tensor | None, lengths: list[int] | None, blocks: Blocks
) -> tuple[Tensor, Tensor]:
    """Compute `pegasusx_ref.golden.global_local.global_local_attention`.

    Args:
        qkv: the projected tokens and global tokens.
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        lengths: real tokens of each batch row; None if padding precedes a real token.
        blocks: (start, stop) of each block.

    Returns:
        Attended values of the tokens (B, H, T, F) and of the global tokens (B, H, G, F).
    """
    if is_core_traced(blocks):
        return _attention_block_by_block(qkv, key_mask_BT, blocks)
    if IS_MKL_SLOW and qkv.q_BHTF.device.type == "cpu" and qkv.q_BHTF.dtype.itemsize >= 4:
        return _numpy_attention(qkv, key_mask_BT, blocks)
    if lengths is None:
        return _attention_block_by_block(qkv, key_mask_BT, blocks)
    context_BHTF, context_BHGF = empty_context(qkv.q_BHTF), empty_context(qkv.global_q_BHGF)
    first = 0
    for length, group in groupby(lengths):
        rows = slice(first, first := first + len(list(group)))
        _attend_equal_lengths(qkv.batch_rows(rows), length, blocks, context_BHTF[rows], context_BHGF[rows])
    return context_BHTF, context_BHGF


def _numpy_attention(qkv: QKV, key_mask_BT: Tensor | None, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Run the NumPy backend on the same memory, with torch's number of threads or BLAS's, whichever is smaller."""
    mask = None if key_mask_BT is None else key_mask_BT.numpy()
    arrays = {name: x.numpy() for name, x in qkv._asdict().items()}
    max_threads = torch.get_num_threads()
    contexts = numpy_global_local.global_local_attention(
        **arrays, key_mask_BT=mask, blocks=blocks, max_threads=max_threads
    )
    context_BHTF, context_BHGF = map(torch.from_numpy, contexts)
    return context_BHTF, context_BHGF


def _attend_equal_lengths(qkv: QKV, length: int, blocks: Blocks, context_BHTF: Tensor, context_BHGF: Tensor) -> None:
    """Write the attended values of batch rows of one length: whole blocks in batches, the others one by one."""
    size = max(stop - start for start, stop in blocks)
    whole = [(start, stop) for start, stop in blocks if stop - start == size and stop <= length]
    batch_size = MAX_BATCHED_BLOCKS
    if context_BHTF.device.type != "cpu":
        B, H, G, F = qkv.global_k_BHGF.shape
        batch_size = max(min(MAX_CUDA_BATCH // B, MAX_JOINED_NUMBERS // (B * H * F * (G + size))), 1)
    for i in range(0, len(whole), batch_size):
        batched = whole[i : i + batch_size]
        _attend_equal_blocks(qkv, batched[0][0], batched[-1][1], len(batched), context_BHTF)

    # Short blocks, blocks that end in padding, and all blocks of padding at once: those see the global tokens only.
    others = [(start, stop) for start, stop in blocks if start < length and (start, stop) not in whole]
    padding = [(start, context_BHTF.shape[2]) for start, _ in blocks if start >= length][:1]
    for start, stop in [*others, *padding]:
        keys_stop = max(start, min(stop, length))
        keys_and_values = qkv.keys_and_values(start, keys_stop)
        context_BHTF[:, :, start:stop] = attention_unmasked(qkv.q_BHTF[:, :, start:stop], *keys_and_values)

    context_BHGF[:] = _attention_of_globals(qkv, length)


def _attention_of_globals(qkv: QKV, length: int) -> Tensor:
    """Let the global tokens attend to each other and to all tokens; on a CPU without copying keys and values."""
    if context_and_log_sums is not None and length > 0 and is_fused_on_cpu(qkv.global_q_BHGF):
        keys, values = qkv.k_BHTF[:, :, :length], qkv.v_BHTF[:, :, :length]
        own, own_log_sums = context_and_log_sums(qkv.global_q_BHGF, qkv.global_k_BHGF, qkv.global_v_BHGF)
        others, log_sums = context_and_log_sums(qkv.global_q_BHGF, keys, values)
        if not overflowed(own) and not overflowed(others):
            share = torch.sigmoid(log_sums - own_log_sums)[..., None]  # of the tokens, in all probabilities
            return own.lerp(others, share.to(own.dtype))
    return attention_unmasked(qkv.global_q_BHGF, *qkv.keys_and_values(0, length))


def _attend_equal_blocks(qkv: QKV, start: int, stop: int, num_blocks: int, context_BHTF: Tensor) -> None:
    """Write the attended values of adjacent blocks of one size, which become additional batch rows."""

    def blocks(x_BHTF: Tensor) -> Tensor:
        return x_BHTF[:, :, start:stop].unflatten(2, (num_blocks, -1)).transpose(1, 2)  # (B, blocks, H, K, F)

    def with_globals(global_BHGF: Tensor, x_BHTF: Tensor) -> Tensor:
        repeated = global_BHGF[:, None].expand(-1, num_blocks, -1, -1, -1)
        return concatenate_tokens(repeated, blocks(x_BHTF)).flatten(0, 1)

    queries = blocks(qkv.q_BHTF).flatten(0, 1)
    keys = with_globals(qkv.global_k_BHGF, qkv.k_BHTF)
    values = with_globals(qkv.global_v_BHGF, qkv.v_BHTF)
    contexts = attention_unmasked(queries, keys, values)
    blocks(context_BHTF).copy_(contexts.unflatten(0, (-1, num_blocks)))


def _attention_block_by_block(qkv: QKV, key_mask_BT: Tensor | None, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Compute as the golden functions do, with masks and trace points: for listeners and for padding anywhere."""
    context_BHTF = empty_context(qkv.q_BHTF)
    num_tokens, num_globals = context_BHTF.shape[2], qkv.global_k_BHGF.shape[2]

    def attend(queries: Tensor, start: int, stop: int) -> Tensor:
        visible = None
        if key_mask_BT is not None:  # global tokens are always visible
            visible = torch.nn.functional.pad(key_mask_BT[:, start:stop], (num_globals, 0), value=True)[:, None]
        return attention(queries, *qkv.keys_and_values(start, stop), visible)

    for n, (start, stop) in enumerate(blocks):
        with scope(f"local.{n}"):
            context_BHTF[:, :, start:stop] = attend(qkv.q_BHTF[:, :, start:stop], start, stop)
    with scope("global"):
        return context_BHTF, attend(qkv.global_q_BHGF, 0, num_tokens)
