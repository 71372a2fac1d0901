"""Dense attention: torch's fused kernel, or on a CPU the fastest implementation for the number of queries and dtype."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pegasusx_ref.tracing import tap, wanted
from pegasusx_torch.linear import HAS_BFLOAT16_WITHOUT_AMX, IS_MKL_SLOW, onednn_linear
from pegasusx_torch.memory import empty

MAX_CACHED_NUMBERS = 2**21  # scores, or numbers of keys, of the heads that are computed together: they fit the cache
MIN_SCORES_PER_GEMM = 2**14  # scores of a head: from here on a product for each head is faster than a batched one
# Up to this number of queries two plain products are faster on a CPU than the fused kernel.
FEW_QUERIES = 1 if IS_MKL_SLOW else 32


def attention(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None) -> Tensor:
    """Compute `pegasusx_ref.golden.attention.attention`, fused unless a listener wants scores or probabilities."""
    if wanted("scores") or wanted("probs"):
        return attention_unfused(q_BHLF, k_BHXF, v_BHXF, visible)
    is_few = q_BHLF.device.type == "cpu" and q_BHLF.shape[2] <= FEW_QUERIES
    if is_few and q_BHLF.dtype.itemsize >= 4:
        return attention_unfused(q_BHLF, k_BHXF, v_BHXF, visible)
    if k_BHXF.stride(3) != 1:  # as `reads_keys_by_feature`, which the fused kernel does not take
        k_BHXF = k_BHXF.contiguous()
    if visible is None:
        context_BHLF = attention_unmasked(q_BHLF, k_BHXF, v_BHXF)
    elif is_faster_by_heads(q_BHLF):
        context_BHLF = attention_by_heads(q_BHLF, k_BHXF, v_BHXF, visible)
    else:
        context_BHLF = attention_masked(q_BHLF, k_BHXF, v_BHXF, visible)
        if overflowed(context_BHLF):
            context_BHLF = attention_of_head_groups(q_BHLF, k_BHXF, v_BHXF, visible)
    tapped_BHLF: Tensor = tap("context", context_BHLF)
    return tapped_BHLF


def attention_masked(
    q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Compute attention by torch's fused kernel; a query whose keys are all masked averages over all values.

    Args:
        q_BHLF: queries.
        k_BHXF: keys.
        v_BHXF: values.
        visible: which keys each query may attend to (B or 1, L or 1, X); None means all.
        dropout: of the probabilities.
    """
    mask = None
    if visible is not None:
        all_masked = ~visible.any(dim=2, keepdim=True)[:, None]
        q_BHLF = q_BHLF.masked_fill(all_masked, 0)  # equal scores
        mask = visible[:, None] | all_masked
    return scaled_dot_product_attention(q_BHLF, k_BHXF, v_BHXF, attn_mask=mask, dropout_p=dropout)


def attention_unfused(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None) -> Tensor:
    """Compute attention step by step, for the trace; half precision is multiplied and summed in float32."""
    dtype = q_BHLF.dtype
    if dtype.itemsize < 4:
        q_BHLF, k_BHXF, v_BHXF = q_BHLF.float(), k_BHXF.float(), v_BHXF.float()
    scores_BHLX = (q_BHLF * q_BHLF.shape[3] ** -0.5) @ k_BHXF.mT
    if visible is not None:
        mask_in_place(scores_BHLX, ~visible[:, None])
    scores_BHLX = tap("scores", scores_BHLX)
    probs_BHLX: Tensor = tap("probs", scores_BHLX.softmax(dim=3))
    context_BHLF: Tensor = tap("context", (probs_BHLX @ v_BHXF).to(dtype))
    return context_BHLF


def mask_in_place(scores: Tensor, masked: Tensor) -> None:
    """Set the scores of masked keys to the lowest number; a row whose other scores are all -inf becomes NaN.

    Args:
        scores: (..., L, X).
        masked: True for masked keys, in a shape that broadcasts to that of the scores.
    """
    lowest = torch.finfo(scores.dtype).min
    scores.masked_fill_(masked, lowest)
    overflowed = (scores.amax(dim=-1, keepdim=True) == lowest) & ~masked.all(dim=-1, keepdim=True)
    if not may_read(overflowed) or overflowed.any():
        scores.masked_fill_(overflowed, torch.nan)


def overflowed(context_BHLF: Tensor) -> bool:
    """Return whether the fused kernel on a CPU may have met scores that overflow: then its result is 0 or NaN.

    Masked keys whose scores overflow make the whole row NaN there, and a row of -inf becomes 0.
    """
    return may_read(context_BHLF) and not bool((context_BHLF[..., 0].abs() > 0).all())


def reads_keys_by_feature(k_BHXF: Tensor) -> bool:
    """Return whether decode steps are faster if the keys of a head are stored feature by feature: as MKL's products."""
    return k_BHXF.device.type == "cpu" and k_BHXF.dtype.itemsize >= 4 and not IS_MKL_SLOW


def may_read(tensor: Tensor) -> bool:
    """Return whether Python may read a result: on CUDA it would wait, and a graph could not record it."""
    return bool(tensor.device.type == "cpu")


