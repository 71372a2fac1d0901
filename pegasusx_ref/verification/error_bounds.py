"""Rounding errors of each operation in an implementation's arithmetic: expected size and upper bound.

Each operation has a variance, which treats rounding errors as random, and a bound that no correct implementation
exceeds, in whatever order it sums. Both count the operation's inputs as exact.
"""

import math
from typing import NamedTuple

import numpy as np

from pegasusx_ref.golden.feed_forward import ACTIVATIONS


class Arithmetic(NamedTuple):
    """Unit roundoffs of an implementation. [spec 13.1]

    Attributes:
        name: "float64", "float32", "tf32", "bfloat16" or "float16".
        operand: of the operands of a product, where they are rounded inside the operation; otherwise 0.
        sum: of sums and of everything else that stays inside an operation.
        result: of what an operation returns.
        tiny: the smallest normal number, or the smallest number of any kind in float16; smaller ones lose digits or
            become 0.
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
THIRD = 1 / 3  # the variance of a rounding error that is uniform between -u and u is u^2 / 3


class Errors(NamedTuple):
    """Variance and upper bound of the rounding error of each element of a result."""

    variance: np.ndarray
    bound: np.ndarray

    def plus(self, other: "Errors") -> "Errors":
        """Add independent errors."""
        return Errors(self.variance + other.variance, self.bound + other.bound)


def rounding_errors(a: Arithmetic, result: np.ndarray, times: int = 1) -> Errors:
    """Compute the errors of rounding a result.

    Args:
        a: the arithmetic.
        result: the exact result.
        times: the number of roundings: 1 for a sum of two numbers; more where factors are rounded too.
    """
    size = np.abs(result)
    return Errors(times * THIRD * (a.result * size) ** 2 + a.tiny**2, times * a.result * size + a.tiny)


def product_errors(
    a: Arithmetic, x: np.ndarray, y: np.ndarray, result: np.ndarray, rounded_operands: int = 0, roundings: int = 1
) -> Errors:
    """Compute the errors of a matrix product x @ y. [spec 13.2]

    Args:
        a: the arithmetic.
        x: (..., m, n), exact.
        y: (..., n, p), exact.
        result: x @ y (..., m, p).
        rounded_operands: the number of operands that are first rounded to the result's precision, such as a scaled one.
        roundings: the number of roundings of the result: 2 where something is added to it.
    """
    n = x.shape[-1]
    squares = (x * x) @ (y * y)
    sizes = np.abs(x) @ np.abs(y)
    operands = 2 * a.operand**2 + rounded_operands * a.result**2
    sum_variance = a.sum**2 * ((1 + n / 2) * squares + (n / 3) * result**2)
    of_result = rounding_errors(a, result, roundings)
    variance = THIRD * (operands * squares + sum_variance) + of_result.variance
    bound = (n * a.sum + 2 * a.operand + rounded_operands * a.result) * sizes + of_result.bound
    return Errors(variance, bound)


def softmax_errors(a: Arithmetic, scores: np.ndarray, probs: np.ndarray) -> Errors:
    """Compute the errors of a softmax. [spec 13.3]

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
    """Compute the errors of a LayerNorm. [spec 13.4]

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
    of_result = rounding_errors(a, result)
    mean_variance = THIRD * (power / 2 + (n / 3) * mean**2 + largest**2)
    variance = a.sum**2 * (scaled**2 * mean_variance + size**2 * (n / 36 + 1)) + of_result.variance
    mean_bound = n * np.abs(x).mean(axis=-1, keepdims=True) + np.abs(x) + np.abs(mean)
    spread_bound = (n + 4) * (power + mean**2) * inverse**2 / 2 + 4
    bound = a.sum * (scaled * mean_bound + size * spread_bound + size + np.abs(result) + np.abs(bias)) + of_result.bound
    return Errors(variance, bound)


def activation_errors(a: Arithmetic, name: str, x: np.ndarray, result: np.ndarray) -> Errors:
    """Compute the errors of an activation. [spec 13.5]

    An implementation may compute it in several operations, each of which rounds.
    Each activation but relu is x times a factor between 0 and 1. Far below 0 the factor is the sum of 1 and a number
    near -1, so the error is absolute there. The slope passes on the error of the argument. transformers composes
    "gelu_new" of single operations, in bfloat16 too.

    Args:
        a: the arithmetic.
        name: a key of `ACTIVATIONS`.
        x: exact.
        result: the activation of x.
    """
    of_result = rounding_errors(a, result)
    if name == "relu":
        return Errors(np.full_like(result, a.tiny**2), np.full_like(result, a.tiny))
    step = 1e-4
    slope = np.abs(ACTIVATIONS[name](x + step) - ACTIVATIONS[name](x - step)) / (2 * step)
    inside = a.result * (3 * np.abs(x) * (1 + slope) + 2 * np.abs(result))
    return Errors(THIRD * inside**2 + of_result.variance, 2 * inside + of_result.bound)


def position_errors(a: Arithmetic, positions: np.ndarray, result: np.ndarray, last: int) -> Errors:
    """Compute the errors of adding positions that are computed exactly and rounded once.

    The exact positions are themselves float64: the angle of a late position is known to a relative 2^-53.

    Args:
        a: the arithmetic.
        positions: the encodings (T, D).
        result: tokens with positions (..., T, D).
        last: the greatest position.
    """
    angle_error = 4 * 2.0**-53 * (last + 1)
    of_result = rounding_errors(a, result)
    size = a.result * np.abs(positions) + angle_error
    return Errors(THIRD * size**2 + of_result.variance, size + of_result.bound)


def is_power_of_two(number: float) -> bool:
    """Return whether multiplication by a number is exact."""
    return math.frexp(number)[0] == 0.5
