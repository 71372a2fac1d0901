"""Quantized weights: the golden functions equal bitsandbytes bit for bit, and a `QuantizedMatrix` equals them."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from pegasusx_ref.backend import quantized
from pegasusx_ref.backend.quantized import BLOCK_SIZES, KINDS, QuantizedMatrix
from pegasusx_ref.errors import InputError
from pegasusx_ref.golden import quantization as golden

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

EDGES = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1e-40, -3e-39, 1e-38, 1.2e-38, 1e-30, 1e30, 3.4e38, -3.4028235e38, 1, -1, 3.7],
    dtype=np.float32,
)
HALVES = ["float32", "bfloat16", "float16"]
four_bits = pytest.mark.parametrize("kind", golden.CODES)


def to_torch(array: np.ndarray, dtype: str = "float32") -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(getattr(torch, dtype))


def to_bits(array: np.ndarray, kind: str = "nf4") -> np.ndarray:
    """Return float32 as integers: -0 is not 0, except in FP4, where bitsandbytes' kernels differ; any NaN is NaN."""
    array = np.asarray(array, dtype=np.float32)
    array = np.where(np.isnan(array), np.float32(np.nan), array)
    return (array + np.float32(0) if kind == "fp4" else array).view(np.uint32)


def assert_same_4bit(bnb: Any, matrix: np.ndarray, kind: str, block_size: int = 64, dtype: str = "float32") -> None:
    """Compare codes, scales, and the numbers that they stand for in the dtype of the matrix.

    bitsandbytes gets one row: blocks ignore rows, but its AVX-512 kernel does not [N31].
    """
    tensor = to_torch(matrix.reshape(1, -1), dtype)
    their_codes, state = bnb.functional.quantize_4bit(tensor, blocksize=block_size, quant_type=kind)
    their_matrix = bnb.functional.dequantize_4bit(their_codes, state)

    codes, absmax = golden.quantize_4bit(tensor.float().numpy(), golden.CODES[kind], block_size)
    found = golden.dequantize_4bit(codes, absmax, matrix.shape, golden.CODES[kind], block_size)
    rounded, theirs = (to_torch(x.reshape(-1), dtype).float().numpy() for x in (found, their_matrix.float().numpy()))
    if dtype == "bfloat16":  # processors' instructions for it may flush subnormal numbers
        rounded, theirs = (np.where(abs(x) < np.finfo(np.float32).tiny, 0, x) for x in (rounded, theirs))
    assert np.array_equal(codes, their_codes.numpy().reshape(-1))
    assert np.array_equal(to_bits(absmax), to_bits(state.absmax.numpy()))
    assert np.array_equal(to_bits(rounded, kind), to_bits(theirs, kind))


def assert_same_int8(bnb: Any, matrix: np.ndarray, dtype: str = "float32") -> None:
    tensor = to_torch(matrix, dtype)
    their_codes, their_absmax, _ = bnb.functional.int8_vectorwise_quant(tensor.half())
    codes, absmax = golden.quantize_int8(tensor.float().numpy())
    assert np.array_equal(codes, their_codes.numpy())
    assert np.array_equal(to_bits(absmax), to_bits(their_absmax.numpy()))
    their_matrix = bnb.functional.int8_vectorwise_dequant(their_codes, their_absmax).numpy()
    assert np.array_equal(to_bits(golden.dequantize_int8(codes, absmax)), to_bits(their_matrix))


@st.composite
def matrices(draw: st.DrawFn, largest_exponent: int = 37) -> np.ndarray:
    """Float32 of any magnitude, one a row; a part of them zeros and edges."""
    shape = draw(st.integers(1, 9)), draw(st.one_of(st.integers(1, 300), st.sampled_from([32, 64, 128, 256, 512])))
    rng = np.random.default_rng(draw(seeds))
    scales = 10.0 ** rng.integers(-44, largest_exponent + 1, (shape[0], 1))
    matrix = np.clip(rng.standard_normal(shape) * scales, -3.4e38, 3.4e38).astype(np.float32)
    edges = EDGES if largest_exponent == 37 else EDGES[abs(EDGES) < 1e4]
    replaced = rng.random(shape) < draw(st.sampled_from([0, 0.02, 0.5, 1]))
    return np.where(replaced, rng.choice(edges, shape), matrix)


