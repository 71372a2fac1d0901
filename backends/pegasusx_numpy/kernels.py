"""Compiled loops over quantized matrices, which NumPy has no operation for: 16 codes are looked up by one instruction.

Importing this module raises ImportError without numba, and on processors that have no such instruction. The intrinsics
are in the file of the loops: numba compiles a loop again when its own file has changed, not when another has.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, prange, types
from numba.extending import intrinsic

PIECE = 32  # numbers that `decode` decodes: two in each of 16 bytes
FLOAT, INT32 = ir.FloatType(), ir.IntType(32)
FLOATS, INTS, BYTES = ir.VectorType(FLOAT, 16), ir.VectorType(INT32, 16), ir.VectorType(ir.IntType(8), 16)
FEATURES = get_host_cpu_features()
HAS_AVX512 = bool(FEATURES.get("avx512f"))
if not HAS_AVX512 and not FEATURES.get("avx2"):
    raise ImportError("this processor has neither AVX-512 nor AVX2")


def has_threads() -> bool:
    """Return whether numba has TBB or OpenMP; its own threads wake slowly, and two callers may not use them at once.

    GNU's OpenMP reads its settings when it is loaded. Its threads then wait for work about as long as the model does
    something else between two products, 0.1 ms, instead of some milliseconds on cores that BLAS or torch need.
    """
    with patched_environment("GOMP_SPINCOUNT", "10000"):
        for name in ("tbbpool", "omppool"):
            with suppress(ImportError):
                import_module(f"numba.np.ufunc.{name}")
                return True
    return False


@contextmanager
def patched_environment(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment inside the block, unless the user has."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


HAS_THREADS = has_threads()


def compile_loops(**options: Any) -> Callable[[Any], Any]:
    """Return a decorator that compiles a function when it is first called, once for all processes."""

    def decorate(function: Any) -> Any:
        try:
            return njit(nogil=True, error_model="numpy", cache=True, **options)(function)
        except RuntimeError:  # no folder for the compiled code can be written
            return njit(nogil=True, error_model="numpy", **options)(function)

    return decorate


compiled = compile_loops()
# Sums in any order, with fused multiply-add; NaN and infinity stay what they are.
compiled_sum = compile_loops(fastmath={"reassoc", "contract", "nsz"})
compiled_parallel = compile_loops(parallel=True)


def look_up(builder: Any, table: Any, indices: Any) -> Any:
    """Emit the instructions that return 16 numbers of a table of 16.

    Args:
        builder: of LLVM's instructions.
        table: 16 numbers.
        indices: 16 integers, of which only the low four bits count.
    """

    def permute(name: str, width: int, numbers: Any, at: Any) -> Any:
        vector = ir.VectorType(FLOAT, width)
        kind = ir.FunctionType(vector, [vector, ir.VectorType(INT32, width)])
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(function, [numbers, at])

    if HAS_AVX512:
        return permute("llvm.x86.avx512.permvar.sf.512", 16, table, indices)

    def half(vector: Any, start: int) -> Any:
        return builder.shuffle_vector(vector, vector, constants(range(start, start + 8)))

    def of_half(at: Any) -> Any:
        low, high = (permute("llvm.x86.avx2.permps", 8, half(table, start), at) for start in (0, 8))
        is_high = builder.icmp_unsigned("!=", builder.and_(at, constants([8] * 8)), constants([0] * 8))
        return builder.select(is_high, high, low)

    return builder.shuffle_vector(of_half(half(indices, 0)), of_half(half(indices, 8)), constants(range(16)))


def constants(numbers: Any) -> Any:
    """Return a vector of integers that are known when the loops are compiled."""
    listed = list(numbers)
    return ir.Constant(ir.VectorType(INT32, len(listed)), listed)


class Emitter:
    """Emits the instructions of one call of an intrinsic, whose arguments it knows by their positions."""

    def __init__(self, context: Any, builder: Any, signature: Any, values: Any) -> None:
        self.context, self.builder, self.signature, self.values = context, builder, signature, values

    def address(self, array: int, index: int | None, kind: Any) -> Any:
        """Return the address of a vector in an array, from its beginning or from an index."""
        array_type = self.context.make_array(self.signature.args[array])
        data = array_type(self.context, self.builder, self.values[array]).data
        start = data if index is None else self.builder.gep(data, [self.values[index]])
        return self.builder.bitcast(start, kind.as_pointer())

    def load(self, array: int, index: int | None, kind: Any = FLOATS) -> Any:
        """Load a vector."""
        return self.builder.load(self.address(array, index, kind), align=1)

    def broadcast(self, value: int, width: int) -> Any:
        """Return a vector of equal numbers."""
        undefined = ir.Constant(ir.VectorType(FLOAT, width), ir.Undefined)
        vector = self.builder.insert_element(undefined, self.values[value], ir.Constant(INT32, 0))
        return self.builder.shuffle_vector(vector, undefined, constants([0] * width))

    def decoded(self) -> tuple[Any, Any]:
        """Decode 16 bytes; the arguments of the call begin with codes, the index of the first byte, and the table."""
        table, indices = self.load(2, None), self.builder.zext(self.load(0, 1, BYTES), INTS)
        high = look_up(self.builder, table, self.builder.lshr(indices, constants([4] * 16)))
        return high, look_up(self.builder, table, indices)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """Return x y + z of vectors, rounded once where the processor can."""
        return self.builder.fadd(self.builder.fmul(x, y, flags=("contract",)), z, flags=("contract",))


@intrinsic
def decode(typing_context: Any, codes: Any, first: Any, table: Any, scale: Any, out: Any, at: Any) -> Any:
    """Write the 32 numbers of 16 bytes: those that the codes stand for, times a scale.

    Args:
        typing_context: of numba.
        codes: bytes, uint8, the first number in the high four bits.
        first: the index of the first byte.
        table: the numbers of the 16 codes, float32.
        scale: float32.
        out: float32.
        at: the index of the first number in `out`.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, signature, values)
        pairs = builder.shuffle_vector(*emit.decoded(), constants(k for i in range(16) for k in (i, 16 + i)))
        builder.store(builder.fmul(pairs, emit.broadcast(3, PIECE)), emit.address(4, 5, pairs.type), align=1)
        return context.get_dummy_value()

    return types.void(codes, first, table, scale, out, at), generate


