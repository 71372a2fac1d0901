"""The comparison of each tensor with what follows from the candidate's own earlier tensors. [spec 16]"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial

import numpy as np

from pegasusx_ref.tracing.trace_points import letters_of
from pegasusx_ref.verification.checking.arithmetics import ARITHMETICS, Arithmetic, is_coarser
from pegasusx_ref.verification.checking.candidate_tensors import CandidateTensors
from pegasusx_ref.verification.checking.comparison import HUGE, compare_rows, end_to_end, take_rows
from pegasusx_ref.verification.checking.estimate import Estimate, IfRight
from pegasusx_ref.verification.checking.masked_scores import compare_masks
from pegasusx_ref.verification.checking.operations import LOWEST
from pegasusx_ref.verification.checking.valid_rows import ValidRows
from pegasusx_ref.verification.known_differences import KnownDifference
from pegasusx_ref.verification.verdicts import INF, WARN, Check, Failure, RowErrors, not_comparable

CLIP = 1e60  # the largest number that the run continues with: its fourth power is finite
BLIND = 0.1  # the expected error relative to the tensor's own size from which on only gross errors are visible
NOT_FINITE = "NaN or infinite"
PRODUCTS = ("linear", "scores", "weighted_sum")  # the operations in which arithmetics differ most


class Checker:
    """A listener to a golden run that compares each tensor and replaces it by the candidate's.

    Args:
        tensors: the candidate's; tensors that it does not show are skipped.
        valid: which rows count.
        known: differences that are expected.
        arithmetic: what the candidate computes in.
        on_failure: called with each wrong tensor.
    """

    def __init__(
        self,
        tensors: CandidateTensors,
        valid: ValidRows,
        known: Sequence[KnownDifference],
        arithmetic: Arithmetic,
        on_failure: Callable[[Failure], None],
    ) -> None:
        self._tensors, self._valid, self._arithmetic, self._on_failure = tensors, valid, arithmetic, on_failure
        self.checks: list[Check] = []
        self.missing: list[str] = []
        self.rows: dict[str, RowErrors] = {}
        self.known: dict[KnownDifference, list[Check]] = {difference: [] for difference in known}
        self.assumed: dict[KnownDifference, list[str]] = {difference: [] for difference in known}
        self.passes_as = list(ARITHMETICS.values())  # those in which every direct tensor so far passes

    def __call__(self, name: str, estimate: Estimate) -> Estimate | None:
        """Compare a tensor and return the one that the run continues with, or None to keep the estimate."""
        estimate.names = estimate.names or (name,)
        if name not in self._tensors:
            self.missing.append(name)
            return self._assume(name, estimate)
        candidate, valid = self._tensors[name], self._valid.mask(name, estimate.shape)
        if name == "lm_head" and candidate.shape == (len(estimate.value), 1, estimate.shape[-1]):
            candidate, valid = last_alone(candidate, estimate.value, valid)
        if candidate.shape != estimate.shape:
            note = self._tensors.notes.get(name) or wrong_shape(candidate.shape, estimate.shape)
            self.passes_as = []
            self._add(not_comparable(name, estimate.operation, estimate.is_direct, note), estimate, candidate, valid)
            doubtful = copy(estimate)
            doubtful.doubt = estimate.doubt or name
            return doubtful
        note, own = "", candidate
        if not valid.all():
            candidate = np.where(valid[..., None], candidate, estimate.value)
        if is_scores := name.endswith(".scores"):
            candidate, estimate.value, note = compare_masks(candidate, estimate, valid)
        # Where an earlier tensor was not finite, neither is the expected one, and nothing can be compared.
        is_finite, can_be = np.isfinite(candidate), np.isfinite(estimate.value)
        if (is_lost := can_be & ~is_finite).any():
            note = NOT_FINITE
        # With an error of HUGE instead of NaN, the report shows where it is.
        compared = np.where(is_lost, HUGE, candidate) if note == NOT_FINITE else candidate
        check = self._add(self._compare(name, estimate, compared, valid, note), estimate, candidate, valid)
        if estimate.is_direct and check.verdict != "known":
            self._narrow(estimate, compared, valid, check.verdict == "fail")
        expected = None
        if check.verdict in ("known", "fail"):
            noise = np.random.default_rng(0).standard_normal(estimate.shape)
            expected = IfRight(estimate.value, estimate.value + np.sqrt(estimate.variance) * noise, (name,))
        if not is_finite.all():
            candidate = np.where(is_finite, candidate, np.nan)
        elif not is_scores and max(candidate.max(initial=0.0), -candidate.min(initial=0.0)) > CLIP:
            candidate = np.clip(candidate, -CLIP, CLIP)
        shown = candidate if can_be.all() else np.where(can_be, candidate, np.nan)
        if not valid.all():  # a candidate without a mask attends to its own rows of padding; masked scores stay masked
            is_usable = np.isfinite(own) & (np.abs(own) <= CLIP) & (shown != LOWEST)
            shown = np.where(valid[..., None] | ~is_usable, shown, own)
        return Estimate(shown, estimate.clean, names=(name,), expected=expected)

    def _assume(self, name: str, estimate: Estimate) -> Estimate | None:
        """Widen the tolerance of a hidden tensor by the limits of a known difference; None keeps the estimate."""
        if estimate.is_known or name.endswith(".probs"):  # computed by nothing; or a context's errors are of its scores
            return None
        for difference in self.known:
            if difference.matches(name) and (errors := difference.widened(estimate.allowed())) is not None:
                self.assumed[difference].append(name)
                wide = copy(estimate)
                wide.errors = errors
                return wide
        return None

    def _add(self, check: Check, estimate: Estimate, candidate: np.ndarray, valid: np.ndarray) -> Check:
        """Add a tensor's result; where a wrong one is a known difference, the result says so."""
        if check.verdict == "fail":
            cause = cause_of(estimate, candidate, valid)
            if (difference := self._known_difference(check, cause)) is not None:
                check = check._replace(verdict="known")
                self.known[difference].append(check)
            else:
                self._on_failure(Failure(check, estimate, candidate, valid, self._tensors, cause))
        self.checks.append(check)
        return check

    def _known_difference(self, check: Check, cause: str) -> KnownDifference | None:
        """Return the known difference that a tensor shows or follows from."""
        for difference, checks in self.known.items():
            if difference.covers(check.name, check) or any(earlier.name == cause for earlier in checks):
                return difference
        return None

    def _compare(self, name: str, estimate: Estimate, candidate: np.ndarray, valid: np.ndarray, note: str) -> Check:
        """Compare a tensor's rows and elements.

        Args:
            name: the tensor's name.
            estimate: its expected value.
            candidate: its values, finite where the expected ones are.
            valid: which rows count.
            note: a problem that is not numerical.
        """
        operation, is_direct, places = estimate.operation, estimate.is_direct, np.argwhere(valid)
        take = partial(take_rows, valid=valid)
        expected, found = take(estimate.value), take(candidate)
        if not np.isfinite(expected).any():
            note = "not checked: its inputs are not finite" if places.size else "not checked: no real token is in it"
            return Check(name, operation, "blind", 0.0, 0.0, 0.0, 0.0, (), 0.0, is_direct, note)
        errors = estimate.allowed()
        compared = compare_rows(found, expected, errors.map(take), is_direct)
        is_wrong = bool(compared.is_wrong.any() or note)
        by_row, wrong_rows = np.full(valid.shape, np.nan, dtype=np.float32), np.zeros(valid.shape, dtype=bool)
        with np.errstate(over="ignore"):  # rho may be inf in float32
            by_row[valid], wrong_rows[valid] = compared.rho, compared.is_wrong
        if has_rows := bool(letters_of(name)):  # those of a parameter's gradient belong to no text
            self.rows[name] = RowErrors(self._valid.in_batch(by_row, np.nan), self._valid.in_batch(wrong_rows, False))
        # The size of scores means nothing, only their differences do. A tensor of zeros is exact.
        is_blind = operation != "scores" and compared.relative_variance > BLIND**2
        rho, (row, column) = float(compared.rho.max()), compared.worst
        at = (*(int(i) for i in places[row]), column)
        check = Check(
            name=name,
            operation=operation,
            verdict="fail" if is_wrong else "warn" if rho > WARN else "blind" if is_blind else "pass",
            rho=rho,
            error=min(abs(float(candidate[at] - estimate.value[at])), HUGE),
            sigma=float(np.sqrt(errors.variance[at])),
            bound=float(errors.bound[at]),
            at=(int(self._valid.texts[at[0]]), *at[1:]) if has_rows else at,
            end_to_end=end_to_end(found, take(estimate.clean)),
            is_direct=is_direct,
            note=note or (self._tensors.notes.get(name, "") if is_wrong else ""),
            largest_error=compared.largest_error,
        )
        is_infinite = note == NOT_FINITE or check.error == HUGE  # a score that is masked on one side only
        return check._replace(rho=INF, error=INF, end_to_end=INF) if is_infinite else check

    def _narrow(self, estimate: Estimate, candidate: np.ndarray, valid: np.ndarray, is_wrong: bool) -> None:
        """Keep the arithmetics in which a tensor passes; one that passes in the given one passes in coarser ones."""
        open_ones = [a for a in self.passes_as if is_wrong or not is_coarser(a, self._arithmetic)]
        take, origin = partial(take_rows, valid=valid), estimate.origin
        if not open_ones or not np.isfinite(expected := take(estimate.value)).any():
            return
        found = take(candidate)

        def passes(arithmetic: Arithmetic) -> bool:
            errors = estimate.allowed() if origin is None or origin.errors is None else origin.errors(arithmetic)
            return not compare_rows(found, expected, errors.map(take)).is_wrong.any()

        self.passes_as = [a for a in self.passes_as if a not in open_ones or passes(a)]