# --- NF4 and FP4 -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@four_bits
def test_ten_million_numbers_in_4_bits(bnb: Any, kind: str) -> None:
    rng = np.random.default_rng(18)
    assert_same_4bit(bnb, rng.standard_normal((4096, 2500), dtype=np.float32) * np.float32(0.05), kind)
    assert_same_4bit(bnb, rng.uniform(-1, 1, (1024, 1024)).astype(np.float32), kind)


@four_bits
@given(matrix=matrices(), block_size=st.sampled_from(BLOCK_SIZES), dtype=st.sampled_from(HALVES))
def test_any_matrix_in_4_bits(bnb: Any, kind: str, matrix: np.ndarray, block_size: int, dtype: str) -> None:
    assert_same_4bit(bnb, np.clip(matrix, -6e4, 6e4) if dtype == "float16" else matrix, kind, block_size, dtype)


@four_bits
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_sizes_around_a_block_in_4_bits(bnb: Any, kind: str, block_size: int) -> None:
    rng = np.random.default_rng(block_size)
    for size in (1, 2, 3, block_size - 1, block_size, block_size + 1, 3 * block_size + 2, 5 * block_size + 7):
        for shape in ((1, size), (size, 1)):
            assert_same_4bit(bnb, rng.standard_normal(shape).astype(np.float32), kind, block_size)
        assert_same_4bit(bnb, np.zeros((1, size), dtype=np.float32), kind, block_size)
        assert_same_4bit(bnb, -np.zeros((1, size), dtype=np.float32), kind, block_size)


@four_bits
@pytest.mark.parametrize("absmax", [1, 3.7, 0.1, 0.049, 1e-37, 1e-38, 7e-39, 1e-42, 1e30, 3e38])
@pytest.mark.parametrize("size", [64, 63], ids=["multiplied", "divided"])
def test_midpoints_of_codes_and_their_neighbours(bnb: Any, kind: str, absmax: float, size: int) -> None:
    """One to three ulps beside a midpoint too, and beside the codes, in a whole block and in a short one."""
    code = np.sort(golden.CODES[kind])
    points = np.concatenate([code, (code[:-1] + code[1:]) / 2]) * np.float32(absmax)
    bits = points.view(np.int32)[:, None] + np.arange(-3, 4, dtype=np.int32)
    neighbours = np.clip(np.append(bits.view(np.float32).reshape(-1), -points), -np.float32(absmax), np.float32(absmax))
    for start in range(0, neighbours.size, size - 1):
        block = np.zeros((1, size), dtype=np.float32)
        part = neighbours[np.isfinite(neighbours)][start : start + size - 1]
        block[0, : part.size], block[0, -1] = part, absmax
        assert_same_4bit(bnb, block, kind)


@four_bits
def test_a_number_that_is_not_finite_spoils_its_block(bnb: Any, kind: str) -> None:
    rng = np.random.default_rng(1)
    for wrong in (np.nan, np.inf, -np.inf):
        for place in (3, 69):  # in a whole block, in a short one
            matrix = rng.standard_normal((1, 70)).astype(np.float32)
            matrix[0, place] = wrong
            assert_same_4bit(bnb, matrix, kind)
            found = QuantizedMatrix(kind, (1, 70), *golden.quantize_4bit(matrix, golden.CODES[kind], 64), 64)
            is_finite = np.isfinite(found.dequantized()[0])
            assert is_finite.any()
            assert not is_finite[:64].all() if place == 3 else not is_finite[64:].all()


def test_codes_are_those_of_bitsandbytes(bnb: Any) -> None:
    for kind, code in golden.CODES.items():
        assert np.array_equal(to_bits(code), to_bits(bnb.functional.get_4bit_type(kind, device="cpu").numpy()))


# --- double quantization ---------------------------------------------------------------------------------------------


