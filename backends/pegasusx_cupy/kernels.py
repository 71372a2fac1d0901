"""The kernels of attention.cu: compiled at their first launch, launched on CuPy arrays."""

from functools import cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from pegasusx_ref.golden.global_local import Blocks

SOURCE = Path(__file__).with_name("attention.cu")
THREADS = 128
SHARED_MEMORY = 48 * 1024  # bytes per thread block that every CUDA device allows by default
TILES = ((64, 32), (32, 16), (16, 8))  # queries by keys; the largest that fits is used
C_TYPES = {"float32": ("float", "3.402823466e38f"), "float64": ("double", "1.7976931348623157e308")}


def tile_for(head_dim: int, item_size: int) -> tuple[int, int] | None:
    """Return the largest tile, queries by keys, whose arrays fit into shared memory, or None.

    Args:
        head_dim: F.
        item_size: bytes of a number.
    """
    for queries, keys in TILES:
        numbers = (queries + 2 * keys) * (head_dim + 1) + queries * (keys + 1)
        if numbers * item_size + keys <= SHARED_MEMORY:
            return queries, keys
    return None


def macros(dtype: str, head_dim: int) -> dict[str, str]:
    """Return the macros that attention.cu is compiled with."""
    real, largest = C_TYPES[dtype]
    tile = tile_for(head_dim, 4 if dtype == "float32" else 8)
    assert tile is not None, f"no tile for heads of {head_dim}"
    return {
        "REAL": real,
        "LARGEST": largest,
        "HEAD_DIM": str(head_dim),
        "QUERIES": str(tile[0]),
        "KEYS": str(tile[1]),
    }


@cache
def compile_kernels(dtype: str, head_dim: int) -> Any:
    """Compile attention.cu for a dtype and a head size."""
    options = tuple(f"-D{name}={value}" for name, value in macros(dtype, head_dim).items())
    return cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"), options=("--std=c++14", *options))


def contiguous_BTHF(x_BHTF: Any) -> Any:
    """Lay out as (B, T, H, F) in memory; heads split from a projection already are."""
    return cupy.ascontiguousarray(x_BHTF.swapaxes(1, 2))


def local_attention(
    q_BHTF: Any, k_BHTF: Any, v_BHTF: Any, global_k_BHGF: Any, global_v_BHGF: Any, key_mask_BT: Any, blocks: Blocks
) -> Any:
    """Compute `pegasusx_ref.golden.global_local.local_attention`."""
    first_stop = blocks[0][1]
    block_size = blocks[1][1] - blocks[1][0] if len(blocks) > 1 else first_stop
    queries = tile_for(q_BHTF.shape[3], q_BHTF.dtype.itemsize)[0]  # type: ignore[index]
    tiles = -(-max(stop - start for start, stop in blocks) // queries)
    sizes = (q_BHTF.shape[2], global_k_BHGF.shape[2], first_stop, block_size, tiles)
    qkv = (q_BHTF, k_BHTF, v_BHTF, global_k_BHGF, global_v_BHGF)
    return _launch("local_attention", len(blocks) * tiles, qkv, key_mask_BT, sizes)


def global_attention(
    global_q_BHGF: Any, k_BHTF: Any, v_BHTF: Any, global_k_BHGF: Any, global_v_BHGF: Any, key_mask_BT: Any
) -> Any:
    """Compute `pegasusx_ref.golden.global_local.global_attention`."""
    queries = tile_for(k_BHTF.shape[3], k_BHTF.dtype.itemsize)[0]  # type: ignore[index]
    tiles = -(-global_k_BHGF.shape[2] // queries)
    sizes = (k_BHTF.shape[2], global_k_BHGF.shape[2])
    qkv = (global_q_BHGF, k_BHTF, v_BHTF, global_k_BHGF, global_v_BHGF)
    return _launch("global_attention", tiles, qkv, key_mask_BT, sizes)


def _launch(name: str, num_tiles: int, qkv: tuple[Any, ...], key_mask_BT: Any, sizes: tuple[int, ...]) -> Any:
    """Launch a kernel; its result has the shape of the queries, which are the first array of `qkv`."""
    B, H, L, F = qkv[0].shape
    inputs = tuple(contiguous_BTHF(x) for x in qkv)
    context_BLHF = cupy.empty((B, L, H, F), dtype=inputs[0].dtype)
    # Bytes of 1 and 0; a null pointer if every token is real.
    is_real = np.intp(0) if key_mask_BT is None else cupy.ascontiguousarray(key_mask_BT).view(cupy.uint8)
    kernel = compile_kernels(str(context_BLHF.dtype), F).get_function(name)
    arguments = (*inputs, is_real, context_BLHF, *(np.int32(size) for size in sizes))
    kernel((num_tiles, H, B), (THREADS,), arguments)
    return context_BLHF.swapaxes(1, 2)
