"""An unknown bias or matrix, fitted to the result of a linear map. [spec 16]"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.verification.checking.arithmetics import FLOAT64
from pegasusx_ref.verification.checking.comparison import ratio
from pegasusx_ref.verification.diagnosis.fitted_bugs import SPARE_ROWS, explains, least_squares

ROUNDED = 64.0  # roundings that a product in float64 may differ by
CHANCE = 5.0  # standard deviations of a sum of products of independent numbers
ALIKE = 2.0  # the largest ratio of the first singular value of an error to that of independent numbers


def fitted_linear_bugs(
    name: str, x: np.ndarray, settings: Mapping[str, Any], candidate: np.ndarray
) -> dict[str, np.ndarray]:
    """Fit an unknown bias or weight to the candidate's rows; a diagnosis needs more rows than unknowns.

    A fit also takes up errors of other bugs that are alike in all rows. What it leaves of those is alike too, unlike
    rounding.

    Args:
        name: the name of the result.
        x: input rows (n, D).
        settings: weight (E, D), and bias (E,) or None.
        candidate: the candidate's result (n, E).

    Returns:
        For each bug in words, the rows with it.
    """
    weight, bias = settings["weight"], settings["bias"]
    distinct, right = np.unique(x, axis=0, return_index=True)[1], linear(x, weight, bias)
    n, D = len(distinct), x.shape[1]
    found, unknowns = {}, {}
    if n > SPARE_ROWS or (bias is None and n > 1):
        bug = "a bias is added" if bias is None else "the bias differs"
        found[bug], unknowns[bug] = right + (candidate - right)[distinct].mean(axis=0), 1
    if n >= D + SPARE_ROWS:
        terms = x if bias is None else np.c_[x, np.ones(len(x))]
        fitted = least_squares(terms, candidate)
        fitted += least_squares(terms, candidate - terms @ fitted)  # iterative refinement
        bug = "the head is not tied to the embeddings" if name == "lm_head" else "another matrix"
        found[f"the weight differs: {bug}"], unknowns[f"the weight differs: {bug}"] = terms @ fitted, D
    return {
        bug: rows
        for bug, rows in found.items()
        if explains(candidate, right, rows, unknowns[bug] / n)
        and is_rounding((candidate - rows)[distinct], right[distinct])
    }


def is_rounding(errors: np.ndarray, right: np.ndarray) -> bool:
    """Return whether the errors of rows (n, D) have no pattern, and do not grow with the right values."""
    if np.abs(errors).max(initial=0) <= ROUNDED * FLOAT64 * np.abs(right).max(initial=0):
        return True  # float64, in which the right values are rounded too
    products = errors * (right - right.mean(axis=0))
    return is_independent(errors) and bool(abs(products.sum()) <= CHANCE * np.linalg.norm(products))


def is_independent(errors: np.ndarray) -> bool:
    """Return whether the errors of rows (n, D) are like those of rounding: without a pattern that all rows share."""
    sizes = [np.sqrt((errors**2).mean(axis=axis, keepdims=True)) for axis in (0, 1)]
    scaled = ratio(errors, sizes[0] * sizes[1] + np.finfo(float).tiny)
    if not np.isfinite(scaled).all():  # numbers whose squares are not finite
        return False
    total = np.linalg.norm(scaled)
    expected = total * (1 / math.sqrt(errors.shape[0]) + 1 / math.sqrt(errors.shape[1]))
    return bool(total == 0 or np.linalg.norm(scaled, 2) <= ALIKE * expected)
