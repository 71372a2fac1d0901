"""Matrix products by cuBLAS: half precision with float32 sums, which are written as they are or rounded.

CuPy's own matmul rounds the result to the dtype of the operands, copies operands that are not contiguous, and has no
stacks of matrices in bfloat16.
"""

from functools import cache
from typing import Any

import cupy
import numpy as np

from pegasusx_cupy.kernels import repeated_row
from pegasusx_ref.errors import BackendError, reason

DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # of cudaDataType_t
COMPUTE_FLOAT32, COMPUTE_FLOAT64, COMPUTE_TF32 = 68, 70, 77  # of cublasComputeType_t
NOT_TRANSPOSED, TRANSPOSED = 0, 1  # of cublasOperation_t
DEFAULT_ALGORITHM = -1


@cache
def load_cublas() -> tuple[Any, Any]:
    """Import CuPy's modules for cuBLAS and its handles: where the library is missing, that fails.

    Raises:
        BackendError: with the remedy.
    """
    try:
        from cupy.cuda import cublas, device
    except (ImportError, OSError, RuntimeError) as error:
        remedy = "install CUDA, or its libraries: pip install 'cupy-cuda12x[ctk]', or 'cupy-cuda13x[ctk]' for CUDA 13"
        raise BackendError(f"CuPy cannot load cuBLAS ({reason(error)}): {remedy}") from None
    return cublas, device


def product(
    x: Any,
    y: Any,
    dtype: Any,
    transposed: bool = False,
    scale: float = 1.0,
    bias: Any = None,
    tf32: bool = False,
) -> Any:
    """Multiply matrices, or stacks of them: scale x y + bias.

    Args:
        x: (L, K) or (B, H, L, K).
        y: (K, N) or (B, H, K, N), in the dtype of x.
        dtype: of the result: that of x, or of its sums.
        transposed: whether y is given as (N, K) or (B, H, N, K).
        scale: of the products.
        bias: None, or (N,) in the dtype of sums, for single matrices; it is rounded to `dtype`.
        tf32: let the operands of float32 products be rounded to TF32.

    Returns:
        (L, N) or (B, H, L, N).
    """
    x, y = with_contiguous_rows(x), with_contiguous_rows(y)
    *stack, L, K = x.shape
    N = y.shape[-2] if transposed else y.shape[-1]
    result = cupy.empty((*stack, L, N), dtype=dtype) if bias is None else repeated_row(bias, L, dtype)
    if 0 in result.shape:
        return result
    cublas, handles = load_cublas()
    compute = COMPUTE_TF32 if tf32 and x.dtype == np.float32 else COMPUTE_FLOAT32
    if x.dtype == np.float64:
        compute = COMPUTE_FLOAT64
    factors = np.array([scale, 0 if bias is None else 1], np.float64 if compute == COMPUTE_FLOAT64 else np.float32)
    B, H = stack or (1, 1)
    # cuBLAS stores matrices by columns, so it computes the transposed product: the operands change places.
    for b in range(B):
        cublas.gemmStridedBatchedEx(
            handles.get_cublas_handle(),
            TRANSPOSED if transposed else NOT_TRANSPOSED,
            NOT_TRANSPOSED,
            *(N, L, K),
            factors.ctypes.data,
            *operand(y, b),
            *operand(x, b),
            factors.ctypes.data + factors.itemsize,
            *operand(result, b),
            *(H, compute, DEFAULT_ALGORITHM),
        )
    return result


def with_contiguous_rows(x: Any) -> Any:
    """Return an array whose rows are contiguous and do not overlap, which is the array itself if it is so."""
    *_, rows, width = x.shape
    *_, step, item = x.strides
    is_contiguous = width == 1 or item == x.itemsize
    return x if is_contiguous and (rows == 1 or step >= width * x.itemsize) else cupy.ascontiguousarray(x)


def operand(x: Any, b: int) -> tuple[int, int, int, int]:
    """Describe the matrices of a batch row to cuBLAS: address, type, the steps from row to row and head to head."""
    steps = [step // x.itemsize for step in x.strides]
    address = x.data.ptr + (b * x.strides[0] if x.ndim == 4 else 0)
    return address, DATA_TYPES[str(x.dtype)], max(steps[-2], x.shape[-1]), steps[1] if x.ndim == 4 else 0
