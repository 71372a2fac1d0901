"""Every tolerance of the suite, with its reason. Errors are relative: max|a - b| / max|b| of a tensor."""

from typing import Any

import numpy as np

# float64 against transformers in float64: the same formulas with sums in another order. Seen over 1,500 drawn models:
# at most 1.6e-14.
FLOAT64 = 1e-10

# float32 against float64, small models: a few dozen roundings of 6e-8, amplified by the weights. Seen over
# 3,000 drawn models: at most 3.0e-6, half of them below 1.6e-7.
FLOAT32 = 1e-5

# One operation in float64 against an oracle that sums in another order.
OPERATION = 1e-13

# Cached against uncached decoding in float64: the same products in matrices of another shape.
CACHED = 1e-12

UNIT_ROUNDOFF_FLOAT32 = 2.0**-24


def relative_error(actual: Any, expected: Any) -> float:
    """Compare two tensors; NaN in one of them alone, or another shape, is an infinite error."""
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    if not b.size:
        return 0.0
    return float(np.nanmax(np.abs(a - b)) / max(np.nanmax(np.abs(b)), np.finfo(np.float64).tiny))


def assert_close(name: str, actual: Any, expected: Any, tolerance: float) -> None:
    """Fail with the tensor's name, where the error is, how large, and what was allowed."""
    error = relative_error(actual, expected)
    if error <= tolerance:
        return
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if a.shape != b.shape:
        raise AssertionError(f"{name}: shape {a.shape}, expected {b.shape}")
    difference = np.where(np.isnan(a) | np.isnan(b), np.inf, np.abs(a - b))
    index = tuple(int(i) for i in np.unravel_index(np.argmax(difference), a.shape))
    raise AssertionError(
        f"{name}{list(index)}: {float(a[index])!r}, expected {float(b[index])!r}; "
        f"relative error {error:.2e} > {tolerance:.0e}"
    )
