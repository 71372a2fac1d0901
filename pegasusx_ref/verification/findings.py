"""Grouping of wrong tensors into findings, each with its diagnosis. [spec 16]"""

from collections import Counter
from collections.abc import Callable, Collection

from pegasusx_ref.tracing.trace_points import general
from pegasusx_ref.verification.checking.estimate import INSIDE_ATTENTION
from pegasusx_ref.verification.verdicts import Diagnosis, Failure, Finding

MAX_DIAGNOSED = 3  # tensors of one trace point for which all bugs are tried; later ones only for bugs found before

Diagnose = Callable[[Failure, Collection[str], bool], list[Diagnosis]]


class FindingCollector:
    """Collects wrong tensors, in the order of execution.

    Args:
        diagnose: returns the likely bugs of a failure, of the given ones first, and of others only if asked to.
    """

    def __init__(self, diagnose: Diagnose) -> None:
        self._diagnose = diagnose
        self._by_cause: dict[tuple[str, ...], Finding] = {}
        self._by_tensor: dict[str, Finding] = {}
        self._diagnosed: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self.failure: Failure | None = None  # the first one

    def add(self, failure: Failure) -> None:
        """Add a wrong tensor to the finding that it belongs to, or to a new one."""
        self.failure = self.failure or failure
        check, point = failure.check, general(failure.check.name)
        if (finding := self._by_tensor.get(failure.cause)) is None:
            diagnoses = self._diagnoses(failure, point)
            operation = "attention" if check.operation in INSIDE_ATTENTION else check.operation
            cause = (operation, diagnoses[0].mistake) if diagnoses else (point,)
            if (finding := self._by_cause.get(cause)) is None:
                finding = self._by_cause[cause] = Finding([], diagnoses)
                self.findings.append(finding)
        finding.checks.append(check)
        self._by_tensor[check.name] = finding

    def _diagnoses(self, failure: Failure, point: str) -> list[Diagnosis]:
        before = {finding.diagnoses[0].mistake for finding in self.findings if finding.diagnoses}
        found = self._diagnose(failure, before, self._diagnosed[point] < MAX_DIAGNOSED)
        self._diagnosed[point] += not found or found[0].mistake not in before
        return found