# torch's fused attention on a CPU, with the logarithm of each sum of exponentials; None if this torch has none.
context_and_log_sums: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def is_fused_on_cpu(q_BHLF: Tensor) -> bool:
    """Return whether `attention_unmasked` takes the CPU's fused kernel."""
    return q_BHLF.device.type == "cpu" and not is_faster_by_heads(q_BHLF)


def is_faster_by_heads(q_BHLF: Tensor) -> bool:
    """Return whether the CPU's fused kernel is slow: in half precision for a single query, or bfloat16 without AMX."""
    if q_BHLF.device.type != "cpu" or q_BHLF.dtype.itemsize >= 4:
        return False
    return q_BHLF.shape[2] == 1 or (q_BHLF.dtype == torch.bfloat16 and HAS_BFLOAT16_WITHOUT_AMX)


def attention_by_heads(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None) -> Tensor:
    """Compute attention step by step for one or several heads at a time, so that float32 copies stay in the cache."""
    L, X = q_BHLF.shape[2], k_BHXF.shape[2]
    attend = attention_of_single_heads if L > 1 and L * X >= MIN_SCORES_PER_GEMM else attention_of_head_groups
    return attend(q_BHLF, k_BHXF, v_BHXF, visible)


def attention_of_head_groups(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None) -> Tensor:
    """Compute several heads together where each has few scores; half precision is converted to float32."""
    B, H, X, F = k_BHXF.shape
    group_size = max(MAX_CACHED_NUMBERS // (B * X * max(F, q_BHLF.shape[2])), 1)
    context_BHLF = empty_context(q_BHLF)
    dtype = torch.promote_types(q_BHLF.dtype, torch.float32)
    for first in range(0, H, group_size):
        heads = slice(first, first + group_size)
        scores = (q_BHLF[:, heads].to(dtype) * F**-0.5) @ k_BHXF[:, heads].to(dtype).mT
        if visible is not None:
            mask_in_place(scores, ~visible[:, None])
        context_BHLF[:, heads] = scores.softmax(dim=3) @ v_BHXF[:, heads].to(dtype)
    return context_BHLF


def attention_of_single_heads(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None) -> Tensor:
    """Compute one head at a time by oneDNN: scores are float32 and probabilities are rounded, as in fused kernels."""
    B, H, X, F = k_BHXF.shape
    L = q_BHLF.shape[2]
    context_BHLF = empty_context(q_BHLF)
    masked = None if visible is None else (~visible).expand(B, -1, -1)
    probs = q_BHLF.new_empty(min(max(MAX_CACHED_NUMBERS // (L * X), 1), H), L, X)
    for b in range(B):
        for first in range(0, H, len(probs)):
            heads = slice(first, first + len(probs))
            for probs_LX, q_LF, k_XF in zip(probs, q_BHLF[b, heads], k_BHXF[b, heads], strict=False):
                scores_LX = onednn_linear(q_LF.float() * F**-0.5, k_XF.float())
                if masked is not None:
                    mask_in_place(scores_LX, masked[b])
                probs_LX.copy_(scores_LX.softmax(dim=1))
            context_BHLF[b, heads] = probs[: H - first] @ v_BHXF[b, heads]
    return context_BHLF


def attention_unmasked(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor) -> Tensor:
    """Compute attention to all keys by the fastest implementation."""
    if is_faster_by_heads(q_BHLF):
        return attention_by_heads(q_BHLF, k_BHXF, v_BHXF, None)
    if has_flash_attention(q_BHLF):
        flash_BHLF: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q_BHLF, k_BHXF, v_BHXF)[0]
        return flash_BHLF
    context_BHLF: Tensor = scaled_dot_product_attention(q_BHLF, k_BHXF, v_BHXF)
    if overflowed(context_BHLF):
        return attention_of_head_groups(q_BHLF, k_BHXF, v_BHXF, None)
    return context_BHLF


def has_flash_attention(q_BHLF: Tensor) -> bool:
    """Return whether torch's own flash attention takes these heads: half precision on CUDA, 8, 16, … 256 features.

    torch would choose cuDNN's, which takes three times as long for the few queries of global attention, and prepares a
    plan for each new shape.
    """
    if q_BHLF.device.type != "cuda" or q_BHLF.dtype.itemsize != 2 or not torch.backends.cuda.flash_sdp_enabled():
        return False
    F = q_BHLF.shape[3]
    return F % 8 == 0 and F <= 256 and runs_flash_attention(q_BHLF.device)


@cache
def runs_flash_attention(device: torch.device) -> bool:
    """Return whether a CUDA device and this build of torch have flash attention."""
    is_new = torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(is_new and torch.backends.cuda.is_flash_attention_available())


def empty_context(q_BHTF: Tensor) -> Tensor:
    """Allocate attended values (B, H, T, F) as (B, T, H, F) in memory, so that merging the heads copies nothing."""
    B, H, T, F = q_BHTF.shape
    return empty((B, T, H, F), q_BHTF).transpose(1, 2)
