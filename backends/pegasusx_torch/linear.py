"""Matrix products with weights on a CPU: by MKL or by oneDNN, and for few rows with packed weights.

torch multiplies float32 with MKL, which uses AVX-512 on Intel's processors only: on others oneDNN takes half the time.
With few rows, as in beam search, reading the weights takes most of the time. oneDNN reads them faster from a packed
copy, which is made once. The plain weight gives the same bits as the packed one, so that a call's result does not
depend on earlier calls: with few rows oneDNN multiplies both. Measured: benchmarks/results/README.md.
"""

from threading import Lock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from pegasusx_torch.memory import take

MIN_ONEDNN_WEIGHT_SIZE = 2**16  # numbers in a weight: smaller ones stay in the cache
GEMV_CHUNK_ROWS = 16  # rows of the weight in each of the products that `gemv` computes
CALLS_BEFORE_PACKING = 4  # with few rows: packing takes as long as some products
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

CPU: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # empty if this torch does not have it
IS_MKL_SLOW = bool(CPU.get("avx512_f")) and "Intel" not in str(CPU.get("cpu_name", "Intel"))
# Without AMX, torch's fused attention converts bfloat16 to float32.
HAS_BFLOAT16_WITHOUT_AMX = HAS_ONEDNN and bool(CPU.get("avx512_bf16")) and not CPU.get("amx_bf16")
# Without instructions for bfloat16, oneDNN converts each operand when it is used, with AVX-512; else torch multiplies
# number by number. Only few rows take less time than converting the weight first.
IS_BFLOAT16_EMULATED = bool(CPU.get("avx2")) and not (CPU.get("avx512_bf16") or CPU.get("amx_bf16"))
MAX_BFLOAT16_ROWS = 32 if not IS_BFLOAT16_EMULATED else 8 if CPU.get("avx512_bw") else 0
# Numbers of rows for which packing pays; a single float32 row is as fast without.
FEW_ROWS = {torch.float32: range(2, 33), torch.bfloat16: range(1, MAX_BFLOAT16_ROWS + 1)}


class PackedWeights:
    """Copies of weights in oneDNN's packed layout, made for those that are often multiplied with few rows.

    Threads may share an object: one of them packs, the others wait. A copy of an object packs its own weights.
    """

    def __init__(self) -> None:
        self._calls = WeakTensorKeyDictionary()
        self._packed = WeakTensorKeyDictionary()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type["PackedWeights"], tuple[()]]:
        return PackedWeights, ()

    def get(self, weight: Tensor, num_rows: int) -> Tensor:
        """Return the packed copy of a weight, or the weight itself if it has not been used often enough yet."""
        version = 0 if weight.is_inference() else weight._version  # increases with each in-place write
        with self._lock:
            packed: Tensor | None
            packed, packed_version = self._packed.get(weight, (None, 0))
            if packed is None or version != packed_version:
                self._calls[weight] = self._calls.get(weight, 0) + 1
                if self._calls[weight] <= CALLS_BEFORE_PACKING:
                    return weight
                packed = torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
                self._packed[weight] = packed, version
            return packed


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, packed_weights: PackedWeights) -> Tensor:
    """Compute `torch.nn.functional.linear` by the fastest implementation for this CPU, dtype and number of rows.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,), or None.
        packed_weights: the backend's.
    """
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    if is_faster_in_float32(x):
        return float32_linear(x, weight, bias).to(torch.bfloat16)
    num_rows = x.numel() // x.shape[-1]
    if x.dtype not in FEW_ROWS or weight.numel() < MIN_ONEDNN_WEIGHT_SIZE or not HAS_ONEDNN:
        return mkl_linear(x, weight, bias)
    is_slow = IS_MKL_SLOW and x.dtype == torch.float32
    if num_rows == 1 and is_slow:
        return gemv(x, weight, bias)
    if num_rows in FEW_ROWS[x.dtype]:
        weight = packed_weights.get(weight, num_rows)
    elif not is_slow:
        return mkl_linear(x, weight, bias)
    return onednn_linear(x, weight, bias)


def is_faster_in_float32(x: Tensor) -> bool:
    """Return whether a CPU multiplies these rows faster after a conversion: bfloat16 without instructions for it."""
    is_emulated = IS_BFLOAT16_EMULATED and x.dtype == torch.bfloat16 and x.device.type == "cpu"
    return is_emulated and x.numel() // x.shape[-1] not in FEW_ROWS[x.dtype]


def mkl_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `torch.nn.functional.linear`, a large result in the workspace."""
    y = take((*x.shape[:-1], len(weight)), x)
    if y is None:
        return F.linear(x, weight, bias)
    x_rows, y_rows = x.reshape(-1, x.shape[-1]), y.view(-1, len(weight))
    if bias is None:
        torch.mm(x_rows, weight.T, out=y_rows)
    else:
        torch.addmm(bias, x_rows, weight.T, out=y_rows)
    return y


def float32_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `torch.nn.functional.linear` of half-precision operands in float32, and return it so."""
    return mkl_linear(x.float(), weight.float(), None if bias is None else bias.float())


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `torch.nn.functional.linear` by oneDNN; the weight may be packed."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def gemv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `linear` of a single row as a batch of small products, which MKL spreads over its threads.

    MKL computes a single matrix-vector product on one thread, which alone reads memory at half the speed.
    """
    y = x.new_empty(*x.shape[:-1], len(weight))
    num_chunks, num_in = len(weight) // GEMV_CHUNK_ROWS, weight.shape[1]
    whole = num_chunks * GEMV_CHUNK_ROWS
    column = x.reshape(1, 1, num_in).mT  # its strides are those of a transposed row: a plain column takes longer
    chunks = weight[:whole].view(num_chunks, GEMV_CHUNK_ROWS, num_in)
    y_chunks = y.view(-1)[:whole].view(num_chunks, GEMV_CHUNK_ROWS, 1)
    torch.bmm(chunks, column.expand(num_chunks, num_in, 1), out=y_chunks)
    if whole < len(weight):
        torch.mv(weight[whole:], x.reshape(num_in), out=y.view(-1)[whole:])
    return y if bias is None else y.add_(bias)
