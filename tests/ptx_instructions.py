"""Kernels of single instructions of ptx.cuh, for the emulator and for a GPU, and what they should compute."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.backend.arrays import numpy_dtype

PTX = Path(__file__).parents[1] / "backends" / "pegasusx_cupy" / "ptx.cuh"
# One warp multiplies a (16, 16) with b^T (8, 16) and with d (16, 8), which it copies to shared memory first.
KERNELS = """
struct Shared {
    alignas(16) half_bits a[16][16], b[8][16], d[16][8];
};

__device__ void copy(half_bits* to, const half_bits* from, int count) {
    for (int i = threadIdx.x; i < count / 8; i += 32) begin_copy(to + 8 * i, from + 8 * i, true);
}

extern "C" __global__ void products(const half_bits* a, const half_bits* b, const half_bits* d, float* ab, float* ad) {
    __shared__ Shared tile;
    const int lane = threadIdx.x, row = lane / 4, pair = lane % 4 * 2;
    copy(&tile.a[0][0], a, 16 * 16);
    copy(&tile.b[0][0], b, 8 * 16);
    copy(&tile.d[0][0], d, 16 * 8);
    finish_copies();
    __syncthreads();
    unsigned left[4], right[4], transposed[4];
    float c[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};
    load_matrices(left, &tile.a[lane % 16][lane / 16 * 8]);
    load_matrices(right, &tile.b[lane % 8][lane / 8 % 2 * 8]);
    load_transposed_matrices(transposed, &tile.d[lane % 16][0]);
    multiply_add(c, left, right[0], right[1]);
    multiply_add(e, left, transposed[0], transposed[1]);
    for (int i = 0; i < 4; ++i) {
        int at = (row + i / 2 * 8) * 8 + pair + i % 2;
        ab[at] = c[i];
        ad[at] = e[i];
    }
}

extern "C" __global__ void conversions(const float* x, unsigned* pairs, float* powers, half_bits* copied,
                                       float* numbers) {
    __shared__ Shared tile;
    pairs[threadIdx.x] = rounded_pair(x[2 * threadIdx.x], x[2 * threadIdx.x + 1]);
    powers[threadIdx.x] = exp2_of(x[threadIdx.x]);
    numbers[threadIdx.x] = number_of_half((half_bits)pairs[threadIdx.x]);
    if (threadIdx.x < 2) begin_copy(tile.a[threadIdx.x], x, threadIdx.x == 1);
    finish_copies();
    __syncthreads();
    if (threadIdx.x < 16) copied[threadIdx.x] = tile.a[threadIdx.x / 8][threadIdx.x % 8];
}
"""
# The same in TF32: a (16, 8) with b^T (8, 8), both rounded first.
TF32_KERNELS = """
struct Shared {
    alignas(16) float a[16][8], b[8][8];
};

extern "C" __global__ void products(const float* a, const float* b, float* ab) {
    __shared__ Shared tile;
    const int lane = threadIdx.x, row = lane / 4, pair = lane % 4 * 2;
    begin_copy(&tile.a[lane / 2][lane % 2 * 4], a + 4 * lane, true);
    if (lane < 16) begin_copy(&tile.b[lane / 2][lane % 2 * 4], b + 4 * lane, true);
    finish_copies();
    __syncthreads();
    unsigned left[4], right[4];
    float c[4] = {0, 0, 0, 0};
    load_matrices(left, &tile.a[lane % 16][lane / 16 * 4]);
    load_matrices(right, &tile.b[lane % 8][lane / 8 % 2 * 4]);
    for (int i = 0; i < 4; ++i) left[i] = rounded_tf32(__int_as_float(left[i]));
    multiply_add(c, left, rounded_tf32(__int_as_float(right[0])), rounded_tf32(__int_as_float(right[1])));
    for (int i = 0; i < 4; ++i) ab[(row + i / 2 * 8) * 8 + pair + i % 2] = c[i];
}

