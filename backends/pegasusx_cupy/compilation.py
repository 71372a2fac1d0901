"""The kernels' sources, compiled for a dtype and for sizes when they are first used."""

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cupy
import numpy as np

from pegasusx_ref.backend.arrays import numpy_dtype

FOLDER = Path(__file__).parent
COMPILER_OPTIONS = ("--std=c++14",)
THREADS = 128
WARP = 32  # threads
ROWS_AT_ONCE = (1, 4, 8)  # that read the same weights, or the same keys: powers of 2
FEW_ROWS_FEATURES = 4  # of a warp of few_rows.cu
MANY_WARPS = 2048  # that occupy a GPU
QUERY_REGISTERS = {"float": 64, "double": 16}  # of a thread, for queries; their results take as many
SHARED_MEMORY = 48 * 1024  # bytes per thread block that every CUDA device allows by default
VECTOR_BYTES = 16
HALF_PRECISION = ("float16", "bfloat16")
MIN_CAPABILITY = 80  # compute capability 8.0, for half precision and TF32
# By arithmetic: the dtypes, and float32 whose products round their operands to TF32.
C_TYPES = {
    "float16": "unsigned short",
    "bfloat16": "unsigned short",
    "tf32": "float",
    "float32": "float",
    "float64": "double",
}
LARGEST = {"float": "3.402823466e38f", "double": "1.7976931348623157e308"}


class Tile(NamedTuple):
    """The number of queries and of keys whose scores exist at the same time, and of the threads that compute them."""

    queries: int
    keys: int
    threads: int = THREADS


TILES = (Tile(64, 32), Tile(32, 16), Tile(16, 8))  # for float32 and float64: the largest that fits is used
# On tensor cores, by the largest F: sums and scores stay in registers.
TILES_OF_HALF_PRECISION = {64: Tile(128, 64), 128: Tile(64, 32), 256: Tile(64, 16)}
TENSOR_CORE_TILES = dict.fromkeys(HALF_PRECISION, TILES_OF_HALF_PRECISION)
TENSOR_CORE_TILES["tf32"] = {64: Tile(128, 32), 128: Tile(64, 16)}


