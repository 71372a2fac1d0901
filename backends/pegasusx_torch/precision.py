"""The precision of matrix products."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import RLock

import torch
from torch import Tensor

from pegasusx_torch.linear import PackedWeights, float32_linear, is_faster_in_float32, linear

# Held where a setting of CUDA's that belongs to the process is changed. A listener inside may run another model.
process_settings = RLock()

PRODUCTS = torch.backends.cuda.matmul
# Where a program has set the newer of torch's two settings, reading the older one, the only one of torch 2.8, fails.
IS_OLDER = not hasattr(PRODUCTS, "fp32_precision")
TF32_SETTING = "allow_tf32" if IS_OLDER else "fp32_precision"
TF32_VALUES: dict[bool, object] = {True: True, False: False} if IS_OLDER else {True: "tf32", False: "ieee"}

UNCHANGED = nullcontext()  # there is one, because operations on a CPU are many and short


def allow_tf32(is_allowed: bool, device: torch.device) -> AbstractContextManager[None]:
    """Set whether CUDA may round float32 operands to TF32 inside the block, whatever the program's setting is.

    The setting belongs to the process, so one thread at a time launches products on CUDA. It applies to the launch, and
    also to products that a CUDA graph captures.

    Args:
        is_allowed: whether it may.
        device: where the products are computed; the setting does not matter on a CPU.
    """
    return _tf32(is_allowed) if device.type == "cuda" else UNCHANGED


@contextmanager
def _tf32(is_allowed: bool) -> Iterator[None]:
    with process_settings:
        before = getattr(PRODUCTS, TF32_SETTING)
        if (before == TF32_VALUES[True]) == is_allowed:
            yield
            return
        setattr(PRODUCTS, TF32_SETTING, TF32_VALUES[is_allowed])
        try:
            yield
        finally:
            setattr(PRODUCTS, TF32_SETTING, before)


def linear_full_precision(x: Tensor, weight: Tensor, bias: Tensor | None, packed_weights: PackedWeights) -> Tensor:
    """Multiply in half precision and return the float32 sum, which rounding might overflow or strip of digits.

    Args:
        x: bfloat16 or float16 (..., in).
        weight: in the dtype of x (out, in).
        bias: float32 (out,), or None.
        packed_weights: for bfloat16 on a CPU.

    Returns:
        float32 (..., out).
    """
    if x.device.type == "cuda":
        rows = x.reshape(-1, x.shape[-1])
        product = torch.mm if bias is None else partial(torch.addmm, bias)
        return product(rows, weight.T, out_dtype=torch.float32).reshape(*x.shape[:-1], weight.shape[0])
    if x.dtype == torch.bfloat16 and not is_faster_in_float32(x):
        # It cannot overflow, and CPUs are fast only if the result is bfloat16 too.
        y = linear(x, weight, None, packed_weights).float()
        return y if bias is None else y + bias
    return float32_linear(x, weight, bias)
