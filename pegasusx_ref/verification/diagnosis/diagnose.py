"""Likely bugs that explain a wrong tensor. [spec 16]"""

import re
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import chain

import numpy as np

from pegasusx_ref.verification.checking.arithmetics import Arithmetic
from pegasusx_ref.verification.checking.estimate import INSIDE_ATTENTION, Estimate
from pegasusx_ref.verification.diagnosis.attention_bugs import UNLIKELY, LocatedVariants, attention_variants, locate
from pegasusx_ref.verification.diagnosis.attention_fits import attention_fits
from pegasusx_ref.verification.diagnosis.bug_fit import at_rows, fit_error, fit_variant, sampled_rows
from pegasusx_ref.verification.diagnosis.error_sizes import low_precision, unquantized
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, LayerContext
from pegasusx_ref.verification.diagnosis.fitted_bugs import fitted_bugs
from pegasusx_ref.verification.diagnosis.fitted_weights import fitted_linear_bugs
from pegasusx_ref.verification.diagnosis.known_bugs import KNOWN_BUGS
from pegasusx_ref.verification.diagnosis.overflow_bugs import overflow
from pegasusx_ref.verification.diagnosis.stored_bugs import stored_bugs
from pegasusx_ref.verification.verdicts import Diagnosis, Failure

BY_ROW = ("linear", "activation", "add", "layer_norm")  # operations on single rows


def diagnose(
    failure: Failure,
    arithmetic: Arithmetic,
    layer: LayerContext,
    before: Collection[str] = (),
    others: bool = True,
) -> list[Diagnosis]:
    """Try every known bug of the operation, and return those that explain its result within rounding. [spec 16.13]

    With d the difference that a bug makes and sigma that of rounding, the coefficient is the least-squares fit
    sum(E d / sigma^2) / sum(d^2 / sigma^2) to the error E. A bug explains the error where the coefficient is 1 within
    three standard errors, as if each row had a single rounding error, and only rounding is left.

    Bugs of earlier operations whose results the candidate does not show are tried too. If no bug explains the result,
    unknown numbers (a bias, a matrix) are fitted to it.

    Args:
        failure: a wrong tensor.
        arithmetic: what the candidate computes in.
        layer: the model, and the candidate's other tensors.
        before: bugs of earlier tensors, in words; if one of them explains this tensor too, no other is tried.
        others: whether other bugs are tried at all.

    Returns:
        The likely bugs, best first; none where no known bug explains the result.
    """
    name, shape = failure.check.name, failure.candidate.shape
    if not shape or shape == (0,):  # a single number, or no array at all
        return []
    found = list[Diagnosis]()
    rows, whole = sampled_rows(failure), LocatedVariants()
    sample, sampled = at_rows(failure, rows), variants(name, failure.estimate, layer, rows)
    # A stable sort: those of earlier tensors first, each group in the order of KNOWN_BUGS
    for where, bug, number in sorted(sampled, key=lambda located: located[1] not in before):
        if bug not in before and (not others or any(diagnosis.mistake in before for diagnosis in found)):
            break
        if found and number >= UNLIKELY:
            continue
        fit = fit_variant(sample, arithmetic, sampled[where, bug, number], rows)
        if fit is not None and rows is not None:
            whole = whole or variants(name, failure.estimate, layer)
            fit = fit_variant(failure, arithmetic, whole[where, bug, number])
        if fit is not None and bug not in {diagnosis.mistake for diagnosis in found}:
            found.append(Diagnosis(bug, where, *fit))
    if not others:
        return found
    if not found:
        found = list(attention_diagnoses(failure, sample, rows, arithmetic, layer))
    if not found and (cause := unquantized(failure)) is not None:
        found.append(Diagnosis(cause, name, float("nan"), float("nan"), failure.check.rho))
    if not found:
        stored, fitted = stored_bugs(failure, layer), fitted_bugs(failure, arithmetic)
        for bug, wrong in chain(moved_rows(failure, layer.config.block_size), stored, fitted, fitted_weights(failure)):
            if not found and wrong.shape == shape and (fit := fit_error(failure, arithmetic, wrong)):
                found.append(Diagnosis(bug, name, *fit))
    if not found and (coarse := low_precision(failure, arithmetic)) is not None:
        found.append(Diagnosis(coarse, name, float("nan"), float("nan"), failure.check.rho))
    # Differences below 0.01 are chance: there the order of KNOWN_BUGS, common bugs first, decides.
    return sorted(found, key=lambda diagnosis: round(diagnosis.rho, 2))


