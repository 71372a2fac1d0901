"""Rounding errors of sums, over features and over tokens. [spec 16]"""

from typing import Any

import numpy as np

from pegasusx_ref.verification.checking.arithmetics import Arithmetic
from pegasusx_ref.verification.checking.error_bounds import THIRD

PARTS = 8  # of a sum over tokens, at whose ends partial sums are taken


def sum_variance(
    a: Arithmetic, count: Any, squares: np.ndarray, total: np.ndarray, is_product: bool = False
) -> np.ndarray:
    """Return the variance of a sum's own errors, in whatever order it is computed; see `product_errors`.

    Args:
        a: the arithmetic.
        count: the number of terms.
        squares: the sum of their squares.
        total: their sum.
        is_product: whether the terms are products, whose operands may be rounded.
    """
    of_squares = a.sum**2 * (1 + count / 2) + (2 * a.operand**2 if is_product else 0.0)
    of_total = (a.sum**2 * count / 3 + a.result**2) * np.square(total)
    variance: np.ndarray = THIRD * (of_squares * squares + of_total) + (1 + count) * a.tiny**2
    return variance


def token_sum_variance(
    a: Arithmetic, count: Any, squares: np.ndarray, total: np.ndarray, drift: np.ndarray, lost: np.ndarray
) -> np.ndarray:
    """Return the variance of a sum over tokens that is rounded like a result after every addend.

    In half precision, torch adds up the gradients of a LayerNorm's scale and shift and of a table in this way.

    Args:
        a: the arithmetic.
        count: the number of terms.
        squares: the sum of their squares.
        total: their sum.
        drift: the mean square of partial sums.
        lost: the sum of the sizes of those terms that are below `reach`: rounding may remove each of them.
    """
    a = a._replace(sum=a.result)
    of_partial_sums = drift_variance(a, count, drift) + THIRD * np.square(lost)
    variance: np.ndarray = sum_variance(a, count, squares, total) + of_partial_sums
    return variance


def drift_variance(a: Arithmetic, count: Any, drift: np.ndarray) -> np.ndarray:
    """Return the variance of the errors of partial sums that are larger than those of random terms.

    Gradients of the tokens of one text are alike, and those of texts may cancel.

    Args:
        a: the arithmetic.
        count: the number of terms.
        drift: the mean square of partial sums.
    """
    variance: np.ndarray = THIRD * a.sum**2 * count * drift
    return variance


def product_drift(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the mean square of some partial sums of a product x @ y.

    Args:
        x: (m, n).
        y: (n, p).
    """
    partial, drift = np.zeros((len(x), y.shape[1])), np.zeros((len(x), y.shape[1]))
    for part in np.array_split(np.arange(x.shape[1]), PARTS):
        partial += x[:, part] @ y[part]
        drift += np.square(partial) / PARTS
    return drift


def reach(a: Arithmetic, squares: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the size below which a term gets lost in a partial sum."""
    limit: np.ndarray = a.result * np.sqrt(squares + np.square(total))
    return limit