@intrinsic
def multiply_piece(
    typing_context: Any,
    codes: Any,
    first: Any,
    table: Any,
    scale: Any,
    evens: Any,
    odds: Any,
    k: Any,
    sums: Any,
    at: Any,
) -> Any:
    """Multiply the 32 numbers of 16 bytes with as many of a vector, and add the products to 16 sums.

    Args:
        typing_context: of numba.
        codes: see `decode`.
        first: see `decode`.
        table: see `decode`.
        scale: see `decode`.
        evens: the vector's numbers of even index, float32.
        odds: those of odd index.
        k: where to begin in both.
        sums: float32.
        at: the index of the first sum.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, signature, values)
        high, low = emit.decoded()
        products = emit.multiply_add(low, emit.load(5, 6), builder.fmul(high, emit.load(4, 6)))
        total = emit.multiply_add(products, emit.broadcast(3, 16), emit.load(7, 8))
        builder.store(total, emit.address(7, 8, FLOATS), align=1)
        return context.get_dummy_value()

    return types.void(codes, first, table, scale, evens, odds, k, sums, at), generate


@intrinsic
def total_of(typing_context: Any, sums: Any) -> Any:
    """Return the total of 64 sums, added in the same order wherever the loop is compiled.

    Args:
        typing_context: of numba.
        sums: float32 (64,).
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        total = Emitter(context, builder, signature, values).load(0, None, ir.VectorType(FLOAT, 64))
        for half in (32, 16, 8, 4, 2, 1):
            parts = (builder.shuffle_vector(total, total, constants(range(i, i + half))) for i in (0, half))
            total = builder.fadd(*parts)
        return builder.extract_element(total, ir.Constant(INT32, 0))

    return types.float32(sums), generate


