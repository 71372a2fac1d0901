"""Rounding errors of each operation in an implementation's arithmetic: expected size and upper bound.

Each operation has a variance, which treats rounding errors as random, and a bound that no correct implementation
exceeds, in whatever order it sums. Both count the operation's inputs as exact.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pegasusx_ref.golden.feed_forward import ACTIVATIONS
from pegasusx_ref.verification.checking.arithmetics import Arithmetic

INHERITED_BOUND = 20  # standard deviations: a row may be off by a factor of 6, and one element of it by 3 of its own
TILE = 512  # a square of as many rows and columns fits into the cache
TINY = 1e-150  # its square is not 0
THIRD = 1 / 3  # the variance of a rounding error that is uniform between -u and u is u^2 / 3


class Errors(NamedTuple):
    """Variance and upper bound of the rounding error of each element of a result."""

    variance: np.ndarray
    bound: np.ndarray

    def plus(self, other: "Errors") -> "Errors":
        """Add independent errors."""
        return Errors(self.variance + other.variance, self.bound + other.bound)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Errors":
        """Apply a function that rearranges or selects elements."""
        return Errors(function(self.variance), function(self.bound))

    def inheriting(self, variance: np.ndarray, bound: np.ndarray | float = np.inf) -> "Errors":
        """Add errors of the inputs.

        Args:
            variance: what the result inherits; one element may inherit less than most of its row by chance.
            bound: of what the result inherits, where it is known.
        """
        reach = np.minimum(bound, INHERITED_BOUND * np.sqrt(variance + variance.mean(axis=-1, keepdims=True)))
        return Errors(self.variance + variance, self.bound + reach)


def rounding_errors(a: Arithmetic, result: np.ndarray, times: int = 1) -> Errors:
    """Compute the errors of rounding a result.

    Args:
        a: the arithmetic.
        result: the exact result.
        times: the number of roundings: 1 for a sum of two numbers; more where factors are rounded too.
    """
    size = np.abs(result)
    return Errors(times * THIRD * (a.result * size) ** 2 + a.tiny**2, times * a.result * size + a.tiny)


def parameter_errors(a: Arithmetic, *terms: np.ndarray) -> Errors:
    """Compute the errors of rounding parameters, each of which is a factor of one term of a result."""
    sizes = [a.parameters * np.abs(term) for term in terms]
    return Errors(sum(THIRD * size**2 for size in sizes), sum(sizes))


def product_errors(
    a: Arithmetic,
    x: np.ndarray,
    y: np.ndarray,
    result: np.ndarray,
    rounded_operands: int = 0,
    roundings: int = 1,
    bias: np.ndarray | None = None,
) -> Errors:
    """Compute the errors of a matrix product x @ y, or x @ y + bias. [spec 13.2]

    Args:
        a: the arithmetic.
        x: (..., m, n), exact.
        y: (..., n, p), exact.
        result: the exact result (..., m, p).
        rounded_operands: the number of operands that are first rounded to the result's precision, such as a scaled one.
        roundings: the number of roundings of the result: 2 where something is added to it.
        bias: (p,); it may be the first term of the sum, or be added to the rounded sum of the other terms.
    """
    n = x.shape[-1] + (bias is not None)
    operands = 2 * a.operand**2 + rounded_operands * a.result**2
    of_squares, of_sizes = operands + a.sum**2 * (1 + n / 2), n * a.sum + 2 * a.operand + rounded_operands * a.result
    of_result = a.sum**2 * (n / 3) + roundings * a.result**2
    variance, bound = np.empty(result.shape), np.empty(result.shape)
    for index in np.ndindex(y.shape[:-2]):  # one matrix y, or one for each head
        rows_of = [array[index].reshape(-1, array.shape[-1]) for array in (x, result, variance, bound)]
        for tile, sizes, squares in product_sizes(rows_of[0], y[index]):
            size = np.abs(rows_of[1][tile])
            if bias is not None:
                sizes, squares = sizes + np.abs(bias[tile[1]]), squares + bias[tile[1]] ** 2
            rows_of[3][tile] = of_sizes * sizes + (roundings * a.result) * size + a.tiny
            rows_of[2][tile] = THIRD * (of_squares * squares + of_result * np.square(size)) + a.tiny**2
    found = Errors(variance, bound)
    return found if bias is None else found.plus(rounding_errors(a, result - bias))


def product_sizes(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[tuple[slice, slice], np.ndarray, np.ndarray]]:
    """Yield |x| @ |y| and x^2 @ y^2 by tiles that fit into the cache, in float32: an error's size needs no more digits.

    Args:
        x: (m, n).
        y: (n, p).

    Returns:
        An iterator over the places of tiles and the tiles of both products.
    """
    # Divided by their largest numbers, rows and columns neither overflow nor underflow.
    (rows, x), step = scaled(x, -1), max(TILE // 4, TILE**2 // max(len(x), 1))
    x_squared = np.square(x)
    for left in range(0, y.shape[1], step):
        columns, part = scaled(y[:, left : left + step], -2)
        part_squared = np.square(part)
        for top in range(0, len(x), TILE):
            tile = slice(top, top + TILE), slice(left, left + step)
            scale = rows[tile[0]] * columns
            yield tile, (x[tile[0]] @ part) * scale, (x_squared[tile[0]] @ part_squared) * np.square(scale)


def scaled(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest absolute value along an axis, and all absolute values divided by it, in float32."""
    largest = np.maximum(x.max(axis=axis, keepdims=True), -x.min(axis=axis, keepdims=True))
    np.maximum(largest, TINY, out=largest)
    divided = np.empty(x.shape, dtype=np.float32)
    np.divide(x, largest, out=divided, dtype=np.float64, casting="same_kind")
    return largest, np.abs(divided, out=divided)


def softmax_errors(a: Arithmetic, scores: np.ndarray, probs: np.ndarray) -> Errors:
    """Compute the errors of a softmax. [spec 13.3]

    Args:
        a: the arithmetic.
        scores: (..., n), exact; the lowest finite number, or -inf, where a key is masked.
        probs: their softmax (..., n).
    """
    n = scores.shape[-1]
    depth = depths(scores, probs)
    relative = exponential_variance(a, depth) + THIRD * (a.softmax**2 * n / 3 + a.result**2)
    variance = probs**2 * relative + a.tiny**2
    return Errors(variance, probs * (a.softmax * (depth + n + 4) + a.result) + a.tiny)


def exponential_variance(a: Arithmetic, depth: np.ndarray) -> np.ndarray:
    """Return the variance of the relative error of each exponential of a softmax."""
    variance: np.ndarray = THIRD * a.softmax**2 * (depth**2 + 8)
    return variance


def depths(scores: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Return how far each score is below the largest of its row; 0 where the probability is 0."""
    depth: np.ndarray = np.where(probs > 0, scores.max(axis=-1, keepdims=True) - scores, 0.0)
    return depth


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
    of_result = rounding_errors(a, result).plus(parameter_errors(a, weight * centered * inverse, bias))
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
