"""What was measured: every repetition of every implementation, and the facts that the figures depend on."""

import time
from dataclasses import dataclass, field
from typing import Any, Self

from pegasusx_ref.benchmarking.cases import Case

KILLED = "ended by "  # how the problem of a process begins that a signal has ended


@dataclass
class Run:
    """What one implementation did in a case, round by round.

    Attributes:
        seconds: of each repetition; of decoding for a token; of the machine the least that the work takes at its rate.
        memory: bytes at the peak of each repetition above what was there before, None where that is not known.
        problem: why there are no more of them.
    """

    seconds: list[float] = field(default_factory=list)
    memory: list[int | None] = field(default_factory=list)
    problem: str | None = None


@dataclass
class CaseResult:
    """A case and what each implementation did in it."""

    case: Case
    runs: dict[str, Run]

    @property
    def is_cut_short(self) -> bool:
        """Whether a signal ended somebody, as where memory runs out: another time it may go well."""
        return any((run.problem or "").startswith(KILLED) for run in self.runs.values())

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> Self:
        """Make the result that `dataclasses.asdict` has taken apart, also by way of JSON."""
        return cls(Case.from_dict(entries["case"]), {name: Run(**run) for name, run in entries["runs"].items()})


@dataclass
class Results:
    """All that was measured under the same settings and facts.

    Attributes:
        settings: of the run: suite, device, rounds, and another size if there is one.
        facts: what the figures depend on besides.
        command: that was called.
        date: of the beginning.
        cases: what is done, by name.
        extra: what others put beside it, such as the outcome of tests.
    """

    settings: dict[str, Any]
    facts: dict[str, Any]
    command: str
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S %z"))
    cases: dict[str, CaseResult] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
