"""The quantized vector: matrices before and after quantization, and the bits between in the layout of bitsandbytes.

Its numbers reach the edges: blocks of zeros and of subnormal and huge numbers, midpoints of codes and their neighbours.
"""

import numpy as np

from pegasusx_ref.backend.quantized import QuantizedMatrix
from pegasusx_ref.checkpoint.bitsandbytes import stored
from pegasusx_ref.golden import quantization as golden
from pegasusx_ref.verification.vectors.deterministic_values import draw

QUANTIZED = "quantized"  # its folder
QUANTIZED_ABOUT = "matrices in 4 and 8 bits as bitsandbytes stores them, before and after"
QUANTIZED_FILES = ("original.safetensors", "packed.safetensors", "expected.safetensors")
# Matrices by name: kind and block size. Double quantization has 259 blocks, so that its scales have two themselves.
MATRICES = {"nf4": ("nf4", 64), "fp4": ("fp4", 64), "nf4-double": ("nf4-double", 32), "int8": ("int8", 64)}


def make_quantized() -> dict[str, dict[str, np.ndarray]]:
    """Build the tensors of each file, by name."""
    original = {"nf4.weight": edges(golden.NF4_CODE, "nf4"), "fp4.weight": edges(golden.FP4_CODE, "fp4")}
    original |= {"nf4-double.weight": normal("nf4-double", (91, 91)), "int8.weight": int8_edges()}
    x = normal("int8.input", (3, 19))
    x[:, 7] = 0
    x[1, 4], x[2, 4], x[2, 7] = -7.5, 0, 6  # two outlier features, one a row: no sum depends on its order
    matrices = {name: QuantizedMatrix.quantize(original[f"{name}.weight"], *how) for name, how in MATRICES.items()}
    packed: dict[str, np.ndarray] = {}
    for name, matrix in matrices.items():
        tensors = stored("fc1.weight", matrix, "float32")  # the layout of a linear layer
        packed |= {name + end.removeprefix("fc1"): tensor for end, tensor in tensors.items()}
    expected = {f"{name}.weight": matrix.dequantized() for name, matrix in matrices.items()}
    expected["int8.output"] = golden.linear_int8(x, matrices["int8"].codes, matrices["int8"].absmax)
    return dict(zip(QUANTIZED_FILES, (original | {"int8.input": x}, packed, expected), strict=True))


def normal(label: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw sums of four signed bytes, divided by 128: nearly normal, and exact in float16."""
    signed = np.frombuffer(draw(f"{QUANTIZED}/{label}", 4 * int(np.prod(shape))), dtype=np.int8)
    numbers: np.ndarray = signed.reshape(4, *shape).sum(axis=0) / 128
    return numbers.astype(np.float32)


def around_codes(code: np.ndarray, absmax: float, size: int) -> np.ndarray:
    """Return a block with the multiples of every code and midpoint, and the midpoints' neighbours in float32."""
    ordered, scale = np.sort(code), np.float32(absmax)
    midpoints = (ordered[:-1] + ordered[1:]) / 2 * scale
    beside = [np.nextafter(midpoints, np.float32(way)) for way in (-4, 4)]
    return np.resize(np.concatenate([[scale], midpoints, *beside, ordered * scale]), size)


def edges(code: np.ndarray, label: str) -> np.ndarray:
    """Return float32 (7, 73) in seven blocks of 64 numbers and one of 63."""
    drawn = normal(label, (4, 64))
    zeros = np.where(np.arange(64) % 2, np.float32(-0.0), np.float32(0))
    whole = [drawn[0], zeros, drawn[1] * 2.0**-128, around_codes(code, 1, 64), around_codes(code, 3.7, 64)]
    blocks = [*whole, drawn[2] * 2.0**125, drawn[3], around_codes(code, 3.7, 63)]
    return np.concatenate(blocks).astype(np.float32).reshape(7, 73)


def int8_edges() -> np.ndarray:
    """Return float32 (6, 19): a row of zeros, one of subnormal numbers of float16, and halves of a multiple."""
    rows = normal("int8", (6, 19))
    rows[1] = 0
    rows[2] *= 2.0**-17
    rows[3] = np.append(np.arange(18) + 0.5, 127)
    rows[4] /= 3  # rounded to float16 first
    rows[5] = rows[5] * np.float32(2.0**13)
    return rows
