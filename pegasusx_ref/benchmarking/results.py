"""Results: the repetitions of every implementation, and the metrics derived from them."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from pegasusx_ref.benchmarking.cases import MACHINE, Case
from pegasusx_ref.benchmarking.work import work_of

KILLED = "ended by "  # start of a problem where a signal ended the process
MAX_RANGE = 1.3  # of the ratios in a case, the highest divided by the lowest: beyond it the machine was loaded


class Spread(NamedTuple):
    """The median of some rounds and their range."""

    median: float
    lowest: float
    highest: float


@dataclass
class Run:
    """The repetitions of one implementation in a case, by round.

    Attributes:
        seconds: of each repetition; per token for "decoder"; for the machine the lower bound for the case's work.
        memory: peak bytes of each repetition above those allocated before it, None where not measured.
        problem: why later rounds are missing.
    """

    seconds: list[float] = field(default_factory=list)
    memory: list[int | None] = field(default_factory=list)
    problem: str | None = None

    def values(self, metric: str) -> list[float]:
        """Return the measured "time" in seconds or "memory" in bytes of each round."""
        return self.seconds if metric == "time" else [float(peak) for peak in self.memory if peak is not None]

    def median(self, metric: str = "time") -> float | None:
        """Return the median of the rounds; None where there are none."""
        values = self.values(metric)
        return statistics.median(values) if values else None

    def ratio(self, other: "Run", metric: str = "time") -> Spread | None:
        """Divide by the values of another run in the same round, whose conditions were alike; None without values."""
        pairs = zip(self.values(metric), other.values(metric), strict=False)  # one may have failed in a later round
        ratios = [value / reference for value, reference in pairs if reference > 0]
        return Spread(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


@dataclass
class CaseResult:
    """A case and the run of each implementation."""

    case: Case
    runs: dict[str, Run]

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended an implementation, as happens when memory runs out; a later run may succeed."""
        return any((run.problem or "").startswith(KILLED) for run in self.runs.values())

    @property
    def unstable(self) -> list[str]:
        """The implementations whose ratios to the reference's time differ too much between the rounds."""
        ratios = {name: self.ratio(name) for name in self.runs}
        return [name for name, ratio in ratios.items() if ratio and ratio.highest > MAX_RANGE * ratio.lowest]

    def ratio(self, implementation: str, metric: str = "time") -> Spread | None:
        """Compare an implementation with the case's reference; None for the reference itself and the machine."""
        reference = self.case.reference
        if implementation in (reference, MACHINE) or reference not in self.runs:
            return None
        return self.runs[implementation].ratio(self.runs[reference], metric)

    def share(self, implementation: str) -> float | None:
        """Return the share of the machine's rate in the same rounds; None for the machine itself or without it."""
        if implementation == MACHINE or MACHINE not in self.runs:
            return None
        spread = self.runs[MACHINE].ratio(self.runs[implementation])
        return spread and spread.median

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> Self:
        """Rebuild a result from the output of `dataclasses.asdict`, which may have been stored as JSON."""
        return cls(Case.from_dict(entries["case"]), {name: Run(**run) for name, run in entries["runs"].items()})


@dataclass
class Results:
    """Everything measured with one combination of settings and facts.

    Attributes:
        settings: suite, device, rounds, tokens, preset.
        facts: machine, versions and library settings; see `facts`.
        command: the command line.
        date: when the run began.
        cases: results by the case's name.
        extra: results of other tools, such as the GPU tests.
    """

    settings: dict[str, Any]
    facts: dict[str, Any]
    command: str
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S %z"))
    cases: dict[str, CaseResult] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def summarize(results: Results) -> dict[str, dict[str, dict[str, Any]]]:
    """Compute the metrics of each case and implementation, as JSON can store them."""
    return {
        case: {name: summary_of(results.cases.values(), result, name) for name in result.runs}
        for case, result in results.cases.items()
    }


def summary_of(results: Iterable[CaseResult], result: CaseResult, implementation: str) -> dict[str, Any]:
    """Compute the metrics of one implementation in a case; `results` holds the shorter case for its growth.

    Returns:
        Medians "seconds" and "memory" in bytes; "rate", work per second in "unit", and "share" of the machine's rate;
        "time_ratio" and "memory_ratio" to "reference", round by round; "growth" of time and "memory_growth"; "aims".
        None marks a metric that was not measured.
    """
    run, work = result.runs[implementation], work_of(result.case)
    seconds, share = run.median(), result.share(implementation)
    grown, memory_grown = (growth(results, result, implementation, metric) for metric in ("time", "memory"))
    ratios = {metric: result.ratio(implementation, metric) for metric in ("time", "memory")}
    reached = {metric: ratio and ratio.median for metric, ratio in ratios.items()}
    reached |= {"growth": grown, "memory growth": memory_grown, "share": share, "seconds": seconds}
    return {
        "seconds": seconds,
        "memory": run.median("memory"),
        "rate": work.amount / seconds if seconds else None,
        "unit": f"{work.unit}/s",
        "share": share,
        "reference": result.case.reference,
        **{f"{metric}_ratio": ratio and ratio._asdict() for metric, ratio in ratios.items()},
        "growth": grown,
        "memory_growth": memory_grown,
        "aims": [
            {"figure": aim.figure, "aim": aim.value, "reached": value, "met": aim.is_met(value)}
            for aim in result.case.aims
            if aim.implementation == implementation
            for value in [reached[aim.figure]]
        ],
    }


def growth(
    results: Iterable[CaseResult], result: CaseResult, implementation: str, metric: str = "time"
) -> float | None:
    """Divide an implementation's time or memory by that at `Case.grows_from` tokens; None without that case."""
    case = result.case
    for shorter in results:
        other = shorter.case
        if (other.kind, other.preset, other.dtype, other.tokens) == (
            case.kind,
            case.preset,
            case.dtype,
            case.grows_from,
        ):
            before, after = (runs.get(implementation, Run()).median(metric) for runs in (shorter.runs, result.runs))
            return after / before if before and after else None
    return None
