"""Linear maps under autograd: float32 or float64 weights, products in the compute dtype, by the fastest library."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pegasusx_torch.linear import HAS_ONEDNN, IS_MKL_SLOW, MIN_ONEDNN_WEIGHT_SIZE, onednn_linear

# Numbers in a weight for which oneDNN is faster than MKL: it copies the weight, and a table is larger than its rows.
ONEDNN_WEIGHT_SIZES = range(MIN_ONEDNN_WEIGHT_SIZE, 2**24)


class Linear(torch.autograd.Function):
    """`torch.nn.functional.linear`; its gradients of the weight and the bias have their dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, compute_dtype: torch.dtype, dtype: torch.dtype
    ) -> Tensor:
        """Compute the map.

        Args:
            ctx: keeps what `backward` needs.
            x: (..., in).
            weight: (out, in).
            bias: (out,), or None.
            compute_dtype: of the product's operands.
            dtype: of the result.
        """
        x = x.to(compute_dtype)
        ctx.save_for_backward(x, weight)
        y = product(x, weight.to(compute_dtype), dtype)
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of x, weight and bias, see chapter 19.4.

        Args:
            ctx: see `forward`.
            grad: of the result (..., out).
        """
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_bias = grad.flatten(0, -2).sum(dim=0, dtype=weight.dtype) if needs_bias else None
        grad = grad.to(x.dtype)
        grad_x = product(grad, weight.to(x.dtype).T, x.dtype) if needs_x else None
        grad_weight = (grad.flatten(0, -2).T @ x.flatten(0, -2)).to(weight.dtype) if needs_weight else None
        return grad_x, grad_weight, grad_bias, None, None


def product(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply x (..., in) and weight (out, in), which have one dtype, to a result (..., out) in another or the same.

    Args:
        x: the first operand.
        weight: the second one.
        dtype: of the result; a CUDA device returns the sums in float32 unrounded.
    """
    if x.device.type == "cuda" and dtype != x.dtype:
        return torch.mm(x.flatten(0, -2), weight.T, out_dtype=dtype).unflatten(0, x.shape[:-1])
    if x.dtype == torch.float16 and x.device.type == "cpu":  # slow there, and sums may exceed its range
        return F.linear(x.float(), weight.float()).to(dtype)
    is_onednn_faster = IS_MKL_SLOW and HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32
    if is_onednn_faster and weight.numel() in ONEDNN_WEIGHT_SIZES:
        return onednn_linear(x, weight.contiguous())
    return F.linear(x, weight).to(dtype)