def variants(
    name: str, estimate: Estimate, layer: LayerContext, rows: np.ndarray | None = None, is_covered: bool = False
) -> LocatedVariants:
    """Compute a tensor with each bug of its operation, and of earlier operations that the candidate does not show.

    Args:
        name: the tensor's name, unless it is passed on from a tensor with an earlier name.
        estimate: the tensor's expected value and origin.
        layer: the model, and the candidate's other tensors of the layer.
        rows: those that bugs of attention are computed for; None means all.
        is_covered: whether bugs of this attention were tried at one of its later tensors.
    """
    origin, name = estimate.origin, estimate.names[0] if estimate.names else name
    if origin is None:
        passed_on = FailedOperation(name, (estimate.value,), {}, layer)
        return {(name, bug, 0): variant for bug, variant in KNOWN_BUGS["pass on"](passed_on).items()}
    values = [x.value for x in origin.inputs]
    op = FailedOperation(name, tuple(values), origin.settings, layer, estimate, rows)
    found: LocatedVariants = {}
    if origin.operation in KNOWN_BUGS and origin.operation not in INSIDE_ATTENTION:
        found = {(name, bug, 0): variant for bug, variant in KNOWN_BUGS[origin.operation](op).items()}
    if not is_covered and origin.operation in (*INSIDE_ATTENTION, "linear"):
        of_attention = attention_variants(op)
        found |= of_attention
        is_covered = bool(of_attention)
    is_covered &= origin.operation not in BY_ROW or name.endswith("out_proj")
    # One bug may reach this tensor through several inputs: through each block, or through queries and keys.
    by_input: dict[tuple[str, str, int], dict[int, Callable[[], np.ndarray]]] = {}
    for i, x in enumerate(origin.inputs):
        if x.origin is not None:
            earlier = variants(name, x, layer, rows if origin.operation in BY_ROW else None, is_covered)
            for (where, bug, number), variant in earlier.items():
                key = (re.sub(r"local\.\d+", "local.*", where), bug, number)
                by_input.setdefault(key, {})[i] = variant

    def propagate(changed: dict[int, Callable[[], np.ndarray]]) -> np.ndarray:
        inputs = [changed[i]() if i in changed else value for i, value in enumerate(values)]
        if [x.shape for x in inputs] != [x.shape for x in values]:
            return np.empty(0)  # a changed shape cannot be propagated
        return origin.golden(*inputs)

    return found | {key: partial(propagate, changed) for key, changed in by_input.items()}


def attention_diagnoses(
    failure: Failure, sample: Failure, rows: np.ndarray | None, arithmetic: Arithmetic, layer: LayerContext
) -> Iterator[Diagnosis]:
    """Yield bugs of the failed attention that are in some blocks only, or have an unknown number.

    Args:
        failure: a wrong tensor.
        sample: some rows of it.
        rows: those rows; None means all.
        arithmetic: what the candidate computes in.
        layer: the model, and the candidate's other tensors.
    """
    origin = failure.estimate.origin
    if origin is None or origin.operation not in (*INSIDE_ATTENTION, "linear"):
        return
    values = tuple(x.value for x in origin.inputs)
    located = locate(FailedOperation(failure.check.name, values, origin.settings, layer, failure.estimate, rows))
    if located is None or failure.candidate.shape != failure.estimate.shape:
        return
    if (cause := overflow(located, failure, arithmetic)) is not None:
        yield Diagnosis(cause, located.where.format("probs"), float("nan"), float("nan"), failure.check.rho)
        return
    fits = ((where, bug, variant) for (where, bug, _), variant in located.in_wrong_blocks(failure).items())
    for where, bug, variant in chain(fits, attention_fits(located, sample, arithmetic)):
        if fit := fit_variant(failure, arithmetic, variant):
            yield Diagnosis(bug, where, *fit)
            return


def moved_rows(failure: Failure, K: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the right tensor with its rows in wrong places."""
    right = np.where(failure.valid[..., None], failure.estimate.value, np.nan)
    missing = np.full_like(right[..., :1, :], np.nan)
    yield "rows are one position too late", np.concatenate([missing, right[..., :-1, :]], axis=-2)
    yield "rows are one position too early", np.concatenate([right[..., 1:, :], missing], axis=-2)
    if K // 2 > 1:
        lost = np.full_like(right, np.nan)[..., : K // 2, :]
        early = np.concatenate([right[..., K // 2 :, :], lost], axis=-2)[..., : right.shape[-2], :]
        yield "rows are K/2 positions too early: padding in front that is not there was removed", early
        late = np.concatenate([lost, right], axis=-2)[..., : right.shape[-2], :]
        yield "rows are K/2 positions too late: the padding in front was not removed", late
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
