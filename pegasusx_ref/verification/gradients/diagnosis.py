"""Likely bugs that explain a wrong gradient: what one sees without knowing the operation. [spec 16]"""

from collections.abc import Iterator

import numpy as np

from pegasusx_ref.verification.checking.arithmetics import Arithmetic
from pegasusx_ref.verification.checking.comparison import ratio
from pegasusx_ref.verification.diagnosis.bug_fit import fit_error
from pegasusx_ref.verification.verdicts import Diagnosis, Failure

MAX_DIGITS = 6  # of a factor


def diagnose_gradient(failure: Failure, arithmetic: Arithmetic) -> list[Diagnosis]:
    """Return the first bug that explains a wrong gradient within rounding, if there is one.

    Args:
        failure: the wrong gradient.
        arithmetic: what the candidate computes in.
    """
    value, found = failure.estimate.value, failure.candidate
    if found.shape != value.shape or not (np.isfinite(found) & np.isfinite(value)).all():
        return []
    for mistake, wrong in variants(value, found):
        if (fit := fit_error(failure, arithmetic, wrong)) is not None:
            return [Diagnosis(mistake, failure.check.name, *fit)]
    return []


def variants(value: np.ndarray, found: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield bugs in words, each with the gradient that it gives.

    Args:
        value: the right gradient.
        found: the candidate's.
    """
    yield "the gradient is 0: nothing is passed back", np.zeros_like(value)
    if value.ndim == 2 and value.shape[0] == value.shape[1]:
        yield "the gradient is transposed", value.T
    factor = float(ratio((found * value).sum(), np.square(value).sum()))
    if factor and abs(divisor := round(1 / factor)) > 1:
        yield f"the gradient is the right one divided by {divisor}", value / divisor
    for shown in (float(f"{factor:.{digits}g}") for digits in range(1, MAX_DIGITS + 1)):
        if shown != 1:
            yield f"the gradient is {shown:g} times the right one", shown * value
