"""What an implementation computes in, and how far rounding may take one operation from the exact result.

For each operation there is a variance, of a rounding error that is random, and a bound that no correct implementation
exceeds, however it orders its sums. Both are for the operation's own inputs, which count as exact.
"""

import math
from typing import NamedTuple

import numpy as np

from pegasusx_ref.golden.feed_forward import ACTIVATIONS


class Arithmetic(NamedTuple):
    """Unit roundoffs of an implementation. [spec 13.1]

    Attributes:
        name: as users name it.
        operand: of the operands of a product, where they are rounded inside the operation; 0 where they are not.
        sum: of sums and of everything that is kept inside an operation.
        result: of what an operation returns.
        tiny: below this numbers lose digits, or become 0.
    """

    name: str
    operand: float
    sum: float
    result: float
    tiny: float


ARITHMETICS = {
    a.name: a
    for a in (
        Arithmetic("float64", 0.0, 2.0**-53, 2.0**-53, 2.0**-1022),
        Arithmetic("float32", 0.0, 2.0**-24, 2.0**-24, 2.0**-126),
        Arithmetic("tf32", 2.0**-11, 2.0**-24, 2.0**-24, 2.0**-126),
        Arithmetic("bfloat16", 0.0, 2.0**-24, 2.0**-8, 2.0**-126),
        Arithmetic("float16", 0.0, 2.0**-24, 2.0**-11, 2.0**-24),
    )
}
THIRD = 1 / 3  # a rounding error is about even between -u and u


class Errors(NamedTuple):
    """Of every element of a result: the variance of its rounding error, and what the error cannot exceed."""

    variance: np.ndarray
    bound: np.ndarray

    def and_(self, other: "Errors") -> "Errors":
        """Add errors that are independent."""
        return Errors(self.variance + other.variance, self.bound + other.bound)


def rounding(a: Arithmetic, result: np.ndarray, times: int = 1) -> Errors:
    """Round a result, so many times.

    Args:
        a: the arithmetic.
        result: the exact result.
        times: 1 for a sum of two; more where factors are rounded too.
    """
    size = np.abs(result)
    return Errors(times * THIRD * (a.result * size) ** 2 + a.tiny**2, times * a.result * size + a.tiny)


def product_errors(
    a: Arithmetic, x: np.ndarray, y: np.ndarray, result: np.ndarray, rounded_operands: int = 0, sums: int = 1
) -> Errors:
    """Sum products, x @ y. [spec 13.2]

    Args:
        a: the arithmetic.
        x: (..., m, n), exact.
        y: (..., n, p), exact.
        result: x @ y (..., m, p).
        rounded_operands: how many of the operands are rounded to the result's precision before: a scaled one.
        sums: how often the result is rounded: twice where something is added to it.
    """
    n = x.shape[-1]
    squares = (x * x) @ (y * y)
    sizes = np.abs(x) @ np.abs(y)
    operands = 2 * a.operand**2 + rounded_operands * a.result**2
    sum_variance = a.sum**2 * ((1 + n / 2) * squares + (n / 3) * result**2)
    own = rounding(a, result, sums)
    variance = THIRD * (operands * squares + sum_variance) + own.variance
    bound = (n * a.sum + 2 * a.operand + rounded_operands * a.result) * sizes + own.bound
    return Errors(variance, bound)


def softmax_errors(a: Arithmetic, scores: np.ndarray, probs: np.ndarray) -> Errors:
    """Turn scores into weights. [spec 13.3]

    Args:
        a: the arithmetic.
        scores: (..., n), exact; the lowest finite number, or -inf, where a key is masked.
        probs: their softmax (..., n).
    """
    n = scores.shape[-1]
    depth = np.where(probs > 0, scores.max(axis=-1, keepdims=True) - scores, 0.0)
    variance = probs**2 * THIRD * (a.sum**2 * (depth**2 + n / 3 + 8) + a.result**2) + a.tiny**2
    return Errors(variance, probs * (a.sum * (depth + n + 4) + a.result) + a.tiny)


def layer_norm_errors(
    a: Arithmetic, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, result: np.ndarray
) -> Errors:
    """Normalize rows. [spec 13.4]

    Args:
        a: the arithmetic.
        x: (..., n), exact.
        weight: (n,).
        bias: (n,).
        eps: added to the variance.
        result: the normalized rows (..., n).
    """
    n = x.shape[-1]
    mean = x.mean(axis=-1, keepdims=True)
    centered = x - mean
    power = (x * x).mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps)
    scaled = np.abs(weight) * inverse
    size = np.abs(weight * centered) * inverse
    largest = np.maximum(np.abs(mean), np.abs(centered))
    own = rounding(a, result)
    mean_variance = THIRD * (power / 2 + (n / 3) * mean**2 + largest**2)
    variance = a.sum**2 * (scaled**2 * mean_variance + size**2 * (n / 36 + 1)) + own.variance
    of_mean = n * np.abs(x).mean(axis=-1, keepdims=True) + np.abs(x) + np.abs(mean)
    of_spread = (n + 4) * (power + mean**2) * inverse**2 / 2 + 4
    bound = a.sum * (scaled * of_mean + size * of_spread + size + np.abs(result) + np.abs(bias)) + own.bound
    return Errors(variance, bound)


def activation_errors(a: Arithmetic, name: str, x: np.ndarray, result: np.ndarray) -> Errors:
    """Apply an activation, which may be composed of operations that each round their result. [spec 13.5]

    Each of the curved ones is x times a factor between 0 and 1, which is the sum of 1 and a number near -1 where x is
    far below 0: there its error is absolute. The slope carries on the error of the argument. transformers composes
    "gelu_new" that way, in bfloat16 too.

    Args:
        a: the arithmetic.
        name: a key of `ACTIVATIONS`.
        x: exact.
        result: the activation of x.
    """
    own = rounding(a, result)
    if name == "relu":
        return Errors(np.full_like(result, a.tiny**2), np.full_like(result, a.tiny))
    step = 1e-4
    slope = np.abs(ACTIVATIONS[name](x + step) - ACTIVATIONS[name](x - step)) / (2 * step)
    inside = a.result * (3 * np.abs(x) * (1 + slope) + 2 * np.abs(result))
    return Errors(THIRD * inside**2 + own.variance, 2 * inside + own.bound)


def position_errors(a: Arithmetic, positions: np.ndarray, result: np.ndarray, last: int) -> Errors:
    """Add positions that are computed exactly and rounded once.

    The exact ones are themselves float64: the angle of a late position is known to 2^-53 of it.

    Args:
        a: the arithmetic.
        positions: the encodings (T, D).
        result: tokens with positions (..., T, D).
        last: the greatest position.
    """
    known = 4 * 2.0**-53 * (last + 1)
    own = rounding(a, result)
    size = a.result * np.abs(positions) + known
    return Errors(THIRD * size**2 + own.variance, size + own.bound)


def is_power_of_two(number: float) -> bool:
    """Tell whether multiplying with a number rounds nothing."""
    return math.frexp(number)[0] == 0.5
