"""Bugs with an unknown number, which is fitted to the candidate's tensor: a factor, a rate, a bias, a matrix. [spec 16]

A fit explains an error only where it leaves rounding, so it needs far more numbers than it has unknowns.
"""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from pegasusx_ref.verification.checking.arithmetics import FLOAT32, Arithmetic
from pegasusx_ref.verification.checking.comparison import ratio
from pegasusx_ref.verification.checking.operations import HIDDEN
from pegasusx_ref.verification.verdicts import Failure

Fits = Iterator[tuple[str, np.ndarray]]  # a bug in words, and the tensor with it
TERMS = {"add": ("the residual is", "the update is"), "add_positions": ("tokens are", "positions are")}
SPARE_ROWS = 8  # rows that a fit must explain in addition to as many as there are unknowns
FEW = 0.05  # the largest share of numbers with a wrong sign
LEFT = 0.1  # the largest share of the squared error that a fit may leave


def fitted_bugs(failure: Failure, arithmetic: Arithmetic) -> Fits:
    """Yield the tensor with each bug that has an unknown number, the fewest unknowns first.

    Args:
        failure: a wrong tensor.
        arithmetic: what the candidate computes in.
    """
    if failure.candidate.shape != failure.estimate.shape or not np.isfinite(failure.candidate[failure.valid]).all():
        return
    fits = (scaled, scaled_terms, saturated, dropped, wrong_signs, partial(wrong_deviation, arithmetic))
    valid, right, found = failure.valid, failure.estimate.value, failure.candidate
    with np.errstate(all="ignore"):
        found_bugs = [bug for fit in fits for bug in fit(failure)]
        yield from (bug for bug in found_bugs if explains(found[valid], right[valid], bug[1][valid]))


def scaled(failure: Failure) -> Fits:
    """Yield the right tensor times a factor."""
    seen = failure.valid[..., None] & (failure.candidate > HIDDEN) & (failure.estimate.value > HIDDEN)
    found, value = failure.candidate[seen], failure.estimate.value[seen]
    if not found.any():
        yield "all its numbers are 0", np.zeros_like(failure.candidate)
    least = (1e-20 * np.abs(value).max(initial=1e-100)) ** 2  # of exact results, which relu gives
    weight = 1 / np.maximum(failure.estimate.allowed().variance[seen], least)
    squares = (value**2 * weight).sum()
    if len(found) > SPARE_ROWS and 0 < squares < np.inf:
        factor = (found * value * weight).sum() / squares
        error = np.linalg.norm(found - factor * value) / np.linalg.norm(value) / math.sqrt(len(found))
        wrong = np.where(failure.estimate.value > HIDDEN, failure.estimate.value * factor, failure.estimate.value)
        origin = failure.estimate.origin
        what = "tokens are" if origin is not None and origin.operation == "embed_tokens" else "the result is"
        yield f"{what} multiplied by {digits(float(factor), float(error))}", wrong


def scaled_terms(failure: Failure) -> Fits:
    """Yield a sum of which both terms have factors: a residual and an update, or tokens and positions."""
    origin, valid = failure.estimate.origin, failure.valid
    if origin is None or origin.operation not in TERMS:
        return
    first = origin.inputs[0].value
    both = (first, failure.estimate.value - first)
    terms, found = np.stack([term[valid].ravel() for term in both], axis=1), failure.candidate[valid].ravel()
    if len(terms) < SPARE_ROWS or not np.isfinite(terms).all():
        return
    factors = least_squares(terms, found)
    errors: list[float] = (
        np.linalg.norm(found - terms @ factors) / math.sqrt(len(found)) / np.linalg.norm(terms, axis=0)
    ).tolist()
    words = [
        f"{name} multiplied by {digits(factor, error)}"
        for name, factor, error in zip(TERMS[origin.operation], factors, errors, strict=True)
        if abs(factor - 1) > 6 * error
    ]
    yield " and ".join(words), factors[0] * both[0] + factors[1] * both[1]


def saturated(failure: Failure) -> Fits:
    """Yield the right tensor with its numbers clipped."""
    found, value = failure.candidate[failure.valid], failure.estimate.value[failure.valid]
    if not found.size:
        return
    low, high = found.min(), found.max()
    is_low, is_high = (value < low).sum() >= 2, (value > high).sum() >= 2
    if is_low or is_high:
        limits = [f"at {number:.4g}" for number, is_cut in ((low, is_low), (high, is_high)) if is_cut]
        wrong = failure.estimate.value.clip(low if is_low else -np.inf, high if is_high else np.inf)
        yield f"its numbers are clipped {' and '.join(limits)}", wrong


