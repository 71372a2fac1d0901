"""What mistake would explain the first wrong tensor? [spec 16]"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.verification.arithmetic import ARITHMETICS, Arithmetic
from pegasusx_ref.verification.checking import WARN, Failure, ratio
from pegasusx_ref.verification.estimate import Estimate
from pegasusx_ref.verification.hypotheses import HYPOTHESES, Case, Surroundings, fits
from pegasusx_ref.verification.layouts import HIDDEN

LOW_PRECISION = "positions are computed in low precision"

TINY = 1e-300

Variants = dict[tuple[str, str], Callable[[], np.ndarray]]  # by the tensor where the mistake is, and the mistake


class Diagnosis(NamedTuple):
    """A mistake that explains a wrong tensor. [spec 16.13]

    Attributes:
        mistake: in words.
        where: the tensor in which it is made: the wrong one, or one before it that the candidate does not show; ``*``
            stands for every block.
        coefficient: how much of it the error holds; 1 is all of it.
        standard_error: of the coefficient.
        rho: what is left of the error, beside rounding.
    """

    mistake: str
    where: str
    coefficient: float
    standard_error: float
    rho: float


def diagnose(failure: Failure, arithmetic: Arithmetic, around: Surroundings) -> list[Diagnosis]:
    """Try every mistake that is known of the operation, and give those that explain its result within rounding.

    With d the difference that a mistake makes and sigma that of rounding, the coefficient is the least-squares fit
    sum(E d / sigma^2) / sum(d^2 / sigma^2) to the error E. A mistake explains it where the coefficient is 1 within
    three standard errors, as if a row had one rounding error, and nothing but rounding is left.

    Operations before it whose results are not shown are tried too. Where nothing explains the result, numbers that
    are not known (a bias, a matrix) are fitted to it.

    Args:
        failure: the first wrong tensor.
        arithmetic: what the candidate computes in.
        around: what there is beside the operation.

    Returns:
        What explains it, best first; none where nothing known does.
    """
    name, given = failure.check.name, failure.given
    explained = []
    for (where, mistake), variant in variants(name, failure.estimate, around).items():
        with np.errstate(all="ignore"):
            wrong = variant()
        if wrong.shape == given.shape and (fit := fitted(failure, arithmetic, wrong)):
            explained.append(Diagnosis(mistake, where, *fit))
    if not explained:
        for mistake, wrong in (*elsewhere(failure), *fitted_to(failure)):
            if wrong.shape == given.shape and (fit := fitted(failure, arithmetic, wrong)):
                explained.append(Diagnosis(mistake, name, *fit))
    if not explained and (coarse := too_coarse(failure, arithmetic)) is not None:
        explained.append(Diagnosis(coarse, name, float("nan"), float("nan"), failure.check.rho))
    # Of mistakes that leave equally little of the error the better known one comes first: chance tells them apart.
    return sorted(explained, key=lambda diagnosis: round(diagnosis.rho, 2))


def variants(name: str, estimate: Estimate, around: Surroundings) -> Variants:
    """Give a tensor as it would be with each mistake in its operation, or in one before it that is not shown.

    Args:
        name: of the tensor, where nothing of an earlier name was passed on to it.
        estimate: how it was computed.
        around: what there is beside it.
    """
    made, name = estimate.made, estimate.names[0] if estimate.names else name
    if made is None:
        passed_on = Case(name, (estimate.value,), {}, around)
        return {(name, mistake): variant for mistake, variant in HYPOTHESES["pass on"](passed_on).items()}
    values = [x.value for x in made.inputs]
    found: Variants = {}
    if made.operation in HYPOTHESES:
        own = HYPOTHESES[made.operation](Case(name, tuple(values), made.settings, around))
        found = {(name, mistake): variant for mistake, variant in own.items()}
    # The same mistake may reach this tensor by several ways: through each block, or through queries and keys.
    ways: dict[tuple[str, str], dict[int, Callable[[], np.ndarray]]] = {}
    for i, x in enumerate(made.inputs):
        if x.made is not None:
            for (where, mistake), variant in variants(name, x, around).items():
                ways.setdefault((re.sub(r"local\.\d+", "local.*", where), mistake), {})[i] = variant

    def pushed_on(changed: dict[int, Callable[[], np.ndarray]]) -> np.ndarray:
        inputs = [changed[i]() if i in changed else value for i, value in enumerate(values)]
        if [x.shape for x in inputs] != [x.shape for x in values]:
            return np.empty(0)  # what changes a shape explains nothing further on
        return made.golden(*inputs)

    return found | {key: partial(pushed_on, changed) for key, changed in ways.items()}


def fitted(failure: Failure, arithmetic: Arithmetic, wrong: np.ndarray) -> tuple[float, float, float] | None:
    """Fit a mistake to the error.

    Args:
        failure: the wrong tensor.
        arithmetic: what the candidate computes in.
        wrong: how it would be with the mistake; rows of NaN do not count.

    Returns:
        Coefficient, standard error and what is left, as `Diagnosis` has them; None where it does not explain the error.
    """
    counts = ~np.isnan(wrong).all(axis=-1)
    if has_right_shape := failure.given.shape == failure.estimate.shape:
        counts &= failure.valid
    found, wrong = failure.given[counts], wrong[counts]
    if not found.size or not (np.isfinite(found) & np.isfinite(wrong)).all():
        return None
    if has_right_shape:
        value, variance = failure.estimate.value[counts], failure.estimate.allowed().variance[counts]
    else:  # nothing right to compare with: all that is found must be explained
        value, variance = np.zeros_like(found), np.full_like(found, failure.estimate.allowed().variance.mean())
    seen, should_be_seen = wrong > HIDDEN, value > HIDDEN
    if ((found > HIDDEN) != seen).any():
        return None
    found, wrong = np.where(seen, found, 0.0), np.where(seen, wrong, 0.0)
    value = np.where(seen & should_be_seen, value, wrong)  # what is hidden is judged above
    # What is wrong may be larger than what is right, and so is its rounding then.
    sizes = ratio((wrong**2).sum(axis=1, keepdims=True), (value**2).sum(axis=1, keepdims=True))
    variance = variance * np.maximum(1.0, np.where(has_right_shape, sizes, 1.0))
    # Where something should be hidden and is not, it comes from padding, whose rows are not taken from the candidate.
    variance += (arithmetic.result * wrong) ** 2 * np.where(should_be_seen, 1 / 3, 100.0)
    if has_right_shape and (made := failure.estimate.made) is not None and made.operation == "activation":
        # relu rounds nothing; what stands in its place may be composed, and off by what goes in.
        variance += (3 * arithmetic.result * made.inputs[0].value[counts]) ** 2 / 3
    # Some results are exact, and then nothing may be left; but a number that is divided by must be one.
    variance = np.maximum(variance, (1e-3 * arithmetic.result * np.abs(wrong).max()) ** 2 + TINY)
    difference, rest = wrong - value, found - wrong
    rho = float(ratio(np.sqrt((rest**2).sum(axis=1)), np.sqrt(variance.sum(axis=1))).max())
    with np.errstate(over="ignore"):
        weight = float((difference**2 / variance).sum())
    if rho > WARN:
        return None
    if weight < 1:  # it differs in nothing but, perhaps, in what is hidden
        return None if (seen == should_be_seen).all() else (1.0, 0.0, rho)
    coefficient = float(((found - value) * difference / variance).sum()) / weight
    # The roundings of a row may be one: that of its mean, of its root, of its sum.
    by_row = np.abs(difference / np.sqrt(variance)).sum(axis=1)
    standard_error = float(np.sqrt((by_row**2).sum())) / weight
    return (coefficient, standard_error, rho) if abs(coefficient - 1) <= 3 * standard_error + 1e-12 else None


def elsewhere(failure: Failure) -> Iterator[tuple[str, np.ndarray]]:
    """Give the right tensor with its rows in other places."""
    right = np.where(failure.valid[..., None], failure.estimate.value, np.nan)
    nothing = np.full_like(right[..., :1, :], np.nan)
    yield "rows stand one place too late", np.concatenate([nothing, right[..., :-1, :]], axis=-2)
    yield "rows stand one place too early", np.concatenate([right[..., 1:, :], nothing], axis=-2)
    yield "the texts of the batch are in the reverse order", right[::-1]
    yield ("heads" if right.ndim == 4 else "positions") + " come before texts", right.swapaxes(0, 1)


def fitted_to(failure: Failure) -> Iterator[tuple[str, np.ndarray]]:
    """Give the tensor with mistakes whose numbers are taken from it."""
    made, valid = failure.estimate.made, failure.valid
    if made is None or made.operation != "linear" or failure.given.shape != failure.estimate.shape:
        return
    (x,), found = made.inputs, failure.given[valid]
    if not np.isfinite(found).all():
        return
    for mistake, rows in fits.of_linear(failure.check.name, x.value[valid], made.settings, found).items():
        wrong = np.full(failure.given.shape, np.nan)
        wrong[valid] = rows
        yield mistake, wrong


def too_coarse(failure: Failure, arithmetic: Arithmetic) -> str | None:
    """Tell whether something was computed or stored with too few digits."""
    if failure.given.shape != failure.estimate.shape:
        return None
    if is_low_precision(failure, arithmetic):
        return LOW_PRECISION
    found, value = (x[failure.valid] for x in (failure.given, failure.estimate.value))
    found, value = found[value > HIDDEN], value[value > HIDDEN]
    for name, coarser in ARITHMETICS.items():
        if name == "tf32" or coarser.result <= arithmetic.result:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            is_coarse = (found == found.astype(numpy_dtype(name))).all()
        if is_coarse and found.size and (np.abs(found - value) <= 8 * coarser.result * np.abs(value).max()).all():
            return f"its numbers have no more digits than {name}: computed or stored in it"
    return None


def is_low_precision(failure: Failure, arithmetic: Arithmetic) -> bool:
    """Tell whether an error of positions is what angles lose that are computed in the candidate's precision."""
    made, found = failure.estimate.made, failure.given
    if made is None or made.operation != "add_positions" or arithmetic.name == "float64":
        return False
    places = made.settings["start"] + np.arange(found.shape[1])[:, None] + 1
    error, bound = np.abs(found - failure.estimate.value), failure.estimate.allowed().bound
    angles = np.broadcast_to(4 * arithmetic.result * places, error.shape)
    # Late angles may be off by a turn, and then anything is allowed: the mistake must show before.
    tells = failure.valid[..., None] & (angles < 1)
    return bool((error <= angles + bound)[failure.valid].all() and (error > bound)[tells].any())
