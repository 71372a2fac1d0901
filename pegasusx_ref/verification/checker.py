"""The comparison of each tensor with what follows from the candidate's own earlier tensors. [spec 16]"""

import math
from collections.abc import Mapping

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.errors import InputError
from pegasusx_ref.files.reading import reading
from pegasusx_ref.verification.dumps import MappedTensors
from pegasusx_ref.verification.estimate import Estimate
from pegasusx_ref.verification.operations import HIDDEN, LOWEST
from pegasusx_ref.verification.valid_rows import ValidRows
from pegasusx_ref.verification.verdicts import FAIL, INF, WARN, Check, Failure, RowErrors, not_comparable

ELEMENT_FAIL = 10.0  # the ratio of one element's error to its expected error that fails it in a row that passes
CLIP = 1e60  # the largest number that the run continues with: its fourth power is finite
HUGE = 1e150  # the error of a score that is masked on one side only: its square is finite
BLIND = 0.1  # the expected error relative to the tensor's own size from which on only gross errors are visible
NOT_MASKED = "masked keys have ordinary scores"


class Checker:
    """A listener to a golden run that compares each tensor and replaces it by the candidate's.

    Args:
        tensors: the candidate's, by trace-point name; tensors that it does not show are skipped.
        valid: which rows count.
        max_size: elements of the largest tensor of this run; larger ones are not read from a file.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], valid: ValidRows, max_size: int) -> None:
        self._tensors, self._valid, self._max_size = tensors, valid, max_size
        self.checks: list[Check] = []
        self.rows: dict[str, RowErrors] = {}
        self.failure: Failure | None = None

    def __call__(self, name: str, estimate: Estimate) -> Estimate | None:
        """Compare a tensor and return the one that the run continues with, or None to keep the estimate."""
        estimate.names = estimate.names or (name,)
        if name not in self._tensors:
            return None
        with reading(f"tensor {name!r}", "an array", InputError):
            raw = to_numpy(self._read(name))
        if raw.dtype.kind not in "biufV":  # V: bfloat16 of ml_dtypes
            raise InputError(f"tensor {name!r} has dtype {raw.dtype}: expected real numbers")
        candidate, valid = np.asarray(raw, dtype=np.float64), self._valid.mask(name, estimate.shape)
        if candidate.shape != estimate.shape:
            note = f"shape {candidate.shape} where {estimate.shape} is expected"
            self._add(not_comparable(name, estimate.operation, estimate.is_direct, note), estimate, candidate, valid)
            return None
        candidate = np.where(valid[..., None], candidate, estimate.value)
        note = ""
        if is_scores := name.endswith(".scores"):
            hidden = estimate.value == LOWEST
            candidate = np.where((candidate == -np.inf) | (hidden & (candidate <= HIDDEN)), LOWEST, candidate)
            if (candidate[hidden & valid[..., None]] != LOWEST).any():
                note = NOT_MASKED
        finite = np.isfinite(candidate)
        if not finite.all():
            # HUGE instead of NaN, so that the report shows where it is.
            check = self._compare(name, estimate, np.where(finite, candidate, HUGE), valid, "NaN or infinite")
            self._add(check._replace(rho=INF, error=INF, end_to_end=INF), estimate, candidate, valid)
            return None
        self._add(self._compare(name, estimate, candidate, valid, note), estimate, candidate, valid)
        return Estimate(estimate.rng, candidate if is_scores else np.clip(candidate, -CLIP, CLIP), estimate.clean)

    def _read(self, name: str) -> np.ndarray:
        if isinstance(self._tensors, MappedTensors) and math.prod(shape := self._tensors.shape(name)) > self._max_size:
            raise InputError(
                f"tensor {name!r} has shape {shape}: no tensor of this run has more than {self._max_size:,} numbers"
            )
        return self._tensors[name]

    def _add(self, check: Check, estimate: Estimate, candidate: np.ndarray, valid: np.ndarray) -> None:
        self.checks.append(check)
        if check.verdict == "fail" and self.failure is None:
            names = (name for name in self._valid.layer_tensor_names(check.name) if name in self._tensors)
            tensors = {name: to_numpy(self._read(name)).astype(np.float64) for name in names}
            self.failure = Failure(check, estimate, candidate, valid, tensors)

    def _compare(self, name: str, estimate: Estimate, candidate: np.ndarray, valid: np.ndarray, note: str) -> Check:
        operation, is_direct, places = estimate.operation, estimate.is_direct, np.argwhere(valid)
        if not places.size:
            return Check(name, operation, "pass", 0.0, 0.0, 0.0, 0.0, (), 0.0, is_direct, "no real token")
        # From here on, matrices of the rows that count.
        value, clean, variance, bound = (x[valid] for x in (estimate.value, estimate.clean, *estimate.allowed()))
        error = np.minimum(np.abs(candidate[valid] - value), HUGE)
        # An element may be the sum of terms larger than itself; the rest of its row shows their size.
        element_rho = ratio(error, np.sqrt(variance + variance.mean(axis=1, keepdims=True)))
        row_rho = ratio(np.sqrt((error**2).sum(axis=1)), np.sqrt(variance.sum(axis=1)))
        wrong = (row_rho > FAIL) | (element_rho.max(axis=1) > ELEMENT_FAIL) | (error > bound).any(axis=1)
        rows = RowErrors(np.full(valid.shape, np.nan, dtype=np.float32), np.zeros(valid.shape, dtype=bool))
        with np.errstate(over="ignore"):  # rho may be inf in float32
            rows.rho[valid], rows.is_wrong[valid] = row_rho, wrong
        self.rows[name] = rows
        rho = float(row_rho.max())
        row, column = np.unravel_index(np.argmax(element_rho), element_rho.shape)
        # The size of scores means nothing, only their differences do. A tensor of zeros is exact.
        is_blind = operation != "scores" and variance.mean() > (BLIND**2) * (value**2).mean() > 0
        seen = clean != LOWEST
        total_error, clean = np.abs(candidate[valid] - clean)[seen], clean[seen]
        return Check(
            name=name,
            operation=operation,
            verdict="fail" if wrong.any() or note else "warn" if rho > WARN else "blind" if is_blind else "pass",
            rho=rho,
            error=float(error[row, column]),
            sigma=float(np.sqrt(variance[row, column])),
            bound=float(bound[row, column]),
            at=(*(int(i) for i in places[row]), int(column)),
            end_to_end=float(ratio(total_error.max(initial=0.0), np.abs(clean).max(initial=0.0))),
            is_direct=is_direct,
            note=note,
        )


def ratio(error: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Divide, with 0 / 0 = 0."""
    with np.errstate(over="ignore"):
        quotient: np.ndarray = error / np.maximum(size, np.finfo(np.float64).tiny)
    return quotient