def wrong_shape(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Format a wrong shape, with what may be padding."""
    text = f"shape {found} where {expected} is expected"
    longer = [axis for axis in range(min(len(found), len(expected))) if found[axis] != expected[axis]]
    if len(found) == len(expected) and len(longer) == 1 and found[longer[0]] > expected[longer[0]]:
        axis = longer[0]
        text += f"; if axis {axis} is padded, cut it in a map: slice = {{ {axis} = [0, {expected[axis]}] }}"
    return text


def last_alone(candidate: np.ndarray, right: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Complete logits of the last target position alone, as decoding computes them, and let no other row count.

    Args:
        candidate: (B, 1, V).
        right: the expected logits (B, L, V).
        valid: which rows count (B, L).
    """
    counts = np.zeros_like(valid)
    counts[:, -1] = valid[:, -1]
    return np.concatenate([right[:, :-1], candidate], axis=1), counts


def cause_of(estimate: Estimate, candidate: np.ndarray, valid: np.ndarray) -> str:
    """Return the earlier wrong tensor that a wrong tensor follows from; "" if it is a fault of its own.

    Either the expected one stands in for an earlier tensor of a wrong shape, or the candidate shows another tensor than
    the one that it used: with the expected one, nothing is wrong here.

    Args:
        estimate: the expected tensor.
        candidate: the candidate's.
        valid: which rows count.
    """
    if estimate.doubt or candidate.shape != estimate.shape:
        return estimate.doubt
    right = estimate.if_right()
    if not right.names:
        return ""
    inherited = np.broadcast_to(((right.sample - right.value) ** 2).mean(axis=-1, keepdims=True), estimate.shape)
    errors = estimate.allowed().inheriting(inherited)
    found = np.where(np.isfinite(candidate), candidate, HUGE)
    take = partial(take_rows, valid=valid)
    compared = compare_rows(take(found), take(right.value), errors.map(take), is_direct=False)
    return "" if compared.is_wrong.any() else right.names[0]
