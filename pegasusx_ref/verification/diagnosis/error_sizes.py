"""Causes that show in the size of an error or in the numbers themselves: NaN, low precision. [spec 16]"""

import numpy as np

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.verification.checking.arithmetics import ARITHMETICS, DTYPES, FLOAT32, Arithmetic
from pegasusx_ref.verification.checking.checker import PRODUCTS
from pegasusx_ref.verification.checking.comparison import ratio
from pegasusx_ref.verification.checking.operations import HIDDEN
from pegasusx_ref.verification.diagnosis.fitted_bugs import place_of
from pegasusx_ref.verification.diagnosis.fitted_weights import is_independent
from pegasusx_ref.verification.diagnosis.quantization_bugs import rounding_variance
from pegasusx_ref.verification.verdicts import Failure

NUM_LEVELS = 8  # with fewer different numbers, a tensor may be one of integers by chance
LARGEST = 8.0  # standard deviations of the largest rounding error
LOW_PRECISION_POSITIONS = "positions are computed in low precision"
UNQUANTIZED = "the weight is not quantized, or more finely: the error has the size of {}'s rounding"


def unquantized(failure: Failure) -> str | None:
    """Return a diagnosis where the error has the size of a quantized weight's rounding, in all rows alike."""
    origin = failure.estimate.origin
    matrix = None if origin is None else origin.settings.get("matrix")
    if origin is None or matrix is None or failure.candidate.shape != failure.estimate.shape:
        return None
    if origin.operation == "linear":
        variance = linear(origin.inputs[0].value ** 2, rounding_variance(matrix))
    else:
        variance = rounding_variance(matrix)[origin.settings["ids"]] * origin.settings["scale"] ** 2
    squares = (failure.candidate - failure.estimate.value) ** 2
    by_row = ratio(*(x[failure.valid].mean(axis=-1) for x in (squares, variance)))
    is_alike = 0.6 < by_row.mean() < 1.4 and (by_row > 0.3).all() and (by_row < 3).all()
    return UNQUANTIZED.format(matrix.kind) if is_alike else None


def low_precision(failure: Failure, arithmetic: Arithmetic) -> str | None:
    """Return a diagnosis where numbers are not finite, or were computed or stored with too few digits."""
    if failure.candidate.shape != failure.estimate.shape:
        return None
    if (cause := not_finite(failure)) is not None:
        return cause
    if has_low_precision_positions(failure, arithmetic):
        return LOW_PRECISION_POSITIONS
    found, value = (x[failure.valid] for x in (failure.candidate, failure.estimate.value))
    found, value = found[value > HIDDEN], value[value > HIDDEN]
    for name, roundoff in DTYPES.items():
        if roundoff <= arithmetic.result:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            is_coarse = (found == found.astype(numpy_dtype(name))).all()
        if is_coarse and found.size and (np.abs(found - value) <= 8 * roundoff * np.abs(value).max()).all():
            return f"its numbers have {name} precision only: computed or stored in {name}"
    return stored_integers(failure) or size_of_rounding(failure, arithmetic)


def not_finite(failure: Failure) -> str | None:
    """Return a diagnosis where a number is NaN or infinite."""
    seen = failure.valid[..., None] & np.isfinite(failure.estimate.value)
    for word, is_wrong in (("NaN", np.isnan(failure.candidate)), ("infinite", np.isinf(failure.candidate))):
        if count := int((seen & is_wrong).sum()):
            subject = "a number is" if count == 1 else "numbers are"
            return f"{subject} {word}: {place_of(seen & is_wrong, count)}"
    return None


def stored_integers(failure: Failure) -> str | None:
    """Return a diagnosis where the numbers are multiples of 1/127 of the largest magnitude."""
    found, value = failure.candidate[failure.valid], failure.estimate.value[failure.valid]
    for words, axis in (("one scale", None), ("a scale for each row", -1)):
        step = np.abs(found).max(axis=axis, keepdims=True, initial=0) / 127
        if not found.size or not (step > 0).all() or (value < HIDDEN).any():
            return None
        multiples, rest = np.rint(found / step), np.abs(found - value)
        is_stored = (np.abs(found - multiples * step) <= 0.05 * step).all() and (rest <= 1.5 * step).all()
        if is_stored and len(np.unique(multiples)) > NUM_LEVELS:
            return f"its numbers are stored in int8 with {words}"
    return None


def size_of_rounding(failure: Failure, arithmetic: Arithmetic) -> str | None:
    """Return a diagnosis where the errors are, in all rows, like those of rounding in a coarser arithmetic."""
    origin, valid = failure.estimate.origin, failure.valid
    if origin is None or origin.errors is None or not failure.estimate.is_direct or arithmetic.result > FLOAT32:
        return None  # in half precision, little is coarser
    value, is_product = failure.estimate.value, origin.operation in PRODUCTS
    seen = valid[..., None] & (value > HIDDEN) & (failure.candidate > HIDDEN)
    squares = np.where(seen, (failure.candidate - value) ** 2, 0.0)
    ratios: dict[str, float] = {}
    for other in ARITHMETICS.values():
        result, residual = max(other.result, arithmetic.result), max(other.residual, arithmetic.residual)
        coarse = other._replace(result=result, residual=residual)
        if other.sum < arithmetic.sum or coarse[1:4] <= arithmetic[1:4] or (other.operand and not is_product):
            continue
        variance = np.where(seen, origin.errors(coarse).variance, 0.0)
        by_row = ratio(squares.mean(axis=-1), variance.mean(axis=-1))[valid]
        largest = ratio(squares, variance + variance.mean(axis=-1, keepdims=True)).max()
        total = squares.sum() / variance.sum()
        if ((by_row > total / 6) & (by_row < total * 6)).mean() > 0.9 and largest < LARGEST**2:
            ratios[other.name] = total
    name = min(ratios, key=lambda key: abs(np.log(ratios[key])), default=None)
    rows = (failure.candidate - value)[valid] * seen[valid]
    if name is None or not 0.1 < ratios[name] < 2 or not is_independent(rows):  # some roundings may be exact
        return None
    return f"the error has the size of {'products' if is_product else 'rounding'} in {name}"


def has_low_precision_positions(failure: Failure, arithmetic: Arithmetic) -> bool:
    """Return whether the error is that of angles computed in the candidate's precision."""
    origin, found = failure.estimate.origin, failure.candidate
    if origin is None or origin.operation != "add_positions" or arithmetic.dtype == "float64":
        return False
    places = origin.settings["start"] + np.arange(found.shape[1])[:, None] + 1
    error, bound = np.abs(found - failure.estimate.value), failure.estimate.allowed().bound
    angles = np.broadcast_to(4 * arithmetic.result * places, error.shape)
    # An error of a whole turn would excuse any value: the error must also show at earlier positions.
    is_conclusive = failure.valid[..., None] & (angles < 1)
    return bool((error <= angles + bound)[failure.valid].all() and (error > bound)[is_conclusive].any())
