"""Products with quantized matrices: decoded in chunks that fit the cache, by compiled loops if numba is installed."""

from functools import cache
from typing import Any

import numpy as np

from pegasusx_numpy.linear import FEW_ROWS, gemm, gemm_few_rows
from pegasusx_numpy.thread_pool import balanced_chunks, parallel_for, threads_of_caller
from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.golden import quantization

CHUNK = 2**20  # numbers: dequantized ones are still in the cache when they are multiplied; GEMM packs its rows for each
MIN_PARALLEL_NUMBERS = 2**20  # fewer are decoded before another thread has started
MIN_PARALLEL_MACS = 2**22  # multiply-adds: less work is done before another thread has started
MIN_PARALLEL_BYTES = 2**16  # of a matrix: fewer are multiplied with a vector before one of numba's threads has started


@cache
def kernels() -> Any:
    """Return the compiled loops, or None where they cannot run."""
    try:
        from pegasusx_numpy import kernels as found
    except ImportError:
        return None
    return found


@cache
def pairs(kind: str) -> np.ndarray:
    """Return the two numbers of each byte, float32 (256, 2)."""
    byte, code = np.arange(256), quantization.CODES[kind]
    return np.stack([code[byte >> 4], code[byte & 15]], axis=1)


def is_compiled(matrix: QuantizedMatrix) -> bool:
    """Return whether the compiled loops take a matrix: blocks and rows must be made of whole pieces."""
    found = kernels()
    if found is None or matrix.kind == "int8":
        return found is not None
    block, piece = matrix.block_size, int(found.PIECE)
    return matrix.shape[1] % piece == 0 and block % piece == 0 and (block & (block - 1)) == 0


def dequantize_into(out: np.ndarray, matrix: QuantizedMatrix, start: int) -> None:
    """Dequantize rows of a matrix.

    Args:
        out: float32 (rows, in features), written.
        matrix: on the host.
        start: the first row.
    """
    stop = start + len(out)
    if not is_compiled(matrix):
        out[:] = plain_rows(matrix, start, stop)
    elif matrix.kind == "int8":
        kernels().dequantize_int8(matrix.codes, matrix.absmax, out, start, stop)
    else:
        kernels().dequantize_4bit(*of_blocks(matrix), out, start, stop)


def plain_rows(matrix: QuantizedMatrix, start: int, stop: int) -> np.ndarray:
    """Dequantize rows with NumPy alone."""
    width, block = matrix.shape[1], matrix.block_size
    if matrix.kind == "int8" or width % block:
        rows: np.ndarray = matrix.dequantized(slice(start, stop))
        return rows
    both = pairs(matrix.kind).view(np.uint64)[:, 0]  # NumPy copies one number of 8 bytes faster than two of 4
    numbers: np.ndarray = both.take(matrix.codes[start * width // 2 : stop * width // 2]).view(np.float32)
    numbers.reshape(-1, block)[:] *= matrix.absmax[start * width // block : stop * width // block, None]
    return numbers.reshape(stop - start, width)


def of_blocks(matrix: QuantizedMatrix) -> tuple[Any, ...]:
    """Return the arguments that the compiled loops over 4-bit codes begin with."""
    shift = (matrix.block_size // kernels().PIECE).bit_length() - 1
    return matrix.codes, matrix.absmax, shift, quantization.CODES[matrix.kind]


def linear(x: np.ndarray, weight: QuantizedMatrix | np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Compute `golden.feed_forward.linear` with the numbers that a quantized matrix stands for.

    Args:
        x: (..., in features).
        weight: (out features, in features), on the host; an array where `takes_vector` is true.
        bias: (out features,), or None.
    """
    num_out, num_in = weight.shape
    x_rows = x.reshape(-1, num_in)
    y_rows = np.empty((len(x_rows), num_out), dtype=x.dtype)
    if isinstance(weight, QuantizedMatrix) and not takes_vector(x, weight):
        multiply_rows(x_rows, weight, y_rows)
    else:
        multiply_vector(np.ascontiguousarray(x_rows[0]), weight, y_rows[0])
    if bias is not None:
        y_rows += bias
    return y_rows.reshape(*x.shape[:-1], num_out)


def takes_vector(x: np.ndarray, weight: QuantizedMatrix | np.ndarray) -> bool:
    """Return whether the compiled loops multiply: a single row of float32 with any matrix of float32, 4 or 8 bits.

    They do so with arrays too in a model that has quantized matrices: BLAS's threads keep spinning after a product, on
    the cores of the loops' threads.
    """
    if x.size != x.shape[-1] or x.dtype != np.float32:
        return False
    if isinstance(weight, QuantizedMatrix):
        return is_compiled(weight)
    return kernels() is not None and weight.dtype == np.float32


def multiply_vector(x: np.ndarray, weight: QuantizedMatrix | np.ndarray, out: np.ndarray) -> None:
    """Multiply a matrix with a vector by the compiled loops, which read it at the speed of the memory.

    Args:
        x: float32 (in features,), contiguous.
        weight: (out features, in features).
        out: the result, float32 (out features,), written.
    """
    arguments: tuple[Any, ...]
    if not isinstance(weight, QuantizedMatrix):
        codes, name, arguments = weight, "multiply_rows", (weight, np.broadcast_to(np.float32(1), len(weight)), x)
    elif weight.kind == "int8":
        codes, name = weight.codes, "multiply_rows"
        arguments = (codes, weight.absmax * np.float32(1 / 127), x)
    else:
        codes, name = weight.codes, "multiply_4bit"
        arguments = (*of_blocks(weight), *np.ascontiguousarray(x.reshape(-1, 2).T))
    with threads_of_caller() as threads:
        if threads == 1 or not kernels().HAS_THREADS or codes.nbytes < MIN_PARALLEL_BYTES:
            getattr(kernels(), name)(*arguments, out, 0, len(out))
        else:
            getattr(kernels(), f"{name}_on")(threads, *arguments, out)


def multiply_rows(x_rows: np.ndarray, matrix: QuantizedMatrix, out: np.ndarray) -> None:
    """Multiply a matrix with rows, in chunks of output features.

    Args:
        x_rows: (rows, in features).
        matrix: (out features, in features).
        out: the result (rows, out features), written.
    """
    (num_rows, num_in), num_out = x_rows.shape, matrix.shape[0]
    multiply = gemm_few_rows if 1 < num_rows <= FEW_ROWS else gemm

    def work(features: slice) -> None:
        numbers = np.empty((features.stop - features.start, num_in), dtype=np.float32)
        dequantize_into(numbers, matrix, features.start)
        multiply(x_rows, numbers.astype(out.dtype, copy=False), out[:, features])

    is_small = num_out * num_in * num_rows < MIN_PARALLEL_MACS
    chunks = balanced_chunks(num_out, max(CHUNK // num_in, 1))
    parallel_for(chunks, work, max_threads=1 if is_small else None)
