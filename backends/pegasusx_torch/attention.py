"""Dense attention: torch's fused kernel, and on a CPU whatever is faster for so many queries in that dtype."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pegasusx_ref.tracing import tap, wanted
from pegasusx_torch.products import HAS_BFLOAT16_PRODUCTS, IS_MKL_SLOW, product

NUMBERS = 2**21  # scores, or numbers of keys, that attention by heads has at a time: they stay in the cache
MANY = 2**14  # scores of a head: from there on it is worth a product of its own
# Queries: so few scores that two plain products are faster on a CPU than the fused kernel.
FEW = 1 if IS_MKL_SLOW else 32


def attend(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None) -> Tensor:
    """Compute `pegasusx_ref.golden.attention.attention`, fused where nobody listens to scores or probabilities."""
    if wanted("scores") or wanted("probs"):
        return attend_plainly(q_BHLF, k_BHXF, v_BHXF, visible)
    is_few = q_BHLF.device.type == "cpu" and q_BHLF.shape[2] <= FEW
    if is_few and q_BHLF.dtype.itemsize >= 4:
        return attend_plainly(q_BHLF, k_BHXF, v_BHXF, visible)
    if visible is None:
        context_BHLF = attend_unmasked(q_BHLF, k_BHXF, v_BHXF)
    elif is_faster_by_heads(q_BHLF):
        context_BHLF = attend_by_heads(q_BHLF, k_BHXF, v_BHXF, visible)
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


def is_faster_by_heads(q_BHLF: Tensor) -> bool:
    """Tell where a CPU's fused kernel is slow with halves: for a single query, and in bfloat16 without tiles."""
    if q_BHLF.device.type != "cpu" or q_BHLF.dtype.itemsize >= 4:
        return False
    return q_BHLF.shape[2] == 1 or (q_BHLF.dtype == torch.bfloat16 and HAS_BFLOAT16_PRODUCTS)


def attend_by_heads(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None) -> Tensor:
    """Compute attention step by step for some heads at a time: what is float32 of it stays in the cache."""
    L, X = q_BHLF.shape[2], k_BHXF.shape[2]
    compute = attend_head_by_head if L > 1 and L * X >= MANY else attend_together
    return compute(q_BHLF, k_BHXF, v_BHXF, visible)


def attend_together(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None) -> Tensor:
    """Compute as many heads at a time as fit, where each has few scores: keys and values become float32."""
    B, H, X, F = k_BHXF.shape
    at_a_time = max(NUMBERS // (B * X * max(F, q_BHLF.shape[2])), 1)
    context_BHLF = like_heads(q_BHLF)
    for first in range(0, H, at_a_time):
        heads = slice(first, first + at_a_time)
        scores = (q_BHLF[:, heads].float() * F**-0.5) @ k_BHXF[:, heads].float().mT
        if visible is not None:
            scores.masked_fill_(~visible[:, None], torch.finfo(scores.dtype).min)
        context_BHLF[:, heads] = scores.softmax(dim=3) @ v_BHXF[:, heads].float()
    return context_BHLF


def attend_head_by_head(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None) -> Tensor:
    """Compute one head after the other by oneDNN: scores are float32, their softmax is rounded, as in fused kernels."""
    B, H, X, F = k_BHXF.shape
    L = q_BHLF.shape[2]
    context_BHLF = like_heads(q_BHLF)
    hidden = None if visible is None else (~visible).expand(B, -1, -1)
    probs = q_BHLF.new_empty(min(max(NUMBERS // (L * X), 1), H), L, X)
    for b in range(B):
        for first in range(0, H, len(probs)):
            heads = slice(first, first + len(probs))
            for probs_LX, q_LF, k_XF in zip(probs, q_BHLF[b, heads], k_BHXF[b, heads], strict=False):
                scores_LX = product(q_LF.float() * F**-0.5, k_XF.float())
                if hidden is not None:
                    scores_LX.masked_fill_(hidden[b], torch.finfo(scores_LX.dtype).min)
                probs_LX.copy_(scores_LX.softmax(dim=1))
            context_BHLF[b, heads] = probs[: H - first] @ v_BHXF[b, heads]
    return context_BHLF


def attend_unmasked(q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor) -> Tensor:
    """Compute attention to all keys by what is fastest."""
    if is_faster_by_heads(q_BHLF):
        return attend_by_heads(q_BHLF, k_BHXF, v_BHXF, None)
    found_BHLF: Tensor = scaled_dot_product_attention(q_BHLF, k_BHXF, v_BHXF)
    return found_BHLF


def like_heads(x_BHTF: Tensor) -> Tensor:
    """Make room for attended values whose heads lie side by side, so that merging them copies nothing."""
    B, H, T, F = x_BHTF.shape
    return x_BHTF.new_empty(B, T, H, F).transpose(1, 2)
