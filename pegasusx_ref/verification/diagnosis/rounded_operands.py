"""Known bugs of precision: weights or activations that are rounded before a product. [spec 16]"""

from collections.abc import Callable
from functools import partial

import numpy as np

from pegasusx_ref.backend.arrays import numpy_dtype

Rounding = Callable[[np.ndarray], np.ndarray]


@np.errstate(over="ignore")
def to_dtype(dtype: str, x: np.ndarray) -> np.ndarray:
    """Round to a dtype and back."""
    rounded: np.ndarray = x.astype(np.float32).astype(numpy_dtype(dtype)).astype(np.float64)
    return rounded


def to_scaled_float8(x: np.ndarray) -> np.ndarray:
    """Round to float8_e4m3fn after division by a scale with which the largest magnitude is 448."""
    scale = np.abs(x).max() / 448 or 1.0
    return to_dtype("float8_e4m3fn", x / scale) * scale


@np.errstate(over="ignore")
def to_tf32(x: np.ndarray, half: int = 0x1000) -> np.ndarray:
    """Keep 10 bits after the leading one, rounded to nearest, or truncated with half = 0."""
    bits = x.astype(np.float32).view(np.uint32)
    kept: np.ndarray = ((bits + np.uint32(half)) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return kept


@np.errstate(over="ignore")
def to_bfloat16_by_truncation(x: np.ndarray) -> np.ndarray:
    """Cut off the lower 16 bits of float32."""
    kept: np.ndarray = (
        (x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    )
    return kept


def to_integers(largest: int, size: int | None, x: np.ndarray) -> np.ndarray:
    """Round to multiples of a scale, with which the largest magnitude of a group is the largest integer.

    Args:
        largest: integer: 127 in 8 bits.
        size: of a group in a row; -1 is the whole row, None the whole tensor.
        x: (..., n).
    """
    groups = x if size is None else x.reshape(*x.shape[:-1], -1, x.shape[-1] if size == -1 else size)
    scale = np.abs(groups).max(axis=None if size is None else -1, keepdims=True) / largest
    scale = np.where(scale == 0, 1.0, scale)
    return (np.rint(groups / scale) * scale).reshape(x.shape)


COMMON: dict[str, Rounding] = {
    "float32": partial(to_dtype, "float32"),
    "float16": partial(to_dtype, "float16"),
    "bfloat16": partial(to_dtype, "bfloat16"),
    "tf32": to_tf32,
    "tf32, by truncation": partial(to_tf32, half=0),
    "float8_e4m3": partial(to_dtype, "float8_e4m3fn"),
    "float8_e5m2": partial(to_dtype, "float8_e5m2"),
    "float8_e4m3 with a scale": to_scaled_float8,
    "int8 with a scale for each row": partial(to_integers, 127, -1),
    "int8 with one scale": partial(to_integers, 127, None),
}


def weight_roundings(width: int) -> dict[str, Rounding]:
    """List ways to round a matrix with rows of a width."""
    of_groups = {
        f"int{bits} with a scale for each {size} numbers": partial(to_integers, 2 ** (bits - 1) - 1, size)
        for bits in (8, 4)
        for size in (32, 64, 128)
        if size < width and width % size == 0
    }
    return COMMON | of_groups | {"int4 with a scale for each row": partial(to_integers, 7, -1)}
