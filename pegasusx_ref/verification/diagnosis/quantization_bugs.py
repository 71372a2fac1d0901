"""Known bugs in reading the bits of a quantized matrix. [spec 16]"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from pegasusx_ref.backend.quantized import DoubleQuantized, QuantizedMatrix
from pegasusx_ref.golden.embedding import embed_tokens
from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.golden.quantization import CODES, dequantize_4bit, dequantize_int8, linear_int8
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, Variants

Matrices = dict[str, Callable[[], np.ndarray]]  # a bug in words, and a function that computes the matrix with it
Blocks = Callable[[np.ndarray, np.ndarray], np.ndarray]  # from row and column of a number to its block
INT8 = "products of int8 activations (LLM.int8)"
UNIFORM = {  # what others store in 4 bits
    "(n - 8) / 7, a uniform int4": (np.arange(16) - 8) / 7,
    "(n - 8) / 8, a uniform int4": (np.arange(16) - 8) / 8,
    "n / 7.5 - 1, a uniform int4": np.arange(16) / 7.5 - 1,
    "n / 7 in two's complement": ((np.arange(16) + 8) % 16 - 8) / 7,
}


def quantized_linear_bugs(op: FailedOperation) -> Variants:
    """Compute a linear map with the bits of its weight read wrongly, or its activations quantized too."""
    (x,), bias, matrix = op.inputs, op.settings["bias"], op.settings["matrix"]
    if matrix is None:
        return {}

    def with_matrix(wrong: Callable[[], np.ndarray]) -> np.ndarray:
        return linear(x, wrong(), bias)

    def with_integers() -> np.ndarray:
        rows, shift = x.reshape(-1, x.shape[-1]).astype(np.float32), None if bias is None else bias.astype(np.float32)
        return linear_int8(rows, matrix.codes, matrix.absmax, shift).reshape(*x.shape[:-1], -1)

    found: Variants = {bug: partial(with_matrix, wrong) for bug, wrong in matrix_bugs(matrix).items()}
    return found | ({INT8: with_integers} if matrix.kind == "int8" else {})


def quantized_table_bugs(op: FailedOperation) -> Variants:
    """Compute embeddings with the bits of their table read wrongly."""
    ids, scale, matrix = (op.settings[n] for n in ("ids", "scale", "matrix"))

    def with_table(wrong: Callable[[], np.ndarray]) -> np.ndarray:
        return embed_tokens(ids, wrong(), scale)

    return {} if matrix is None else {bug: partial(with_table, wrong) for bug, wrong in matrix_bugs(matrix).items()}


def matrix_bugs(matrix: QuantizedMatrix) -> Matrices:
    """Dequantize a matrix with wrong scales, in the wrong order, or with another code."""
    found: Matrices = {
        f"the scales (absmax) are those of the {side} {'row' if matrix.kind == 'int8' else 'block'}": partial(
            with_absmax, matrix, np.roll(matrix.absmax, step)
        )
        for side, step in (("next", -1), ("previous", 1))
    }
    found["the scales (absmax) are missing"] = partial(with_absmax, matrix, np.ones_like(matrix.absmax))
    if matrix.kind == "int8":
        rows, width = matrix.shape
        found["the codes are divided by 128, not 127"] = partial(
            with_absmax, matrix, matrix.absmax * np.float32(127 / 128)
        )
        if rows == width:
            found["the scales (absmax) are those of columns"] = lambda: dequantize_int8(matrix.codes.T, matrix.absmax).T
        return found
    for bug, blocks in wrong_blocks(matrix).items():
        found[f"the scales (absmax) are {bug}"] = partial(with_blocks, matrix, blocks)
    swapped = replace(matrix, codes=matrix.codes << 4 | matrix.codes >> 4)
    found["the two numbers of a byte are swapped: the first one is in the high four bits"] = swapped.dequantized
    books = {name.upper(): book for name, book in CODES.items() if name != matrix.kind} | UNIFORM
    for name, book in books.items():
        found[f"the code is {name}, not {matrix.kind.upper()}"] = partial(
            dequantize_4bit, matrix.codes, matrix.absmax, matrix.shape, book.astype(np.float32), matrix.block_size
        )
    if matrix.nested is not None:
        found |= {bug: matrix.with_nested(nested).dequantized for bug, nested in nested_bugs(matrix.nested).items()}
    return found


def wrong_blocks(matrix: QuantizedMatrix) -> dict[str, Blocks]:
    """List wrong choices of the block whose scale a number gets."""
    (rows, width), size = matrix.shape, matrix.block_size
    found: dict[str, Blocks] = {
        "of rows: each row has that of its first block": lambda i, j: (i + 0 * j) * width // size,
        "of rows, not of blocks": lambda i, j: i + 0 * j,
        "of blocks down the columns": lambda i, j: (j * rows + i) // size,
    }
    if width % size:
        found["of blocks that start again in every row"] = lambda i, j: i * -(-width // size) + j // size
    for other in (size // 2, size * 2, size * 4):
        found[f"of blocks of {other} numbers, not {size}"] = partial(lambda n, i, j: (i * width + j) // n, other)
    return found


def nested_bugs(nested: DoubleQuantized) -> dict[str, DoubleQuantized]:
    """List wrong scales of double quantization."""
    of_absmax = "the scales of the scales (nested absmax) are {}"
    return {
        "the offset of the scales (nested offset) is missing": replace(nested, offset=np.float32(0)),
        of_absmax.format("those of the next block"): replace(nested, absmax=np.roll(nested.absmax, -1)),
        of_absmax.format("those of the previous block"): replace(nested, absmax=np.roll(nested.absmax, 1)),
        of_absmax.format("missing"): replace(nested, absmax=np.ones_like(nested.absmax)),
        "the code of the scales is uniform, not dynamic (nested quant map)": replace(
            nested, code=np.linspace(-1, 1, 256, dtype=np.float32)
        ),
    }


def with_absmax(matrix: QuantizedMatrix, absmax: np.ndarray) -> np.ndarray:
    """Dequantize with other scales."""
    found: np.ndarray = replace(matrix, absmax=absmax).dequantized()
    return found


def with_blocks(matrix: QuantizedMatrix, blocks: Blocks) -> np.ndarray:
    """Dequantize with the scales of other blocks; that of the last one, where there is none."""
    indices = np.minimum(blocks(*np.indices(matrix.shape, sparse=True)), len(matrix.absmax) - 1)
    found: np.ndarray = with_absmax(matrix, np.ones_like(matrix.absmax)) * matrix.absmax[indices]
    return found


def rounding_variance(matrix: QuantizedMatrix) -> np.ndarray:
    """Compute the variance of the error of rounding a matrix, if its numbers are uniform between two midpoints."""
    if matrix.kind == "int8":
        return np.broadcast_to((matrix.absmax[:, None] / 127) ** 2 / 12, matrix.shape)
    code = CODES[matrix.kind].astype(np.float64)
    order = np.argsort(code, kind="stable")
    bounds = np.r_[code[order][0], (code[order][:-1] + code[order][1:]) / 2, code[order][-1]]
    lower, upper = bounds[:-1] - code[order], bounds[1:] - code[order]
    squares = np.empty(len(code), dtype=np.float32)
    squares[order] = (upper**2 + upper * lower + lower**2) / 3
    variance: np.ndarray = dequantize_4bit(matrix.codes, matrix.absmax**2, matrix.shape, squares, matrix.block_size)
    return variance
