"""The attention core: torch's fused attention over slices, so that scores are never kept for all heads at once.

Padding is cut off, not masked: fused kernels are fastest, and on CUDA often only to be had, without a mask.
"""

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pegasusx_ref.backend import is_core_traced
from pegasusx_ref.global_local import Slices
from pegasusx_ref.tracing import scope, tap, wanted

BLOCKS_AT_A_TIME = 8  # blocks whose keys are laid out together with the global ones: bounds what that takes
FEW = 32  # queries: so few scores that two plain products are faster on a CPU than the fused kernel


def attend(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None) -> Tensor:
    """Compute `pegasusx_ref.attention.attention`, fused where nobody listens to scores or probabilities."""
    is_few = q_BHLF.device.type == "cpu" and q_BHLF.shape[2] <= FEW and q_BHLF.dtype.itemsize >= 4
    if is_few or wanted("scores") or wanted("probs"):
        return attend_plainly(q_BHLF, k_BHXF, v_BHXF, visible)
    if visible is None:
        context_BHLF = scaled_dot_product_attention(q_BHLF, k_BHXF, v_BHXF)
    else:
        # A query that sees nothing averages over all keys: equal scores do that.
        blind = ~visible.any(dim=2, keepdim=True)[:, None]
        q_BHLF = q_BHLF.masked_fill(blind, 0)
        context_BHLF = scaled_dot_product_attention(q_BHLF, k_BHXF, v_BHXF, attn_mask=visible[:, None] | blind)
    found_BHLF: Tensor = tap("context", context_BHLF)
    return found_BHLF


def attend_plainly(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None) -> Tensor:
    """Compute attention step by step, for the trace; halves are multiplied and summed in float32."""
    operand = q_BHLF.dtype
    if operand.itemsize < 4:
        q_BHLF, k_BHXF, v_BHXF = q_BHLF.float(), k_BHXF.float(), v_BHXF.float()
    scores_BHLX = (q_BHLF * q_BHLF.shape[3] ** -0.5) @ k_BHXF.mT
    if visible is not None:
        scores_BHLX = scores_BHLX.masked_fill(~visible[:, None], torch.finfo(scores_BHLX.dtype).min)
    scores_BHLX = tap("scores", scores_BHLX)
    probs_BHLX: Tensor = tap("probs", scores_BHLX.softmax(dim=3))
    context_BHLF: Tensor = tap("context", (probs_BHLX @ v_BHXF).to(operand))
    return context_BHLF


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
    streams: Streams, key_mask_BT: Tensor | None, lengths: list[int] | None, slices: Slices
) -> tuple[Tensor, Tensor]:
    """Compute `pegasusx_ref.global_local.global_local_attention`.

    Args:
        streams: what attends and what is attended to.
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        lengths: real tokens of each text where padding only follows them; None where it stands elsewhere.
        slices: the blocks.

    Returns:
        Attended values of the tokens (B, H, T, F) and of the global tokens (B, H, G, F).
    """
    if lengths is None or is_core_traced(slices):
        return _slice_by_slice(streams, key_mask_BT, slices)
    context_BHTF, context_BHGF = _like_heads(streams.q_BHTF), _like_heads(streams.global_q_BHGF)
    first = 0
    for length, group in groupby(lengths):
        texts = slice(first, first := first + len(list(group)))
        _attend_texts(streams.of_texts(texts), length, slices, context_BHTF[texts], context_BHGF[texts])
    return context_BHTF, context_BHGF


def _like_heads(x_BHTF: Tensor) -> Tensor:
    """Make room for attended values whose heads lie side by side, so that merging them copies nothing."""
    B, H, T, F = x_BHTF.shape
    return x_BHTF.new_empty(B, T, H, F).transpose(1, 2)


def _attend_texts(streams: Streams, length: int, slices: Slices, context_BHTF: Tensor, context_BHGF: Tensor) -> None:
    """Fill in the attended values of texts that are equally long: whole blocks together, the rest one by one."""
    size = max(stop - start for start, stop in slices)
    whole = [(start, stop) for start, stop in slices if stop - start == size and stop <= length]
    for i in range(0, len(whole), BLOCKS_AT_A_TIME):
        some = whole[i : i + BLOCKS_AT_A_TIME]
        _attend_blocks(streams, some[0][0], some[-1][1], len(some), context_BHTF)

    # Short blocks, blocks that padding cuts short, and all padding blocks at once: they see only the global tokens.
    rest = [(start, stop) for start, stop in slices if start < length and (start, stop) not in whole]
    padding = [(start, context_BHTF.shape[2]) for start, _ in slices if start >= length][:1]
    for start, stop in [*rest, *padding]:
        keys_stop = max(start, min(stop, length))
        k_BHXF, v_BHXF = streams.keys_and_values(start, keys_stop)
        found_BHSF = scaled_dot_product_attention(streams.q_BHTF[:, :, start:stop], k_BHXF, v_BHXF)
        context_BHTF[:, :, start:stop] = found_BHSF

    k_BHXF, v_BHXF = streams.keys_and_values(0, length)
    context_BHGF[:] = scaled_dot_product_attention(streams.global_q_BHGF, k_BHXF, v_BHXF)


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
    found = scaled_dot_product_attention(queries, keys, values)
    blocks(context_BHTF).copy_(found.unflatten(0, (-1, num_blocks)))


def _slice_by_slice(streams: Streams, key_mask_BT: Tensor | None, slices: Slices) -> tuple[Tensor, Tensor]:
    """Go the way of the golden functions, with their masks and names: for the trace, and for padding anywhere."""
    context_BHTF, always = _like_heads(streams.q_BHTF), streams.global_k_BHGF.shape[2]

    def visible(start: int, stop: int) -> Tensor | None:
        if key_mask_BT is None:
            return None
        seen_BX = torch.nn.functional.pad(key_mask_BT[:, start:stop], (always, 0), value=True)
        return seen_BX[:, None]

    for n, (start, stop) in enumerate(slices):
        keys_and_values = streams.keys_and_values(start, stop)
        with scope(f"local.{n}"):
            found_BHSF = attend(streams.q_BHTF[:, :, start:stop], *keys_and_values, visible(start, stop))
        context_BHTF[:, :, start:stop] = found_BHSF
    everything = context_BHTF.shape[2]
    with scope("global"):
        keys_and_values = streams.keys_and_values(0, everything)
        return context_BHTF, attend(streams.global_q_BHGF, *keys_and_values, visible(0, everything))
