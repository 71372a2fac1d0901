"""The results of a verification: checks of tensors, findings, known differences, coverage. [spec 16]"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.rendering.tables import counted
from pegasusx_ref.verification.checking.estimate import Estimate
from pegasusx_ref.verification.checking.valid_rows import ValidRows
from pegasusx_ref.verification.known_differences import KnownDifference

VERDICTS = ("pass", "blind", "warn", "known", "fail")  # from good to bad
WARN, FAIL = 3.0, 6.0  # rho of a row; correct implementations stay below the first
INF = float("inf")


class Check(NamedTuple):
    """The result for one tensor. [spec 16.11]

    Attributes:
        name: the tensor's name.
        operation: the operation that computes it.
        verdict: "pass", "warn", "fail"; "known" where a known difference fails; "blind" where rounding would hide all
            but gross errors, or nothing can be compared.
        rho: the largest ratio over all rows of the error to the expected rounding error.
        error: the absolute error of the worst element.
        sigma: the standard deviation of its rounding error.
        bound: the largest error of a correct implementation there.
        at: the index of the worst element, whose error is largest relative to its expected error.
        end_to_end: max |candidate - golden| / max |golden|, including errors from earlier operations.
        is_direct: whether the candidate shows all inputs of the operation; if not, the tolerance is wider.
        note: the problem, where it is not numerical.
        largest_error: the largest absolute error of an element, which is not always the worst one.
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
    largest_error: float = 0.0


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
    """A wrong tensor, with everything that a diagnosis needs.

    Attributes:
        check: its result.
        estimate: its expected value.
        candidate: the candidate's tensor; where its shape is right, padding rows hold the expected values.
        valid: which rows count.
        tensors: all tensors of the candidate by name, each read on access.
        cause: the earlier wrong tensor that it follows from; "" if it is a fault of its own.
    """

    check: Check
    estimate: Estimate
    candidate: np.ndarray
    valid: np.ndarray
    tensors: Mapping[str, np.ndarray]
    cause: str = ""


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


class Finding(NamedTuple):
    """A fault, with the tensors that it makes wrong. [spec 16.17]

    Attributes:
        checks: the wrong tensors, in the order of execution: all with the same likely bug, or blocks and layers of one
            trace point, and tensors that cannot be checked because the first has the wrong shape.
        diagnoses: likely bugs that explain the first of them, the best first.
    """

    checks: list[Check]
    diagnoses: list[Diagnosis]

    @property
    def first(self) -> Check:
        """The first of the tensors."""
        return self.checks[0]


class Coverage(NamedTuple):
    """Which tensors of the run the candidate shows.

    Attributes:
        shown: the number of tensors that it shows.
        missing: names of the tensors that it does not show.
        unknown: other names of the candidate, each with the nearest trace point, "" if none is near.
    """

    shown: int
    missing: list[str]
    unknown: dict[str, str]

    @property
    def is_complete(self) -> bool:
        """Whether every tensor is shown, and every name known."""
        return not self.missing and not self.unknown


@dataclass(repr=False)
class Report:
    """The results of a verification; `print` shows them as the command line does.

    Attributes:
        table: the result for each tensor that the candidate has, in the order of execution.
        findings: the faults, in the order of their first tensors.
        failure: the first wrong tensor, or None.
        arithmetic: the name of the arithmetic that set the tolerances.
        coverage: which tensors the candidate shows.
        config: the model's configuration.
        valid: which rows count: the masks, and the blocks of every encoder layer.
        rows: the errors by row, by tensor name; tensors of a wrong shape are missing.
        known: for each known difference, the tensors that it covers; none where it no longer occurs.
        assumed: for each known difference, the hidden tensors whose tolerance it widens.
        passes_as: names of arithmetics in which nothing fails, the finest first, where most products fail in this one.
        notes: faults that these inputs cannot show.
        hints: what may be missing from the inputs of a candidate that fails.
        is_strict: whether a candidate fails that does not show exactly the tensors of the run.
    """

    table: list[Check]
    findings: list[Finding]
    failure: Failure | None
    arithmetic: str
    coverage: Coverage
    config: PegasusXConfig
    valid: ValidRows
    rows: dict[str, RowErrors]
    known: dict[KnownDifference, list[Check]] = field(default_factory=dict)
    assumed: dict[KnownDifference, list[str]] = field(default_factory=dict)
    passes_as: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    is_strict: bool = False

    def __repr__(self) -> str:
        findings = counted(len(self.findings), "finding", separator="")
        return f"<Report: {findings} in {len(self.table)} tensors, {self.arithmetic}>"

    def __str__(self) -> str:
        from pegasusx_ref.verification.reports.text import as_text  # which imports this module

        return as_text(self)

    @property
    def passed(self) -> bool:
        """Whether no tensor failed, except for known differences, and a strict report has no gap."""
        return not self.findings and not self.gap

    @property
    def gap(self) -> str:
        """What a strict report lacks, in words: "3 tensors are missing, 1 name is unknown"; "" otherwise."""
        counts = {"tensor": (len(self.coverage.missing), "missing"), "name": (len(self.unknown), "unknown")}
        return ", ".join(
            f"{counted(count, f'{kind} is', f'{kind}s are', separator='')} {problem}"
            for kind, (count, problem) in counts.items()
            if count and self.is_strict
        )

    @property
    def first_failure(self) -> Check | None:
        """The first tensor that does not follow from the candidate's own earlier tensors."""
        return self.findings[0].first if self.findings else None

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """Likely bugs that explain the first failure, the best first."""
        return self.findings[0].diagnoses if self.findings else []

    @property
    def unknown(self) -> list[str]:
        """Names of the candidate's tensors that are not tensors of this run."""
        return list(self.coverage.unknown)
