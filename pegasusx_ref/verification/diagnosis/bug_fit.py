"""How well a bug explains the error of a wrong tensor. [spec 16]"""

from collections.abc import Callable

import numpy as np

from pegasusx_ref.verification.checking.arithmetics import Arithmetic
from pegasusx_ref.verification.checking.comparison import ratio
from pegasusx_ref.verification.checking.operations import HIDDEN
from pegasusx_ref.verification.verdicts import WARN, Failure

TINY = 1e-300
NUM_SAMPLED = 4  # rows that a bug of attention must explain before all are computed: the worst ones, and as many others
ROUNDING = 8 * np.finfo(np.float64).eps
MAX_GROWTH = 100.0  # of an error, where a bug makes scores larger


def sampled_rows(failure: Failure) -> np.ndarray | None:
    """Choose a few rows of a tensor: the worst ones, and others at equal distances; None means all."""
    shape = failure.candidate.shape
    if shape != failure.estimate.shape or len(shape) < 3 or shape[-2] <= 2 * NUM_SAMPLED:
        return None
    error = np.where(failure.valid[..., None], failure.candidate - failure.estimate.value, 0.0)
    by_row = (error**2).sum(axis=-1).reshape(-1, shape[-2]).max(axis=0)
    worst = np.argsort(-by_row, kind="stable")[:NUM_SAMPLED]
    return np.union1d(worst, np.linspace(0, len(by_row) - 1, NUM_SAMPLED).astype(int))


def at_rows(failure: Failure, rows: np.ndarray | None) -> Failure:
    """Return a wrong tensor's rows; all if that is None."""
    if rows is None:
        return failure
    estimate, origin = failure.estimate[..., rows, :], failure.estimate.origin
    if origin is not None:
        by_row = origin.inputs if origin.operation in ("activation", "add") else ()
        estimate.origin = origin._replace(inputs=tuple(x[..., rows, :] for x in by_row))
    return failure._replace(
        estimate=estimate, candidate=failure.candidate[..., rows, :], valid=failure.valid[..., rows]
    )


def fit_variant(
    failure: Failure, arithmetic: Arithmetic, variant: Callable[[], np.ndarray], rows: np.ndarray | None = None
) -> tuple[float, float, float] | None:
    """Compute the tensor with a bug and fit it to the error; None where it does not explain it.

    Args:
        failure: the wrong tensor, or some rows of it.
        arithmetic: what the candidate computes in.
        variant: computes the tensor.
        rows: those of the failure, unless it has all.
    """
    with np.errstate(all="ignore"):
        wrong = variant()
    if rows is not None:
        wrong = wrong[..., rows, :] if wrong.ndim > 1 and wrong.shape[-2] > rows[-1] else np.empty(0)
    return fit_error(failure, arithmetic, wrong) if wrong.shape == failure.candidate.shape else None


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
    # Both are computed in float64, the variant perhaps for some rows alone: rounding is no effect of the bug.
    is_rounding = np.abs(wrong - value) <= ROUNDING * np.abs(wrong).max(axis=1, keepdims=True)
    value = np.where(is_rounding, wrong, value)
    # A wrong value that is larger than the right one also has larger rounding errors.
    sizes = ratio((wrong**2).sum(axis=1, keepdims=True), (value**2).sum(axis=1, keepdims=True))
    variance = variance * np.maximum(1.0, np.where(has_right_shape, sizes, 1.0))
    # A key that should be masked has the rounding errors of the row's others, and may be the expected row of padding.
    of_others = ratio(np.where(should_be_seen, variance, 0.0).sum(axis=1), should_be_seen.sum(axis=1))
    variance = np.where(should_be_seen, variance, of_others[:, None])
    variance += (arithmetic.result * wrong) ** 2 * np.where(should_be_seen, 1 / 3, 100.0)
    if (
        has_right_shape
        and (origin := failure.estimate.origin) is not None
        and origin.operation in ("activation", "add")
    ):
        # relu rounds nothing, another activation may be composed of several operations. A sum may be one of products.
        variance += sum((3 * arithmetic.result * x.value[counts]) ** 2 / 3 for x in origin.inputs)
    if has_right_shape and failure.check.operation == "softmax" and not failure.check.is_direct:
        variance = variance * growth(wrong, value) ** 2
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
    # Equal numbers have equal rounding errors, as those of a uniform softmax: a share of 1 ± u is all of a bug. And the
    # rounding error of all numbers may have a mean, as that of a deviation in float32: an eighth of the last place.
    mean = arithmetic.result / 4 * float((np.abs(value * difference) / variance).sum()) / weight
    is_whole = abs(coefficient - 1) <= 3 * standard_error + max(1e-12, arithmetic.result) + mean
    return (coefficient, standard_error, rho) if is_whole else None


def growth(wrong: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return by how much errors of probabilities (n, X) grow with a bug in the scores, at least 1.

    The relative error of a probability is the error of its score, which grows with the scores of the row.
    """
    is_seen = np.minimum(wrong, value) > TINY
    count = np.maximum(is_seen.sum(axis=1, keepdims=True), 1)

    def spread(probs: np.ndarray) -> np.ndarray:
        scores = np.log(np.where(is_seen, probs, 1.0))
        centered = np.where(is_seen, scores - scores.sum(axis=1, keepdims=True) / count, 0.0)
        size: np.ndarray = np.sqrt((centered**2).sum(axis=1, keepdims=True))
        return size

    of_scores = np.maximum(ratio(spread(wrong), spread(value)), 1.0)
    return np.asarray(np.clip(of_scores * ratio(wrong, value), 1.0, MAX_GROWTH))
