"""What a product is rounded to."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import linear

from pegasusx_torch.products import Products


@contextmanager
def exact_float32(tf32: bool) -> Iterator[None]:
    """Keep CUDA from rounding float32 operands to TF32 inside the block, or let it, whatever the program's setting."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32
    if before == tf32:
        yield
        return
    settings.allow_tf32 = tf32
    try:
        yield
    finally:
        settings.allow_tf32 = before


def full_precision_product(x: Tensor, weight: Tensor, bias: Tensor | None, products: Products) -> Tensor:
    """Multiply halves and give the float32 sum, where rounding it to a half would overflow or lose digits.

    Args:
        x: halves (..., in).
        weight: halves (out, in).
        bias: float32 (out,), or None.
        products: multiplies bfloat16 on a CPU.

    Returns:
        float32 (..., out).
    """
    if x.device.type == "cuda":
        product = torch.mm(x.reshape(-1, x.shape[-1]), weight.T, out_dtype=torch.float32)
        product = product.reshape(*x.shape[:-1], weight.shape[0])
    elif x.dtype == torch.bfloat16:  # cannot overflow, and CPUs multiply it fast only into itself
        product = products.linear(x, weight, None).float()
    else:
        product = linear(x.float(), weight.float())
    return product if bias is None else product + bias
