"""The results of a verification: checks of tensors, the first failure, diagnoses, the report. [spec 16]"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.verification.estimate import Estimate
from pegasusx_ref.verification.valid_rows import ValidRows

VERDICTS = ("pass", "blind", "warn", "fail")  # from good to bad
WARN, FAIL = 3.0, 6.0  # rho of a row; correct implementations stay below the first
INF = float("inf")


class Check(NamedTuple):
    """The result for one tensor. [spec 16.11]

    Attributes:
        name: the tensor's name.
        operation: the operation that computes it.
        verdict: "pass", "warn", "fail", or "blind" where rounding would hide all but gross errors.
        rho: the largest ratio over all rows of the error to the expected rounding error.
        error: the absolute error of the worst element.
        sigma: the standard deviation of its rounding error.
        bound: the largest error of a correct implementation there.
        at: the index of the worst element, whose error is largest relative to its expected error.
        end_to_end: max |candidate - golden| / max |golden|, including errors from earlier operations.
        is_direct: whether the candidate shows all inputs of the operation; if not, the tolerance is wider.
        note: the problem, where it is not numerical.
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


def not_comparable(
    name: str, operation: str, is_direct: bool, note: str, sigma: float = 0.0, bound: float = 0.0
) -> Check:
    """Build the result for a tensor whose shape or numbers allow no comparison."""
    return Check(name, operation, "fail", INF, INF, sigma, bound, (), INF, is_direct, note)


class RowErrors(NamedTuple):
    """The error of each row of a tensor: arrays of its shape without the last axis.

    Attributes:
        rho: the ratio of the error to the expected rounding error, float32; NaN where a row does not count.
        is_wrong: whether the row, or one of its elements, exceeds the tolerance.
    """

    rho: np.ndarray
    is_wrong: np.ndarray


class Failure(NamedTuple):
    """The first wrong tensor, with everything that a diagnosis needs.

    Attributes:
        check: its result.
        estimate: its expected value.
        candidate: the candidate's tensor; where its shape is right, padding rows hold the expected values.
        valid: which rows count.
        layer_tensors: the candidate's tensors of the same layer, by name.
    """

    check: Check
    estimate: Estimate
    candidate: np.ndarray
    valid: np.ndarray
    layer_tensors: dict[str, np.ndarray]


class Diagnosis(NamedTuple):
    """A likely bug that explains a wrong tensor.

    Attributes:
        mistake: the bug, in words.
        where: the tensor that the bug is in: the wrong one, or an earlier one that the candidate does not show; ``*``
            stands for every block.
        coefficient: the share of the bug's effect that the error contains; 1 is all of it.
        standard_error: of the coefficient.
        rho: the ratio of the remaining error to the expected rounding error.
    """

    mistake: str
    where: str
    coefficient: float
    standard_error: float
    rho: float


@dataclass
class Report:
    """The results of a verification.

    Attributes:
        table: the result for each tensor that the candidate has, in the order of execution.
        failure: the first wrong tensor, or None.
        diagnoses: likely bugs that explain it, the best first.
        arithmetic: the arithmetic that set the tolerances.
        unknown: names of the candidate's tensors that are not trace points of this model.
        config: the model's configuration.
        valid: which rows count: the masks, and the blocks of every encoder layer.
        rows: the errors by row, by tensor name; tensors of a wrong shape are missing.
    """

    table: list[Check]
    failure: Failure | None
    diagnoses: list[Diagnosis]
    arithmetic: str
    unknown: list[str]
    config: PegasusXConfig
    valid: ValidRows
    rows: dict[str, RowErrors]

    @property
    def passed(self) -> bool:
        """Whether no tensor failed."""
        return self.failure is None

    @property
    def first_failure(self) -> Check | None:
        """The first tensor that does not follow from the candidate's own earlier tensors."""
        return None if self.failure is None else self.failure.check
