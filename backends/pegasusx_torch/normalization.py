"""LayerNorm by torch's fused kernel, which hides the overflow of a variance: x / inf = 0."""

import torch
from torch import Tensor

from pegasusx_torch.attention import may_read

ZERO = torch.tensor(0.0, device="cpu")  # a number for every device


def layer_norm(x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Compute `pegasusx_ref.golden.normalization.layer_norm`; a variance that overflows makes its row NaN.

    Args:
        x_BTD: as there, like all arguments.
        weight_D: as there.
        bias_D: as there.
        eps: as there.
        dtype: of the result.
    """
    # The third result, 1 / sqrt(variance + eps), is 0 where the variance overflowed.
    y_BTD, _, scale_BT1 = torch.native_layer_norm(x_BTD, weight_D.shape, weight_D, bias_D, eps)
    if not may_read(scale_BT1):  # 0 / 0 is NaN, and adding -0.0, or 0 / scale, changes no number
        if dtype == y_BTD.dtype or y_BTD.requires_grad:
            return y_BTD.addcdiv_(scale_BT1, scale_BT1, value=-0.0).to(dtype)
        rounded_BTD = torch.empty_like(y_BTD, dtype=dtype)
        return torch.add(y_BTD, torch.div(ZERO, scale_BT1), out=rounded_BTD)  # rounded in the same pass over memory
    if not scale_BT1.min() > 0:  # also NaN: the kernel's sums overflow where the mean is large
        overflowed_BT = ~(scale_BT1[..., 0] > 0)
        y_BTD[overflowed_BT] = layer_norm_unfused(x_BTD[overflowed_BT], weight_D, bias_D, eps)
    return y_BTD.to(dtype)


def layer_norm_unfused(x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Compute some rows as the golden function does.

    Args:
        x_ND: rows (N, D).
        weight_D: as there, like all further arguments.
        bias_D: as there.
        eps: as there.
    """
    centered_ND = x_ND - x_ND.mean(dim=1, keepdim=True)
    variance_N1 = centered_ND.square().mean(dim=1, keepdim=True)
    variance_N1 = variance_N1.masked_fill(variance_N1.isinf(), torch.nan)
    return centered_ND / (variance_N1 + eps).sqrt() * weight_D + bias_D