extern "C" __global__ void conversions(const float* x, unsigned* rounded) {
    rounded[threadIdx.x] = rounded_tf32(x[threadIdx.x]);
}
"""
# Ties, numbers that round to infinity, infinities, NaN, subnormal numbers, zeros.
SPECIAL = [
    *(1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 65519.9, 65520, -65520, 3.4e38, 1e-7, -1e-7),
    *(6e-8, 1e-40, 0.0, -0.0, np.inf, -np.inf, np.nan, -5.5, 0.3, 126.5, -20.0, 2.0),
]


def source(arithmetic: str) -> str:
    return PTX.read_text(encoding="utf-8") + (TF32_KERNELS if arithmetic == "tf32" else KERNELS)


def options(arithmetic: str) -> tuple[str, ...]:
    return {"bfloat16": ("-DBFLOAT16=1",), "float16": (), "tf32": ("-DTF32=1",)}[arithmetic]


def check(arithmetic: str, launch: Callable[..., list[np.ndarray]]) -> None:
    """Compare all instructions with what the manual says.

    Args:
        arithmetic: "bfloat16", "float16" or "tf32".
        launch: runs a kernel by one warp, with its name, input arrays, and arrays for the results, which it returns.
    """
    if arithmetic == "tf32":
        check_tf32(launch)
        return
    for seed in range(20):
        inputs = matrices(arithmetic, seed)
        check_products(inputs, launch("products", inputs, *np.full((2, 16, 8), np.nan, np.float32)))
    x = numbers()
    results = [np.zeros(32, np.uint32), np.zeros(32, np.float32), np.zeros(16, np.uint16), np.zeros(32, np.float32)]
    check_conversions(arithmetic, x, *launch("conversions", [x], *results))


def check_tf32(launch: Callable[..., list[np.ndarray]]) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a, b = (rng.standard_normal((rows, 8)).astype(np.float32) for rows in (16, 8))
        (found,) = launch("products", [a, b], np.full((16, 8), np.nan, np.float32))
        np.testing.assert_allclose(found, nearest_tf32(a) @ nearest_tf32(b).T, rtol=0, atol=1e-5)
    x = np.array([*numbers()[:32]])
    (bits,) = launch("conversions", [x], np.zeros(32, np.uint32))
    rounded, normal = bits.view(np.float32), np.isfinite(x) & (np.abs(x) > 1e-37) & (np.abs(x) < 3e38)
    np.testing.assert_array_equal(rounded[normal], nearest_tf32(x[normal]))
    assert not (bits[~np.isnan(x)] & 0x1FFF).any()
    np.testing.assert_array_equal(np.isnan(rounded), np.isnan(x))
    np.testing.assert_array_equal(rounded[np.isinf(x)], x[np.isinf(x)])


def nearest_tf32(x: np.ndarray) -> np.ndarray:
    """Round normal numbers to 11 significant bits in float64: to nearest, ties away from zero."""
    _, exponents = np.frexp(x.astype(np.float64))
    units = np.ldexp(1.0, exponents - 11)
    rounded: np.ndarray = np.sign(x) * np.floor(np.abs(x) / units + 0.5) * units
    return rounded


def matrices(dtype: str, seed: int) -> list[np.ndarray]:
    """Draw a (16, 16), b (8, 16) and d (16, 8)."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(numpy_dtype(dtype)) for shape in ((16, 16), (8, 16), (16, 8))]


def check_products(inputs: list[np.ndarray], found: list[np.ndarray]) -> None:
    a, b, d = (x.astype(np.float64) for x in inputs)
    for product, expected in zip(found, (a @ b.T, a @ d), strict=True):
        np.testing.assert_allclose(product, expected, rtol=0, atol=1e-5)


def numbers() -> np.ndarray:
    """Return 64 numbers, which 32 threads read in pairs."""
    rest = np.random.default_rng(0).standard_normal(64 - len(SPECIAL)) * 10
    return np.concatenate([SPECIAL, rest]).astype(np.float32)


def check_conversions(dtype: str, x: np.ndarray, pairs: Any, powers: Any, copied: Any, numbers: Any) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = x.astype(numpy_dtype(dtype))
        expected = np.exp2(x[:32].astype(np.float64)).astype(np.float32)
    is_number = ~np.isnan(x)
    bits = np.asarray(pairs).view(np.uint16)
    np.testing.assert_array_equal(bits[is_number], rounded.view(np.uint16)[is_number])
    assert np.isnan(bits.view(rounded.dtype)[~is_number].astype(np.float32)).all()
    np.testing.assert_array_equal(np.asarray(numbers), rounded[::2].astype(np.float32))
    np.testing.assert_allclose(np.asarray(powers), expected, rtol=2**-21, atol=2**-126)
    np.testing.assert_array_equal(np.asarray(copied), [*np.zeros(8, np.uint16), *x.view(np.uint16)[:8]])
