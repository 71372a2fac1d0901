"""Rounding tensors to another dtype: to nearest even, and never to infinity."""

from typing import Any

import ml_dtypes
import numpy as np

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.backend.registry import dtype_name
from pegasusx_ref.errors import InputError, shown

DTYPES = ("float32", "bfloat16", "float16", "float64")


def checked_dtype(dtype: Any) -> str | None:
    """Return the name of a dtype of weights; None for None.

    Raises:
        InputError: another dtype.
        BackendError: no dtype.
    """
    name = None if dtype is None else dtype_name(dtype)
    if name not in (None, *DTYPES):
        raise InputError(f"dtype={shown(dtype)} is no dtype of weights: choose one of {', '.join(DTYPES)}")
    return name


def cast(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """Round every number of a tensor to the nearest one of a dtype, of two the even one.

    Args:
        name: of the tensor.
        tensor: in any dtype of weights; returned as it is if it has the dtype.
        dtype: see `DTYPES`.

    Raises:
        InputError: a finite number becomes infinite.
    """
    target = numpy_dtype(dtype)
    if tensor.dtype == target:
        return tensor
    with np.errstate(all="ignore"):
        is_rounded_twice = tensor.dtype.name == "float64" and dtype == "bfloat16"
        rounded: np.ndarray = (_round_to_odd(tensor) if is_rounded_twice else tensor).astype(target)
        is_lost = np.isinf(rounded) & np.isfinite(tensor)
    if is_lost.any():
        found = float(tensor[is_lost][0])
        wider = next(name for name in ("bfloat16", "float32", "float64") if abs(found) <= _largest(name))
        raise InputError(
            f"tensor {shown(name)} has the number {found:g}, but {dtype} ends at {_largest(dtype):g}: choose {wider}"
        )
    return rounded


def _largest(dtype: str) -> float:
    return float(ml_dtypes.finfo(numpy_dtype(dtype)).max)  # type: ignore[no-untyped-call]


def _round_to_odd(tensor: np.ndarray) -> np.ndarray:
    """Round float64 to float32 so that rounding the result again is rounding once.

    ml_dtypes goes from float64 to bfloat16 through float32, and rounds twice.

    Source: Boldo & Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to
    odd".
    """
    nearest = tensor.astype(np.float32)
    bits = nearest.view(np.uint32)
    bits -= np.abs(nearest) > np.abs(tensor)  # towards zero
    bits |= nearest != tensor
    return nearest
