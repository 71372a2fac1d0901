"""The attention core: fused attention over blocks, so that scores are never kept for all heads at once.

Padding is cut off, not masked: fused kernels are fastest, and on CUDA often only to be had, without a mask.
"""

from itertools import groupby
from typing import NamedTuple

import pegasusx_numpy.global_local as numpy_global_local
import torch
from torch import Tensor

from pegasusx_ref.backend import is_core_traced
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.tracing import scope
from pegasusx_torch.attention import attend, attend_unmasked, like_heads
from pegasusx_torch.products import IS_MKL_SLOW

BLOCKS_AT_A_TIME = 4  # blocks whose keys are laid out together with the global ones: bounds what that takes


class Streams(NamedTuple):
    """Queries, keys and values of the tokens (B, H, T, F) and of the global tokens (B, H, G, F)."""

    q_BHTF: Tensor
    k_BHTF: Tensor
    v_BHTF: Tensor
    global_q_BHGF: Tensor
    global_k_BHGF: Tensor
    global_v_BHGF: Tensor

    def of_texts(self, texts: slice) -> "Streams":
        """Take some texts of the batch."""
        return Streams(*(x[texts] for x in self))

    def keys_and_values(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Put those of the global tokens in front of those of a slice."""
        k_BHXF = torch.cat([self.global_k_BHGF, self.k_BHTF[:, :, start:stop]], dim=2)
        v_BHXF = torch.cat([self.global_v_BHGF, self.v_BHTF[:, :, start:stop]], dim=2)
        return k_BHXF, v_BHXF


def global_local_attend(
    streams: Streams, key_mask_BT: Tensor | None, lengths: list[int] | None, blocks: Blocks
) -> tuple[Tensor, Tensor]:
    """Compute `pegasusx_ref.golden.global_local.global_local_attention`.

    Args:
        streams: what attends and what is attended to.
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        lengths: real tokens of each text where padding only follows them; None where it stands elsewhere.
        blocks: the blocks.

    Returns:
        Attended values of the tokens (B, H, T, F) and of the global tokens (B, H, G, F).
    """
    if is_core_traced(blocks):
        return _block_by_block(streams, key_mask_BT, blocks)
    if IS_MKL_SLOW and streams.q_BHTF.device.type == "cpu" and streams.q_BHTF.dtype.itemsize >= 4:
        return _by_numpy(streams, key_mask_BT, blocks)
    if lengths is None:
        return _block_by_block(streams, key_mask_BT, blocks)
    context_BHTF, context_BHGF = like_heads(streams.q_BHTF), like_heads(streams.global_q_BHGF)
    first = 0
    for length, group in groupby(lengths):
        texts = slice(first, first := first + len(list(group)))
        _attend_texts(streams.of_texts(texts), length, blocks, context_BHTF[texts], context_BHGF[texts])
    return context_BHTF, context_BHGF


def _by_numpy(streams: Streams, key_mask_BT: Tensor | None, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Let NumPy's backend compute on the same memory, on torch's threads, or BLAS's where these are fewer."""
    mask = None if key_mask_BT is None else key_mask_BT.numpy()
    arrays = {name: x.numpy() for name, x in streams._asdict().items()}
    threads = torch.get_num_threads()
    found = numpy_global_local.global_local_attend(**arrays, key_mask_BT=mask, blocks=blocks, threads=threads)
    context_BHTF, context_BHGF = map(torch.from_numpy, found)
    return context_BHTF, context_BHGF


def _attend_texts(streams: Streams, length: int, blocks: Blocks, context_BHTF: Tensor, context_BHGF: Tensor) -> None:
    """Fill in the attended values of texts that are equally long: whole blocks together, the rest one by one."""
    size = max(stop - start for start, stop in blocks)
    whole = [(start, stop) for start, stop in blocks if stop - start == size and stop <= length]
    for i in range(0, len(whole), BLOCKS_AT_A_TIME):
        some = whole[i : i + BLOCKS_AT_A_TIME]
        _attend_blocks(streams, some[0][0], some[-1][1], len(some), context_BHTF)

    # Short blocks, blocks that padding cuts short, and all padding blocks at once: they see only the global tokens.
    rest = [(start, stop) for start, stop in blocks if start < length and (start, stop) not in whole]
    padding = [(start, context_BHTF.shape[2]) for start, _ in blocks if start >= length][:1]
    for start, stop in [*rest, *padding]:
        keys_stop = max(start, min(stop, length))
        k_BHXF, v_BHXF = streams.keys_and_values(start, keys_stop)
        found_BHSF = attend_unmasked(streams.q_BHTF[:, :, start:stop], k_BHXF, v_BHXF)
        context_BHTF[:, :, start:stop] = found_BHSF

    k_BHXF, v_BHXF = streams.keys_and_values(0, length)
    context_BHGF[:] = attend_unmasked(streams.global_q_BHGF, k_BHXF, v_BHXF)


def _attend_blocks(streams: Streams, start: int, stop: int, num_blocks: int, context_BHTF: Tensor) -> None:
    """Fill in the attended values of neighbouring blocks of one size, as so many more texts of a batch."""

    def blocks(x_BHTF: Tensor) -> Tensor:
        return x_BHTF[:, :, start:stop].unflatten(2, (num_blocks, -1)).transpose(1, 2)  # (B, blocks, H, K, F)

    def with_globals(global_BHGF: Tensor, x_BHTF: Tensor) -> Tensor:
        repeated = global_BHGF[:, None].expand(-1, num_blocks, -1, -1, -1)
        return torch.cat([repeated, blocks(x_BHTF)], dim=3).flatten(0, 1)

    queries = blocks(streams.q_BHTF).flatten(0, 1)
    keys = with_globals(streams.global_k_BHGF, streams.k_BHTF)
    values = with_globals(streams.global_v_BHGF, streams.v_BHTF)
    found = attend_unmasked(queries, keys, values)
    blocks(context_BHTF).copy_(found.unflatten(0, (-1, num_blocks)))


def _block_by_block(streams: Streams, key_mask_BT: Tensor | None, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Go the way of the golden functions, with their masks and names: for the trace, and for padding anywhere."""
    context_BHTF, always = like_heads(streams.q_BHTF), streams.global_k_BHGF.shape[2]

    def visible(start: int, stop: int) -> Tensor | None:
        if key_mask_BT is None:
            return None
        seen_BX = torch.nn.functional.pad(key_mask_BT[:, start:stop], (always, 0), value=True)
        return seen_BX[:, None]

    for n, (start, stop) in enumerate(blocks):
        keys_and_values = streams.keys_and_values(start, stop)
        with scope(f"local.{n}"):
            found_BHSF = attend(streams.q_BHTF[:, :, start:stop], *keys_and_values, visible(start, stop))
        context_BHTF[:, :, start:stop] = found_BHSF
    everything = context_BHTF.shape[2]
    with scope("global"):
        keys_and_values = streams.keys_and_values(0, everything)
        return context_BHTF, attend(streams.global_q_BHGF, *keys_and_values, visible(0, everything))
