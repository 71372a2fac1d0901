"""Likely bugs that explain the first wrong tensor. [spec 16]"""

import re
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from pegasusx_ref.verification.checker import ratio
from pegasusx_ref.verification.error_bounds import Arithmetic
from pegasusx_ref.verification.error_sizes import low_precision, unquantized
from pegasusx_ref.verification.estimate import Estimate
from pegasusx_ref.verification.known_bugs import KNOWN_BUGS, FailedOperation, LayerContext, fitted_linear_bugs
from pegasusx_ref.verification.operations import HIDDEN
from pegasusx_ref.verification.verdicts import WARN, Diagnosis, Failure

TINY = 1e-300

LocatedVariants = dict[tuple[str, str], Callable[[], np.ndarray]]  # by the tensor that the bug is in, and the bug


def diagnose(failure: Failure, arithmetic: Arithmetic, layer: LayerContext) -> list[Diagnosis]:
    """Try every known bug of the operation, and return those that explain its result within rounding. [spec 16.13]

    With d the difference that a bug makes and sigma that of rounding, the coefficient is the least-squares fit
    sum(E d / sigma^2) / sum(d^2 / sigma^2) to the error E. A bug explains the error where the coefficient is 1 within
    three standard errors, as if each row had a single rounding error, and only rounding is left.

    Bugs of earlier operations whose results the candidate does not show are tried too. If no bug explains the result,
    unknown numbers (a bias, a matrix) are fitted to it.

    Args:
        failure: the first wrong tensor.
        arithmetic: what the candidate computes in.
        layer: the model, and the candidate's other tensors of the layer.

    Returns:
        The likely bugs, best first; none where no known bug explains the result.
    """
    name, shape = failure.check.name, failure.candidate.shape
    found = []
    for (where, bug), variant in variants(name, failure.estimate, layer).items():
        with np.errstate(all="ignore"):
            wrong = variant()
        if wrong.shape == shape and (fit := fit_error(failure, arithmetic, wrong)):
            found.append(Diagnosis(bug, where, *fit))
    if not found and (cause := unquantized(failure)) is not None:
        found.append(Diagnosis(cause, name, float("nan"), float("nan"), failure.check.rho))
    if not found:
        for bug, wrong in (*moved_rows(failure), *fitted_weights(failure)):
            if wrong.shape == shape and (fit := fit_error(failure, arithmetic, wrong)):
                found.append(Diagnosis(bug, name, *fit))
    if not found and (coarse := low_precision(failure, arithmetic)) is not None:
        found.append(Diagnosis(coarse, name, float("nan"), float("nan"), failure.check.rho))
    # Differences below 0.01 are chance: there the order of KNOWN_BUGS, common bugs first, decides.
    return sorted(found, key=lambda diagnosis: round(diagnosis.rho, 2))


def variants(name: str, estimate: Estimate, layer: LayerContext) -> LocatedVariants:
    """Compute a tensor with each bug of its operation, and of earlier operations that the candidate does not show.

    Args:
        name: the tensor's name, unless it is passed on from a tensor with an earlier name.
        estimate: the tensor's expected value and origin.
        layer: the model, and the candidate's other tensors of the layer.
    """
    origin, name = estimate.origin, estimate.names[0] if estimate.names else name
    if origin is None:
        passed_on = FailedOperation(name, (estimate.value,), {}, layer)
        return {(name, bug): variant for bug, variant in KNOWN_BUGS["pass on"](passed_on).items()}
    values = [x.value for x in origin.inputs]
    found: LocatedVariants = {}
    if origin.operation in KNOWN_BUGS:
        own = KNOWN_BUGS[origin.operation](FailedOperation(name, tuple(values), origin.settings, layer))
        found = {(name, bug): variant for bug, variant in own.items()}
    # One bug may reach this tensor through several inputs: through each block, or through queries and keys.
    by_input: dict[tuple[str, str], dict[int, Callable[[], np.ndarray]]] = {}
    for i, x in enumerate(origin.inputs):
        if x.origin is not None:
            for (where, bug), variant in variants(name, x, layer).items():
                by_input.setdefault((re.sub(r"local\.\d+", "local.*", where), bug), {})[i] = variant

    def propagate(changed: dict[int, Callable[[], np.ndarray]]) -> np.ndarray:
        inputs = [changed[i]() if i in changed else value for i, value in enumerate(values)]
        if [x.shape for x in inputs] != [x.shape for x in values]:
            return np.empty(0)  # a changed shape cannot be propagated
        return origin.golden(*inputs)

    return found | {key: partial(propagate, changed) for key, changed in by_input.items()}


