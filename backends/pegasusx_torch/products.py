"""Products with weights on a CPU: by MKL or by oneDNN, and for few rows with the weights laid out anew.

torch multiplies float32 with MKL, which has AVX-512 for Intel's processors alone: on others oneDNN takes half the time.
With few rows, as in beam search, the time goes into reading the weights. oneDNN reads them faster in an order of its
own, which they are brought into once; it is a second copy of them. Measured: benchmarks/results/README.md.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.weak import WeakTensorKeyDictionary

# Rows that are few: a single one of float32 is as fast without.
FEW = {torch.float32: range(2, 33), torch.bfloat16: range(1, 33)}
LARGE = 2**16  # numbers in a matrix: smaller ones stay in the cache
ROWS = 16  # of a weight, in each of the products that a single row is multiplied in
PATIENCE = 4  # products with few rows before a matrix is packed: it takes as long as some of them
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


CPU: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # nothing where torch does not say
IS_MKL_SLOW = bool(CPU.get("avx512_f")) and "Intel" not in str(CPU.get("cpu_name", "Intel"))
# Products of bfloat16, but no tiles (AMX): torch's fused attention then takes float32 ones.
HAS_BFLOAT16_PRODUCTS = HAS_ONEDNN and bool(CPU.get("avx512_bf16")) and not CPU.get("amx_bf16")


class Products:
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
        if x.device.type != "cpu" or x.dtype not in FEW or weight.numel() < LARGE or not HAS_ONEDNN:
            return linear(x, weight, bias)
        num_rows = x.numel() // x.shape[-1]
        is_slow = IS_MKL_SLOW and x.dtype == torch.float32
        if num_rows == 1 and is_slow:
            return row_times(x, weight, bias)
        operand = self._packed_for(x, weight) if num_rows in FEW[x.dtype] else None
        if operand is None and is_slow:
            operand = weight
        if operand is None:
            return linear(x, weight, bias)
        return product(x, operand, bias)

    def _packed_for(self, x: Tensor, weight: Tensor) -> Tensor | None:
        writes = 0 if weight.is_inference() else weight._version  # torch counts what is written into a tensor
        packed, writes_then = self._packed.get(weight, (None, 0))
        if packed is None or writes != writes_then:
            self._calls[weight] = self._calls.get(weight, 0) + 1
            if self._calls[weight] <= PATIENCE:
                return None
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.numel() // x.shape[-1])
            self._packed[weight] = packed, writes
        found: Tensor = packed
        return found


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply as `torch.nn.functional.linear` does, by oneDNN; the weight may be packed."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def row_times(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply a single row with some rows of the weight at a time: MKL shares many products among its threads.

    A single product of a row it gives to one thread, which alone reads memory at half the speed.
    """
    found = x.new_empty(*x.shape[:-1], len(weight))
    parts, size = len(weight) // ROWS, weight.shape[1]
    column = x.reshape(1, 1, size).mT  # by its strides the transpose of a row: a plain column takes longer
    shared = weight[: parts * ROWS].view(parts, ROWS, size)
    torch.bmm(shared, column.expand(parts, size, 1), out=found.view(-1)[: parts * ROWS].view(parts, ROWS, 1))
    if len(weight) % ROWS:
        torch.mv(weight[parts * ROWS :], x.reshape(size), out=found.view(-1)[parts * ROWS :])
    return found if bias is None else found.add_(bias)
