"""The kernels on CuPy arrays."""

import math
from functools import cache
from typing import Any

import cupy
import numpy as np

from pegasusx_cupy.compilation import (
    MANY_WARPS,
    THREADS,
    VECTOR_BYTES,
    WARP,
    attention_kernel,
    few_queries_kernel,
    few_rows_kernel,
    row_kernel,
    sum_dtype,
)
from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.golden.quantization import CODES

PART_SIZE = 1024  # keys of a row of global attention that a thread block takes: a multiple of a tile's
FEW = 64  # rows, or queries, up to which the kernels for few of them are used
MIN_PART_SIZE = 64  # keys of few queries that a warp takes


def aligned(x: Any) -> Any:
    """Return a contiguous array that kernels may read by 16 bytes: its address is a multiple of that."""
    x = cupy.ascontiguousarray(x)
    return cupy.array(x, dtype=x.dtype) if x.data.ptr % VECTOR_BYTES else x


def contiguous_BTHF(x_BHTF: Any) -> Any:
    """Lay out as (B, T, H, F) in memory; heads split from a projection already are."""
    return aligned(x_BHTF.swapaxes(1, 2))


def bytes_of(mask: Any) -> Any:
    """Return a mask as bytes of 1 and 0; a null pointer if there is none."""
    return np.intp(0) if mask is None else cupy.ascontiguousarray(mask).astype(bool, copy=False).view(cupy.uint8)


def int32(*sizes: int) -> tuple[np.int32, ...]:
    """Return sizes as kernels take them."""
    return tuple(map(np.int32, sizes))


