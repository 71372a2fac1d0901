"""Tensor by tensor: is what the candidate has what follows from its own tensors before it? [spec 16]"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.errors import InputError
from pegasusx_ref.verification.estimate import Estimate
from pegasusx_ref.verification.layouts import HIDDEN
from pegasusx_ref.verification.operations import LOWEST
from pegasusx_ref.verification.valid_rows import ValidRows

VERDICTS = ("pass", "blind", "warn", "fail")  # from good to bad
WARN, FAIL = 3.0, 6.0  # rho of a row; correct implementations stay below the first
ALONE = 10.0  # the error of one element beside what is expected of it, where the rest of its row is right
LARGEST = 1e60  # of what is computed with further: its fourth power is a number
HUGE = 1e150  # of an error, where a masked score stands beside one that is not: its square is a number
BLIND = 0.1  # of a tensor's own size: where rounding alone may be as large, little can be said of it


class Check(NamedTuple):
    """What was found of one tensor. [spec 16.11]

    Attributes:
        name: of the tensor.
        operation: what computed it.
        verdict: "pass", "warn", "fail", or "blind" where no mistake but a gross one would be seen at this precision.
        rho: the largest ratio, of all rows, of the error to the error that rounding is expected to make.
        error: the largest absolute error.
        sigma: what is expected of it there, the standard deviation.
        bound: what no correct implementation exceeds there.
        at: where the error is largest, beside what is expected.
        end_to_end: max |candidate - golden| / max |golden|, with all that it inherited.
        is_direct: whether the candidate showed everything that goes into this tensor; if not, more is allowed for.
        note: what else is to be said.
    """

    name: str
    operation: str
    verdict: str
    rho: float
    error: float
    sigma: float
    bound: float
    at: tuple[int, ...]
    end_to_end: float
    is_direct: bool
    note: str = ""


class Rows(NamedTuple):
    """How far off each row of a tensor is: arrays of its shape without the last axis.

    Attributes:
        rho: the error beside the one that rounding is expected to make; NaN where a row does not count.
        is_wrong: whether the row, or one element of it, is further off than a correct implementation's.
    """

    rho: np.ndarray
    is_wrong: np.ndarray


class Failure(NamedTuple):
    """The first tensor that is wrong, with all that a diagnosis needs.

    Attributes:
        check: what was found of it.
        estimate: what it must be.
        given: what the candidate has; rows of padding are right ones, where the shape is right.
        valid: which rows count.
        beside: the candidate's tensors of the same layer, by name.
    """

    check: Check
    estimate: Estimate
    given: np.ndarray
    valid: np.ndarray
    beside: dict[str, np.ndarray]


class Checker:
    """Listens to a golden run, compares every tensor, and puts the candidate's in its place.

    Args:
        tensors: the candidate's, by trace-point name; those that it lacks are passed over.
        valid: which rows count.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], valid: ValidRows) -> None:
        self._tensors, self._valid = tensors, valid
        self.checks: list[Check] = []
        self.rows: dict[str, Rows] = {}
        self.failure: Failure | None = None

    def __call__(self, name: str, estimate: Estimate) -> Estimate | None:
        """Compare a tensor; what is returned goes on in its place."""
        estimate.names = estimate.names or (name,)
        if (tensor := self._tensors.get(name)) is None:
            return None
        given = to_numpy(tensor)
        if given.dtype.kind not in "biufV":  # V: the halves of ml_dtypes
            raise InputError(f"tensor {name!r} has dtype {given.dtype}: expected real numbers")
        valid = self._valid.of(name, estimate.shape)
        if given.shape != estimate.shape:
            inf, note = float("inf"), f"shape {given.shape} where {estimate.shape} is expected"
            check = Check(name, estimate.operation, "fail", inf, inf, 0.0, 0.0, (), inf, estimate.is_direct, note)
            self._note(check, estimate, given.astype(np.float64), valid)
            return None
        found = np.asarray(given, dtype=np.float64)
        found = np.where(valid[..., None], found, estimate.value)
        note = ""
        if name.endswith(".scores"):
            hidden = estimate.value == LOWEST
            found = np.where((found == -np.inf) | (hidden & (found <= HIDDEN)), LOWEST, found)
            if (found[hidden & valid[..., None]] != LOWEST).any():
                note = "masked keys have scores like others"
        finite = np.isfinite(found)
        if not finite.all():
            # As far off as can be, so that it is known where.
            check = self._compared(name, estimate, np.where(finite, found, HUGE), valid, "NaN or infinite")
            inf = float("inf")
            self._note(check._replace(rho=inf, error=inf, end_to_end=inf), estimate, found, valid)
            return None
        self._note(self._compared(name, estimate, found, valid, note), estimate, found, valid)
        if not name.endswith(".scores"):
            found = np.clip(found, -LARGEST, LARGEST)
        return Estimate(estimate.rng, found, estimate.clean)

    def _note(self, check: Check, estimate: Estimate, given: np.ndarray, valid: np.ndarray) -> None:
        self.checks.append(check)
        if check.verdict == "fail" and self.failure is None:
            given_beside = ((name, self._tensors.get(name)) for name in self._valid.names_beside(check.name))
            beside = {name: to_numpy(tensor).astype(np.float64) for name, tensor in given_beside if tensor is not None}
            self.failure = Failure(check, estimate, given, valid, beside)

    def _compared(self, name: str, estimate: Estimate, found: np.ndarray, valid: np.ndarray, note: str) -> Check:
        expected, places = estimate.allowed(), np.argwhere(valid)
        if not places.size:
            return Check(
                name, estimate.operation, "pass", 0.0, 0.0, 0.0, 0.0, (), 0.0, estimate.is_direct, "no real token"
            )
        # From here on a matrix: rows of real tokens.
        value, clean, variance, bound = (x[valid] for x in (estimate.value, estimate.clean, *expected))
        error = np.minimum(np.abs(found[valid] - value), HUGE)
        # An element may be summed from larger parts than it shows; its neighbours in the row tell how large they are.
        beside = ratio(error, np.sqrt(variance + variance.mean(axis=1, keepdims=True)))
        rhos = ratio(np.sqrt((error**2).sum(axis=1)), np.sqrt(variance.sum(axis=1)))
        wrong = (rhos > FAIL) | (beside.max(axis=1) > ALONE) | (error > bound).any(axis=1)
        self.rows[name] = placed(valid, rhos, wrong)
        rho = float(rhos.max())
        row, column = np.unravel_index(np.argmax(beside), beside.shape)
        is_wrong = wrong.any() or bool(note)
        # Scores are as large as they happen to be: only their differences mean something.
        # A result of nothing but zeros is exact.
        is_blind = estimate.operation != "scores" and variance.mean() > (BLIND**2) * (value**2).mean() > 0
        verdict = "fail" if is_wrong else "warn" if rho > WARN else "blind" if is_blind else "pass"
        seen = clean != LOWEST
        whole = ratio(np.abs(found[valid] - clean)[seen].max(initial=0.0), np.abs(clean[seen]).max(initial=0.0))
        return Check(
            name=name,
            operation=estimate.operation,
            verdict=verdict,
            rho=rho,
            error=float(error[row, column]),
            sigma=float(np.sqrt(variance[row, column])),
            bound=float(bound[row, column]),
            at=(*(int(i) for i in places[row]), int(column)),
            end_to_end=float(whole),
            is_direct=estimate.is_direct,
            note=note,
        )


def placed(valid: np.ndarray, rhos: np.ndarray, wrong: np.ndarray) -> Rows:
    """Put what was found of the rows that count back where they stand in the tensor."""
    rows = Rows(np.full(valid.shape, np.nan, dtype=np.float32), np.zeros(valid.shape, dtype=bool))
    with np.errstate(over="ignore"):
        rows.rho[valid] = rhos
    rows.is_wrong[valid] = wrong
    return rows


def ratio(error: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Divide, 0 / 0 being 0."""
    with np.errstate(over="ignore"):
        found: np.ndarray = error / np.maximum(size, np.finfo(np.float64).tiny)
    return found
