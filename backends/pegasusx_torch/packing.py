"""Weights laid out anew for products with few rows, as in beam search: there a CPU's general product collapses.

For 4 and 8 rows of float32 it takes 1.5 times as long as oneDNN's product with weights in an order of its own, which
the weights are brought into once. That order is a second copy of them. Measured: benchmarks/results/README.md.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.weak import WeakTensorKeyDictionary

FEW = range(3, 33)  # rows: one or two are as fast without, many too
LARGE = 2**16  # numbers in a matrix: smaller ones stay in the cache
PATIENCE = 4  # products with few rows before a matrix is packed: it takes as long as some of them
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class PackedWeights:
    """Multiplies with matrices, and packs those that meet few rows again and again."""

    def __init__(self) -> None:
        self._calls = WeakTensorKeyDictionary()
        self._packed = WeakTensorKeyDictionary()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute `torch.nn.functional.linear`.

        Args:
            x: (..., in).
            weight: (out, in).
            bias: (out,), or None.
        """
        packed = self._packed_for(x, weight)
        if packed is None:
            return linear(x, weight, bias)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return found

    def _packed_for(self, x: Tensor, weight: Tensor) -> Tensor | None:
        rows = x.numel() // x.shape[-1]
        is_fit = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and HAS_ONEDNN
        if not is_fit or rows not in FEW or weight.numel() < LARGE:
            return None
        if weight not in self._packed:
            self._calls[weight] = self._calls.get(weight, 0) + 1
            if self._calls[weight] <= PATIENCE:
                return None
            self._packed[weight] = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        found: Tensor = self._packed[weight]
        return found