@compiled
def dequantize_4bit(codes: Any, absmax: Any, shift: Any, table: Any, out: Any, start: Any, stop: Any) -> None:
    """Dequantize some rows of a matrix, bit for bit as `golden.quantization.dequantize_4bit` does.

    Args:
        codes: uint8, row by row.
        absmax: float32, of each block.
        shift: a block has 2^shift pieces.
        table: the numbers of the 16 codes, float32.
        out: float32 (stop - start, in features).
        start: the first row.
        stop: after the last row.
    """
    pieces = out.shape[1] // PIECE
    flat = out.reshape(-1)
    for i in range((stop - start) * pieces):
        piece = start * pieces + i
        decode(codes, piece * (PIECE // 2), table, absmax[piece >> shift], flat, i * PIECE)


@compiled
def multiply_4bit(
    codes: Any, absmax: Any, shift: Any, table: Any, evens: Any, odds: Any, out: Any, start: Any, stop: Any
) -> None:
    """Multiply some rows of a matrix with a vector.

    Args:
        codes: see `dequantize_4bit`.
        absmax: see `dequantize_4bit`.
        shift: see `dequantize_4bit`.
        table: see `dequantize_4bit`.
        evens: the vector's numbers of even index, float32 (in features / 2,).
        odds: those of odd index.
        out: float32 (out features,), of which start to stop are written.
        start: the first row.
        stop: after the last row.
    """
    pieces = 2 * evens.size // PIECE
    sums = np.empty(64, np.float32)  # four times 16, so that an addition need not wait for the one before it
    for feature in range(start, stop):
        sums[:] = 0
        for i in range(pieces):
            piece = feature * pieces + i
            scale = absmax[piece >> shift]
            multiply_piece(codes, piece * 16, table, scale, evens, odds, i * 16, sums, (i & 3) * 16)
        out[feature] = total_of(sums)


@compiled_parallel
def multiply_4bit_on(
    parts: Any, codes: Any, absmax: Any, shift: Any, table: Any, evens: Any, odds: Any, out: Any
) -> None:
    """Multiply all rows of a matrix with a vector, on several threads.

    Args:
        parts: number of threads.
        codes: see `multiply_4bit`, like all others.
        absmax: see `multiply_4bit`.
        shift: see `multiply_4bit`.
        table: see `multiply_4bit`.
        evens: see `multiply_4bit`.
        odds: see `multiply_4bit`.
        out: see `multiply_4bit`.
    """
    for i in prange(parts):
        start, stop = i * out.size // parts, (i + 1) * out.size // parts
        multiply_4bit(codes, absmax, shift, table, evens, odds, out, start, stop)


@compiled
def dequantize_int8(codes: Any, absmax: Any, out: Any, start: Any, stop: Any) -> None:
    """Dequantize some rows of a matrix, bit for bit as `golden.quantization.dequantize_int8` does.

    Args:
        codes: int8 (out features, in features).
        absmax: float32, of each row.
        out: float32 (stop - start, in features).
        start: the first row.
        stop: after the last row.
    """
    for feature in range(start, stop):
        for k in range(codes.shape[1]):
            out[feature - start, k] = np.float32(codes[feature, k]) * absmax[feature] * np.float32(1 / 127)


@compiled_sum
def multiply_rows(weight: Any, scales: Any, x: Any, out: Any, start: Any, stop: Any) -> None:
    """Multiply some rows of an array with a vector.

    Args:
        weight: int8 or float32 (out features, in features).
        scales: of each row, float32.
        x: float32 (in features,).
        out: float32 (out features,), of which start to stop are written.
        start: the first row.
        stop: after the last row.
    """
    for feature in range(start, stop):
        total = np.float32(0)
        for k in range(x.size):
            total += np.float32(weight[feature, k]) * x[k]
        out[feature] = total * scales[feature]


@compiled_parallel
def multiply_rows_on(parts: Any, weight: Any, scales: Any, x: Any, out: Any) -> None:
    """Multiply all rows of an array with a vector, on several threads.

    Args:
        parts: number of threads.
        weight: see `multiply_rows`, like all others.
        scales: see `multiply_rows`.
        x: see `multiply_rows`.
        out: see `multiply_rows`.
    """
    for i in prange(parts):
        multiply_rows(weight, scales, x, out, i * out.size // parts, (i + 1) * out.size // parts)
