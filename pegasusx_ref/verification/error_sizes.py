"""Causes that show in the size of an error: low precision, weights that are not quantized. [spec 16]"""

import numpy as np

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.verification.checker import ratio
from pegasusx_ref.verification.error_bounds import ARITHMETICS, Arithmetic
from pegasusx_ref.verification.known_bugs import rounding_variance
from pegasusx_ref.verification.operations import HIDDEN
from pegasusx_ref.verification.verdicts import Failure

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
    """Return a diagnosis where the tensor was computed or stored with too few digits."""
    if failure.candidate.shape != failure.estimate.shape:
        return None
    if has_low_precision_positions(failure, arithmetic):
        return LOW_PRECISION_POSITIONS
    found, value = (x[failure.valid] for x in (failure.candidate, failure.estimate.value))
    found, value = found[value > HIDDEN], value[value > HIDDEN]
    for name, coarser in ARITHMETICS.items():
        if name == "tf32" or coarser.result <= arithmetic.result:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            is_coarse = (found == found.astype(numpy_dtype(name))).all()
        if is_coarse and found.size and (np.abs(found - value) <= 8 * coarser.result * np.abs(value).max()).all():
            return f"its numbers have {name} precision only: computed or stored in {name}"
    return None


def has_low_precision_positions(failure: Failure, arithmetic: Arithmetic) -> bool:
    """Return whether the error is that of angles computed in the candidate's precision."""
    origin, found = failure.estimate.origin, failure.candidate
    if origin is None or origin.operation != "add_positions" or arithmetic.name == "float64":
        return False
    places = origin.settings["start"] + np.arange(found.shape[1])[:, None] + 1
    error, bound = np.abs(found - failure.estimate.value), failure.estimate.allowed().bound
    angles = np.broadcast_to(4 * arithmetic.result * places, error.shape)
    # An error of a whole turn would excuse any value: the error must also show at earlier positions.
    is_conclusive = failure.valid[..., None] & (angles < 1)
    return bool((error <= angles + bound)[failure.valid].all() and (error > bound)[is_conclusive].any())
