"""The kernels of attention.cu and rows.cu: compiled at their first launch, launched on CuPy arrays."""

import math
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cupy
import numpy as np

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.golden.global_local import Blocks

FOLDER = Path(__file__).parent
COMPILER_OPTIONS = ("--std=c++14",)
THREADS = 128
SHARED_MEMORY = 48 * 1024  # bytes per thread block that every CUDA device allows by default
VECTOR_BYTES = 16
PART_SIZE = 1024  # keys of a row of global attention that a thread block takes: a multiple of a tile's
HALF_PRECISION = ("float16", "bfloat16")
MIN_CAPABILITY = 80  # compute capability 8.0, for half precision
C_TYPES = {"float16": "unsigned short", "bfloat16": "unsigned short", "float32": "float", "float64": "double"}
LARGEST = {"float": "3.402823466e38f", "double": "1.7976931348623157e308"}


class Tile(NamedTuple):
    """The number of queries and of keys whose scores exist at the same time, and of the threads that compute them."""

    queries: int
    keys: int
    threads: int = THREADS


TILES = (Tile(64, 32), Tile(32, 16), Tile(16, 8))  # for float32 and float64: the largest that fits is used
# On tensor cores, by the largest F: sums and scores stay in registers.
TENSOR_CORE_TILES = {64: Tile(128, 64), 128: Tile(64, 32), 256: Tile(64, 16)}


def tile_for(head_dim: int, dtype: str) -> Tile | None:
    """Return the tile of a kernel, or None if heads are too wide.

    Args:
        head_dim: F.
        dtype: of queries, keys and values.
    """
    if dtype in HALF_PRECISION:
        return next((tile for largest, tile in TENSOR_CORE_TILES.items() if head_dim <= largest), None)
    vector = VECTOR_BYTES // np.dtype(dtype).itemsize
    vectors = -(-head_dim // vector)
    for tile in TILES:
        queries, keys, _ = tile
        used = (queries + 2 * keys) * (vectors + 1 - vectors % 2) + queries * (keys // vector + 1)
        if used * VECTOR_BYTES + keys <= SHARED_MEMORY:
            return tile
    return None


def sum_dtype(dtype: str) -> str:
    """Return the dtype of sums: float32 for half precision."""
    return "float32" if dtype in HALF_PRECISION else dtype


def source(name: str) -> str:
    """Read a source file with the files that it includes: CuPy's cache of compiled kernels does not look into those."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    return re.sub(r'^#include "(.+)"$', lambda found: source(found[1]), text, flags=re.MULTILINE)


def type_macros(dtype: str) -> dict[str, str]:
    """Return the macros that say in which types a kernel computes."""
    real = C_TYPES[sum_dtype(dtype)]
    macros = {"ELEMENT": C_TYPES[dtype], "REAL": real, "LARGEST": LARGEST[real]}
    if dtype in HALF_PRECISION:
        macros["HALF_PRECISION"] = "1"
    if dtype == "bfloat16":
        macros["BFLOAT16"] = "1"
    return macros


def attention_macros(dtype: str, head_dim: int) -> dict[str, str]:
    """Return the macros that attention.cu is compiled with."""
    tile = tile_for(head_dim, dtype)
    assert tile is not None, f"no tile for heads of {head_dim}"
    sizes = {"HEAD_DIM": head_dim, "QUERIES": tile.queries, "KEYS": tile.keys, "THREADS": tile.threads}
    return type_macros(dtype) | {name: str(size) for name, size in sizes.items()}


def row_macros(dtype: str) -> dict[str, str]:
    """Return the macros that rows.cu is compiled with."""
    return type_macros(dtype) | {"THREADS": str(THREADS)}


@cache
def compile_kernels(name: str, **macros: str) -> Any:
    """Compile a source file."""
    options = tuple(f"-D{macro}={value}" for macro, value in macros.items())
    return cupy.RawModule(code=source(name), options=(*COMPILER_OPTIONS, *options))


@cache
def attention_kernel(name: str, dtype: str, head_dim: int) -> tuple[Any, Tile]:
    """Return a kernel of attention.cu, which is called with a grid, the threads and the arguments, and its tile."""
    tile = tile_for(head_dim, dtype)
    assert tile is not None
    return compile_kernels("attention.cu", **attention_macros(dtype, head_dim)).get_function(name), tile


@cache
def row_kernel(name: str, dtype: str) -> Any:
    """Return a kernel of rows.cu, whose result has the dtype."""
    return compile_kernels("rows.cu", **row_macros(dtype)).get_function(name)


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
    q_BHTF: Any, k_BHTF: Any, v_BHTF: Any, global_k_BHGF: Any, global_v_BHGF: Any, key_mask_BT: Any, blocks: Blocks
) -> Any:
    """Compute `pegasusx_ref.golden.global_local.local_attention`."""
    B, H, T, F = q_BHTF.shape
    dtype = str(q_BHTF.dtype)
    first_stop = blocks[0][1]
    block_size = blocks[1][1] - blocks[1][0] if len(blocks) > 1 else first_stop
    kernel, tile = attention_kernel("local_attention", dtype, F)
    tiles = -(-max(stop - start for start, stop in blocks) // tile.queries)
    inputs = map(contiguous_BTHF, (q_BHTF, k_BHTF, v_BHTF, global_k_BHGF, global_v_BHGF))
    context_BTHF = cupy.empty((B, T, H, F), dtype=q_BHTF.dtype)
    sizes = int32(T, global_k_BHGF.shape[2], first_stop, block_size, tiles)
    kernel((len(blocks) * tiles, H, B), (tile.threads,), (*inputs, bytes_of(key_mask_BT), context_BTHF, *sizes))
    return context_BTHF.swapaxes(1, 2)


def global_attention(
    global_q_BHGF: Any, k_BHTF: Any, v_BHTF: Any, global_k_BHGF: Any, global_v_BHGF: Any, key_mask_BT: Any
) -> Any:
    """Compute `pegasusx_ref.golden.global_local.global_attention`: parts of the keys, then their merged results."""
    B, H, G, F = global_q_BHGF.shape
    T = k_BHTF.shape[2]
    dtype = str(k_BHTF.dtype)
    kernel, tile = attention_kernel("global_attention", dtype, F)
    tiles = -(-G // tile.queries)
    num_parts = -(-(G + T) // PART_SIZE)
    inputs = map(contiguous_BTHF, (global_q_BHGF, k_BHTF, v_BHTF, global_k_BHGF, global_v_BHGF))
    sums = cupy.empty((num_parts, B, G, H, F), dtype=sum_dtype(dtype))
    largest, totals = (cupy.empty((num_parts, B, G, H), dtype=sum_dtype(dtype)) for _ in range(2))
    arguments = (*inputs, bytes_of(key_mask_BT), sums, largest, totals, *int32(T, G, PART_SIZE, num_parts))
    kernel((tiles * num_parts, H, B), (tile.threads,), arguments)
    context_BGHF = cupy.empty((B, G, H, F), dtype=k_BHTF.dtype)
    merge, _ = attention_kernel("merge_parts", dtype, F)
    merge((B * G * H, 1, 1), (tile.threads,), (sums, largest, totals, context_BGHF, np.int32(num_parts)))
    return context_BGHF.swapaxes(1, 2)


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