def dropped(failure: Failure) -> Fits:
    """Yield the tensor with dropout: some numbers are 0, the others are divided by 1 - p. In a sum, of the update."""
    origin, kept, update = failure.estimate.origin, np.zeros(()), failure.estimate.value
    if origin is not None and origin.operation == "add":
        kept, update = (x.value for x in origin.inputs)
    deviation = np.sqrt(failure.estimate.allowed().variance)
    is_large = failure.valid[..., None] & (np.abs(update) > 20 * deviation) & (update > HIDDEN)
    quotients = ((failure.candidate - kept)[is_large]) / update[is_large]
    stays = np.abs(quotients) > 0.5
    share = 1 - stays.mean() if quotients.size else 0.0
    if not 0 < share < 1:
        return
    sizes = np.abs(update[is_large][stays])
    factor = float((quotients[stays] * sizes).sum() / sizes.sum())
    rate = 1 - 1 / factor
    if abs(share - rate) <= 5 * math.sqrt(share * (1 - share) / quotients.size):
        stays = np.abs(failure.candidate - kept) > 0.5 * np.abs(update)
        yield f"dropout is left on, with a rate of {round(rate, 2):g}", kept + np.where(stays, factor * update, 0.0)


def wrong_signs(failure: Failure) -> Fits:
    """Yield the right tensor with the signs of a few numbers changed."""
    found, value = failure.candidate, failure.estimate.value
    is_large = failure.valid[..., None] & (np.abs(value) > 10 * np.sqrt(failure.estimate.allowed().variance))
    is_wrong = is_large & (np.abs(found + value) < np.abs(found - value))
    count = int(is_wrong.sum())
    if 0 < count <= max(1, FEW * found.size):
        words = "a number has" if count == 1 else f"{count} numbers have"
        yield f"{words} the wrong sign: {place_of(is_wrong, count)}", np.where(is_wrong, -value, value)


def wrong_deviation(arithmetic: Arithmetic, failure: Failure) -> Fits:
    """Yield the result of LayerNorm with every row divided by a wrong deviation."""
    origin, valid = failure.estimate.origin, failure.valid
    if origin is None or origin.operation != "layer_norm":
        return
    (x,), bias, eps = origin.inputs, origin.settings["bias"], origin.settings["eps"]
    right, found = failure.estimate.value - bias, failure.candidate - bias
    factors = ratio((right * found).sum(axis=-1, keepdims=True), (right**2).sum(axis=-1, keepdims=True))
    power = (x.value**2).mean(axis=-1, keepdims=True)
    variance = x.value.var(axis=-1, keepdims=True) + eps
    lowest = np.argmin(np.where(valid[..., None], variance, np.inf))  # where eps matters most
    other = float((variance / factors**2 - variance + eps).ravel()[lowest])
    if other >= 0:
        wrong = right * np.sqrt(variance / (variance - eps + other)) + bias
        yield f"LayerNorm's eps is {other:.3g}, not {eps:g}", wrong
    words = "the deviation of each row is wrong"
    for name, roundoff in (("float32", FLOAT32), (arithmetic.dtype, arithmetic.sum)):
        # Each mean has the rounding error of a sum, which the difference of the two keeps.
        if (np.abs(factors - 1) <= math.sqrt(x.shape[-1]) * roundoff * (power / variance + 1))[valid].all():
            words = f"the variance is E[x^2] - E[x]^2, whose digits cancel in {name}"
            break
    yield words, right * factors + bias


def explains(found: np.ndarray, right: np.ndarray, wrong: np.ndarray, unknowns: float = 0.0) -> bool:
    """Return whether a bug removes most of an error, more than it could of any.

    Args:
        found: the candidate's numbers.
        right: the right ones.
        wrong: those with the bug.
        unknowns: the number of fitted unknowns, divided by that of the numbers that they are fitted to.
    """
    shown = (found > HIDDEN) & (right > HIDDEN)
    with np.errstate(all="ignore"):
        left, before = (float(((found - x)[shown] ** 2).sum()) for x in (wrong, right))
    return left <= LEFT * (1 - unknowns) * before


def least_squares(terms: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the factors of terms that fit best; NaN where numbers are so large that there is no solution."""
    try:
        return np.asarray(np.linalg.lstsq(terms, found)[0])
    except np.linalg.LinAlgError:
        return np.full((terms.shape[1], *found.shape[1:]), np.nan)


def place_of(is_wrong: np.ndarray, count: int) -> str:
    """Format the index of the first of some elements."""
    first = tuple(int(i) for i in np.argwhere(is_wrong)[0])
    return f"at {first}" if count == 1 else f"the first is at {first}"


def digits(number: float, error: float) -> str:
    """Format a number with the digits that are known."""
    known = int(np.clip(np.log10(max(abs(number), 1e-300) / (6 * max(error, 1e-300))), 2, 6))
    text = f"{number:.{known}g}"
    return f"1 {'-' if number < 1 else '+'} {abs(number - 1):.2g}" if float(text) == 1 != number else text