def local_attention(
    q_BHTF: Any,
    k_BHTF: Any,
    v_BHTF: Any,
    global_k_BHGF: Any,
    global_v_BHGF: Any,
    key_mask_BT: Any,
    blocks: Blocks,
    arithmetic: str,
) -> Any:
    """Compute `pegasusx_ref.golden.global_local.local_attention`; for `arithmetic` see `tile_for`."""
    B, H, T, F = q_BHTF.shape
    first_stop = blocks[0][1]
    block_size = blocks[1][1] - blocks[1][0] if len(blocks) > 1 else first_stop
    kernel, tile = attention_kernel("local_attention", arithmetic, F)
    tiles = -(-max(stop - start for start, stop in blocks) // tile.queries)
    inputs = map(contiguous_BTHF, (q_BHTF, k_BHTF, v_BHTF, global_k_BHGF, global_v_BHGF))
    context_BTHF = cupy.empty((B, T, H, F), dtype=q_BHTF.dtype)
    sizes = int32(T, global_k_BHGF.shape[2], first_stop, block_size, tiles)
    kernel((len(blocks) * tiles, H, B), (tile.threads,), (*inputs, bytes_of(key_mask_BT), context_BTHF, *sizes))
    return context_BTHF.swapaxes(1, 2)


def global_attention(
    global_q_BHGF: Any,
    k_BHTF: Any,
    v_BHTF: Any,
    global_k_BHGF: Any,
    global_v_BHGF: Any,
    key_mask_BT: Any,
    arithmetic: str,
) -> Any:
    """Compute `pegasusx_ref.golden.global_local.global_attention`: parts of the keys, then their merged results."""
    B, H, G, F = global_q_BHGF.shape
    T = k_BHTF.shape[2]
    kernel, tile = attention_kernel("global_attention", arithmetic, F)
    tiles = -(-G // tile.queries)
    num_parts = -(-(G + T) // PART_SIZE)
    inputs = map(contiguous_BTHF, (global_q_BHGF, k_BHTF, v_BHTF, global_k_BHGF, global_v_BHGF))
    context_BGHF = cupy.empty((B, G, H, F), dtype=k_BHTF.dtype)
    parts = empty_parts(num_parts, context_BGHF, arithmetic)
    arguments = (*inputs, bytes_of(key_mask_BT), *parts, *int32(T, G, PART_SIZE, num_parts))
    kernel((tiles * num_parts, H, B), (tile.threads,), arguments)
    merge, _ = attention_kernel("merge_parts", arithmetic, F)
    merge((B * G * H, 1, 1), (tile.threads,), (*parts, context_BGHF, np.int32(num_parts)))
    return context_BGHF.swapaxes(1, 2)


def empty_parts(num_parts: int, context_BLHF: Any, arithmetic: str) -> list[Any]:
    """Return arrays for what merge_parts.cuh merges: sums of values, largest scores, and sums of weights."""
    B, L, H, F = context_BLHF.shape
    shapes = [(num_parts, B, L, H, F), (num_parts, B, L, H), (num_parts, B, L, H)]
    return [cupy.empty(shape, dtype=sum_dtype(arithmetic)) for shape in shapes]


def layer_norm(x_BTD: Any, weight_D: Any, bias_D: Any, eps: float, dtype: str) -> Any:
    """Compute `pegasusx_ref.golden.normalization.layer_norm`.

    Args:
        x_BTD: as there, like the next three; in the dtype of sums.
        weight_D: in the dtype of sums.
        bias_D: in the dtype of sums.
        eps: as there.
        dtype: of the result.
    """
    *rows, width = x_BTD.shape
    y_BTD = cupy.empty(x_BTD.shape, dtype=numpy_dtype(dtype))
    if not x_BTD.size:
        return y_BTD
    arguments = (cupy.ascontiguousarray(x_BTD), weight_D, bias_D, y_BTD, np.int32(width), x_BTD.dtype.type(eps))
    row_kernel("layer_norm", dtype)((math.prod(rows), 1, 1), (THREADS,), arguments)
    return y_BTD


def softmax(scores_BHLX: Any, visible: Any, dtype: str) -> Any:
    """Compute the weights of `pegasusx_ref.golden.attention.attention`; the scores are overwritten.

    Args:
        scores_BHLX: contiguous, in the dtype of sums (B, H, L, X).
        visible: as there.
        dtype: of the result.
    """
    B, H, L, X = scores_BHLX.shape
    weights_BHLX = cupy.empty((B, H, L, X), dtype=numpy_dtype(dtype))
    query_step = 0 if visible is None or visible.shape[1] == 1 else 1
    batch_step = 0 if visible is None or visible.shape[0] == 1 else visible.shape[1]
    arguments = (scores_BHLX, bytes_of(visible), weights_BHLX, *int32(X, batch_step, query_step))
    row_kernel("softmax", dtype)((L, H, B), (THREADS,), arguments)
    return weights_BHLX


def repeated_row(row_N: Any, count: int, dtype: Any) -> Any:
    """Return an array (count, N) whose rows are all the same.

    Args:
        row_N: in the dtype of sums.
        count: number of rows.
        dtype: of the result.
    """
    rows = cupy.empty((count, *row_N.shape), dtype=dtype)
    if not rows.size:
        return rows
    row_kernel("repeat_row", str(rows.dtype))((count, 1, 1), (THREADS,), (row_N, rows, np.int32(row_N.size)))
    return rows


def relu(x: Any) -> Any:
    """Compute max(x, 0); NaN stays NaN."""
    x, y = aligned(x), cupy.empty(x.shape, dtype=x.dtype)
    if not x.size:
        return y
    num_blocks = -(-x.nbytes // (VECTOR_BYTES * THREADS))
    row_kernel("relu", str(x.dtype))((num_blocks, 1, 1), (THREADS,), (x, y, np.int64(x.size)))
    return y


def few_rows(x_LK: Any, weight_NK: Any, bias_N: Any, dtype: Any) -> Any:
    """Compute `pegasusx_ref.golden.feed_forward.linear` of up to `FEW` rows.

    Args:
        x_LK: rows.
        weight_NK: in the dtype of the rows.
        bias_N: in the dtype of sums, or None.
        dtype: of the result: that of the rows, or of sums.
    """
    (L, K), N = x_LK.shape, weight_NK.shape[0]
    y_LN = cupy.empty((L, N), dtype=dtype)
    if not y_LN.size:
        return y_LN
    name = "few_rows" if y_LN.dtype == x_LK.dtype else "few_rows_full_precision"
    kernel, rows, features = few_rows_kernel(name, str(x_LK.dtype), L, K, N)
    bias = np.intp(0) if bias_N is None else bias_N
    grid = (-(-L // rows) * -(-N // features), 1, 1)
    kernel(grid, (THREADS,), (aligned(x_LK), aligned(weight_NK), bias, y_LN, *int32(L, K, N)))
    return y_LN


def few_queries(q_BHLF: Any, k_BHXF: Any, v_BHXF: Any, visible: Any) -> Any:
    """Compute `pegasusx_ref.golden.attention.attention` of up to `FEW` queries: parts of the keys, then the merge."""
    B, H, L, F = q_BHLF.shape
    X = k_BHXF.shape[2]
    dtype = str(q_BHLF.dtype)
    kernel, rows = few_queries_kernel("few_queries", dtype, L, F)
    groups = -(-L // rows)
    part_size = max(MIN_PART_SIZE, -(-X * groups * H * B // MANY_WARPS))
    num_parts = -(-X // part_size)
    context_BLHF = cupy.empty((B, L, H, F), dtype=q_BHLF.dtype)
    if not context_BLHF.size:
        return context_BLHF.swapaxes(1, 2)
    parts = empty_parts(num_parts, context_BLHF, dtype) if num_parts > 1 else 3 * [np.intp(0)]
    k_BHXF, v_BHXF = map(vectors_of_features, (k_BHXF, v_BHXF))
    steps = [step // x.itemsize for x in (k_BHXF, v_BHXF) for step in x.strides[:3]]
    if visible is not None:
        steps += [0 if visible.shape[0] == 1 else visible.shape[1] * X, 0 if visible.shape[1] == 1 else X]
    addresses = np.intp(k_BHXF.data.ptr), np.intp(v_BHXF.data.ptr)
    arguments = (contiguous_BTHF(q_BHLF), *addresses, bytes_of(visible), context_BLHF, *parts)
    sizes = (*int32(L, X, part_size, num_parts), *map(np.int64, steps if visible is not None else [*steps, 0, 0]))
    kernel((num_parts * groups, H, B), (WARP,), (*arguments, *sizes))
    if num_parts > 1:
        merge, _ = few_queries_kernel("merge_parts", dtype, L, F)
        merge((B * L * H, 1, 1), (THREADS,), (*parts, context_BLHF, np.int32(num_parts)))
    return context_BLHF.swapaxes(1, 2)


def vectors_of_features(x_BHXF: Any) -> Any:
    """Return an array whose rows of features are contiguous, and can be read by 16 bytes if their length allows it."""
    *steps, item = x_BHXF.strides
    is_aligned = x_BHXF.data.ptr % VECTOR_BYTES == 0 and not any(step % VECTOR_BYTES for step in steps)
    is_contiguous = item == x_BHXF.itemsize
    if is_contiguous and (is_aligned or x_BHXF.shape[3] * x_BHXF.itemsize % VECTOR_BYTES):
        return x_BHXF
    return aligned(x_BHXF)


def dequantized(matrix: QuantizedMatrix, dtype: Any) -> Any:
    """Compute the numbers that the bits of a matrix stand for, rounded to a dtype."""
    numbers = cupy.empty(matrix.shape, dtype=dtype)
    if not numbers.size:
        return numbers
    if matrix.kind == "int8":
        name, tables, share_a_scale = "dequantize_int8", [matrix.absmax], matrix.shape[1]
    else:
        code = code_on_device(matrix.kind, cupy.cuda.Device().id)
        name, tables, share_a_scale = "dequantize_4bit", [matrix.absmax, code], matrix.block_size
    grid = (-(-numbers.nbytes // (VECTOR_BYTES * THREADS)), 1, 1)
    arguments = (matrix.codes, *tables, numbers, np.int32(share_a_scale), np.int64(numbers.size))
    row_kernel(name, str(numbers.dtype))(grid, (THREADS,), arguments)
    return numbers


@cache
def code_on_device(kind: str, device: int) -> Any:
    """Return the numbers that 4 bits stand for, on a device, which is the current one."""
    return cupy.asarray(CODES[kind])