@np.errstate(over="ignore", invalid="ignore")  # an error beyond float64 is not one of these bugs
def fit_error(failure: Failure, arithmetic: Arithmetic, wrong: np.ndarray) -> tuple[float, float, float] | None:
    """Fit the effect of a bug to the error.

    Args:
        failure: the wrong tensor.
        arithmetic: what the candidate computes in.
        wrong: the tensor with the bug; rows of NaN do not count.

    Returns:
        Coefficient, standard error and rho of a `Diagnosis`; None where the bug does not explain the error.
    """
    counts = ~np.isnan(wrong).all(axis=-1)
    if has_right_shape := failure.candidate.shape == failure.estimate.shape:
        counts &= failure.valid
    found, wrong = failure.candidate[counts], wrong[counts]
    if not found.size or not (np.isfinite(found) & np.isfinite(wrong)).all():
        return None
    if has_right_shape:
        value, variance = failure.estimate.value[counts], failure.estimate.allowed().variance[counts]
    else:  # there is no right value to compare with: the bug must explain the whole tensor
        value, variance = np.zeros_like(found), np.full_like(found, failure.estimate.allowed().variance.mean())
    seen, should_be_seen = wrong > HIDDEN, value > HIDDEN
    if ((found > HIDDEN) != seen).any():
        return None
    found, wrong = np.where(seen, found, 0.0), np.where(seen, wrong, 0.0)
    value = np.where(seen & should_be_seen, value, wrong)  # the mask itself was compared above
    # A wrong value that is larger than the right one also has larger rounding errors.
    sizes = ratio((wrong**2).sum(axis=1, keepdims=True), (value**2).sum(axis=1, keepdims=True))
    variance = variance * np.maximum(1.0, np.where(has_right_shape, sizes, 1.0))
    # A key that is not masked but should be is padding, whose rows are not the candidate's own.
    variance += (arithmetic.result * wrong) ** 2 * np.where(should_be_seen, 1 / 3, 100.0)
    if has_right_shape and (origin := failure.estimate.origin) is not None and origin.operation == "activation":
        # relu rounds nothing, but another activation may be composed of operations that round their inputs.
        variance += (3 * arithmetic.result * origin.inputs[0].value[counts]) ** 2 / 3
    # An exact result has variance 0, which cannot be divided by.
    variance = np.maximum(variance, (1e-3 * arithmetic.result * np.abs(wrong).max()) ** 2 + TINY)
    difference, rest = wrong - value, found - wrong
    rho = float(ratio(np.sqrt((rest**2).sum(axis=1)), np.sqrt(variance.sum(axis=1))).max())
    weight = float((difference**2 / variance).sum())
    if rho > WARN:
        return None
    if weight < 1:  # the bug changes at most the mask
        return None if (seen == should_be_seen).all() else (1.0, 0.0, rho)
    coefficient = float(((found - value) * difference / variance).sum()) / weight
    # The elements of a row may share one rounding error: that of its mean, its root or its sum.
    by_row = np.abs(difference / np.sqrt(variance)).sum(axis=1)
    standard_error = float(np.sqrt((by_row**2).sum())) / weight
    return (coefficient, standard_error, rho) if abs(coefficient - 1) <= 3 * standard_error + 1e-12 else None


def moved_rows(failure: Failure) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the right tensor with its rows in wrong places."""
    right = np.where(failure.valid[..., None], failure.estimate.value, np.nan)
    missing = np.full_like(right[..., :1, :], np.nan)
    yield "rows are one position too late", np.concatenate([missing, right[..., :-1, :]], axis=-2)
    yield "rows are one position too early", np.concatenate([right[..., 1:, :], missing], axis=-2)
    yield "batch rows are in the reverse order", right[::-1]
    yield f"the axis of {'heads' if right.ndim == 4 else 'positions'} precedes the batch axis", right.swapaxes(0, 1)


def fitted_weights(failure: Failure) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensor with a bias or a matrix that is fitted to it."""
    origin, valid = failure.estimate.origin, failure.valid
    if origin is None or origin.operation != "linear" or failure.candidate.shape != failure.estimate.shape:
        return
    (x,), candidate = origin.inputs, failure.candidate[valid]
    if not np.isfinite(candidate).all():
        return
    for bug, rows in fitted_linear_bugs(failure.check.name, x.value[valid], origin.settings, candidate).items():
        wrong = np.full(failure.candidate.shape, np.nan)
        wrong[valid] = rows
        yield bug, wrong
