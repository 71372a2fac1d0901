"""A matrix in 4 or 8 bits, on the host or on a device. [spec 18]"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import lcm
from typing import Any, Self

import numpy as np

from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.golden import quantization as golden

KINDS = ("nf4", "nf4-double", "fp4", "fp4-double", "int8")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # those of bitsandbytes
CHUNK = 2**19  # numbers: a matrix is quantized in chunks of rows, whose float32 copies stay in the cache


@dataclass(frozen=True)
class DoubleQuantized:
    """The scales of a matrix in 8 bits; arguments of `dequantize_absmax`."""

    codes: np.ndarray
    absmax: np.ndarray
    offset: np.float32
    code: np.ndarray
    block_size: int = golden.ABSMAX_BLOCK_SIZE


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix of which only the bits are stored; backends multiply with the numbers that they stand for. [spec 18.1]

    Attributes:
        kind: "nf4", "fp4" or "int8".
        shape: (out features, in features).
        codes: two numbers a byte, uint8 (ceil(out in / 2),); int8 (out, in).
        absmax: scales, float32, of blocks or of rows.
        block_size: numbers that share a scale; 0 for int8.
        nested: the scales as a file has them, if they are quantized too; on the host.
    """

    kind: str
    shape: tuple[int, int]
    codes: Any
    absmax: Any
    block_size: int = 0
    nested: DoubleQuantized | None = None

    @classmethod
    def quantize(cls, matrix: np.ndarray, kind: str, block_size: int = golden.BLOCK_SIZE) -> Self:
        """Quantize a matrix, in chunks of rows.

        Args:
            matrix: of finite numbers, in any floating-point dtype.
            kind: one of `KINDS`.
            block_size: numbers that share a scale, for 4 bits.

        Raises:
            InputError: of the kind, the block size or a number, for which there are no bits. It does not name the
                matrix.
        """
        if kind not in KINDS:
            raise InputError(f"quantization={shown(kind)} is unknown: choose one of {', '.join(KINDS)}")
        if block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise InputError(f"block_size={shown(block_size)} cannot be stored: choose one of {sizes}")
        name, _, is_double = kind.partition("-")
        rows, width = matrix.shape
        # Chunks end where blocks and bytes do, and give the same bits as the whole matrix.
        unit = 1 if name == "int8" else lcm(width, block_size, 2) // width
        step = max(CHUNK // width // unit, 1) * unit
        chunks = [matrix[start : start + step] for start in range(0, rows, step)]
        for i, chunk in enumerate(chunks):
            check_representable(chunk, i * step, name)
        if name == "int8":
            parts = [golden.quantize_int8(chunk) for chunk in chunks]
            block_size = 0
        else:
            parts = [golden.quantize_4bit(chunk, golden.CODES[name], block_size) for chunk in chunks]
        codes, absmax = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        found = cls(name, (rows, width), codes, absmax, block_size)
        if not is_double:
            return found
        return found.with_nested(DoubleQuantized(*golden.quantize_absmax(absmax), golden.dynamic_code()))

    def with_nested(self, nested: DoubleQuantized) -> Self:
        """Return the matrix with double-quantized scales."""
        absmax = golden.dequantize_absmax(nested.codes, nested.absmax, nested.offset, nested.code, nested.block_size)
        return replace(self, absmax=absmax, nested=nested)

    def map(self, function: Callable[[np.ndarray], Any]) -> Self:
        """Return the matrix with its arrays on a device, or back on the host.

        Args:
            function: copies an array.
        """
        return replace(self, codes=function(self.codes), absmax=function(self.absmax))

    @property
    def dtype(self) -> str:
        """The kind, in place of an array's dtype."""
        return self.kind

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return int(self.codes.nbytes + self.absmax.nbytes)

    def dequantized(self, rows: slice = slice(None)) -> Any:
        """Return rows of numbers in float32, with NumPy or CuPy.

        Args:
            rows: without a step.
        """
        start, stop, _ = rows.indices(self.shape[0])
        stop = max(start, stop)
        width = self.shape[1]
        if self.kind == "int8":
            return golden.dequantize_int8(self.codes[start:stop], self.absmax[start:stop])
        # From the block that the first row begins in.
        first = start * width // lcm(self.block_size, 2) * lcm(self.block_size, 2)
        numbers = golden.dequantize_4bit(
            self.codes[first // 2 : -(-stop * width // 2)],
            self.absmax[first // self.block_size : -(-stop * width // self.block_size)],
            (stop * width - first,),
            golden.CODES[self.kind],
            self.block_size,
        )
        return numbers[start * width - first :].reshape(stop - start, width)

    def take(self, ids: Any) -> Any:
        """Return the rows of a table, in float32, with NumPy or CuPy.

        Args:
            ids: of the rows, integers of any shape.

        Returns:
            float32 (..., in features).
        """
        rows, width = self.shape
        if self.kind == "int8":
            flat = golden.dequantize_int8(self.codes[ids].reshape(-1, width), self.absmax[ids].reshape(-1))
            return flat.reshape(*ids.shape, width)
        if width % lcm(self.block_size, 2):  # rows begin inside of blocks
            return self.dequantized()[ids]
        codes, absmax = self.codes.reshape(rows, -1)[ids], self.absmax.reshape(rows, -1)[ids]
        code = golden.CODES[self.kind]
        return golden.dequantize_4bit(codes.reshape(-1), absmax.reshape(-1), (*ids.shape, width), code, self.block_size)


def dense(weight: Any, dtype: Any) -> Any:
    """Return a matrix as an array: a quantized one dequantized, any other as it is.

    Args:
        weight: an array of NumPy or CuPy, or a quantized matrix.
        dtype: of the result, for a quantized matrix.
    """
    return weight.dequantized().astype(dtype, copy=False) if isinstance(weight, QuantizedMatrix) else weight


def check_representable(matrix: np.ndarray, first_row: int, kind: str) -> None:
    """Refuse NaN, infinity, and numbers that are infinite in the format that the kind rounds to first.

    Args:
        matrix: rows of a matrix.
        first_row: index of the first of them.
        kind: "nf4" or "fp4", which round to float32 first, or "int8", to float16.

    Raises:
        InputError: names the first such number.
    """
    limit = np.finfo(np.float16 if kind == "int8" else np.float32).max
    is_wrong = ~(np.abs(matrix) <= limit)
    if is_wrong.any():
        row, column = np.argwhere(is_wrong)[0]
        number = float(matrix[row, column])
        raise InputError(
            f"[{first_row + row}, {column}] is {number:g}: {kind} takes finite numbers up to {limit:g}; "
            "correct the checkpoint, or load it without quantization"
        )