def test_the_dynamic_code_is_rounded_correctly(bnb: Any) -> None:
    """bitsandbytes computes it in float32, from the numbers of torch.linspace."""
    exact = [Fraction(0), Fraction(1)]
    for i in range(7):
        middles = [Fraction(1, 10) + Fraction(9, 10) * Fraction(2 * k + 1, 2 ** (i + 1)) for k in range(2**i)]
        exact += [sign * Fraction(10) ** (i - 6) * middle for middle in middles for sign in (1, -1)]
    code = golden.dynamic_code()
    assert len(exact) == len(code) == 256
    for number, fraction in zip(code, sorted(exact), strict=True):
        assert abs(Fraction(float(number)) - fraction) <= Fraction(float(np.spacing(abs(number)))) / 2
    theirs = bnb.functional.create_dynamic_map().numpy()
    assert (abs(theirs - code) <= np.spacing(abs(code))).all()


def nested_parts(bnb: Any, absmax: np.ndarray) -> Any:
    """Quantize ones, scaled: so bitsandbytes quantizes exactly these scales."""
    ones = np.repeat(absmax, 64).reshape(1, -1)
    packed, state = bnb.functional.quantize_4bit(to_torch(ones), quant_type="nf4", compress_statistics=True)
    return packed, state


def test_every_cell_of_the_table(bnb: Any) -> None:
    """Numbers at the edges of cells, at the middles, and beside the midpoints of codes."""
    code = golden.dynamic_code().astype(np.float64)
    points = np.concatenate([np.arange(2**17) / 2**16 - 1, code, (code[:-1] + code[1:]) / 2])
    units = np.concatenate([np.round(points * 2**24) + k for k in (-1, 0, 1)])  # exact in float32: their sum is 0
    units = units[abs(units) <= 2**24]
    numbers = np.concatenate([units, -units]) / 2**24
    numbers = np.concatenate([np.ones(len(numbers) // 255 + 1), numbers]).astype(np.float32)
    rows = np.resize(numbers, (-(-len(numbers) // 255), 255))
    rows = np.concatenate([np.ones((len(rows), 1), np.float32), rows], axis=1)
    their_codes, state = bnb.functional.quantize_blockwise(to_torch(rows), blocksize=256)
    both = np.concatenate([rows, -rows]).reshape(-1)
    codes, nested_absmax, offset = golden.quantize_absmax(both)
    assert offset == 0
    assert np.array_equal(codes[: rows.size], their_codes.numpy().reshape(-1))
    assert np.array_equal(nested_absmax[: len(rows)], state.absmax.numpy())


@given(seed=seeds, size=st.integers(1, 1000), least=st.sampled_from([0, 900, 999]))
def test_scales_whose_mean_is_exact(bnb: Any, seed: int, size: int, least: int) -> None:
    """Every part equals that of bitsandbytes."""
    absmax = np.random.default_rng(seed).integers(least, 1000, size).astype(np.float32) / 512
    absmax[-1] += (-absmax.sum() * 512 % size) / 512  # the mean is a multiple of 1/512
    codes, nested_absmax, offset = golden.quantize_absmax(absmax)
    _, state = nested_parts(bnb, absmax)
    assert offset == state.offset.item()
    assert np.array_equal(codes, state.absmax.numpy())
    assert np.array_equal(to_bits(nested_absmax), to_bits(state.state2.absmax.numpy()))


@given(seed=seeds, size=st.integers(1, 1500), exponent=st.integers(-30, 30))
@settings(max_examples=50)
def test_any_scales(bnb: Any, seed: int, size: int, exponent: int) -> None:
    """torch's mean is one in float32; everything else follows from it, and a file's parts give the same numbers."""
    absmax = (10.0**exponent * np.random.default_rng(seed).uniform(0.5, 2, size)).astype(np.float32)
    codes, nested_absmax, offset = golden.quantize_absmax(absmax)
    packed, state = nested_parts(bnb, absmax)
    assert abs(offset - state.offset.item()) <= 4 * np.spacing(offset)
    if offset == state.offset.item():
        assert np.array_equal(codes, state.absmax.numpy())
        assert np.array_equal(nested_absmax, state.state2.absmax.numpy())
    assert_same_from_parts(bnb, packed, state)


def assert_same_from_parts(bnb: Any, packed: Any, state: Any) -> None:
    """Compare what a file of bitsandbytes stands for."""
    parts = (state.absmax, state.state2.absmax, state.offset, state.state2.code)
    nested = quantized.DoubleQuantized(*(part.numpy() for part in parts))
    matrix = QuantizedMatrix(state.quant_type, tuple(state.shape), packed.numpy().reshape(-1), None, 64)
    found = matrix.with_nested(nested).dequantized()
    theirs = bnb.functional.dequantize_4bit(packed, state).numpy()
    assert np.array_equal(to_bits(found, state.quant_type), to_bits(theirs, state.quant_type))


@pytest.mark.parametrize("value", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 600])
def test_constant_scales(bnb: Any, value: float, size: int) -> None:
    absmax = np.full(size, value, dtype=np.float32)
    codes, nested_absmax, offset = golden.quantize_absmax(absmax)
    assert offset == np.float32(value)
    assert not codes.any()
    assert not nested_absmax.any()
    assert np.array_equal(golden.dequantize_absmax(codes, nested_absmax, offset), absmax)
    packed, state = nested_parts(bnb, absmax)
    if value != 0.7:  # torch's mean of it is another number
        assert np.array_equal(codes, state.absmax.numpy())
    assert_same_from_parts(bnb, packed, state)


# --- int8 ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_million_numbers_in_8_bits(bnb: Any) -> None:
    rng = np.random.default_rng(18)
    assert_same_int8(bnb, rng.standard_normal((4096, 2500), dtype=np.float32) * np.float32(0.05))
    assert_same_int8(bnb, rng.uniform(-65504, 65504, (1024, 1024)).astype(np.float32))


@given(matrix=matrices(largest_exponent=4), dtype=st.sampled_from(HALVES))
def test_any_matrix_in_8_bits(bnb: Any, matrix: np.ndarray, dtype: str) -> None:
    matrix[::4] = 0 if matrix.size % 3 else -0.0
    assert_same_int8(bnb, np.clip(matrix, -65504, 65504), dtype)


def test_halves_of_a_multiple_in_8_bits(bnb: Any) -> None:
    """Numbers between two multiples, at every scale of float16, subnormals included."""
    halves = np.arange(-254, 255, dtype=np.float32) / 2
    for exponent in range(-24, 9):
        assert_same_int8(
            bnb, np.stack([halves, halves * np.float32(0.999), halves * np.float32(1.001)]) * 2.0**exponent
        )


@given(
    seed=seeds, rows=st.integers(1, 6), width=st.integers(2, 70), biased=st.booleans(), spread=st.sampled_from([1, 3])
)
def test_the_product_of_llm_int8(bnb: Any, seed: int, rows: int, width: int, biased: bool, spread: int) -> None:
    """A width of one is left out: torch's integer product of it is wrong."""
    rng = np.random.default_rng(seed)
    codes, absmax = golden.quantize_int8(rng.standard_normal((5, width)))
    x = (rng.standard_normal((rows, width)) * spread).astype(np.float32)
    x[:, rng.random(width) < 0.1] = 0
    x[0] = x[0] if seed % 3 else 7.0  # every feature is an outlier
    x[-1, -1] = (6.0, -6.0, 5.999, 5.99, 1.0)[seed % 5]  # the third one is 6 in float16
    bias = rng.standard_normal(5).astype(np.float32) if biased else None
    for threshold in (0.0, 6.0):
        state = bnb.MatmulLtState()
        state.CB, state.SCB, state.threshold = to_torch(codes, "int8"), to_torch(absmax), threshold
        state.has_fp16_weights = state.is_training = False
        torch_bias = None if bias is None else to_torch(bias)
        theirs = bnb.matmul(to_torch(x), state.CB, state=state, threshold=threshold, bias=torch_bias).numpy()
        found = golden.linear_int8(x, codes, absmax, bias, threshold)
        assert found.dtype == np.float32
        if threshold == 0 or (abs(x.astype(np.float16)) < threshold).all():
            assert np.array_equal(found, theirs)
        else:
            largest = abs(x).sum(axis=1)[:, None] * absmax
            assert (abs(found - theirs) <= 1e-6 * largest + 1e-6 * abs(theirs)).all()


# --- QuantizedMatrix -------------------------------------------------------------------------------------------------


@given(matrix=matrices(largest_exponent=3), kind=st.sampled_from(KINDS), block_size=st.sampled_from(BLOCK_SIZES[:4]))
def test_a_matrix_in_chunks_is_the_whole_one(matrix: np.ndarray, kind: str, block_size: int) -> None:
    whole = QuantizedMatrix.quantize(matrix, kind, block_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized, "CHUNK", 64)
        parts = QuantizedMatrix.quantize(matrix, kind, block_size)
    assert np.array_equal(whole.codes, parts.codes)
    assert np.array_equal(to_bits(whole.absmax), to_bits(parts.absmax))
    name, _, is_double = kind.partition("-")
    assert (whole.kind, whole.dtype, whole.shape, whole.nested is not None) == (
        name,
        name,
        matrix.shape,
        bool(is_double),
    )
    assert whole.block_size == (0 if name == "int8" else block_size)
    assert whole.codes.size == (matrix.size if name == "int8" else math.ceil(matrix.size / 2))
    assert whole.nbytes == whole.codes.size + 4 * (
        matrix.shape[0] if name == "int8" else math.ceil(matrix.size / block_size)
    )


@given(data=st.data(), matrix=matrices(largest_exponent=3), kind=st.sampled_from(KINDS))
def test_rows_of_a_matrix_are_those_of_the_whole_one(data: st.DataObject, matrix: np.ndarray, kind: str) -> None:
    found = QuantizedMatrix.quantize(matrix, kind, data.draw(st.sampled_from(BLOCK_SIZES[:3])))
    rows = len(matrix)
    whole = found.dequantized()
    assert (whole.dtype, whole.shape) == (np.float32, matrix.shape)
    start, stop = data.draw(st.integers(-rows, rows)), data.draw(st.one_of(st.none(), st.integers(-rows, rows + 2)))
    part = found.dequantized(slice(start, stop))
    assert np.array_equal(to_bits(part), to_bits(whole[start:stop]))
    ids = np.array(data.draw(st.lists(st.integers(0, rows - 1), min_size=6, max_size=6)))
    for shape in ((6,), (2, 3), (1, 6, 1)):
        taken = found.take(ids.reshape(shape))
        assert np.array_equal(to_bits(taken), to_bits(whole[ids.reshape(shape)]))
    assert np.array_equal(to_bits(quantized.dense(found, np.float32)), to_bits(whole))
    assert quantized.dense(found, np.float64).dtype == np.float64
    assert quantized.dense(matrix, np.float64) is matrix


@pytest.mark.parametrize("kind", KINDS)
def test_a_mapped_matrix_keeps_its_numbers(kind: str) -> None:
    matrix = QuantizedMatrix.quantize(np.random.default_rng(3).standard_normal((7, 45)), kind)
    mapped = matrix.map(np.copy)
    assert mapped.codes is not matrix.codes
    assert np.array_equal(mapped.dequantized(), matrix.dequantized())


def test_a_wrong_argument_is_an_error() -> None:
    matrix = np.ones((3, 4), dtype=np.float32)
    with pytest.raises(InputError, match=r"^quantization='int4' is unknown: choose one of nf4, nf4-double, fp4, fp4"):
        QuantizedMatrix.quantize(matrix, "int4")
    with pytest.raises(InputError, match=r"^block_size=48 cannot be stored: choose one of 32, 64, .* 4096$"):
        QuantizedMatrix.quantize(matrix, "nf4", 48)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39, 65505.0])
def test_a_number_without_bits_is_named(kind: str, dtype: str, number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "CHUNK", 8)
    matrix = np.ones((300, 64), dtype=dtype)
    matrix[201, 5] = number
    is_fine = abs(matrix[201, 5]) <= np.finfo(np.float16 if kind == "int8" else np.float32).max
    if is_fine:
        assert np.isfinite(QuantizedMatrix.quantize(matrix, kind).dequantized()).all()
    else:
        limit = "65504" if kind == "int8" else r"3\.40282e\+38"
        message = rf"^\[201, 5\] is (nan|-?inf|1e\+39|65505): {kind[:3]}\w? takes finite numbers up to {limit}; correct"
        with pytest.raises(InputError, match=message):
            QuantizedMatrix.quantize(matrix, kind)
