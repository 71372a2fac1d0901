"""The comparison of rows with what is expected, a few rows at a time, in arrays that fit into the cache. [spec 16]"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pegasusx_ref.verification.checking.error_bounds import Errors
from pegasusx_ref.verification.checking.operations import LOWEST
from pegasusx_ref.verification.verdicts import FAIL

ELEMENT_FAIL = 10.0  # the ratio of one element's error to its expected error that fails it in a row that passes
HUGE = 1e150  # the error of a score that is masked on one side only: its square is finite
CHUNK = 2**17  # elements


class Comparison(NamedTuple):
    """Rows compared with what is expected.

    Attributes:
        rho: the ratio of each row's error to its expected rounding error (n,).
        is_wrong: whether each row, or one of its elements, exceeds the tolerance (n,).
        worst: row and column of the element with the largest ratio of error to expected error.
        largest_error: the largest error of an element.
        relative_variance: the expected error's mean square, divided by that of the expected values; 0 if they are 0.
    """

    rho: np.ndarray
    is_wrong: np.ndarray
    worst: tuple[int, int]
    largest_error: float
    relative_variance: float


@np.errstate(over="ignore")
def compare_rows(found: np.ndarray, expected: np.ndarray, errors: Errors, is_direct: bool = True) -> Comparison:
    """Compare rows (n, D); elements whose expected value is not finite do not count.

    Args:
        found: the candidate's values, finite where an expected value is.
        expected: what follows from its earlier tensors.
        errors: what rounding may leave.
        is_direct: whether the errors are those of one operation; if not, elements are compared with the bound alone.
    """
    n, D = found.shape
    rho, is_wrong = np.empty(n), np.empty(n, dtype=bool)
    largest, column = np.empty(n), np.empty(n, dtype=int)
    sum_of_variances = sum_of_squares = largest_error = 0.0
    for rows in row_chunks(n, D):
        value, part, limit = expected[rows], errors.variance[rows], errors.bound[rows]
        error = found[rows] - value
        if not (counts := np.isfinite(value)).all():
            error, value, part, limit = (np.where(counts, x, 0.0) for x in (error, value, part, limit))
        np.minimum(np.abs(error, out=error), HUGE, out=error)
        largest_error = max(largest_error, float(error.max(initial=0.0)))
        squares = error * error
        # An element may be the sum of terms larger than itself; the rest of its row shows their size.
        by_element = ratio(squares, part + part.mean(axis=1, keepdims=True))
        column[rows] = by_element.argmax(axis=1)
        largest[rows] = np.take_along_axis(by_element, column[rows, None], axis=1)[:, 0]
        rho[rows] = np.sqrt(ratio(squares.sum(axis=1), part.sum(axis=1)))
        is_wrong[rows] = (
            (rho[rows] > FAIL) | (is_direct & (largest[rows] > ELEMENT_FAIL**2)) | (error > limit).any(axis=1)
        )
        sum_of_variances += float(part.sum())
        sum_of_squares += float((value * value).sum())  # inf where masked scores are among them
    worst = int(largest.argmax())
    relative = sum_of_variances / sum_of_squares if sum_of_squares else 0.0
    return Comparison(rho, is_wrong, (worst, int(column[worst])), largest_error, relative)


def end_to_end(found: np.ndarray, clean: np.ndarray) -> float:
    """Compute max |found - clean| / max |clean| over finite numbers and keys that are not masked; rows (n, D)."""
    error = size = 0.0
    for rows in row_chunks(*found.shape):
        right = clean[rows]
        counts = np.isfinite(found[rows]) & np.isfinite(right) & (right != LOWEST)
        error = max(error, float(np.abs(found[rows] - right).max(where=counts, initial=0.0)))
        size = max(size, float(np.abs(right).max(where=counts, initial=0.0)))
    return float(ratio(np.array(error), np.array(size)))


def take_rows(array: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the rows of an array that count, as a matrix."""
    return array.reshape(-1, array.shape[-1]) if valid.all() else array[valid]


def row_chunks(n: int, D: int) -> Iterator[slice]:
    """Yield slices of n rows of D elements."""
    step = max(1, CHUNK // D)
    return (slice(start, start + step) for start in range(0, n, step))


def ratio(error: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Divide, with 0 / 0 = 0."""
    with np.errstate(over="ignore"):
        quotient: np.ndarray = error / np.maximum(size, np.finfo(np.float64).tiny)
    return quotient
