"""What mistake would explain the first wrong tensor? [spec 16]"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pegasusx_ref.verification.arithmetic import Arithmetic
from pegasusx_ref.verification.checking import HIDDEN, WARN, Failure, ratio
from pegasusx_ref.verification.hypotheses import HYPOTHESES, Case

LOW_PRECISION = "positions are computed in low precision"


class Diagnosis(NamedTuple):
    """A mistake that explains a wrong tensor. [spec 16.13]

    Attributes:
        mistake: in words.
        coefficient: how much of it the error holds; 1 is all of it.
        standard_error: of the coefficient.
        rho: what is left of the error, beside rounding.
    """

    mistake: str
    coefficient: float
    standard_error: float
    rho: float


def diagnose(failure: Failure, arithmetic: Arithmetic, weights: Mapping[str, np.ndarray]) -> list[Diagnosis]:
    """Try every mistake that is known of the operation, and give those that explain its result within rounding.

    With d the difference that a mistake makes and sigma that of rounding, the coefficient is the least-squares fit
    sum(E d / sigma^2) / sum(d^2 / sigma^2) to the error E. A mistake explains it where the coefficient is 1 within
    three standard errors, as if a row had one rounding error, and nothing but rounding is left.

    Args:
        failure: the first wrong tensor.
        arithmetic: what the candidate computes in.
        weights: of the model, by checkpoint name.

    Returns:
        What explains it, best first; none where nothing known does.
    """
    made, found, valid = failure.estimate.made, failure.found, failure.valid
    if made is None or found is None or made.operation not in HYPOTHESES:
        return []
    case = Case(failure.check.name, tuple(x.value for x in made.inputs), made.settings, weights)
    value, variance = failure.estimate.value[valid], failure.estimate.allowed().variance[valid]
    explained = []
    for mistake, variant in HYPOTHESES[made.operation](case).items():
        with np.errstate(all="ignore"):
            wrong = variant()
        if wrong.shape == found.shape and np.isfinite(wrong[valid]).all():
            fit = fitted(arithmetic, found[valid], value, wrong[valid], variance)
            explained += [] if fit is None else [Diagnosis(mistake, *fit)]
    if not explained and made.operation == "add_positions" and is_low_precision(failure, arithmetic):
        explained.append(Diagnosis(LOW_PRECISION, float("nan"), float("nan"), failure.check.rho))
    return sorted(explained, key=lambda diagnosis: diagnosis.rho)


def fitted(
    arithmetic: Arithmetic, found: np.ndarray, value: np.ndarray, wrong: np.ndarray, variance: np.ndarray
) -> tuple[float, float, float] | None:
    """Fit a mistake to the error.

    Args:
        arithmetic: what the candidate computes in.
        found: the candidate's rows.
        value: right ones.
        wrong: with the mistake.
        variance: of rounding errors.

    Returns:
        Coefficient, standard error and what is left, as `Diagnosis` has them; None where it does not explain the error.
    """
    seen = wrong > HIDDEN
    if ((found > HIDDEN) != seen).any():
        return None
    unmasked = seen & (value <= HIDDEN)  # the mistake is in the mask
    found, wrong = np.where(seen, found, 0.0), np.where(seen, wrong, 0.0)
    value = np.where(seen & ~unmasked, value, np.where(unmasked, wrong, 0.0))
    # What is wrong may be larger than what is right, and so is its rounding then.
    sizes = ratio((wrong**2).sum(axis=1, keepdims=True), (value**2).sum(axis=1, keepdims=True))
    variance = variance * np.maximum(1.0, sizes) + (arithmetic.result * wrong) ** 2 / 3
    difference, rest = wrong - value, found - wrong
    rho = float(ratio(np.sqrt((rest**2).sum(axis=1)), np.sqrt(variance.sum(axis=1))).max())
    weight = float((difference**2 / variance).sum())
    if rho > WARN or (weight == 0 and not unmasked.any()):
        return None
    if weight == 0:
        return 1.0, 0.0, rho
    coefficient = float(((found - value) * difference / variance).sum()) / weight
    # The roundings of a row may be one: that of its mean, of its root, of its sum.
    by_row = np.abs(difference / np.sqrt(variance)).sum(axis=1)
    standard_error = float(np.sqrt((by_row**2).sum())) / weight
    return (coefficient, standard_error, rho) if abs(coefficient - 1) <= 3 * standard_error + 1e-12 else None


def is_low_precision(failure: Failure, arithmetic: Arithmetic) -> bool:
    """Tell whether an error of positions is what angles lose that are computed in the candidate's precision."""
    found, made = failure.found, failure.estimate.made
    if found is None or made is None or arithmetic.name == "float64":
        return False
    places = made.settings["start"] + np.arange(found.shape[1])[:, None] + 1
    error = np.abs(found - failure.estimate.value)
    return bool((error <= 4 * arithmetic.result * places + failure.estimate.allowed().bound).all())
