"""Weights in 4 or 8 bits, as bitsandbytes stores them. [spec 18]

A linear layer multiplies with the numbers that the bits stand for, so that each `dequantize_` function defines the
layer; the `quantize_` functions choose the bits.
"""

import math

import numpy as np

BLOCK_SIZE = 64  # consecutive numbers of a matrix that share a scale
ABSMAX_BLOCK_SIZE = 256  # consecutive scales that share a scale, in double quantization
OUTLIER = 6.0  # activations from here on are multiplied in their own precision
_LEAST = np.float32(1e-38)  # a block's largest magnitude counts as at least this much, so that its inverse is finite

# The 16 numbers that 4 bits stand for, from 0b0000 to 0b1111. NF4: quantiles of the normal distribution.
NF4_CODE = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    dtype=np.float32,
)  # fmt: skip
# FP4: a sign bit, two bits of exponent, one of mantissa, and all of it divided by 12.
_FP4_MAGNITUDES = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], dtype=np.float32) / np.float32(12)
FP4_CODE = np.concatenate([_FP4_MAGNITUDES, 0 - _FP4_MAGNITUDES])  # its second zero, 0b1000, has no sign
CODES = {"nf4": NF4_CODE, "fp4": FP4_CODE}


def quantize_nf4(weight: np.ndarray, block_size: int = BLOCK_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Round every number of a matrix to one of 16 multiples of the largest magnitude of its block. [spec 18.2]

    Args:
        weight: of any shape and floating-point dtype, N numbers; read in row-major order, as float32.
        block_size: numbers that share a scale.

    Returns:
        Two numbers a byte, uint8 (ceil(N/2),), the first one in the high four bits; and the largest magnitude of each
        block, float32 (ceil(N/block_size),).

    Source: arXiv 2305.14314 section 3; bitsandbytes `quantize_4bit`.
    """
    return quantize_4bit(weight, NF4_CODE, block_size)


def dequantize_nf4(
    packed: np.ndarray, absmax: np.ndarray, shape: tuple[int, ...], block_size: int = BLOCK_SIZE
) -> np.ndarray:
    """Return the numbers that the bits stand for: code times scale, in float32. [spec 18.3]

    Args:
        packed: see `quantize_nf4`.
        absmax: see `quantize_nf4`.
        shape: of the matrix.
        block_size: numbers that share a scale.

    Returns:
        float32 numbers of the shape.

    Source: bitsandbytes `dequantize_4bit`.
    """
    return dequantize_4bit(packed, absmax, shape, NF4_CODE, block_size)


def quantize_fp4(weight: np.ndarray, block_size: int = BLOCK_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Do as `quantize_nf4` does, with the code of `FP4_CODE`. [spec 18.4]"""
    return quantize_4bit(weight, FP4_CODE, block_size)


def dequantize_fp4(
    packed: np.ndarray, absmax: np.ndarray, shape: tuple[int, ...], block_size: int = BLOCK_SIZE
) -> np.ndarray:
    """Do as `dequantize_nf4` does, with the code of `FP4_CODE`."""
    return dequantize_4bit(packed, absmax, shape, FP4_CODE, block_size)


def quantize_4bit(weight: np.ndarray, code: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Round every number of a matrix to any code of 4 bits; arguments and results as for `quantize_nf4`.

    Args:
        weight: see `quantize_nf4`.
        code: the numbers that 4 bits stand for, float32 (16,).
        block_size: numbers that share a scale.
    """
    numbers = weight.astype(np.float32).reshape(-1)
    whole = numbers.size // block_size * block_size
    blocks, rest = numbers[:whole].reshape(-1, block_size), numbers[whole:]
    absmax = np.abs(blocks).max(axis=1)
    scaled = (blocks * (1 / np.maximum(absmax, _LEAST))[:, None]).reshape(-1)
    if rest.size:  # a block that is not whole is divided, and stores at least _LEAST
        last = np.maximum(np.abs(rest).max(keepdims=True), _LEAST)
        absmax, scaled = np.concatenate([absmax, last]), np.concatenate([scaled, rest / last])
    order = np.argsort(code, kind="stable")
    midpoints = (code[order][:-1] + code[order][1:]) / 2
    rank = np.zeros(scaled.shape, dtype=np.uint8)
    for midpoint in midpoints:  # a sixth of the time of np.searchsorted, and NaN comes last too
        rank += ~(scaled <= midpoint)
    nearest = order.astype(np.uint8)[rank]
    if nearest.size % 2:  # the last four bits are those of zero
        nearest = np.append(nearest, np.uint8(order[np.searchsorted(midpoints, 0)]))
    return nearest[::2] << 4 | nearest[1::2], absmax


def dequantize_4bit(
    packed: np.ndarray, absmax: np.ndarray, shape: tuple[int, ...], code: np.ndarray, block_size: int = BLOCK_SIZE
) -> np.ndarray:
    """Return the numbers that the bits of any code stand for; arguments as for `dequantize_nf4`.

    Args:
        packed: see `quantize_nf4`.
        absmax: see `quantize_nf4`.
        shape: of the matrix.
        code: the numbers that 4 bits stand for, float32 (16,).
        block_size: numbers that share a scale.
    """
    size = math.prod(shape)
    indices = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[:size]
    numbers = np.asarray(code, like=packed)[indices]
    return (numbers * np.repeat(absmax, block_size)[:size]).reshape(shape)


# --- Double quantization: the scales of NF4 and FP4 in 8 bits


def dynamic_code() -> np.ndarray:
    """Compute the 256 numbers that 8 bits stand for in double quantization, ascending, float32. [spec 18.5]

    With each of the 7 powers of ten from 10^-6 to 1 come the midpoints of 1, 2, 4, … 64 equal parts of [0.1, 1] as
    factors, with both signs; besides, 0 and 1.

    Source: arXiv 1511.04561; bitsandbytes `create_dynamic_map`, whose numbers differ from one machine to another in the
    last bit, because torch.linspace does.
    """
    magnitudes = []
    for i in range(7):
        bounds = np.linspace(0.1, 1, 2**i + 1)
        magnitudes.append(10.0 ** (i - 6) * (bounds[:-1] + bounds[1:]) / 2)
    found = np.concatenate(magnitudes)
    return np.sort(np.concatenate([-found, [0.0], found, [1.0]])).astype(np.float32)


def quantize_absmax(
    absmax: np.ndarray, block_size: int = ABSMAX_BLOCK_SIZE
) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """Quantize the scales of a matrix to 8 bits, less their mean. [spec 18.6]

    The nearest code is found in a table of 65,536 equal cells, whose every number gets the code nearest to the cell's
    middle. Near the midpoint of two codes the result may be the farther one.

    Args:
        absmax: the scales, float32 (M,).
        block_size: scales that share a scale.

    Returns:
        Indices into `dynamic_code`, uint8 (M,); the largest magnitude of each block, float32 (ceil(M/block_size),); and
        the mean.

    Source: arXiv 2305.14314 section 3; bitsandbytes `quantize_blockwise`, whose mean is torch's: it may be another one
    in the last bits.
    """
    offset = np.float32(absmax.mean(dtype=np.float64))
    numbers = absmax - offset
    starts = np.arange(0, numbers.size, block_size)
    nested_absmax = np.maximum.reduceat(np.abs(numbers), starts)
    with np.errstate(divide="ignore", invalid="ignore"):  # a block of zeros has no inverse, and gets the first code
        scaled = numbers * np.repeat(1 / nested_absmax, block_size)[: numbers.size]
    scaled = np.fmax(np.minimum(scaled, 1), -1)
    cells = np.floor((scaled + 1) * np.float32(32767.5) + np.float32(0.5)).astype(np.int64)
    code = dynamic_code()
    nearest = np.searchsorted((code[:-1] + code[1:]) / 2, np.arange(2**16) / 32767.5 - 1)
    return nearest[cells].astype(np.uint8), nested_absmax, offset


def dequantize_absmax(
    codes: np.ndarray,
    nested_absmax: np.ndarray,
    offset: np.float32,
    code: np.ndarray | None = None,
    block_size: int = ABSMAX_BLOCK_SIZE,
) -> np.ndarray:
    """Return the scales that 8 bits stand for: code times scale, plus the mean, in float32.

    Args:
        codes: see `quantize_absmax`.
        nested_absmax: see `quantize_absmax`.
        offset: see `quantize_absmax`.
        code: the numbers of the 256 codes, float32 (256,), as a file has them; `dynamic_code()` if None.
        block_size: scales that share a scale.

    Returns:
        Scales, float32 (M,).

    Source: bitsandbytes `dequantize_blockwise`.
    """
    code = dynamic_code() if code is None else code
    return code[codes] * np.repeat(nested_absmax, block_size)[: codes.size] + np.float32(offset)


# --- int8: one scale a row


def quantize_int8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round every row of a matrix to multiples of 1/127 of its largest magnitude. [spec 18.7]

    Args:
        weight: (out features, in features) in any floating-point dtype; rounded to float16 first.

    Returns:
        Multiples, int8 (out features, in features), and the largest magnitude of each row, float32 (out features,).

    Source: arXiv 2208.07339 section 2; bitsandbytes `int8_vectorwise_quant`.
    """
    rounded = weight.astype(np.float16).astype(np.float32)
    absmax = np.abs(rounded).max(axis=1)
    inverse = 1 / np.where(absmax == 0, 1, absmax) * np.float32(127)  # a row of zeros stays one
    return np.rint(rounded * inverse[:, None]).astype(np.int8), absmax


def dequantize_int8(codes: np.ndarray, absmax: np.ndarray) -> np.ndarray:
    """Return the numbers that the multiples stand for, in float32.

    Args:
        codes: multiples, int8 (out features, in features).
        absmax: largest magnitude of each row, float32 (out features,).

    Returns:
        float32 (out features, in features).

    Source: bitsandbytes `int8_vectorwise_dequant`.
    """
    return codes.astype(np.float32) * absmax[:, None] * np.float32(1 / 127)


def linear_int8(
    x: np.ndarray,
    codes: np.ndarray,
    absmax: np.ndarray,
    bias: np.ndarray | None = None,
    threshold: float = OUTLIER,
) -> np.ndarray:
    """Map rows linearly by integer products, as LLM.int8 does; backends dequantize the weights instead. [spec 18.8]

    The activations are quantized as well, row by row. Features in which any row has an outlier are left out, and
    multiplied in the precision of the activations.

    Args:
        x: (rows, in features).
        codes: see `quantize_int8`.
        absmax: see `quantize_int8`.
        bias: (out features,), or None.
        threshold: magnitude from which an activation is an outlier; 0 for none.

    Returns:
        (rows, out features) in the dtype of `x`.

    Source: arXiv 2208.07339 section 3; bitsandbytes `MatMul8bitLt`.
    """
    rounded = x.astype(np.float16).astype(np.float32)
    is_outlier = np.abs(rounded) >= threshold if threshold > 0 else np.zeros(x.shape, dtype=bool)
    columns = is_outlier.any(axis=0)
    row_absmax = np.abs(np.where(is_outlier, 0, rounded)).max(axis=1)
    inverse = 1 / np.where(row_absmax == 0, 1, row_absmax) * np.float32(127)
    x_codes = np.rint(np.where(columns, 0, rounded) * inverse[:, None]).astype(np.int64)
    products = (x_codes @ codes.T.astype(np.int64)).astype(np.float32)
    y = products * (row_absmax[:, None] * absmax) * np.float32(6.200124e-05)  # theirs: 1 / 127^2 = 6.2000124e-05
    y = (y if bias is None else y + bias).astype(x.dtype)
    return y + x[:, columns] @ dequantize_int8(codes[:, columns], absmax).astype(x.dtype).T
