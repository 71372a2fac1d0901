"""Every tolerance of the suite, with its reason. Errors are relative: max|a - b| / max|b| of a tensor."""

from typing import Any

import numpy as np

# float64 against transformers in float64: the same formulas with sums in another order. Seen over 1,500 random models:
# at most 1.6e-14.
FLOAT64 = 1e-10

# float32 against float64, small models: a few dozen roundings of 6e-8, amplified by the weights. Seen over
# 3,000 random models: at most 3.0e-6, median 1.6e-7.
FLOAT32 = 1e-5

# One operation in float64 against an oracle that sums in another order.
OPERATION = 1e-13

# Cached against uncached decoding in float64: the same products in matrices of another shape.
CACHED = 1e-12

UNIT_ROUNDOFF_FLOAT32 = 2.0**-24


def relative_error(actual: Any, expected: Any, scale: float | None = None) -> float:
    """Compare two tensors; NaN in one of them alone, or another shape, is an infinite error.

    Args:
        actual: the computed tensor.
        expected: the correct tensor.
        scale: the error is relative to at least this, where the result may be a small difference of large numbers.
    """
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    if not b.size:
        return 0.0
    return float(np.nanmax(np.abs(a - b)) / max(np.nanmax(np.abs(b)), scale or 0, np.finfo(np.float64).tiny))


def assert_close(name: str, actual: Any, expected: Any, tolerance: float, scale: float | None = None) -> None:
    """Fail with the tensor's name, the index of the largest error, the error and the tolerance."""
    error = relative_error(actual, expected, scale)
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


# How far backends may be from the golden functions in float64 on the same numbers, by dtype and operation, relative to
# the largest number among the operands (`agreement.scale_of`), as the result may be a small difference. float64 and
# float32: sums in another order; bfloat16 and float16: also the unit roundoff, 2^-8 and 2^-11, where the result is
# rounded to them. Seen over 150 draws of each: the unit roundoff in half precision, else at most 50 % of the tolerance.
_STREAM = {"float64": 1e-15, "float32": 2e-7, "bfloat16": 2e-7, "float16": 2e-7}
_ROUNDED = {"float64": 1e-14, "float32": 2e-6, "bfloat16": 4e-3, "float16": 5e-4}
# In bfloat16 the probabilities are rounded too, as in fused kernels. Seen over 4,000 draws: 5.4e-3.
_ROUNDED_TWICE = _ROUNDED | {"bfloat16": 8e-3}
_FLOAT32 = {"float64": 1e-14, "float32": 1e-6, "bfloat16": 1e-6, "float16": 1e-6}
_EXACT = {"float64": 0.0, "float32": 0.0, "bfloat16": 0.0, "float16": 0.0}  # nothing is computed, or rounded once
OPERATIONS = {
    "to_float32": _EXACT,
    "embed_tokens": _STREAM,
    "add_positions": _STREAM,
    "layer_norm": _ROUNDED,
    "linear": _ROUNDED,
    "linear_full_precision": _ROUNDED,  # float32 but for bfloat16 on a CPU
    "activation": _ROUNDED,
    "add": _STREAM,
    "attention": _ROUNDED_TWICE,
    "global_local_attention": _ROUNDED_TWICE,
    "log_softmax": _FLOAT32,
    "cross_entropy": _FLOAT32,
    "stable_top_k": _EXACT,
}

# Logits and encoded tokens of whole models, weights of 0.2, up to three layers. Seen over 150 draws: float64 1e-15,
# float32 4e-7, bfloat16 1.3e-2, float16 1.1e-3; on an H100, with a model of width 6, 5.3e-3.
MODEL = {"float64": FLOAT64, "float32": FLOAT32, "bfloat16": 5e-2, "float16": 8e-3}

# Twelve layers of a base model in bfloat16 at 2,048 tokens: seen 4.7e-3 (float16: 5e-4).
HALF_PRECISION = 5e-3

# Conformance vectors computed again, relative to the largest number of a tensor: products may be summed in another
# order. Seen on the machine that wrote them: 0. Angles of positions are known to 2^-53 of themselves, and the long
# vector's features were chosen so that the largest angle that is rounded stays below 200.
VECTORS = 1e-13
# Their tolerances, which have three digits.
VECTOR_TOLERANCES = 1.02