def tile_for(head_dim: int, arithmetic: str) -> Tile | None:
    """Return the tile of a kernel, or None if heads are too wide.

    Args:
        head_dim: F.
        arithmetic: the dtype of queries, keys and values, or "tf32".
    """
    if arithmetic in TENSOR_CORE_TILES:
        return next((tile for largest, tile in TENSOR_CORE_TILES[arithmetic].items() if head_dim <= largest), None)
    vector = VECTOR_BYTES // np.dtype(arithmetic).itemsize
    vectors = -(-head_dim // vector)
    for tile in TILES:
        queries, keys, _ = tile
        used = (queries + 2 * keys) * (vectors + 1 - vectors % 2) + queries * (keys // vector + 1)
        if used * VECTOR_BYTES + keys <= SHARED_MEMORY:
            return tile
    return None


def sum_dtype(arithmetic: str) -> str:
    """Return the dtype of sums: float32 for half precision and TF32."""
    return "float32" if arithmetic in TENSOR_CORE_TILES else arithmetic


def source(name: str) -> str:
    """Read a source file with the files that it includes: CuPy's cache of compiled kernels does not look into those."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    return re.sub(r'^#include "(.+)"$', lambda found: source(found[1]), text, flags=re.MULTILINE)


def type_macros(arithmetic: str) -> dict[str, str]:
    """Return the macros that say in which types a kernel computes."""
    real = C_TYPES[sum_dtype(arithmetic)]
    macros = {"ELEMENT": C_TYPES[arithmetic], "REAL": real, "LARGEST": LARGEST[real]}
    if arithmetic in HALF_PRECISION:
        macros["HALF_PRECISION"] = "1"
    if arithmetic in ("bfloat16", "tf32"):
        macros[arithmetic.upper()] = "1"
    return macros


def attention_macros(arithmetic: str, head_dim: int) -> dict[str, str]:
    """Return the macros that attention.cu is compiled with."""
    tile = tile_for(head_dim, arithmetic)
    assert tile is not None, f"no tile for heads of {head_dim}"
    sizes = {"HEAD_DIM": head_dim, "QUERIES": tile.queries, "KEYS": tile.keys, "THREADS": tile.threads}
    return type_macros(arithmetic) | {name: str(size) for name, size in sizes.items()}


def row_macros(dtype: str) -> dict[str, str]:
    """Return the macros that rows.cu is compiled with."""
    return type_macros(dtype) | {"THREADS": str(THREADS)}


def few_rows_macros(dtype: str, num_rows: int, num_inputs: int, num_features: int) -> dict[str, str]:
    """Return the macros that few_rows.cu is compiled with: few features divide their inputs, if there are many, too."""
    has_many_inputs = num_inputs * np.dtype(numpy_dtype(dtype)).itemsize > WARP * VECTOR_BYTES
    split = THREADS // WARP if has_many_inputs and num_features // FEW_ROWS_FEATURES < MANY_WARPS else 1
    sizes = {"ROWS": rows_at_once(num_rows), "FEATURES": FEW_ROWS_FEATURES, "SPLIT": split, "THREADS": THREADS}
    return type_macros(dtype) | {name: str(size) for name, size in sizes.items()}


def few_queries_macros(dtype: str, num_queries: int, head_dim: int) -> dict[str, str]:
    """Return the macros that few_queries.cu is compiled with: as many rows as a thread has registers for."""
    vector = VECTOR_BYTES // np.dtype(numpy_dtype(dtype)).itemsize
    vectors = -(-head_dim // vector)
    lanes = min(WARP, 1 << (vectors - 1).bit_length())  # a power of 2
    registers = -(-vectors // lanes) * vector * np.dtype(sum_dtype(dtype)).itemsize // 4  # of a row
    num_rows = max(1, min(rows_at_once(num_queries), QUERY_REGISTERS[C_TYPES[sum_dtype(dtype)]] // registers))
    sizes = {"HEAD_DIM": head_dim, "ROWS": num_rows, "LANES": lanes, "THREADS": THREADS}
    return type_macros(dtype) | {name: str(size) for name, size in sizes.items()}


def rows_at_once(num_rows: int) -> int:
    """Return how many rows are computed together."""
    return next((rows for rows in ROWS_AT_ONCE if rows >= num_rows), ROWS_AT_ONCE[-1])


@cache
def compile_kernels(name: str, **macros: str) -> Any:
    """Compile a source file."""
    options = tuple(f"-D{macro}={value}" for macro, value in macros.items())
    return cupy.RawModule(code=source(name), options=(*COMPILER_OPTIONS, *options))


@cache
def attention_kernel(name: str, arithmetic: str, head_dim: int) -> tuple[Any, Tile]:
    """Return a kernel of attention.cu, which is called with a grid, the threads and the arguments, and its tile."""
    tile = tile_for(head_dim, arithmetic)
    assert tile is not None
    return compile_kernels("attention.cu", **attention_macros(arithmetic, head_dim)).get_function(name), tile


@cache
def row_kernel(name: str, dtype: str) -> Any:
    """Return a kernel of rows.cu, whose result has the dtype."""
    return compile_kernels("rows.cu", **row_macros(dtype)).get_function(name)


@cache
def few_rows_kernel(name: str, dtype: str, num_rows: int, num_inputs: int, num_features: int) -> tuple[Any, int, int]:
    """Return a kernel of few_rows.cu and the numbers of rows and features that a thread block takes."""
    macros = few_rows_macros(dtype, num_rows, num_inputs, num_features)
    features = THREADS // WARP // int(macros["SPLIT"]) * FEW_ROWS_FEATURES
    return compile_kernels("few_rows.cu", **macros).get_function(name), int(macros["ROWS"]), features


@cache
def few_queries_kernel(name: str, dtype: str, num_queries: int, head_dim: int) -> tuple[Any, int]:
    """Return a kernel of few_queries.cu and the number of queries that a warp takes."""
    macros = few_queries_macros(dtype, num_queries, head_dim)
    return compile_kernels("few_queries.cu", **macros).get_function(name), int(macros["ROWS"])
